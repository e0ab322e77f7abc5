"""A run that is watched: what is told, where it goes on, and that nothing of it stops the run."""

import csv
import json
import subprocess
import sys
import types

import numpy as np
import pytest
from conftest import ROOT, flags
from training_runs import load

import train_classification
from dl_slicer import cli
from dl_slicer.cli import InputError
from dl_slicer.training import runs, signals, tracking
from dl_slicer.training.tracking import Place, Point, Tracker

# What a run uses of the package; it notes each call in a file.
FAKE_WANDB = """
import json
import os

FAULTS = []  # modes in which init() fails
IN_USE = []  # ids of runs that failed, until teardown(), as in the package


def note(**call):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps(call) + "\\n")


class Image:
    def __init__(self, pixels):
        assert pixels.dtype == "uint8"
        self.shape = pixels.shape


class Run:
    def log(self, values, step):
        plain = {name: getattr(value, "shape", value) for name, value in values.items()}
        note(values=plain, step=step)

    def finish(self, exit_code):
        note(exit_code=exit_code)


def init(mode="online", **options):
    assert options["id"] not in IN_USE
    note(mode=mode, **options)
    if mode in FAULTS:
        IN_USE.append(options["id"])
        raise RuntimeError("no connection")
    return Run()


teardown = IN_USE.clear
"""

ROW = {
    "epoch": 1,
    "lr": 0.1,
    "train_loss": 2.0,
    "train_accuracy": 0.25,
    "val_loss": 3.0,
    "val_accuracy": 0.5,
}


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """The made-up package. Give a function that reads what was called since it was last asked."""
    (tmp_path / "packages" / "wandb").mkdir(parents=True)
    (tmp_path / "packages" / "wandb" / "__init__.py").write_text(FAKE_WANDB)
    calls = tmp_path / "calls"
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setenv("CALLS", str(calls))
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)

    def read():
        lines = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    yield read
    sys.modules.pop("wandb", None)


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def told(calls):
    """{(name, step): value} of what was told."""
    return {
        (name, call["step"]): value
        for call in calls
        for name, value in call.get("values", {}).items()
    }


def test_a_stopped_run_is_watched_on_in_the_same_place(
    data, finished, tmp_path, wandb, monkeypatch, capsys
):
    """And comes to the numbers of a run that nobody watched. An epoch has 15 steps."""
    out = tmp_path / "run"
    command = flags(data, out, "--epochs", "1", "--track", "wandb")
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(
            signals, "catch_signals", lambda: lambda: asked.append(None) or len(asked) == 5
        )
        with pytest.raises(SystemExit):
            train_classification.main(command)
    begun, *_, ended = wandb()
    assert begun["resume"] == "allow"
    assert begun["name"] == "run"
    assert begun["project"] == "dl-slicer"
    assert begun["config"]["lr"] == 1e-3
    assert ended == {"exit_code": 1}

    train_classification.main([*command, "--resume"])
    again, *calls, ended = wandb()
    assert again["id"] == begun["id"] == (out / "wandb" / "run-id.txt").read_text().strip()
    assert ended == {"exit_code": 0}
    (row,) = read_rows(out / "log.csv")
    values = told(calls)
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        assert values[name.replace("_", "/"), 15] == float(row[name])
    assert values["learning_rate", 15] == float(row["lr"])
    assert values["epoch/patches_a_second", 15] > 0
    assert len(values["val/confusion", 15]) == 3

    assert row == read_rows(finished / "log.csv")[0]
    assert "track" not in load(out / "last.pth")["args"]
    assert "--track" not in capsys.readouterr().err


def test_tracking_may_be_added_to_a_run_and_dropped(data, finished, tmp_path, wandb):
    """A finished run that nobody watched is told to a new place, and nothing is trained."""
    train_classification.main(flags(data, finished, "--resume"))
    assert wandb() == []
    runs_folder = tmp_path / "run"
    runs_folder.mkdir()
    for name in ("last.pth", "best.pth"):
        (runs_folder / name).write_bytes((finished / name).read_bytes())
    command = flags(data, runs_folder, "--resume")
    train_classification.main([*command, "--track", "wandb"])
    values = told(wandb())
    assert {step for _, step in values} == {15, 30}
    train_classification.main([*command, "--track", "wandb"])
    assert told(wandb()) == {}  # it is there already
    train_classification.main(command)
    assert wandb() == []


def begin_wandb(folder, **changes):
    options = {"folder": folder, "settings": {}, "steps": 10, "done": 0, "history": []}
    return tracking.start("wandb", **(options | changes))


def test_a_run_without_connection_is_recorded(tmp_path, wandb, capsys):
    import wandb as package

    package.FAULTS.append("online")
    tracker = begin_wandb(tmp_path)
    tracker.note_epoch(ROW, 12.0)
    tracker.close(True)
    online, offline, noted, ended = wandb()
    assert (online["mode"], offline["mode"]) == ("online", "offline")
    assert online["id"] == offline["id"]
    assert noted["step"] == 10
    assert noted["values"]["epoch/patches_a_second"] == 12.0
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no connection" in said
    assert "`wandb sync`" in said


