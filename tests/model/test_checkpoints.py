"""Files of weights from anywhere: published models, state dicts in all forms, and files that are damaged or mean harm."""

import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
import zipfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from torchvision.models import Weights, WeightsEnum

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

import test_classification  # noqa: E402
from benchmarks.growth import memory  # noqa: E402
from dl_slicer.cli import InputError
from dl_slicer.model import checkpoints, networks, pickles

PUBLISHED = ("resnet18", "resnet34", "resnet50", "resnet101")
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


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As fast for what is done here, and sums come in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@torch.no_grad()
def predict(model):
    return model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))


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


@pytest.fixture
def on_cuda(monkeypatch):
    """Files are written as from tensors on a GPU."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")


@pytest.fixture(scope="module")
def resnet18():
    return network()


def tiny_state(classes=3):
    """A state dict with the names of ResNet-18's and next to nothing in it: enough for all that is looked at before the network is built."""
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
        **changes,
    }


def saved(path, content, **kwargs):
    torch.save(content, path, **kwargs)
    return path


def refusal(call, path, *arguments):
    """The message with which a file is refused: one printable line of reasonable length that names the file."""
    with pytest.raises(InputError) as error:
        call(path, *arguments)
    message = str(error.value)
    assert message.isprintable() and len(message) < len(str(path)) + 400 and str(path) in message
    return message


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ---------------------------------------------------------------------------------------------------------- other people's files


@pytest.mark.parametrize(
    "arch, new", [*((arch, True) for arch in PUBLISHED), ("resnet18", False), ("resnet50", False)]
)
def test_published_model_predicts_the_same(tmp_path, on_cuda, arch, new):
    model = network(arch, 45)
    path = saved(tmp_path / "model.pth", published(model), _use_new_zipfile_serialization=new)
    if arch == "resnet18":  # the file is what it is meant to be: torch itself reads it so
        assert (
            type(torch.load(path, map_location="cpu", weights_only=False)) is torch.nn.DataParallel
        )
        assert b"cuda:0" in path.read_bytes()
    loaded, checkpoint = checkpoints.load_checkpoint(path)
    assert (
        checkpoint.arch == arch
        and checkpoint.classes is None
        and checkpoint.image_size == 224
        and not loaded.training
    )
    assert torch.equal(predict(loaded), predict(model))


@pytest.mark.parametrize(
    "form, classes",
    [
        (lambda model: model, None),
        (lambda model: model.state_dict(), None),
        (lambda model: published(model).state_dict(), None),
        (
            lambda model: {
                f"_orig_mod.module.{key}": value for key, value in model.state_dict().items()
            },
            None,
        ),
        (
            lambda model: {
                "state_dict": published(model).state_dict(),
                "epoch": 90,
                "best_acc1": torch.tensor(71.0),
                "arch": "resnet18",
            },
            None,
        ),
        (lambda model: {"model": model.state_dict(), "classes": list("abcde")}, list("abcde")),
        (
            lambda model: {
                "net": published(model),
                "class_names": tuple("abcde"),
                "optimizer": {"state": {}},
            },
            list("abcde"),
        ),
        (
            lambda model: {
                "weights": model.state_dict(),
                "class_to_idx": {name: i for i, name in enumerate("abcde")},
            },
            list("abcde"),
        ),
        (
            lambda model: {
                key: value
                for key, value in model.state_dict().items()
                if "num_batches_tracked" not in key
            },
            None,
        ),
    ],
    ids=[
        "model",
        "state",
        "module",
        "compiled",
        "wrapped",
        "classes",
        "class_names",
        "class_to_idx",
        "before-0.4.1",
    ],
)
def test_forms(tmp_path, on_cuda, resnet18, form, classes):
    loaded, checkpoint = checkpoints.load_checkpoint(saved(tmp_path / "weights", form(resnet18)))
    assert checkpoint.classes == classes
    assert torch.equal(predict(loaded), predict(resnet18))


