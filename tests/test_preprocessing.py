"""Rasters to patch set: geometry, splits, layout, faults, second runs, shards, and being killed."""

import csv
import errno
import fcntl
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SMALL, Inline, files, make_raw, picture
from PIL import Image

import preprocessing
from dl_slicer.cli import InputError, run
from dl_slicer.files import atomic, locked
from dl_slicer.patch_sets import completing, on_disk, reading, tiling
from dl_slicer.patch_sets.on_disk import Region


def command(*flags, raw, out):
    return [
        sys.executable,
        "preprocessing.py",
        "--raw",
        str(raw),
        "--out",
        str(out),
        *SMALL,
        *map(str, flags),
    ]


def finish(process):
    """(exit status, stdout, stderr) of a process, once it has ended."""
    try:
        output, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()  # its workers follow
        raise
    return process.returncode, output, errors


def start(*flags, raw, out, **options):
    return subprocess.Popen(
        command(*flags, raw=raw, out=out),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def regions_of(out):
    return {region.region: region for region in on_disk.load_regions(out)}


def array(out, region):
    return np.load(out / region.file)


# ------------------------------------------------------------------------------------------------------------ geometry and split


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """(raster, patch set) of 4800 x 4800 pixels with the published geometry."""
    root = tmp_path_factory.mktemp("full")
    raster = picture(4800, 4800)
    for site in ("site1", "site2"):
        (root / "raw" / "City (CTY)" / site).mkdir(parents=True)
    raster.save(root / "raw" / "City (CTY)" / "site1" / "2020.tif")
    shutil.copy(
        root / "raw" / "City (CTY)" / "site1" / "2020.tif",
        root / "raw" / "City (CTY)" / "site2" / "2020.tif",
    )
    preprocessing.main(["--raw", str(root / "raw"), "--out", str(root / "out"), "--workers", "2"])
    return raster, root / "out"


def test_361_train_171_test_and_171_val_patches(full_size):
    _, out = full_size
    train, test, val = (
        regions_of(out)[f"City (CTY)/{name}"]
        for name in ("site1/2020.train", "site2/2020.test", "site2/2020.val")
    )
    assert (train.rows, train.cols, train.x, train.width) == (19, 19, 0, 4800)
    assert (test.rows, test.cols, test.x, test.width) == (19, 9, 0, 2400)
    assert (val.rows, val.cols, val.x, val.width) == (19, 9, 2400, 2400)
    assert [len(reading.open_split(out, split)) for split in on_disk.SPLITS] == [361, 171, 171, 171]
    # None across the middle, none over an edge.
    assert (
        test.x + (test.cols - 1) * 240 + 480 <= 2400 <= val.x
        and val.x + (val.cols - 1) * 240 + 480 <= 4800
    )
    assert array(out, train).shape == (2240, 2240, 3) and array(out, test).shape == array(
        out, val
    ).shape == (2240, 1120, 3)


def test_slices_equal_resized_crops(full_size):
    raster, out = full_size
    rng = np.random.default_rng(0)
    for split, x in (("train", 0), ("test", 0), ("val", 2400)):
        dataset = reading.open_split(out, split)
        for i in {0, len(dataset) - 1, *rng.integers(len(dataset), size=20).tolist()}:
            _, row, col = dataset.locate(i)
            left, upper = x + 240 * col, 240 * row
            crop = np.asarray(
                raster.crop((left, upper, left + 480, upper + 480)).resize(
                    (224, 224), Image.Resampling.BILINEAR
                ),
                int,
            )
            difference = np.abs(crop - dataset.read([i])[0])
            assert difference[2:-2, 2:-2].max() == 0, dataset.name(i)
            assert difference.max() <= 5, dataset.name(i)


@pytest.mark.parametrize(
    "width, height", [(150, 110), (151, 48), (149, 97), (96, 71), (153, 500), (240, 240)]
)
def test_windows_of_any_size_of_raster(preprocess, tmp_path, width, height):
    make_raw(tmp_path / "raw", cities=["A"], sites=2, size=(width, height))
    out = preprocess()
    half = round(width / 2)
    for name, x, wide in (
        ("site1/2020.train", 0, width),
        ("site2/2020.test", 0, half),
        ("site2/2020.val", half, width - half),
    ):
        region = regions_of(out)[f"A/{name}"]
        assert (region.x, region.y, region.width, region.height) == (x, 0, wide, height)
        assert region.cols == len([left for left in range(0, wide, 24) if left + 48 <= wide])
        assert region.rows == len([upper for upper in range(0, height, 24) if upper + 48 <= height])
        assert array(out, region).shape == (
            14 * (region.rows - 1) + 28,
            14 * (region.cols - 1) + 28,
            3,
        )


def test_the_last_site_in_sorted_order_is_held_out(preprocess, tmp_path):
    raw = make_raw(tmp_path / "raw", cities=["A"], sites=3)
    (raw / "A" / "site1").rename(raw / "A" / "site10")
    (raw / "A" / "site3").rename(raw / "A" / "Z")
    assert {(region.site, region.split) for region in on_disk.load_regions(preprocess())} == {
        ("Z", "train"),
        ("site10", "train"),
        ("site2", "test"),
        ("site2", "val"),
    }


def test_no_pixel_reaches_two_splits(preprocess, tmp_path):
    """Paint all pixels of one split: nothing of any other split may change, neither arrays nor JPEGs."""
    raw = make_raw(tmp_path / "raw", cities=["A"], sites=2, size=(151, 110))
    before = files(preprocess("--jpegs"))
    seen = set()
    for split, site, left, right in (
        ("train", "site1", 0, 151),
        ("test", "site2", 0, 76),
        ("val", "site2", 76, 151),
    ):
        raster = raw / "A" / site / "2020.png"
        clean = raster.read_bytes()
        with Image.open(raster) as image:
            image.load()
        image.paste((255, 0, 255), (left, 0, right, 110))
        image.save(raster)
        after = files(preprocess("--jpegs", out=tmp_path / split))
        changed = {
            name
            for name in before
            if name.endswith((".npy", ".jpg")) and before[name] != after[name]
        }
        theirs = {
            name
            for name in before
            if name.endswith(f".{split}.npy") or name.startswith((f"{split}/", f"{split}_b/"))
        }
        assert before.keys() == after.keys() and changed == theirs
        seen |= theirs
        raster.write_bytes(clean)
    assert seen == {name for name in before if name.endswith((".npy", ".jpg"))}


# ---------------------------------------------------------------------------------------------------------------- what is written


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
    assert (
        list(sample[0]) == ["region", "row", "col"]
        and len({tuple(row.values()) for row in sample}) == 10
    )
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


def test_summary(preprocess, tmp_path, capsys):
    make_raw(tmp_path / "raw")
    preprocess("--test-b", 6)
    output = capsys.readouterr().out
    assert "6 rasters to do, 0.00 GB needed in" in output and "fewer than" not in output
    assert "Aa (AAA)                           30        6        6        6" in output
    assert "all                                60       12       12       12" in output
    # 2 of 3 rasters: 144 x 96 of 150 x 110 are used; the third: twice 72 x 96.
    assert output.count(f"{100 * (1 - 144 * 96 / 150 / 110):.1f} %") == 3
    assert "6 rasters in " in output and " a second" in output
    preprocess("--test-b", 7)
    output = capsys.readouterr().out
    assert "test_b: fewer than 7 test patches, so all of them, in 2 cities: AAA, BBB" in output
    assert "nothing was left to tile" in output


def test_test_b_is_drawn_evenly_and_by_seed():
    def region(city, split, number, rows, cols):
        return Region(
            f"{city}/s/{number}.{split}",
            split,
            city,
            "s",
            f"{city}/s/{number}.png",
            0,
            0,
            9,
            9,
            rows,
            cols,
            "",
        )

    regions = sorted(
        [region("A", "test", n, 2, 3) for n in range(10)]
        + [region("A", "val", 0, 5, 5), region("B", "test", 0, 40, 40)]
    )
    drawn = completing.draw_test_b(regions, 30, 0)
    assert (
        Counter(region.city for region, _, _ in drawn) == {"A": 30, "B": 30}
        and len(set(drawn)) == 60
    )
    assert drawn == sorted(drawn) and all(
        row < region.rows and col < region.cols for region, row, col in drawn
    )
    assert drawn == completing.draw_test_b(regions, 30, 0) != completing.draw_test_b(regions, 30, 1)
    # Another city does not change a city's draw; the whole city is drawn if it has no more; over many seeds every patch comes as often.
    assert drawn[:30] == completing.draw_test_b(
        [region for region in regions if region.city == "A"], 30, 0
    )
    assert len(completing.draw_test_b(regions, 61, 0)) == 60 + 61
    often = Counter(
        patch for seed in range(400) for patch in completing.draw_test_b(regions[:11], 30, seed)
    )
    assert len(often) == 60 and 140 < min(often.values()) and max(often.values()) < 260


def test_jpegs(preprocess, tmp_path):
    raw = make_raw(tmp_path / "raw")
    plain = files(preprocess())
    with_jpegs = files(preprocess("--jpegs", out=tmp_path / "jpegs"))
    jpegs = {name for name in with_jpegs if name.endswith(".jpg")}
    # The arrays do not depend on it.
    assert all(with_jpegs[name] == plain[name] for name in plain if name.endswith((".npy", ".csv")))
    expected = {
        f"{region.split}/{region.city}/{region.site}__2020_r{row:02d}_c{col:02d}.jpg"
        for region in on_disk.load_regions(tmp_path / "jpegs")
        for row in range(region.rows)
        for col in range(region.cols)
    }
    test_b = {name for name in jpegs if name.startswith("test_b/")}
    assert jpegs == expected | test_b and len(expected) == 84 and len(test_b) == 10
    with open(tmp_path / "jpegs" / "test_b.csv", newline="") as file:
        assert test_b == {
            f"test_b/{row['region'].split('/')[0]}/site3__2020_r0{row['row']}_c0{row['col']}.jpg"
            for row in csv.DictReader(file)
        }
    assert all(with_jpegs[name] == with_jpegs[name.replace("test_b/", "test/")] for name in test_b)
    with (
        Image.open(tmp_path / "jpegs" / "val" / "Bb (BBB)" / "site3__2020_r01_c01.jpg") as jpeg,
        Image.open(raw / "Bb (BBB)" / "site3" / "2020.png") as raster,
    ):
        crop = raster.crop((75 + 24, 24, 75 + 72, 72))
        assert (
            jpeg.size == (48, 48)
            and np.abs(np.asarray(jpeg, int) - np.asarray(crop, int)).mean() < 4
        )


# ------------------------------------------------------------------------------------------------------------- what lies in raw


def test_same_names_survive_and_what_is_no_raster_is_passed_over(preprocess, tmp_path):
    raw = make_raw(tmp_path / "raw", cities=["A"], sites=3)
    site = raw / "A" / "site1"
    for name in (
        ".ipynb_checkpoints/2020-checkpoint.png",
        "nested/deeper/2020.png",
        "OLD.JPG",
        "scan.tiff",
        "b c.jpeg",
    ):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        picture(150, 110, seed=len(name)).save(site / name)
    for name in (
        "Thumbs.db",
        ".DS_Store",
        "notes.txt",
        "2020.png.aux.xml",
        "2020.pgw",
        "._2020.png",
    ):
        (site / name).write_text("no image")
    (raw / ".cache" / "site").mkdir(parents=True)
    (raw / ".cache" / "site" / "x.png").write_text("no image")
    (raw / "__MACOSX" / "A").mkdir(parents=True)
    (raw / "__MACOSX" / "A" / "._2020.png").write_text("no image")
    (raw / "B (empty)").mkdir()
    (raw / "README.md").write_text("")
    out = preprocess("--jpegs")
    names = {"2020.png", "nested/deeper/2020.png", "OLD.JPG", "scan.tiff", "b c.jpeg"}
    assert {region.raster for region in on_disk.load_regions(out) if region.site == "site1"} == {
        f"A/site1/{name}" for name in names
    }
    assert len({array(out, region).tobytes() for region in on_disk.load_regions(out)}) == 5 + 1 + 2
    train = {path.name.rsplit("_r", 1)[0] for path in (out / "train" / "A").iterdir()}
    assert train == {
        "site1__2020",
        "site2__2020",
        "site1__nested__deeper__2020",
        "site1__OLD",
        "site1__scan",
        "site1__b c",
    }
    assert reading.open_split(out, "train").classes == ["A"]


NAMES = [
    "with space",
    "Zürich Ost",
    "北京",
    'it\'s "quoted"',
    "comma, semicolon; tab\t",
    "line\nbreak\r",
    "-dash",
    "percent%20",
    "$HOME `x`",
    "a" * 100,
    "emoji 🗺",
    "dot.dot.",
]


def test_names_of_any_kind(preprocess, tmp_path, capsys):
    raw = tmp_path / "raw"
    for i, name in enumerate(NAMES):
        city = raw / f"City {name} ({i})"
        for site in ("a", f"b {name}"):
            (city / site).mkdir(parents=True)
            picture(100, 50, seed=i).save(city / site / f"{name}.png")
    out = preprocess("--jpegs")
    cities = sorted(f"City {name} ({i})" for i, name in enumerate(NAMES))
    output = capsys.readouterr().out
    assert "Zürich Ost" in output and all(line.isprintable() for line in output.splitlines())
    for split in ("train", "val", "test", "test_b"):
        dataset = reading.open_split(out, split)
        assert dataset.classes == cities and set(dataset.labels) == set(range(len(NAMES)))
        for i in range(len(dataset)):
            assert dataset.original(i).size == (48, 48) and dataset.read([i]).any()
    shutil.copytree(
        out,
        tmp_path / "published",
        ignore=lambda folder, names: {"arrays", "dataset.json"} & set(names),
    )
    jpegs = reading.open_split(tmp_path / "published", "test_b", 28)
    assert jpegs.classes == cities and jpegs.read(range(len(jpegs))).any(axis=(1, 2, 3)).all()
    before = files(out)
    preprocess("--jpegs")
    assert files(out) == before and "nothing was left to tile" in capsys.readouterr().out


def refused(call, *parts):
    """The lines with which call() refuses; each of the parts must be in its own line."""
    with pytest.raises(InputError) as caught:
        call()
    lines = str(caught.value).splitlines()
    for part in parts:
        assert sum(part in line for line in lines) == 1, (part, lines)
    return lines


def test_layouts_that_are_refused(preprocess, tmp_path):
    raw = tmp_path / "raw"
    refused(preprocess, "raw: no such folder")
    raw.mkdir()
    refused(preprocess, "raw: no rasters in it; expected <City (CODE)>/<site>/<raster>.jpg")
    make_raw(raw)
    shutil.rmtree(raw / "Aa (AAA)" / "site1")
    shutil.rmtree(raw / "Aa (AAA)" / "site2")
    lines = refused(preprocess, "Aa (AAA): only one site (site3) has rasters")
    assert len(lines) == 1 and not (tmp_path / "out").exists()
    (raw / "Aa (AAA)" / "site2").mkdir()  # without a raster
    refused(preprocess, "only one site (site3)")
    picture(150, 110).save(raw / "Aa (AAA)" / "site2" / "x.png")
    picture(150, 110).save(raw / "Bb (BBB)" / "x.png")
    picture(150, 110).save(raw / "x.png")
    refused(
        preprocess,
        "Bb (BBB)/x.png: a raster must lie in a site's folder",
        "raw/x.png: a raster must lie in a site's folder",
    )
    (raw / "x.png").unlink()
    (raw / "Bb (BBB)" / "x.png").unlink()
    for name in ("site1/2020.JPG", "site1/a.tif", "site1/A.png", "site1/c__d.png", "site1/c/d.png"):
        (raw / "Bb (BBB)" / name).parent.mkdir(exist_ok=True)
        picture(150, 110).save(raw / "Bb (BBB)" / name)
    lines = refused(
        preprocess,
        "site1/2020.png: would get the same name as",
        "site1/a.tif: would get the same name as",
        "site1/c__d.png: would get the same name",
    )
    assert len(lines) == 3 and not (tmp_path / "out").exists()


def test_links_pipes_and_folders_of_odd_names(preprocess, tmp_path):
    raw, outside = make_raw(tmp_path / "raw"), make_raw(tmp_path / "outside")
    site = raw / "Aa (AAA)" / "site1"
    (raw / "Linked (LNK)").symlink_to(outside / "Aa (AAA)", target_is_directory=True)
    (raw / "Aa (AAA)" / "site0").symlink_to(
        outside / "Aa (AAA)" / "site1", target_is_directory=True
    )
    (raw / "Aa (AAA)" / "loop").symlink_to(raw, target_is_directory=True)
    (site / "out.png").symlink_to(outside / "Aa (AAA)" / "site1" / "2020.png")
    (site / "in.png").symlink_to(
        raw / "Aa (AAA)" / "site3" / "2020.png"
    )  # would carry test pixels into train
    (site / "dangling.png").symlink_to("nowhere")
    (site / "self.png").symlink_to("self.png")
    (site / "text").symlink_to("nowhere")
    (site / ".hidden").symlink_to(outside, target_is_directory=True)
    os.mkfifo(site / "pipe.jpg")
    os.mkdir(os.fsencode(site) + b"/latin-\xe9")
    picture(150, 110).save(os.fsencode(site) + b"/latin-\xe9/x.png", "PNG")
    lines = refused(
        preprocess,
        *(
            f"{name}: a symbolic link"
            for name in (
                "Linked (LNK)",
                "site0",
                "loop",
                "out.png",
                "in.png",
                "dangling.png",
                "self.png",
            )
        ),
        "pipe.jpg: no regular file",
        "its name is not in UTF-8; rename it",
    )
    assert (
        len(lines) == 9
        and all(line.isprintable() for line in lines)
        and not (tmp_path / "out").exists()
    )
    for path in (
        raw / "Linked (LNK)",
        raw / "Aa (AAA)" / "site0",
        raw / "Aa (AAA)" / "loop",
        *site.glob("*.png"),
        site / "pipe.jpg",
    ):
        if not path.is_file() or path.is_symlink():
            path.unlink()
    shutil.rmtree(os.fsencode(site) + b"/latin-\xe9")
    (site / "folder.png").mkdir()
    (site / "folder.tmp").mkdir()
    picture(150, 110).save(site / "folder.tmp" / "2020.png")
    (tmp_path / "link").symlink_to(raw, target_is_directory=True)  # --raw itself may be one
    assert len(on_disk.load_regions(preprocess(raw=tmp_path / "link"))) == 9
    preprocess(raw=tmp_path / "link")


def test_a_folder_that_cannot_be_listed_is_named(preprocess, tmp_path, monkeypatch):
    make_raw(tmp_path / "raw")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("site2"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert (
        len(
            refused(
                preprocess, "Aa (AAA)/site2: Permission denied", "Bb (BBB)/site2: Permission denied"
            )
        )
        == 2
    )


def test_where_out_may_lie(preprocess, tmp_path, monkeypatch):
    raw = make_raw(tmp_path / "data" / "raw")
    for out in (
        raw,
        raw / "patches",
        raw / "Aa (AAA)" / ".." / "x",
        tmp_path / "other" / ".." / "data" / "raw",
    ):
        refused(lambda: preprocess(raw=raw, out=out), "lies inside the raw folder")
    (tmp_path / "link").symlink_to(raw, target_is_directory=True)
    refused(lambda: preprocess(raw=raw, out=tmp_path / "link" / "x"), "lies inside the raw folder")
    (tmp_path / "file").write_text("")
    refused(
        lambda: preprocess(raw=raw, out=tmp_path / "file"),
        "a file, no folder; choose another --out",
    )
    (tmp_path / "published" / "train" / "A").mkdir(parents=True)
    refused(
        lambda: preprocess(raw=raw, out=tmp_path / "published"),
        "folders that preprocessing.py did not write",
    )
    preprocess(raw=raw, out=tmp_path / "data")
    expected = files(preprocess(raw=raw, out=tmp_path / "data" / "rawer"))
    (tmp_path / "data" / "here").mkdir()
    monkeypatch.chdir(tmp_path / "data" / "here")
    for _ in range(2):
        preprocess(raw="../raw", out=".")
        assert files(Path(".")) == expected
        preprocess("--seed", 1, raw="../raw", out=".")


def test_bad_rasters_are_all_named_and_the_good_ones_kept(preprocess, tmp_path, capsys):
    raw = make_raw(tmp_path / "raw")
    before = files(preprocess(out=tmp_path / "expected"))
    good = {path: (path.read_bytes(), path.stat()) for path in raw.rglob("*.png")}
    bad = {
        "Aa (AAA)/site1/2020.png": "pixels, smaller than a patch of 48 x 48; replace",
        "Aa (AAA)/site3/2020.png": "in each half (its site is held out)",
        "Bb (BBB)/site1/2020.png": "no JPEG, PNG or TIFF image",
        "Bb (BBB)/site2/2020.png": "truncated",
    }
    picture(150, 47).save(raw / "Aa (AAA)/site1/2020.png")
    picture(95, 110).save(raw / "Aa (AAA)/site3/2020.png")
    (raw / "Bb (BBB)/site1/2020.png").write_text("text")
    os.truncate(raw / "Bb (BBB)/site2/2020.png", 15000)
    lines = refused(preprocess, *(f"{name}: " for name in bad), *bad.values())
    assert (
        len(lines) == 5
        and lines[-1]
        == "2 of 6 rasters are done and kept; mend the above and run the same command again"
    )
    with pytest.raises(InputError, match="has not finished"):
        reading.open_split(tmp_path / "out", "train")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.npy")}
    assert len(kept) == 3
    for path, (content, status) in good.items():
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    capsys.readouterr()
    out = preprocess()
    assert "6 rasters; 2 done before" in capsys.readouterr().out
    assert files(out) == before and all(
        path.stat().st_mtime_ns == time for path, time in kept.items()
    )


def test_flags_that_are_refused(tmp_path, capsys):
    for flags, message in (
        ("--stride 0", "argument --stride: '0': must be a whole number at least 1"),
        ("--stride 25", "the nearest that works: --stride 15 or 30"),
        ("--patch-size -5", "--patch-size"),
        ("--image-size 1.5", "--image-size"),
        ("--workers 0", "--workers"),
        ("--test-b 0", "--test-b"),
        ("--seed -1", "--seed"),
        ("--seed nan", "--seed"),
        ("--shard 0/2", "'0/2': must be I/N"),
        ("--shard 3/2", "I/N"),
        ("--shard 1", "I/N"),
        ("--shard 1/0", "I/N"),
        ("--shard -1/2", "--shard"),
        ("--bogus", "unrecognized arguments: --bogus"),
    ):
        with pytest.raises(SystemExit) as caught:
            run(
                lambda: preprocessing.main(
                    [*flags.split(), "--raw", str(tmp_path), "--out", str(tmp_path / "out")]
                )
            )
        errors = capsys.readouterr().err
        assert caught.value.code == 2 and message in errors and errors.count("\n") == 1, (
            flags,
            errors,
        )
    assert not any(tmp_path.iterdir())


def test_no_space(preprocess, tmp_path, monkeypatch):
    make_raw(tmp_path / "raw")
    usage = Counter()

    def little(path):
        usage[str(path)] += 1
        return shutil._ntuple_diskusage(10**9, 10**9 - 10**4, 10**4)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", little)
        refused(
            preprocess, "needs 0.00 GB, only 0.00 GB are free; make room or choose another --out"
        )
        assert usage == {str(tmp_path): 1} and not (tmp_path / "out").exists()
    before = files(preprocess())
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", little)
        preprocess()  # nothing to do needs nothing
        refused(lambda: preprocess("--jpegs"), "make room")
    assert files(tmp_path / "out") == before


def test_the_space_that_is_asked_for(preprocess, tmp_path, capsys):
    # 100 held-out rasters of 4800 x 4800: twice 2240 x 1120 x 3 bytes each; 342 patches each, and 500 of test_b once more.
    jobs = [
        {
            "city": "A",
            "splits": ["test", "val"],
            "parts": [(0, 0, 2400, 4800), (2400, 0, 2400, 4800)],
        }
    ] * 100
    settings = {"patch_size": 480, "stride": 240, "image_size": 224}
    arrays, jpeg = 100 * 2 * (2240 * 1120 * 3 + 128), 480 * 480 * tiling.JPEG_BYTES_A_PIXEL
    for jpegs, need in ((False, arrays), (True, arrays + (100 * 342 + 500) * jpeg)):
        tiling.check_space(tmp_path, jobs, settings, jpegs, 500)
        assert (
            f"100 rasters to do, {need / 1e9:.2f} GB needed in {tmp_path}, "
            in capsys.readouterr().out
        )
    # And a photograph's JPEGs take less than is reckoned with.
    make_raw(tmp_path / "raw", size=(250, 200))
    out = preprocess("--jpegs")
    sizes = [path.stat().st_size for path in out.rglob("*.jpg")]
    assert (
        sum(sizes) < len(sizes) * 48 * 48 * tiling.JPEG_BYTES_A_PIXEL * 2.5
    )  # small ones carry their tables each


@pytest.mark.parametrize("at", ["array", "jpeg", "record", "regions"])
def test_a_disk_that_fills_up_leaves_nothing_half_written(
    preprocess, tmp_path, monkeypatch, capsys, at
):
    make_raw(tmp_path / "raw")
    expected = files(preprocess("--jpegs", out=tmp_path / "expected"))
    calls = Counter()

    def full(path, *arguments, **options):
        kind = {".npy": "array", ".jpg": "jpeg", ".json": "record", ".csv": "regions"}[
            Path(path).suffix
        ]
        calls[kind] += 1
        if kind == at and calls[kind] == (1 if at == "regions" else 4):

            class File:
                def __getattr__(self, name):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            def opened():
                with atomic(path, *arguments, **options):
                    yield File()

            return contextmanager(opened)()
        return atomic(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(tiling, "atomic", full)
        patch.setattr(completing, "atomic", full)
        with pytest.raises(SystemExit) as caught:
            run(lambda: preprocess("--jpegs"))
    errors = capsys.readouterr().err
    assert (
        caught.value.code == 2
        and errors.count("\n") == 1
        and "No space left on device; make room and run the same command again" in errors
    )
    assert str(tmp_path / "out") in errors and ".tmp" not in errors
    assert (
        not list((tmp_path / "out").rglob("*.tmp"))
        and not (tmp_path / "out" / "dataset.json").exists()
    )
    assert files(preprocess("--jpegs")) == expected


def test_a_file_in_the_way_of_a_folder(preprocess, tmp_path, capsys):
    make_raw(tmp_path / "raw")
    (tmp_path / "out" / "arrays").mkdir(parents=True)
    (tmp_path / "out" / "arrays" / "Aa (AAA)").write_text("")
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "out", tmp_path / "file" / "out"):
        with pytest.raises(SystemExit) as caught:
            run(lambda: preprocess(out=out))
        errors = capsys.readouterr().err
        assert (
            caught.value.code == 2
            and errors.count("\n") == 1
            and "a file is in the way" in errors
            and str(out.parent) in errors
        )


def test_a_name_too_long_for_the_disk(preprocess, tmp_path, capsys):
    raw = make_raw(tmp_path / "raw")
    (raw / "Aa (AAA)" / "site1" / "2020.png").rename(
        raw / "Aa (AAA)" / "site1" / f"{'x' * 240}.png"
    )
    preprocess()
    with pytest.raises(SystemExit) as caught:
        run(lambda: preprocess("--jpegs"))
    errors = capsys.readouterr().err
    assert (
        caught.value.code == 2
        and errors.count("\n") == 1
        and f"site1__{'x' * 240}_r00_c00.jpg: File name too long; shorten it" in errors
    )


def test_a_write_that_fails_in_a_worker(tmp_path):
    raw = make_raw(tmp_path / "raw")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    code, _, errors = finish(
        start(
            "--workers",
            2,
            raw=raw,
            out=tmp_path / "out",
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1])),
        )
    )
    assert (
        code == 2 and errors.count("\n") == 1 and ".npy: File too large; raise the limit" in errors
    ), errors
    assert not list((tmp_path / "out").rglob("*.tmp"))


