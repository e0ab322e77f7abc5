"""Tiles that touch on one grid are one raster: their pixels, their gaps, and what is remembered."""

import numpy as np
import pytest
from conftest import METRES, make_geotiffs, picture, write_geotiff
from preprocessing_runs import array, changed_by

from dl_slicer.patch_sets import mosaics, on_disk, reading

SITE = "Aa (AAA)/site1"
CORNER = (600_000, 4_100_000)
WIDTH, HEIGHT = 300, 200
BOXES = {"t0": (0, 0, 150, 100), "t1": (150, 0, 300, 100), "t2": (0, 100, 150, 200)}
LAST = {"t3": (145, 95, 300, 200)}  # overlaps the others by five pixels


@pytest.fixture
def whole():
    return np.asarray(picture(WIDTH, HEIGHT, seed=77)).clip(1)


@pytest.fixture
def raw(tmp_path, whole):
    raw = make_geotiffs(tmp_path / "raw")
    cut(raw, whole, BOXES | LAST)
    return raw


def cut(raw, whole, boxes, shift=0.0, **options):
    """Tiles of a raster; shift: pixels by which they lie beside its grid."""
    for name, (left, upper, right, lower) in boxes.items():
        corner = (CORNER[0] + (left + shift) * METRES, CORNER[1] - (upper + shift) * METRES)
        tile = whole[upper:lower, left:right]
        write_geotiff(raw / SITE / f"{name}.tif", tile, corner=corner, **options)


def mosaic_of(out, name="mosaic_1"):
    regions = on_disk.load_regions(out)
    return next(region for region in regions if region.raster == f"{SITE}/{name}.vrt")


def rasters_of(out):
    return {region.raster for region in on_disk.load_regions(out) if region.site == "site1"}


def test_tiles_are_the_same_as_the_raster_that_they_were_cut_from(
    raw, whole, preprocess, capsys, tmp_path
):
    out = preprocess("--mosaic", "--jpegs")
    assert "1 mosaic of 4 tiles, 6 rasters stay on their own" in capsys.readouterr().out
    region = mosaic_of(out)
    assert (region.width, region.height) == (WIDTH, HEIGHT)
    assert (region.left, region.top) == CORNER
    assert not region.without_data
    assert f"{SITE}/2020.tif" in rasters_of(out) and len(rasters_of(out)) == 3  # with city Bb
    one = make_geotiffs(tmp_path / "one")
    write_geotiff(one / SITE / "whole.tif", whole, corner=CORNER)
    other = preprocess(raw=one, out=tmp_path / "other")
    same = next(r for r in on_disk.load_regions(other) if r.raster.endswith("whole.tif"))
    assert (array(out, region) == array(other, same)).all()
    patches = reading.open_split(out, "train")
    number = next(i for i in range(len(patches)) if "mosaic_1.train/r02_c04" in patches.name(i))
    corner = np.array([2 * 24, 4 * 24])
    expected = whole[corner[0] : corner[0] + 48, corner[1] : corner[1] + 48]
    assert (np.asarray(patches.original(number)) == expected).all()
    assert (out / "train" / "Aa (AAA)" / "site1__mosaic_1_r02_c04.jpg").is_file()
    assert changed_by(out, preprocess) == set()  # the set remembers the flag


def test_without_the_flag_tiles_are_rasters(raw, preprocess):
    out = preprocess()
    assert {f"{SITE}/{name}.tif" for name in BOXES | LAST} <= rasters_of(out)
    assert not (out / "mosaics").exists()


def test_what_no_tile_covers_is_no_data(raw, whole, preprocess):
    (raw / SITE / "t3.tif").unlink()
    region = mosaic_of(preprocess("--mosaic"))
    assert region.without_data
    rows, cols = np.divmod(on_disk.gaps.parse(region.without_data), region.cols)
    x, y = np.meshgrid(np.arange(region.cols) * 24, np.arange(region.rows) * 24)
    inside = (x + 48 - 150).clip(0, 48) * (y + 48 - 100).clip(0, 48)
    missing = inside > 0.05 * 48 * 48
    assert set(zip(rows.tolist(), cols.tolist(), strict=True)) == set(
        zip(*(axis.tolist() for axis in np.nonzero(missing)), strict=True)
    )


