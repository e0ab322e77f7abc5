"""Windows without data: found in a raster's mask, and written as ranges of their numbers.

Windows of a region are numbered row by row from 0.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from PIL import Image

MASK_PIXELS = 4_000_000  # looked at at a time: of each some 10 bytes are taken
RANGES = re.compile(r"[0-9]{1,10}(-[0-9]{1,10})?( [0-9]{1,10}(-[0-9]{1,10})?)*", re.ASCII)


class Raster(Protocol):
    """What says where it has data: rasters.Raster."""

    def whole(self) -> Image.Image | None:
        """The raster as one image, where it is in memory as a whole anyway."""

    def read(
        self, x: int, y: int, width: int, height: int, stretch: tuple[float, float] | None = None
    ) -> np.ndarray:
        """Pixels as uint8 (height, width, 3)."""

    def data_mask(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Bool (height, width), True where there is data."""


class Watched:
    """A part of a raster that is read once, from above: how much of each window has no data.

    box: (x, y, width, height) of the part, which so many rows and columns of windows cover.
    settings: patch_size and stride. A warped raster has its mask when it has its pixels: to look
    for gaps by themselves would take as long once more.
    """

    def __init__(
        self,
        raster: Raster,
        box: tuple[int, int, int, int],
        rows: int,
        cols: int,
        settings: Mapping[str, Any],
    ):
        self._raster = raster
        self._box = box
        self._size = settings["patch_size"]
        self._left = np.arange(cols) * settings["stride"]
        self._upper = np.arange(rows) * settings["stride"]
        self._missing = np.zeros((rows, cols), np.int64)  # pixels of each window

    def whole(self) -> Image.Image | None:
        """None: what is read whole has no mask."""
        return None

    def read(
        self, x: int, y: int, width: int, height: int, stretch: tuple[float, float] | None = None
    ) -> np.ndarray:
        """Pixels as uint8 (height, width, 3) of whole rows of the part."""
        pixels = self._raster.read(x, y, width, height, stretch)
        self.look_at(y, height)
        return pixels

    def look_at(self, y: int, height: int) -> None:
        """Count what is missing in some rows of the raster, from y on."""
        absent = ~self._raster.data_mask(self._box[0], y, self._box[2], height)
        if not absent.any():
            return
        along = _running_sum(absent, axis=1)
        in_window = along[:, self._left + self._size] - along[:, self._left]  # (height, cols)
        down = _running_sum(in_window, axis=0)
        upper = self._upper + self._box[1] - y
        first = upper.clip(0, height)
        end = (upper + self._size).clip(0, height)
        self._missing += down[end] - down[first]

    def without_data(self, most: float) -> np.ndarray:
        """Give the numbers of the windows that lack data, in ascending order, int64 (n,).

        That is of those of whose pixels a larger share than `most` has none.
        """
        return np.flatnonzero(self._missing > most * self._size**2)


def find_windows(
    raster: Raster, origin: tuple[int, int], rows: int, cols: int, settings: Mapping[str, Any]
) -> np.ndarray:
    """Give the numbers of the windows that lack data, by the mask alone, int64 (n,).

    origin: (x, y) of the first window. settings: patch_size, stride and max_nodata.
    """
    width = (cols - 1) * settings["stride"] + settings["patch_size"]
    height = (rows - 1) * settings["stride"] + settings["patch_size"]
    watched = Watched(raster, (*origin, width, height), rows, cols, settings)
    strip = max(1, MASK_PIXELS // width)
    for y in range(origin[1], origin[1] + height, strip):
        watched.look_at(y, min(strip, origin[1] + height - y))
    return watched.without_data(settings["max_nodata"])


def _running_sum(values: np.ndarray, axis: int) -> np.ndarray:
    """Sums of the first 0, 1, 2, ... values."""
    before = [(0, 0), (0, 0)]
    before[axis] = (1, 0)
    return np.pad(values.cumsum(axis, dtype=np.int32), before)


def as_text(numbers: np.ndarray) -> str:
    """Numbers in ascending order as ranges: "0-18 37"."""
    if not len(numbers):
        return ""
    starts = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
    ends = [*(starts[1:] - 1), len(numbers) - 1]
    return " ".join(
        _range(int(numbers[start]), int(numbers[end]))
        for start, end in zip(starts, ends, strict=True)
    )


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


@lru_cache(maxsize=64)
def parse(text: str) -> np.ndarray:
    """Give the numbers in ranges as as_text writes them; read-only. ValueError if these are none.

    Memory is taken for all numbers: `count_in` tells first how many there are.
    """
    parts = [np.arange(first, last + 1) for first, last in _ranges(text)]
    numbers = np.concatenate(parts) if parts else np.empty(0, np.int64)
    numbers.flags.writeable = False
    return numbers


def count_in(text: str) -> int:
    """How many numbers there are in ranges. ValueError as parse."""
    return sum(last + 1 - first for first, last in _ranges(text))


def last_in(text: str) -> int:
    """The largest number in ranges, -1 if there is none. ValueError as parse."""
    return max((last for _, last in _ranges(text)), default=-1)


def _ranges(text: str) -> Iterator[tuple[int, int]]:
    if not text:
        return
    if not RANGES.fullmatch(text):
        raise ValueError("no ranges of numbers")
    above = -1
    for part in text.split(" "):
        first, _, last = part.partition("-")
        numbers = int(first), int(last or first)
        # Only as as_text writes it: one set of windows has one text.
        if numbers[0] <= above or part != _range(*numbers) or numbers[0] > numbers[1]:
            raise ValueError("its ranges are not in ascending order")
        yield numbers
        above = numbers[1] + 1
