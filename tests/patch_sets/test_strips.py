"""Strips of a resized raster have the bytes of the whole."""

import numpy as np
import pytest
from PIL import Image

from dl_slicer.patch_sets import image_files, strips


class Noise:
    """A raster of noise, which counts the pixels that are read."""

    def __init__(self, width, height):
        rng = np.random.default_rng([width, height])
        self.pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        self.read_pixels = 0
        self.largest = 0

    def read(self, x, y, width, height, stretch=None):
        assert stretch in (None, (3, 200))
        assert x >= 0 and x + width <= self.pixels.shape[1]
        assert y >= 0 and y + height <= self.pixels.shape[0]
        self.read_pixels += width * height
        self.largest = max(self.largest, height)
        return self.pixels[y : y + height, x : x + width].copy()


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (960, 1440, (448, 672)),  # 480 -> 224
        (720, 2400, (336, 1120)),  # tall: Pillow 13 resizes the height first
        (240, 480, (112, 224)),  # the tallest of which it does not
        (240, 495, (112, 231)),
        (400, 100, (600, 50)),
        (400, 100, (600, 150)),
        (240, 1000, (240, 1000)),  # not resized
        (48, 2400, (28, 1400)),
        (300, 210, (430, 301)),  # enlarged
        (200, 2000, (50, 500)),  # 4 : 1
        (200, 2000, (140, 1400)),
        (97, 1001, (61, 467)),  # no common divisor
        (48, 48, (5, 7)),
        (481 * 2, 481 * 3, (448, 672)),
        (100, 1000, (100, 467)),  # in one direction alone
        (100, 1000, (67, 1000)),
    ],
)
@pytest.mark.parametrize("rows", [1, 33, 480, 10**6])
def test_strips_have_the_bytes_of_the_whole(width, height, size, rows):
    raster = Noise(width + 9, height + 14)
    got = list(strips.resized_strips(raster, (5, 8, width, height), size, rows))
    assert all(strip.dtype == np.uint8 and 0 < len(strip) <= rows for strip in got)
    part = Image.fromarray(raster.pixels[8 : 8 + height, 5 : 5 + width])
    whole = np.asarray(image_files.resize(part, size))
    assert np.array_equal(np.concatenate(got), whole)
    assert raster.read_pixels == width * height  # each once


def test_a_strip_reads_few_rows_more_than_it_needs():
    raster = Noise(30, 9600)
    list(strips.resized_strips(raster, (0, 0, 30, 9600), (14, 4480), 70, (3, 200)))
    assert raster.largest <= 150 + 2 * 4
