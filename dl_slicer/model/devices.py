"""Devices and precision: where the network is computed, and how exactly."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dl_slicer.cli import InputError, printable

DRIVER = "/proc/driver/nvidia/version"  # is there on Linux if an NVIDIA driver is


def pick_device(name: str) -> torch.device:
    """Give the device that --device names.

    name: "auto" (CUDA if there is one, else the CPU), or any device that torch knows by name.
    With "auto" a line on stderr says so if there is an NVIDIA GPU that torch does not see, since
    training on the CPU instead would take weeks without a word.
    InputError if the device is not there, or computes nothing.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        _tell_of_an_unseen_gpu()
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"--device {printable(name)}: not to be had ({reason})") from None
    if device.type == "meta":
        raise InputError("--device meta: computes nothing")
    return device


def _tell_of_an_unseen_gpu() -> None:
    has_driver = Path(DRIVER).exists() or shutil.which("nvidia-smi") is not None
    is_hidden_by_user = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    # Under torchrun all processes of a machine would say the same.
    is_first_here = os.environ.get("LOCAL_RANK", "0") == "0"
    if not has_driver or is_hidden_by_user or not is_first_here:
        return
    if torch.version.cuda is None:
        reason = "a build without CUDA never does"
        advice = "in a fresh environment type"
    else:
        reason = f"built for CUDA {torch.version.cuda}; update the driver if it is older"
        advice = "or in a fresh environment type"
    print(
        f"an NVIDIA driver is installed, but torch {torch.__version__} sees no GPU ({reason}), so"
        f" all is computed on the CPU, far slower; {advice}:"
        " pip install --upgrade torch torchvision",
        file=sys.stderr,
    )


@contextmanager
def explain_out_of_memory(batch_size: int, flag: str | None = None) -> Iterator[None]:
    """Turn what torch raises when a device's memory is full into an InputError of one line.

    batch_size: patches that were computed at a time, of all processes.
    flag: the flag that makes it smaller; None where no flag does.
    """
    try:
        yield
    # The name that torch has had since before 2.5; there torch.OutOfMemoryError is the same class.
    except torch.cuda.OutOfMemoryError as error:
        if flag is not None and batch_size > 1:
            advice = f"add {flag} {batch_size // 2}"
        else:
            advice = "end what else uses the device, or add --device cpu"
        reason = " ".join(str(error).split()).partition(". ")[0][:120]
        raise InputError(
            f"batches of {batch_size} are too large for the device's memory ({printable(reason)});"
            f" {advice}; what was saved is kept"
        ) from None


def pick_dtype(amp: str, device: torch.device) -> torch.dtype:
    """Give the precision to compute in: torch.bfloat16 (by autocast) or torch.float32.

    amp: "bf16", "off", or "auto": bf16 where the device is fast at it.
    """
    if amp != "auto":
        return torch.bfloat16 if amp == "bf16" else torch.float32
    return torch.bfloat16 if _is_fast_at_bfloat16(device) else torch.float32


def _is_fast_at_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    # A CPU without such instructions emulates bfloat16, which is slower than float32.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Give the context in which the network computes in this precision, as pick_dtype gave it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def sum_dtype(device: torch.device) -> torch.dtype:
    """Say in which precision sums on a device are taken: float64 where it has it, else float32."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


def to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """Give a result on the CPU: all results leave the device by this function.

    What needs float64 is done after it, since not every device has float64.
    """
    return tensor.detach().cpu()
