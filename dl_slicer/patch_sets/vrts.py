"""VRTs, which name other files, in a form that is safe to open.

A VRT may name any file, URL, database or program. Here it is read, and only what a mosaic of
rasters in allowed folders needs is written anew, with the real paths; GDAL sees nothing else.
"""

import os
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from rasterio.io import MemoryFile

from dl_slicer.cli import printable
from dl_slicer.patch_sets import gdal, image_files, raster_safety, sidecars
from dl_slicer.patch_sets.image_files import UnreadableImage

LARGEST = 50_000_000  # bytes; a mosaic of 10,000 tiles has some 10 million
DEEPEST = 4  # VRTs of VRTs
SOURCES = ("SimpleSource", "ComplexSource", "AveragedSource")

# What is kept: {element: its attributes}. What stands in none of them is not written anew.
OF_BANDS = {"NoDataValue": (), "ColorInterp": (), "HideNoDataValue": ()}
OF_SOURCES = {
    "SourceBand": (),
    "SourceProperties": ("RasterXSize", "RasterYSize", "DataType", "BlockXSize", "BlockYSize"),
    "SrcRect": ("xOff", "yOff", "xSize", "ySize"),
    "DstRect": ("xOff", "yOff", "xSize", "ySize"),
    "NODATA": (),
    "UseMaskBand": (),
    "ScaleOffset": (),
    "ScaleRatio": (),
    "LUT": (),
    "ColorTableComponent": (),
}


@dataclass
class _Reading:
    """One VRT that is being read: where it lies, and what was opened for it."""

    path: str
    folders: list[Path]
    files: ExitStack
    depth: int = 0
    checked: dict[str, str] = field(default_factory=dict)  # {real path: what to open for it}


@dataclass(frozen=True)
class Vrt:
    """A VRT that is safe to open, within the ExitStack it was made with.

    name: what GDAL opens. transform: a to f of an affine transform, crs: as the file has it.
    """

    name: str
    transform: tuple[float, ...] | None
    crs: str | None


def read(path: str | Path, root: str | Path | None, files: ExitStack) -> Vrt:
    """Check a VRT and all that it names.

    UnreadableImage if it names what is not there, lies outside its folder and root, or is no
    raster, and if it is more than a mosaic.
    """
    folders = raster_safety.allowed_folders(path, root)
    return _read(_Reading(os.path.abspath(path), folders, files))


def _read(reading: _Reading) -> Vrt:
    dataset = _parse(reading.path)
    _refuse_subclass(dataset)
    safe = Element("VRTDataset", _kept(dataset, ("rasterXSize", "rasterYSize")))
    for band in dataset.iterfind("VRTRasterBand"):
        safe.append(_safe_band(band, reading))
    for mask in dataset.iterfind("MaskBand"):
        place = ElementTree.SubElement(safe, "MaskBand")
        for band in mask.iterfind("VRTRasterBand"):
            place.append(_safe_band(band, reading))
    file = reading.files.enter_context(MemoryFile(ElementTree.tostring(safe), ext=".vrt"))
    transform = sidecars.transform_of(dataset.findtext("GeoTransform"))
    return Vrt(file.name, transform, dataset.findtext("SRS"))


def _parse(path: str) -> Element:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(LARGEST + 1)
    except OSError as error:
        raise UnreadableImage(image_files.reason(error)) from None
    root = raster_safety.parse_xml(text) if len(text) <= LARGEST else None
    if root is None or root.tag != "VRTDataset":
        raise UnreadableImage("no VRT that can be read; replace or delete it")
    return root


def _refuse_subclass(element: Element) -> None:
    kind = element.get("subClass")
    if kind not in (None, "", "VRTSourcedRasterBand"):
        raise UnreadableImage(
            f"a VRT with a {printable(kind)}, where only mosaics of files are read; make a GeoTIFF"
            " of it with gdal_translate"
        )


def _kept(element: Element, names: tuple[str, ...]) -> dict[str, str]:
    return {name: element.get(name, "") for name in names if name in element.attrib}


def _safe_band(band: Element, reading: _Reading) -> Element:
    _refuse_subclass(band)
    safe = Element("VRTRasterBand", _kept(band, ("dataType", "band")))
    for part in band:
        if part.tag in OF_BANDS:
            ElementTree.SubElement(safe, part.tag).text = part.text
        elif part.tag == "ColorTable":
            table = ElementTree.SubElement(safe, "ColorTable")
            for entry in part.iterfind("Entry"):
                ElementTree.SubElement(table, "Entry", _kept(entry, ("c1", "c2", "c3", "c4")))
        elif part.tag in SOURCES:
            safe.append(_safe_source(part, reading))
        elif part.tag.endswith("Source"):
            raise UnreadableImage(
                f"a VRT with a {printable(part.tag)}, where only mosaics of files are read; make a"
                " GeoTIFF of it with gdal_translate"
            )
    return safe


def _safe_source(source: Element, reading: _Reading) -> Element:
    if source.find("OpenOptions") is not None:
        raise UnreadableImage("a VRT with OpenOptions, which are not read; remove them")
    safe = Element(source.tag, _kept(source, ("resampling",)))
    name = ElementTree.SubElement(safe, "SourceFilename", {"relativeToVRT": "0", "shared": "1"})
    name.text = _source_file(source.find("SourceFilename"), reading)
    for part in source:
        if part.tag in OF_SOURCES:
            kept = _kept(part, OF_SOURCES[part.tag])
            ElementTree.SubElement(safe, part.tag, kept).text = part.text
    return safe


def _source_file(named: Element | None, reading: _Reading) -> str:
    """What GDAL is to open for a source: its real path, or a safe form of a VRT."""
    name = (named.text if named is not None else None) or ""
    folder = ""
    if named is not None and named.get("relativeToVRT") == "1":
        folder = os.path.dirname(reading.path)
    path = os.path.realpath(os.path.join(folder, name))
    if path not in reading.checked:
        reading.checked[path] = _check_source(path, name, reading)
    return reading.checked[path]


def _check_source(path: str, name: str, reading: _Reading) -> str:
    said = f"names {printable(name)}"
    if "\0" in name or not raster_safety.is_inside(path, reading.folders):
        raise UnreadableImage(
            f"{said}, which is no file in its folder or in that of all rasters, and is not opened;"
            " put it there and correct the name"
        )
    if not os.path.isfile(path):
        raise UnreadableImage(f"{said}, and there is no such file; replace it, or correct the name")
    try:
        kind = raster_safety.kind_of(path)
        if kind != "VRT":
            with gdal.opened(path, kind):
                return path
        if reading.depth == DEEPEST:
            raise UnreadableImage("names VRTs more than 4 deep; make one VRT of the files")
        inner = replace(reading, path=path, depth=reading.depth + 1)
        return _read(inner).name
    except UnreadableImage as error:
        raise UnreadableImage(f"{said}: {error}") from None
