"""Several processes started by torchrun: who am I, and the few things they do together.

With one process all of it does nothing.
"""

import os

import torch
import torch.distributed as dist

from dl_slicer import cli
from dl_slicer.cli import InputError

RANK = int(os.environ.get("RANK", 0))
WORLD = int(os.environ.get("WORLD_SIZE", 1))
ON_THIS_MACHINE = int(os.environ.get("LOCAL_WORLD_SIZE", WORLD))


def join(device: str) -> str:
    """Join the processes that torchrun started. Give the name of this process's own device.

    device: what the user asked for; "auto" and "cuda" are a GPU for each process.
    InputError if there are fewer GPUs than processes on this machine.
    """
    if WORLD == 1:
        return device
    has_gpus = torch.cuda.is_available()
    if device in ("auto", "cuda") and has_gpus:
        device = f"cuda:{_own_gpu()}"
    on_gpu = device.startswith("cuda") and has_gpus  # else the device is refused where it is used
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    return device


def _own_gpu() -> int:
    own = int(os.environ["LOCAL_RANK"])
    there = torch.cuda.device_count()
    if own >= there:
        raise InputError(
            f"there are more processes than GPUs on this machine: start torchrun with"
            f" --nproc_per_node={there}"
        )
    return own


def print_once(line: str) -> None:
    """Print a line at once, by one process for all."""
    if RANK == 0:
        cli.say(line)


def leave() -> None:
    """Leave the group when all have come so far.

    No process may end, and torchrun with it, while another still writes.
    """
    if WORLD > 1:
        dist.barrier()
        dist.destroy_process_group()


def any_of(flag: bool) -> bool:
    """Give True in every process if the flag is True in one. All must call it."""
    if WORLD == 1:
        return flag
    flags = torch.tensor([float(flag)])  # on the CPU: a GPU need not be waited for
    dist.all_reduce(flags)
    return bool(flags.item())


def total(tensor: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all processes, in place."""
    if WORLD > 1:
        dist.all_reduce(tensor)
    return tensor


def from_first(value: float) -> float:
    """Give all processes the first one's number. All must call it."""
    number = torch.tensor([value if RANK == 0 else 0.0], dtype=torch.float64)
    return total(number).item()


def of_each_process(tensor: torch.Tensor) -> torch.Tensor:
    """Give the tensors of all processes, (WORLD, *shape), on the CPU. All must call it."""
    each = [torch.empty_like(tensor) for _ in range(WORLD)]
    dist.all_gather(each, tensor)
    return torch.stack(each)


def average(tensor: torch.Tensor) -> None:
    """Give a tensor in all processes the mean of them, in place. All must call it."""
    if WORLD > 1:
        dist.all_reduce(tensor)
        tensor /= WORLD
