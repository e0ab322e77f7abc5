"""Which device and precision, and what is said when the device is not as the user thinks."""

import shutil

import pytest
import torch

from dl_slicer.cli import InputError
from dl_slicer.model import devices


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(devices, "DRIVER", "/no/such/file")
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.fixture
def driver(no_cuda, monkeypatch, tmp_path):
    """A machine with an NVIDIA driver, and a torch that sees no GPU."""
    (tmp_path / "version").write_text("NVRM version: 580")
    monkeypatch.setattr(devices, "DRIVER", str(tmp_path / "version"))
    monkeypatch.setattr(torch, "__version__", "2.14.1+cpu")
    monkeypatch.setattr(torch.version, "cuda", None)


def test_auto_without_a_gpu_says_nothing(no_cuda, capsys):
    assert devices.pick_device("auto") == torch.device("cpu")
    assert capsys.readouterr() == ("", "")


def test_auto_says_that_torch_sees_no_gpu(driver, capsys):
    assert devices.pick_device("auto") == torch.device("cpu")
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1 and len(error) < 300
    assert "torch 2.14.1+cpu sees no GPU (a build without CUDA never does)" in error
    assert "pip install --upgrade torch torchvision" in error


def test_auto_with_an_old_driver(driver, monkeypatch, capsys):
    monkeypatch.setattr(torch, "__version__", "2.14.1+cu130")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    devices.pick_device("auto")
    error = capsys.readouterr().err
    assert "torch 2.14.1+cu130 sees no GPU (built for CUDA 13.0; update the driver" in error
    assert error.count("\n") == 1


def test_driver_is_also_known_by_its_program(no_cuda, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", {"nvidia-smi": "/usr/bin/nvidia-smi"}.get)
    devices.pick_device("auto")
    assert "sees no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, value",
    [("CUDA_VISIBLE_DEVICES", ""), ("CUDA_VISIBLE_DEVICES", "-1"), ("LOCAL_RANK", "1")],
)
def test_nothing_is_said_of_a_hidden_gpu_nor_twice(driver, monkeypatch, capsys, name, value):
    monkeypatch.setenv(name, value)
    devices.pick_device("auto")
    assert capsys.readouterr().err == ""


def test_a_named_device_needs_no_word(driver, capsys):
    assert devices.pick_device("cpu") == torch.device("cpu")
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match="--device meta: computes nothing"):
        devices.pick_device("meta")
    with pytest.raises(InputError, match="--device nonsense: not to be had"):
        devices.pick_device("nonsense")


FULL = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of"
    " which 15.56 MiB is free."
)


def test_out_of_memory_is_one_line_with_what_to_type():
    with pytest.raises(InputError) as error, devices.explain_out_of_memory(128, "--batch-size"):
        raise torch.OutOfMemoryError(FULL)
    message = str(error.value)
    assert message.isprintable() and len(message) < 300
    assert "batches of 128 are too large" in message
    assert "CUDA out of memory" in message
    assert "add --batch-size 64" in message
    assert "what was saved is kept" in message


@pytest.mark.parametrize("batch_size, flag", [(512, None), (1, "--batch-size")])
def test_out_of_memory_where_no_flag_helps(batch_size, flag):
    explained = devices.explain_out_of_memory(batch_size, flag)
    with pytest.raises(InputError, match="--device cpu"), explained:
        raise torch.OutOfMemoryError(FULL)


def test_other_errors_are_left_alone():
    with pytest.raises(RuntimeError, match="^mine$"), devices.explain_out_of_memory(4, "--x"):
        raise RuntimeError("mine")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_out_of_memory_on_a_gpu():
    explained = devices.explain_out_of_memory(8, "--batch-size")
    with pytest.raises(InputError, match="batches of 8 are too large"), explained:
        torch.empty(2**48, device="cuda")


def test_precision():
    cpu = torch.device("cpu")
    assert devices.pick_dtype("off", cpu) == torch.float32
    assert devices.pick_dtype("bf16", cpu) == torch.bfloat16
    assert devices.pick_dtype("auto", torch.device("mps")) == torch.float32
