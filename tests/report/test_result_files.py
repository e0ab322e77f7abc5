"""Damaged files are the user's, in one line that names them; all other faults are ours."""

import json
import os
import shutil
import subprocess
import sys

import jinja2
import pytest
from conftest import ROOT
from made_up_results import made_up
from page_checks import check

from dl_slicer import files
from dl_slicer.cli import InputError
from dl_slicer.report import page, sections
from dl_slicer.report.page import write_report

TEST_AGAIN = "run it again"
MOVE_AWAY = "move it away"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole test of three cities with its run and its patch set; only to be copied."""
    folder = tmp_path_factory.mktemp("whole")
    out = folder / "run" / "test_b"
    made_up(out, ["Aa (AAA)", "Bb (BBB)", "Cc"])
    patch_set = {
        "raw": "../raw",
        "patch_size": 480,
        "stride": 240,
        "image_size": 224,
        "classes": ["Aa (AAA)", "Bb (BBB)", "Cc"],
        "counts": {"train": {"Aa (AAA)": 40, "Bb (BBB)": 41}, "val": {"Aa (AAA)": 7}},
    }
    (folder / "patches").mkdir()
    (folder / "patches" / "dataset.json").write_text(json.dumps(patch_set))
    write_report(out).unlink()
    return folder


@pytest.fixture
def results(whole, tmp_path):
    """The folder of a test's results, to be damaged."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    out = tmp_path / "run" / "test_b"
    checkpoint = str(tmp_path / "run" / "best.pth")
    change_json(out / "metrics.json", data=str(tmp_path / "patches"), checkpoint=checkpoint)
    return out


def change_json(file, **changes):
    found = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps(found), encoding="utf-8")


def replace(file, old, new):
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def refused(out, *parts):
    """The page is not written, and the one line about it has all these parts."""
    with pytest.raises(InputError) as error:
        write_report(out)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    for part in parts:
        assert part in message
    assert not (out / "report.html").exists()


@pytest.mark.parametrize("name", ["metrics.json", "per_city.csv"])
def test_a_file_without_which_there_is_no_page(results, name):
    (results / name).unlink()
    refused(results, name, "no whole results", "not there", TEST_AGAIN)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n", "many"),
        ("n", -1),
        ("n_rasters", None),
        ("accuracy", float("nan")),
        ("accuracy", [0.5]),
        ("accuracy_ci95", [0.5]),
        ("accuracy_ci95", [0.5, "high"]),
        ("ece", {}),
        ("epoch", 10**12),
        ("epoch", float("inf")),
        ("views_rank_correlation", "none"),
        ("confused_pairs", [{"a": "Aa"}]),
        ("confused_pairs", 3),
        ("versions", ["2.6"]),
    ],
)
def test_a_wrong_value_in_metrics(results, key, value):
    change_json(results / "metrics.json", **{key: value})
    refused(results, "metrics.json", "no whole results", TEST_AGAIN)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\udcff"])
def test_metrics_that_are_no_mapping(results, text):
    (results / "metrics.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(results, "metrics.json", "no whole results", TEST_AGAIN)


def test_a_missing_key_is_named(results):
    found = json.loads((results / "metrics.json").read_text())
    del found["macro_f1"]
    (results / "metrics.json").write_text(json.dumps(found))
    refused(results, "metrics.json", "it has no macro_f1")


@pytest.mark.parametrize(
    ("name", "old", "new", "where"),
    [
        ("per_city.csv", ",12,", ",twelve,", "line 2"),
        ("per_city.csv", ",12,", ",", "line 2: not as many fields"),
        ("per_city.csv", ",12,", ",12,12,", "line 2: not as many fields"),
        ("per_city.csv", "f1", "f2", "it has no f1"),
        ("confusion_matrix.csv", "Bb (BBB),", "", "rows and columns"),
        ("nearest.csv", "features_3", "features_4", "it has no features_3"),
        ("nearest.csv", "yes", "perhaps", "told_apart: 'perhaps'"),
        ("similarity.csv", "0.5", "half", "line 2"),
        ("portraits/portraits.csv", "0.987654", "1/2", "line 2"),
        ("portraits/portraits.csv", "typical", "usual", "unknown role"),
        ("portraits/portraits.csv", "tile", "file", "it has no tile"),
    ],
)
def test_a_damaged_table(results, name, old, new, where):
    replace(results / name, old, new)
    refused(results, name.split("/")[-1], where, "no whole results", TEST_AGAIN)


def test_a_matrix_with_a_number_below_0(results):
    (results / "confusion_matrix.csv").write_text("true,Aa,Bb\nAa,1,-1\nBb,0,0\n")
    refused(results, "confusion_matrix.csv", "below 0", TEST_AGAIN)


@pytest.mark.parametrize("text", ["", "city\n"])
def test_an_empty_table_of_cities(results, text):
    (results / "per_city.csv").write_text(text)
    refused(results, "per_city.csv", "names no city", TEST_AGAIN)


@pytest.mark.parametrize("name", ["similarity.png", "reliability.png"])
def test_a_picture_that_is_cut_short(results, name):
    content = (results / name).read_bytes()
    (results / name).write_bytes(content[:-20])
    refused(results, name, "no whole PNG", TEST_AGAIN)


def test_a_tile_that_is_missing_or_cut_short(results):
    tile = results / "portraits" / "tiles" / "0_0.jpg"
    content = tile.read_bytes()
    tile.write_bytes(content[:-20])
    refused(results, "portraits.csv", "tiles/0_0.jpg is no whole JPEG", TEST_AGAIN)
    tile.unlink()
    refused(results, "0_0.jpg", "not there", TEST_AGAIN)


@pytest.mark.parametrize("name", ["../../secret.jpg", "/secret.jpg", "tiles/link.jpg"])
def test_a_tile_outside_the_folder(results, name):
    tile = results / "portraits" / "tiles" / "0_0.jpg"
    secret = results.parent / "secret.jpg"
    secret.write_bytes(tile.read_bytes())
    os.symlink(secret, tile.with_name("link.jpg"))
    path = str(secret) if name.startswith("/") else name
    replace(results / "portraits" / "portraits.csv", "tiles/0_0.jpg", path)
    refused(results, "portraits.csv", "lies outside", TEST_AGAIN)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("log.csv", "9.5", "high"),
        ("log.csv", "0.72", ""),
        ("config.json", '"data_set": {', '"data_set": [{'),
        ("config.json", '"train": 99', '"train": "all"'),
        ("config.json", '"epochs": 3', '"epochs": 3, "given": "--lr 1"'),
        ("../patches/dataset.json", "480", "null"),
        ("../patches/dataset.json", "40", "-40"),
    ],
)
def test_what_the_test_did_not_write_is_not_tested_again(results, name, old, new):
    replace(results.parent / name, old, new)
    refused(results, name.split("/")[-1], "damaged", MOVE_AWAY)


