"""python -m dl_slicer.cross_validation: folds, interrupted, gone on with, tidied and refused."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import SMALL, Inline, as_flags, make_raw, signal_handlers_kept
from PIL import Image

import preprocessing
import test_classification
import train_classification
from dl_slicer import cross_validation
from dl_slicer.cli import InputError
from dl_slicer.patch_sets import on_disk, tiling
from dl_slicer.report import folds_page
from dl_slicer.results import folds as tables
from dl_slicer.results import plots
from dl_slicer.training import planned_folds, planned_runs, processes

CITIES = ("Aa (AAA)", "Bb (BBB)")
READ_FLAGS = {
    "preprocessing.py": preprocessing.read_flags,
    "train_classification.py": train_classification.read_flags,
}


FOLDS = """city,site,fold,first,patches,accuracy,odd
Aa (AAA),site1,3,yes,40,0.5,low
Aa (AAA),site1,6,no,40,0.6,
Bb (BBB),site2,1,yes,40,1.0,
"""


class Scripts:
    """The scripts in this process: preprocessing as it is, the others leave empty files.

    calls: (script, fold) in order.
    """

    def __init__(self):
        self.calls = []
        self.flags = []
        self.interrupt_at = None  # the number of the call that is interrupted at its end
        self.tables = []  # the folds of each call that wrote tables

    def check_flags(self, script, flags):
        READ_FLAGS[script](list(flags))

    def run_script(self, script, flags, count=1, passed=None):
        out = Path(flags[flags.index("--out") + 1])
        fold = str(out.parent).partition("/folds/")[2]
        self.calls.append((script.partition("_")[0].removesuffix(".py"), fold))
        self.flags.append(list(flags))
        self.run(script, flags, out)
        if len(self.calls) - 1 == self.interrupt_at:
            raise KeyboardInterrupt
        if passed:
            passed(3.0)

    def run(self, script, flags, out):
        if script == "preprocessing.py":
            preprocessing.main(list(flags))
            return
        data = Path(flags[flags.index("--data") + 1])
        assert on_disk.is_finished(data)
        names = ["last.pth"]
        if script == "test_classification.py":
            assert Path(flags[flags.index("--checkpoint") + 1]).is_file()
            names = planned_folds.RESULT_FILES
        out.mkdir(parents=True, exist_ok=True)
        for name in names:
            (out / name).touch()

    def write_tables(self, out, folds):
        self.tables.append([str(fold.results.relative_to(out)) for fold in folds])
        (out / "folds.csv").write_text(FOLDS, encoding="utf-8")
        found = {"accuracy": 0.75, "accuracy_ci95": [0.5, 0.9], "interval": "over sites"}
        (out / "metrics.json").write_text(json.dumps(found))

    def put_in_place(self, patch, has_results=False):
        """has_results: whether there are any to make tables of."""
        patch.setattr(processes, "check_flags", self.check_flags)
        patch.setattr(processes, "run_script", self.run_script)
        if not has_results:
            patch.setattr(tables, "write", self.write_tables)
            patch.setattr(folds_page, "write_folds_page", lambda out: out / "report.html")
        patch.setattr(tiling, "ProcessPoolExecutor", Inline)
        patch.setattr(planned_runs, "count_processes", lambda device: 1)


@pytest.fixture
def scripts(monkeypatch):
    scripts = Scripts()
    scripts.put_in_place(monkeypatch)
    return scripts


@pytest.fixture
def place(tmp_path):
    """A raw folder of three sites in one city and two in the other, and where folds go."""
    raw = make_raw(tmp_path / "raw", CITIES)
    (raw / CITIES[1] / "site1" / "2020.png").unlink()
    return SimpleNamespace(raw=raw, out=tmp_path / "folds")


def call(place, *own, after=("--arch", "resnet18", "--epochs", "1")):
    words = ["--raw", str(place.raw), "--out", str(place.out), *SMALL, *map(str, own)]
    cross_validation.main([*words, "--", *after])


def steps_of(*folds):
    """All patch sets first, so that none is refused when others have been trained."""
    tiled = [("preprocessing", f"fold_{n}") for n in folds]
    return tiled + [(step, f"fold_{n}") for n in folds for step in ("train", "test")]


def test_every_site_is_held_out_once(place, scripts, capsys):
    call(place)
    said = capsys.readouterr().out
    assert "2 cities of up to 3 sites; 3 folds\n" in said
    assert f"Aa (AAA){'site1':>25}{3:>20}{40:>9}{50.0:>12}  odd: low\n" in said
    assert said.count("site1 ") == 1
    assert "top-1 0.7500 (95 %: 0.5000 to 0.9000)\ninterval: over sites\n" in said
    assert scripts.calls == steps_of(1, 2, 3)
    assert scripts.tables == [["fold_1/results", "fold_2/results", "fold_3/results"]]
    tested = []
    for n in (1, 2, 3):
        regions = on_disk.load_regions(place.out / f"fold_{n}" / "patches")
        tested.append({(r.city, r.site) for r in regions if r.split == "test"})
    aa, bb = CITIES
    assert tested == [
        {(aa, "site3"), (bb, "site3")},
        {(aa, "site2"), (bb, "site2")},
        {(aa, "site1"), (bb, "site3")},  # round again
    ]
    train, test = scripts.flags[3:5]
    assert train[:6] == ["--seed", "0", "--arch", "resnet18", "--epochs", "1"]
    assert train[-1] == "--resume"
    assert as_flags({"--checkpoint": place.out / "fold_1/run/last.pth"}) == test[:2]
    assert {"--split", "held-out", "--logits"} < set(test)
    assert "cross_validation" in (place.out / "command.txt").read_text()


@pytest.mark.parametrize("number", range(9))
def test_interrupted_anywhere_it_goes_on_there(place, scripts, number):
    """Each step is left done but not noted, as by a kill right after it."""
    scripts.interrupt_at = number
    with pytest.raises(KeyboardInterrupt):
        call(place)
    scripts.interrupt_at = None
    scripts.calls.clear()
    call(place)
    done = max(0, number - 3) // 2
    assert scripts.calls == steps_of(*range(done + 1, 4))
    assert len(scripts.tables) == 1


def test_what_is_done_is_passed_over_and_more_is_added(place, scripts, capsys):
    call(place, "--folds", 1, "--tidy")
    assert not (place.out / "fold_1" / "patches").exists()
    scripts.calls.clear()
    call(place, "--folds", 2, "--workers", 2)
    assert scripts.calls == [(step, "fold_2") for step in ("preprocessing", "train", "test")]
    assert "fold_1: done before\n" in capsys.readouterr().out
    assert scripts.tables[-1] == ["fold_1/results", "fold_2/results"]
    scripts.calls.clear()
    call(place, "--folds", 2, "--tidy")
    assert scripts.calls == []
    assert not (place.out / "fold_2" / "patches").exists()
    # With --cues the results are others, and the patches are needed again.
    call(place, "--folds", 1, "--cues")
    assert scripts.calls == [(step, "fold_1") for step in ("preprocessing", "train", "test")]
    assert scripts.flags[-1][-1] == "--cues"
    scripts.calls.clear()
    call(place, "--folds", 1)
    assert scripts.calls == []


def test_results_that_are_not_whole_are_made_again(place, scripts):
    call(place, "--folds", 1)
    (place.out / "fold_1" / "results" / "metrics.json").unlink()
    scripts.calls.clear()
    call(place, "--folds", 1)
    assert [step for step, _ in scripts.calls] == ["preprocessing", "train", "test"]


def test_a_fold_that_cannot_be_is_refused_before_any_is_trained(place, scripts):
    """A raster wide enough for train, but not for halves."""
    file = place.raw / CITIES[0] / "site2" / "2020.png"
    with Image.open(file) as image:
        image.crop((0, 0, 40, image.height)).save(file)
    with pytest.raises(InputError, match="smaller than a patch"):
        call(place, "--patch-size", 32)
    assert {step for step, _ in scripts.calls} == {"preprocessing"}


@pytest.mark.parametrize("tidy", [(), ("--tidy",)])
def test_rasters_that_change_before_a_fold_is_measured_are_refused(place, scripts, tidy):
    """Else a network that was trained on a site would be measured on it as held out."""
    scripts.interrupt_at = 4  # tiled and trained, but not measured
    with pytest.raises(KeyboardInterrupt):
        call(place, *tidy)
    scripts.interrupt_at = None
    sites = [place.raw / CITIES[0] / name for name in ("site1", "site3", "other")]
    for source, target in ((0, 2), (1, 0), (2, 1)):
        sites[source].rename(sites[target])
    with pytest.raises(InputError, match="fold_1: was begun with other rasters than --raw has"):
        call(place, *tidy)
    shutil.rmtree(place.out / "fold_1")
    call(place, *tidy)


def test_other_flags_and_other_rasters_are_refused(place, scripts):
    call(place, "--folds", 1)
    calls = len(scripts.calls)
    for own, after in (
        (("--val", "site"), ("--arch", "resnet18", "--epochs", "1")),
        (("--seed", 1), ("--arch", "resnet18", "--epochs", "1")),
        (("--max-nodata", "0.5"), ("--arch", "resnet18", "--epochs", "1")),
        ((), ("--arch", "resnet34", "--epochs", "1")),
    ):
        with pytest.raises(InputError, match="holds folds made with other flags: .*--") as refusal:
            call(place, *own, after=after)
        assert "\n" not in str(refusal.value)
    (place.raw / CITIES[0] / "site2" / "2020.png").rename(place.raw / CITIES[0] / "site2" / "1.png")
    with pytest.raises(InputError, match="fold_1: was measured on other rasters than --raw has"):
        call(place)
    assert len(scripts.calls) == calls


@pytest.mark.parametrize(
    "own, after, said",
    [
        (("--held-out", 2), (), "--held-out before --: .*each fold holds out another site"),
        (("--shard", "1/2"), (), "--shard is this command's affair"),
        (("--jpeg",), (), "--jpeg before --: --jpegs is this command's affair; leave it out"),
        (("--see", 3), (), "--see before --: .*write --seed in full"),
        ((), ("--seed", "3"), "--seed after --: .*give --seed before --"),
        ((), ("--data=x",), "each fold has a patch set of its own"),
        ((), ("--resume",), "--resume is this command's affair; leave it out"),
        (("--folds", 0), (), "argument --folds: '0': must be a whole number at least 1"),
        (("--patch-siz", "x"), (), "argument --patch-size: 'x'"),
        ((), ("--no-such",), "unrecognized arguments: --no-such"),
    ],
)
def test_wrong_flags_are_told_before_anything_is_done(place, scripts, own, after, said):
    with pytest.raises(InputError, match=said):
        call(place, *own, after=after)
    assert scripts.calls == []
    assert not place.out.exists()


def test_wrong_flags_of_a_script_end_the_command_itself(place, capfd):
    with pytest.raises(SystemExit) as end:
        call(place, after=("--arch", "resnet9"))
    assert end.value.code == 2
    assert "train_classification.py: argument --arch" in capfd.readouterr().err
    assert not place.out.exists()


def test_a_curve_has_the_same_folds_with_fewer_train_sites(tmp_path, scripts):
    place = SimpleNamespace(raw=make_raw(tmp_path / "raw", CITIES, 4), out=tmp_path / "folds")
    call(place, "--folds", 1, "--curve", "--tidy", "--cues")
    folders = ("fold_1", "curve_1/fold_1", "curve_2/fold_1")
    assert [fold for step, fold in scripts.calls if step == "test"] == list(folders)
    assert scripts.tables == [[f"{folder}/results" for folder in folders]]
    assert not any((place.out / folder / "patches").exists() for folder in folders)
    tests = [flags for (step, _), flags in zip(scripts.calls, scripts.flags, strict=True)]
    assert ["--cues" in flags for flags in tests if "--logits" in flags] == [True, False, False]
    # With val from a site of its own there is one train site less.
    scripts.calls.clear()
    other = SimpleNamespace(raw=place.raw, out=tmp_path / "other" / "folds")
    call(other, "--folds", 1, "--curve", "--val", "site")
    assert [fold for step, fold in scripts.calls if step == "test"] == list(folders[:2])
    regions = on_disk.load_regions(other.out / "curve_1" / "fold_1" / "patches")
    assert len({r.site for r in regions if r.split == "train" and r.city == CITIES[0]}) == 1


def test_a_patch_set_that_is_half_removed_is_no_obstacle(place, scripts, monkeypatch):
    call(place, "--folds", 1)
    patches = place.out / "fold_1" / "patches"
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda folder: (folder / "regions.csv").unlink())
        call(place, "--folds", 1, "--tidy")
    assert not patches.exists()
    assert (patches.parent / "removed").is_dir()
    call(place, "--folds", 1, "--tidy", "--cues")
    assert sorted(path.name for path in patches.parent.iterdir()) == [
        "rasters.txt",
        "results",
        "run",
    ]


def test_probes_of_all_folds_share_their_features(place, scripts):
    call(place, "--folds", 1, after=("--probe", "--arch", "resnet18"))
    features = str(place.out / "features")
    assert features in scripts.flags[1]
    args = cross_validation.read_flags(["--out", "x", "--", "--prob", "--feat=elsewhere"])
    assert args.for_training == ["--seed", "0", "--prob", "--feat=elsewhere"]


def test_sites_by_place_and_raw_folders_that_cannot_be(place, scripts, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        call(SimpleNamespace(raw=tmp_path / "none", out=place.out))
    flat = make_raw(tmp_path / "flat", CITIES, sites=4)
    for city in CITIES:
        for n in (1, 2, 3, 4):
            (flat / city / f"site{n}" / "2020.png").rename(flat / city / f"{n}.png")
            (flat / city / f"site{n}").rmdir()
    rasters = planned_folds.Rasters(flat, place.out, sites=3)
    assert rasters.folds == 3
    assert rasters.train_sites(1, "half") == 2
    assert rasters.train_sites(1, "site") == 1


# ------------------------------------------------------------------------------ with networks

MAINS = {
    "train_classification.py": train_classification.main,
    "test_classification.py": test_classification.main,
}


class RealScripts(Scripts):
    """The scripts in this process."""

    def run(self, script, flags, out):
        if script == "preprocessing.py":
            preprocessing.main(list(flags))
            return
        with signal_handlers_kept():
            MAINS[script](list(flags))


def test_a_fold_with_a_network(place, monkeypatch):
    monkeypatch.setattr(plots, "save_plot", lambda *_: None)  # half of the time
    scripts = RealScripts()
    scripts.put_in_place(monkeypatch, has_results=True)
    after = ("--arch", "resnet18", "--weights", "none", "--epochs", "1", "--batch-size", "30")
    call(place, "--folds", 1, "--tidy", after=after)
    book = json.loads((place.out / "cross_validation.json").read_text())
    assert list(book["measured"]) == ["fold_1"]
    metrics = json.loads((place.out / "fold_1" / "results" / "metrics.json").read_text())
    assert (metrics["split"], metrics["n_rasters"]) == ("held-out", 2)
    assert metrics["checkpoint"] == str(place.out / "fold_1" / "run" / "last.pth")
    with open(place.out / "folds.csv", newline="", encoding="utf-8") as lines:
        sites = [(row["city"], row["site"], row["fold"]) for row in csv.DictReader(lines)]
    assert sites == [(city, "site3", "1") for city in CITIES]
    pooled = json.loads((place.out / "metrics.json").read_text())
    assert pooled["accuracy"] == metrics["accuracy"]
    assert "fold" in (place.out / "report.html").read_text(encoding="utf-8")
