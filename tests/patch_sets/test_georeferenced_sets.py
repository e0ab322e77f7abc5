"""Patch sets of georeferenced rasters: planned, tiled, described, read again."""

import json
import multiprocessing
import shutil

import numpy as np
import pytest
import rasterio
from conftest import (
    METRES,
    SIZES,
    as_flags,
    files,
    make_geotiffs,
    make_raw,
    picture,
    write_geotiff,
)
from PIL import Image
from preprocessing_runs import changed_by, refused

import preprocessing
from dl_slicer.patch_sets import gaps, image_files, on_disk, rasters, reading, strips, tiling

CITY = "Aa (AAA)"


def regions_of(out, its_format=2):
    return {region.region: region for region in on_disk.load_regions(out, None, its_format)}


def description(out):
    return json.loads((out / "dataset.json").read_text(encoding="utf-8"))


def arrays(folder):
    return {name: data for name, data in files(folder).items() if name.endswith((".npy", ".jpg"))}


def give_gaps(path, absent):
    """Have a GeoTIFF's pixels be without data where bool (height, width) says it."""
    with rasterio.open(path, "r+") as raster:
        pixels = raster.read()
        pixels[pixels == 0] = 1
        pixels[:, absent] = 0
        raster.write(pixels)
        raster.nodata = 0


# ------------------------------------------------------------------------------- as they are


def test_a_georeferenced_set_has_the_pixels_of_one_without(preprocess, tmp_path):
    """Through GDAL and in strips the bytes are those of Pillow and the whole."""
    make_raw(tmp_path / "png")
    make_geotiffs(tmp_path / "tif")
    plain = preprocess("--jpegs", raw=tmp_path / "png", out=tmp_path / "plain")
    placed = preprocess("--jpegs", raw=tmp_path / "tif", out=tmp_path / "placed")
    assert arrays(plain) == arrays(placed)
    assert (plain / "test_b.csv").read_bytes() == (placed / "test_b.csv").read_bytes()
    assert description(plain)["format"] == 1
    assert "crs" not in (plain / "regions.csv").read_text()
    assert tuple((plain / "regions.csv").read_text().splitlines()[0].split(",")) == on_disk.COLUMNS


def test_a_set_says_where_its_regions_lie(preprocess, tmp_path):
    make_geotiffs(tmp_path / "raw")
    out = preprocess()
    val = regions_of(out)[f"{CITY}/site3/2020.val"]
    assert (val.crs, val.left, val.top) == ("EPSG:32611", 300_000, 4_015_000)
    assert val.x == 75
    assert val.metres_a_pixel == pytest.approx(METRES, rel=0.001)
    assert (val.bands, val.stretch, val.without_data) == ("", "", "")
    found = description(out)
    assert found["format"] == 2
    assert "rasterio" in found["versions"]
    assert [found[key] for key in on_disk.KEYS_OF_FORMAT_2] == [None, None, None, None, 0.05, False]
    patches = reading.open_split(out, "test")
    assert patches.metres_a_pixel == pytest.approx(METRES, rel=0.001)
    assert patches.view == on_disk.AS_THEY_ARE
    # Nothing is done twice, and nothing changes.
    assert not changed_by(out, preprocess)


def test_one_raster_with_a_place_among_others(preprocess, tmp_path):
    """Sets may be mixed; nothing is known of the place of the others."""
    raw = make_raw(tmp_path / "raw")
    preprocess()
    write_geotiff(raw / CITY / "site1" / "2021.tif", picture(150, 110))
    out = preprocess()
    assert description(out)["format"] == 2
    regions = regions_of(out)
    assert regions[f"{CITY}/site1/2021.train"].crs == "EPSG:32611"
    assert regions[f"{CITY}/site1/2020.train"].left is None
    assert reading.open_split(out, "train").metres_a_pixel is None


