"""What a raster may make GDAL open: nothing but itself, and files inside some folders."""

import os
import re
from pathlib import Path
from xml.etree import ElementTree

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

# A declaration in XML: what defines entities, which may grow without end or name files.
DECLARATION = re.compile(r"<!(?!--|\[CDATA\[)")


def kind_of(path: str | Path) -> str:
    """Give the name of the GDAL driver that may read a file, from its first bytes.

    UnreadableImage if there is none.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UnreadableImage(image_files.reason(error)) from None
    for magic, driver in MAGIC.items():
        if head.startswith(magic):
            return driver
    if os.fspath(path).lower().endswith(".vrt"):
        return "VRT"
    raise UnreadableImage(image_files.NO_IMAGE)


def allowed_folders(path: str | Path, root: str | Path | None) -> list[Path]:
    """Where the files may lie that a raster names: its own folder and root, resolved."""
    own = Path(os.path.realpath(os.path.dirname(os.path.abspath(path))))
    return [own] if root is None else [own, Path(os.path.realpath(root))]


def is_inside(path: str | Path, folders: list[Path]) -> bool:
    """Whether a path, its symbolic links followed, lies in one of some resolved folders."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(folder) for folder in folders)


def parse_xml(text: str) -> ElementTree.Element | None:
    """The root of an XML text, None if it is no XML. UnreadableImage if it declares entities."""
    if DECLARATION.search(text):
        raise UnreadableImage("XML that declares a type or entities is not read; remove them")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return None