def test_model_of_older_versions(tmp_path):
    """Without the attributes that modules have today, and with what stood for adaptive pooling."""
    model = network()
    expected = predict(model)
    model.avgpool = torch.nn.AvgPool2d(7, stride=1)
    for module in model.modules():
        for name in (
            "_backward_pre_hooks",
            "_non_persistent_buffers_set",
            "_is_full_backward_hook",
            "_load_state_dict_post_hooks",
            "padding_mode",
            "_reversed_padding_repeated_twice",
            "training",
        ):
            vars(module).pop(name, None)
    loaded, _ = checkpoints.load_checkpoint(
        saved(tmp_path / "old.pth", model, _use_new_zipfile_serialization=False)
    )
    assert torch.equal(predict(loaded), expected)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_reads_what_torch_load_reads(tmp_path, new):
    """Types, strides, sharing: a checkpoint with optimizer state comes back as torch.load(weights_only=True) has it."""
    model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    shared = torch.arange(12.0).reshape(3, 4)
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "parts": [shared[1:], shared.T, shared],
        "half": torch.ones(3).half(),
        "bf16": torch.ones(2).bfloat16(),
        "empty": torch.zeros(0),
        "scalar": torch.tensor(7),
        "plain": {
            "text": "é\n",
            "none": None,
            "yes": True,
            "number": -5,
            "large": 2**70,
            "float": 1e-3,
            "tuple": (1, (2,), ()),
        },
    }
    path = saved(tmp_path / "a.pth", content, _use_new_zipfile_serialization=new)

    def same(a, b):
        if isinstance(a, torch.Tensor):
            return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
        if isinstance(a, dict):
            return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
        return type(a) is type(b) and (
            len(a) == len(b) and all(map(same, a, b)) if isinstance(a, (list, tuple)) else a == b
        )

    found = pickles.read(path)
    assert same(found, torch.load(path, weights_only=True))
    found["parts"][0].fill_(-1)
    assert found["parts"][2][1, 0] == -1  # still parts of one tensor


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(tmp_path, protocol):
    for new in (True, False):
        path = saved(
            tmp_path / "a.pth",
            published(tiny_model()),
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=new,
        )
        assert equal(checkpoints.read_file(path).model, tiny_state())


def test_own_checkpoint_keeps_all_it_has(tmp_path):
    content = tiny_checkpoint()
    found = vars(checkpoints.read_file(saved(tmp_path / "best.pth", content)))
    assert found.keys() >= content.keys() and equal(found["model"], content["model"])
    assert all(found[key] == content[key] for key in content.keys() - {"model", "rng", "optimizer"})


def test_class_names_come_from_the_data_set(tmp_path, capsys):
    data = types.SimpleNamespace(classes=["Aa (AAA)", "Bb", "Cç"])
    nameless = checkpoints.read_file(saved(tmp_path / "state.pth", tiny_state()))
    assert checkpoints.class_names(nameless, data, "data", "state.pth") == data.classes
    assert (
        capsys.readouterr().out
        == "state.pth: has no class names; taken to be those of data in sorted order\n"
    )
    with pytest.raises(
        InputError, match="state.pth tells 3 classes apart, without their names; data has 2"
    ):
        checkpoints.class_names(
            nameless, types.SimpleNamespace(classes=["a", "b"]), "data", "state.pth"
        )
    named = checkpoints.read_file(saved(tmp_path / "own.pth", tiny_checkpoint()))
    assert (
        checkpoints.class_names(named, data, "data", "own.pth") == data.classes
        and not capsys.readouterr().out
    )
    with pytest.raises(InputError, match="only in the data: Dd; only in the checkpoint: Cç"):
        checkpoints.class_names(
            named, types.SimpleNamespace(classes=["Aa (AAA)", "Bb", "Dd"]), "data", "own.pth"
        )


def test_published_model_in_testing(tmp_path, on_cuda, capsys):
    for number, city in enumerate(("Aa (AAA)", "Bb (BBB)")):
        (tmp_path / "data" / "test" / city).mkdir(parents=True)
        Image.new("RGB", (48, 48), (90 * number, 50, 20)).save(
            tmp_path / "data" / "test" / city / "a.jpg"
        )
    path = saved(tmp_path / "resnet18.pth", published(network(classes=2)))
    argv = [
        "--checkpoint",
        str(path),
        "--data",
        str(tmp_path / "data"),
        "--split",
        "test",
        "--workers",
        "0",
        "--out",
        str(tmp_path / "out"),
    ]
    test_classification.main(argv)
    assert "resnet18.pth: has no class names; taken to be those of" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["n"] == 2
    saved(path, tiny_state())
    assert "does not fit the network" in refusal(lambda path: test_classification.main(argv), path)


# ----------------------------------------------------------------------------------------------------------------------- --weights


