"""Windows without data: which they are, and how they are written."""

import numpy as np
import pytest

from dl_slicer.patch_sets import gaps


class Mask:
    def __init__(self, has_data):
        self.has_data = has_data

    def read(self, x, y, width, height, stretch):
        return np.full((height, width, 3), stretch, np.uint8)

    def data_mask(self, x, y, width, height):
        assert min(x, y) >= 0
        part = self.has_data[y : y + height, x : x + width]
        assert part.shape == (height, width)
        return part


@pytest.mark.parametrize("strip", [1, 7, 140])  # rows
@pytest.mark.parametrize("size, stride", [(48, 24), (10, 7), (5, 11), (30, 30)])
@pytest.mark.parametrize("most", [0, 0.05, 0.5, 1])
def test_windows_are_those_with_too_little_data(strip, size, stride, most):
    rng = np.random.default_rng([size, stride])
    has_data = rng.random((140, 120)) > rng.random((140, 120)) * np.linspace(0, 1.2, 120) ** 3
    has_data[:, :9] = False
    rows = (140 - 6 - size) // stride + 1
    cols = (120 - 4 - size) // stride + 1
    expected = []
    for number in range(rows * cols):
        y = 6 + number // cols * stride
        x = 4 + number % cols * stride
        if (~has_data[y : y + size, x : x + size]).sum() > most * size * size:
            expected.append(number)
    width = (cols - 1) * stride + size
    height = (rows - 1) * stride + size
    settings = {"patch_size": size, "stride": stride}
    watched = gaps.Watched(Mask(has_data), (4, 6, width, height), rows, cols, settings)
    for y in range(6, 6 + height, strip):
        read = watched.read(4, y, width, min(strip, 6 + height - y), 3)
        assert (read == 3).all()
    assert watched.without_data(most).tolist() == expected
    settings["max_nodata"] = most
    found = gaps.find_windows(Mask(has_data), (4, 6), rows, cols, settings)
    assert found.tolist() == expected
    assert most != 1 or not expected


@pytest.mark.parametrize(
    "numbers, text",
    [
        ([], ""),
        ([0], "0"),
        ([*range(19), 37], "0-18 37"),
        ([3, 5, 7, 8], "3 5 7-8"),
        ([1, 2, 3], "1-3"),
    ],
)
def test_ranges(numbers, text):
    assert gaps.as_text(np.array(numbers, np.int64)) == text
    assert gaps.parse(text).tolist() == numbers
    assert gaps.count_in(text) == len(numbers)
    assert gaps.last_in(text) == max(numbers, default=-1)


@pytest.mark.parametrize(
    "text",
    [" ", "a", "-1", "1-", "3-1", "2-2", "1 1", "1-3 3", "1-3 4", "5 3", "01", "1,2", "1  2", "٤"],
)
def test_what_is_no_text_of_ranges(text):
    for read in (gaps.parse, gaps.count_in, gaps.last_in):
        with pytest.raises(ValueError):
            read(text)
