"""Second runs: only what is missing or changed is made."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import files, make_raw, picture
from preprocessing_runs import SET, changed_by, refused

from dl_slicer.patch_sets import on_disk, reading, records


def test_a_second_run_does_nothing(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    out = preprocess("--jpegs")
    assert changed_by(out, lambda: preprocess("--jpegs")) == set()
    assert changed_by(out, preprocess) == set()  # the JPEGs stay as they are
    assert json.loads((out / "dataset.json").read_text())["jpegs"] is True


def turn_over(file):
    """Have an array of the same size with height and width exchanged."""
    height, width, _ = np.load(file).shape
    np.save(file, np.load(file).reshape(width, height, 3))


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
        lambda: turn_over(out / "arrays/Aa (AAA)/site1/2020.train.npy"),
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
    copy.write_bytes(b"")  # as a power cut leaves it
    preprocess()
    assert files(out) == expected


@pytest.mark.parametrize("name", sorted(SET))
@pytest.mark.parametrize("damage", [b"", b"{", b'{"format": 1}', b"\xff", b"region,row\n"])
def test_what_is_told_of_a_damaged_table_mends_it_and_loses_nothing(
    preprocess, tmp_path, name, damage
):
    make_raw(tmp_path / "raw")
    out = preprocess("--seed", 3)
    expected = files(out)
    (out / name).write_bytes(damage)
    (line,) = refused(partial(reading.open_split, out, "test_b"), name)
    assert "run preprocessing.py again" in line
    if "move it away" in line:
        refused(partial(preprocess, "--seed", 3), "move it away")
        (out / name).rename(tmp_path / "away")
    changed = changed_by(out, partial(preprocess, "--seed", 3))
    assert changed <= SET
    assert files(out) == expected


def paths_in(folder):
    """Of folders, too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_rasters_that_change_come_and_go(preprocess, tmp_path):
    """After whatever happens to the raw folder, a set is what it would be if made anew.

    And only that is tiled which has to be.
    """
    raw = make_raw(tmp_path / "raw", cities=["Aa (AAA)", "Bb (BBB)", "Cc (CCC)"], sites=4)
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
        changed = changed_by(out, partial(preprocess, *["--prune"] * (name == "city gone")))
        written = {name for name in changed if name.endswith(".json") and (out / name).exists()}
        made = {Path(name).with_suffix("") for name in written - {"dataset.json"}}
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
        patch.setattr(records, "finish", die)
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
        "dataset.json: patch set of format 0, this version has 1 and 2;"
        " delete the set and make it anew",
    )
    (out / "dataset.json").write_text("{")
    refused(preprocess, "dataset.json: damaged")
    (out / "dataset.json").unlink()  # an unfinished set is not mixed with another either
    refused(lambda: preprocess("--stride", 12), "made with --stride 24; choose")
    preprocess()
    assert files(out) == before


# ------------------------------------------------------------------------------- gone rasters


def test_one_raster_that_is_gone_is_announced_and_removed(preprocess, tmp_path, capsys):
    raw = make_raw(tmp_path / "raw")
    out = preprocess("--jpegs")
    (raw / "Aa (AAA)" / "site2" / "2020.png").unlink()
    capsys.readouterr()
    preprocess()
    line = f"{raw}: 1 of the 6 rasters of {out} are gone; what was made of them is removed; the"
    assert line in capsys.readouterr().out
    anew = preprocess("--jpegs", out=tmp_path / "anew")
    assert files(out) == files(anew)
    assert paths_in(out) == paths_in(anew)


@pytest.mark.parametrize("killed", [False, True])
def test_a_city_that_is_gone_empties_no_set(preprocess, tmp_path, capsys, killed):
    raw = make_raw(tmp_path / "raw", cities=["Aa (AAA)", "Bb (BBB)", "Cc (CCC)"])
    out = preprocess("--jpegs")
    if killed:
        (out / "dataset.json").unlink()
    before = files(out)
    (raw / "Bb (BBB)").rename(tmp_path / "unmounted")
    flags = [[], ["--jpegs"], ["--shard", "1/2"], ["--seed", 3]]
    for more in flags:
        (line,) = refused(partial(preprocess, *more), "3 of the 9 rasters of", "add --prune")
        assert "are gone, all of Bb (BBB) among them; the first is Bb (BBB)/site1/2020" in line
        assert files(out) == before
    preprocess("--prune")
    assert f"{raw}: 3 of the 9 rasters of {out} are gone; what" in capsys.readouterr().out
    anew = preprocess("--jpegs", out=tmp_path / "anew")
    assert files(out) == files(anew)
    assert paths_in(out) == paths_in(anew)


