"""Patches a second of ResNet-50 in training on a GPU.

Arrays on the device, arrays in files, and one batch that is on the device already.
"""

from pathlib import Path

import numpy as np
import torch

from benchmarks import in_turns
from benchmarks.sides import Sizes, make_network, our_batches
from benchmarks.training import PUBLISHED, batch_in_memory, train_on
from dl_slicer.model import devices
from dl_slicer.patch_sets import reading
from dl_slicer.training import optimisers


def compare(work: Path, sizes: Sizes, device: torch.device) -> dict[str, object]:
    """The part's keys of the JSON file."""
    patch_set = reading.open_split(work / "patches", "train")
    dtype = devices.pick_dtype("auto", device)
    model = make_network(device, fast=True)
    optimizer = optimisers.make_optimizer(PUBLISHED, model)
    order = np.random.default_rng(0).integers(0, len(patch_set), (sizes.steps, sizes.batch))
    in_memory = [batch_in_memory(sizes.batch, device)] * len(order)

    def time_from(storage):
        batches = our_batches(patch_set, order, device, storage)
        return train_on(batches, model, optimizer, dtype) / order.size

    sides = {
        "device": lambda: time_from("device"),
        "files": lambda: time_from("files"),
        "in_memory": lambda: train_on(in_memory, model, optimizer, dtype) / order.size,
    }
    for side in sides.values():
        side()  # not counted: it warms up
    found = in_turns(sizes.rounds, **sides)
    rate = {name: 1 / seconds for name, seconds in found.items()}
    return {
        **rate,
        "unit": "patches a second",
        "batch": sizes.batch,
        "share_device": rate["device"] / rate["in_memory"],
        "share_files": rate["files"] / rate["in_memory"],
    }
