"""Second runs: only what is missing or changed is made."""

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import files, make_raw, picture
from preprocessing_runs import SET, changed_by, refused


def test_a_second_run_does_nothing(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    out = preprocess("--jpegs")
    assert changed_by(out, lambda: preprocess("--jpegs")) == set()
    assert changed_by(out, preprocess) == set()  # the JPEGs stay as they are
    assert json.loads((out / "dataset.json").read_text())["jpegs"] is True


def test_a_second_run_makes_what_is_missing(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    out = preprocess("--jpegs")
    expected = files(out)
    one = {
        name
        for name in expected
        if name.startswith("arrays/Aa (AAA)/site1/") or name.startswith("train/Aa (AAA)/site1__")
    }
    assert len(one) == 2 + 15
    damages = [
        lambda: (out / "arrays/Aa (AAA)/site1/2020.train.npy").unlink(),
        lambda: os.truncate(out / "arrays/Aa (AAA)/site1/2020.train.npy", 2000),
        lambda: (out / "train/Aa (AAA)/site1__2020_r01_c01.jpg").unlink(),
        lambda: os.truncate(out / "train/Aa (AAA)/site1__2020_r01_c01.jpg", 0),
        lambda: (out / "arrays/Aa (AAA)/site1/2020.json").write_text('{"settings": 1}'),
        lambda: (out / "arrays/Aa (AAA)/site1/2020.json").write_text("{"),
        lambda: (out / "arrays/Aa (AAA)/site1/2020.json").write_text("[]"),
        lambda: (out / "arrays/Aa (AAA)/site1/2020.json").write_bytes(b"\xff"),
    ]
    for damage in damages:
        damage()
        # regions.csv and test_b.csv are written anew with dataset.json, in that order.
        copies = {name for name in expected if name.startswith("test_b/")}
        assert changed_by(out, preprocess) == one | SET | copies
        assert files(out) == expected
    copy = next((out / "test_b/Aa (AAA)").iterdir())
    for name in SET | {f"test_b/Aa (AAA)/{copy.name}"}:
        (out / name).unlink()
        assert not any(
            name.endswith((".npy", ".json")) and name.startswith("arrays")
            for name in changed_by(out, preprocess)
        )
        assert files(out) == expected
    (out / "regions.csv").write_text("edited")
    preprocess()
    assert files(out) == expected


def paths_in(folder):
    """Of folders, too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_rasters_that_change_come_and_go(preprocess, tmp_path):
    """After whatever happens to the raw folder, a set is what it would be if made anew.

    And only that is tiled which has to be.
    """
    raw = make_raw(tmp_path / "raw", sites=4)
    out = preprocess("--jpegs")
    a = raw / "Aa (AAA)"

    def replace(path, **options):
        path.unlink()
        picture(150, 110, seed=77).save(path)

    def add_site():
        (a / "site9").mkdir()
        picture(150, 110, seed=78).save(a / "site9" / "new.png")

    steps = [
        ("changed", lambda: replace(a / "site1" / "2020.png"), {"Aa (AAA)/site1/2020"}),
        ("touched", lambda: os.utime(a / "site1" / "2020.png", ns=(1, 1)), {"Aa (AAA)/site1/2020"}),
        (
            "renamed",
            lambda: (a / "site1" / "2020.png").rename(a / "site1" / "2021.png"),
            {"Aa (AAA)/site1/2021"},
        ),
        (
            "added",
            lambda: picture(150, 110, seed=79).save(a / "site1" / "2022.png"),
            {"Aa (AAA)/site1/2022"},
        ),
        ("removed", lambda: (a / "site1" / "2022.png").unlink(), set()),
        (
            "smaller",
            lambda: picture(100, 50).save(a / "site1" / "2021.png"),
            {"Aa (AAA)/site1/2021"},
        ),
        ("held out site changes", add_site, {"Aa (AAA)/site9/new", "Aa (AAA)/site4/2020"}),
        ("and back", lambda: shutil.rmtree(a / "site9"), {"Aa (AAA)/site4/2020"}),
        ("site renamed", lambda: (a / "site1").rename(a / "site0"), {"Aa (AAA)/site0/2021"}),
        (
            "other suffix",
            lambda: (a / "site2" / "2020.png").rename(a / "site2" / "2020.jpg"),
            {"Aa (AAA)/site2/2020"},
        ),
        ("city gone", lambda: shutil.rmtree(raw / "Bb (BBB)"), set()),
    ]
    for name, step, tiled in steps:
        step()
        changed = changed_by(out, preprocess)
        records = {name for name in changed if name.endswith(".json") and (out / name).exists()}
        made = {Path(name).with_suffix("") for name in records - {"dataset.json"}}
        assert made == {Path("arrays", raster) for raster in tiled}, name
        assert changed >= SET or name == "touched", name
        anew = preprocess("--jpegs", out=tmp_path / name)
        assert files(out) == files(anew), name
        assert paths_in(out) == paths_in(anew), name


def test_a_raster_that_comes_back_after_a_run_died_on_another(preprocess, tmp_path, monkeypatch):
    """The record of the first must not vouch for arrays of the second.

    Not even though size and time of the raster are what they were.
    """
    raster = make_raw(tmp_path / "raw") / "Aa (AAA)" / "site1" / "2020.png"
    before = files(preprocess())
    content = raster.read_bytes()
    status = raster.stat()
    picture(150, 110, seed=99).save(raster)

    def die(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(json, "dump", die)
        preprocess()
    raster.write_bytes(content)
    os.utime(raster, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files(preprocess()) == before


def test_jpegs_can_be_added(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    out = preprocess()
    preprocess("--jpegs")
    assert files(out) == files(preprocess("--jpegs", out=tmp_path / "fresh"))


def test_other_settings_and_older_sets_are_refused(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    out = preprocess()
    before = files(out)
    refused(
        lambda: preprocess("--stride", 12),
        "this patch set was made with --stride 24; choose another --out, or delete it first",
    )
    refused(
        lambda: preprocess("--patch-size", 96, "--image-size", 56),
        "made with --patch-size 48 --image-size 28;",
    )
    assert files(out) == before
    (out / "dataset.json").write_text(
        before["dataset.json"].decode().replace('"format": 1', '"format": 0')
    )
    refused(
        preprocess,
        "dataset.json: patch set of format 0, this version has 1; delete the set and make it anew",
    )
    (out / "dataset.json").write_text("{")
    refused(preprocess, "dataset.json: damaged")
    (out / "dataset.json").unlink()  # an unfinished set is not mixed with another either
    refused(lambda: preprocess("--stride", 12), "made with --stride 24; choose")
    preprocess()
    assert files(out) == before