@pytest.mark.parametrize("kind", ["nodata", "alpha", "infrared"])
def test_gaps_of_a_tile_let_the_other_through(raw, whole, preprocess, kind):
    """The last tile has none of its data where it overlaps the others."""
    left, upper, right, lower = LAST["t3"]
    tile = whole[upper:lower, left:right].copy()
    tile[:5] = 0
    tile[:, :5] = 0
    pixels = whole.copy()
    pixels[upper:lower, left:right] = tile
    options = {"nodata": 0}
    if kind != "nodata":
        last = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
        last[upper : upper + 5, left:] = last[upper:, left : left + 5] = 0
        if kind == "infrared":
            last[::7, ::3] = 90
        pixels = np.concatenate([pixels, last], axis=2)
        options = {"photometric": "RGB", "alpha": "YES"}
    cut(raw, pixels, LAST, **options)
    full = np.concatenate([whole, np.full((HEIGHT, WIDTH, 1), 255, np.uint8)], axis=2)
    if kind == "infrared":
        full[::7, ::3, 3] = 90
    cut(raw, full[:, :, : pixels.shape[2]], BOXES, **options)
    out = preprocess("--mosaic")
    region = mosaic_of(out)
    file = on_disk.raster_path(out, raw, region.raster)
    from dl_slicer.patch_sets import rasters

    with rasters.open_raster(file, root=raw) as raster:
        seen = raster.read(0, 0, WIDTH, HEIGHT)
        mask = raster.data_mask(0, 0, WIDTH, HEIGHT)
    expected = whole.copy()
    covered = np.zeros((HEIGHT, WIDTH), bool)
    for a, b, c, d in BOXES.values():
        covered[b:d, a:c] = True
    if kind == "infrared":
        expected[upper:lower, left:right] = tile
        assert mask.all()
        assert (seen == expected).all()
    else:
        covered[upper + 5 :, left + 5 :] = True
        assert (mask == covered).all()
        assert (seen[mask] == expected[mask]).all()


def test_what_does_not_fit_together_stays_apart(raw, whole, preprocess, capsys):
    """A shifted grid, another resolution, other bands; a year of the same ground."""
    cut(raw, whole, {"shifted": (150, 0, 300, 100)}, shift=0.3)
    (raw / SITE / "t1.tif").unlink()
    corner = (CORNER[0] - 150 * METRES, CORNER[1])
    write_geotiff(raw / SITE / "fine.tif", picture(300, 200), corner=corner, metres=METRES / 2)
    grey = np.asarray(picture(150, 100).convert("L"))
    below = (CORNER[0], CORNER[1] - 200 * METRES)
    write_geotiff(raw / SITE / "grey.tif", grey, corner=below)
    write_geotiff(raw / SITE / "year.tif", picture(150, 100, seed=9), corner=CORNER)
    out = preprocess("--mosaic")
    assert "1 mosaic of 3 tiles" in capsys.readouterr().out
    names = {"2020.tif", "fine.tif", "grey.tif", "mosaic_1.vrt", "shifted.tif", "year.tif"}
    assert {name.rpartition("/")[2] for name in rasters_of(out) if "Aa" in name} == names


def test_two_years_of_tiles_are_two_mosaics(raw, preprocess):
    cut(
        raw,
        np.asarray(picture(WIDTH, HEIGHT, seed=5)),
        {f"y{i}": b for i, b in enumerate(BOXES.values())},
    )
    out = preprocess("--mosaic")
    assert {f"{SITE}/mosaic_1.vrt", f"{SITE}/mosaic_2.vrt"} < rasters_of(out)
    tiles = mosaics.load(out)
    assert {tiles[f"{SITE}/t{i}.tif"] for i in range(4)} == {f"{SITE}/mosaic_1.vrt"}
    assert {tiles[f"{SITE}/y{i}.tif"] for i in range(3)} == {f"{SITE}/mosaic_2.vrt"}


