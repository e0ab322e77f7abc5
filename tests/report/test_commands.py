"""The command lines that make a run again."""

import dataclasses
import json
import shlex

import pytest
from made_up_results import made_up

from dl_slicer.report import sections
from dl_slicer.report.commands import commands
from dl_slicer.report.records import PatchSet
from dl_slicer.report.result_files import read_results


@pytest.fixture
def run(tmp_path):
    made_up(tmp_path / "test_b", ["Aa", "Bb"], pictures=False)
    return tmp_path


def lines(folder, **changes):
    """The commands, with other settings of the training."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return [" ".join(words) for words in commands(read_results(folder / "test_b"))]


def test_the_flags_that_were_given(run):
    given = ["--data", "my patches", "--out", "x", "--lr", "0.0003", "--no-flips"]
    training, test, saliency = lines(run, given=given)
    assert training == (
        "python train_classification.py --data 'my patches' --out x --lr 0.0003 --no-flips"
    )
    assert test.startswith("python test_classification.py --checkpoint ")
    assert saliency.startswith("python -m relevance_cam --checkpoint ")
    measured_on = "--data 'data/<patches> & more' --split test_b"
    assert test.endswith(measured_on)
    assert saliency.endswith(measured_on)


def test_no_flag_was_given(run):
    assert lines(run, given=[])[0] == "python train_classification.py"


def test_all_settings_of_a_run_of_before(run):
    training = lines(run, seed=0, balanced=True, save_every=None, threads=2, processes=1)[0]
    assert training == (
        "python train_classification.py --data x --out 'r </script> é' --arch resnet50"
        " --weights none --epochs 3 --batch-size 8 --lr 0.001 --no-flips --recipe robust --compile"
        " --seed 0 --balanced"
    )


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({"run": "robust"}, "--out checkpoints/robust"),
        ({"run": "runs/robust"}, "--out runs/robust"),
        ({"out": "runs/robust"}, "--out runs/robust"),
    ],
)
def test_where_a_run_of_before_was_written(run, settings, flags):
    (run / "config.json").write_text("{}")
    assert lines(run, **settings)[0] == f"python train_classification.py {flags}"


def test_a_run_of_before_in_the_folder_of_its_architecture(run):
    assert "--out" not in lines(run, run=None)[0]


def test_the_patch_set(run):
    results = read_results(run / "test_b")
    patch_set = PatchSet("../raw", 480, 240, 224, test_b=500, seed=3, cities=2, train=1, val=1)
    words = commands(dataclasses.replace(results, patch_set=patch_set))[0]
    out = shlex.quote("data/<patches> & more")
    assert " ".join(words) == (
        f"python preprocessing.py --raw data/raw --out {out} --patch-size 480 --stride 240"
        " --image-size 224 --test-b 500 --seed 3"
    )


def test_flips_and_turns_at_the_test(run):
    results = read_results(run / "test_b")
    metrics = dataclasses.replace(results.metrics, tta=True)
    *_, test, saliency = commands(dataclasses.replace(results, metrics=metrics))
    assert test[-1] == "--tta"
    assert "--tta" not in saliency


def test_training_and_test_on_two_sets(run):
    """Each is made as it was used, whatever has been made at its place since."""
    results = read_results(run / "test_b")
    trained_on = PatchSet("../raw", 480, 480, 224, test_b=500, seed=3, cities=2, train=1, val=1)
    patch_set = PatchSet("raw", 480, 240, 224, test_b=9, seed=4, cities=2, train=1, val=1)
    metrics = dataclasses.replace(results.metrics, data="dense/", stride=120)
    results = dataclasses.replace(
        results, metrics=metrics, patch_set=patch_set, training_set=trained_on
    )
    first, second, training, *_ = (" ".join(words) for words in commands(results))
    assert first == (
        "python preprocessing.py --raw raw --out x --patch-size 480 --stride 240"
        " --image-size 224 --test-b 500 --seed 3"
    )
    assert second == (
        "python preprocessing.py --raw dense/raw --out dense --patch-size 480 --stride 120"
        " --image-size 224 --test-b 9 --seed 4"
    )
    assert training.startswith("python train_classification.py --data x ")


def test_one_set_for_both_is_made_once(run):
    results = read_results(run / "test_b")
    patch_set = PatchSet("../raw", 480, 240, 224, test_b=500, seed=3, cities=2, train=1, val=1)
    metrics = dataclasses.replace(results.metrics, data="./x/")
    results = dataclasses.replace(
        results, metrics=metrics, patch_set=patch_set, training_set=patch_set
    )
    assert [words[1] for words in commands(results)[:2]] == [
        "preprocessing.py",
        "train_classification.py",
    ]


@pytest.mark.parametrize(
    ("view", "flags"),
    [
        ({}, ""),
        ({"ground_resolution": None, "bands": None, "max_nodata": 0.05}, ""),
        (
            {"ground_resolution": 0.41666, "bands": [4, 1, 2], "stretch": "auto"},
            "--ground-resolution 0.41666 --bands 4 1 2 --stretch auto",
        ),
        (
            {"stretch": [0.0, 65535.0], "crs": "EPSG:26911", "max_nodata": 0.2},
            "--stretch 0 65535 --crs EPSG:26911 --max-nodata 0.2",
        ),
        (
            {"sites": 3, "mosaic": True, "allow_overlap": True, "bands": [1, 2, 3]},
            "--sites 3 --mosaic --allow-overlap --bands 1 2 3",
        ),
        ({"sites": None, "mosaic": False, "allow_overlap": False}, ""),
        ({"held_out": 2, "val": "site"}, "--held-out 2 --val site"),
        ({"held_out": 1, "val": "half"}, ""),
    ],
)
def test_how_the_rasters_of_a_set_were_seen(run, view, flags):
    data = run / "patches"
    data.mkdir()
    counts = {split: {"Aa": 1, "Bb": 1} for split in ("train", "val", "test", "test_b")}
    sizes = {"patch_size": 480, "stride": 240, "image_size": 224}
    content = {"raw": "../raw", **sizes, "classes": ["Aa", "Bb"], "counts": counts, **view}
    (data / "dataset.json").write_text(json.dumps(content))
    found = json.loads((run / "test_b" / "metrics.json").read_text()) | {"data": str(data)}
    (run / "test_b" / "metrics.json").write_text(json.dumps(found))
    (preprocessing,) = (line for line in lines(run) if "preprocessing.py" in line)
    assert (
        preprocessing
        == (
            f"python preprocessing.py --raw {run}/raw --out {data} --patch-size 480 --stride 240"
            f" --image-size 224 {flags}"
        ).rstrip()
    )


def test_what_is_held_out_is_a_fact_of_the_training(run):
    results = read_results(run / "test_b")
    others = {
        "held_out": {"held_out": 2, "val_from": "site"},
        "train_sites": {"train_sites": 1},
    }
    said = {}
    for name, values in others.items():
        patch_set = PatchSet("../raw", 480, 240, 224, 500, 3, 2, 1, 1, **values)
        changed = dataclasses.replace(results, patch_set=patch_set, training_set=patch_set)
        said[name] = dict(sections.training(changed).facts)
    assert said["held_out"]["Held out"] == (
        "of each city site number 2, counted from the last: the whole of it is test, another site"
        " val, in cities of three sites or more"
    )
    assert "Train sites" not in said["held_out"]
    assert said["train_sites"]["Train sites"].startswith("at most 1 of each city")
    assert "Held out" not in said["train_sites"]