# ------------------------------------------------------------------------------------------------------------------- second runs


def changed_by(out, call):
    """Names of files that call() made, changed, or touched, and of those it removed."""
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    time.sleep(0.02)
    call()
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    names = {
        str(path.relative_to(out))
        for path in before.keys() | after.keys()
        if before.get(path) != after.get(path)
    }
    return names - {".lock"}


def test_a_second_run_does_nothing(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    out = preprocess("--jpegs")
    assert changed_by(out, lambda: preprocess("--jpegs")) == set()
    assert changed_by(out, preprocess) == set()  # the JPEGs stay as they are
    assert json.loads((out / "dataset.json").read_text())["jpegs"] is True


SET = {"dataset.json", "regions.csv", "test_b.csv"}


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
        assert changed_by(out, preprocess) == one | SET | {
            name for name in expected if name.startswith("test_b/")
        }
        assert files(out) == expected
    for name in SET | {"test_b/Aa (AAA)/" + next((out / "test_b/Aa (AAA)").iterdir()).name}:
        (out / name).unlink()
        assert not any(
            name.endswith((".npy", ".json")) and name.startswith("arrays")
            for name in changed_by(out, preprocess)
        )
        assert files(out) == expected
    (out / "regions.csv").write_text("edited")
    preprocess()
    assert files(out) == expected


def test_rasters_that_change_come_and_go(preprocess, tmp_path):
    """After whatever happens to the raw folder, a set is what it would be if made anew, and only that is tiled which has to be."""
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
        made = {
            Path(file).with_suffix("")
            for file in changed
            if file.endswith(".json") and (out / file).exists()
        } - {Path("dataset")}
        assert made == {Path("arrays", raster) for raster in tiled}, name
        assert SET <= changed or name == "touched", name
        fresh = preprocess("--jpegs", out=tmp_path / name)
        assert files(out) == files(fresh), name
        assert {str(path.relative_to(out)) for path in out.rglob("*")} == {
            str(path.relative_to(fresh)) for path in fresh.rglob("*")
        }, name


def test_what_was_left_of_another_role_is_removed(preprocess, tmp_path, monkeypatch):
    """A run dies after it has written a raster's train patches; before the next, that raster becomes a test raster."""
    raw = make_raw(tmp_path / "raw", cities=["A"], sites=2)
    tile = tiling.tile_raster

    def die(raw, out, settings, jpegs, job):
        tile(raw, out, settings, jpegs, job)
        os.unlink(on_disk.record_file(out, job["raster"]))  # the record is the last that is written
        (out / "arrays" / ".1-0123abcd.tmp").write_text("half")
        (out / "train" / "A" / ".1-0123abcd.tmp").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tiling, "tile_raster", die)
        preprocess("--jpegs")
    assert (tmp_path / "out" / "train" / "A" / "site1__2020_r00_c00.jpg").is_file()
    shutil.rmtree(raw / "A" / "site2")
    (raw / "A" / "site0").mkdir()
    picture(150, 110).save(raw / "A" / "site0" / "2020.png")
    out = preprocess("--jpegs")
    assert files(out) == files(preprocess("--jpegs", out=tmp_path / "fresh"))
    assert not list((out / "train" / "A").glob("site1*")) and list(
        (out / "test" / "A").glob("site1*")
    )