def test_a_tile_that_is_added_changed_or_gone_makes_its_mosaic_anew(raw, whole, preprocess):
    (raw / SITE / "t0.tif").unlink()
    out = preprocess("--mosaic")
    cut(raw, whole, {"t0": BOXES["t0"]})
    name = f"arrays/{SITE}/mosaic_1.train.npy"
    changed = changed_by(out, preprocess)
    assert name in changed
    assert not [other for other in changed if other.endswith(".npy") and other != name]
    assert not mosaic_of(out).without_data
    before = array(out, mosaic_of(out))
    cut(raw, 255 - whole, {"t1": BOXES["t1"]})
    assert name in changed_by(out, preprocess)
    assert (array(out, mosaic_of(out)) != before).any()
    (raw / SITE / "t2.tif").unlink()
    preprocess()  # no --prune is asked for: the raster is there
    assert mosaic_of(out).without_data


def test_a_set_of_tiles_can_become_one_of_mosaics(raw, preprocess):
    out = preprocess()
    assert (out / f"arrays/{SITE}/t0.train.npy").is_file()
    preprocess("--mosaic")
    assert not (out / f"arrays/{SITE}/t0.train.npy").exists()
    assert mosaic_of(out)


def test_a_mosaic_of_a_held_out_site_is_cut_in_its_middle(raw, whole, preprocess):
    for file in (raw / SITE).glob("t*.tif"):
        file.rename(raw / "Aa (AAA)/site3" / file.name)
    regions = on_disk.load_regions(preprocess("--mosaic"))
    halves = {r.split: (r.x, r.width) for r in regions if r.raster.endswith("site3/mosaic_1.vrt")}
    assert halves == {"test": (0, 150), "val": (150, 150)}


def test_a_mosaic_is_seen_at_a_ground_resolution(raw, whole, preprocess, tmp_path):
    """No seam: pixels at the tiles' borders are made of both sides, as in one raster."""
    flags = ("--ground-resolution", 0.8 * METRES)
    out = preprocess("--mosaic", *flags)
    region = mosaic_of(out)
    one = make_geotiffs(tmp_path / "one")
    write_geotiff(one / SITE / "whole.tif", whole, corner=CORNER)
    other = preprocess(*flags, raw=one, out=tmp_path / "other")
    same = next(r for r in on_disk.load_regions(other) if r.raster.endswith("whole.tif"))
    assert (region.width, region.height) == (same.width, same.height) == (375, 250)
    assert (array(out, region) == array(other, same)).all()


def test_a_city_without_site_folders_has_mosaics_too(tmp_path, whole, preprocess):
    raw = make_geotiffs(tmp_path / "raw")
    for i in range(3):
        for j in range(2):
            corner = (600_000 + 9000 * i + 150 * j * METRES, 4_100_000)
            path = raw / "Cc (CCC)" / f"t{i}{j}.tif"
            write_geotiff(path, picture(150, 110, seed=i), corner=corner)
    out = preprocess("--mosaic", "--sites", 3)
    regions = [region for region in on_disk.load_regions(out) if region.city == "Cc (CCC)"]
    assert {(region.raster, region.site) for region in regions} == {
        (f"Cc (CCC)/mosaic_{i}.vrt", f"site_{i}") for i in (1, 2, 3)
    }


def test_a_raster_of_the_same_name_keeps_it(raw, preprocess):
    write_geotiff(raw / SITE / "mosaic_1.tif", picture(150, 110), corner=(650_000, 4_100_000))
    out = preprocess("--mosaic")
    assert mosaic_of(out, "mosaic_2")
