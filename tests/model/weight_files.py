"""Files of weights for tests: small ones, others' and such as mean harm."""

import json
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path

import pytest
import torch
import torchvision

from dl_slicer.cli import InputError
from dl_slicer.model import networks

ROOT = Path(__file__).parent.parent.parent
GIB = 2**30


def network(arch="resnet18", classes=5):
    """A network with random weights, in its batch norms too."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):  # torchvision's own random weights take a second
        model = torchvision.models.get_model(arch, num_classes=classes).to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() > 1:
            tensor.data.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
        elif tensor.dim() == 1:
            tensor.data.uniform_(0.5, 1, generator=generator)
        else:
            tensor.fill_(7)
    return model.eval()


def tiny_state(classes=3):
    """A state dict with the names of ResNet-18's and next to nothing in it.

    It is enough for all that is looked at before the network is built.
    """
    with torch.device("meta"):
        state = dict.fromkeys(torchvision.models.resnet18().state_dict())
    return {
        **{key: torch.zeros(1) for key in state},
        "fc.weight": torch.zeros(classes, 512),
        "fc.bias": torch.zeros(classes),
    }


def tiny_model():
    model = torchvision.models.resnet18()
    state = tiny_state()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        tensor.data = state[name]
    return model


def tiny_checkpoint(**changes):
    """Like one of train_classification.py's."""
    return {
        "model": tiny_state(),
        "arch": "resnet18",
        "classes": ["Aa (AAA)", "Bb", "Cç"],
        "mean": list(networks.MEAN),
        "std": list(networks.STD),
        "image_size": 224,
        "patch_size": 480,
        "stride": 240,
        "epoch": 3,
        "step": 0,
        "metrics": {"history": [{"epoch": 1, "lr": 1e-3}], "best": None},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []},
        "rng": torch.get_rng_state(),
        "args": {"seed": 0},
        "versions": {"cuda": None},
        "temperature": 1.5,
        **changes,
    }


def saved(path, content, **kwargs):
    torch.save(content, path, **kwargs)
    return path


def refusal(call, path, *arguments):
    """The message with which a file is refused: one printable line that names the file."""
    with pytest.raises(InputError) as error:
        call(path, *arguments)
    message = str(error.value)
    assert message.isprintable() and len(message) < len(str(path)) + 400 and str(path) in message
    return message


def limit_memory():
    """Have this process take 2 GB more at most."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2 * GIB,) * 2)


def in_limited_process(script, folder):
    """What a test's own main(), which limits its memory, prints of the files in a folder."""
    done = subprocess.run(
        [sys.executable, script, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def published(model):
    """The model in DataParallel, with the attributes that it has on a machine with two GPUs."""
    parallel = torch.nn.DataParallel(model)
    parallel.dim, parallel.device_ids, parallel.output_device, parallel.src_device_obj = (
        0,
        [0, 1],
        0,
        torch.device("cuda:0"),
    )
    return parallel


class Call:
    """Pickled, it asks the reader to call function(*arguments)."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Storage:
    def __init__(self, count, key="0"):
        self.id = ("storage", torch.FloatStorage, key, "cpu", count)


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return getattr(value, "id", None) if isinstance(value, Storage) else None


def crafted(path, content, floats=16, compression=zipfile.ZIP_STORED):
    """A checkpoint whose pickle says what it likes; its one storage has so many floats."""
    buffer = BytesIO()
    Pickler(buffer, 2).dump(content)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
        archive.writestr("archive/data/0", torch.arange(float(floats)).numpy().tobytes())
    return path


def tensor(offset, size, stride, count=16, key="0"):
    return {
        "w": Call(
            torch._utils._rebuild_tensor_v2,
            Storage(count, key),
            offset,
            size,
            stride,
            False,
            OrderedDict(),
        )
    }
