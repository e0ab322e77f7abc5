"""Windows without data: found in a raster's mask, and written as ranges of their numbers.

Windows of a region are numbered row by row from 0.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

MASK_PIXELS = 4_000_000  # looked at at a time: of each some 10 bytes are taken
RANGES = re.compile(r"[0-9]{1,10}(-[0-9]{1,10})?( [0-9]{1,10}(-[0-9]{1,10})?)*", re.ASCII)


class Masked(Protocol):
    """What says where it has data: rasters.Raster."""

    def data_mask(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Bool (height, width), True where there is data."""


def find_windows(
    raster: Masked, origin: tuple[int, int], rows: int, cols: int, settings: Mapping[str, Any]
) -> np.ndarray:
    """Give the numbers of the windows with too little data, in ascending order, int64 (n,).

    That is of those of whose pixels more than settings["max_nodata"] have none. origin: (x, y) of
    the first window. The mask is read in strips.
    """
    size = settings["patch_size"]
    stride = settings["stride"]
    width = (cols - 1) * stride + size
    height = (rows - 1) * stride + size
    left = np.arange(cols) * stride
    upper = np.arange(rows) * stride
    missing = np.zeros((rows, cols), np.int64)
    strip = max(1, MASK_PIXELS // width)
    for y in range(0, height, strip):
        absent = ~raster.data_mask(origin[0], origin[1] + y, width, min(strip, height - y))
        if not absent.any():
            continue
        along = _running_sum(absent, axis=1)
        in_window = along[:, left + size] - along[:, left]  # (strip, cols)
        down = _running_sum(in_window, axis=0)
        first = (upper - y).clip(0, len(absent))
        end = (upper + size - y).clip(0, len(absent))
        missing += down[end] - down[first]
    return np.flatnonzero(missing > settings["max_nodata"] * size**2)


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
