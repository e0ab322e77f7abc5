"""Files beside a raster that say where it lies: world files, .aux.xml and .prj.

GDAL's own reading of them is switched off, since it also opens overviews and masks, follows links,
and lets metadata name further files.
"""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dl_slicer.patch_sets import raster_safety

LARGEST = 1_000_000  # bytes; such a file has a few hundred, with statistics a few thousand


@dataclass(frozen=True)
class Sidecars:
    """What the files beside a raster say; None where they say nothing.

    transform: a to f of an affine transform. crs: WKT. nodata: the value of pixels without data.
    """

    transform: tuple[float, ...] | None = None
    crs: str | None = None
    nodata: float | None = None


def read(path: str | Path, root: str | Path | None) -> Sidecars | None:
    """What the files beside a raster say of it, None if they say nothing.

    Links that lead out of the raster's folder and of root are passed over.
    """
    path = os.fspath(path)
    folders = raster_safety.allowed_folders(path, root)
    sidecar = _auxiliary(_text(path + ".aux.xml", folders))
    transform = sidecar.transform
    if transform is None:
        texts = (_text(name, folders) for name in _world_files(path))
        transform = next(filter(None, map(_world_transform, texts)), None)
    crs = sidecar.crs
    if crs is None and transform is not None:
        crs = _text(os.path.splitext(path)[0] + ".prj", folders)
    if transform is None and crs is None and sidecar.nodata is None:
        return None
    return Sidecars(transform, crs, sidecar.nodata)


def _text(name: str, folders: list[Path]) -> str | None:
    """The content of a small regular file inside some folders, None if it is none."""
    if not os.path.isfile(name) or not raster_safety.is_inside(name, folders):
        return None
    try:
        with open(name, encoding="utf-8", errors="replace") as file:
            text = file.read(LARGEST + 1)
    except OSError:
        return None
    return text if len(text) <= LARGEST else None


def _world_files(path: str) -> Iterator[str]:
    """Names that a raster's world file may have: of x.jpg x.jgw, x.jpgw and x.wld."""
    stem, suffix = os.path.splitext(path)
    short = suffix[:2] + suffix[-1] + "w"
    for ending in (short, suffix + "w", ".wld"):
        yield stem + ending.lower()
        yield stem + ending.upper()


def _world_transform(text: str | None) -> tuple[float, ...] | None:
    """The transform of a world file, which gives the centre of the upper left pixel."""
    try:
        a, d, b, e, x, y = (float(word.replace(",", ".")) for word in (text or "").split()[:6])
    except ValueError:
        return None
    return usable_transform(a, b, x - (a + b) / 2, d, e, y - (d + e) / 2)


def _auxiliary(text: str | None) -> Sidecars:
    """What GDAL's own sidecar says of a raster's place and nodata; the rest is passed over."""
    root = raster_safety.parse_xml(text) if text else None
    if root is None or root.tag != "PAMDataset":
        return Sidecars()
    nodata = None
    with suppress(ValueError):
        nodata = float(root.findtext("PAMRasterBand/NoDataValue", ""))
    transform = transform_of(root.findtext("GeoTransform"))
    return Sidecars(transform, root.findtext("SRS") or None, nodata)


def transform_of(text: str | None) -> tuple[float, ...] | None:
    """A transform (a to f) from the six numbers, c a b f d e, that GDAL writes; None if wrong."""
    try:
        c, a, b, f, d, e = (float(word) for word in (text or "").split(","))
    except ValueError:
        return None
    return usable_transform(a, b, c, d, e, f)


def usable_transform(*coefficients: float) -> tuple[float, ...] | None:
    """The coefficients a to f of an affine transform, None if it can place nothing."""
    a, b, _, d, e, _ = coefficients
    is_usable = all(map(math.isfinite, coefficients)) and a * e - b * d != 0
    return coefficients if is_usable else None