def test_what_fails_is_one_line_and_the_run_goes_on(tmp_path, wandb, capsys):
    import wandb as package

    package.FAULTS.extend(["online", "offline"])
    tracker = begin_wandb(tmp_path)
    assert tracker.place is None
    assert capsys.readouterr().err.splitlines()[-1].endswith("the run goes on unwatched")

    def fail(*arguments):
        raise OSError(28, "No space left\non device")

    for tell in (
        lambda tracker: tracker.note_epoch(ROW, None),
        lambda tracker: tracker.show_confusion(np.eye(2, dtype=int), ("A", "B"), 1),
        lambda tracker: tracker.close(True),
    ):
        tracker = Tracker("wandb", Place(fail, fail, fail, True), steps=10)
        tell(tracker)
        tell(tracker)
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "--track wandb" in said
        assert "No space left on device; the run goes on unwatched" in said
    cli.warnings.clear()


def test_no_login_is_asked_for(tmp_path, wandb, monkeypatch):
    import wandb as package

    asked = []
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(package, "init", lambda **options: asked.append(sys.stdin.isatty()))
    begin_wandb(tmp_path)
    assert asked == [False]
    assert sys.stdin.isatty()


def test_one_process_tells_it(tmp_path, wandb, monkeypatch):
    monkeypatch.setattr(runs, "RANK", 1)
    args = types.SimpleNamespace(track="wandb", out=str(tmp_path), epochs=1)
    run = runs.Run(args, model=None, optimizer=None)
    with runs.watched(run, train=None):
        assert run.tracker.place is None
    assert wandb() == []


def test_points_within_an_epoch(monkeypatch):
    written = []
    place = Place(lambda values, step: written.append((step, values)), None, None, False)
    tracker = Tracker("wandb", place, steps=100, processes=2)

    def note(epoch, seconds, patches):
        point = Point(epoch, seconds, loss=3.0 * patches, correct=0.5 * patches, patches=patches)
        tracker.note_progress(point, step=patches // 8, rate=0.1)

    note(1, 1000.0, 8)  # the first step, which warms up
    note(1, 1029.0, 16)  # too early
    note(1, 1040.0, 408)
    note(1, 1071.0, 728)
    note(2, 2000.0, 8)  # another epoch
    note(2, 2040.0, 8)  # nothing was done meanwhile
    assert written == [
        (
            151,
            {
                "interval/loss": 3.0,
                "interval/accuracy": 0.5,
                "interval/patches_a_second": 2 * 400 / 40,
                "learning_rate": 0.1,
            },
        ),
        (
            191,
            {
                "interval/loss": 3.0,
                "interval/accuracy": 0.5,
                "interval/patches_a_second": pytest.approx(2 * 320 / 31),
                "learning_rate": 0.1,
            },
        ),
    ]


def test_the_picture_shows_which_cities_are_taken_for_which():
    classes = [f"City {number} (C${number})" for number in range(3)]
    matrix = np.array([[8, 0, 2], [0, 5, 0], [0, 0, 0]])
    picture = tracking.draw_confusion(matrix, classes)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert not np.array_equal(picture, tracking.draw_confusion(matrix.T, classes))
    many = tracking.draw_confusion(np.eye(200, dtype=int), [f"({n})" for n in range(200)])
    assert many.shape[1] < 1500


# ------------------------------------------------------------------------------------- tensorboard


class Writer:
    """What a run uses of SummaryWriter; an event file stands for what was written."""

    def __init__(self, log_dir, purge_step):
        self.purge_step = purge_step
        self.scalars = {}
        self.flushes = 0

    def add_scalar(self, name, value, step):
        self.scalars[name, step] = value

    def flush(self):
        self.flushes += 1


def test_tensorboard_forgets_what_a_killed_run_had_told(tmp_path, monkeypatch):
    writers = []

    def make(*args, **options):
        writers.append(Writer(*args, **options))
        return writers[-1]

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = make
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    place = {"folder": tmp_path, "settings": {}, "steps": 10}
    tracking.start("tensorboard", **place, done=13, history=[ROW])
    assert writers[0].purge_step is None
    assert writers[0].scalars["val/accuracy", 10] == 0.5
    assert writers[0].flushes == 1
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.1.host").touch()
    tracking.start("tensorboard", **place, done=13, history=[ROW])
    assert writers[1].purge_step == 14
    assert writers[1].scalars == {}


def test_tensorboard_reads_what_was_told(tmp_path):
    """With the package itself, where it is installed."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    place = {"folder": tmp_path, "settings": {}, "steps": 10}
    killed = tracking.start("tensorboard", **place, done=0, history=[])
    for epoch in (1, 2, 3):
        killed.note_epoch(ROW | {"epoch": epoch, "val_loss": float(epoch)}, 5.0)
    # Its checkpoint was of the second epoch. It is not closed.
    again = tracking.start("tensorboard", **place, done=20, history=[ROW, ROW])
    again.note_epoch(ROW | {"epoch": 3, "val_loss": 9.0}, 5.0)
    again.show_confusion(np.eye(2, dtype=int), ("A (A)", "B (B)"), 3)
    again.close(True)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("val/loss")] == [(10, 1), (20, 2), (30, 9)]
    assert {"train/loss", "train/accuracy", "val/accuracy", "learning_rate"} <= set(
        found.Tags()["scalars"]
    )
    assert [image.step for image in found.Images("val/confusion")] == [30]


# ------------------------------------------------------------------------------ without the package


@pytest.mark.parametrize("tracker", tracking.TRACKERS)
def test_a_missing_package_is_one_line_before_any_training(data, tmp_path, monkeypatch, tracker):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"pip install {tracker}") as error:
        train_classification.main(flags(data, tmp_path / "run", "--track", tracker))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_called_like_the_package_is_none(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(InputError, match="pip install wandb"):
        tracking.check_installed("wandb")


def test_flags_of_tracking_need_no_torch():
    code = "import sys, train_classification; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
