"""test_classification.py: what it writes, and what it refuses."""

import csv
import json
import runpy
import shutil
import sys

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT, SIZES, as_flags, files
from PIL import Image
from torchvision.transforms import functional
from training_runs import load

import preprocessing
import relevance_cam.__main__
import test_classification
from dl_slicer.cli import InputError
from dl_slicer.files import hold
from dl_slicer.model import evaluation
from dl_slicer.patch_sets import on_disk, reading
from dl_slicer.report import page
from dl_slicer.results import portraits, result_folder


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
    logits = model.eval()(torch.stack(images)).detach()
    probabilities = (logits / checkpoint["temperature"]).softmax(1)
    rows = read_rows(tmp_path / "predictions.csv")
    predicted = [checkpoint["classes"][number] for number in probabilities.argmax(1)]
    assert predicted == [row["predicted"] for row in rows]
    written = [float(row["probability"]) for row in rows]
    np.testing.assert_allclose(probabilities.amax(1), written, atol=1e-5)


def test_logits_of_both_halves_of_the_held_out_sites(data, finished, tmp_path):
    measure(finished / "last.pth", data, "--split", "held-out", "--logits", "--out", tmp_path)
    logits = np.load(tmp_path / "logits.npy")
    assert (logits.dtype, logits.shape) == (np.float32, (216, 3))
    rows = read_rows(tmp_path / "predictions.csv")
    classes = load(finished / "last.pth")["classes"]
    assert [row["predicted"] for row in rows] == [classes[best] for best in logits.argmax(1)]
    assert {row["raster"].split("/")[1] for row in rows} == {"site2"}
    assert "<b>Both halves of the held-out sites.</b>" in (tmp_path / "report.html").read_text()
    measure(finished / "last.pth", data, "--split", "test", "--out", tmp_path)
    assert not (tmp_path / "logits.npy").exists()


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


# Several calls into one folder


def listed(out, command="test_classification.py"):
    contents = json.loads((out / "contents.json").read_text())
    return set(contents["commands"][command]["files"])


def test_the_results_of_another_split_replace_those_of_before(data, finished, tmp_path):
    out = tmp_path / "out"
    measure(finished / "best.pth", data, "--split", "test", "--out", out)
    first = files(out)
    assert listed(out) == {name for name in first if name != "contents.json"}
    (out / "portraits" / "mine.jpg").write_text("mine")
    (out / "portraits" / "tiles" / "Aa (AAA)_99.jpg").write_text("of a call before")
    contents = json.loads((out / "contents.json").read_text())
    contents["commands"]["test_classification.py"]["files"].append(
        "portraits/tiles/Aa (AAA)_99.jpg"
    )
    (out / "contents.json").write_text(json.dumps(contents))
    measure(finished / "best.pth", data, "--split", "test_b", "--out", out)
    assert json.loads((out / "metrics.json").read_text())["split"] == "test_b"
    assert set(files(out)) == {*listed(out), "contents.json", "portraits/mine.jpg"}
    flags = json.loads((out / "contents.json").read_text())["commands"]["test_classification.py"]
    assert flags["flags"]["split"] == "test_b"


def test_a_test_that_is_killed_leaves_the_results_of_before(data, finished, tmp_path, monkeypatch):
    measure(finished / "best.pth", data, "--split", "test", "--out", tmp_path)
    before = files(tmp_path)

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(portraits, "write_portraits", killed)
    with pytest.raises(KeyboardInterrupt):
        measure(finished / "best.pth", data, "--split", "test_b", "--out", tmp_path)
    assert files(tmp_path) == before
    # While files take their places there are no whole results, and the report says so.
    monkeypatch.undo()
    monkeypatch.setattr(result_folder, "_move", killed)
    with pytest.raises(KeyboardInterrupt):
        measure(finished / "best.pth", data, "--split", "test_b", "--out", tmp_path)
    with pytest.raises(InputError, match=r"metrics\.json: no whole results .*run it again"):
        page.write_report(tmp_path)


def test_results_are_kept_where_the_report_cannot_be_made(data, finished, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "best.pth").write_bytes((finished / "best.pth").read_bytes())
    (run / "config.json").write_text("[")
    with pytest.raises(InputError, match=r"config\.json: damaged"):
        measure(run / "best.pth", data)
    assert json.loads((run / "test_b" / "metrics.json").read_text())["n"] == 60
    assert not (run / "test_b" / "report.html").exists()
    # The report that is made of these results later goes with them.
    (run / "config.json").unlink()
    page.write_report(run / "test_b")
    (run / "config.json").write_text("[")
    with pytest.raises(InputError, match=r"config\.json: damaged"):
        measure(run / "best.pth", data)
    assert not (run / "test_b" / "report.html").exists()