def test_many_rasters_that_are_gone_and_few(preprocess, tmp_path):
    raw = make_raw(tmp_path / "raw", sites=10)
    out = preprocess()
    before = files(out)
    for number in (1, 2, 3):
        (raw / "Aa (AAA)" / f"site{number}" / "2020.png").rename(tmp_path / f"{number}.png")
    refused(preprocess, "3 of the 20 rasters of")
    assert files(out) == before
    (tmp_path / "3.png").rename(raw / "Aa (AAA)" / "site3" / "2020.png")
    preprocess()  # two are a tenth, and no more
    assert files(out) == files(preprocess(out=tmp_path / "anew"))


def test_another_raw_folder(preprocess, tmp_path):
    """Is fine as long as no recorded raster is missing from it."""
    raw = make_raw(tmp_path / "raw")
    out = preprocess()
    before = files(out)
    (tmp_path / "elsewhere").mkdir()
    other = make_raw(tmp_path / "elsewhere" / "raw", cities=["Cc (CCC)", "Dd (DDD)"])
    refused(lambda: preprocess(raw=other), "6 of the 6 rasters of")
    assert files(out) == before
    shutil.copytree(raw, other, dirs_exist_ok=True)
    preprocess(raw=other)
    assert files(out) == files(preprocess(raw=other, out=tmp_path / "anew"))


def test_renamed_rasters_and_sites_are_not_gone(preprocess, tmp_path, capsys):
    raw = make_raw(tmp_path / "raw")
    out = preprocess()
    for number in (1, 2, 3):
        site = raw / "Aa (AAA)" / f"site{number}"
        (site / "2020.png").rename(site / "2021.png")
        (raw / "Bb (BBB)" / f"site{number}").rename(raw / "Bb (BBB)" / f"place{number}")
    capsys.readouterr()
    preprocess()
    assert "are gone" not in capsys.readouterr().out
    assert files(out) == files(preprocess(out=tmp_path / "anew"))


def test_killed_after_rasters_were_renamed(preprocess, tmp_path, monkeypatch):
    """The records that are left by then are of the new names alone."""
    raw = make_raw(tmp_path / "raw")
    out = preprocess("--jpegs")
    for number in (1, 2, 3):
        site = raw / "Aa (AAA)" / f"site{number}"
        (site / "2020.png").rename(site / "2021.png")
    finish = records.finish

    def die(request, job, begun):
        finish(request, job, begun)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(records, "finish", die)
        preprocess()
    preprocess("--jpegs")
    assert files(out) == files(preprocess("--jpegs", out=tmp_path / "anew"))


def test_a_raster_that_could_not_be_read_does_not_count(preprocess, tmp_path):
    """The first one to be tiled gets its record before it is read."""
    raw = make_raw(tmp_path / "raw")
    for city in ("Aa (AAA)", "Bb (BBB)"):
        site = raw / city / "site1"
        picture(150, 110).save(site / "2019.png")
        os.truncate(site / "2019.png", 9000)
    refused(lambda: preprocess("--shard", "1/8"), "2019.png: ")
    refused(lambda: preprocess("--shard", "5/8"), "2019.png: ")
    for city in ("Aa (AAA)", "Bb (BBB)"):
        (raw / city / "site1" / "2019.png").unlink()
    out = preprocess()
    assert files(out) == files(preprocess(out=tmp_path / "anew"))


# ------------------------------------------------------------------------------- others' files


