"""python -m dl_slicer.reproduce: a chain of small runs, interrupted, gone on with, and refused."""

import csv
import json
import os
import shutil
import subprocess
from contextlib import redirect_stdout
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, SIZES, as_flags, make_raw, signal_handlers_kept
from PIL import Image

import preprocessing
import test_classification
import train_classification
from dl_slicer import reproduce
from dl_slicer.cli import InputError
from dl_slicer.results import authors_models, plots
from dl_slicer.training import ledger, planned_runs, processes

MAINS = {
    "train_classification.py": train_classification.main,
    "test_classification.py": test_classification.main,
}
PUBLISHED = "resnet18-published-seed0"
ROBUST = "resnet18-robust-seed0"
SMALL_RUNS = ("--weights", "none", "--batch-size", "30")
CITIES = ("Aa (AAA)", "Bb (BBB)", "Cc (CCC)")


def flags(data, out, *more, after=SMALL_RUNS):
    asked_for = ["--data", data, "--out", out, "--archs", "resnet18", "--epochs", 1, *more]
    return [str(word) for word in (*asked_for, "--", *after)]


class Inline:
    """The scripts in this process. calls: (script, name of the run) of what was not rehearsed."""

    def __init__(self):
        self.calls = []
        self.rehearsed = []
        self.interrupt_at = None  # the number of the call that is interrupted

    def run_script(self, script, flags, count=1, passed=None):
        if len(self.calls) == self.interrupt_at:
            raise KeyboardInterrupt
        out = flags[flags.index("--out") + 1]
        self.calls.append((script.partition("_")[0], out.removesuffix("/test_b").split("/")[-1]))
        with signal_handlers_kept():
            MAINS[script](list(flags))
        if passed:
            passed(1800.0)

    def output_of_script(self, script, flags, count=1):
        self.rehearsed.append(flags[flags.index("--out") + 1].split("/")[-1])
        printed = StringIO()
        with redirect_stdout(printed), signal_handlers_kept():
            MAINS[script](list(flags))
        return printed.getvalue()


