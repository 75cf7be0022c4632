"""Icons that administrators upload: drawn anew, so that nothing of the file is kept but its pixels."""

import io

from qemuspawner.errors import CatalogueError
from qemuspawner.texts import Text
from qemuspawner.units import render_mib

MAX_UPLOAD_BYTES = 1 << 20
# Twice as wide as pages show it, for screens with twice the pixels; as PNG never over what icons may have.
_WIDTH_PX = 96
_MAX_PX = 1 << 24


def make_icon(content: bytes) -> bytes:
    """A PNG of at most 96x96 pixels out of one of any size.

    Raises:
        CatalogueError: It is no PNG, or one that is too large.
    """
    # It takes a while to import, and few hubs are ever given an icon.
    from PIL import Image

    most = Text(
        "An icon has at most {size} and {count} pixels.",
        size=render_mib(MAX_UPLOAD_BYTES >> 20),
        count=_MAX_PX,
    )
    if len(content) > MAX_UPLOAD_BYTES:
        raise CatalogueError("invalid", Text("The picture is too large for an icon."), hint=most)
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            if picture.width * picture.height > _MAX_PX:
                raise CatalogueError("invalid", Text("The picture is too large for an icon."), hint=most)
            icon = picture.convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        raise CatalogueError(
            "invalid", Text("The picture is no PNG file."), hint=Text("Save it as PNG first.")
        ) from exc
    icon.thumbnail((_WIDTH_PX, _WIDTH_PX))
    png = io.BytesIO()
    icon.save(png, "PNG", optimize=True)
    return png.getvalue()