@pytest.mark.parametrize("pixels", [2_000, 20_000])
def test_strips_change_nothing(preprocess, tmp_path, monkeypatch, pixels):
    make_geotiffs(tmp_path / "raw", size=(200, 300))
    for flags in ([], ["--ground-resolution", METRES / 1.3, "--stretch", "auto"]):
        whole = arrays(preprocess(*flags, out=tmp_path / f"whole{len(flags)}"))
        with monkeypatch.context() as patch:
            patch.setattr(strips, "STRIP_PIXELS", pixels)
            assert arrays(preprocess(*flags, out=tmp_path / f"strips{len(flags)}")) == whole


def test_originals_are_read_in_windows(preprocess, tmp_path, monkeypatch):
    make_geotiffs(tmp_path / "raw")
    flags = ["--bands", 3, 2, 1, "--stretch", "auto", "--ground-resolution", METRES]
    patches = reading.open_split(preprocess(*flags), "val")
    monkeypatch.setattr(image_files, "read_image", None)  # none is read whole
    for index in range(len(patches)):
        original = patches.original(index)
        assert original.size == (48, 48)
        resized = np.asarray(image_files.resize(original, (28, 28)), int)
        stored = patches.read([index])[0]
        assert np.abs(resized - stored)[2:-2, 2:-2].max() == 0
    (tmp_path / "raw" / patches.raster(0)).unlink()
    reading.close_rasters()
    assert patches.original(0).size == (28, 28)


# ------------------------------------------------------------------------------- how they are seen


def test_patches_at_a_ground_resolution(preprocess, tmp_path, capsys):
    """Rasters of half the metres a pixel give the patches of the others, 200 m wide."""
    make_geotiffs(tmp_path / "raw", size=(300, 220), metres=METRES / 2)
    out = preprocess("--ground-resolution", METRES)
    region = regions_of(out)[f"{CITY}/site1/2020.train"]
    assert (region.width, region.height, region.rows, region.cols) == (150, 110, 3, 5)
    assert region.metres_a_pixel == METRES
    assert "not 200 m wide" not in capsys.readouterr().out
    patches = reading.open_split(out, "train")
    assert patches.view.ground_resolution == patches.metres_a_pixel == METRES
    with Image.open(tmp_path / "raw" / region.raster) as raster:
        halved = np.asarray(image_files.resize(raster, (150, 110)), int)
    seen = np.asarray(patches.original(0), int)
    assert np.abs(seen - halved[:48, :48]).mean() < 6


def test_a_patch_of_another_size_on_the_ground_is_said_once(preprocess, tmp_path, capsys):
    make_geotiffs(tmp_path / "raw", metres=METRES * 1.5)
    write_geotiff(tmp_path / "raw" / CITY / "site1" / "fits.tif", picture(150, 110))
    preprocess()
    said = [line for line in capsys.readouterr().out.splitlines() if "wide there" in line]
    assert said == [
        "6 of 7 georeferenced rasters: a patch of 48 pixels is not 200 m wide there, as published;"
        f" in the first, {CITY}/site1/2020.tif, it is 300 m (6.25 m a pixel); to see 200 m"
        " everywhere: --ground-resolution 4.17"
    ]


def test_rasters_without_a_place_are_named_all_at_once(preprocess, tmp_path):
    raw = make_raw(tmp_path / "raw")
    make_geotiffs(tmp_path / "raw2")
    shutil.copytree(tmp_path / "raw2" / CITY / "site1", raw / CITY / "more")
    lines = refused(lambda: preprocess("--ground-resolution", 4))
    assert len(lines) == 7
    assert sum("2020.png: " in line for line in lines) == 6
    assert lines[-1].startswith("1 of 7 rasters are done and kept")


