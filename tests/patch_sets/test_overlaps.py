"""No ground in two splits: overlaps across splits are refused, years of one place share a line."""

import json

import numpy as np
import pytest
from conftest import METRES, make_geotiffs, picture, write_geotiff
from preprocessing_runs import changed_by, refused

from dl_slicer.patch_sets import on_disk

EAST = 300_000
NORTH = 4_015_000  # of the held-out site3 of Aa (AAA), as make_geotiffs places it
SITE = "Aa (AAA)/site3"


@pytest.fixture
def raw(tmp_path):
    return make_geotiffs(tmp_path / "raw")


def add(raw, name, right=0, down=0, size=(150, 110), corner=(EAST, NORTH), **options):
    """A raster so many pixels right of and below the held-out one of Aa (AAA)."""
    metres = options.get("metres", METRES)
    corner = (corner[0] + right * metres, corner[1] - down * metres)
    return write_geotiff(raw / name, picture(*size, seed=len(name)), corner=corner, **options)


def regions_of(out, site="site3"):
    return {
        (region.raster, region.split): region
        for region in on_disk.load_regions(out)
        if region.city == "Aa (AAA)" and region.site == site
    }


def test_the_same_ground_in_two_splits_is_refused_before_anything_is_tiled(
    raw, preprocess, tmp_path
):
    add(raw, "Aa (AAA)/site1/old.tif")
    add(raw, "Bb (BBB)/site1/far.tif", right=140)
    lines = refused(
        preprocess,
        "2 pairs of rasters",
        "Aa (AAA)/site1/old.tif (train) and Aa (AAA)/site3/2020.tif (test and val)",
        "Aa (AAA)/site3/2020.tif (val) and Bb (BBB)/site1/far.tif (train)",
        "--allow-overlap",
    )
    assert len(lines) == 4
    assert not (tmp_path / "out").exists()


def test_many_pairs_are_counted_and_few_are_named(raw, preprocess):
    for year in range(2000, 2012):
        add(raw, f"Aa (AAA)/site1/{year}.tif")
    lines = refused(preprocess, "12 pairs of rasters", "and 7 more")
    assert len(lines) == 1 + 5 + 1 + 1


@pytest.mark.parametrize("pixels", [0, 2])
def test_what_touches_or_overlaps_by_two_pixels_passes(raw, preprocess, pixels):
    add(raw, "Aa (AAA)/site1/beside.tif", right=150 - pixels)
    add(raw, "Aa (AAA)/site2/below.tif", down=110 - pixels)
    description = json.loads((preprocess() / "dataset.json").read_text())
    assert description["allow_overlap"] is False
    assert description["held_out_distance"]["Aa (AAA)"] == pytest.approx(0, abs=0.1)


def test_one_per_cent_of_a_raster_is_refused(raw, preprocess):
    add(raw, "Aa (AAA)/site1/beside.tif", right=297, size=(300, 110))
    add(raw, f"{SITE}/wide.tif", size=(300, 110))
    refused(preprocess, "Aa (AAA)/site1/beside.tif (train) and Aa (AAA)/site3/wide.tif (val)")


def test_allow_overlap_goes_on_and_the_set_says_so(raw, preprocess, capsys):
    add(raw, "Aa (AAA)/site1/old.tif")
    out = preprocess("--allow-overlap")
    assert "1 pair of rasters" in capsys.readouterr().out
    description = on_disk.load_description(out)
    assert description.allow_overlap
    assert description.held_out_distance == {
        "Aa (AAA)": 0.0,
        "Bb (BBB)": pytest.approx(4542, abs=2),
    }
    refused(preprocess, "1 pair of rasters")  # the flag is no setting of the set


def test_without_an_overlap_the_set_does_not_say_that_one_was_allowed(raw, preprocess):
    assert not on_disk.load_description(preprocess("--allow-overlap")).allow_overlap


def test_two_years_thirty_metres_apart_are_cut_at_one_line(tmp_path, preprocess):
    """The line is the middle of their union: no ground is in test and in val."""
    metres = 1.0
    raw = make_geotiffs(tmp_path / "raw", metres=metres)
    add(raw, f"{SITE}/2022.tif", right=30, down=-7, metres=metres)
    regions = regions_of(preprocess())
    line = EAST + (150 + 30) / 2
    for name, left in (("2020", EAST), ("2022", EAST + 30)):
        test = regions[f"{SITE}/{name}.tif", "test"]
        val = regions[f"{SITE}/{name}.tif", "val"]
        assert left + test.x + test.width == left + val.x == line
        assert (test.x, val.x + val.width) == (0, 150)


