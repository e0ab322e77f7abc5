"""Several processes started by torchrun: who am I, and the few things they do together. With one process all of it is a no-op."""

import os

import torch
import torch.distributed as dist

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def join(device):
    """Join the processes that torchrun started. device: what the user asked for; returns the name of this process's own."""
    if WORLD > 1:
        if device == "auto" and torch.cuda.is_available():
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    return device


def leave():
    if WORLD > 1:
        dist.barrier()  # no process may end, and torchrun with it, while another still writes
        dist.destroy_process_group()


def any_of(flag):
    """True in every process if it is True in one. All must call it."""
    if WORLD == 1:
        return flag
    flags = torch.tensor([float(flag)])  # on the CPU: a GPU need not be waited for
    dist.all_reduce(flags)
    return bool(flags.item())


def total(tensor):
    """The sum over all processes, in place."""
    if WORLD > 1:
        dist.all_reduce(tensor)
    return tensor


def average_batch_norm(model):
    """Make batch norm's running averages, of which each process has those of its own share of the batches, their mean everywhere."""
    if WORLD > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= WORLD
