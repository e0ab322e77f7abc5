"""No float64 on a device that has none (mps): whole commands under a guard that refuses it.

The guard takes this CPU for such a device. A tensor has left it once devices.to_cpu, or .cpu() in
the library relevance_cam, has given it, and what is computed from it has left, too. All other
tensors are taken to be on the device, so nothing in float64 may come of them.
"""

import re
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, flags
from PIL import Image
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import test_classification
import train_classification
from dl_slicer.model import devices
from dl_slicer.results import refitting
from relevance_cam import __main__ as saliency_command

MAY_TAKE_OFF = (ROOT / "dl_slicer" / "model" / "devices.py", ROOT / "relevance_cam")


class Float64OnDevice(Exception):
    """What a device without float64 would raise."""


def tensors(*values):
    """All tensors in arguments or results; by hand, since this is asked at every operation."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors(*value)
        elif isinstance(value, dict):
            found += tensors(*value.values())
    return found


class HasLeft:
    """Which tensors have left the device, known by identity: tensors compare by their values."""

    def __init__(self):
        self.known = weakref.WeakValueDictionary()

    def add(self, tensor):
        self.known[id(tensor)] = tensor

    def __contains__(self, tensor):
        return self.known.get(id(tensor)) is tensor


class RefuseFloat64(TorchDispatchMode):
    """Refuses what gives float64 from tensors none of which has left the device."""

    def __init__(self, has_left):
        super().__init__()
        self.has_left = has_left

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        # torch.tensor() makes a tensor of numbers on the CPU; RefuseFloat64OnNamedDevice sees
        # whether it is meant for the device.
        is_of_numbers = function is torch.ops.aten.lift_fresh.default
        inputs = [] if is_of_numbers else tensors(args, kwargs)
        # A device does not compute with the CPU's tensors: if one has left, all have.
        if any(tensor in self.has_left for tensor in inputs):
            for tensor in tensors(result):
                self.has_left.add(tensor)
        elif inputs and any(tensor.dtype == torch.float64 for tensor in tensors(result)):
            raise Float64OnDevice(f"{function} gives float64")
        return result


class RefuseFloat64OnNamedDevice(TorchFunctionMode):
    """Refuses float64 tensors that are made on a device, or sent to one, by its name."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        names_device = any(
            isinstance(value, torch.device) for value in (*args, *(kwargs or {}).values())
        )
        if names_device and any(tensor.dtype == torch.float64 for tensor in tensors(result)):
            raise Float64OnDevice(f"{function} gives float64")
        return result


def may_take_off(file):
    return any(Path(file).is_relative_to(place) for place in MAY_TAKE_OFF)


@pytest.fixture
def device_without_float64(monkeypatch):
    has_left = HasLeft()
    plain_cpu = torch.Tensor.cpu

    def cpu(tensor, *args, **kwargs):
        result = plain_cpu(tensor, *args, **kwargs)
        if not may_take_off(sys._getframe(1).f_code.co_filename):
            return result
        result = result[...]  # another tensor than the one on the device
        has_left.add(result)
        return result

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    monkeypatch.setattr(devices, "sum_dtype", lambda device: torch.float32)
    with RefuseFloat64(has_left), RefuseFloat64OnNamedDevice():
        yield


@pytest.fixture
def raster(tmp_path):
    pixels = np.random.default_rng(5).integers(0, 256, (110, 130, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "raster.png")
    return str(tmp_path / "raster.png")


def checkpoint_flags(finished, out):
    return ["--checkpoint", str(finished / "best.pth"), "--out", str(out)]


def test_sums_are_float64_where_there_is_float64():
    assert devices.sum_dtype(torch.device("cpu")) == torch.float64
    assert devices.sum_dtype(torch.device("cuda", 0)) == torch.float64
    assert devices.sum_dtype(torch.device("mps")) == torch.float32


def test_guard_refuses_what_the_device_would(device_without_float64):
    here = torch.device("cpu")
    on_device = torch.ones(3)
    with pytest.raises(Float64OnDevice):
        on_device.double()
    with pytest.raises(Float64OnDevice):
        on_device.cpu().double()  # by another way than devices.to_cpu
    with pytest.raises(Float64OnDevice):
        torch.zeros(2, dtype=torch.float64, device=here)
    numbers = torch.tensor([1.0], dtype=torch.float64)
    with pytest.raises(Float64OnDevice):
        numbers.to(here)
    with pytest.raises(Float64OnDevice):
        numbers += on_device.sum()
    off_device = devices.to_cpu(on_device)
    assert off_device.double().sum().item() == 3
    with pytest.raises(Float64OnDevice):
        on_device.double()  # it is still there


def test_training(device_without_float64, data, tmp_path):
    more = ["--epochs", "1", "--batch-size", "243", "--average", "1", "--save-every", "1"]
    train_classification.main(flags(data, tmp_path / "run", *more, "--amp", "off"))


def test_testing(device_without_float64, data, finished, tmp_path):
    where = [*checkpoint_flags(finished, tmp_path / "out"), "--data", str(data), "--amp", "off"]
    test_classification.main([*where, "--tta"])


def test_cues(device_without_float64, data, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(refitting, "STEPS", 4)  # each is alike, and slow under the guard
    monkeypatch.setattr(refitting, "CHOOSING_STEPS", 4)
    where = [*checkpoint_flags(finished, tmp_path / "out"), "--data", str(data), "--amp", "off"]
    test_classification.main([*where, "--cues"])


def test_images(device_without_float64, finished, tmp_path, raster):
    where = checkpoint_flags(finished, tmp_path / "out")
    test_classification.main([*where, "--images", raster, "--amp", "off"])


@pytest.mark.parametrize("method", ["relevance-cam", "grad-cam", "grad-cam++", "score-cam"])
def test_saliency(device_without_float64, data, finished, tmp_path, method):
    where = [*checkpoint_flags(finished, tmp_path / "out"), "--data", str(data)]
    # At the depth with the fewest channels, each of which is a pass through the network.
    what = ["--per-city", "1", "--methods", method, "--layers", "layer1", "--quality"]
    saliency_command.main([*where, *what])


@pytest.mark.parametrize("target", [[], ["--target", "AAA"]], ids=["likeliest", "target"])
def test_raster(device_without_float64, finished, tmp_path, raster, target):
    saliency_command.main([*checkpoint_flags(finished, tmp_path), "--raster", raster, *target])


def test_results_leave_the_device_by_one_function():
    scripts = [ROOT / name for name in ("train_classification.py", "test_classification.py")]
    for file in (*(ROOT / "dl_slicer").rglob("*.py"), *scripts):
        text = file.read_text(encoding="utf-8")
        if file not in MAY_TAKE_OFF:
            assert not re.search(r"\.cpu\(\)|\.to\(.cpu.\)", text), file