def test_a_second_test_into_one_folder_is_refused(data, finished, tmp_path):
    with hold(tmp_path), pytest.raises(InputError, match=r"process \d+ on .* writes into this"):
        measure(finished / "best.pth", data, "--out", tmp_path)
    assert not files(tmp_path)


def test_an_interrupted_test_says_that_it_starts_anew(
    data, finished, tmp_path, monkeypatch, capsys
):
    def interrupted(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "evaluate", interrupted)
    flags = ["--checkpoint", finished / "best.pth", "--data", data, "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["test_classification.py", *map(str, flags)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "test_classification.py"), run_name="__main__")
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.endswith("interrupted; nothing is kept, the same command starts anew\n")
    assert not (tmp_path / "out").exists()


# Patches of other sizes than in training


def set_of(data, out, **sizes):
    values = {"--raw": data.parent / "raw", "--out": out, **SIZES, "--image-size": 32}
    values |= {f"--{name.replace('_', '-')}": value for name, value in sizes.items()}
    preprocessing.main(as_flags(values))
    return out


def test_patches_of_another_size_are_refused(data, finished, tmp_path):
    other = set_of(data, tmp_path / "other", patch_size=96, stride=48)
    said = r"other: its patches are 96 pixels .*best\.pth was trained on 48.*--patch-size 48"
    with pytest.raises(InputError, match=said):
        measure(finished / "best.pth", other, "--out", tmp_path / "out")
    flags = ["--checkpoint", finished / "best.pth", "--data", other, "--out", tmp_path / "out"]
    with pytest.raises(InputError, match=said):
        relevance_cam.__main__.main([str(flag) for flag in flags])
    assert not (tmp_path / "out").exists()


def test_another_stride_is_stated(data, finished, tmp_path, capsys):
    dense = set_of(data, tmp_path / "dense", stride=12)
    measure(finished / "best.pth", dense, "--out", tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [metrics[key] for key in ("patch_size", "stride", "trained_stride")] == [48, 12, 24]
    assert "dense: a patch every 12 pixels, in training every 24" in capsys.readouterr().out
    report = (tmp_path / "out" / "report.html").read_text().replace("\u00a0", " ")
    assert "48 × 48 pixels every 24, seen at 32 × 32" in report
    assert "48 × 48 pixels every 12, seen at 32 × 32 (in training every 24)" in report
    assert "486 patches of 3 cities" in report  # those of the training's set


# What follows tests the flags alone.


@pytest.mark.parametrize(
    "flags, said",
    [
        ([], "--checkpoint"),
        (["--checkpoint", "x", "--workers", "-1"], "'-1': must be a whole number at least 0"),
        (["--checkpoint", "x", "--amp", "fp8"], "--amp: invalid choice: 'fp8'"),
        (["--checkpoint", "x", "--tta", "--images", "a.jpg"], "--tta: .* not for --images"),
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


def test_an_overlap_that_was_allowed_is_said_with_every_result(data, finished, tmp_path, capsys):
    """In metrics.json, where the results are printed, and in the report."""
    leaking = tmp_path / "patches"
    shutil.copytree(data, leaking)
    regions = on_disk.load_regions(data)
    (leaking / "regions.csv").write_text(on_disk.text_of_regions(regions, 2))
    description = json.loads((data / "dataset.json").read_text())
    description |= {"format": 2, "allow_overlap": True, "max_nodata": 0.05}
    description |= dict.fromkeys(("ground_resolution", "bands", "stretch", "crs"))
    description["held_out_distance"] = {"Aa (AAA)": 0.0, "Bb (BBB)": 1234.5}
    (leaking / "dataset.json").write_text(json.dumps(description))
    measure(finished / "best.pth", leaking, "--split", "test_b", "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["allow_overlap"] is True
    assert "not kept apart" in capsys.readouterr().out
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Not kept apart." in report
    assert "AAA 0 m from the nearest train raster, BBB 1,234 m, 617 m in the middle" in report
    measure(finished / "best.pth", data, "--split", "test_b", "--out", tmp_path / "apart")
    assert "allow_overlap" not in (tmp_path / "apart" / "metrics.json").read_text()
    report = (tmp_path / "apart" / "report.html").read_text(encoding="utf-8")
    assert "Not kept apart." not in report and "Held-out sites" not in report