def test_years_that_overlap_through_others_share_a_line_and_may_lie_on_one_side(
    raw, preprocess, capsys
):
    add(raw, f"{SITE}/2021.tif", right=100)
    add(raw, f"{SITE}/2022.tif", right=200)
    add(raw, f"{SITE}/apart.tif", right=-300)
    out = preprocess()
    regions = regions_of(out)
    line = 350 / 2
    sides = {key: (region.x, region.x + region.width) for key, region in regions.items()}
    assert sides == {
        (f"{SITE}/2020.tif", "test"): (0, 150),
        (f"{SITE}/2021.tif", "test"): (0, line - 100),
        (f"{SITE}/2021.tif", "val"): (line - 100, 150),
        (f"{SITE}/2022.tif", "val"): (0, 150),
        (f"{SITE}/apart.tif", "test"): (0, 75),
        (f"{SITE}/apart.tif", "val"): (75, 150),
    }
    assert "2 of 5 held-out rasters" in capsys.readouterr().out
    assert changed_by(out, preprocess) == set()


@pytest.mark.parametrize("turn", ["system", "rotated", "upside down"])
def test_what_is_turned_against_the_others_is_cut_on_the_safe_sides(raw, preprocess, turn):
    """In another system, by five degrees, by half a turn: no ground is in test and in val."""
    from affine import Affine
    from rasterio import warp

    corner = Affine.translation(EAST, NORTH)
    turned = {
        "rotated": corner * Affine.rotation(5) * Affine.scale(METRES, -METRES),
        "upside down": corner * Affine.translation(625, -458) * Affine.scale(-METRES, METRES),
    }
    options = {}
    if turn == "system":
        x, y = warp.transform("EPSG:32611", "EPSG:3857", [EAST], [NORTH])
        scale = METRES / np.cos(np.radians(36.26))
        options = {"crs": "EPSG:3857", "transform": Affine(scale, 0, x[0], 0, -scale, y[0])}
    add(raw, f"{SITE}/2022.tif", **{"transform": turned.get(turn), **options})
    regions = regions_of(preprocess())  # which looks at each pair itself
    straight = regions[f"{SITE}/2020.tif", "test"]
    other = {split: regions[f"{SITE}/2022.tif", split] for split in ("test", "val")}
    if turn == "upside down":
        assert other["test"].x > 0 and other["val"].x == 0
    else:
        between = other["val"].x - other["test"].width
        assert 0 < between < 15  # the line leans in it
    assert 60 < straight.width < 90


def test_a_raster_that_no_side_of_the_line_fits_is_named(raw, preprocess):
    from affine import Affine

    across = Affine.translation(EAST, NORTH) * Affine.rotation(90) * Affine.scale(METRES, -METRES)
    add(raw, f"{SITE}/2022.tif", transform=Affine.translation(0, -600) * across)
    refused(preprocess, "where the held-out rasters that it overlaps on the ground are cut")


def test_a_city_that_the_line_leaves_no_test_or_no_val_is_named(raw, preprocess):
    (raw / SITE / "2020.tif").unlink()
    add(raw, f"{SITE}/a.tif", size=(60, 110))
    add(raw, f"{SITE}/b.tif", size=(90, 110))
    refused(preprocess, "none has 48 pixels left for test")


def test_a_year_that_is_added_moves_the_line_and_the_others_are_tiled_anew(raw, preprocess):
    out = preprocess()
    before = regions_of(out)
    add(raw, f"{SITE}/2022.tif", right=20)
    changed = changed_by(out, preprocess)
    after = regions_of(out)
    assert before[f"{SITE}/2020.tif", "test"].width == 75
    assert after[f"{SITE}/2020.tif", "test"].width == 85
    assert f"arrays/{SITE}/2020.test.npy" in changed
    assert not [name for name in changed if "site1" in name]


