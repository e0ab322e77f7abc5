"""The ground that rasters cover: where their data lies, what of it overlaps, and how far apart.

Rasters come in all systems. Two are compared in the pixels of the finer one; distances and the
search for neighbours are in geocentric metres (x, y, z on the WGS 84 ellipsoid), which have no
zones and no edge at 180 degrees. No rasterio is loaded where no raster has a georeference.
"""

import base64
import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from dl_slicer.patch_sets.image_files import UnreadableImage
from dl_slicer.patch_sets.rasters import Raster

THIN = 256  # cells a side, at most, of the mask that is remembered of a raster with gaps
SPACING = 16  # pixels a cell of it is wide and high at least
AROUND = 2  # cells around one with data where there may be some that no sample has met
BLOCK = 512  # pixels a side of what is looked at exactly
EDGE = 32  # points of an edge of a raster: edges are bent in another system
EARTH = 6.4e6  # metres from its centre to the ground, about
STRIP = 2.1  # pixels: two, and a little for rounding; data that overlaps by less only touches
TINY = 1e-6  # square pixels of an overlap that is none but for rounding

Open = Callable[[str], AbstractContextManager[Raster]]  # opens a raster by its path


@dataclass(frozen=True)
class Grid:
    """Pixels, and where they lie."""

    width: int
    height: int
    crs: str
    transform: tuple[float, ...]  # of pixels (x, y) to the system: x' = a x + b y + c; d, e, f

    def to_system(self, points: np.ndarray) -> np.ndarray:
        """Points (n, 2) in pixels as points of the system."""
        a, b, c, d, e, f = self.transform
        x, y = points.T
        return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Points (n, 2) of the system as pixels."""
        a, b, c, d, e, f = self.transform
        x = points[:, 0] - c
        y = points[:, 1] - f
        determinant = a * e - b * d
        return np.stack([(e * x - b * y) / determinant, (a * y - d * x) / determinant], axis=1)

    def to_pixels_of(self, other: "Grid", points: np.ndarray) -> np.ndarray:
        """Points (n, 2) in pixels as pixels of another grid."""
        if other == self:
            return points
        return other.to_pixels(transformed(self.crs, other.crs, self.to_system(points)))


@dataclass(frozen=True)
class Footprint:
    """Where a georeferenced raster's data lies."""

    own: Grid  # of the raster's own pixels, which know its rim best
    seen: Grid  # as the set sees it; the same but for --ground-resolution
    metres_a_pixel: float  # of its own
    grain: float  # metres of the larger of the two kinds of pixels
    thin: np.ndarray | None = None  # bool: which cells of it have data; None: all pixels have
    step: int = 1  # pixels a cell is wide and high

    @property
    def area(self) -> float:
        """Square metres of the data."""
        share = 1.0 if self.thin is None else float(self.thin.mean())
        return share * self.own.width * self.own.height * self.metres_a_pixel**2

    def outline(self) -> np.ndarray:
        """Points (n, 2) in its own pixels around the data; around each cell where it has gaps."""
        if self.thin is None:
            return frame_outline(0, 0, self.own.width, self.own.height)
        rim = self.thin & ~_shrink(np.pad(self.thin, 1), 1)[1:-1, 1:-1]
        rows, cols = np.nonzero(rim)
        rows = np.concatenate([rows, rows, rows + 1, rows + 1])
        cols = np.concatenate([cols, cols + 1, cols + 1, cols])
        points = np.unique(np.stack([cols, rows], axis=1), axis=0)
        return np.minimum(points * self.step, [self.own.width, self.own.height]).astype(float)

    @cached_property
    def ground(self) -> np.ndarray:
        """The outline in geocentric metres (n, 3)."""
        return geocentric(self.own.crs, self.own.to_system(self.outline()))

    @cached_property
    def _around(self) -> np.ndarray:
        return _grow(np.pad(self.thin, AROUND), AROUND)

    def may_have_data(self, points: np.ndarray) -> np.ndarray:
        """Whether points (n, 2) in its own pixels lie within AROUND cells of one with data."""
        thin = self._around
        x, y = (np.floor(points / self.step).astype(int) + AROUND).T
        inside = (x >= 0) & (y >= 0) & (x < thin.shape[1]) & (y < thin.shape[0])
        found = np.zeros(len(points), bool)
        found[inside] = thin[y[inside], x[inside]]
        return found