def test_a_range_for_each_region(preprocess, tmp_path):
    """None is learnt of pixels that two splits share: of what a region covers alone."""
    raw = make_geotiffs(tmp_path / "raw", size=(240, 120))
    dark_and_bright = np.full((120, 240, 3), 40, np.uint16)
    dark_and_bright[:, 120:] = 3000
    dark_and_bright += np.arange(120, dtype=np.uint16)[:, None, None]
    write_geotiff(raw / CITY / "site3" / "2020.tif", dark_and_bright)
    out = preprocess("--stretch", "auto")
    regions = regions_of(out)
    ranges = {split: regions[f"{CITY}/site3/2020.{split}"].stretch for split in ("test", "val")}
    low, high = map(float, ranges["test"].split())
    assert (low, high) == (pytest.approx(42, abs=1), pytest.approx(157, abs=1))
    assert float(ranges["val"].split()[0]) == low + 2960
    array = np.load(out / regions[f"{CITY}/site3/2020.val"].file)
    assert array.min() == 0 and array.max() == 255
    assert reading.open_split(out, "val").view.stretch == "auto"


def test_a_range_for_all(preprocess, tmp_path):
    raw = make_geotiffs(tmp_path / "raw")
    deep = np.asarray(picture(150, 110, seed=1), np.uint16) * 8
    write_geotiff(raw / CITY / "site1" / "2020.tif", deep)
    refused(preprocess, "site1/2020.tif: ")
    out = preprocess("--stretch", 0, 2040, out=tmp_path / "stretched")
    region = regions_of(out)[f"{CITY}/site1/2020.train"]
    assert region.stretch == "0.0 2040.0"
    make_raw(tmp_path / "png")
    plain = preprocess(raw=tmp_path / "png", out=tmp_path / "plain")
    name = "arrays/Aa (AAA)/site1/2020.train.npy"
    assert (out / name).read_bytes() == (plain / name).read_bytes()


@pytest.mark.parametrize("metres", [METRES / 1.3, METRES / 2.2, METRES * 1.3, METRES])
def test_no_pixel_reaches_two_splits_by_warping(preprocess, tmp_path, metres):
    """Paint a held-out raster on one side: nothing changes in the other side's patches."""
    size = (round(150 * METRES / metres), round(110 * METRES / metres))
    raw = make_geotiffs(tmp_path / "raw", size=size, metres=metres)
    raster = raw / CITY / "site3" / "2020.tif"
    clean = np.asarray(picture(*size, seed=3))
    flags = ["--ground-resolution", METRES]
    before = arrays(preprocess(*flags))
    with rasters.open_raster(raster, rasters.View(ground_resolution=METRES)) as seen:
        # Between the two there is a column that neither of them shows.
        border = (75 - seen.reach) * METRES / metres
    for painted, columns in (
        ("test", slice(0, int(np.floor(border)))),
        ("val", slice(int(np.ceil(border)), None)),
    ):
        pixels = clean.copy()
        pixels[:, columns] = (255, 0, 255)
        write_geotiff(raster, pixels, corner=(300_000, 4_015_000), metres=metres)
        after = arrays(preprocess(*flags, out=tmp_path / painted))
        assert {name for name in before if before[name] != after[name]} == {
            f"arrays/{CITY}/site3/2020.{painted}.npy"
        }
    # Windows begin where they do in any version; the left part ends earlier where one is warped.
    regions = regions_of(tmp_path / "out")
    assert regions[f"{CITY}/site3/2020.val"].x == 75
    assert (regions[f"{CITY}/site3/2020.test"].width == 75) is (metres == METRES)


FLAGS = {
    "ground_resolution": (["--ground-resolution", METRES], "--ground-resolution 4.16"),
    "bands": (["--bands", 3, 2, 1], "--bands 3 2 1"),
    "stretch": (["--stretch", 3, 300], "--stretch 3 300"),
    "auto": (["--stretch", "auto"], "--stretch auto"),
    "max_nodata": (["--max-nodata", 0.5], "--max-nodata 0.5"),
    "crs": (["--crs", "epsg:32611"], "--crs EPSG:32611"),
}


