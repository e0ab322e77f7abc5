"""What lies in a raw folder: what is found, passed over, and refused."""

import errno
import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
from conftest import METRES, files, make_geotiffs, make_raw, picture, write_geotiff
from preprocessing_runs import array, refused

from dl_slicer.patch_sets import finding, on_disk, reading


def test_the_last_site_in_sorted_order_is_held_out(preprocess, tmp_path):
    raw = make_raw(tmp_path / "raw", cities=["A", "B"], sites=3)
    (raw / "A" / "site1").rename(raw / "A" / "site10")
    (raw / "A" / "site3").rename(raw / "A" / "Z")
    regions = on_disk.load_regions(preprocess())
    assert {(region.site, region.split) for region in regions if region.city == "A"} == {
        ("Z", "train"),
        ("site10", "train"),
        ("site2", "test"),
        ("site2", "val"),
    }


def test_same_names_survive_and_what_is_no_raster_is_passed_over(preprocess, tmp_path):
    raw = make_raw(tmp_path / "raw", cities=["A", "B"], sites=3)
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
    for folder in (raw / "lost+found" / "x", raw / "A" / "@eaDir", site / "@eaDir" / "2020.png"):
        folder.mkdir(parents=True)
        picture(150, 110).save(folder / "large_enough.png")
    (raw / "B (empty)").mkdir()
    (raw / "README.md").write_text("")
    out = preprocess("--jpegs")
    names = {"2020.png", "nested/deeper/2020.png", "OLD.JPG", "scan.tiff", "b c.jpeg"}
    regions = [region for region in on_disk.load_regions(out) if region.city == "A"]
    assert {region.raster for region in regions if region.site == "site1"} == {
        f"A/site1/{name}" for name in names
    }
    assert len({array(out, region).tobytes() for region in regions}) == 5 + 1 + 2
    train = {path.name.rsplit("_r", 1)[0] for path in (out / "train" / "A").iterdir()}
    assert train == {
        "site1__2020",
        "site2__2020",
        "site1__nested__deeper__2020",
        "site1__OLD",
        "site1__scan",
        "site1__b c",
    }
    assert reading.open_split(out, "train").classes == ["A", "B"]