def test_a_raster_that_comes_back_after_a_run_died_on_another(preprocess, tmp_path, monkeypatch):
    """The record of the first must not vouch for arrays of the second, though size and time of the raster are what they were."""
    raster = make_raw(tmp_path / "raw") / "Aa (AAA)" / "site1" / "2020.png"
    before, content, status = files(preprocess()), raster.read_bytes(), raster.stat()
    picture(150, 110, seed=99).save(raster)

    def die(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(json, "dump", die)
        preprocess()
    raster.write_bytes(content)
    os.utime(raster, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files(preprocess()) == before


def test_files_of_the_user_stay(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    out = preprocess("--jpegs")
    theirs = [
        "notes.txt",
        "arrays/README",
        "arrays/Aa (AAA)/site1/x.npy",
        "train/labels.json",
        "train/Aa (AAA)/my photo.jpg",
        ".tmp",
    ]
    for name in theirs:
        (out / name).write_text("mine")
    (tmp_path / "raw" / "Aa (AAA)" / "site1" / "2020.png").unlink()
    preprocess()
    assert all((out / name).read_text() == "mine" for name in theirs)


def test_other_seed_and_size_of_test_b(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    out = preprocess("--jpegs")
    drawn = files(out)["test_b.csv"]
    for flags in (["--seed", 1], ["--test-b", 3], ["--seed", 0]):
        changed = changed_by(out, lambda: preprocess(*flags))
        assert SET <= changed and all(name in SET or name.startswith("test_b/") for name in changed)
        assert files(out) == files(
            preprocess("--jpegs", *flags, out=tmp_path / "-".join(map(str, flags)))
        )
        assert (files(out)["test_b.csv"] == drawn) == (flags == ["--seed", 0])


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


# -------------------------------------------------------------------------------------------------------- processes, shards, kills


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """(raw, all files of its patch set with JPEGs) of 24 rasters of 63 patches each. What is to equal that must lie beside raw."""
    root = tmp_path_factory.mktemp("many")
    make_raw(root / "raw", cities=["Aa (AAA)", "Bb (BBB)", "Cc (CCC)"], sites=8, size=(240, 200))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "ProcessPoolExecutor", Inline)
        preprocessing.main(
            ["--raw", str(root / "raw"), "--out", str(root / "expected"), *SMALL, "--jpegs"]
        )
    return root / "raw", files(root / "expected")


def test_the_number_of_workers_changes_nothing(many):
    raw, expected = many
    out = raw.parent / "workers"
    code, _, errors = finish(start("--jpegs", "--workers", 3, raw=raw, out=out))
    assert code == 0 and errors == "" and files(out) == expected


def test_shards_make_one_set(many, preprocess):
    raw, expected = many
    out = raw.parent / "shards"
    running, missing = [start("--jpegs", "--shard", f"{i}/3", raw=raw, out=out) for i in (1, 2)], []
    for process in running:
        code, output, errors = finish(process)
        missing.append(output.splitlines()[-1].split("are done, ")[1])
        assert code == 0 and errors == "" and "24 rasters, 8 of them in shard" in output
        assert (
            f"{out}: the 8 rasters of this shard are done" in output
            and "are missing, the first is Aa (AAA)/site" in output
        )
    # The one that ended last has seen what the other one did.
    assert any(
        line.startswith("8 of other shards are missing, the first is Aa (AAA)/site3/2020.png; ")
        for line in missing
    )
    assert not (out / "dataset.json").exists()
    with pytest.raises(InputError, match="has not finished"):
        reading.open_split(out, "train")
    # What others have half-written is not touched by a shard that is not the last.
    (out / "arrays" / ".1-0123abcd.tmp").write_text("half")
    assert changed_by(out, lambda: preprocess("--shard", "2/3", raw=raw, out=out)) == set()
    preprocess("--jpegs", "--shard", "3/3", raw=raw, out=out)
    assert files(out) == expected
    assert changed_by(out, lambda: preprocess("--shard", "1/3", raw=raw, out=out)) == set()


def test_shards_that_end_together_and_a_plain_run_afterwards(tmp_path, preprocess):
    raw = make_raw(tmp_path / "raw")
    expected = files(preprocess("--jpegs", out=tmp_path / "expected"))
    running = [
        start("--jpegs", "--shard", f"{i}/3", raw=raw, out=tmp_path / "out") for i in (1, 2, 3)
    ]
    ends = [finish(process) for process in running]
    assert all(code == 0 and errors == "" for code, _, errors in ends)
    assert (
        any("patch set: " in output for _, output, _ in ends)
        and files(tmp_path / "out") == expected
    )
    for i in range(1, 10):  # more shards than rasters; the last one never runs
        preprocess("--shard", f"{i}/10" if i != 6 else "10/10", out=tmp_path / "later")
    assert not (tmp_path / "later" / "dataset.json").exists()
    preprocess("--jpegs", out=tmp_path / "later")
    assert files(tmp_path / "later") == expected


def test_a_shard_with_a_bad_raster_does_its_others(tmp_path, preprocess):
    raw = make_raw(tmp_path / "raw")
    (raw / "Aa (AAA)" / "site1" / "2020.png").write_text("text")
    lines = refused(lambda: preprocess("--shard", "1/2"), "site1/2020.png: no JPEG")
    assert lines[-1].startswith("2 of 3 rasters are done and kept")
    preprocess("--shard", "2/2")
    refused(lambda: preprocess("--shard", "2/2", "--stride", 12), "made with --stride 24")
    assert len(list((tmp_path / "out").rglob("*.json"))) == 5


def test_completing_waits_for_those_at_work(preprocess, tmp_path, monkeypatch, capsys):
    """One process cleans up under the lock alone: while another one works, it waits."""
    make_raw(tmp_path / "raw")
    remove_stale, held = completing.remove_stale, []

    def look(out, *arguments):
        with open(out / ".lock") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        held.append(True)
        return remove_stale(out, *arguments)

    monkeypatch.setattr(completing, "remove_stale", look)
    out = preprocess()
    assert held == [True]
    with locked(out, shared=True):
        process = start("--seed", 5, raw=tmp_path / "raw", out=out)
        while (line := process.stdout.readline()) and "waiting" not in line:
            pass
        assert (
            line == f"{out}: waiting for another process that works on this patch set\n"
            and process.poll() is None
        )
    assert finish(process)[0] == 0 and json.loads((out / "dataset.json").read_text())["seed"] == 5


def alive(group):
    """The processes of a group that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(folder.name))
    return found


def wait_until_none_is_alive(group):
    deadline = time.time() + 10
    while alive(group):
        assert time.time() < deadline, "workers outlive their parent"
        time.sleep(0.01)


def tiled(out):
    return len(list((out / "arrays").rglob("*.json")))


def test_killed_at_20_moments_and_run_again(many):
    """SIGKILL to all processes, or to the parent alone, whose workers must then end by themselves."""
    raw, expected = many
    draw, out, moments = random.Random(0), raw.parent / "killed", Counter()
    for kill in range(20):
        if (out / "dataset.json").exists():
            shutil.rmtree(out)
        until = min(24, tiled(out) + draw.choice([0, 1, 2, 5, 10]))
        with start("--jpegs", raw=raw, out=out, start_new_session=True) as process:
            while (line := process.stdout.readline()) and "rasters to do" not in line:
                pass
            while tiled(out) < until and process.poll() is None:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.03))
            (os.kill if kill % 2 else os.killpg)(process.pid, signal.SIGKILL)
            wait_until_none_is_alive(process.pid)
        moments[
            "whole"
            if (out / "dataset.json").exists()
            else "completing"
            if tiled(out) == 24
            else "tiling"
            if tiled(out)
            else "starting"
        ] += 1
    assert moments["tiling"] >= 8, moments
    code, _, errors = finish(start("--jpegs", raw=raw, out=out))
    assert code == 0 and errors == "" and files(out) == expected


def test_killed_while_completing(preprocess, tmp_path, monkeypatch):
    """The same for each of the steps that come after the last raster: they are too short to be met by chance."""
    make_raw(tmp_path / "raw")
    sets = [
        files(preprocess("--jpegs", "--seed", seed, out=tmp_path / f"{seed}")) for seed in (0, 1)
    ]
    out = preprocess("--jpegs")
    for step in range(1, 1000):
        steps = 0

        def stop_at(function):
            def call(*arguments, **options):
                nonlocal steps
                steps += 1
                if steps == step:
                    raise KeyboardInterrupt
                return function(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for name in ("replace", "unlink", "rmdir", "sync", "fsync"):
                patch.setattr(os, name, stop_at(getattr(os, name)))
            with suppress(KeyboardInterrupt):
                preprocess("--seed", step % 2)
        if (out / "dataset.json").exists():  # then all the rest is there
            assert files(out) in sets
        if steps < step:
            break
        preprocess("--seed", step % 2)
        assert files(out) == sets[step % 2], step
    assert step > 20


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """Twelve rasters of 1,248 patches each: some seconds of work with --jpegs, so that it cannot end before it is disturbed."""
    return make_raw(tmp_path_factory.mktemp("slow") / "raw", sites=6, size=(960, 800))


def test_ctrl_c_ends_with_one_line_and_keeps_what_is_done(slow):
    raw = slow
    for until in (0, 3):
        out = raw.parent / f"interrupted{until}"
        # As a terminal starts it; where the tests run in the background of a shell, SIGINT would be ignored.
        unignored = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        with start(
            "--jpegs",
            "--workers",
            2,
            raw=raw,
            out=out,
            start_new_session=True,
            preexec_fn=unignored,
        ) as process:
            while (line := process.stdout.readline()) and "rasters to do" not in line:
                pass
            while tiled(out) < until and process.poll() is None:
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGINT)
            code, _, errors = finish(process)
        assert (code, errors) == (
            1,
            "interrupted; what was finished is kept, the same command goes on from there\n",
        )
        wait_until_none_is_alive(process.pid)
        assert (
            until <= tiled(out) < 12
            and not (out / "dataset.json").exists()
            and not list(out.rglob("*.tmp"))
        )


def test_a_worker_that_is_killed(slow):
    raw = slow
    out = raw.parent / "worker"
    with start("--jpegs", raw=raw, out=out, start_new_session=True) as process:
        while not tiled(out) and process.poll() is None:
            time.sleep(0.01)
        (worker,) = set(alive(process.pid)) - {process.pid}
        os.kill(worker, signal.SIGKILL)
        code, _, errors = finish(process)
    assert (
        code == 2
        and errors.count("\n") == 1
        and "a worker process was killed, most likely for want of memory, at Aa (AAA)/site"
        in errors
    ), errors
    assert tiled(out) >= 1


def test_few_rasters_are_handed_out_at_a_time(tmp_path, monkeypatch):
    """Memory and the time that Ctrl-C takes must not grow with the number of rasters."""
    pending, most = set(), 0

    class Counting(Inline):
        def submit(self, work, job):
            nonlocal most
            future = super().submit(work, job)
            pending.add(future)
            most = max(most, len(pending))
            return future

    monkeypatch.setattr(tiling, "ProcessPoolExecutor", Counting)
    wait = tiling.wait

    def forget(futures, **options):
        ended = wait(futures, **options)
        pending.difference_update(ended.done)
        return ended

    monkeypatch.setattr(tiling, "wait", forget)
    done, faults = {}, {}
    tiling.tile_all(
        [{"raster": str(n)} for n in range(1000)], lambda job: [job["raster"]], 3, done, faults
    )
    assert most == 6 and len(done) == 1000 and not faults


def test_the_command_line(tmp_path):
    raw = make_raw(tmp_path / "raw")
    code, output, errors = finish(start(raw=raw, out=tmp_path / "out"))
    assert (
        code == 0
        and errors == ""
        and output.rstrip()
        .splitlines()[-1]
        .startswith(f"patch set: {tmp_path / 'out'}; 6 rasters in ")
    )
    code, output, errors = finish(start(raw=tmp_path / "no\nwhere", out=tmp_path / "out"))
    assert (
        code == 2
        and output == ""
        and errors.count("\n") == 1
        and errors.startswith("preprocessing.py: ")
        and "no such folder" in errors
    )
    process = subprocess.run(
        [sys.executable, "preprocessing.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0 and "--shard I/N" in process.stdout
    assert len(list(tmp_path.rglob("*.npy"))) == 8