@pytest.mark.parametrize("name", FLAGS)
def test_how_rasters_are_seen_belongs_to_a_set(preprocess, tmp_path, name):
    flags, said = FLAGS[name]
    make_geotiffs(tmp_path / "raw", sites=2)
    out = preprocess(*flags)
    before = files(out)
    preprocess(*flags)
    refused(preprocess, f"this patch set was made with {said}")
    (out / "dataset.json").unlink()  # the records say it, too
    refused(preprocess, f"this patch set was made with {said}")
    preprocess(*flags)
    assert files(out) == before
    other = preprocess(out=tmp_path / "other")
    without = "--max-nodata 0.05" if name == "max_nodata" else f"no {flags[0]}"
    refused(lambda: preprocess(*flags, out=other), f"this patch set was made with {without}")


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--ground-resolution", "0"], "--ground-resolution: '0': must be a number at least 0.001"),
        (["--ground-resolution", "nan"], "--ground-resolution: 'nan'"),
        (["--ground-resolution", "inf"], "--ground-resolution: 'inf'"),
        (["--bands", "1", "2"], "--bands: three, or one that is read as grey; 2 are given"),
        (["--bands", "0"], "--bands: '0': must be a whole number at least 1"),
        (["--stretch", "5"], "--stretch: '5': must be two numbers, the smaller one first"),
        (["--stretch", "5", "5"], "--stretch: '5 5'"),
        (["--stretch", "0", "nan"], "--stretch: '0 nan'"),
        (["--stretch", "0", "inf"], "--stretch: '0 inf'"),
        (["--stretch", "auto", "5"], "--stretch: 'auto 5'"),
        (["--max-nodata", "1.1"], "--max-nodata: '1.1': must be a number at least 0 and at most 1"),
        (["--crs", "EPSG:999999"], "'EPSG:999999': no coordinate system of places on the ground"),
        (["--crs", "EPSG:5773"], "'EPSG:5773': no coordinate system of places on the ground"),
        (["--crs", "32611"], "'32611': must be EPSG:N"),
    ],
)
def test_nonsense_is_refused_at_the_start(preprocess, tmp_path, capfd, flags, said):
    make_geotiffs(tmp_path / "raw", sites=2)
    assert len(refused(lambda: preprocess(*flags), said)) == 1
    assert not (tmp_path / "out").exists()
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------- without data


@pytest.fixture
def with_gaps(tmp_path):
    """A raw folder in which a train raster lacks its upper left, and a test region its windows."""
    raw = make_geotiffs(tmp_path / "raw")
    absent = np.zeros((110, 150), bool)
    absent[:40, :40] = True
    give_gaps(raw / CITY / "site1" / "2020.tif", absent)
    absent = np.zeros((110, 150), bool)
    absent[:, :70] = True
    absent[100:, 80:90] = True  # not in a window of val
    give_gaps(raw / CITY / "site3" / "2020.tif", absent)
    return raw


def test_windows_without_data_are_in_no_split(preprocess, with_gaps, tmp_path, capsys):
    out = preprocess("--jpegs")
    regions = regions_of(out)
    # Of 48 x 48 pixels 5 % are 115: of window (0, 1) 640 are missing, of (1, 1) 256.
    assert regions[f"{CITY}/site1/2020.train"].without_data == "0-1 5-6"
    assert f"{CITY}/site3/2020.test" not in regions
    assert regions[f"{CITY}/site3/2020.val"].without_data == ""
    counts = description(out)["counts"]
    assert [counts[split][CITY] for split in on_disk.SPLITS] == [26, 6, 0, 0]
    assert not (out / "arrays" / CITY / "site3" / "2020.test.npy").exists()
    jpegs = {path.name for path in (out / "train" / CITY).iterdir()}
    assert len(jpegs) == 26
    assert "site1__2020_r00_c01.jpg" not in jpegs
    assert "site1__2020_r00_c02.jpg" in jpegs
    said = capsys.readouterr().out
    header, aa, bb, everything = said[said.index("\ncity") + 1 :].splitlines()[:4]
    assert header.endswith("   left over   no data")
    assert aa.split()[6:] == ["16.2", "%", "21.4", "%"]
    assert bb.split()[6:] == ["16.2", "%", "0.0", "%"]
    assert "in windows with more than 0.05 without data" in everything
    assert f"no data: {CITY} has no patch in test; add rasters" in said
    assert "test_b: fewer than 5 test patches, so all of them, in 1 city: AAA" in said
    # Again: nothing to do, and the same is said.
    assert not changed_by(out, lambda: preprocess("--jpegs"))
    assert f"no data: {CITY} has no patch in test" in capsys.readouterr().out


