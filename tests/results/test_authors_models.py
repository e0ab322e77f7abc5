"""The authors' networks, known by what files hold."""

import pytest
import torch
import torchvision

from dl_slicer.cli import InputError
from dl_slicer.results.authors_models import list_authors_models


def write(path, arch, classes=45, more=()):
    """A file with the names of a network's tensors and next to nothing in them."""
    with torch.device("meta"):
        names = torchvision.models.get_model(arch).state_dict()
    features = 2048 if "layer1.0.conv3.weight" in names else 512
    state = {name: torch.zeros(1) for name in names}
    state |= {"fc.weight": torch.zeros(classes, features), "fc.bias": torch.zeros(classes)}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": state, **dict(more)}, path)


OURS = {
    "arch": "resnet18",
    "classes": [f"City {i:02d}" for i in range(45)],
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "image_size": 224,
    "patch_size": 480,
    "stride": 240,
    "epoch": 3,
}


def test_one_file_an_architecture_is_chosen_by_content_and_by_what_calls_it_best(tmp_path, capsys):
    write(tmp_path / "resnet101" / "last.pth", "resnet18")  # its folder is wrong
    write(tmp_path / "resnet101" / "best.pth", "resnet18")
    write(tmp_path / "b" / "model_34.bin", "resnet34")
    write(tmp_path / "a" / "34-last.pt", "resnet34")
    write(tmp_path / "last" / "1.pth", "resnet50")
    write(tmp_path / "best" / "2.pth", "resnet50")
    write(tmp_path / "z.pth", "resnet101")
    write(tmp_path / "y.pth", "resnet101")
    write(tmp_path / "ours" / "best.pth", "resnet18", more=OURS)
    write(tmp_path / "imagenet.pth", "resnet152", classes=1000)
    (tmp_path / "vit.pth").write_bytes(b"PK nothing")
    (tmp_path / "README.md").write_text("hello")
    found = list_authors_models(tmp_path, classes=45)
    chosen = [(model.arch, str(model.checkpoint.relative_to(tmp_path))) for model in found]
    assert chosen == [
        ("resnet18", "resnet101/best.pth"),
        ("resnet34", "b/model_34.bin"),
        ("resnet50", "best/2.pth"),
        ("resnet101", "y.pth"),
    ]
    said = capsys.readouterr().out
    assert "best.pth: resnet18 of the authors, the one of 2 that is called the best" in said
    assert "34.bin: resnet34 of the authors, the one of 2 that is not called the last" in said
    assert "2.pth: resnet50 of the authors, the one of 2 that is called the best" in said
    assert "y.pth: resnet101 of the authors, the first of 2 by name: which is" in said
    assert "ours/best.pth: not measured: made by train_classification.py" in said
    assert "imagenet.pth: not measured: it tells 1000 classes apart, there are 45 cities" in said
    assert "vit.pth: not measured: " in said
    assert "README" not in said


def test_without_a_number_of_classes_any_number_is_theirs(tmp_path, capsys):
    write(tmp_path / "last.pth", "resnet18", classes=3)
    assert list_authors_models(tmp_path) == [("resnet18", tmp_path / "last.pth")]
    assert "the only one of its architecture" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no such folder; fetch the authors' models with"):
        list_authors_models(tmp_path / "nowhere")
