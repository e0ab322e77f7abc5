"""Checkpoints in and out, the weights that a run begins with, and other people's files."""

import hashlib
import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from torchvision.models import Weights, WeightsEnum
from weight_files import (
    equal,
    network,
    published,
    refusal,
    saved,
    tiny_checkpoint,
    tiny_model,
    tiny_state,
)

import test_classification
from dl_slicer.cli import InputError
from dl_slicer.model import checkpoints
from dl_slicer.patch_sets.on_disk import AS_THEY_ARE
from dl_slicer.patch_sets.rasters import View

PUBLISHED = ("resnet18", "resnet34", "resnet50", "resnet101")


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


@pytest.fixture
def on_cuda(monkeypatch):
    """Files are written as from tensors on a GPU."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")


@pytest.fixture(scope="module")
def resnet18():
    return network()


# ------------------------------------------------------------------------------ checkpoints of ours


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


@pytest.mark.parametrize(
    "name", ["../../../X", "/elsewhere/X", "..", ".", "", "a\nb", "a\x1b[31m", "x" * 201]
)
def test_a_class_that_no_folder_can_be_called_is_refused(tmp_path, name):
    """Results are written into folders of these names."""
    for content in (
        tiny_checkpoint(classes=["Aa (AAA)", "Bb", name]),
        {"model": tiny_state(), "classes": ["Aa (AAA)", "Bb", name]},
    ):
        said = refusal(checkpoints.read_file, saved(tmp_path / "best.pth", content))
        assert "best.pth: class " in said


def test_classes_in_another_order_are_said_to_be_so():
    data = types.SimpleNamespace(classes=["Aa (AAA)", "Cc", "Bb"])
    with pytest.raises(
        InputError,
        match="data has the classes of own.pth in another order:"
        " number 1 is Cc in the data, Bb in the checkpoint",
    ):
        checkpoints.check_classes(data, ["Aa (AAA)", "Bb", "Cc"], "data", "own.pth")


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
        ("ground_resolution", [0, -1.0, "0.4", True, float("nan"), float("inf"), [0.4]]),
        ("metres_a_pixel", [0.0, "0.4", float("nan")]),
        ("bands", [[], [1, 2], ["1"], [0], 3, (1, 2, 3), "4 1 2"]),
        ("stretch", ["none", [0], [9, 3], [0, float("inf")], (0, 255), 7]),
        ("max_nodata", [None, -0.1, 1.1, "0.05", True]),
        ("temperature", [0.0, 1, "1", -2.0, 0.001, 50.0, float("nan"), True]),
        ("familiarity", [3, {}, [torch.zeros(3, 512)], {"means": torch.zeros(3, 512)}]),
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


# ---------------------------------------------------------------------------- how rasters were seen


def check_sizes(seen=None, size=480, metres=None, view=AS_THEY_ARE, **trained):
    """checkpoints.check_sizes of a patch set and a checkpoint that say this; seen: a stretch."""
    patch_set = types.SimpleNamespace(
        patch_size=size,
        stride=240,
        metres_a_pixel=metres,
        view=view and replace(view, stretch=seen),
    )
    checkpoint = checkpoints.Checkpoint({}, None, patch_size=480, stride=240)
    checkpoints.check_sizes(patch_set, replace(checkpoint, **trained), "set", "best.pth")


@pytest.mark.parametrize(
    "fits",
    [
        {},
        {"view": None, "bands": [4, 1, 2], "stretch": "auto"},  # a folder of JPEGs
        {"metres": 0.417},  # of training nothing is known
        {"metres_a_pixel": 0.417, "ground_resolution": 0.417},
        {"metres": 0.417, "metres_a_pixel": 0.42},
        {"metres": 0.3, "size": 667, "metres_a_pixel": 0.417},  # as wide on the ground
        {"bands": [1, 2, 3]},  # those that are read anyway
        {"view": View(bands=(4, 1, 2)), "bands": [4, 1, 2]},
    ],
)
def test_patches_that_show_as_much_of_the_world_fit(fits, capsys):
    check_sizes(**fits)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "differs, said",
    [
        ({"size": 333}, "are 333 pixels of the raster wide, best.pth was trained on 480;"),
        (
            {"metres": 0.6, "metres_a_pixel": 0.417},
            "set: its patches are 288 m wide, best.pth was trained on 200.2 m; make a set with"
            " preprocessing.py --patch-size 480 --ground-resolution 0.417",
        ),
        ({"metres": 0.3, "metres_a_pixel": 0.417}, "are 144 m wide"),
        ({"size": 667, "metres": 0.417, "metres_a_pixel": 0.417}, "are 278.1 m wide"),
        (
            {"view": View(bands=(4, 1, 2))},
            "are made of bands 4 1 2, best.pth was trained on 1 2 3; make a set with"
            " preprocessing.py --bands 1 2 3",
        ),
        ({"bands": [1]}, "made of bands 1 2 3, best.pth was trained on 1; "),
    ],
)
def test_patches_that_show_another_world_are_refused(differs, said):
    with pytest.raises(InputError) as caught:
        check_sizes(**differs)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


def test_another_stretch_is_said(capsys):
    """It may suit other rasters, of other bits."""
    check_sizes(seen=(0, 2047))
    check_sizes(stretch="auto")
    check_sizes(seen=(0, 255), stretch=[0, 255])
    assert capsys.readouterr().out.splitlines() == [
        "set: its values became grey levels by --stretch 0 2047, in training as they are",
        "set: its values became grey levels as they are, in training by --stretch auto",
    ]


# ---------------------------------------------------------------------------------------- --weights


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
        equal(
            checkpoints.initial_network("resnet18", 5, str(path)).state_dict(),
            resnet18.state_dict(),
        )
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
            checkpoints.initial_network("resnet18", 5, "imagenet").state_dict(),
            resnet18.state_dict(),
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


# ----------------------------------------------------------------------------- other people's files


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
    assert torch.allclose(predict(loaded), predict(model), rtol=1e-4, atol=1e-4)


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
    assert torch.allclose(predict(loaded), predict(resnet18), rtol=1e-4, atol=1e-4)


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
    assert torch.allclose(predict(loaded), expected, rtol=1e-4, atol=1e-4)


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


def test_other_classes_of_a_listed_name_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "evil", types.ModuleType("evil"))
    sys.modules["evil"].Conv2d = type("Conv2d", (torch.nn.Conv2d,), {"__module__": "evil"})
    model = torchvision.models.resnet18()
    model.conv1 = sys.modules["evil"].Conv2d(3, 64, 7, 2, 3, bias=False)
    assert "it asks for evil.Conv2d" in refusal(
        checkpoints.read_file, saved(tmp_path / "model.pth", model)
    )


def test_a_folder_is_answered_by_the_file_in_it(tmp_path):
    for name in ("epoch_9.pth", "last.pth", "best.pth"):
        (tmp_path / name).touch()
        with pytest.raises(InputError) as error:
            checkpoints.read_file(tmp_path)
        assert str(error.value) == f"{tmp_path}: a folder; give a file in it, as {tmp_path / name}"
