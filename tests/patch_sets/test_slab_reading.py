"""Batches of a grouped order, from a buffer that a thread fills."""

import os
import shutil

import numpy as np
import pytest
import torch
from conftest import make_raw

from dl_slicer.cli import InputError
from dl_slicer.patch_sets import batching, grouping, reading, slab_reading

CPU = torch.device("cpu")
LEAST = 4  # places, of three cities


@pytest.fixture
def patch_set(data):
    return reading.open_split(data, "train")


def order_of(patch_set, places=LEAST, balanced=True, epoch=0):
    slabs = grouping.cut_slabs(patch_set)
    assert grouping.count_group(LEAST, 3) == 1
    return grouping.grouped_order(slabs, patch_set.labels, 8, (3, epoch), balanced, places)


@pytest.mark.parametrize("places", [LEAST, 7, 100])
@pytest.mark.parametrize("balanced", [True, False])
def test_batches_are_the_bytes_of_the_files(patch_set, places, balanced):
    order = order_of(patch_set, places, balanced)
    for workers in (0, 2):
        found = list(batching.batches(patch_set, order, CPU, workers))
        assert len(found) == len(order)
        for indices, (images, labels) in zip(order.patches, found, strict=True):
            assert np.array_equal(images.numpy(), patch_set.read(indices))
            assert labels.tolist() == patch_set.labels[indices].tolist()


def test_a_device_that_holds_all_arrays_takes_them_in_the_same_order(patch_set):
    order = order_of(patch_set)
    by_file = batching.batches(patch_set, order, CPU)
    by_device = batching.batches(patch_set, order, CPU, storage="device")
    for (one, _), (other, _) in zip(by_file, by_device, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_share_the_batches_of_one(patch_set, processes):
    """From the middle of an epoch, as a run that is gone on with has it."""
    order = order_of(patch_set)
    begun = 20
    shares = [
        list(batching.batches(patch_set, order[begun:, slice(rank, None, processes)], CPU))
        for rank in range(processes)
    ]
    for step, indices in enumerate(order.patches[begun:]):
        joined = np.empty((8, 32, 32, 3), np.uint8)
        for rank in range(processes):
            joined[rank::processes] = shares[rank][step][0]
        assert np.array_equal(joined, patch_set.read(indices))


def test_the_disk_is_swept_once(patch_set):
    """162 patches of each city: three slabs of each of its two rasters, and each is read once."""
    order = order_of(patch_set)
    with slab_reading.SlabBuffer(patch_set, order) as buffer:
        for indices in order.patches:
            buffer.read(indices)
    arrays = sum(array.nbytes for array in patch_set.region_arrays())
    # Nine rows of windows in three slabs of three: each has four half patches, the array ten.
    assert buffer.bytes_read == arrays * 12 / 10


def test_what_is_needed_again_stays(preprocess, tmp_path):
    """A city of one train raster begins again and again beside one of nine."""
    make_raw(tmp_path / "raw", ["Aa (AAA)"], sites=2, size=(150, 400))
    make_raw(tmp_path / "raw", ["Bb (BBB)"], sites=10, size=(150, 400))
    patch_set = reading.open_split(preprocess(), "train")
    slabs = grouping.cut_slabs(patch_set)
    order = grouping.grouped_order(slabs, patch_set.labels, 8, (0, 0), True, 50)
    assert np.bincount(slabs.of_patches(order.patches.ravel())).max() > 60  # of 20 patches
    with slab_reading.SlabBuffer(patch_set, order) as buffer:
        for indices in order.patches:
            assert np.array_equal(buffer.read(indices), patch_set.read(indices))
    assert buffer.bytes_read < 1.2 * slabs.nbytes.sum()
    assert slabs.nbytes[order.loads.slab].sum() > buffer.bytes_read


def test_reading_ahead_ends_when_the_loop_does(patch_set):
    batches = batching.batches(patch_set, order_of(patch_set), CPU)
    next(batches)
    batches.close()  # as a signal in training does: must neither hang nor raise


@pytest.mark.parametrize("fault", ["gone", "shorter"])
def test_an_unreadable_array_reaches_the_loop(data, tmp_path, fault):
    shutil.copytree(data, tmp_path / "set")
    patch_set = reading.open_split(tmp_path / "set", "train")
    last = tmp_path / "set" / patch_set.regions[-1].file
    if fault == "gone":
        last.unlink()
    else:
        os.truncate(last, 5000)
    error, said = {"gone": (OSError, "No such file"), "shorter": (InputError, "become shorter")}[
        fault
    ]
    with pytest.raises(error, match=said):
        list(batching.batches(patch_set, order_of(patch_set), CPU))


def test_batches_out_of_order_are_refused(patch_set):
    order = order_of(patch_set)
    with (
        slab_reading.SlabBuffer(patch_set, order[-1:]) as buffer,
        pytest.raises(RuntimeError, match="out of its order"),
    ):
        for indices in order.patches:
            buffer.read(indices)