def test_patches_are_numbered_without_gaps(preprocess, with_gaps):
    out = preprocess()
    train = reading.open_split(out, "train")
    assert len(train) == len(train.labels) == 56
    assert train.labels.tolist() == [0] * 26 + [1] * 30
    assert train.name(0) == f"{CITY}/site1/2020.train/r00_c02"
    names = [train.name(index) for index in range(len(train))]
    assert len(set(names)) == 56
    assert not {f"{CITY}/site1/2020.train/r0{row}_c0{col}" for row in (0, 1) for col in (0, 1)} & {
        *names
    }
    region, y, x = train.corners(np.arange(len(train)))
    every = list(train.region_arrays())
    for index in range(len(train)):
        where, row, col = train.locate(index)
        assert where is train.regions[region[index]]
        stored = np.load(out / where.file)[14 * row : 14 * row + 28, 14 * col : 14 * col + 28]
        assert np.array_equal(train.read([index])[0], stored)
        array = every[region[index]]
        assert np.array_equal(array[y[index] : y[index] + 28, x[index] : x[index] + 28], stored)
        assert train.raster(index) == where.raster
        assert np.array_equal(
            np.asarray(image_files.resize(train.original(index), (28, 28)))[2:-2, 2:-2],
            stored[2:-2, 2:-2],
        )
    assert {train.locate(index)[0].city for index in np.flatnonzero(train.labels)} == {"Bb (BBB)"}


def test_test_b_has_windows_with_data_only(preprocess, tmp_path):
    raw = make_geotiffs(tmp_path / "raw", size=(300, 200))
    absent = np.zeros((200, 300), bool)
    absent[60:140, 30:90] = True
    give_gaps(raw / CITY / "site3" / "2020.tif", absent)
    out = preprocess("--test-b", 1000)
    left_out = gaps.parse(regions_of(out)[f"{CITY}/site3/2020.test"].without_data).tolist()
    assert left_out
    sample = reading.open_split(out, "test_b")
    test = reading.open_split(out, "test")
    assert [sample.name(i) for i in range(len(sample))] == [test.name(i) for i in range(len(test))]
    few = preprocess("--test-b", 7, out=tmp_path / "few")
    sample = reading.open_split(few, "test_b")
    assert sample.labels.tolist() == [0] * 7 + [1] * 7
    for index in range(7):
        region, row, col = sample.locate(index)
        assert row * region.cols + col not in left_out
    # A window without data is no patch to be drawn.
    text = (few / "test_b.csv").read_text().splitlines()
    row, col = divmod(left_out[0], regions_of(few)[f"{CITY}/site3/2020.test"].cols)
    text[1] = f"{CITY}/site3/2020.test,{row},{col}"
    (few / "test_b.csv").write_text("\n".join(text) + "\n")
    refused(lambda: reading.open_split(few, "test_b"), "line 2: a window without data")


def test_max_nodata(preprocess, with_gaps, tmp_path):
    counts = {}
    for share in (0, 0.05, 0.3, 0.9, 1):
        out = preprocess("--max-nodata", share, out=tmp_path / str(share))
        counts[share] = description(out)["counts"]["train"][CITY]
    assert counts == {0: 26, 0.05: 26, 0.3: 29, 0.9: 30, 1: 30}


def test_a_raster_without_any_data_is_said(preprocess, with_gaps, capsys):
    give_gaps(with_gaps / CITY / "site2" / "2020.tif", np.ones((110, 150), bool))
    for flags in ([], ["--stretch", "auto"]):
        out = preprocess(*flags, out=with_gaps.parent / f"out{len(flags)}")
        assert f"the first is {CITY}/site2/2020.tif" in capsys.readouterr().out
        assert description(out)["counts"]["train"][CITY] == 11
        assert not changed_by(out, lambda f=flags, o=out: preprocess(*f, out=o))


