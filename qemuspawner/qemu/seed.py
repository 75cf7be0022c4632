"""A NoCloud volume: an ISO image with the label `cidata`, which tells cloud-init what a machine is to be."""

import io
from collections.abc import Mapping
from pathlib import Path

LABEL = "cidata"


def write_seed(path: Path, files: Mapping[str, bytes]) -> None:
    """Write the files, plain names in one folder, as an ISO image that only its owner reads.

    Raises:
        OSError: Such as a full disk.
    """
    # Quick to import, but nothing that other machines need.
    from pycdlib.pycdlib import PyCdlib

    image = PyCdlib()
    image.new(interchange_level=3, rock_ridge="1.09", vol_ident=LABEL)
    for number, (name, content) in enumerate(sorted(files.items())):
        # Linux reads Rock Ridge's names; ISO 9660's own have no small letters.
        image.add_fp(io.BytesIO(content), len(content), f"/F{number}.;1", rr_name=name, file_mode=0o100400)
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    with path.open("wb") as file:
        image.write_fp(file)
    image.close()