def test_nodata_does_not_overlap(raw, preprocess):
    """The frames share half their ground, the data none of it."""
    pixels = np.asarray(picture(150, 110, seed=3)).clip(1)
    pixels[:, :80] = 0
    corner = (EAST - 230 * METRES, NORTH)
    write_geotiff(raw / "Aa (AAA)/site1/left.tif", pixels[:, ::-1], corner=corner, nodata=0)
    corner = (EAST + 70 * METRES, NORTH)
    write_geotiff(raw / "Aa (AAA)/site1/right.tif", pixels, corner=corner, nodata=0)
    preprocess()
    corner = (EAST + 60 * METRES, NORTH)
    write_geotiff(raw / "Aa (AAA)/site1/right.tif", pixels, corner=corner, nodata=0)
    refused(preprocess, "Aa (AAA)/site1/right.tif (train) and Aa (AAA)/site3/2020.tif (val)")


def test_a_raster_without_data_and_one_with_little_are_looked_at_closely(raw, preprocess):
    empty = np.zeros((110, 150, 3), np.uint8)
    file = raw / "Aa (AAA)/site1/empty.tif"
    write_geotiff(file, empty, corner=(EAST, NORTH), nodata=0)
    assert not on_disk.load_description(preprocess()).allow_overlap
    empty[50:57, 70:75] = 9  # between the samples
    write_geotiff(file, empty, corner=(EAST, NORTH), nodata=0)
    refused(preprocess, "empty.tif (train)")


def test_a_ground_resolution_keeps_years_of_one_place_apart(raw, preprocess):
    """Two systems, each seen on its own metric grid."""
    from affine import Affine
    from rasterio import warp

    x, y = warp.transform("EPSG:32611", "EPSG:3857", [EAST + 30], [NORTH])
    scale = METRES / np.cos(np.radians(36.26))
    transform = Affine(scale, 0, x[0], 0, -scale, y[0])
    add(raw, f"{SITE}/2022.tif", crs="EPSG:3857", transform=transform)
    regions = regions_of(preprocess("--ground-resolution", METRES))
    ends = []
    begins = []
    for name in ("2020", "2022"):
        test = regions[f"{SITE}/{name}.tif", "test"]
        val = regions[f"{SITE}/{name}.tif", "val"]
        assert test.crs == val.crs == "EPSG:32611"
        ends.append(test.left + (test.x + test.width) * METRES)
        begins.append(val.left + val.x * METRES)
    # As near to the line as resampling lets them: it looks at some pixels around.
    assert max(ends) < EAST + (150 * METRES + 30) / 2 < min(begins)
    assert min(begins) - max(ends) < 12 * METRES
    add(raw, "Aa (AAA)/site1/old.tif", right=30)
    refused(lambda: preprocess("--ground-resolution", METRES), "2 pairs of rasters")


def test_where_rasters_lie_is_remembered(raw, preprocess, monkeypatch):
    out = preprocess()
    content = json.loads((out / on_disk.FOOTPRINTS).read_text())
    assert len(content["rasters"]) == 6
    from dl_slicer.patch_sets.survey import Survey

    def read(self, raster):
        raise AssertionError(f"{raster} is read again")

    with monkeypatch.context() as patched:
        patched.setattr(Survey, "_read", read)
        assert changed_by(out, preprocess) == set()
    (out / on_disk.FOOTPRINTS).write_text('{"view": 3}')
    preprocess()
    assert json.loads((out / on_disk.FOOTPRINTS).read_text()) == content


def test_where_nothing_could_be_begun_nothing_is_left(raw, preprocess, tmp_path):
    """The next run would take it for somebody else's."""
    for file in sorted(raw.rglob("*.tif")):
        corner = (EAST + 9000 * len(str(file)), NORTH)
        write_geotiff(file, picture(40, 40, seed=1), corner=corner)
    refused(preprocess, "0 of 6 rasters are done")
    assert not (tmp_path / "out").exists()


def test_a_set_without_georeference_says_nothing_of_places(tmp_path, preprocess):
    from conftest import make_raw

    make_raw(tmp_path / "raw")
    out = preprocess()
    assert {path.name for path in out.iterdir()} - {".lock"} == {
        "arrays",
        "dataset.json",
        "regions.csv",
        "test_b.csv",
    }
    assert "held_out_distance" not in (out / "dataset.json").read_text()
