"""What a raster may make GDAL open: nothing but itself, and files inside a folder."""

import os
from pathlib import Path

from dl_slicer.patch_sets import image_files
from dl_slicer.patch_sets.image_files import UnreadableImage

# GDAL's driver by the first bytes of a file: its name is never trusted.
MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",
}
NO_IMAGE = "no JPEG, PNG or TIFF image that can be read; replace or delete it"


def kind_of(path: str | Path) -> str:
    """Give the name of the GDAL driver that may read a file, from its first bytes."""
    try:
        with open(path, "rb") as file:
            head = file.read(256)
    except OSError as error:
        raise UnreadableImage(image_files.reason(error)) from None
    for magic, driver in MAGIC.items():
        if head.startswith(magic):
            return driver
    if str(path).lower().endswith(".vrt"):
        return "VRT"
    raise UnreadableImage(NO_IMAGE)


def is_inside(path: str | Path, folders: list[Path]) -> bool:
    """Whether a path, its symbolic links followed, lies in one of some resolved folders."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(folder) for folder in folders)


def allowed_folders(path: str | Path, root: str | Path | None) -> list[Path]:
    """Where a raster may name files: its own folder and root, resolved."""
    own = Path(os.path.realpath(os.path.dirname(os.path.abspath(path))))
    return [own] if root is None else [own, Path(os.path.realpath(root))]