@dataclass(frozen=True)
class Piece:
    """The part of a raster that belongs to one split."""

    raster: str
    footprint: Footprint
    split: str = ""
    columns: tuple[int, int] | None = None  # of the raster as it is seen; None: all

    def is_inside(self, points: np.ndarray, margin: float) -> np.ndarray:
        """Whether points (n, 2) in the raster's own pixels lie in its frame and its columns.

        margin: metres by which these are narrowed.
        """
        own = self.footprint.own
        edge = margin / self.footprint.metres_a_pixel
        x, y = points.T
        inside = (x >= edge) & (x <= own.width - edge)
        inside &= (y >= edge) & (y <= own.height - edge)
        if self.columns is not None and inside.any():
            seen = self.footprint.seen
            cols = own.to_pixels_of(seen, points[inside])[:, 0]
            left, right = self.columns
            edge = margin / seen_metres(self.footprint)
            inside[inside] = (cols >= left + edge) & (cols <= right - edge)
        return inside


# ------------------------------------------------------------------------------- reading


def read_footprint(raster: Raster) -> Footprint | None:
    """Where the data of a raster lies that is opened as it is; None without georeference."""
    grid = grid_of(raster)
    if grid is None or not raster.metres_a_pixel:
        return None
    if not np.isfinite(Footprint(grid, grid, 1, 1).ground).all():
        return None
    step = max(SPACING, math.ceil(max(raster.width, raster.height) / THIN))
    return Footprint(
        grid,
        grid,
        raster.metres_a_pixel,
        grain=raster.metres_a_pixel,
        thin=_thin_mask(raster, step) if raster.has_gaps else None,
        step=step,
    )


def _thin_mask(raster: Raster, step: int) -> np.ndarray:
    thin = raster.thin_mask(step)
    # Where no sample meets data, there may be some anywhere.
    return thin if thin.any() else np.ones_like(thin)


def grid_of(raster: Raster) -> Grid | None:
    """The pixels of an opened raster; None if it has no georeference."""
    if raster.crs is None or raster.transform is None:
        return None
    return Grid(raster.width, raster.height, raster.crs, tuple(raster.transform)[:6])


def as_json(footprint: Footprint) -> dict[str, Any]:
    """Give what from_json reads."""
    values = {name: getattr(footprint, name) for name in Footprint.__dataclass_fields__}
    for name in ("own", "seen"):
        grid = values[name]
        values[name] = [grid.width, grid.height, grid.crs, list(grid.transform)]
    thin = values.pop("thin")
    if thin is not None:
        packed = base64.b64encode(zlib.compress(np.packbits(thin).tobytes()))
        values["thin"] = [*thin.shape, packed.decode()]
    return values


def from_json(values: Mapping[str, Any]) -> Footprint:
    """A footprint of what as_json gave. KeyError, TypeError or ValueError if it is none."""
    values = dict(values)
    for name in ("own", "seen"):
        *sizes, transform = values[name]
        values[name] = Grid(*sizes, tuple(transform))
    if "thin" in values:
        rows, cols, packed = values["thin"]
        bits = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
        values["thin"] = np.unpackbits(bits, count=rows * cols).reshape(rows, cols).astype(bool)
    return Footprint(**values)


# ------------------------------------------------------------------------------- systems


def frame_outline(
    left: float, upper: float, right: float, lower: float, edge: int = EDGE
) -> np.ndarray:
    """Points (n, 2) around a rectangle, so many of them on each side."""
    step = np.arange(edge) / edge
    x = left + (right - left) * step
    y = upper + (lower - upper) * step
    sides = [
        (x, np.full(edge, upper)),
        (np.full(edge, right), y),
        (right + left - x, np.full(edge, lower)),
        (np.full(edge, left), lower + upper - y),
    ]
    return np.concatenate([np.stack(side, axis=1) for side in sides])


def transformed(source: str, target: str, points: np.ndarray) -> np.ndarray:
    """Points (n, 2) of one system as points of another; no numbers where there are none."""
    if source == target:
        return points
    from dl_slicer.patch_sets import ground

    try:
        return np.stack(ground.convert(_system(source), _system(target), *points.T), axis=1)
    except UnreadableImage:
        return np.full_like(points, np.nan)


@lru_cache(maxsize=256)
def _system(crs: str) -> Any:
    from rasterio.crs import CRS

    return CRS.from_string(crs)


def geocentric(crs: str, points: np.ndarray) -> np.ndarray:
    """Points (n, 2) of a system as metres (n, 3) from the middle of the earth."""
    from dl_slicer.patch_sets import ground

    return ground.on_the_ellipsoid(*transformed(crs, "EPSG:4326", points).T)


# ------------------------------------------------------------------------------- neighbours


