"""Training through its command line, on a tiny patch set with the real networks."""

import csv
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import METRES, SMALL, flags, make_geotiffs
from PIL import Image
from torch.distributed.run import get_args_parser
from training_runs import assert_same, load

import preprocessing
import test_classification
import train_classification
from dl_slicer.cli import InputError, run
from dl_slicer.model import checkpoints, evaluation
from dl_slicer.patch_sets import reading
from dl_slicer.training import epochs, runs

ROOT = Path(__file__).parent.parent
# Children are forked from a server that has imported torch but computed nothing: they start in
# milliseconds, and safely.
os.environ["PYTHONPATH"] = str(ROOT)
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["dl_slicer.training.epochs", "dl_slicer.training.preparing"])


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------ a whole run


def test_run_leaves_what_the_design_says(data, finished):
    rows = read_rows(finished / "log.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    best = load(finished / "best.pth")
    last = load(finished / "last.pth")
    assert best["epoch"] == 1 + np.argmax([float(row["val_accuracy"]) for row in rows])
    assert last["epoch"] == 2
    assert last["step"] == 0
    assert set(last) == {
        "model",
        "weights",
        "arch",
        "classes",
        "mean",
        "std",
        "image_size",
        "patch_size",
        "stride",
        "epoch",
        "step",
        "metrics",
        "optimizer",
        "rng",
        "args",
        "versions",
        "ground_resolution",
        "metres_a_pixel",
        "bands",
        "stretch",
        "max_nodata",
        "temperature",
        "familiarity",
    }
    # Of rasters without georeference nothing is known.
    assert last["ground_resolution"] is last["metres_a_pixel"] is None
    assert last["classes"] == ["Aa (AAA)", "Bb (BBB)", "Cc (CCC)"]
    assert last["image_size"] == 32
    config = json.loads((finished / "config.json").read_text())
    assert config["lr"] == 1e-3
    assert config["seed"] == 0
    assert config["versions"]["torch"] == torch.__version__
    assert config["out"] == str(finished)
    assert Image.open(finished / "curves.png").size[0] > 800
    assert not list(finished.glob(".*"))


def test_config_keeps_the_flags_as_typed(data, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    typed = flags(data, tmp_path / "run", "--lr", "1e-3")
    for resume in ("--resume", "--res"):
        train_classification.main([*typed, resume, "--save-every", "2"])
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        assert config["given"] == [*typed, "--save-every", "2"]
    assert "given" not in load(tmp_path / "run" / "last.pth")["args"]


def test_published_recipe_is_the_default():
    args = train_classification.read_flags([])
    assert (
        args.weights,
        args.optimizer,
        args.lr,
        args.batch_size,
        args.epochs,
        args.flips,
        args.balanced,
        args.weight_decay,
    ) == ("imagenet", "adam", 1e-3, 128, 100, True, True, 0)


def test_same_seed_same_bits_and_another_seed_other_bits(data, finished, tmp_path):
    train_classification.main(flags(data, tmp_path / "again"))
    assert_same(finished, tmp_path / "again")
    train_classification.main(flags(data, tmp_path / "other", "--seed", "1", "--epochs", "1"))
    assert not torch.equal(
        load(tmp_path / "other" / "last.pth")["model"]["fc.weight"],
        load(finished / "last.pth")["model"]["fc.weight"],
    )


def test_ties_keep_the_earlier_epoch(data, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "score", lambda model, val, *_, **__: torch.ones(len(val), 2))
    train_classification.main(flags(data, tmp_path / "ties"))
    assert load(tmp_path / "ties" / "best.pth")["epoch"] == 1
    assert load(tmp_path / "ties" / "last.pth")["epoch"] == 2


@pytest.mark.parametrize(
    "more",
    [
        ["--optimizer", "sgd", "--lr", "0.01"],
        ["--optimizer", "adamw", "--weight-decay", "0.01", "--no-flips", "--no-balanced"],
    ],
)
def test_other_recipes_run(data, tmp_path, more):
    train_classification.main(flags(data, tmp_path / "run", *more, "--epochs", "1"))
    assert load(tmp_path / "run" / "last.pth")["epoch"] == 1


# --------------------------------------------------------------------------------------- going on


def child(argv):
    os.chdir(ROOT)
    with open(os.devnull, "w") as sys.stdout:
        run(lambda: train_classification.main(argv))


def begin(data, out, *more):
    """Start or go on with a run in a process of its own, and give that as training begins."""
    (out / "config.json").unlink(missing_ok=True)
    process = FORKS.Process(target=child, args=(flags(data, out, "--resume", *more),))
    process.start()
    while process.is_alive() and not (out / "config.json").exists():
        time.sleep(0.01)
    return process


def saved_at(out):
    """When last.pth was written; 0 if there is none."""
    file = out / "last.pth"
    return file.stat().st_mtime_ns if file.exists() else 0


def test_killed_twenty_times(data, finished, tmp_path):
    """SIGKILL at random moments, gone on with each time: the end is that of the undisturbed run."""
    out = tmp_path / "killed"
    rng = random.Random(0)
    kills = 0
    reached = set()
    while kills < 20:
        saved_before = saved_at(out)
        process = begin(data, out, "--save-every", "1")
        # Every third kill falls anywhere after the start, the others after a step at least, so
        # that a slow machine gets on, too.
        while kills % 3 and process.is_alive() and saved_at(out) <= saved_before:
            time.sleep(0.01)
        process.join(rng.uniform(0, 0.5))
        if process.exitcode is not None:  # it ended before the twentieth kill: from the start
            assert process.exitcode == 0
            shutil.rmtree(out)
            continue
        process.kill()
        process.join()
        kills += 1
        if saved_at(out):
            state = load(out / "last.pth")  # never half a file
            reached.add((state["epoch"], state["step"]))
    assert len(reached) > 4  # the kills fell into the work
    process = begin(data, out)
    process.join()
    assert process.exitcode == 0
    assert_same(finished, out)
    expected = {path.name for path in finished.iterdir() if path.is_file()}
    assert {path.name for path in out.iterdir()} == expected


def test_terminated(data, finished, tmp_path):
    """SIGTERM and SIGINT save at the step they fall into."""
    out = tmp_path / "terminated"
    stopped_at = []
    for number in (signal.SIGTERM, signal.SIGINT):
        process = begin(data, out)
        time.sleep(0.5)
        os.kill(process.pid, number)
        process.join(30)
        assert process.exitcode == 1
        state = load(out / "last.pth")
        stopped_at.append((state["epoch"], state["step"]))
    assert (0, 0) < stopped_at[0] < stopped_at[1] < (2, 0)
    train_classification.main(flags(data, out, "--resume"))
    assert_same(finished, out)


def test_more_epochs_equal_a_longer_run(data, finished, tmp_path):
    train_classification.main(flags(data, tmp_path / "long", "--epochs", "1"))
    train_classification.main(flags(data, tmp_path / "long", "--resume"))
    assert_same(finished, tmp_path / "long")


@pytest.mark.parametrize(
    "more, said",
    [
        ([], "--resume"),
        (["--resume", "--lr", "0.01"], "lr was 0.001, is 0.01"),
        (["--resume", "--seed", "4"], "seed was 0, is 4"),
        (["--resume", "--no-flips"], "flips was True, is False"),
        (["--resume", "--epochs", "1"], "has 2 epochs already"),
    ],
)
def test_a_run_is_not_mixed_with_another(data, finished, more, said):
    before = (finished / "last.pth").stat().st_mtime_ns
    with pytest.raises(InputError, match=said):
        train_classification.main(flags(data, finished, *more))
    assert (finished / "last.pth").stat().st_mtime_ns == before


# ------------------------------------------------------------------------------ several processes


def torchrun(*command, code=0, processes=2):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={processes}",
            *map(str, command),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_two_processes_test_like_one(data, finished, tmp_path):
    flags = ["--checkpoint", finished / "best.pth", "--data", data, "--split", "train"]
    torchrun("test_classification.py", *flags, "--out", tmp_path / "two")
    test_classification.main([str(flag) for flag in (*flags, "--out", tmp_path / "one")])
    for name in (
        "metrics.json",
        "predictions.csv",
        "per_city.csv",
        "confusion_matrix.csv",
        "similarity.csv",
        "nearest.csv",
    ):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


FROZEN = """
import sys
sys.path.insert(0, ".")
import torchvision
import train_classification
from dl_slicer.cli import run

plain = torchvision.models.get_model


def frozen(*args, **options):
    norm_layer = torchvision.ops.FrozenBatchNorm2d
    return plain(*args, **options, norm_layer=norm_layer, zero_init_residual=True)


torchvision.models.get_model = frozen
run(train_classification.main)
"""


@pytest.mark.parametrize(
    "changed", [["--order", "grouped", "--buffer", "0.0002"], ["--average", "1"]]
)
def test_two_processes_train_like_one(data, tmp_path, changed):
    """The same losses from the same global batches.

    Batch norm is frozen: its statistics are each process's own.
    """
    script = tmp_path / "frozen.py"
    script.write_text(FROZEN)
    more = ["--amp", "off", "--optimizer", "sgd", "--lr", "0.001", *changed]
    torchrun(script, *flags(data, tmp_path / "two", *more))
    subprocess.run(
        [sys.executable, script, *flags(data, tmp_path / "one", *more)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    one = read_rows(tmp_path / "one" / "log.csv")
    two = read_rows(tmp_path / "two" / "log.csv")
    for a, b in zip(one, two, strict=True):
        for key in ("train_loss", "val_loss"):
            assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-4)
    assert float(one[1]["train_loss"]) != float(one[0]["train_loss"])


STOPPED = """
import sys
sys.path.insert(0, ".")
import train_classification
from dl_slicer.cli import run
from dl_slicer.training import signals

asked = []


def stop():
    asked.append(None)
    return len(asked) == 5


signals.catch_signals = lambda: stop
run(train_classification.main)
"""


def test_three_processes_go_on_to_the_same_bits(data, tmp_path):
    """Stopped within the epoch, of 16 steps: of three the order of their sum matters, too."""
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED)
    more = ["--average", "1", "--batch-size", "30", "--epochs", "1"]
    whole = flags(data, tmp_path / "whole", *more)
    torchrun("train_classification.py", *whole, processes=3)
    stopped = flags(data, tmp_path / "stopped", *more, "--save-every", "4")
    torchrun(script, *stopped, code=1, processes=3)
    last = load(tmp_path / "stopped" / "last.pth")
    assert (last["epoch"], last["step"]) == (0, 5)
    torchrun("train_classification.py", *stopped, "--resume", processes=3)
    assert_same(tmp_path / "whole", tmp_path / "stopped")
    assert load(tmp_path / "whole" / "last.pth")["args"]["processes"] == 3


def test_a_fault_that_one_process_meets_is_one_line(tmp_path):
    """The patch is in the second batch of validation, which the second process computes."""
    black = Image.new("RGB", (32, 32))
    for split, count in (("train", 4), ("val", 40)):
        for city in ("Aa (AAA)", "Bb (BBB)"):
            folder = tmp_path / "jpegs" / split / city
            folder.mkdir(parents=True)
            for number in range(count):
                black.save(folder / f"2020_{number:02}.jpg")
    (folder / "2020_39.jpg").write_bytes(b"no picture")
    command = flags(tmp_path / "jpegs", tmp_path / "run", "--batch-size", "4", "--epochs", "1")
    said = torchrun("train_classification.py", *command, code=1)
    (line,) = [line for line in said.splitlines() if line.startswith("train_classification.py: ")]
    assert "2020_39.jpg" in line
    assert "RuntimeError" not in said  # of the process that waits for the other one
    assert said.count("exitcode  : 2") == 2


def without_processes(run):
    """Make a run one of before its checkpoints knew how many processes had trained it."""
    for name in ("last.pth", "best.pth"):
        checkpoint = load(run / name)
        del checkpoint["args"]["processes"]
        torch.save(checkpoint, run / name)


@pytest.mark.parametrize("is_old", [False, True])
def test_another_number_of_processes_is_refused(data, finished, tmp_path, monkeypatch, is_old):
    """An older checkpoint does not say how many there were, the config.json beside it does."""
    shutil.copytree(finished, tmp_path / "run")
    if is_old:
        without_processes(tmp_path / "run")
    # As a run of two would see it; the flag decides before any process is waited for.
    monkeypatch.setattr(runs, "WORLD", 2)
    with pytest.raises(InputError, match="processes was 1, is 2"):
        train_classification.main(flags(data, tmp_path / "run", "--resume"))


@pytest.mark.parametrize("config", [None, "{", "[" * 100_000, "[]", '{"processes": "2"}'])
def test_a_run_of_an_unknown_number_of_processes_goes_on(data, finished, tmp_path, capsys, config):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    without_processes(run)
    (run / "config.json").unlink()
    if config is not None:
        (run / "config.json").write_text(config)
    train_classification.main(flags(data, run, "--resume"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not known" in line]
    assert "going on with 1" in line
    assert json.loads((run / "config.json").read_text())["processes"] == 1


def test_torchrun_leaves_every_flag_to_the_script(capsys):
    """It takes what could be short for a flag of its own, as it took --run, unless after --."""
    with pytest.raises(SystemExit):
        train_classification.main(["--help"])
    words = capsys.readouterr().out.replace("[", " ").replace("]", " ").replace(",", " ").split()
    ours = sorted(
        {word for word in words if word.startswith("--")} - {"--help", "--nproc_per_node=4"}
    )
    assert "--out" in ours
    for flag in ours:
        args = get_args_parser().parse_args(["train_classification.py", flag, "x"])
        assert args.training_script_args == [flag, "x"]


# ------------------------------------------------------------------------------------ wrong input


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--batch-size", "0"], "at least 1"),
        (["--epochs", "x"], "whole number"),
        (["--lr", "-1"], "above 0"),
        (["--arch", "vgg16"], "invalid choice"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--data", "no/such"], "no such folder"),
        (["--data", "tests"], "no patch set"),
        (["--weights", "no/such.pth"], "no such file"),
    ],
)
def test_wrong_flags_of_training(data, tmp_path, argv, said):
    with pytest.raises(InputError, match=said) as error:
        train_classification.main([*flags(data, tmp_path / "run"), *argv])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("old", [["--run", "name"], ["--run=name"], ["--run"], ["--ru", "name"]])
def test_run_is_answered_by_a_line_that_names_out(old, capsys):
    with pytest.raises(SystemExit) as end:
        run(lambda: train_classification.main([*old, "--arch", "resnet18"]))
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--out" in said


def test_out_is_a_path_and_by_default_the_architecture_under_checkpoints():
    assert train_classification.read_flags(["--out", "name"]).out == "name"
    args = train_classification.read_flags(["--arch", "resnet34"])
    assert args.out == os.path.join("checkpoints", "resnet34")
    assert "run" not in vars(args)


def test_help_names_the_groups_and_the_defaults(capsys):
    with pytest.raises(SystemExit):
        train_classification.main(["--help"])
    said = capsys.readouterr().out
    for group in ("data:", "model:", "recipe:", "machine:", "run:"):
        assert f"\n{group}\n" in said
    said = " ".join(said.split())
    assert "default: adam (published), adamw (robust)" in said
    assert "(default: data/patches)" in said
    assert "default: checkpoints/<arch>" in said
    assert "--run" not in said


def test_one_line_and_exit_code_2():
    done = subprocess.run(
        [sys.executable, "train_classification.py", "--data", "no\nsuch"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no\\nsuch" in done.stderr


def test_loss_that_is_not_finite_ends_the_run(data, tmp_path):
    with pytest.raises(InputError, match="--lr"):
        train_classification.main(
            flags(data, tmp_path / "run", "--optimizer", "sgd", "--lr", "100", "--epochs", "9")
        )


@pytest.mark.parametrize("full_at, said", [(3, "add --batch-size 16"), (20, "--resume")])
def test_a_full_device_is_one_line_and_the_run_is_kept(
    data, finished, tmp_path, monkeypatch, full_at, said
):
    """An epoch has 15 steps: the memory is full in the first epoch, or in the second."""
    cross_entropy = epochs.cross_entropy
    steps = []

    def full(*args, **options):
        steps.append(None)
        if len(steps) == full_at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return cross_entropy(*args, **options)

    monkeypatch.setattr(epochs, "cross_entropy", full)
    with pytest.raises(InputError, match=said) as error:
        train_classification.main(flags(data, tmp_path / "run"))
    assert "\n" not in str(error.value)
    assert "batches of 32 are too large" in str(error.value)
    assert "--batch-size 16" in str(error.value)
    train_classification.main(flags(data, tmp_path / "run", "--resume"))
    assert_same(finished, tmp_path / "run")


@pytest.mark.parametrize("save_every", [[], ["--save-every", "1"]])
def test_nothing_is_saved_once_the_loss_is_not_finite(data, tmp_path, monkeypatch, save_every):
    """In an epoch too short for the check that is made now and then."""
    monkeypatch.setattr(epochs, "SECONDS_BETWEEN_CHECKS", 1e9)
    out = tmp_path / "run"
    astray = ["--optimizer", "sgd", "--lr", "100", "--epochs", "1", *save_every]
    with pytest.raises(InputError, match=r"no longer finite in epoch 1.*--lr than 100"):
        train_classification.main(flags(data, out, *astray))
    assert not (out / "best.pth").exists()
    assert (out / "last.pth").exists() == bool(save_every)
    if save_every:
        checkpoints.load_checkpoint(out / "last.pth")  # of a step before


def test_a_loss_that_is_infinite_in_validation_alone_is_not_best(data, tmp_path, monkeypatch):
    def infinite(model, val, *_, **__):
        return torch.full((len(val), 2), float("inf"))

    monkeypatch.setattr(evaluation, "score", infinite)
    with pytest.raises(InputError, match="no longer finite in epoch 1"):
        train_classification.main(flags(data, tmp_path / "run"))
    assert not list((tmp_path / "run").glob("*.pth"))


# ------------------------------------------------------------------------- two at once, lost output


def test_a_second_training_in_the_same_folder_is_refused(data, finished, tmp_path):
    """Also with --resume; once the first is killed, the next goes on with what it has saved."""
    out = tmp_path / "shared"
    first = begin(data, out, "--save-every", "1")
    config = (out / "config.json").read_text()
    for more in ([], ["--resume"]):
        with pytest.raises(InputError, match=f"process {first.pid} on ") as error:
            train_classification.main(flags(data, out, "--seed", "7", *more))
        assert "\n" not in str(error.value)
    assert (out / "config.json").read_text() == config
    first.kill()
    first.join()
    train_classification.main(flags(data, out, "--resume"))
    assert_same(finished, out)


@pytest.mark.parametrize("redirect", [">&-", ">&- 2>&-", "| true"])
def test_training_goes_on_where_nobody_reads_its_output(data, finished, tmp_path, redirect):
    out = tmp_path / "run"
    command = ["train_classification.py", *flags(data, out, "--epochs", "1")]
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$@" {redirect}', "bash", sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert read_rows(out / "log.csv") == read_rows(finished / "log.csv")[:1]
    assert load(out / "last.pth")["epoch"] == load(out / "best.pth")["epoch"] == 1
    warnings = (out / "warnings.txt").read_text()
    assert warnings.count("\n") == 1
    assert "nothing more on stdout" in warnings
    assert done.stderr.count("\n") == (0 if "2>" in redirect else 1)
    if done.stderr:
        assert "nothing more on stdout" in done.stderr


# ------------------------------------------------------------------------------- georeferenced sets


def test_a_checkpoint_says_how_rasters_were_seen(tmp_path):
    """And what was trained on a set is neither gone on with nor tested on another view of it."""
    raw = make_geotiffs(tmp_path / "raw", sites=2)

    def patches(name, *view):
        out = tmp_path / name
        preprocessing.main(["--raw", str(raw), "--out", str(out), *SMALL, *map(str, view)])
        return out

    view = ["--ground-resolution", METRES, "--bands", 3, 2, 1]
    trained_on = patches("trained", *view, "--stretch", "auto", "--max-nodata", 0.5)
    one_epoch = ["--epochs", "1", "--batch-size", "8"]
    train_classification.main(flags(trained_on, tmp_path / "run", *one_epoch))
    found = load(tmp_path / "run" / "best.pth")
    assert {key: found[key] for key in ("ground_resolution", "bands", "stretch", "max_nodata")} == {
        "ground_resolution": METRES,
        "bands": [3, 2, 1],
        "stretch": "auto",
        "max_nodata": 0.5,
    }
    assert found["metres_a_pixel"] == METRES
    _, checkpoint = checkpoints.load_checkpoint(tmp_path / "run" / "best.pth")
    assert checkpoint.view == reading.open_split(trained_on, "val").view

    plain = patches("plain")
    with pytest.raises(InputError, match=r"would not give that run's result: data_set was .*auto"):
        train_classification.main(flags(plain, tmp_path / "run", *one_epoch, "--resume"))
    with pytest.raises(InputError, match=r"are made of bands 1 2 3, .* was trained on 3 2 1; make"):
        test_classification.main(
            ["--checkpoint", f"{tmp_path}/run/best.pth", "--data", str(plain), "--split", "test"]
        )
