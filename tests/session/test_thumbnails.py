"""A screen made small, of whatever QEMU says that it is."""

import io
import zlib

import pytest
from PIL import Image

from qemuspawner.errors import VmError
from qemuspawner.session.screen.thumbnails import Thumbnails, shrink


def draw(width: int, height: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (0, 128, 255)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("size", "small"), [((1280, 800), (320, 200)), ((600, 800), (180, 240)), ((64, 48), (64, 48))]
)
def test_a_screen_keeps_its_shape_and_is_not_made_larger(
    size: tuple[int, int], small: tuple[int, int]
) -> None:
    with Image.open(io.BytesIO(shrink(draw(*size)))) as image:
        assert (image.format, image.size) == ("JPEG", small)


def test_what_is_no_png_is_refused() -> None:
    for bad in (b"", b"<svg/>", draw(64, 48, "GIF"), draw(64, 48)[:40]):
        with pytest.raises(VmError):
            shrink(bad)


def test_a_png_that_would_take_gigabytes_is_not_decoded() -> None:
    """65535 pixels square, in a file of 100 bytes."""
    png = bytearray(draw(1, 1))
    png[16:24] = (65535).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")

    with pytest.raises(VmError):
        shrink(bytes(png))


async def test_the_screen_is_read_once_a_second_however_many_look_on() -> None:
    taken = 0

    async def screenshot() -> bytes:
        nonlocal taken
        taken += 1
        return draw(64, 48)

    thumbnails = Thumbnails(screenshot)

    pictures = {await thumbnails.newest() for _ in range(5)}

    assert (len(pictures), taken) == (1, 1)
