"""test_classification.py --cues: its files, what they rest on, and what it refuses."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SIZES, as_flags
from PIL import Image

import preprocessing
import test_classification
from dl_slicer.cli import InputError
from dl_slicer.model import checkpoints, evaluation, networks
from dl_slicer.patch_sets import reading
from dl_slicer.results import alterations, colour_alone, cues, paired_intervals, train_samples
from dl_slicer.results.cues import Measuring

CPU = torch.device("cpu")
OUTPUT = ("cues.csv", "cues.png", "cues.pdf", "controls.json", "colour_alone.csv")


def read_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def measure(finished, data, out, *flags):
    where = ["--checkpoint", finished / "best.pth", "--data", data, "--out", out]
    test_classification.main([str(flag) for flag in [*where, "--amp", "off", *flags]])


@pytest.fixture(scope="module")
def measured(data, finished, tmp_path_factory):
    out = tmp_path_factory.mktemp("cues") / "test"
    measure(finished, data, out, "--split", "test", "--cues")
    return out


def test_all_files_are_there_and_listed(measured):
    contents = json.loads((measured / "contents.json").read_text())
    listed = contents["commands"]["test_classification.py"]["files"]
    assert {*OUTPUT, "report.html"} <= {*listed, "report.html"}
    assert all((measured / name).stat().st_size > 0 for name in OUTPUT)
    rows = read_rows(measured / "cues.csv")
    assert [(row["cue"], row["altered"]) for row in rows[1:]] == list(alterations.LISTED)
    assert (rows[0]["altered"], rows[0]["difference"], rows[0]["low"]) == ("unaltered", "", "")
    assert {row["n_rasters"] for row in rows} == {"3"}
    halves = next(row for row in rows if row["altered"] == "halves")
    # Patches of 48 pixels are seen as 32, and 0.417 m is assumed.
    assert float(halves["metres"]) == pytest.approx(16 * 0.417 * 48 / 32)


def test_figures_are_those_of_the_patches(measured):
    predictions = read_rows(measured / "predictions.csv")
    right = np.array([row["true"] == row["predicted"] for row in predictions])
    rows = read_rows(measured / "cues.csv")
    controls = json.loads((measured / "controls.json").read_text())
    assert float(rows[0]["accuracy"]) == pytest.approx(right.mean()) == controls["accuracy"]
    for row in rows[1:]:
        for prefix in ("", "refitted_"):
            lost = float(row[f"{prefix}accuracy"]) - float(rows[0][f"{prefix}accuracy"])
            assert float(row[f"{prefix}difference"]) == pytest.approx(lost, abs=1e-9)
            assert float(row[f"{prefix}low"]) <= lost + 1e-9
            assert float(row[f"{prefix}high"]) >= lost - 1e-9
    by_colour = {row["patch"]: row["predicted"] for row in read_rows(measured / "colour_alone.csv")}
    right_by_colour = np.array([by_colour[row["patch"]] == row["true"] for row in predictions])
    colour = controls["colour_alone"]
    assert colour["accuracy"] == pytest.approx(right_by_colour.mean())
    cities = sorted({row["true"] for row in predictions})
    difference, interval = paired_intervals.paired_interval(
        np.array([cities.index(row["true"]) for row in predictions]),
        right,
        right_by_colour,
        [row["raster"] for row in predictions],
        len(cities),
    )
    assert colour["difference"] == pytest.approx(difference)
    assert colour["difference_interval"] == pytest.approx(interval)
    assert controls["exchanged"]["ways"] == 6
    assert controls["exchanged"]["chance"] == pytest.approx(1 / 3)


def test_the_report_tells_it(measured):
    words = (measured / "report.html").read_text(encoding="utf-8").replace("\u00a0", " ")
    assert "What does it go by?" in words
    assert "fitted anew for such" in words
    assert "colour alone" in words


def test_without_the_flag_there_is_none_of_it(measured, data, finished, tmp_path):
    """And a call without it into the same folder takes the files away."""
    again = tmp_path / "again"
    shutil.copytree(measured, again)
    measure(finished, data, again, "--split", "test")
    assert not any((again / name).exists() for name in OUTPUT)
    assert "What does it go by?" not in (again / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def work(data, finished):
    model, checkpoint = checkpoints.load_checkpoint(finished / "best.pth")
    measured = reading.open_split(data, "test")
    train = reading.open_split(data, "train")
    setup = evaluation.Setup(CPU, torch.float32, checkpoint.mean, checkpoint.std)
    return Measuring(model, measured, train, setup, 3)


def test_an_alteration_that_changes_nothing_changes_nothing(work):
    """All the way through the network, and through the layer fitted anew."""
    answers = evaluation.evaluate(work.model, work.measured, work.setup)
    sample = train_samples.draw(work.train, 90)
    same = alterations.Alteration("same", lambda images: images)
    found = cues.measure_altered(work, sample, same)
    assert (found.shown == answers.logits.argmax(1).numpy()).mean() > 0.99
    plain = cues.altered_features(work, sample, None)
    torch.testing.assert_close(
        cues.altered_features(work, sample, same), plain, atol=1e-3, rtol=1e-3
    )
    whole = evaluation.evaluate(work.model, work.train, work.setup).features
    torch.testing.assert_close(plain, whole[sample.rows], atol=1e-4, rtol=1e-4)


def test_patches_are_altered_before_they_are_normalised(work):
    images = torch.from_numpy(work.measured.read([0, 1]))
    invert = alterations.Alteration("invert", lambda colours: 1 - colours)
    found = cues.prepare(images, invert, None, slice(0, 2), work.setup)
    mean, std = (torch.tensor(each) for each in (work.setup.mean, work.setup.std))
    expected = ((1 - images / 255) - mean) / std
    torch.testing.assert_close(found.permute(0, 2, 3, 1), expected)


def test_samples_keep_the_time_bounded(work):
    # 108 measured patches of 3 cities: the least of 30 and 200 a city.
    assert cues.sample_size(work.measured) == 90
    assert cues.colour_sample_size(work.measured) == 600
    assert len(train_samples.draw(work.train, 90).rows) == 90


def test_two_processes_find_what_one_does(measured, data, finished, tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
        "test_classification.py", "--checkpoint", finished / "best.pth", "--data", data,
        "--split", "test", "--cues", "--amp", "off", "--out", tmp_path / "two",
    ]  # fmt: skip
    subprocess.run([str(each) for each in command], cwd=ROOT, check=True, capture_output=True)
    for name in ("cues.csv", "controls.json", "colour_alone.csv"):
        assert (tmp_path / "two" / name).read_bytes() == (measured / name).read_bytes()


def test_a_set_without_train_patches_is_refused_in_one_line(data, finished, tmp_path):
    lacking = tmp_path / "lacking"
    shutil.copytree(data, lacking)
    with open(lacking / "regions.csv", newline="", encoding="utf-8") as lines:
        text = [line for line in lines if ",train," not in line]
    (lacking / "regions.csv").write_text("".join(text), encoding="utf-8")
    with pytest.raises(
        InputError, match="--cues: .*train patches of --data.*not to be had"
    ) as told:
        measure(finished, lacking, tmp_path / "out", "--split", "test", "--cues")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


def test_train_patches_of_other_cities_are_refused_in_one_line(data):
    classes = reading.open_split(data, "train").classes
    with pytest.raises(InputError, match="--cues: .*of other cities") as told:
        cues.open_train(data, 32, classes[:1])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("other", [["--tta"], ["--images", "a.jpg"]], ids=lambda flags: flags[0])
def test_it_is_for_the_patches_of_a_split_as_they_are(other):
    with pytest.raises(InputError, match=f"--cues: .*without {other[0]}"):
        test_classification.read_flags(["--checkpoint", "x", "--cues", *other])


@pytest.fixture(scope="module")
def tinted(tmp_path_factory):
    """A patch set of three cities that differ in colours of one brightness, and in nothing else."""
    root = tmp_path_factory.mktemp("tinted")
    rng = np.random.default_rng(0)
    tints = ((30, -15, 0), (-30, 15, 0), (0, 12, -62))  # of luma 0, within 0.2
    for city, tint in zip(("Aa (AAA)", "Bb (BBB)", "Cc (CCC)"), tints, strict=True):
        for site in ("one", "two", "three"):
            pixels = 125 + rng.normal(0, 30, (150, 150, 1)) + np.array(tint)
            folder = root / "raw" / city / site
            folder.mkdir(parents=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "2020.png")
    folders = {"--raw": root / "raw", "--out": root / "patches"}
    preprocessing.main(as_flags({**folders, **SIZES, "--image-size": 32}))
    return root / "patches"


def test_where_cities_differ_in_colour_alone_the_controls_tell(tinted):
    """Fitted anew without colour even a network of random weights falls to chance, else it tells.

    And colour alone knows all that there is to know.
    """
    torch.manual_seed(0)
    model = networks.new_network("resnet18", 3)
    test, train = (reading.open_split(tinted, split) for split in ("test", "train"))
    setup = evaluation.Setup(CPU)
    work = Measuring(model, test, train, setup, 3)
    sample = train_samples.draw(train, 90)
    known = {each.name: each for each in alterations.all_alterations((0.5,) * 3, (0.1,) * 3)}
    right = {
        name: (cues.measure_altered(work, sample, known[name]).refitted == test.labels).mean()
        for name in ("grey", "halves", "pixels")
    }
    assert right["grey"] < 0.6
    assert right["halves"] > 0.95 and right["pixels"] > 0.95
    colours = cues.find_colours(train, setup, sample.rows)
    by_colour = colour_alone.fit(colours, sample).classify(cues.find_colours(test, setup))
    assert (by_colour == test.labels).mean() > 0.95