def test_a_folder_without_our_records_is_refused(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    theirs = [
        "arrays/exp1/deep/results.json",
        "arrays/exp1/deep/w.train.npy",
        "arrays/notes",
        "train/Aa (AAA)/x_r00_c00.jpg",
        "test/photo_r01_c02.jpg",
        "test_b",
        "dataset.json",
        "regions.csv",
        "test_b.csv",
    ]
    for name in theirs:
        out = tmp_path / "out"
        file = out / name
        file.parent.mkdir(parents=True)
        file.write_text('{"job": {}, "settings": {}, "regions": []}')
        for flags in ([], ["--jpegs"], ["--prune"]):
            refused(partial(preprocess, *flags), f"holds {Path(name).parts[0]}: files or folders")
            assert files(out) == {name: file.read_bytes()}
        shutil.rmtree(out)


def test_records_that_list_what_is_not_theirs_are_none(preprocess, tmp_path):
    """A record by hand could name files outside the set: those must not be deleted."""
    raw = make_raw(tmp_path / "raw")
    out = preprocess("--jpegs")
    record = json.loads((out / "arrays/Aa (AAA)/site1/2020.json").read_text())
    outside = tmp_path / "victim.train.npy"
    outside.write_text("mine")
    (raw / "Aa (AAA)" / "site1" / "2020.png").unlink()
    inside = out / "arrays/Aa (AAA)/site1/mine.train.npy"
    inside.write_text("mine")
    (out / "train" / "mine").mkdir()
    (out / "train" / "mine" / "site1__2020_r00_c00.jpg").write_text("mine")
    region = on_disk.Region(*record["regions"][0])
    wrong = (
        {"file": "../victim.train.npy"},
        {"file": "arrays/Aa (AAA)/site1/mine.train.npy", "region": "Aa (AAA)/site1/mine.train"},
        {"city": "mine"},
        {"city": "../.."},
        {"split": "../train"},
        {"rows": "3"},
        {"raster": "Aa (AAA)/site1/mine.png"},
    )
    for seed, changes in enumerate(wrong, 1):
        changed = {**record, "regions": [region._replace(**changes)]}
        (out / "arrays/Aa (AAA)/site1/2020.json").write_text(json.dumps(changed))
        assert records.load(out, "Aa (AAA)/site1/2020.png") is None, changes
        preprocess("--seed", seed)
        kept = (outside, inside, out / "train" / "mine" / "site1__2020_r00_c00.jpg")
        assert all(path.read_text() == "mine" for path in kept)


def test_no_file_of_others_is_written_over(preprocess, tmp_path):
    raw = make_raw(tmp_path / "raw")
    out = preprocess("--jpegs")
    site = raw / "Aa (AAA)" / "site1"
    picture(150, 110, seed=5).save(site / "2021.png")
    theirs = ["arrays/Aa (AAA)/site1/2021.json", "arrays/Aa (AAA)/site1/2021.train.npy"]
    theirs.append("train/Aa (AAA)/site1__2021_r01_c02.jpg")
    for name in theirs:
        (out / name).write_text("mine")
        line = f"2021.png: {out / name} would be written over"
        refused(preprocess, line, "6 of 7 rasters are done and kept")
        assert (out / name).read_text() == "mine"
        (out / name).unlink()
    preprocess()
    assert files(out) == files(preprocess("--jpegs", out=tmp_path / "anew"))


def test_a_set_that_an_earlier_version_left_unfinished(preprocess, tmp_path, capsys):
    """Its record came last: of a raster at which it was killed there are files and no record."""
    raw = make_raw(tmp_path / "raw")
    expected = files(preprocess("--jpegs"))
    out = tmp_path / "out"
    for name in ("dataset.json", "arrays/Aa (AAA)/site2/2020.json"):
        (out / name).unlink()
    preprocess()
    assert files(out) == expected
    # And if the raster is gone by then, its array is left and named.
    for name in ("dataset.json", "arrays/Aa (AAA)/site2/2020.json"):
        (out / name).unlink()
    (raw / "Aa (AAA)" / "site2" / "2020.png").unlink()
    capsys.readouterr()
    preprocess()
    left = out / "arrays/Aa (AAA)/site2/2020.train.npy"
    assert left.exists()
    line = f"lists were left, 1 of them, such as {left};"
    assert line in capsys.readouterr().out


def test_a_killed_run_has_listed_its_files(preprocess, tmp_path, monkeypatch):
    """A raster that is gone after the run that tiled it was killed leaves nothing behind."""
    raw = make_raw(tmp_path / "raw")

    def die(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(records, "finish", die)
        preprocess("--jpegs")
    out = tmp_path / "out"
    assert (out / "train/Aa (AAA)/site1__2020_r02_c04.jpg").is_file()
    (raw / "Aa (AAA)" / "site1" / "2020.png").unlink()
    preprocess("--prune")
    anew = preprocess("--jpegs", out=tmp_path / "anew")
    assert files(out) == files(anew)
    assert paths_in(out) == paths_in(anew)
