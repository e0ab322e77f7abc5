"""Parts of rasters resized in strips, so that no large raster is ever in memory as a whole."""

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import PIL
from PIL import Image

from dl_slicer.patch_sets import image_files

Box = tuple[int, int, int, int]  # x, y, width, height
Size = tuple[int, int]  # width, height

PILLOW = int(PIL.__version__.partition(".")[0])


STRIP_PIXELS = 8_000_000  # of a raster that are read and resized at a time


class Readable(Protocol):
    """What can be read in windows: rasters.Raster."""

    def whole(self) -> Image.Image | None:
        """The raster as one image, where it is in memory as a whole anyway."""

    def read(
        self, x: int, y: int, width: int, height: int, stretch: tuple[float, float] | None = None
    ) -> np.ndarray:
        """Pixels as uint8 (height, width, 3)."""


def resized(
    raster: Readable, box: Box, size: Size, stretch: tuple[float, float] | None = None
) -> Iterator[np.ndarray]:
    """Resize a part of a raster as image_files.resize does; what is large, in strips.

    Arguments and strips: see resized_strips.
    """
    image = raster.whole()
    if image is None or stretch is not None:
        rows = STRIP_PIXELS // box[2] * size[1] // box[3]
        yield from resized_strips(raster, box, size, max(1, rows), stretch)
        return
    x, y, width, height = box
    # Cropped before it is resized: the box that Pillow's resize takes would not do, the filter
    # looks beyond its edges.
    if box != (0, 0, *image.size):
        image = image.crop((x, y, x + width, y + height))
    yield np.asarray(image_files.resize(image, size))


def resized_strips(
    raster: Readable,
    box: Box,
    size: Size,
    rows: int,
    stretch: tuple[float, float] | None = None,
) -> Iterator[np.ndarray]:
    """Resize a part of a raster to size (width, height), from above in strips of at most `rows`.

    Strips are uint8 (h, width, 3). Put together they have the bytes that image_files.resize makes
    of the part as a whole: what lies around the part is not looked at. Each pixel is read once, and
    little more than a strip is held, but at least the rows after which the filter has the same
    phase again (15 for 480 -> 224, all of them where the two heights have no common divisor).
    """
    x, y, width, height = box
    periods = math.gcd(height, size[1])
    # Strips begin at whole periods, where Pillow's filter weighs pixels as it does at the top.
    rows_of_period = size[1] // periods
    step = max(1, rows // rows_of_period)  # periods of a strip
    margin = math.ceil(max(height / size[1], 1)) + 1  # rows beyond a strip that the filter sees
    height_first = _resizes_height_first((width, height), size)
    pixels = np.empty((0, width if height_first else size[0], 3), np.uint8)
    first = 0  # the row of the part with which pixels begin
    for period in range(0, periods, step):
        end = min(period + step, periods)
        upper = period * height // periods
        lower = end * height // periods
        pixels = pixels[max(0, upper - margin) - first :]
        first = max(0, upper - margin)
        missing = min(lower + margin, height) - first - len(pixels)
        if missing > 0:
            new = raster.read(x, y + first + len(pixels), width, missing, stretch)
            if not height_first:
                new = _resize(new, size[0], missing)
            pixels = np.concatenate([pixels, new])
        strip = _resize(
            pixels, pixels.shape[1], (end - period) * rows_of_period, upper - first, lower - first
        )
        if height_first:
            strip = _resize(strip, size[0], len(strip))
        for row in range(0, len(strip), rows):
            yield strip[row : row + rows]


def _resize(
    pixels: np.ndarray, width: int, height: int, upper: int = 0, lower: int | None = None
) -> np.ndarray:
    """Resize rows of pixels from upper to lower, seeing those beyond."""
    box = (0, upper, pixels.shape[1], len(pixels) if lower is None else lower)
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))


def _resizes_height_first(before: Size, after: Size) -> bool:
    """Whether Pillow's resize goes down the columns before it goes along the rows.

    It rounds to whole grey levels in between, so that the order is seen. From version 13 on it
    depends on by how much the two sides get smaller.
    """
    narrower = before[0] - after[0]
    lower = before[1] - after[1]
    return PILLOW >= 13 and lower > max(0, 2 * narrower)
