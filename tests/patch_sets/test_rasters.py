"""Rasters behind one interface: what Pillow reads, and what GDAL reads in windows."""

import numpy as np
import pytest
import rasterio
from conftest import picture
from PIL import Image
from rasterio.transform import from_origin

from dl_slicer.patch_sets import image_files
from dl_slicer.patch_sets.image_files import UnreadableImage
from dl_slicer.patch_sets.rasters import View, open_raster

PLACE = {"crs": "EPSG:32611", "transform": from_origin(300_000, 4_000_000, 0.4, 0.4)}


def noise(width, height, bands=3, dtype="uint8", seed=0):
    """Random values (bands, height, width)."""
    top = np.iinfo(dtype).max + 1
    return np.random.default_rng(seed).integers(0, top, (bands, height, width)).astype(dtype)


def write(path, pixels, driver="GTiff", **options):
    """Write pixels (bands, height, width) with rasterio; options: of its open()."""
    bands, height, width = pixels.shape
    profile = {"driver": driver, "count": bands, "height": height, "width": width}
    profile |= {"dtype": pixels.dtype, **options}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(pixels)
    return path


def whole(path, view=None):
    with open_raster(path, view) as raster:
        return raster.read(0, 0, raster.width, raster.height)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_a_photograph_is_read_as_before(tmp_path, suffix):
    path = tmp_path / f"photo.{suffix}"
    picture(120, 90).save(path)
    expected = np.asarray(image_files.read_image(path))
    with open_raster(path) as raster:
        assert (raster.width, raster.height, raster.crs, raster.transform) == (120, 90, None, None)
        assert np.array_equal(raster.read(30, 20, 50, 40), expected[20:60, 30:80])
        assert raster.data_mask(30, 20, 50, 40).all()
        assert not raster.has_gaps


def test_a_geotiff_is_read_in_windows_and_knows_its_place(tmp_path):
    pixels = noise(300, 200)
    path = write(tmp_path / "x.tif", pixels, tiled=True, compress="deflate", **PLACE)
    with open_raster(path) as raster:
        assert (raster.width, raster.height) == (300, 200)
        assert raster.crs == "EPSG:32611"
        assert raster.transform == PLACE["transform"]
        assert raster.metres_a_pixel == pytest.approx(0.4, rel=0.001)
        assert np.array_equal(raster.read(10, 20, 70, 60), np.moveaxis(pixels, 0, -1)[20:80, 10:80])
        assert not raster.has_gaps
        assert raster.thumbnail(100).size == (100, 67)


def test_a_geotiff_and_a_png_of_the_same_pixels_are_the_same(tmp_path):
    pixels = noise(300, 200)
    write(tmp_path / "x.tif", pixels, **PLACE)
    Image.fromarray(np.moveaxis(pixels, 0, -1)).save(tmp_path / "x.png")
    assert np.array_equal(whole(tmp_path / "x.tif"), whole(tmp_path / "x.png"))


def test_nodata_is_no_data(tmp_path):
    pixels = noise(300, 200).clip(1)
    pixels[:, :, :40] = 0
    with open_raster(write(tmp_path / "x.tif", pixels, nodata=0, **PLACE)) as raster:
        assert raster.has_gaps
        mask = raster.data_mask(30, 0, 20, 200)
        assert not mask[:, :10].any()
        assert mask[:, 10:].all()


def test_what_gdal_cannot_read_is_one_line(tmp_path):
    path = write(tmp_path / "x.tif", noise(300, 200), tiled=True, compress="deflate", **PLACE)
    path.write_bytes(path.read_bytes()[:-60_000])
    with pytest.raises(UnreadableImage, match="damaged or cut off"):
        whole(path)
    write(tmp_path / "deep.tif", noise(300, 200, dtype="uint16") >> 5, **PLACE)
    with pytest.raises(UnreadableImage, match="--stretch 0 65535 if that is meant"):
        whole(tmp_path / "deep.tif")
    assert whole(tmp_path / "deep.tif", View(stretch=(0, 2047))).max() == 255