def test_the_page_does_without_what_is_not_there(results):
    for name in ("confusion_matrix.csv", "nearest.csv", "similarity.png", "reliability.png"):
        (results / name).unlink()
    (results / "portraits" / "portraits.csv").unlink()
    checked = check(write_report(results))
    assert checked.faults == []
    assert checked.attributes_of("img") == []
    headings = checked.words()
    assert "What is taken for what" not in headings
    assert "What makes each city itself" not in headings
    assert "How it was trained" in headings


def test_facts_of_the_training_come_from_the_run(results):
    """Not from the patch set of the test, which may be another, or one that was made anew."""
    change_json(
        results / "metrics.json", patch_size=480, stride=120, image_size=224, trained_stride=240
    )
    words = check(write_report(results)).words()
    assert "99 patches of 3 cities; watched on 9 patches (val)" in words
    assert "Patches trained on 480 × 480 pixels every 240, seen at 224 × 224" in words
    measured = "480 × 480 pixels every 120, seen at 224 × 224 (in training every 240)"
    assert f"Patches measured on {measured}" in words


def test_sizes_that_are_those_of_the_training_are_said_once(results):
    assert "Patches 480 × 480 pixels every 240" in check(write_report(results)).words()


def test_without_the_run_nothing_is_said_of_its_patches(results):
    (results.parent / "config.json").unlink()
    words = check(write_report(results)).words()
    assert "(val)" not in words.replace("watched (val)", "")
    assert "Patches measured on 480 × 480 pixels every 240" in words


@pytest.mark.parametrize("name", ["metrics.json", "../config.json"])
def test_json_too_deep_to_be_read(results, name):
    (results / name).write_text("[" * 100_000)
    refused(results, name.strip("./"), "damaged" if ".." in name else TEST_AGAIN)


@pytest.mark.parametrize("name", ["metrics.json", "per_city.csv"])
@pytest.mark.parametrize("kind", ["loop", "pipe", "folder"])
def test_what_is_no_file_is_neither_waited_for_nor_a_traceback(results, name, kind):
    file = results / name
    file.unlink()
    if kind == "loop":
        file.symlink_to(file)
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.mkdir()
    refused(results, name, TEST_AGAIN)


def test_a_long_value_is_told_shortly(results):
    replace(results / "per_city.csv", ",0.9,", f",{'9' * 5000},")
    refused(results, "per_city.csv", TEST_AGAIN, "999 …")


# Faults of ours


def test_an_error_in_python_keeps_its_traceback(results, monkeypatch):
    def broken(results):
        return {}["no such key"]

    monkeypatch.setattr(sections, "accuracy", broken)
    with pytest.raises(KeyError):
        write_report(results)
    assert not (results / "report.html").exists()


def test_a_name_that_a_template_does_not_find_keeps_its_traceback(results, monkeypatch):
    monkeypatch.setattr(page, "sections", lambda results: [sections.Section("cities", "C", None)])
    with pytest.raises(jinja2.UndefinedError):
        write_report(results)
    assert not (results / "report.html").exists()


# The command


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "dl_slicer.report", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_the_command_prints_where_the_page_lies(results):
    done = command(results)
    assert done.returncode == 0
    assert done.stdout == f"{results / 'report.html'}\n"
    assert (results / "report.html").is_file()


def test_the_command_waits_for_no_test_that_writes_there(results):
    """The page would tell of results of before, or of half the new ones."""
    with files.hold(results):
        done = command(results)
    assert done.returncode == 2
    assert f"process {os.getpid()} on " in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (results / "report.html").exists()
    assert command(results).returncode == 0
    assert not (results / ".lock").exists()


def test_the_command_refuses_in_one_line(tmp_path):
    done = command(tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("python -m dl_slicer.report: ")
    assert "run it again" in done.stderr


def test_the_report_needs_little():
    code = "import dl_slicer.report.page, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"torch", "numpy", "PIL", "matplotlib"} & set(done.stdout.split())
