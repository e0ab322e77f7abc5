"""The input path gives the same bytes whichever way is taken; benchmarks say what they measured."""

import shutil

import numpy as np
import pytest
import torch
import torchvision

from benchmarks import __main__ as command
from benchmarks import (
    evaluation,
    gpu_rates,
    growth,
    input_path,
    limits,
    preprocessing,
    relevance_cam,
    script,
    training,
)
from benchmarks.sides import Sizes
from dl_slicer import machine
from dl_slicer.cli import InputError
from dl_slicer.patch_sets import batching, ordering, reading, transforms

CPU = torch.device("cpu")


def test_batches_are_the_same_from_everywhere(data):
    for split in ("train", "test_b"):
        patch_set = reading.open_split(data, split)
        order = ordering.epoch_order(patch_set.labels, 8, 3, 1)
        for way in ({"storage": "files"}, {"storage": "device"}, {"workers": 2}):
            found = list(batching.batches(patch_set, order, CPU, **way))
            assert len(found) == len(order)
            for (images, labels), indices in zip(found, order, strict=True):
                expected = torch.from_numpy(patch_set.labels[indices].astype(np.int64))
                assert torch.equal(images, torch.from_numpy(patch_set.read(indices))), way
                assert torch.equal(labels, expected), way
                assert labels.dtype == torch.int64, way


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
    free = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[-1], 10 * free[-1]))
    for size, where in ((2 * patch_set.nbytes, "device"), (2 * patch_set.nbytes - 2, "files")):
        free.append(size)
        assert batching.choose_storage(patch_set, torch.device("cuda")) == where


def test_mapped_memory_is_given_back(data, monkeypatch):
    patch_set = reading.open_split(data, "train")
    order = np.random.default_rng(0).permutation(len(patch_set))
    expected = patch_set.read(order)
    assert patch_set._touched == 0  # all of it is smaller than what may be kept
    mapped_when_given_back = []
    give_back = patch_set._give_back

    def noted():
        mapped_when_given_back.append(len(patch_set._mapped))
        give_back()

    monkeypatch.setattr(reading, "KEPT_BYTES", 20000)
    monkeypatch.setattr(patch_set, "_give_back", noted)
    assert np.array_equal(patch_set.read(order), expected)
    assert len(mapped_when_given_back) > 5
    assert all(mapped_when_given_back)
    assert patch_set._touched <= 20000


def test_reading_from_a_disk_asks_first(data, monkeypatch):
    patch_set = reading.open_split(data, "train")
    blocks = iter(range(100))
    expected = patch_set.read(range(20))
    # Each read had to wait for the disk.
    monkeypatch.setattr(machine, "blocks_read", lambda: next(blocks))
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
    work = tmp_path_factory.mktemp("benchmarks")
    flags = ("--cities", 2, "--sites", 2, "--size", 960)
    script("data/make_sample.py", "--out", work / "raw", *flags)
    script("preprocessing.py", "--raw", work / "raw", "--out", work / "patches", "--jpegs")
    return work


@pytest.fixture
def sizes():
    return Sizes(rasters=4, rounds=1, batch=4, images=4, steps=1, quick=True)


def test_input_and_preprocessing_are_measured(work, sizes):
    result = {
        "preprocessing": preprocessing.compare(work, sizes, CPU),
        "input": input_path.compare(work, sizes, CPU),
    }
    for row in result.values():
        assert {"plain", "ours", "ratio", "unit"} <= row.keys()
        assert min(row["plain"], row["ours"], row["ratio"]) > 0
    tiling = result["preprocessing"]
    reading_patches = result["input"]
    assert tiling["ratio"] == pytest.approx(tiling["plain"] / tiling["ours"])
    assert reading_patches["ratio"] == pytest.approx(
        reading_patches["ours"] / reading_patches["plain"]
    )
    assert reading_patches["raw"] > 5 * reading_patches["plain"]
    assert tiling["decoding_cpu"] < tiling["cpu"]
    found = limits.reached(result)
    assert found["memory_copy_GB_a_second"] > 0
    assert set(found["close"]) == {"preprocessing", "input_raw"}


