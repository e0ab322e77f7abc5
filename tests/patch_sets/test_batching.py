"""Batches from worker processes."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, flags, make_raw
from PIL import Image

from dl_slicer.cli import InputError
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


class Faulty:
    """A patch set that cannot be read; of a module, so that it can be handed to a process."""

    labels = np.zeros(8, np.uint8)
    image_size = 28

    def __init__(self, fault):
        self.fault = fault

    def __len__(self):
        return len(self.labels)

    def read(self, indices, out=None):
        if self.fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError


@pytest.mark.parametrize(
    "fault, said",
    [
        ("killed", "a process that reads patches was killed.* take fewer --workers"),
        ("memory", "reading 4 patches takes more memory than there is"),
    ],
)
def test_what_happens_to_a_worker_is_said_in_one_line(fault, said):
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(InputError, match=said) as caught:
        list(batching.batches(Faulty(fault), np.arange(8).reshape(2, 4), CPU, workers=1))
    assert "\n" not in str(caught.value)
    assert signal.getsignal(signal.SIGCHLD) == before  # torch's raises wherever this process is


def test_too_little_memory_is_said_without_workers_too():
    with pytest.raises(InputError, match="reading 4 patches takes more memory"):
        list(batching.batches(Faulty("memory"), np.arange(8).reshape(2, 4), CPU))


def test_a_damaged_jpeg_that_a_worker_meets_ends_training_in_one_line(data, tmp_path):
    jpegs = tmp_path / "jpegs"
    for split in ("train", "val"):
        patch_set = reading.open_split(data, split)
        for number in range(0, len(patch_set), 6):
            folder = jpegs / split / patch_set.classes[patch_set.labels[number]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(patch_set.read([number])[0]).save(folder / f"{number:03d}.jpg")
    for damaged in (jpegs / "train" / "Bb (BBB)").iterdir():
        os.truncate(damaged, 500)
    # As a process of its own: what the user sees, and the exit code.
    command = [sys.executable, "train_classification.py"]
    command += [*flags(jpegs, tmp_path / "run"), "--workers", "1", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"train_classification.py: {damaged.parent}/")
    assert ".jpg: cannot be read (" in said
    assert "Traceback" not in done.stderr


def test_no_batches_of_an_empty_order(data):
    patch_set = reading.open_split(data, "train")
    assert list(batching.batches(patch_set, [], CPU)) == []
