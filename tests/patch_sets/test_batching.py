"""Batches from worker processes."""

import multiprocessing
import shutil

import numpy as np
import pytest
import torch
from conftest import make_raw

from dl_slicer.patch_sets import batching, on_disk, reading

CPU = torch.device("cpu")


@pytest.fixture
def spawned():
    """Processes are started anew, as on macOS and Windows."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_workers_that_are_started_anew_read_jpegs(preprocess, tmp_path, spawned):
    make_raw(tmp_path / "raw")
    out = preprocess("--jpegs")
    for split in on_disk.SPLITS:
        shutil.copytree(out / split, tmp_path / "published" / split)
    patch_set = reading.open_split(tmp_path / "published", "train", 28)
    order = np.arange(12).reshape(3, 4)
    batches = list(batching.batches(patch_set, order, CPU, workers=1))
    assert len(batches) == 3
    for indices, (images, labels) in zip(order, batches, strict=True):
        assert np.array_equal(images.numpy(), patch_set.read(indices))
        assert labels.tolist() == patch_set.labels[indices].tolist()
        assert labels.dtype == torch.int64


def test_no_batches_of_an_empty_order(data):
    patch_set = reading.open_split(data, "train")
    assert list(batching.batches(patch_set, [], CPU)) == []