def neighbours(footprints: Sequence[Footprint]) -> Iterator[tuple[int, int]]:
    """Pairs (i < j) whose boxes meet, in geocentric metres: all that can overlap or touch.

    Sorted along the longest axis, each is compared with those alone that begin before it ends.
    """
    if not footprints:
        return
    lows = np.array([footprint.ground.min(axis=0) for footprint in footprints])
    highs = np.array([footprint.ground.max(axis=0) for footprint in footprints])
    # The ground bulges out of the box of its rim, by s * s / (8 R); and a little for touching.
    slack = ((highs - lows).max(axis=1) ** 2 / (4 * EARTH))[:, None]
    slack = slack + np.array([_slack(footprint) for footprint in footprints])[:, None]
    lows -= slack
    highs += slack
    axis = int(np.argmax(highs.max(axis=0) - lows.min(axis=0)))
    order = np.argsort(lows[:, axis], kind="stable")
    lows = lows[order]
    highs = highs[order]
    ends = np.searchsorted(lows[:, axis], highs[:, axis], side="right")
    for i, end in enumerate(ends.tolist()):
        others = slice(i + 1, end)
        meets = (lows[others] <= highs[i]).all(axis=1) & (highs[others] >= lows[i]).all(axis=1)
        for j in (np.flatnonzero(meets) + i + 1).tolist():
            first, second = sorted((int(order[i]), int(order[j])))
            yield first, second


def _slack(footprint: Footprint) -> float:
    """Metres beyond its outline where what is near a raster may touch it."""
    unseen = 0 if footprint.thin is None else AROUND * footprint.step * footprint.metres_a_pixel
    return 2 * STRIP * footprint.grain + unseen


def connected(number: int, pairs: Iterable[tuple[int, int]], meets: Callable) -> list[list[int]]:
    """Groups of 0 ... number - 1 that are joined by pairs for which meets(i, j), transitively."""
    parents = list(range(number))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        return i

    for i, j in pairs:
        first, second = sorted((root(i), root(j)))
        if first != second and meets(i, j):
            parents[second] = first
    groups: dict[int, list[int]] = {}
    for i in range(number):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


# ------------------------------------------------------------------------------- overlap


def overlap(first: Piece, second: Piece, opened: Open, margin: float = STRIP / 2) -> bool:
    """Whether data of two pieces overlaps by a strip wider than STRIP pixels.

    margin: pixels by which each is shrunk before they are compared; less than 0 lets them grow,
    then it is whether they overlap or touch.
    """
    fine, coarse = sorted((first, second), key=lambda piece: piece.footprint.metres_a_pixel)
    metres = margin * min(fine.footprint.grain, coarse.footprint.grain)
    common = _common(fine, coarse, metres)
    if len(common) < 3 or _area(common) < TINY:
        return False
    if fine.footprint.thin is None and coarse.footprint.thin is None:
        return True
    box = (*common.min(axis=0).tolist(), *common.max(axis=0).tolist())
    with opened(fine.raster) as one, opened(coarse.raster) as two:
        return any(
            _overlap_in(block, box, (fine, one), (coarse, two), metres)
            for block in _blocks(box, fine.footprint, coarse.footprint)
        )


def _common(fine: Piece, coarse: Piece, metres: float) -> np.ndarray:
    """The polygon (n, 2) in own pixels of `fine` that the frames of both have in common.

    metres: by how much each frame is narrowed.
    """
    grid = coarse.footprint.own
    systems = {
        grid.crs for piece in (fine, coarse) for grid in (piece.footprint.own, piece.footprint.seen)
    }
    # In one system edges are straight.
    polygon = frame_outline(*_frame(coarse, metres), edge=EDGE if len(systems) > 1 else 1)
    polygon = _clipped_to_columns(polygon, coarse, metres)
    if len(polygon):
        polygon = grid.to_pixels_of(fine.footprint.own, polygon)
        polygon = _clip(polygon, _frame(fine, metres))
    return _clipped_to_columns(polygon, fine, metres)


def _frame(piece: Piece, metres: float) -> tuple[float, float, float, float]:
    """Left, upper, right, lower of a raster in its own pixels, moved inwards by so much."""
    own = piece.footprint.own
    edge = metres / piece.footprint.metres_a_pixel
    # Of a raster that is narrower than that nothing is left but a line.
    across = min(edge, own.width / 2)
    down = min(edge, own.height / 2)
    return across, down, own.width - across, own.height - down


def _clipped_to_columns(polygon: np.ndarray, piece: Piece, metres: float) -> np.ndarray:
    """The part of a polygon (n, 2), in own pixels, that lies in a piece's columns."""
    if piece.columns is None or not len(polygon):
        return polygon
    own = piece.footprint.own
    seen = piece.footprint.seen
    edge = metres / seen_metres(piece.footprint)
    left, right = piece.columns
    polygon = own.to_pixels_of(seen, polygon)
    polygon = _clip(polygon, (left + edge, -math.inf, right - edge, math.inf))
    return seen.to_pixels_of(own, polygon) if len(polygon) else polygon


def seen_metres(footprint: Footprint) -> float:
    """Metres that a pixel of a raster is wide as the set sees it."""
    if footprint.seen == footprint.own:
        return footprint.metres_a_pixel
    return abs(footprint.seen.transform[0])  # a metric grid, north up


