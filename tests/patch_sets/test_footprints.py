"""The ground that rasters cover: what overlaps, what touches, in whatever system, gaps or not."""

import itertools
import json

import numpy as np
import pytest
from affine import Affine
from conftest import write_geotiff
from rasterio import warp

from dl_slicer.patch_sets import footprints, rasters
from dl_slicer.patch_sets.footprints import Piece

METRES = 0.417
CORNER = (240_000, 4_100_000)  # far from the middle of its zone: north is turned there


def raster(folder, name, right=0, down=0, size=(300, 260), mask=None, **options):
    """A raster so many pixels right of and below CORNER; mask: where it has data."""
    height, width = size[::-1] if mask is None else mask.shape
    pixels = np.full((height, width, 3), 90, np.uint8)
    if mask is not None:
        pixels[~mask] = 0
        options["nodata"] = 0
    corner = (CORNER[0] + right * METRES, CORNER[1] - down * METRES)
    path = folder / f"{name}.tif"
    return str(write_geotiff(path, pixels, corner=corner, metres=METRES, **options))


def piece(path, **options):
    with rasters.open_raster(path) as opened:
        return Piece(path, footprints.read_footprint(opened), **options)


def overlap(first, second):
    return footprints.overlap(piece(first), piece(second), rasters.open_raster)


def touch(first, second):
    margin = -footprints.STRIP / 2
    return footprints.overlap(piece(first), piece(second), rasters.open_raster, margin)


@pytest.mark.parametrize(("shared", "overlaps"), [(0, False), (1, False), (2, False), (3, True)])
def test_a_strip_of_more_than_two_pixels_is_an_overlap(tmp_path, shared, overlaps):
    first = raster(tmp_path, "first")
    second = raster(tmp_path, "second", right=300 - shared, down=40)
    below = raster(tmp_path, "below", right=-3, down=260 - shared)
    assert overlap(first, second) is overlap(first, below) is overlaps
    assert touch(first, second)


@pytest.mark.parametrize(("gap", "touches"), [(1, True), (2, True), (4, False)])
def test_rasters_two_pixels_apart_touch(tmp_path, gap, touches):
    first = raster(tmp_path, "first")
    second = raster(tmp_path, "second", right=300 + gap)
    assert touch(first, second) is touches
    assert not overlap(first, second)


@pytest.mark.parametrize(("shared", "overlaps"), [(-40, False), (2, False), (4, True)])
def test_what_has_no_data_does_not_count(tmp_path, shared, overlaps):
    """Frames overlap by half, data by a strip: straight, and along a slope."""
    first = raster(tmp_path, "first")
    mask = np.zeros((260, 300), bool)
    mask[:, 150:] = True
    assert overlap(first, raster(tmp_path, "straight", right=150 - shared, mask=mask)) is overlaps
    y, x = np.mgrid[:300, :300]
    above = raster(tmp_path, "above", mask=x > y)
    below = raster(tmp_path, "below", mask=x < y + shared * 2**0.5)
    assert overlap(above, below) is overlaps


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:4326", "EPSG:2228"])
def test_the_same_ground_is_found_in_another_system(tmp_path, crs):
    first = raster(tmp_path, "first")
    right, lower = CORNER[0] + 300 * METRES, CORNER[1] - 260 * METRES
    bounds = (CORNER[0], lower, right, CORNER[1])
    transform, width, height = warp.calculate_default_transform(
        "EPSG:32611", crs, 300, 260, *bounds
    )

    def shifted(pixels):
        """A raster of the other system whose left rim lies so many pixels from the right rim."""
        x, y = warp.transform("EPSG:32611", crs, [right - pixels * METRES], [CORNER[1]])
        # North is turned by up to two degrees: its left rim leans.
        moved = Affine(transform.a, 0, x[0], 0, transform.e, y[0])
        pixels = np.full((height // 8, width, 3), 90, np.uint8)
        path = tmp_path / f"{crs[5:]}.tif"
        return str(write_geotiff(path, pixels, crs=crs, transform=moved))

    assert overlap(first, shifted(300))
    assert overlap(first, shifted(5))
    assert not overlap(first, shifted(-5))


def test_parts_of_one_raster_and_of_a_copy_meet_only_across_the_cut(tmp_path):
    first = raster(tmp_path, "first")
    copy = raster(tmp_path, "copy")
    left = piece(first, columns=(0, 150))
    for columns, meets in (((150, 300), False), ((140, 300), True), ((0, 150), True)):
        other = piece(copy, columns=columns)
        assert footprints.overlap(left, other, rasters.open_raster) is meets


def test_a_footprint_survives_json(tmp_path):
    mask = np.zeros((260, 700), bool)
    mask[30:, 100:] = True
    found = piece(raster(tmp_path, "gaps", mask=mask)).footprint
    again = footprints.from_json(json.loads(json.dumps(footprints.as_json(found))))
    assert (again.thin == found.thin).all()
    assert again.thin.shape == (17, 44)
    assert (again.ground == found.ground).all()
    assert again.own == found.own


def test_neighbours_are_all_pairs_whose_boxes_meet(tmp_path):
    """Compared with each against each, on 60 places in three zones and at 180 degrees."""
    rng = np.random.default_rng(0)
    found = []
    for crs, x, y in (("EPSG:32611", 240_000, 4_100_000), ("EPSG:32601", 208_000, 50_000)):
        for corner in rng.uniform(0, 400, (30, 2)):
            transform = (METRES, 0.0, x + corner[0], 0.0, -METRES, y + corner[1])
            grid = footprints.Grid(150, 110, crs, transform)
            found.append(footprints.Footprint(grid, grid, METRES, METRES))
    pairs = set(footprints.neighbours(found))
    for i, j in itertools.combinations(range(len(found)), 2):
        pieces = (Piece(str(i), found[i]), Piece(str(j), found[j]))
        meets = footprints.overlap(*pieces, rasters.open_raster, -footprints.STRIP / 2)
        assert (i, j) in pairs or not meets
    assert len(pairs) < 60 * 59 / 4
