"""What a run needs before it begins: the device, the data, and the network as it is trained."""

import os
import warnings
from argparse import Namespace

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dl_slicer import distributed
from dl_slicer.cli import InputError
from dl_slicer.distributed import WORLD
from dl_slicer.machine import keep_memory
from dl_slicer.model import checkpoints, devices
from dl_slicer.model.evaluation import Setup
from dl_slicer.patch_sets import reading
from dl_slicer.patch_sets.reading import PatchSet
from dl_slicer.training import orders


def prepare_device(args: Namespace) -> tuple[torch.device, torch.dtype]:
    """Give this process's device and the precision to compute in; set what holds for both.

    args: the flags device, amp, batch_size and deterministic.
    InputError if the device is not there, or if the processes cannot share a batch.
    """
    device = devices.pick_device(distributed.join(args.device))
    dtype = devices.pick_dtype(args.amp, device)
    keep_memory()
    if args.batch_size % WORLD:
        raise InputError(
            f"--batch-size {args.batch_size}: is shared by {WORLD} processes,"
            f" so it must be a multiple of {WORLD}"
        )
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not args.deterministic
    return device, dtype


def open_data(data: str) -> tuple[PatchSet, PatchSet]:
    """Open the train and the val patches of a set. InputError if their cities are not the same."""
    train = reading.open_split(data, "train")
    val = reading.open_split(data, "val")
    checkpoints.check_classes(val, train.classes, f"{data}/val", f"{data}/train")
    return train, val


def trainable(model: nn.Module, device: torch.device, is_compiled: bool) -> nn.Module:
    """Give the network that training calls: the model, shared by the processes and compiled.

    Its weights are the model's own. is_compiled: by torch.compile.
    """
    network = model
    if WORLD > 1:
        # Each process normalises its share of a batch by that share's own statistics, as usual;
        # the running averages are put together when the model is saved or evaluated, so they
        # need not be sent at every step.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch renames broadcast_buffers
            network = DistributedDataParallel(
                model, [device] if device.type == "cuda" else None, broadcast_buffers=False
            )
        _group_gradients(network, device)
    return torch.compile(network) if is_compiled else network


def _group_gradients(network: DistributedDataParallel, device: torch.device) -> None:
    """Have the gradients sent in their final groups from the first step on.

    They are grouped anew after the first backward pass, and the group decides in which order three
    or more processes are summed: a resumed run would come to other bits. So that pass is made here,
    with the network in eval mode, in which it keeps no statistics.
    """
    network.eval()
    network(torch.zeros(1, 3, 32, 32, device=device)).sum().backward()
    network.zero_grad(set_to_none=True)


def describe(args: Namespace, setup: Setup, train: PatchSet, val: PatchSet) -> str:
    """Say in a line what is trained, where, and on what."""
    others = f" and {WORLD - 1} more" if WORLD > 1 else ""
    precision = str(setup.dtype).removeprefix("torch.")
    return (
        f"{args.arch} on {setup.device}{others} in {precision};"
        f" {len(train)} train and {len(val)} val patches of {len(train.classes)} cities"
        f"{orders.describe(args, train)}"
    )