def test_cities_without_any_data(preprocess, tmp_path, capsys):
    raw = make_geotiffs(tmp_path / "raw", cities=("Aa (AAA)", "Bb (BBB)", "Cc (CCC)"), sites=2)
    nothing = np.ones((110, 150), bool)
    for site in ("site1", "site2"):
        give_gaps(raw / CITY / site / "2020.tif", nothing)
    out = preprocess()
    assert f"no data: {CITY} has no patch at all and is no class" in capsys.readouterr().out
    assert description(out)["classes"] == ["Bb (BBB)", "Cc (CCC)"]
    assert reading.open_split(out, "test").labels.tolist() == [0] * 6 + [1] * 6
    for site in ("site1", "site2"):
        give_gaps(raw / "Bb (BBB)" / site / "2020.tif", nothing)
    refused(preprocess, "fewer than two cities have windows with enough data, and two are needed")


# ------------------------------------------------------------------------------- planning


def test_what_is_odd_of_rasters_is_said_once(preprocess, tmp_path, capsys):
    """NAIP calls its near infrared alpha."""
    raw = make_geotiffs(tmp_path / "raw")
    for site in ("site1", "site2"):
        bands = np.asarray(picture(150, 110))
        bands = np.dstack([bands, bands[:, :, 0]])
        options = {"photometric": "RGB", "alpha": "YES"}
        write_geotiff(raw / CITY / site / "2020.tif", bands, **options)
    out = preprocess()
    said = [line for line in capsys.readouterr().out.splitlines() if "alpha" in line]
    assert len(said) == 1
    assert said[0].startswith("2 rasters: band 4 is marked as alpha and has other values")
    assert said[0].endswith(f"; the first is {CITY}/site1/2020.tif")
    assert regions_of(out)[f"{CITY}/site1/2020.train"].without_data == ""


def test_what_was_planned_is_remembered(preprocess, tmp_path, monkeypatch):
    make_geotiffs(tmp_path / "raw")
    killed = {"after": 2}
    tile_raster = tiling.tile_raster

    def killed_soon(request, job):
        killed["after"] -= 1
        if killed["after"] < 0:
            raise KeyboardInterrupt
        return tile_raster(request, job)

    with monkeypatch.context() as patch:
        patch.setattr(tiling, "tile_raster", killed_soon)
        with pytest.raises(KeyboardInterrupt):
            preprocess("--workers", 2)
    planned = []
    plan = tiling.plan_raster
    monkeypatch.setattr(
        tiling, "plan_raster", lambda request, job: planned.append(job) or plan(request, job)
    )
    out = preprocess("--workers", 2)
    assert not planned
    assert files(out).keys() == files(preprocess(out=tmp_path / "undisturbed")).keys()


def test_several_processes_look_at_rasters(tmp_path):
    """And workers write the same as one process does."""
    raw = make_geotiffs(tmp_path / "raw")
    flags = {**SIZES, "--raw": raw, "--ground-resolution": METRES / 1.5}
    for workers in (1, 2):
        out = tmp_path / str(workers)
        preprocessing.main(as_flags({**flags, "--out": out, "--workers": workers}))
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_the_bar_counts_pixels_and_a_raster_stops_in_the_middle(preprocess, tmp_path, monkeypatch):
    make_geotiffs(tmp_path / "raw", sites=2, size=(200, 300))
    counter = multiprocessing.Value("q", 0)
    stop = multiprocessing.Event()
    monkeypatch.setattr(tiling, "_shared", [(counter, stop)])
    monkeypatch.setattr(strips, "STRIP_PIXELS", 10_000)
    out = preprocess()
    covered = sum(
        np.prod(on_disk.covered_size(region.rows, region.cols, description(out)))
        for region in regions_of(out).values()
    )
    assert counter.value == covered
    stop.set()
    with pytest.raises(tiling._StoppedError):
        preprocess(out=tmp_path / "stopped")
    assert counter.value == covered
    left = {path.suffix for path in (tmp_path / "stopped").rglob("*") if path.is_file()}
    assert left <= {".json", ""}
