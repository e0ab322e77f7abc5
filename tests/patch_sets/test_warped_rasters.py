"""Rasters seen at a ground resolution, north up, on a metric grid."""

import numpy as np
import pytest
from rasterio.transform import from_origin
from test_rasters import PLACE, noise, whole, write

from dl_slicer.patch_sets.image_files import UnreadableImage
from dl_slicer.patch_sets.rasters import View, open_raster


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    path = tmp_path_factory.mktemp("noise") / "x.tif"
    turned = from_origin(3_000_000, 4_000_000, 1, 1)  # in a system that is turned against UTM
    return write(path, noise(1500, 2300), tiled=True, crs="EPSG:3310", transform=turned)


def strips(path, view, rows):
    with open_raster(path, view) as raster:
        return np.concatenate(
            [
                raster.read(0, y, raster.width, min(rows, raster.height - y))
                for y in range(0, raster.height, rows)
            ]
        )


@pytest.mark.parametrize("ratio", [1, 0.7, 4])
def test_strips_have_the_pixels_of_the_whole(noisy, ratio):
    view = View(ground_resolution=ratio)
    expected = whole(noisy, view)
    assert expected.std() > 10
    for rows in (480, 1000):
        assert np.array_equal(strips(noisy, view, rows), expected)
    with open_raster(noisy, view) as raster:
        assert np.array_equal(raster.read(31, 77, 300, 200), expected[77:277, 31:331])


def test_a_raster_on_the_grid_is_read_as_it_is(tmp_path):
    pixels = noise(1300, 700)
    path = write(tmp_path / "x.tif", pixels, **PLACE)
    with open_raster(path, View(ground_resolution=0.4)) as raster:
        assert (raster.width, raster.height, raster.crs) == (1300, 700, "EPSG:32611")
        assert raster.transform.almost_equals(PLACE["transform"], 1e-6)
        assert np.array_equal(raster.read(0, 0, 1300, 700), np.moveaxis(pixels, 0, -1))
        assert raster.data_mask(0, 0, 1300, 700).all()


def test_a_view_begins_and_ends_with_the_data(tmp_path):
    pixels = noise(5000, 4600).clip(1)
    pixels[:, :1000] = 0
    pixels[:, :, :2500] = 0
    pixels[:, 4100:] = 0
    pixels[:, 3000, 2301] = 9  # one pixel alone
    path = write(tmp_path / "x.tif", pixels, nodata=0, tiled=True, **PLACE)
    with open_raster(path, View(ground_resolution=0.8)) as raster:
        assert raster.transform.c == pytest.approx(300_000 + 2301 * 0.4)
        assert raster.transform.f == pytest.approx(4_000_000 - 1000 * 0.4)
        assert (raster.width, raster.height) == (round((5000 - 2301) / 2 + 0.1), 3100 // 2)
        assert not raster.data_mask(0, 0, 90, 900).any()
        assert raster.data_mask(101, 0, 1240, 1550).all()


def test_what_has_no_place_cannot_be_seen_at_a_ground_resolution(tmp_path):
    view = View(ground_resolution=1)
    with pytest.raises(UnreadableImage, match="has no georeference.*world file"):
        whole(write(tmp_path / "x.png", noise(50, 50), "PNG"), view)
    path = write(tmp_path / "x.tif", noise(50, 50), transform=PLACE["transform"])
    with pytest.raises(UnreadableImage, match="--crs EPSG:N"):
        whole(path, view)
    with open_raster(path, View(ground_resolution=1, crs="EPSG:32611")) as raster:
        assert raster.crs == "EPSG:32611"
