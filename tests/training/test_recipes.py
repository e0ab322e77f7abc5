"""The recipes: what they set, and runs by the robust one that go on to the same bits."""

import csv
import shutil

import pytest
import torch
from conftest import flags
from training_runs import assert_same, load

import train_classification
from benchmarks import recipes as benchmark
from dl_slicer.cli import InputError
from dl_slicer.model import checkpoints
from dl_slicer.training import signals

# ----------------------------------------------------------------------------- what a recipe is


def test_published_is_the_default_and_a_flag_of_its_own_wins():
    published = train_classification.read_flags([])
    assert published.optimizer == "adam"
    assert published.lr == 1e-3
    assert published.weight_decay == 0
    assert published.flips is True
    assert not any((published.average, published.turns, published.light, published.label_smoothing))
    assert published.schedule == "constant"
    argv = ["--recipe", "robust", "--lr", "5e-4", "--no-turns", "--average", "0"]
    mixed = train_classification.read_flags(argv)
    assert mixed.optimizer == "adamw"
    assert mixed.lr == 5e-4
    assert mixed.turns is False
    assert mixed.average == 0
    assert mixed.schedule == "cosine"


@pytest.mark.parametrize(
    "flag",
    ["--average -1", "--label-smoothing 1", "--light 3", "--schedule linear", "--recipe best"],
)
def test_bad_values_are_one_line(flag):
    with pytest.raises(InputError, match=flag.split()[0]) as error:
        train_classification.read_flags(flag.split())
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------ whole runs


@pytest.fixture(scope="module")
def robust(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("robust") / "whole"
    train_classification.main(flags(data, out, "--recipe", "robust"))
    return out


def test_stopped_robust_run_goes_on_to_the_same_bits(data, robust, tmp_path, monkeypatch):
    asked = []

    def stop_in_the_second_epoch():
        def stop():
            asked.append(None)
            return len(asked) == 20

        return stop

    monkeypatch.setattr(signals, "catch_signals", stop_in_the_second_epoch)
    with pytest.raises(SystemExit) as end:
        train_classification.main(flags(data, tmp_path / "run", "--recipe", "robust"))
    assert end.value.code == 1
    assert load(tmp_path / "run" / "last.pth")["step"] > 0
    monkeypatch.setattr(signals, "catch_signals", lambda: lambda: False)
    train_classification.main(flags(data, tmp_path / "run", "--recipe", "robust", "--resume"))
    assert_same(tmp_path / "run", robust)


def test_what_is_saved_is_the_average(data, robust):
    last = load(robust / "last.pth")
    assert last["model"].keys() == last["weights"].keys()
    assert not torch.equal(last["model"]["conv1.weight"], last["weights"]["conv1.weight"])
    model, _ = checkpoints.load_checkpoint(robust / "last.pth")
    assert torch.equal(model.conv1.weight, last["model"]["conv1.weight"])
    with open(robust / "log.csv", newline="") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert rates[-1] < 0.01 * rates[0]


def test_a_schedule_cannot_be_made_longer_afterwards(data, robust):
    longer = [*flags(data, robust, "--recipe", "robust", "--resume"), "--epochs", "3"]
    with pytest.raises(InputError, match="epochs was 2, is 3"):
        train_classification.main(longer)


def test_a_run_of_before_there_were_recipes_goes_on(data, finished, tmp_path):
    """Such a run also has its folder under the key run, and not out."""
    shutil.copytree(finished, tmp_path / "run")
    last = load(tmp_path / "run" / "last.pth")
    del last["weights"]
    for key in ("schedule", "average", "turns", "light", "label_smoothing"):
        del last["args"][key]
    last["args"]["run"] = last["args"].pop("out")
    torch.save(last, tmp_path / "run" / "last.pth")
    train_classification.main([*flags(data, tmp_path / "run", "--resume"), "--epochs", "3"])
    assert len((tmp_path / "run" / "log.csv").read_text().splitlines()) == 4
    args = load(tmp_path / "run" / "last.pth")["args"]
    assert args["out"] == str(tmp_path / "run")
    assert "run" not in args


# --------------------------------------------------------------------------------- the benchmark


def test_benchmark_trains_measures_and_keeps_what_is_done(data, tmp_path, monkeypatch, capsys):
    rows = {"published": ["--amp", "off"], "robust": ["--recipe", "robust", "--amp", "off"]}
    monkeypatch.setattr(benchmark, "ROWS", rows)
    calls = []
    script = benchmark.script

    def noted(name, *arguments):
        calls.append(name)
        if name == "preprocessing.py":
            arguments = [*arguments, "--patch-size", "48", "--workers", "1"]
        return script(name, *arguments)

    monkeypatch.setattr(benchmark, "script", noted)
    line = [
        "--raw",
        str(data.parent / "raw"),
        "--stride",
        "48",
        "--image-size",
        "32",
        "--out",
        str(tmp_path / "out"),
        "--epochs",
        "5",
        "--seeds",
        "1",
        "--rows",
        "published",
        "robust",
        "--test",
    ]
    benchmark.main(line)
    first = capsys.readouterr().out
    benchmark.main(line)
    assert calls.count("train_classification.py") == 2
    with open(tmp_path / "out" / "runs.csv", newline="") as file:
        results = list(csv.DictReader(file))
    assert [result["row"] for result in results] == ["published", "robust"]
    assert all(0 <= float(result["test"]) <= 1 for result in results)
    assert first.splitlines()[-3:] == capsys.readouterr().out.splitlines()[-3:]
    with pytest.raises(InputError, match="other settings"):
        benchmark.main([*line, "--batch-size", "16"])