NAMES = [
    "with space",
    "Zürich Ost",
    "北京",
    'it\'s "quoted"',
    "comma, semicolon;",
    "\u202eright to left",
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
    assert "Zürich Ost" in output
    assert all(line.isprintable() for line in output.splitlines())
    for split in ("train", "val", "test", "test_b"):
        dataset = reading.open_split(out, split)
        assert dataset.classes == cities
        assert set(dataset.labels) == set(range(len(NAMES)))
        for i in range(len(dataset)):
            assert dataset.original(i).size == (48, 48)
            assert dataset.read([i]).any()
    shutil.copytree(
        out,
        tmp_path / "published",
        ignore=lambda folder, names: {"arrays", "dataset.json"} & set(names),
    )
    jpegs = reading.open_split(tmp_path / "published", "test_b", 28)
    assert jpegs.classes == cities
    assert jpegs.read(range(len(jpegs))).any(axis=(1, 2, 3)).all()
    before = files(out)
    preprocess("--jpegs")
    assert files(out) == before
    assert "nothing was left to tile" in capsys.readouterr().out


def test_layouts_that_are_refused(preprocess, tmp_path):
    raw = tmp_path / "raw"
    refused(preprocess, "raw: no such folder")
    raw.mkdir()
    refused(preprocess, "raw: no rasters in it; expected <City (CODE)>/<site>/<raster>.jpg")
    make_raw(raw)
    shutil.rmtree(raw / "Aa (AAA)" / "site1")
    shutil.rmtree(raw / "Aa (AAA)" / "site2")
    lines = refused(preprocess, "Aa (AAA): only one site (site3) has rasters")
    assert len(lines) == 1
    assert not (tmp_path / "out").exists()
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
    assert len(lines) == 3
    assert not (tmp_path / "out").exists()


NOT_NAMES = {
    "line\nbreak": "has a line break or another control character",
    "tab\t": "control character",
    "\x1b[31mred": "control character",
    "c" * 251: "bytes, at most 200 are possible",
    "é" * 101: "bytes, at most 200 are possible",
}


@pytest.mark.parametrize("name", NOT_NAMES, ids=ascii)
@pytest.mark.parametrize("place", ["city", "site", "folder", "raster"])
def test_names_that_cannot_be_files_are_told_before_anything_is_tiled(
    preprocess, tmp_path, place, name
):
    raw = make_raw(tmp_path / "raw")
    site = raw / "Aa (AAA)" / "site1"
    if place == "city":
        (raw / "Aa (AAA)").rename(raw / name)
    if place == "site":
        site.rename(site.with_name(name))
    if place == "folder":
        (site / name / "deeper").mkdir(parents=True)
        picture(150, 110).save(site / name / "deeper" / "x.png")
    if place == "raster":
        (site / "2020.png").rename(site / f"{name}.png")
    (line,) = refused(preprocess, "; rename it")
    assert line.isprintable()
    assert NOT_NAMES[name] in line
    assert not (tmp_path / "out").exists()


def test_names_that_are_too_long_together(preprocess, tmp_path):
    raw = make_raw(tmp_path / "raw")
    site = raw / "Aa (AAA)" / "site1"
    (site / "2020.png").rename(site / f"{'x' * 196}.png")
    (raw / "Bb (BBB)" / "site1" / ("d" * 99)).mkdir()
    picture(150, 110).save(raw / "Bb (BBB)" / "site1" / ("d" * 99) / f"{'x' * 150}.png")
    lines = refused(preprocess, "its patches would have names of 276 bytes, at most 255 are")
    assert len(lines) == 1
    assert not (tmp_path / "out").exists()
    shutil.rmtree(raw / "Bb (BBB)" / "site1" / ("d" * 99))
    assert any("x" * 196 in name for name in files(preprocess("--jpegs")))


def test_fewer_than_two_cities_and_the_level_that_fits(preprocess, tmp_path):
    make_raw(tmp_path / "a" / "b" / "raw")
    for raw in ("a/b", "a"):
        line = "only one city"
        (line,) = refused(partial(preprocess, raw=tmp_path / raw), line)
        assert line.endswith(f"its 2 folders may be the cities: --raw {tmp_path / 'a/b/raw'}")
    make_raw(tmp_path / "one", cities=["Aa (AAA)"])
    (line,) = refused(partial(preprocess, raw=tmp_path / "one"), "one: only one city (Aa (AAA))")
    assert line.endswith(
        "at least two are needed; expected <City (CODE)>/<site>/<raster>.jpg in it"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("twins", [("Aa", "aA"), ("\xe9", "e\u0301"), ("Stra\xdfe", "STRASSE")])
def test_names_that_some_systems_take_for_the_same(preprocess, tmp_path, twins):
    raw = make_raw(tmp_path / "raw", cities=twins)
    (line,) = refused(preprocess, "has the same name as")
    assert ascii(twins[0]) in line
    assert ascii(twins[1]) in line
    shutil.rmtree(raw)
    make_raw(raw)
    for name in twins:
        picture(150, 110).save(raw / "Aa (AAA)" / "site1" / f"{name}.png")
    assert len(refused(preprocess, "would get the same name as")) == 1


def test_a_city_or_a_site_as_the_raw_folder_and_the_level_that_fits(
    preprocess, tmp_path, monkeypatch
):
    raw = make_raw(tmp_path / "raw")
    for folder in ("Aa (AAA)", "Aa (AAA)/site1"):
        (line,) = refused(partial(preprocess, raw=raw / folder), "one of the cities or sites")
        assert line.endswith(f"--raw {raw}")
    monkeypatch.chdir(raw / "Aa (AAA)" / "site1")
    (line,) = refused(partial(preprocess, raw="."), "the first is 2020.png")
    assert line.endswith(f"--raw {raw}")
    # Above a lonely city there is nothing that fits: what is expected is said of each raster.
    make_raw(tmp_path / "a" / "b", cities=["Aa (AAA)"], sites=2)
    lines = refused(partial(preprocess, raw=tmp_path / "a" / "b" / "Aa (AAA)"))
    assert len(lines) == 2
    assert all("a raster must lie in a site's folder" in line for line in lines)


def test_links_pipes_and_folders_of_odd_names(preprocess, tmp_path):
    raw = make_raw(tmp_path / "raw")
    outside = make_raw(tmp_path / "outside") / "Aa (AAA)"
    site = raw / "Aa (AAA)" / "site1"
    (raw / "Linked (LNK)").symlink_to(outside, target_is_directory=True)
    (raw / "Aa (AAA)" / "site0").symlink_to(outside / "site1", target_is_directory=True)
    (raw / "Aa (AAA)" / "loop").symlink_to(raw, target_is_directory=True)
    (site / "out.png").symlink_to(outside / "site1" / "2020.png")
    # This one would carry test pixels into train.
    (site / "in.png").symlink_to(raw / "Aa (AAA)" / "site3" / "2020.png")
    (site / "dangling.png").symlink_to("nowhere")
    (site / "self.png").symlink_to("self.png")
    (site / "text").symlink_to("nowhere")
    (site / ".hidden").symlink_to(tmp_path / "outside", target_is_directory=True)
    os.mkfifo(site / "pipe.jpg")
    os.mkdir(os.fsencode(site) + b"/latin-\xe9")
    picture(150, 110).save(os.fsencode(site) + b"/latin-\xe9/x.png", "PNG")
    links = "Linked (LNK)", "site0", "loop", "out.png", "in.png", "dangling.png", "self.png"
    lines = refused(
        preprocess,
        *(f"{name}: a symbolic link" for name in links),
        "pipe.jpg: no regular file",
        "its name is not in UTF-8; rename it",
    )
    assert len(lines) == 9
    assert all(line.isprintable() for line in lines)
    assert not (tmp_path / "out").exists()
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
    folders = "Aa (AAA)/site2", "Bb (BBB)/site2"
    lines = refused(preprocess, *(f"{folder}: Permission denied" for folder in folders))
    assert len(lines) == 2


def test_where_out_may_lie(preprocess, tmp_path, monkeypatch):
    raw = make_raw(tmp_path / "data" / "raw")
    for out in (
        raw,
        raw / "patches",
        raw / "Aa (AAA)" / ".." / "x",
        tmp_path / "other" / ".." / "data" / "raw",
    ):
        refused(partial(preprocess, raw=raw, out=out), "lies inside the raw folder")
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


def roles(out, city):
    """{site: splits} of a city in a patch set."""
    found = {}
    for region in on_disk.load_regions(out):
        if region.city == city:
            found.setdefault(region.site, set()).add(region.split)
    return found


HALVED = {"test", "val"}


@pytest.mark.parametrize(
    "number, val, expected",
    [
        (1, "half", [{"train"}, {"train"}, HALVED]),
        (2, "half", [{"train"}, HALVED, {"train"}]),
        (3, "half", [HALVED, {"train"}, {"train"}]),
        (4, "half", [{"train"}, {"train"}, HALVED]),
        (1, "site", [{"train"}, {"val"}, {"test"}]),
        (2, "site", [{"val"}, {"test"}, {"train"}]),
        (3, "site", [{"test"}, {"train"}, {"val"}]),
        (6, "site", [{"test"}, {"train"}, {"val"}]),
    ],
)
def test_which_site_is_test_and_which_is_val(number, val, expected):
    splits = finding.splits_of_sites(["s3", "s1", "s2", "s1"], number, val)
    assert [set(splits[site]) for site in ("s1", "s2", "s3")] == expected


def test_a_city_of_two_sites_goes_round_and_keeps_its_halves(preprocess, tmp_path, capsys):
    raw = make_raw(tmp_path / "raw")
    shutil.rmtree(raw / "Bb (BBB)" / "site2")
    out = preprocess("--held-out", 3, "--val", "site")
    assert roles(out, "Aa (AAA)") == {"site1": {"test"}, "site2": {"train"}, "site3": {"val"}}
    assert roles(out, "Bb (BBB)") == {"site1": {"train"}, "site3": HALVED}
    said = capsys.readouterr().out
    assert "--held-out 3: goes round in cities of fewer sites" in said
    assert "what a smaller number does: BBB (2)\n" in said
    assert "val is the right half of the held-out rasters, in BBB\n" in said
    description = json.loads((out / "dataset.json").read_text())
    assert (description["held_out"], description["val"]) == (3, "site")
    whole = next(region for region in on_disk.load_regions(out) if region.split == "test")
    assert (whole.x, whole.width) == (0, 150)
    assert whole.region == "Aa (AAA)/site1/2020.test"


def test_the_held_out_split_is_all_of_the_test_site(preprocess, tmp_path):
    raw = make_raw(tmp_path / "raw")
    shutil.rmtree(raw / "Bb (BBB)" / "site2")
    out = preprocess("--val", "site")
    held_out = reading.open_split(out, "held-out")
    of_splits = {split: reading.open_split(out, split) for split in ("test", "val")}
    names = [held_out.name(i) for i in range(len(held_out))]
    expected = [
        of_split.name(i)
        for of_split in of_splits.values()
        for i in range(len(of_split))
        if (of_split.split, of_split.site(i)) != ("val", "site2")  # a site of its own
    ]
    assert sorted(names) == sorted(expected)
    assert len(expected) < sum(map(len, of_splits.values()))
    for i in (0, len(names) - 1):
        split = held_out.locate(i)[0].split
        patches = of_splits[split]
        same = next(j for j in range(len(patches)) if patches.name(j) == names[i])
        assert (held_out.read([i]) == patches.read([same])).all()
        assert held_out.labels[i] == patches.labels[same]


def test_a_set_with_another_held_out_site_is_neither_mixed_nor_lost(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    out = preprocess("--held-out", 2)
    before = files(out)
    refused(lambda: preprocess(), "this patch set was made with --held-out 2; choose another")
    refused(
        lambda: preprocess("--held-out", 2, "--val", "site"),
        "this patch set was made with --val half",
    )
    preprocess("--held-out", 2)
    assert files(out) == before
    assert "held_out" not in json.loads(
        (preprocess(out=tmp_path / "b") / "dataset.json").read_text()
    )


def test_jpegs_follow_the_held_out_site(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    out = preprocess("--held-out", 2, "--val", "site", "--jpegs")
    sites = {
        split: {path.name.split("__")[0] for path in (out / split).rglob("*.jpg")}
        for split in ("train", "val", "test", "test_b")
    }
    assert sites == {"train": {"site3"}, "val": {"site1"}, "test": {"site2"}, "test_b": {"site2"}}
    for name in ("dataset.json", "regions.csv", "test_b.csv"):
        (out / name).unlink()
    shutil.rmtree(out / "arrays")
    patches = reading.open_split(out, "test", 28)
    assert patches.locate(0) is not None
    assert patches.describe_unplaced() == ""
    refused(lambda: reading.open_split(out, "held-out"), "needs a patch set of preprocessing.py")


@pytest.mark.parametrize("key, value", [("held_out", 0), ("held_out", "1"), ("val", "whole")])
def test_damaged_facts_of_the_split_are_told(preprocess, tmp_path, key, value):
    make_raw(tmp_path / "raw")
    out = preprocess("--held-out", 2)
    description = json.loads((out / "dataset.json").read_text())
    (out / "dataset.json").write_text(json.dumps(description | {key: value}))
    refused(lambda: reading.open_split(out, "test"), f"its {key} cannot be right")


def test_distances_are_from_the_test_site_to_train(preprocess, tmp_path):
    """Sites lie 5 km apart, from middle to middle, and rasters are 110 pixels high."""
    make_geotiffs(tmp_path / "raw")
    out = preprocess("--val", "site")  # site3 is test, site2 val, site1 train
    distances = json.loads((out / "dataset.json").read_text())["held_out_distance"]
    expected = 10_000 - 110 * METRES
    assert distances == {
        "Aa (AAA)": pytest.approx(expected, abs=20),
        "Bb (BBB)": pytest.approx(expected, abs=20),
    }


def test_val_of_its_own_shares_no_ground_with_test(preprocess, tmp_path):
    raw = make_geotiffs(tmp_path / "raw")
    corner = (300_000, 4_000_000 + 15_000)  # that of site3
    write_geotiff(raw / "Aa (AAA)" / "site2" / "again.tif", picture(150, 110), corner=corner)
    refused(lambda: preprocess("--val", "site"), "site2/again.tif (val) and")
