"""The smallest upright rectangle of a metric grid that holds all data of a raster."""

from collections.abc import Callable, Iterator

import numpy as np
from rasterio.crs import CRS

from dl_slicer.patch_sets import ground
from dl_slicer.patch_sets.gdal_rasters import Box, WindowedRaster
from dl_slicer.patch_sets.image_files import UnreadableImage

PART = 2048  # pixels, in a row and in a column, that are looked at at a time
EDGE = 257  # points along each side of an outline: it is bent
SIDES = (0, 1, 2, 3)  # left, lower, right, upper

Bounds = np.ndarray  # left, lower, right, upper in metres of the grid


def find(source: WindowedRaster, system: CRS) -> Bounds:
    """Left, lower, right and upper side in metres of a system.

    UnreadableImage if there is no data, or a place that the system does not have.
    """
    whole = (0, 0, source.width, source.height)
    if not source.has_gaps:
        return _outline(source, system, whole, EDGE)
    parts = list(_parts(source))
    outlines = np.array([_outline(source, system, part, 9) for part in parts])
    found: dict[int, Bounds | None] = {}

    def data_of(index: int) -> Bounds | None:
        if index not in found:
            found[index] = _data_in(source, system, parts[index])
        return found[index]

    return np.array([_furthest(outlines[:, side], side, data_of) for side in SIDES])


def _furthest(outlines: np.ndarray, side: int, data_of: Callable[[int], Bounds | None]) -> float:
    """How far the data reach to one side.

    The parts that might reach furthest are looked at first, and those that cannot reach further
    than what is found are not looked at.
    """
    sign = 1 if side >= 2 else -1
    best = -np.inf
    for index in np.argsort(-sign * outlines, kind="stable"):
        if sign * outlines[index] <= best:
            break
        bounds = data_of(int(index))
        if bounds is not None:
            best = max(best, sign * bounds[side])
    if best == -np.inf:
        raise UnreadableImage("holds no pixel with data; delete it")
    return float(sign * best)


def _parts(source: WindowedRaster) -> Iterator[Box]:
    for y in range(0, source.height, PART):
        for x in range(0, source.width, PART):
            yield (x, y, min(PART, source.width - x), min(PART, source.height - y))


def _outline(source: WindowedRaster, system: CRS, box: Box, points: int) -> Bounds:
    """Bounds of the outline of a box of the raster."""
    x, y, width, height = box
    along = np.linspace(0, 1, points)
    start = np.zeros(points)
    xs = np.concatenate([along, along, start, start + 1]) * width + x
    ys = np.concatenate([start, start + 1, along, along]) * height + y
    return _bounds(source, system, xs, ys)


def _data_in(source: WindowedRaster, system: CRS, box: Box) -> Bounds | None:
    """Bounds of the data in a box of the raster, None if there are none.

    The corners of a row's first and last pixel are enough: between them nothing reaches further.
    """
    mask = source.data_mask(*box)
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return None
    first = mask[rows].argmax(axis=1) + box[0]
    last = box[2] - mask[rows][:, ::-1].argmax(axis=1) + box[0]
    rows = rows + box[1]
    xs = np.concatenate([first, first, last, last]).astype(float)
    ys = np.concatenate([rows, rows + 1, rows, rows + 1]).astype(float)
    return _bounds(source, system, xs, ys)


def _bounds(source: WindowedRaster, system: CRS, xs: np.ndarray, ys: np.ndarray) -> Bounds:
    places = ground.convert(source.system, system, *ground.apply(source.transform, xs, ys))
    if not np.isfinite(places).all():
        raise UnreadableImage(ground.NOWHERE)
    return np.array([places[0].min(), places[1].min(), places[0].max(), places[1].max()])
