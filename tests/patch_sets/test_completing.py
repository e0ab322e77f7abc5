"""The files that speak of all rasters, and what is removed."""

import csv
import fcntl
import json
import os
import shutil
import zlib
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from conftest import files, make_raw, picture
from preprocessing_runs import SET, changed_by, finish, read_until, start

from dl_slicer.files import atomic, locked
from dl_slicer.patch_sets import completing, records
from dl_slicer.patch_sets.on_disk import Region


def test_regions_sample_and_description(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    out = preprocess("--seed", 7)
    with open(out / "regions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["region"] for row in rows] == [
        f"{city}/site{end}"
        for city in ("Aa (AAA)", "Bb (BBB)")
        for end in ("1/2020.train", "2/2020.train", "3/2020.test", "3/2020.val")
    ]
    assert rows[3] == {
        "region": "Aa (AAA)/site3/2020.val",
        "split": "val",
        "city": "Aa (AAA)",
        "site": "site3",
        "raster": "Aa (AAA)/site3/2020.png",
        "x": "75",
        "y": "0",
        "width": "75",
        "height": "110",
        "rows": "3",
        "cols": "2",
        "file": "arrays/Aa (AAA)/site3/2020.val.npy",
    }
    with open(out / "test_b.csv", newline="", encoding="utf-8") as file:
        sample = list(csv.DictReader(file))
    assert list(sample[0]) == ["region", "row", "col"]
    assert len({tuple(row.values()) for row in sample}) == 10
    assert Counter(row["region"] for row in sample) == {
        "Aa (AAA)/site3/2020.test": 5,
        "Bb (BBB)/site3/2020.test": 5,
    }
    assert all(0 <= int(row["row"]) < 3 and 0 <= int(row["col"]) < 2 for row in sample)
    description = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
    assert description.pop("versions").keys() == {"python", "numpy", "pillow"}
    assert description == {
        "format": 1,
        "patch_size": 48,
        "stride": 24,
        "image_size": 28,
        "classes": ["Aa (AAA)", "Bb (BBB)"],
        "seed": 7,
        "test_b": 5,
        "jpegs": False,
        "raw": "../raw",
        "counts": {
            split: {"Aa (AAA)": n, "Bb (BBB)": n}
            for split, n in (("train", 30), ("val", 6), ("test", 6), ("test_b", 5))
        },
    }
    assert set(files(out)) == {
        "dataset.json",
        "regions.csv",
        "test_b.csv",
        *(row["file"] for row in rows),
        *(f"arrays/{city}/site{n}/2020.json" for city in description["classes"] for n in (1, 2, 3)),
    }


def test_test_b_is_drawn_evenly_and_by_seed():
    def region(city, split, number, rows, cols):
        name = f"{city}/s/{number}.{split}"
        raster = f"{city}/s/{number}.png"
        return Region(name, split, city, "s", raster, 0, 0, 9, 9, rows, cols, "")

    regions = sorted(
        [region("A", "test", n, 2, 3) for n in range(10)]
        + [region("A", "val", 0, 5, 5), region("B", "test", 0, 40, 40)]
    )
    drawn = completing.draw_test_b(regions, 30, 0)
    assert Counter(region.city for region, _, _ in drawn) == {"A": 30, "B": 30}
    assert len(set(drawn)) == 60
    assert drawn == sorted(drawn)
    assert all(row < region.rows and col < region.cols for region, row, col in drawn)
    assert drawn == completing.draw_test_b(regions, 30, 0) != completing.draw_test_b(regions, 30, 1)
    # Another city does not change a city's draw.
    city_a = [region for region in regions if region.city == "A"]
    assert drawn[:30] == completing.draw_test_b(city_a, 30, 0)
    # The whole city is drawn if it has no more.
    assert len(completing.draw_test_b(regions, 61, 0)) == 60 + 61
    # Over many seeds every patch comes as often.
    often = Counter(
        patch for seed in range(400) for patch in completing.draw_test_b(regions[:11], 30, seed)
    )
    assert len(often) == 60
    assert min(often.values()) > 140
    assert max(often.values()) < 260


def test_other_seed_and_size_of_test_b(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    out = preprocess("--jpegs")
    drawn = files(out)["test_b.csv"]
    for flags in (["--seed", 1], ["--test-b", 3], ["--seed", 0]):
        changed = changed_by(out, partial(preprocess, *flags))
        assert changed >= SET
        assert all(name in SET or name.startswith("test_b/") for name in changed)
        anew = preprocess("--jpegs", *flags, out=tmp_path / "-".join(map(str, flags)))
        assert files(out) == files(anew)
        assert (files(out)["test_b.csv"] == drawn) == (flags == ["--seed", 0])


def test_what_was_left_of_another_role_is_removed(preprocess, tmp_path, monkeypatch):
    """A run dies after it has written a raster's train patches; then it becomes a test raster."""
    raw = make_raw(tmp_path / "raw", cities=["A", "B"], sites=2)

    def die(request, job, begun):
        for name in (f"train/A/site1__2020_r0{row}_c00.jpg" for row in (0, 1)):
            leave_half_written(request.out / name)
        leave_half_written(request.out / "arrays/A/site1/2020.train.npy")
        leave_half_written(request.out / "arrays/A/site1/2020.json")
        raise KeyboardInterrupt  # the finished record is the last that is written

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(records, "finish", die)
        preprocess("--jpegs")
    assert (tmp_path / "out" / "train" / "A" / "site1__2020_r00_c00.jpg").is_file()
    shutil.rmtree(raw / "A" / "site2")
    (raw / "A" / "site0").mkdir()
    picture(150, 110).save(raw / "A" / "site0" / "2020.png")
    out = preprocess("--jpegs")
    assert files(out) == files(preprocess("--jpegs", out=tmp_path / "fresh"))
    assert not list((out / "train" / "A").glob("site1*"))
    assert list((out / "test" / "A").glob("site1*"))
    assert not list(out.rglob("*.tmp"))


def leave_half_written(path):
    """As a process does that is killed in files.atomic."""
    with suppress(KeyboardInterrupt), atomic(path) as file:
        file.write(b"half")
        temporary = Path(file.name)
        content = temporary.with_name("kept")
        os.link(temporary, content)
        raise KeyboardInterrupt
    content.rename(temporary)


def test_files_of_the_user_stay(preprocess, tmp_path, capsys):
    make_raw(tmp_path / "raw")
    out = preprocess("--jpegs")
    theirs = [
        "notes.txt",
        "arrays/README",
        "arrays/Aa (AAA)/site1/x.npy",
        "train/labels.json",
        "train/Aa (AAA)/my photo.jpg",
        ".tmp",
        "arrays/exp1/deep/results.json",
        "arrays/exp1/deep/config.json",
        "arrays/exp1/deep/w.train.npy",
        "arrays/Aa (AAA)/site1/.1-0123abcd.tmp",
        "test/photo_r01_c02.jpg",
        "test/Aa (AAA)/photo_r01_c02.jpg",
        "test/Aa (AAA)/site3__2020_r09_c09.jpg",
        "test/Aa (AAA)/site3__2020_r000_c00.jpg",
        "train/Aa (AAA)/site3__2020_r00_c00.jpg",
        "test_b/Aa (AAA)/extra_r00_c00.jpg",
    ]
    for name in theirs:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    (tmp_path / "raw" / "Aa (AAA)" / "site1" / "2020.png").unlink()
    (out / "empty").mkdir()
    (out / "arrays" / "empty").mkdir()
    capsys.readouterr()
    preprocess()
    assert all((out / name).read_text() == "mine" for name in theirs)
    assert (out / "arrays" / "empty").is_dir()
    assert not (out / "arrays/Aa (AAA)/site1/2020.train.npy").exists()
    line = f"{out}: arrays that no record of preprocessing.py lists were left, 1 of them, such as"
    assert f"{line} {out}/arrays/exp1/deep/w.train.npy; delete" in capsys.readouterr().out


def test_completing_waits_for_those_at_work(preprocess, tmp_path, monkeypatch, capsys):
    """One process cleans up under the lock alone: while another one works, it waits."""
    make_raw(tmp_path / "raw")
    remove_leftovers = completing.remove_leftovers
    held = []

    def look(request, *arguments):
        with open(request.out / ".lock") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        held.append(True)
        return remove_leftovers(request, *arguments)

    monkeypatch.setattr(completing, "remove_leftovers", look)
    out = preprocess()
    assert held == [True]
    with locked(out, shared=True):
        process = start("--seed", 5, raw=tmp_path / "raw", out=out)
        line = read_until(process, "waiting")
        assert line == f"{out}: waiting for another process that works on this patch set\n"
        assert process.poll() is None
    assert finish(process)[0] == 0
    assert json.loads((out / "dataset.json").read_text())["seed"] == 5


class Stop:
    """Has what changes the disk raise KeyboardInterrupt when it is called for the step-th time."""

    def __init__(self, patch, step):
        self.step = step
        self.steps = 0
        for name in ("replace", "unlink", "rmdir", "sync", "fsync"):
            patch.setattr(os, name, partial(self.call, getattr(os, name)))

    def call(self, function, *arguments, **options):
        self.steps += 1
        if self.steps == self.step:
            raise KeyboardInterrupt
        return function(*arguments, **options)


def test_killed_while_completing(preprocess, tmp_path, monkeypatch):
    """Killed at each of the steps after the last raster: they are too short to be met by chance."""
    make_raw(tmp_path / "raw")
    sets = [
        files(preprocess("--jpegs", "--seed", seed, out=tmp_path / f"{seed}")) for seed in (0, 1)
    ]
    out = preprocess("--jpegs")
    for step in range(1, 1000):
        with monkeypatch.context() as patch:
            stop = Stop(patch, step)
            with suppress(KeyboardInterrupt):
                preprocess("--seed", step % 2)
        if (out / "dataset.json").exists():  # then all the rest is there
            assert files(out) in sets
        if stop.steps < step:
            break
        preprocess("--seed", step % 2)
        assert files(out) == sets[step % 2], step
    assert step > 20


def test_what_a_process_killed_while_completing_left_is_removed(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    out = preprocess()
    expected = files(out)
    (out / f".123-{zlib.crc32(b'regions.csv'):08x}.tmp").write_bytes(b"region,row")
    preprocess()
    assert files(out) == expected
    (out / ".123-0a1b2c3d.tmp").write_bytes(b"of a file that is none of ours")
    preprocess()
    assert files(out).keys() == expected.keys() | {".123-0a1b2c3d.tmp"}
