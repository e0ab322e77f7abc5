"""In which order a run takes its patches: at random, or in groups of rasters that are read whole.

Decided once, when the run begins; a resumed run keeps it, as another order is another result.
"""

import math
from argparse import Namespace
from collections.abc import Mapping

import numpy as np
import torch

from dl_slicer import distributed, machine
from dl_slicer.patch_sets import batching, grouping, ordering
from dl_slicer.patch_sets.grouping import GroupedOrder, Slabs
from dl_slicer.patch_sets.reading import ArrayPatches, PatchSet

# Before there was a choice, all runs took their patches at random.
BEFORE = {"order": "random", "buffer": None}

LARGE = 1 / 2  # of the free memory: arrays beyond that do not stay in the system's cache
BUFFER = 1 / 8  # of the free memory, of all processes of a machine
USUAL_BUFFER = 1.0  # GB, where the system does not say how much memory is free


def settle(
    args: Namespace, previous: Mapping[str, object] | None, train: PatchSet, device: torch.device
) -> None:
    """Replace --order auto by what it comes to here, and --buffer by its size in GB.

    previous: the settings of the run that is gone on with, whose order is kept. All processes must
    call it. InputError if the buffer is too small.
    """
    if previous is not None:
        _keep(args, BEFORE | dict(previous))
    if not isinstance(train, ArrayPatches):
        _say_random(args)
        args.order = "random"
    elif args.order == "auto":
        is_large = distributed.from_first(_is_large(train, device))
        args.order = "grouped" if is_large else "random"
    if args.order == "random":
        args.buffer = None
        return
    if args.buffer is None:
        args.buffer = distributed.from_first(_usual_buffer(args, train))
    _places(args, train, grouping.cut_slabs(train))


def _keep(args: Namespace, before: Mapping[str, object]) -> None:
    """Take over what a run has had so far, where the flags leave it open."""
    if args.order == "auto" and before["order"] in ("random", "grouped"):
        args.order = before["order"]
    if args.buffer is None and type(before["buffer"]) is float and before["buffer"] > 0:
        args.buffer = before["buffer"]


def _say_random(args: Namespace) -> None:
    if args.order == "grouped":
        distributed.print_once(
            "--order grouped: means nothing for a folder of JPEGs, each of which is a file of its"
            " own; the order is random"
        )


def _is_large(train: ArrayPatches, device: torch.device) -> bool:
    """Whether the arrays are too large for the memory to keep."""
    if batching.remembered_storage(train, device) == "device":
        return False
    free = machine.free_memory()
    return free is not None and train.nbytes > LARGE * free


def _usual_buffer(args: Namespace, train: ArrayPatches) -> float:
    """GB of the buffer where the user names none."""
    streams = grouping.count_streams(train.labels, args.balanced)
    least = grouping.least_buffer(grouping.cut_slabs(train), streams)
    free = machine.free_memory()
    if free is None:
        usual = USUAL_BUFFER
    else:
        usual = round(BUFFER * free / distributed.ON_THIS_MACHINE / 1e9, 2)
    return max(usual, math.ceil(least / 1e3) / 1e6)


def _places(args: Namespace, train: ArrayPatches, slabs: Slabs) -> int:
    """How many slabs the buffer holds. InputError if they are too few."""
    streams = grouping.count_streams(train.labels, args.balanced)
    return grouping.count_places(slabs, streams, round(args.buffer * 1e9))


def of_epoch(args: Namespace, train: PatchSet, epoch: int) -> np.ndarray | GroupedOrder:
    """Give the patches of an epoch, whole numbers (steps, batch size). A pure function.

    args: the flags seed, batch_size, balanced, order and buffer, as settle leaves them.
    """
    if args.order != "grouped":
        return ordering.epoch_order(train.labels, args.batch_size, args.seed, epoch, args.balanced)
    slabs = grouping.cut_slabs(train)
    places = _places(args, train, slabs)
    moment = (args.seed, epoch)
    return grouping.grouped_order(
        slabs, train.labels, args.batch_size, moment, args.balanced, places
    )


def describe(args: Namespace, train: PatchSet) -> str:
    """Say in a part of a line in which order patches come, if that is not at random."""
    if args.order != "grouped":
        return ""
    slabs = grouping.cut_slabs(train)
    streams = grouping.count_streams(train.labels, args.balanced)
    places = _places(args, train, slabs)
    group = min(grouping.count_group(places, streams), len(slabs.region))
    of_raster = slabs.nbytes.max() / (train.nbytes / len(train.regions))
    of_what = "each city" if args.balanced else "all cities"
    return (
        f"; patches are shuffled within groups of {group} slabs of {of_what} ({of_raster:.2g} of a"
        f" raster each), read ahead of need into {args.buffer:g} GB a process"
    )
