"""Seconds a step of ResNet-50, from the patch set to updated weights."""

import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from benchmarks import in_turns
from benchmarks.sides import (
    Sizes,
    check_networks,
    clock,
    make_network,
    our_batches,
    plain_batches,
)
from dl_slicer.model import devices
from dl_slicer.model.evaluation import Setup
from dl_slicer.patch_sets import ordering, reading
from dl_slicer.patch_sets.on_disk import IMAGE_SIZE
from dl_slicer.training import epochs, optimisers, recipes
from dl_slicer.training.runs import Run

# What an epoch asks of the flags of train_classification.py.
PUBLISHED = Namespace(
    **recipes.RECIPES["published"], epochs=100, batch_size=128, seed=0, save_every=None
)


def compare(work: Path, sizes: Sizes, device: torch.device) -> dict[str, object]:
    """The part's keys of the JSON file: training's own epoch against a plain loop."""
    patch_set = reading.open_split(work / "patches", "train")
    dtype = devices.pick_dtype("auto", device)
    batch = min(sizes.batch, len(patch_set) // 4)
    fast = make_network(device, fast=True)
    slow = make_network(device, fast=False)
    fused = optimisers.make_optimizer(PUBLISHED, fast)
    usual = torch.optim.Adam(slow.parameters(), lr=1e-3)
    check_networks(patch_set, slow, fast, device, dtype)
    order = ordering.epoch_order(patch_set.labels, batch, 0, 0)[: sizes.steps]
    in_memory = [batch_in_memory(batch, device)] * len(order)
    plain = endless(lambda: plain_batches(work, "train", batch, device))

    def time_in_memory():
        return train_on(in_memory, fast, fused, dtype) / len(order)

    def time_plain():
        seconds = train_plainly(plain, slow, usual, len(order)) / len(order)
        time.sleep(0.06 * batch)  # its workers read ahead now, and not while the others are timed
        return seconds

    sides = {
        "ours": lambda: train_epoch(patch_set, order, fast, fused, dtype) / len(order),
        "in_memory": time_in_memory,
        "plain": time_plain,
    }
    for side in sides.values():
        side()  # not counted: it warms up
    found = in_turns(sizes.rounds, **sides)
    feeding = time_feeding(patch_set, order, device) / len(order)
    return {
        "plain": found["plain"],
        "ours": found["ours"],
        "ratio": found["plain"] / found["ours"],
        "unit": "s a step",
        "arch": "resnet50",
        "batch": batch,
        "dtype": str(dtype).removeprefix("torch."),
        "patches_a_second": batch / found["ours"],
        "in_memory": found["in_memory"],
        "input_s": feeding,
        "input_share": feeding / found["ours"],
    }


def batch_in_memory(batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images and labels that are on the device already."""
    images = torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, device=device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    return images.contiguous(memory_format=torch.channels_last), labels


def endless(make: Callable[[], Iterable]) -> Iterator:
    """One epoch after the other."""
    while True:
        yield from make()


def train_epoch(
    patch_set: reading.ArrayPatches,
    order: np.ndarray,
    model: nn.Module,
    optimizer: Optimizer,
    dtype: torch.dtype,
) -> float:
    """Seconds of an epoch as train_classification.py trains it."""
    device = next(model.parameters()).device
    run = Run(PUBLISHED, model, optimizer)
    started = clock(device)
    epochs.train_epoch(run, model, patch_set, order, Setup(device, dtype))
    return clock(device) - started


def train_on(
    batches: Iterable[tuple[Tensor, Tensor]],
    model: nn.Module,
    optimizer: Optimizer,
    dtype: torch.dtype,
) -> float:
    """Seconds of the bare loop of training on batches of (images, labels)."""
    device = next(model.parameters()).device
    model.train()
    started = clock(device)
    for images, labels in batches:
        with devices.autocast(device, dtype):
            loss = cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return clock(device) - started


def train_plainly(
    batches: Iterator[tuple[Tensor, Tensor]], model: nn.Module, optimizer: Optimizer, steps: int
) -> float:
    """Seconds of so many steps, as such loops are usually written."""
    device = next(model.parameters()).device
    model.train()
    started = clock(device)
    for _ in range(steps):
        images, labels = next(batches)
        loss = cross_entropy(model(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
    return clock(device) - started


def time_feeding(patch_set: reading.ArrayPatches, order: np.ndarray, device: torch.device) -> float:
    """Seconds of an epoch's batches alone, without a network."""
    repeats = 10
    started = clock(device)
    for _ in range(repeats):
        for _ in our_batches(patch_set, order, device):
            pass
    return (clock(device) - started) / repeats