def test_weights_with_another_last_layer(tmp_path, on_cuda, resnet18, capsys):
    path = saved(tmp_path / "model.pth", published(resnet18))
    model = checkpoints.initial_network("resnet18", 7, str(path))
    assert (
        f"--weights {path}: its last layer has 5 classes, a new one with 7 takes its place"
        in capsys.readouterr().out
    )
    assert model.fc.weight.shape == (7, 512)
    model.fc = resnet18.fc
    assert equal(model.state_dict(), resnet18.state_dict())
    assert (
        equal(checkpoints.initial_network("resnet18", 5, str(path)).state_dict(), resnet18.state_dict())
        and not capsys.readouterr().out
    )


def test_weights_of_another_network(tmp_path, resnet18):
    path = saved(tmp_path / "model.pth", resnet18.state_dict())
    assert "weights of resnet18, not of --arch resnet50" in refusal(
        lambda path: checkpoints.initial_network("resnet50", 5, path), path
    )
    saved(path, torchvision.models.squeezenet1_1().state_dict())
    assert "weights of none of resnet18, resnet34" in refusal(
        lambda path: checkpoints.initial_network("resnet50", 5, path), path
    )
    assert "weights of none of resnet18, resnet34" in refusal(checkpoints.load_checkpoint, path)


def imagenet_of(file, monkeypatch):
    """Have torchvision fetch ImageNet weights from this file."""

    class Fake(WeightsEnum):
        IMAGENET1K_V1 = Weights(url=file.as_uri(), transforms=None, meta={})

    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda arch: Fake)


def test_imagenet_weights(tmp_path, resnet18, monkeypatch, capsys):
    """Fetched with the hash in the file's name checked, then taken from torch's cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    file = saved(tmp_path / "weights.pth", resnet18.state_dict())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file = file.rename(tmp_path / f"resnet18-{digest[:8]}.pth")
    imagenet_of(file, monkeypatch)
    for _ in range(2):
        assert equal(
            checkpoints.initial_network("resnet18", 5, "imagenet").state_dict(), resnet18.state_dict()
        )
        file.unlink(missing_ok=True)
    # Torch's cache under torchvision's own name for them.
    monkeypatch.undo()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    cached = (
        tmp_path
        / "home"
        / "hub"
        / "checkpoints"
        / Path(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url).name
    )
    (cached.parent / file.name).rename(cached)
    model = checkpoints.initial_network("resnet18", 4, "imagenet")
    assert torch.equal(model.layer4[1].conv2.weight, resnet18.layer4[1].conv2.weight)
    assert (
        "its last layer has 5 classes, a new one with 4 takes its place" in capsys.readouterr().out
    )
    cached.write_bytes(cached.read_bytes()[:100000])
    with pytest.raises(InputError, match="ImageNet weights for resnet18 cannot be had"):
        checkpoints.initial_network("resnet18", 4, "imagenet")


def test_imagenet_weights_that_are_not_to_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    (tmp_path / "resnet18-00000000.pth").write_bytes(b"something else")
    for file in (
        tmp_path / "resnet18-00000000.pth",
        tmp_path / "resnet18-11111111.pth",
    ):  # another hash; not there, as without a connection
        imagenet_of(file, monkeypatch)
        with pytest.raises(InputError, match="--weights PATH.*--weights none") as error:
            checkpoints.initial_network("resnet18", 4, "imagenet")
        assert file.as_uri() in str(error.value) and str(error.value).isprintable()
        assert not list((tmp_path / "home").rglob("*.pth"))
    monkeypatch.undo()
    with pytest.raises(
        InputError, match="torchvision has none for resnet18; take --weights imagenet"
    ):
        checkpoints.initial_network("resnet18", 4, "imagenet-v2")


# --------------------------------------------------------------------------------------------------------- files that mean harm


class Call:
    """Pickled, it asks the reader to call function(*arguments)."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


