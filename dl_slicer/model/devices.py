"""Devices and precision."""

import torch

from dl_slicer.cli import InputError, printable


def pick_device(name):
    """auto: CUDA if there is one, else the CPU; or any device torch knows by name. InputError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"--device {printable(name)}: not to be had ({' '.join(str(error).split())[:120]})"
        ) from None
    if device.type == "meta":
        raise InputError("--device meta: computes nothing")
    return device


def pick_dtype(amp, device):
    """The precision to compute in: torch.bfloat16 (by autocast) or torch.float32. auto takes bf16 where the device is fast at it."""
    if amp == "auto":
        if device.type == "cuda":
            fast = torch.cuda.get_device_capability(device) >= (8, 0)
        else:  # without such instructions bf16 is emulated, slower than float32
            capabilities = getattr(torch.cpu, "get_capabilities", dict)()
            fast = device.type == "cpu" and bool(
                capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
            )
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if amp == "bf16" else torch.float32


def autocast(device, dtype):
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def sum_dtype(device: torch.device) -> torch.dtype:
    """Say in which precision sums on a device are taken: float64 where it has it, else float32."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


def to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """Give a result on the CPU: all results leave the device by this function.

    What needs float64 is done after it, since not every device has float64.
    """
    return tensor.detach().cpu()