def _clip(polygon: np.ndarray, rectangle: Sequence[float]) -> np.ndarray:
    """The part of a polygon (n, 2) in a rectangle, by Sutherland and Hodgman (1974)."""
    for axis, bound, sign in ((0, 0, 1), (1, 1, 1), (0, 2, -1), (1, 3, -1)):
        if not len(polygon):
            break
        inside = sign * (polygon[:, axis] - rectangle[bound])
        if (inside >= 0).all():
            continue
        following = np.roll(polygon, -1, axis=0)
        after = np.roll(inside, -1)
        kept = []
        for i, point in enumerate(polygon):
            if inside[i] >= 0:
                kept.append(point)
            if inside[i] * after[i] < 0:
                share = inside[i] / (inside[i] - after[i])
                kept.append(point + share * (following[i] - point))
        polygon = np.array(kept).reshape(-1, 2)
    return polygon


def _area(polygon: np.ndarray) -> float:
    x, y = (polygon - polygon[0]).T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def _blocks(box: Sequence[float], fine: Footprint, coarse: Footprint) -> list[tuple[int, int]]:
    """Corners of the blocks of a box in which both may have data, the likeliest first."""
    steps = np.arange(SPACING / 2, BLOCK, SPACING)
    inside = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    found = []
    left, upper, right, lower = (math.floor(bound / BLOCK) for bound in box)
    for x, y in itertools.product(range(left, right + 1), range(upper, lower + 1)):
        points = inside + [x * BLOCK, y * BLOCK]
        if fine.thin is not None:
            points = points[fine.may_have_data(points)]
        if coarse.thin is not None and len(points):
            points = points[coarse.may_have_data(fine.own.to_pixels_of(coarse.own, points))]
        if len(points):
            found.append((-len(points), x * BLOCK, y * BLOCK))
    return [(x, y) for _, x, y in sorted(found)]


def _overlap_in(
    block: tuple[int, int],
    box: Sequence[float],
    fine: tuple[Piece, Raster],
    coarse: tuple[Piece, Raster],
    metres: float,
) -> bool:
    """Whether a pixel of a block has data in both, each shrunk by so many metres."""
    left = max(block[0], math.floor(box[0]))
    upper = max(block[1], math.floor(box[1]))
    right = min(block[0] + BLOCK, math.ceil(box[2]))
    lower = min(block[1] + BLOCK, math.ceil(box[3]))
    if right <= left or lower <= upper:
        return False
    centres = np.meshgrid(np.arange(left, right) + 0.5, np.arange(upper, lower) + 0.5)
    points = np.stack(centres, axis=-1).reshape(-1, 2)
    points = points[_data_at(points, *fine, metres)]
    # Within a block one grid is a straight image of the other, to a millimetre.
    corners = np.array([(left, upper), (right, upper), (left, lower)], float)
    images = fine[0].footprint.own.to_pixels_of(coarse[0].footprint.own, corners)
    across = (images[1] - images[0]) / (right - left)
    down = (images[2] - images[0]) / (lower - upper)
    images = images[0] + (points[:, :1] - left) * across + (points[:, 1:] - upper) * down
    return bool(_data_at(images, *coarse, metres).any())


def _data_at(points: np.ndarray, piece: Piece, raster: Raster, metres: float) -> np.ndarray:
    """Whether points (n, 2) in own pixels lie in a piece's data, shrunk by so many metres."""
    found = piece.is_inside(points, metres)
    if piece.footprint.thin is None or not found.any():
        return found
    pixels = round(metres / piece.footprint.metres_a_pixel)
    reach = max(1, abs(pixels))
    cells = np.floor(points[found]).astype(int)
    first = np.maximum(cells.min(axis=0) - reach, 0)
    size = [piece.footprint.own.width, piece.footprint.own.height]
    last = np.minimum(cells.max(axis=0) + reach + 1, size)
    if (last <= first).any():
        return np.zeros(len(points), bool)
    mask = raster.data_mask(*first.tolist(), *(last - first).tolist())
    mask = np.pad(mask, 2 * reach, mode="edge" if pixels > 0 else "constant")
    mask = _shrink(mask, reach) if pixels > 0 else _grow(mask, reach)
    col, row = (cells - first + 2 * reach).T
    found[found] = mask[row, col]
    return found


def _grow(mask: np.ndarray, radius: int) -> np.ndarray:
    """Set what lies within so many steps, up, down or sideways, of a cell that is set."""
    for _ in range(radius):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        mask = grown
    return mask


def _shrink(mask: np.ndarray, radius: int) -> np.ndarray:
    """Take away what lies within so many steps of a cell that is not set."""
    return ~_grow(~mask, radius)
