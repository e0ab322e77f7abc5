"""Patches a second and core: normalised and flipped float batches, and raw uint8 batches."""

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms import Compose, Normalize, ToTensor

from benchmarks import in_turns
from benchmarks.sides import (
    CORES,
    Sizes,
    clock,
    our_batches,
    plain_batches,
    plain_batches_in_order,
)
from dl_slicer.model import networks
from dl_slicer.patch_sets import batching, ordering, reading, transforms


def compare(work: Path, sizes: Sizes, device: torch.device) -> dict[str, object]:
    """The part's keys of the JSON file. Float batches lie on the device, raw ones in memory."""
    patch_set = reading.open_split(work / "patches", "train")
    batch = min(64, len(patch_set) // 2)
    order = ordering.epoch_order(patch_set.labels, batch, 0, 0, balanced=False)
    check_batches(work, patch_set, device)

    def ours():
        return time_ours(patch_set, order, device)

    ours()  # not counted: it warms up
    found = in_turns(
        sizes.rounds + 2,
        plain=lambda: time_plain(work, batch, device, samples=1600),
        ours=ours,
        raw=lambda: time_raw(patch_set, order),
    )
    # From the disk, as after a restart.
    forget(sorted((work / "patches" / "train").rglob("*.jpg")))
    cold_plain = time_plain(work, batch, device, samples=len(patch_set))
    forget(sorted((work / "patches" / "arrays").rglob("*.npy")))
    cold_ours = time_from_files(work, order, device)
    rate = {name: 1 / seconds / CORES for name, seconds in found.items()}
    return {
        "plain": rate["plain"],
        "ours": rate["ours"],
        "ratio": rate["ours"] / rate["plain"],
        "unit": "patches a second and core",
        "batch": batch,
        "raw": rate["raw"] * CORES,
        "raw_ratio": rate["raw"] * CORES / rate["plain"],
        "raw_cores": 1,
        "cold_plain": 1 / cold_plain / CORES,
        "cold_raw": 1 / cold_ours,
        "seconds_a_patch": found["ours"],
    }


def time_plain(work: Path, batch: int, device: torch.device, samples: int) -> float:
    """Seconds a patch of plain's float batches; the workers' start is not counted."""
    done = 0
    started = None
    for images, _ in plain_batches(work, "train", batch, device, samples):
        images.to(device)
        if started is None:
            started = clock(device)
        else:
            done += len(images)
    return (clock(device) - started) / done


def time_ours(patch_set: reading.ArrayPatches, order: np.ndarray, device: torch.device) -> float:
    """Seconds a patch of our float batches, over at least 2,000 patches."""
    started = clock(device)
    done = 0
    while done < 2000:
        for _ in our_batches(patch_set, order, device):
            done += order.shape[1]
    return (clock(device) - started) / done


def time_raw(patch_set: reading.ArrayPatches, order: np.ndarray) -> float:
    """Seconds a patch of uint8 batches, on one core, over at least 10,000 patches."""
    started = time.perf_counter()
    done = 0
    while done < 10000:
        for indices in order:
            patch_set.read(indices)
            done += order.shape[1]
    return (time.perf_counter() - started) / done


def time_from_files(work: Path, order: np.ndarray, device: torch.device) -> float:
    """Seconds a patch of one epoch of uint8 batches on the device, opening the set included."""
    started = clock(device)
    patch_set = reading.open_split(work / "patches", "train")
    for _ in batching.batches(patch_set, order, device, storage="files"):
        pass
    return (clock(device) - started) / order.size


def check_batches(work: Path, patch_set: reading.ArrayPatches, device: torch.device) -> None:
    """The same patches and the same arithmetic as ToTensor and Normalize.

    The JPEGs differ by their compression alone. AssertionError if not.
    """
    index = np.linspace(0, len(patch_set) - 1, 8).astype(int)
    images, _ = next(iter(batching.batches(patch_set, [index], device)))
    ours = transforms.normalise(images, networks.MEAN, networks.STD).cpu()
    exact = Compose([ToTensor(), Normalize(networks.MEAN, networks.STD)])
    expected = torch.stack([exact(patch) for patch in patch_set.read(index)])
    assert torch.allclose(ours, expected, atol=1e-5)
    folder = plain_batches_in_order(work, "train", 8, device).dataset
    plain = torch.stack([folder[i][0] for i in index])
    assert [folder.targets[i] for i in index] == patch_set.labels[index].tolist()
    grey_levels = (plain - ours).abs().mean() * 255 * statistics.mean(networks.STD)
    assert grey_levels < 4, "other patches than in the JPEGs"


def forget(files: Sequence[Path]) -> None:
    """Have the system drop files from its memory, so that they are read from the disk again."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