def test_networks_are_measured_and_the_table_names_all_parts(work, sizes, monkeypatch, capsys):
    """With the smallest network: whether the parts work, not how fast they are."""
    monkeypatch.setattr(torchvision.models, "resnet50", torchvision.models.resnet18)
    result = {
        "machine": command.describe_machine(CPU),
        "training": training.compare(work, sizes, CPU),
        "evaluation": evaluation.compare(work, sizes, CPU),
        "relevance_cam": relevance_cam.count_forwards("resnet18", batch=1, rounds=1),
    }
    for part in ("training", "evaluation"):
        assert {"plain", "ours", "ratio", "unit"} <= result[part].keys()
        assert min(result[part]["plain"], result[part]["ours"], result[part]["ratio"]) > 0
    assert result["relevance_cam"]["forwards"] > 1
    assert set(result["relevance_cam"]["parts"]) == {"forward", "positive", "transposed", "rest"}
    result["limits"] = limits.reached(result)
    command.print_table(result)
    table = capsys.readouterr().out
    assert all(line in table for line in ("\ntraining ", "\nevaluation ", "\nrelevance_cam "))
    assert "reached: training" in table


def test_training_on_a_gpu_is_measured_on_a_cpu_alike(work, sizes, monkeypatch):
    monkeypatch.setattr(torchvision.models, "resnet50", torchvision.models.resnet18)
    found = gpu_rates.compare(work, sizes, CPU)
    assert min(found["device"], found["files"], found["in_memory"]) > 0
    assert found["share_files"] == pytest.approx(found["files"] / found["in_memory"])


def test_a_script_that_fails_says_why(tmp_path):
    with pytest.raises(InputError, match="--patch-size"):
        script("preprocessing.py", "--out", tmp_path, "--patch-size", "x")


def test_other_patches_are_not_timed(work, tmp_path):
    for part in ("patches", "raw"):
        shutil.copytree(work / part, tmp_path / part)
    for file in (tmp_path / "patches" / "arrays").rglob("*.npy"):
        array = np.load(file)
        np.save(file, array[::-1])
    with pytest.raises(AssertionError):
        preprocessing.check_patches(tmp_path)
    patch_set = reading.open_split(tmp_path / "patches", "train")
    with pytest.raises(AssertionError):
        input_path.check_batches(tmp_path, patch_set, CPU)


def test_what_grows(tmp_path):
    growth.make_set(tmp_path / "set", 135)
    found = growth.grow(tmp_path / "set", 2.0)
    assert found["patches"] == 90 * 361
    assert found["val_patches"] == 45 * 171
    assert found["bytes_a_patch_from_disk"] == 224 * 2240 * 3
    rate = found["patches_a_second_from_disk"]
    assert 0 < rate <= 1.05 * 2e9 / found["bytes_a_patch_from_disk"]
    grouped = growth.grow_grouped(tmp_path / "set", 2.0, 0.5, batches=100)
    assert grouped["patches"] == found["patches"]
    # By hand: 19 rows of windows are five slabs, which share a row of half a patch: 24 of 20.
    assert grouped["in_times_of_one_sweep"] == pytest.approx(24 / 20, rel=0.01)
    assert grouped["most_off_equal_in_100_batches"] < 0.05
    assert 0 < grouped["patches_a_second_from_disk"] <= 1.05 * 2e9 / 41_700


def test_sets_of_uneven_cities(tmp_path):
    growth.make_set(tmp_path / "set", 495, ratio=10)
    labels = reading.open_split(tmp_path / "set", "train").labels
    rasters = np.bincount(labels) / 361
    assert len(rasters) == 45
    assert rasters[-1] == pytest.approx(10 * rasters[0], rel=0.4)
    assert sum(rasters) == pytest.approx(330, abs=45)
