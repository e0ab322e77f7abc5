"""The input path gives the same bytes whichever way is taken, and the benchmarks say what they measured."""

import argparse
import importlib
import shutil

import numpy as np
import pytest
import torch

from dl_slicer import machine
from dl_slicer.patch_sets import batching, ordering, reading, transforms

CPU = torch.device("cpu")


def test_batches_are_the_same_from_everywhere(data):
    for split in ("train", "test_b"):
        patch_set = reading.open_split(data, split)
        order = ordering.epoch_order(patch_set.labels, 8, 3, 1)
        expected = [
            (
                torch.from_numpy(patch_set.read(indices)),
                torch.from_numpy(patch_set.labels[indices].astype(np.int64)),
            )
            for indices in order
        ]
        for way in ({"storage": "files"}, {"storage": "device"}, {"workers": 2}):
            found = list(batching.batches(patch_set, order, CPU, **way))
            assert len(found) == len(order)
            for (images, labels), (right_images, right_labels) in zip(found, expected):
                assert (
                    torch.equal(images, right_images)
                    and torch.equal(labels, right_labels)
                    and labels.dtype == torch.int64
                ), way


def test_reading_ahead_ends_when_the_loop_does(data):
    patch_set = reading.open_split(data, "train")
    batches = batching.batches(patch_set, ordering.epoch_order(patch_set.labels, 8, 0, 0), CPU)
    next(batches)
    batches.close()  # as an interrupted evaluation does: must neither hang nor raise


def test_an_unreadable_patch_reaches_the_loop(data, tmp_path):
    shutil.copytree(data, tmp_path / "set")
    patch_set = reading.open_split(tmp_path / "set", "train")
    shutil.rmtree(tmp_path / "set" / "arrays")
    with pytest.raises(FileNotFoundError):
        list(batching.batches(patch_set, [np.arange(4)], CPU))


def test_arrays_stay_in_files_on_a_cpu_and_where_a_gpu_has_no_room(data, monkeypatch):
    patch_set = reading.open_split(data, "train")
    assert batching.choose_storage(patch_set, CPU) == "files"
    for free, where in ((2 * patch_set.nbytes, "device"), (2 * patch_set.nbytes - 2, "files")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10 * free))
        assert batching.choose_storage(patch_set, torch.device("cuda")) == where


def test_mapped_memory_is_given_back(data, monkeypatch):
    patch_set = reading.open_split(data, "train")
    order = np.random.default_rng(0).permutation(len(patch_set))
    expected = patch_set.read(order)
    assert patch_set._touched == 0  # all of it is smaller than what may be kept
    given_back = []
    monkeypatch.setattr(reading, "KEPT_BYTES", 20000)
    monkeypatch.setattr(
        patch_set,
        "_give_back",
        lambda give_back=patch_set._give_back: (
            given_back.append(len(patch_set._mapped)) or give_back()
        ),
    )
    assert np.array_equal(patch_set.read(order), expected)
    assert len(given_back) > 5 and all(given_back) and patch_set._touched <= 20000


def test_reading_from_a_disk_asks_first(data, monkeypatch):
    patch_set = reading.open_split(data, "train")
    blocks = iter(range(100))
    expected = patch_set.read(range(20))
    monkeypatch.setattr(
        machine, "blocks_read", lambda: next(blocks)
    )  # each read had to wait for the disk
    for _ in range(2):
        assert np.array_equal(patch_set.read(range(20)), expected)
        assert patch_set._from_disk
    monkeypatch.setattr(machine, "blocks_read", lambda: 0)
    patch_set.read(range(20))
    assert not patch_set._from_disk


def test_flips_on_a_cpu():
    images = torch.arange(4 * 5 * 5 * 3).view(4, 5, 5, 3).to(torch.uint8)
    flipped = torch.tensor([[False, True, False, True], [False, False, True, True]])
    expected = torch.stack([images[0], images[1].flip(1), images[2].flip(0), images[3].flip(0, 1)])
    before = images.clone()
    assert torch.equal(
        transforms.normalise(images, (0, 0, 0), (1 / 255,) * 3, flipped),
        expected.permute(0, 3, 1, 2).float(),
    )
    assert torch.equal(images, before)


def test_constants_made_while_evaluating_can_be_trained_with():
    images = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    with torch.inference_mode():
        transforms.normalise(images, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    layer = torch.nn.Conv2d(3, 1, 1)
    layer(transforms.normalise(images, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    benchmarks, work = (
        importlib.import_module("benchmarks.__main__"),
        tmp_path_factory.mktemp("benchmarks"),
    )
    benchmarks.script(
        "data/make_sample.py", "--out", work / "raw", "--cities", 2, "--sites", 2, "--size", 960
    )
    benchmarks.script(
        "preprocessing.py", "--raw", work / "raw", "--out", work / "patches", "--jpegs"
    )
    return work


def test_input_and_preprocessing_are_measured(work):
    benchmarks, sizes = importlib.import_module("benchmarks.__main__"), argparse.Namespace(rounds=1)
    result = {
        "preprocessing": benchmarks.preprocessing(work, sizes, CPU),
        "input": benchmarks.input_path(work, sizes, CPU),
    }
    for row in result.values():
        assert {"plain", "ours", "ratio", "unit"} <= row.keys() and min(
            row["plain"], row["ours"], row["ratio"]
        ) > 0
    assert result["preprocessing"]["ratio"] == pytest.approx(
        result["preprocessing"]["plain"] / result["preprocessing"]["ours"]
    )
    assert result["input"]["ratio"] == pytest.approx(
        result["input"]["ours"] / result["input"]["plain"]
    )
    assert result["input"]["raw"] > 5 * result["input"]["plain"]
    assert result["preprocessing"]["decoding_cpu"] < result["preprocessing"]["cpu"]
    limits = benchmarks.limits(result)
    assert limits["memory_copy_GB_a_second"] > 0 and set(limits["close"]) == {
        "preprocessing",
        "input_raw",
    }


def test_other_patches_are_not_timed(work, tmp_path):
    benchmarks = importlib.import_module("benchmarks.__main__")
    for part in ("patches", "raw"):
        shutil.copytree(work / part, tmp_path / part)
    for file in (tmp_path / "patches" / "arrays").rglob("*.npy"):
        array = np.load(file)
        np.save(file, array[::-1])
    with pytest.raises(AssertionError):
        benchmarks.check_patches(tmp_path)
    with pytest.raises(AssertionError):
        benchmarks.check_batches(tmp_path, reading.open_split(tmp_path / "patches", "train"), CPU)


def test_what_grows(tmp_path):
    growth = importlib.import_module("benchmarks.growth")
    growth.make_set(tmp_path / "set", 135)
    found = growth.grow(tmp_path / "set", 2.0)
    assert found["patches"] == 90 * 361 and found["val_patches"] == 45 * 171
    assert found["bytes_a_patch_from_disk"] == 224 * 2240 * 3
    assert 0 < found["patches_a_second_from_disk"] <= 1.05 * 2e9 / found["bytes_a_patch_from_disk"]
