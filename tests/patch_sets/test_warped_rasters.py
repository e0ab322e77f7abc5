"""Rasters seen at a ground resolution, north up, on a metric grid."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.transform import from_origin
from rasterio.warp import transform as transform_points
from test_rasters import PLACE, noise, whole, write

from dl_slicer.patch_sets import data_bounds, gdal_rasters
from dl_slicer.patch_sets.image_files import UnreadableImage
from dl_slicer.patch_sets.rasters import View, open_raster


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    path = tmp_path_factory.mktemp("noise") / "x.tif"
    turned = from_origin(3_000_000, 4_000_000, 1, 1)  # in a system that is turned against UTM
    return write(path, noise(800, 1100), tiled=True, crs="EPSG:3310", transform=turned)


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
    for rows in (100, 480, 1000):
        assert np.array_equal(strips(noisy, view, rows), expected)
    with open_raster(noisy, view) as raster:
        assert np.array_equal(raster.read(31, 77, 150, 120), expected[77:197, 31:181])


def test_a_raster_on_the_grid_is_read_as_it_is(tmp_path):
    pixels = noise(1300, 700)
    path = write(tmp_path / "x.tif", pixels, **PLACE)
    with open_raster(path, View(ground_resolution=0.4)) as raster:
        assert (raster.width, raster.height, raster.crs) == (1300, 700, "EPSG:32611")
        assert raster.transform.almost_equals(PLACE["transform"], 1e-6)
        assert np.array_equal(raster.read(0, 0, 1300, 700), np.moveaxis(pixels, 0, -1))
        assert raster.data_mask(0, 0, 1300, 700).all()


def test_a_view_begins_and_ends_with_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(data_bounds, "PART", 128)
    pixels = noise(900, 800, 1).clip(1)
    pixels[:, :200] = 0
    pixels[:, :, :500] = 0
    pixels[:, 700:] = 0
    pixels[:, 500, 401] = 9  # one pixel alone
    path = write(tmp_path / "x.tif", pixels, nodata=0, tiled=True, **PLACE)
    with open_raster(path, View(ground_resolution=0.8)) as raster:
        assert raster.transform.c == pytest.approx(300_000 + 401 * 0.4)
        assert raster.transform.f == pytest.approx(4_000_000 - 200 * 0.4)
        assert (raster.width, raster.height) == (250, 250)
        assert not raster.data_mask(1, 0, 48, 250).any()
        assert raster.data_mask(50, 0, 199, 250).all()


def test_few_pixels_are_looked_at_to_find_where_data_begin(tmp_path, monkeypatch):
    pixels = noise(900, 800, 1).clip(1)
    pixels[:, :20] = 0
    path = write(tmp_path / "x.tif", pixels, nodata=0, tiled=True, **PLACE)
    looked_at = []
    real = gdal_rasters.WindowedRaster.data_mask

    def watched(self, x, y, width, height):
        looked_at.append(width * height)
        return real(self, x, y, width, height)

    monkeypatch.setattr(data_bounds, "PART", 64)
    monkeypatch.setattr(gdal_rasters.WindowedRaster, "data_mask", watched)
    with open_raster(path, View(ground_resolution=0.8)) as raster:
        assert raster.height == 390
    assert sum(looked_at) < 0.1 * 900 * 800


def test_what_has_no_place_cannot_be_seen_at_a_ground_resolution(tmp_path):
    view = View(ground_resolution=1)
    with pytest.raises(UnreadableImage, match="has no georeference.*world file"):
        whole(write(tmp_path / "x.png", noise(50, 50), "PNG"), view)
    path = write(tmp_path / "x.tif", noise(50, 50), transform=PLACE["transform"])
    with pytest.raises(UnreadableImage, match="--crs EPSG:N"):
        whole(path, view)
    with open_raster(path, View(ground_resolution=1, crs="EPSG:32611")) as raster:
        assert raster.crs == "EPSG:32611"


def landscape(xs, ys):
    """What the ground looks like at points of a metric grid, (3, ...), 0 to 255."""
    waves = [np.sin(xs / 7 + k) * np.cos(ys / (9 + k)) for k in range(3)]
    return np.rint(127.5 + 120 * np.stack(waves)).astype(np.uint8)


def photographed(path, crs, transform, size, grid, **options):
    """A raster of that ground in any system and with any transform."""
    cols, rows = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    a, b, c, d, e, f = transform[:6]
    xs, ys = (a * cols + b * rows + c).ravel(), (d * cols + e * rows + f).ravel()
    xs, ys = transform_points(crs, grid, xs, ys)
    pixels = landscape(np.array(xs), np.array(ys)).reshape(3, size[1], size[0])
    return write(path, pixels, crs=crs, transform=transform, **options)


def upright(crs, longitude, latitude, side):
    """A north-up transform whose first pixel is at a place; side of a pixel in units of crs."""
    xs, ys = transform_points("EPSG:4326", crs, [longitude], [latitude])
    return from_origin(xs[0], ys[0], side, side)


PLACES = {
    # name: (system, longitude, latitude, side of a pixel in its units, metres of that, grid)
    "UTM": ("EPSG:32611", -119.9, 34.4, 0.4, 0.4, "EPSG:32611"),
    "Web Mercator": ("EPSG:3857", -119.9, 34.4, 0.485, 0.4, "EPSG:32611"),
    "degrees": ("EPSG:4326", -117.0, 34.4, 4e-6, 0.404, "EPSG:32611"),
    "feet": ("EPSG:2229", -119.9, 34.4, 1.31, 0.4, "EPSG:32611"),
    "south": ("EPSG:3857", 151.2, -33.8, 0.48, 0.4, "EPSG:32756"),
    "across a boundary": ("EPSG:3857", -120.0002, 34.4, 0.485, 0.4, "EPSG:32611"),
    "beyond 84 north": ("EPSG:4326", 3.0, 84.2, 4e-6, 0.142, "EPSG:5041"),
    "beyond 80 south": ("EPSG:3031", 20.0, -85.0, 0.4, 0.41, "EPSG:5042"),
}


@pytest.mark.parametrize("name", PLACES)
def test_the_ground_is_seen_where_it_is_whatever_the_system(tmp_path, name):
    crs, longitude, latitude, side, metres, grid = PLACES[name]
    transform = upright(crs, longitude, latitude, side)
    path = photographed(tmp_path / "x.tif", crs, transform, (310, 290), grid)
    with open_raster(path) as raster:
        assert raster.metres_a_pixel == pytest.approx(metres, rel=0.01)
    assert_shows_the_landscape(path, grid)


def assert_shows_the_landscape(path, grid, resolution=0.5):
    with open_raster(path, View(ground_resolution=resolution)) as raster:
        size = (raster.width, raster.height)
        pixels = raster.read(0, 0, *size).astype(int)
        has_data = raster.data_mask(0, 0, *size)
        small = np.asarray(raster.thumbnail(100)).astype(int)
    assert (raster.crs, raster.metres_a_pixel) == (grid, resolution)
    for side in (has_data.any(axis=0), has_data.any(axis=1)):
        assert side[[1, -2]].all()
    left, upper = raster.transform.c, raster.transform.f
    xs, ys = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    expected = landscape(left + xs * resolution, upper - ys * resolution)
    difference = np.abs(pixels - np.moveaxis(expected, 0, -1)).max(axis=2)
    assert has_data.mean() > 0.4
    assert np.percentile(difference[has_data], 99) <= 6
    whole_view = Image.fromarray(pixels.astype(np.uint8))
    shrunk = np.asarray(whole_view.resize(small.shape[1::-1], Image.Resampling.BOX)).astype(int)
    inner = Image.fromarray(has_data * np.uint8(255)).resize(small.shape[1::-1])
    assert np.abs(shrunk - small)[np.asarray(inner) == 255].mean() < 4


@pytest.mark.parametrize("name", ["south-up", "rotated", "mirrored"])
def test_the_ground_is_seen_where_it_is_whichever_way_the_raster_lies(tmp_path, name):
    transforms = {
        "south-up": Affine(0.4, 0, 300_000, 0, 0.4, 4_000_000),
        "rotated": Affine(0.4, 0.2, 300_000, 0.2, -0.4, 4_000_000),
        "mirrored": Affine(-0.4, 0, 300_000, 0, -0.4, 4_000_000),
    }
    path = photographed(
        tmp_path / "x.tif", "EPSG:32611", transforms[name], (310, 290), "EPSG:32611"
    )
    assert_shows_the_landscape(path, "EPSG:32611")
    with open_raster(path) as raster:  # without a ground resolution it lies as it is stored
        assert (raster.width, raster.height) == (310, 290)
        assert raster.transform == transforms[name]


def test_bands_palettes_and_ranges_are_seen_so_too(tmp_path):
    pixels = noise(400, 300, 4, "uint16")
    path = write(tmp_path / "x.tif", pixels, **PLACE)
    view = View(ground_resolution=0.4, bands=(4, 1, 2), stretch="auto")
    with open_raster(path, view) as raster:
        stretch = raster.range_of(0, 0, 400, 300)
        got = raster.read(0, 0, 400, 300, stretch)
    expected = whole(path, View(bands=(4, 1, 2), stretch=stretch))
    assert np.array_equal(got, expected)
    assert stretch == pytest.approx((1310, 64225), rel=0.05)
    palette = tmp_path / "palette.tif"
    with rasterio.open(
        palette, "w", driver="GTiff", width=9, height=9, count=1, dtype="uint8", **PLACE
    ) as dataset:
        dataset.write(np.full((1, 9, 9), 3, "uint8"))
        dataset.write_colormap(1, {3: (10, 200, 30, 255)})
    assert (whole(palette, View(ground_resolution=0.3)) == (10, 200, 30)).all()
    assert (whole(palette) == (10, 200, 30)).all()


def test_pixels_without_data_do_not_tinge_their_neighbours(tmp_path):
    pixels = np.full((3, 400, 400), 200, "uint8")
    pixels[:, :, 171:] = 0
    path = write(tmp_path / "x.tif", pixels, nodata=0, **PLACE)
    for resolution in (0.55, 0.9, 3.3):
        with open_raster(path, View(ground_resolution=resolution)) as raster:
            size = (raster.width, raster.height)
            has_data = raster.data_mask(0, 0, *size)
            assert size[0] == int(np.ceil(171 * 0.4 / resolution))
            assert np.abs(raster.read(0, 0, *size)[has_data].astype(int) - 200).max() <= 1


@pytest.mark.parametrize("crs", ['LOCAL_CS["x",UNIT["metre",1]]', None])
def test_a_system_that_places_nothing_is_named_by_the_user(tmp_path, crs, capfd):
    path = write(tmp_path / "x.tif", noise(50, 50), crs=crs, transform=PLACE["transform"])
    with pytest.raises(UnreadableImage, match="names no coordinate system.*--crs EPSG:N"):
        whole(path, View(ground_resolution=1))
    with open_raster(path) as raster:
        assert raster.crs is None
        assert raster.metres_a_pixel is None
    assert capfd.readouterr() == ("", "")


def test_a_raster_that_lies_nowhere_is_one_line(tmp_path, capfd):
    for number, (crs, left, upper, side) in enumerate(
        (("EPSG:4326", 20, 500, 1e-5), ("EPSG:32611", 9e9, 9e9, 0.4), ("EPSG:3857", 0, 9e30, 1))
    ):
        transform = from_origin(left, upper, side, side)
        path = write(tmp_path / f"{number}.tif", noise(50, 50), crs=crs, transform=transform)
        with pytest.raises(UnreadableImage, match="lies where its coordinate system is not"):
            whole(path, View(ground_resolution=1))
        assert whole(path).shape == (50, 50, 3)
    empty = write(tmp_path / "x.tif", np.zeros((3, 50, 50), "uint8"), nodata=0, **PLACE)
    with pytest.raises(UnreadableImage, match="holds no pixel with data"):
        whole(empty, View(ground_resolution=1))
    assert capfd.readouterr() == ("", "")