WRITERS = {
    "zip": torch.save,
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "pickle2": lambda content, path: path.write_bytes(pickle.dumps(content, 2)),
    "pickle4": lambda content, path: path.write_bytes(pickle.dumps(content, 4)),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_calls_are_refused_by_name_and_not_made(tmp_path, writer):
    path, victim = tmp_path / "evil.pth", tmp_path / "victim"
    for call, name in [
        (Call(os.system, f"touch {victim}"), "posix.system"),
        (Call(eval, f"open({str(victim)!r}, 'w')"), "builtins.eval"),
        (Call(bytearray, 10**12), "builtins.bytearray"),
        (Call(shutil.rmtree, str(tmp_path)), "shutil.rmtree"),
        (Call(torch.hub.load, "a/b", "c"), "torch.hub.load"),
        (torch.nn.Dropout(), "torch.nn.modules.dropout.Dropout"),
        (Path("a"), "pathlib.PosixPath"),
    ]:
        for content in (call, [call], {"a": {"b": (call,)}}, OrderedDict(state_dict=call)):
            WRITERS[writer](content, path)
            assert (
                f"refused, nothing of it was run: it asks for {name}, which no ResNet needs"
                in refusal(checkpoints.load_checkpoint, path)
            )
    for content in (
        {**tiny_state(), "x": call},
        tiny_checkpoint(classes=Call(os.system, f"touch {victim}")),
        tiny_checkpoint(args=Call(eval, "1")),
    ):
        WRITERS[writer](content, path)
        assert "nothing of it was run: it asks for" in refusal(checkpoints.load_checkpoint, path)
    assert not victim.exists()


def test_other_classes_of_a_listed_name_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "evil", types.ModuleType("evil"))
    sys.modules["evil"].Conv2d = type("Conv2d", (torch.nn.Conv2d,), {"__module__": "evil"})
    model = torchvision.models.resnet18()
    model.conv1 = sys.modules["evil"].Conv2d(3, 64, 7, 2, 3, bias=False)
    assert "it asks for evil.Conv2d" in refusal(
        checkpoints.read_file, saved(tmp_path / "model.pth", model)
    )


def stride(model):
    model.layer2[0].conv1.stride = (1, 1)


def epsilon(model):
    model.bn1.eps = 0.1


def pooling(model):
    model.maxpool = torch.nn.Sequential()


def head(model):
    model.fc = torch.nn.Sequential(model.fc)


def shortcut(model):
    model.layer4[1].downsample = torch.nn.Sequential(torch.nn.ReLU())


@pytest.mark.parametrize(
    "change, said",
    [
        (stride, "layer2.0.conv1 has another stride than (2, 2)"),
        (epsilon, "bn1 has another eps than 1e-05"),
        (pooling, "maxpool is Sequential, in torchvision MaxPool2d"),
        (head, "a model, but none of resnet18"),
        (shortcut, "layer4.1.downsample is Sequential, in torchvision missing"),
    ],
)
def test_models_that_compute_something_else_are_refused(tmp_path, change, said):
    model = tiny_model()
    change(model)
    assert said in refusal(checkpoints.read_file, saved(tmp_path / "model.pth", published(model)))


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


def test_tampered_tensors(tmp_path):
    path = tmp_path / "a.pth"
    assert torch.equal(
        pickles.read(crafted(path, tensor(1, (2, 3), (6, 2))))["w"],
        torch.tensor([[1.0, 3, 5], [7, 9, 11]]),
    )
    for bad in [
        (0, (17,), (1,)),
        (1, (16,), (1,)),
        (16, (1,), (1,)),
        (0, (9,), (2,)),
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (0, (2,), (-1,)),
        (0, (10**12,), (0,)),
        (0, (10**12, 0), (1, 1)),
        (0, (4, 16), (0, 1)),
        (0, (2,), (1, 1)),
        (2**63, (1,), (1,)),
        (0, (2.5,), (1,)),
        (0, ("2",), (1,)),
        (0, None, None),
        (0, (1,) * 50, (1,) * 50),
        (0, (10**9,), (1,), 10**9),
        (0, (8,), (1,), 8),
        (0, (1,), (1,), -1),
        (0, (1,), (1,), 2**80),
        (0, (1,), (1,), 16, "1"),
        (0, (1,), (1,), 16, "../data.pkl"),
    ]:
        assert "damaged" in refusal(pickles.read, crafted(path, tensor(*bad)))


TWINS = (
    b")" + 60 * b"q\x00h\x00\x86"
)  # a tuple of twice a tuple of twice a tuple ...: to print or to hash it takes years
LINEAR = b"ctorch.nn.modules.linear\nLinear\nq\x01"


