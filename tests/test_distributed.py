"""Which device each of torchrun's processes takes, on a machine with made-up GPUs."""

import pytest
import torch
import torch.distributed as dist

from dl_slicer import distributed
from dl_slicer.cli import InputError
from dl_slicer.model import devices


@pytest.fixture
def joined(monkeypatch):
    """Two processes, of which this is the second. Give what was set, and the groups."""
    calls = []

    def set_device(name):
        # torch refuses a name without a number.
        assert torch.device(name).index is not None
        calls.append(name)

    monkeypatch.setattr(distributed, "WORLD", 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(dist, "init_process_group", calls.append)
    return calls


@pytest.mark.parametrize("asked, own", [("auto", "cuda:1"), ("cuda", "cuda:1"), ("cuda:0",) * 2])
def test_each_process_has_its_own_gpu(joined, monkeypatch, asked, own):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed.join(asked) == own
    assert joined == [own, "cpu:gloo,cuda:nccl"]


def test_more_processes_than_gpus_are_refused(joined, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="--nproc_per_node=1"):
        distributed.join("auto")
    assert joined == []


@pytest.mark.parametrize("asked", ["cpu", "auto", "cuda"])
def test_without_gpus_processes_share_a_cpu_or_are_told(joined, monkeypatch, asked):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    name = distributed.join(asked)
    assert joined == ["gloo"]
    if asked == "cuda":
        with pytest.raises(InputError, match="--device cuda: not to be had"):
            devices.pick_device(name)
