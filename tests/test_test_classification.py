"""test_classification.py: what it writes, and what it refuses."""

import csv
import json

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms import functional
from training_runs import load

import test_classification
from dl_slicer.cli import InputError
from dl_slicer.patch_sets import reading


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def measure(checkpoint, data, *flags):
    flags = ("--checkpoint", checkpoint, "--data", data, *flags)
    test_classification.main([str(flag) for flag in flags])


def test_results_of_a_test(data, finished):
    measure(finished / "best.pth", data, "--split", "test")
    out = finished / "test"
    rows = read_rows(out / "predictions.csv")
    metrics = json.loads((out / "metrics.json").read_text())
    assert len(rows) == metrics["n"] == 108
    assert len({row["patch"] for row in rows}) == 108
    is_right = [row["true"] == row["predicted"] for row in rows]
    assert metrics["accuracy"] == pytest.approx(np.mean(is_right))
    assert metrics["top5_accuracy"] == 1  # of three cities
    with open(out / "confusion_matrix.csv", newline="") as file:
        matrix = np.array([row[1:] for row in list(csv.reader(file))[1:]], int)
    assert matrix.sum(1).tolist() == [36, 36, 36]
    assert np.trace(matrix) == round(metrics["accuracy"] * 108)
    recalls = [float(row["recall"]) for row in read_rows(out / "per_city.csv")]
    assert recalls == pytest.approx((np.diag(matrix) / 36).tolist())
    for name in ("confusion_matrix", "confusion_matrix_percent"):
        assert Image.open(out / f"{name}.png").size[0] > 400
        assert (out / f"{name}.pdf").read_bytes()[:4] == b"%PDF"


def test_probabilities_are_those_of_the_plain_model(data, finished, tmp_path):
    measure(finished / "best.pth", data, "--split", "test_b", "--amp", "off", "--out", tmp_path)
    checkpoint = load(finished / "best.pth")
    model = torchvision.models.resnet18(num_classes=3)
    model.load_state_dict(checkpoint["model"])
    patch_set = reading.open_split(data, "test_b")
    images = [
        functional.normalize(
            functional.to_tensor(Image.fromarray(patch)), checkpoint["mean"], checkpoint["std"]
        )
        for patch in patch_set.read(np.arange(len(patch_set)))
    ]
    probabilities = model.eval()(torch.stack(images)).softmax(1).detach()
    rows = read_rows(tmp_path / "predictions.csv")
    predicted = [checkpoint["classes"][number] for number in probabilities.argmax(1)]
    assert predicted == [row["predicted"] for row in rows]
    written = [float(row["probability"]) for row in rows]
    np.testing.assert_allclose(probabilities.amax(1), written, atol=1e-5)


def test_wrong_input_of_testing(data, finished, tmp_path):
    for flags, said in [
        (["--checkpoint", "no.pth"], "no such file"),
        (["--checkpoint", str(data / "dataset.json")], "no checkpoint"),
        (["--checkpoint", str(finished / "best.pth"), "--data", "tests"], "no patch set"),
        (["--split", "all"], "invalid choice"),
    ]:
        with pytest.raises(InputError, match=said):
            measure(finished / "best.pth", data, *flags, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_classes_are_refused_by_name(data, finished, tmp_path):
    folder = tmp_path / "jpegs" / "test"
    for city in ("Aa (AAA)", "Xx (XXX)"):
        (folder / city).mkdir(parents=True)
        Image.new("RGB", (48, 48)).save(folder / city / "a.jpg")
    said = r"only in the data: Xx \(XXX\); only in the checkpoint: Bb \(BBB\), Cc \(CCC\)"
    with pytest.raises(InputError, match=said):
        measure(finished / "best.pth", tmp_path / "jpegs", "--split", "test")


# What follows tests the flags alone.


@pytest.mark.parametrize(
    "flags, said",
    [
        ([], "--checkpoint"),
        (["--checkpoint", "x", "--workers", "-1"], "'-1': must be a whole number at least 0"),
        (["--checkpoint", "x", "--amp", "fp8"], "--amp: invalid choice: 'fp8'"),
    ],
)
def test_a_wrong_flag_is_named(flags, said):
    with pytest.raises(InputError, match=said):
        test_classification.read_flags(flags)


def test_help_has_groups(capsys):
    with pytest.raises(SystemExit):
        test_classification.read_flags(["--help"])
    said = capsys.readouterr().out
    headings = [line for line in said.splitlines() if line in HEADINGS]
    assert headings == HEADINGS


HEADINGS = ["model:", "data:", "machine:", "results:"]


@pytest.mark.parametrize(
    "flags, folder",
    [
        ([], "runs/one/test_b"),
        (["--split", "val"], "runs/one/val"),
        (["--tta"], "runs/one/test_b_tta"),
        (["--images", "a.jpg"], "runs/one/places"),
        (["--out", "elsewhere", "--tta"], "elsewhere"),
    ],
)
def test_where_results_go(flags, folder):
    args = test_classification.read_flags(["--checkpoint", "runs/one/best.pth", *flags])
    assert test_classification.output_folder(args).as_posix() == folder