@pytest.mark.parametrize(
    "pickled, said",
    [
        (TWINS + b"X\x01\x00\x00\x00a\x93.", "a name that is none"),
        (b"}" + TWINS + b"Ns.", "a list or dictionary that is none"),
        (TWINS + b".", "neither a model"),
        (b"}X\x07\x00\x00\x00classes" + TWINS + b"s.", "neither a model"),
        (TWINS + b"Q.", "a storage that is none"),
        (b"(" + 10**5 * b"N" + b"tq\x00" + 10**5 * b"h\x00Q" + b".", "wrong arguments"),
        (LINEAR + b"h\x01)\x81h\x01)\x81b.", "without _modules"),
        # 100,000 entries, which 100,000 modules have as their attributes.
        (
            LINEAR
            + b"}("
            + b"".join(b"J" + n.to_bytes(4, "little") + b"N" for n in range(10**5))
            + b"uq\x02"
            + 10**5 * b"h\x01)\x81h\x02b"
            + b".",
            "without _modules",
        ),
        # A module that is 50 times its own child.
        (
            LINEAR
            + b")\x81q\x02}X\x08\x00\x00\x00_modules}("
            + b"".join(b"X\x02\x00\x00\x00%02dh\x02" % n for n in range(50))
            + b"usb.",
            "no tree of modules",
        ),
    ],
)
def test_bombs_fizzle_out(tmp_path, pickled, said):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + pickled)
    started = time.process_time()
    assert said in refusal(checkpoints.load_checkpoint, tmp_path / "a.pth")
    assert time.process_time() - started < 5