@pytest.fixture
def scripts(monkeypatch):
    inline = Inline()
    monkeypatch.setattr(processes, "run_script", inline.run_script)
    monkeypatch.setattr(processes, "output_of_script", inline.output_of_script)
    return inline


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Two of them spend more time on so little work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A patch set of 90 train, 18 val and 15 test patches."""
    folder = tmp_path_factory.mktemp("data")
    folders = {"--raw": make_raw(folder / "raw", CITIES), "--out": folder / "patches"}
    preprocessing.main(as_flags(folders | SIZES))
    return folder / "patches"


@pytest.fixture(scope="module")
def chain(data, tmp_path_factory):
    """Two runs, of which the second was interrupted before it began, and what happened."""
    out = tmp_path_factory.mktemp("chain") / "paper"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planned_runs, "STEPS", 2)
        patch.setattr(plots, "save_plot", lambda *_: None)  # the diagrams are half of the time
        first = Inline()
        second = Inline()
        for inline in (first, second):
            patch.setattr(processes, "run_script", inline.run_script)
            patch.setattr(processes, "output_of_script", inline.output_of_script)
            first.interrupt_at = 2
            said = StringIO()
            with redirect_stdout(said):
                if inline is first:
                    with pytest.raises(KeyboardInterrupt):
                        reproduce.main(flags(data, out))
                    between = read_rows(out / "table.csv")
                else:
                    reproduce.main(flags(data, out))
            inline.said = said.getvalue()
    return SimpleNamespace(out=out, first=first, second=second, between=between)


def read_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def copy(chain, tmp_path):
    # Linked: hundreds of megabytes. What replaces a file leaves the other name's as it was.
    shutil.copytree(chain.out, tmp_path / "paper", copy_function=os.link)
    return tmp_path / "paper"


# ------------------------------------------------------------------------------ the whole chain


def test_what_was_finished_stays_finished(chain):
    assert chain.first.calls == [("train", PUBLISHED), ("test", PUBLISHED)]
    assert [row["model"] for row in chain.between] == [PUBLISHED]
    assert chain.second.calls == [("train", ROBUST), ("test", ROBUST)]
    # What is done is not timed again.
    assert chain.first.rehearsed == [PUBLISHED]
    assert chain.second.rehearsed == [ROBUST]


def test_the_table_says_what_was_measured(chain):
    out = chain.out
    published, robust = read_rows(out / "table.csv")
    assert (published["model"], robust["model"]) == (PUBLISHED, ROBUST)
    # Nothing is chosen but by the published recipe.
    assert published["chosen_epoch"] == "the best on val"
    assert robust["chosen_epoch"] == "the last"
    for row, file in ((published, "best.pth"), (robust, "last.pth")):
        found = json.loads((out / row["results"] / "metrics.json").read_text())
        assert found["checkpoint"] == str(out / row["model"] / file)
        assert float(row["top1"]) == found["accuracy"]
        assert [float(row["top1_low"]), float(row["top1_high"])] == found["accuracy_ci95"]
        assert float(row["whole_rasters"]) == found["raster_accuracy"]
        assert int(row["patches"]) == found["n"] == 15
        assert int(row["parameters"]) == 11178051  # of a ResNet-18 with three outputs
        assert (row["epochs"], row["hours"], row["seed"]) == ("1", "0.5", "0")
        assert row["trained_by"] == "here"
        assert row["test_patches"] == "test_b of this set"
        assert (out / row["report"]).is_file()
    markdown = (out / "table.md").read_text()
    assert f"[{ROBUST}]({ROBUST}/test_b/report.html)" in markdown
    assert "| 84 |" in markdown
    assert markdown in chain.second.said


def test_differences_are_those_of_the_same_patches(chain):
    (row,) = read_rows(chain.out / "differences.csv")
    published, robust = read_rows(chain.out / "table.csv")
    assert (row["a"], row["b"]) == (PUBLISHED, ROBUST)
    difference = float(published["top1"]) - float(robust["top1"])
    assert float(row["difference"]) == pytest.approx(difference)
    assert float(row["low"]) <= float(row["difference"]) <= float(row["high"])
    assert (row["patches"], row["rasters"]) == ("15", "3")
    (agreement,) = read_rows(chain.out / "agreement.csv")
    assert (agreement["a"], agreement["b"], agreement["cities"]) == (PUBLISHED, ROBUST, "3")


def test_disk_and_hours_are_said_beforehand(chain):
    assert "best.pth and last.pth take 136.8 MB (published), 182.4 MB (robust) each" in (
        chain.first.said
    )
    assert "0 of 2 runs are done" in chain.first.said
    assert "1 of 2 runs are done" in chain.second.said
    for name, megabytes in ((PUBLISHED, 136.8), (ROBUST, 182.4)):
        size = (chain.out / name / "last.pth").stat().st_size
        assert size / 1e6 == pytest.approx(megabytes, rel=0.04)


def test_a_second_call_does_nothing_again(chain, data, scripts):
    tables = ("table.csv", "table.md", "differences.csv", "agreement.csv", "reproduce.json")
    before = {name: (chain.out / name).read_bytes() for name in tables}
    reproduce.main(flags(data, chain.out))
    assert scripts.calls == scripts.rehearsed == []
    assert {name: (chain.out / name).read_bytes() for name in tables} == before


# ---------------------------------------------------------------------------- calls that follow


def test_what_can_be_kept_is_kept(data, copy, scripts, monkeypatch):
    """The folder has moved and a flag is new that changes no result: only that is looked at."""
    times = json.dumps(dict.fromkeys(planned_runs.Times.__annotations__, 1))
    monkeypatch.setattr(processes, "output_of_script", lambda *call: times)
    for _ in range(2):
        reproduce.main(flags(data, copy, after=(*SMALL_RUNS, "--save-every", "9")))
    assert scripts.calls == [("train", PUBLISHED), ("train", ROBUST)]


def test_what_would_mix_results_is_refused_before_anything_is_trained(data, copy, scripts):
    with pytest.raises(InputError, match="epochs was 1, is 2"):
        reproduce.main(flags(data, copy, "--epochs", 2, "--recipes", "robust"))
    assert scripts.calls == []


def test_another_data_set_is_refused(copy, scripts, tmp_path):
    folders = {"--raw": make_raw(tmp_path / "raw", CITIES, sites=2), "--out": tmp_path / "other"}
    preprocessing.main(as_flags(folders | SIZES))
    with pytest.raises(InputError, match="holds runs on other patches") as refusal:
        reproduce.main(flags(tmp_path / "other", copy))
    assert "\n" not in str(refusal.value)
    assert scripts.calls == scripts.rehearsed == []


def test_results_of_another_checkpoint_are_made_again(data, chain, scripts, monkeypatch):
    checked = []
    monkeypatch.setattr(processes, "run_script", lambda script, flags, *_: checked.append(flags[1]))
    book = json.loads((chain.out / "reproduce.json").read_text())
    other = json.loads(json.dumps(book))
    other["measured"][ROBUST]["checkpoint"] = "0"
    (chain.out / "reproduce.json").write_text(json.dumps(other))
    reproduce.main(flags(data, chain.out))
    assert checked == [str(chain.out / ROBUST / "last.pth")]
    assert json.loads((chain.out / "reproduce.json").read_text()) == book


def test_a_damaged_ledger_is_told(data, copy, scripts):
    for text in ("{", '{"seconds": {"a": "b"}}', "[]", '{"more": 1}'):
        (copy / "reproduce.json").unlink()
        (copy / "reproduce.json").write_text(text)
        with pytest.raises(InputError, match=r"reproduce.json: damaged; delete it"):
            reproduce.main(flags(data, copy))


def test_the_authors_models_are_measured_on_their_patches(chain, data, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    model = tmp_path / "models" / "a.pth"
    model.write_bytes(b"weights")
    chosen = authors_models.MeasuredOn(data, "test_b", "published test_b")
    monkeypatch.setattr(authors_models, "choose_test_patches", lambda processed, data: chosen)
    found = [authors_models.AuthorsModel("resnet34", model)]
    monkeypatch.setattr(authors_models, "list_authors_models", lambda models, classes: found)
    args = reproduce.read_flags(
        ["--out", str(tmp_path), "--models", str(model.parent), "--", "--device", "cpu"]
    )
    (row,) = reproduce.find_authors_models(args)
    assert (row.name, row.trained_by, row.recipe) == ("authors-resnet34", "the authors", None)
    calls = []
    monkeypatch.setattr(processes, "run_script", lambda *call: calls.append(call))
    book = ledger.Ledger(folder=tmp_path)
    assert reproduce.measure(row, args, book, 2)
    results = tmp_path / "authors-resnet34" / "test_b"
    given = ["--checkpoint", model, "--data", data, "--split", "test_b", "--out", results]
    given += ["--device", "cpu"]
    assert calls == [("test_classification.py", [str(word) for word in given], 2)]
    # The same model on the same patches is not measured again, another one is.
    shutil.copytree(chain.out / ROBUST / "test_b", results)
    assert not reproduce.measure(row, args, book, 2)
    model.write_bytes(b"others")
    assert reproduce.measure(row, args, book, 2)
    assert len(calls) == 2


def test_a_rehearsal_writes_nothing_and_says_what_it_takes(data, tmp_path, capsys):
    out = tmp_path / "run"
    args = ["--data", data, "--out", out, "--arch", "resnet18", "--rehearse", 2, *SMALL_RUNS]
    train_classification.main([*map(str, args), "--save-every", "1"])
    assert not out.exists()
    times = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (times["steps"], times["processes"]) == (3, 1)
    assert times["seconds_a_step"] > 0 < times["seconds_of_validation"]


# ------------------------------------------------------------------------ refused at the outset


@pytest.mark.parametrize(
    "word, instead",
    [
        ("--data=x", "give --data before --"),
        ("--out", "give --out before --"),
        ("--arch", "give --archs before --"),
        ("--ep", "give --epochs before --"),
        ("--recipe", "give --recipes before --"),
        ("--seed", "give --seeds before --"),
        ("--resume", "leave it out"),
        ("--rehearse", "leave it out"),
        ("-h", "leave it out"),
    ],
)
def test_flags_that_are_the_commands_own_are_refused_by_name(word, instead):
    with pytest.raises(InputError, match=f"{word} after --: .*{instead}"):
        reproduce.read_flags(["--", "--weights", "none", word, "1"])


def test_flags_of_the_training_are_passed_on(tmp_path):
    args = reproduce.read_flags(["--seeds", "3", "4", "--", "--lr", "0.1", "--amp", "off"])
    assert args.more == ["--lr", "0.1", "--amp", "off"]
    assert (args.changed.amp, args.changed.device) == ("off", None)
    runs = planned_runs.plan_runs(args)
    assert len(runs) == 4 * 2 * 2
    assert all(run.flags[-4:] == tuple(args.more) for run in runs)
    assert runs[3].name == "resnet18-robust-seed4"


def test_models_that_are_not_there_are_told():
    with pytest.raises(InputError, match="--models nowhere: no such folder; .*fetch.py"):
        reproduce.read_flags(["--models", "nowhere"])


def test_too_little_disk_is_told_before_anything_is_made(data, tmp_path, scripts, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5e8))
    with pytest.raises(InputError, match=r"takes about 940.9 MB more, the disk has 500.0 MB"):
        reproduce.main(flags(data, tmp_path / "paper"))
    assert scripts.calls == scripts.rehearsed == []
    assert not (tmp_path / "paper").exists()


def test_a_data_set_without_test_patches_is_told_first(data, tmp_path, scripts):
    folder = tmp_path / "jpegs"
    for split in ("train", "val"):
        for city in ("Aa (AAA)", "Bb (BBB)"):
            (folder / split / city).mkdir(parents=True)
            image = np.zeros((8, 8, 3), np.uint8)
            Image.fromarray(image).save(folder / split / city / "a_1.jpg")
    with pytest.raises(InputError, match="test_b: no such folder"):
        reproduce.main(flags(folder, tmp_path / "paper"))
    assert scripts.rehearsed == []


# ---------------------------------------------------------------------------------- make paper


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_paper_fetches_tiles_and_trains():
    def recipe(*variables):
        line = ["make", "--dry-run", "--assume-old=.venv/installed", "paper", *variables]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
        lines = done.stdout.replace("\\\n", " ").splitlines()
        return [" ".join(line.split()[1:]) for line in lines if line.startswith(".venv/bin/python")]

    assert recipe() == [
        "data/fetch.py --what raw --out data/raw",
        "data/fetch.py --what models --out checkpoints/published",
        "preprocessing.py --raw data/raw --out data/patches",
        "-m dl_slicer.reproduce --data data/patches --out checkpoints/paper"
        " --models checkpoints/published --processed data/processed",
    ]
    more = "--archs resnet18 --epochs 2 -- --weights none"
    assert recipe("DATA=demo/patches", "OUT=demo/paper", f"PAPER={more}") == [
        f"-m dl_slicer.reproduce --data demo/patches --out demo/paper {more}"
    ]
