"""The files of a patch set: sizes and content."""

import numpy as np
import pytest

from dl_slicer.cli import InputError
from dl_slicer.patch_sets import on_disk


def test_windows_are_those_that_fit():
    for length in range(1, 60):
        for size in (1, 7, 24):
            for stride in (1, 5, 24, 30):
                starts = range(0, length, stride)
                fitting = sum(start + size <= length for start in starts)
                assert on_disk.count_windows(length, size, stride) == fitting


def test_scaled_stride():
    assert on_disk.scaled_stride(480, 240, 224) == 112
    assert on_disk.scaled_stride(480, 60, 224) == 28
    assert on_disk.scaled_stride(480, 240, 256) == 128
    for stride, image_size, nearest in (
        (100, 224, (90, 105)),
        (100, 255, (96, 128)),
        (1, 224, (15,)),
        (239, 224, (225, 240)),
    ):
        with pytest.raises(InputError, match=f"--stride {' or '.join(map(str, nearest))}$"):
            on_disk.scaled_stride(480, stride, image_size)
        for works in nearest:
            on_disk.scaled_stride(480, works, image_size)


def test_arrays_are_what_numpy_saves(tmp_path):
    for rows, cols in ((1, 1), (19, 9)):
        sizes = {"patch_size": 480, "stride": 240, "image_size": 224}
        shape = (*on_disk.array_shape(rows, cols, sizes), 3)
        assert shape == (112 * rows + 112, 112 * cols + 112, 3)
        array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        with open(tmp_path / "ours.npy", "wb") as file:
            on_disk.write_array(file, array)
        np.save(tmp_path / "numpy.npy", array)
        assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()
        assert (tmp_path / "ours.npy").stat().st_size == on_disk.array_bytes(rows, cols, sizes)