def test_files_that_are_no_checkpoint(tmp_path):
    path = saved(tmp_path / "a.pth", tiny_state())
    whole = path.read_bytes()
    legacy = saved(
        tmp_path / "b.pth", tiny_state(), _use_new_zipfile_serialization=False
    ).read_bytes()
    for content in (whole, legacy):
        for length in (1, 3, 5, 100, len(content) // 2, len(content) - 1000, len(content) - 1):
            path.write_bytes(content[:length])
            refusal(checkpoints.load_checkpoint, path)
    for content, said in [
        (b"", "an empty file"),
        (b"hello, world", "no checkpoint: torch.save writes no such file"),
        (b"\x80", "damaged or cut short"),
        (b"\x80\x04.", "damaged"),
        (pickle.dumps({"a": 1}), "no checkpoint: a pickle that torch.save did not write"),
        (b"PK\x03\x04" + bytes(99), "damaged or cut short (File is not a zip file)"),
    ]:
        path.write_bytes(content)
        assert said in refusal(checkpoints.load_checkpoint, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<text/>")
    assert "a zip archive, but no checkpoint" in refusal(checkpoints.load_checkpoint, path)
    crafted(path, {"w": pickles.LIMIT * "a"}, compression=zipfile.ZIP_DEFLATED)
    assert "compressed or too large" in refusal(checkpoints.load_checkpoint, path)
    assert "compressed or too large" in refusal(
        checkpoints.load_checkpoint, crafted(path, {"w": pickles.LIMIT * "a"})
    )
    for content in (
        {},
        [],
        7,
        "text",
        torch.ones(3),
        {"model": 3},
        {"state_dict": {}},
        [tiny_state()],
        {"model": {"conv1.weight": 3}},
    ):
        assert "no checkpoint: neither" in refusal(
            checkpoints.load_checkpoint, saved(path, content)
        )
    os.mkfifo(tmp_path / "fifo")
    for odd, said in [
        (tmp_path, "no regular file"),
        (tmp_path / "fifo", "no regular file"),
        (tmp_path / "none", "no such file"),
    ]:
        assert said in refusal(checkpoints.load_checkpoint, odd)


def test_one_wrong_bit_in_the_weights_is_noticed(tmp_path):
    path = saved(tmp_path / "a.pth", {"model": {"w": torch.zeros(1000)}})
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        content[archive.getinfo("a/data/0").header_offset + 1000] ^= 1
    path.write_bytes(content)
    assert "damaged or cut short (Bad CRC-32 for file 'a/data/0')" in refusal(
        checkpoints.load_checkpoint, path
    )


def test_numbers_that_are_none(tmp_path, resnet18):
    state = {**resnet18.state_dict(), "layer3.1.bn2.running_var": torch.full((256,), float("nan"))}
    assert "damaged, layer3.1.bn2.running_var has values that are not finite" in refusal(
        checkpoints.load_checkpoint, saved(tmp_path / "a.pth", state)
    )


@pytest.mark.parametrize(
    "key, values",
    [
        ("arch", ["vgg16", "resnet34", None, 18, ["resnet18"], torch.ones(2)]),
        (
            "classes",
            [
                3,
                "abc",
                [1, 2, 3],
                ["a", "b"],
                ["a", "b", "b"],
                [],
                {"a": 0, "b": 1, "c": 2},
                torch.ones(3),
            ],
        ),
        (
            "mean",
            [
                None,
                0.5,
                [0.5, 0.5],
                [0.5, 0.5, "0.5"],
                [0.5, 0.5, float("nan")],
                [0.5, 0.5, -1.0],
                torch.ones(3),
            ],
        ),
        ("std", [None, [0.0, 0.2, 0.2], [0.2, 0.2, float("inf")]]),
        ("image_size", [None, 0, -224, "224", 224.0, 10**9, True]),
        ("patch_size", [0, "480", 10**20]),
        ("stride", [-1, [240]]),
        ("epoch", ["3", -1, 2.5]),
        ("optimizer", [None, 3]),
        ("metrics", [[]]),
        ("args", [["--seed"]]),
    ],
)
def test_fields_that_cannot_be_right(tmp_path, key, values):
    for value in values:
        assert f"damaged: its {key} cannot be right for resnet18 with 3 outputs" in refusal(
            checkpoints.load_checkpoint, saved(tmp_path / "a.pth", tiny_checkpoint(**{key: value}))
        )


# --------------------------------------------------------------------------------------------------------------------- mutations


def test_mutated_checkpoints(tmp_path):
    """1,000 damaged files are read or refused in one line, in a process that may take 2 GB at most; 24 whole ResNet-18 among them."""
    for name, content in [("own", tiny_checkpoint()), ("model", published(tiny_model()))]:
        saved(tmp_path / f"{name}.zip", content)
        saved(tmp_path / f"{name}.legacy", content, _use_new_zipfile_serialization=False)
    saved(tmp_path / "large.zip", tiny_checkpoint(model=network(classes=3).state_dict()))
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["tried"] == 1000 and result["refused"] > 500 and result["read"] > 20
    assert result["slowest"] < 10 and result["peak"] < 1900


def mutate(content, rng):
    """Some bytes changed, taken out, put in, doubled, or all from somewhere on."""
    content = bytearray(content)
    at, length = rng.randrange(len(content)), rng.randrange(1, 30)
    kind = rng.randrange(6)
    if kind < 2:
        for _ in range(rng.choice((1, 1, 2, 9))):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif kind == 2:
        del content[at : at + length]
    elif kind == 3:
        content[at:at] = rng.randbytes(length)
    elif kind == 4:
        other = rng.randrange(len(content))
        content[at : at + length] = content[other : other + length]
    else:
        del content[at:]
    return bytes(content)


def with_pickle(path, pickled):
    """The archive with another pickle, under a checksum that is right: else no mutation of it would get past that."""
    buffer = BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            new.writestr(
                info.filename, pickled if info.filename.endswith("data.pkl") else old.read(info)
            )
    return buffer.getvalue()


def main(folder):
    """Read 1,000 mutations, and print how that went."""
    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2 * GIB,) * 2)
    files = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    result = {"tried": 0, "read": 0, "refused": 0, "slowest": 0.0}
    for seed in range(1000):
        rng = random.Random(seed)
        name = "large.zip" if seed % 42 == 0 else rng.choice(sorted(files.keys() - {"large.zip"}))
        if name.endswith("legacy"):  # the pickles before the storages, or any place
            end = rng.choice((files[name].rindex(b"q\x01X"), len(files[name])))
            content = mutate(files[name][:end], rng) + files[name][end:]
        elif rng.random() < 0.7 or name == "large.zip":
            with zipfile.ZipFile(folder / name) as archive:
                pickled = archive.read(
                    next(entry for entry in archive.namelist() if entry.endswith("data.pkl"))
                )
            content = with_pickle(folder / name, mutate(pickled, rng))
        else:
            content = mutate(files[name], rng)
        path = folder / "mutated.pth"
        path.write_bytes(content)
        signal.alarm(30)
        started = time.time()
        try:
            (checkpoints.load_checkpoint if name == "large.zip" else checkpoints.read_file)(path)
            result["read"] += 1
        except InputError as error:
            assert str(error).isprintable() and len(str(error)) < 500, (seed, str(error))
            result["refused"] += 1
        except BaseException:
            print(f"mutation {seed} of {name}", file=sys.stderr)
            raise
        result["slowest"] = max(result["slowest"], time.time() - started)
        result["tried"] += 1
    signal.alarm(0)
    print(json.dumps({**result, "peak": memory("VmHWM")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
