"""Rasters behind one interface: what Pillow reads, and what GDAL reads in windows."""

import shlex
import struct
import zlib

import numpy as np
import pytest
import rasterio
from conftest import picture
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import from_origin

from dl_slicer.patch_sets import gdal_rasters, image_files, rasters
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


def kinds_of_photographs(folder):
    """Photographs of many kinds, each of which can be read in windows."""
    photo = picture(211, 157)
    palette = photo.quantize(256)
    clear = photo.convert("RGBA")
    clear.putalpha(99)
    kinds = {
        "a.jpg": (photo, {}),
        "fine.jpg": (photo, {"quality": 100, "subsampling": 0}),
        "grey.jpg": (photo.convert("L"), {}),
        "cmyk.jpg": (photo.convert("CMYK"), {}),
        "a.png": (photo, {}),
        "grey.png": (photo.convert("L"), {}),
        "two.png": (photo.convert("1"), {}),
        "palette.png": (palette, {}),
        "few.png": (photo.quantize(7), {}),
        "alpha.png": (clear, {}),
        "grey-alpha.png": (photo.convert("LA"), {}),
        "a.tif": (photo, {}),
        "lzw.tif": (photo, {"compression": "tiff_lzw"}),
        "palette.tif": (palette, {}),
        "two.tif": (photo.convert("1"), {}),
        "alpha.tif": (clear, {}),
        "cmyk.tif": (photo.convert("CMYK"), {}),
        "deep.png": (Image.fromarray(noise(211, 157, 1, "uint16")[0]), {}),
        "deep.tif": (Image.fromarray(noise(211, 157, 1, "uint16")[0]), {}),
        "32.tif": (Image.fromarray(noise(211, 157, 1, "uint16")[0].astype(np.int32)), {}),
    }
    for name, (image, options) in kinds.items():
        image.save(folder / name, **options)
    return sorted(kinds)


def test_large_photographs_look_as_small_ones_do(tmp_path, monkeypatch):
    names = kinds_of_photographs(tmp_path)
    expected = {name: whole(tmp_path / name) for name in names}
    monkeypatch.setattr(rasters, "WHOLE", 20_000)
    for name in names:
        with open_raster(tmp_path / name) as raster:
            assert isinstance(raster, gdal_rasters.WindowedRaster)
            strips = [raster.read(0, y, 211, min(50, 157 - y)) for y in range(0, 157, 50)]
            difference = np.abs(np.concatenate(strips).astype(int) - expected[name])
            # Decoders of JPEGs fill in the colours between pixels in ways of their own, and the 16
            # bits of a TIFF's palette are rounded by GDAL 3.9.
            tolerance = {".jpg": 2, "palette.tif": 1}
            assert difference.mean() <= tolerance.get(name, tolerance.get(name[-4:], 0)), name
            assert raster.crs is None


@pytest.mark.parametrize("suffix, world", [("jpg", "jgw"), ("jpeg", "wld"), ("png", "PGW")])
def test_a_world_file_places_a_photograph_and_leaves_its_pixels(tmp_path, suffix, world):
    path = tmp_path / f"x.{suffix}"
    picture(120, 90).save(path)
    expected = whole(path)
    (tmp_path / f"x.{world}").write_text("0.4\n0\n0\n-0.4\n300000.2\n3999999.8\n")
    with open_raster(path) as raster:
        assert raster.transform.almost_equals(PLACE["transform"])
        assert (raster.crs, raster.metres_a_pixel) == (None, None)
        assert np.array_equal(raster.read(0, 0, 120, 90), expected)
    with open_raster(path, View(crs="EPSG:32611")) as raster:
        assert raster.crs == "EPSG:32611"
    (tmp_path / "x.prj").write_text(CRS.from_epsg(2229).to_wkt("WKT1_ESRI"))
    with open_raster(path, View(crs="EPSG:32611")) as raster:
        assert raster.crs == "EPSG:2229"
    (tmp_path / f"x.{suffix}.aux.xml").write_text(
        f"<PAMDataset><SRS>{CRS.from_epsg(26911).to_wkt()}</SRS>"
        "<GeoTransform>5, 0.5, 0, 9, 0, -0.5</GeoTransform></PAMDataset>"
    )
    with open_raster(path) as raster:
        assert raster.crs == "EPSG:26911"
        assert raster.transform[:6] == (0.5, 0, 5, 0, -0.5, 9)
        assert np.array_equal(raster.read(0, 0, 120, 90), expected)


def test_what_has_no_windows_is_refused_when_it_is_large(tmp_path, monkeypatch):
    photo = picture(211, 157)
    photo.save(tmp_path / "it's.jpg", progressive=True)
    lines = noise(2100, 1100)
    write(tmp_path / "piece.tif", lines, compress="deflate", blockysize=1100)
    write(tmp_path / "big.tif", lines, compress="lzw", blockysize=1100, BIGTIFF="YES")
    write(tmp_path / "plain.tif", lines, blockysize=1100)
    write(tmp_path / "strips.tif", lines, compress="deflate", blockysize=100)
    interlaced = tmp_path / "lines.png"
    photo.save(interlaced)
    content = interlaced.read_bytes()
    header = content[12:28] + b"\1"
    checksum = zlib.crc32(header).to_bytes(4, "big")
    interlaced.write_bytes(content[:12] + header + checksum + content[33:])
    monkeypatch.setattr(rasters, "WHOLE", 20_000)
    line = "gdal_translate -co TILED=YES -co COMPRESS=DEFLATE -co BIGTIFF=IF_SAFER "
    for name, kind in (
        ("it's.jpg", "a progressive JPEG"),
        ("piece.tif", "compressed in one piece"),
        ("big.tif", "compressed in one piece"),
        ("lines.png", "an interlaced PNG"),
    ):
        with pytest.raises(UnreadableImage, match=kind) as caught:
            whole(tmp_path / name)
        source, copy = shlex.split(str(caught.value).partition(line)[2])
        assert source == name
        assert copy.endswith("-tiled.tif")
    for name in ("plain.tif", "strips.tif"):
        assert np.array_equal(whole(tmp_path / name), np.moveaxis(lines, 0, -1))


def test_a_large_jpeg_2000_is_read_if_it_has_tiles(tmp_path, monkeypatch):
    monkeypatch.setattr(rasters, "WHOLE", 400_000)
    pixels = noise(1100, 900)
    options = {"QUALITY": 100, "REVERSIBLE": "YES"}
    tiled = write(tmp_path / "tiled.jp2", pixels, "JP2OpenJPEG", BLOCKYSIZE=256, **options)
    assert np.array_equal(whole(tiled), np.moveaxis(pixels, 0, -1))
    piece = write(tmp_path / "x.jp2", pixels, "JP2OpenJPEG", BLOCKYSIZE=900)
    with pytest.raises(UnreadableImage, match="compressed in one piece"):
        whole(piece)


def test_bands_are_the_first_three_or_those_that_are_named(tmp_path):
    pixels = noise(60, 50, 4)
    rows = np.moveaxis(pixels, 0, -1)
    path = write(tmp_path / "four.tif", pixels, photometric="RGB", alpha="no", **PLACE)
    assert np.array_equal(whole(path), rows[:, :, :3])
    assert np.array_equal(whole(path, View(bands=(4, 1, 2))), rows[:, :, [3, 0, 1]])
    assert np.array_equal(whole(path, View(bands=(4,))), rows[:, :, [3, 3, 3]])
    with open_raster(path) as raster:  # an undefined fourth band is no mask
        assert not raster.has_gaps
    with pytest.raises(UnreadableImage, match="has 4 bands, no band 5; name others with --bands"):
        whole(path, View(bands=(5, 1, 2)))
    one = write(tmp_path / "one.tif", pixels[:1], **PLACE)
    assert np.array_equal(whole(one), rows[:, :, [0, 0, 0]])
    photo = tmp_path / "x.png"
    Image.fromarray(rows[:, :, :3]).save(photo)
    assert np.array_equal(whole(photo, View(bands=(3, 2, 1))), rows[:, :, [2, 1, 0]])


def test_two_bands_are_grey_and_alpha_or_refused(tmp_path):
    pixels = noise(60, 50, 2)
    pixels[1] = np.where(pixels[1] > 127, 255, 0)
    path = write(tmp_path / "x.tif", pixels, **PLACE)
    with pytest.raises(UnreadableImage, match="has 2 bands.*--bands 1"):
        whole(path)
    assert np.array_equal(whole(path, View(bands=(2,)))[:, :, 0], pixels[1])
    path = write(tmp_path / "alpha.tif", pixels, alpha="yes", **PLACE)
    with open_raster(path) as raster:
        assert np.array_equal(raster.read(0, 0, 60, 50)[:, :, 1], pixels[0])
        assert np.array_equal(raster.data_mask(0, 0, 60, 50), pixels[1] > 0)


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "complex_int16", "float32"])
def test_numbers_that_are_no_colours_are_refused(tmp_path, dtype):
    path = tmp_path / "x.tif"
    profile = {"driver": "GTiff", "width": 50, "height": 40, "count": 1, "dtype": dtype, **PLACE}
    with rasterio.open(path, "w", **profile):
        pass
    word = "floating-point" if dtype == "float32" else "complex"
    with pytest.raises(UnreadableImage, match=f"{word} numbers; convert it to 8 or 16 bits"):
        whole(path)


def test_an_alpha_band_is_where_there_is_data_only_if_it_is_0_and_255(tmp_path):
    pixels = noise(600, 500, 4)
    near_infrared = write(tmp_path / "nir.tif", pixels, photometric="RGB", alpha="yes", **PLACE)
    with open_raster(near_infrared) as raster:
        assert not raster.has_gaps
        assert raster.remarks == [
            "band 4 is marked as alpha and has other values than 0 and 255: it is taken for a band"
            " like any other"
        ]
        assert raster.data_mask(0, 0, 600, 500).all()
    assert np.array_equal(whole(near_infrared), np.moveaxis(pixels[:3], 0, -1))
    pixels[3] = 255
    pixels[3, :100] = 0
    alpha = write(tmp_path / "alpha.tif", pixels, photometric="RGB", alpha="yes", **PLACE)
    with open_raster(alpha) as raster:
        assert raster.has_gaps
        assert raster.remarks == []
        assert np.array_equal(raster.data_mask(0, 90, 600, 20)[:, 3], np.arange(20) >= 10)
    with open_raster(alpha, View(bands=(4, 1, 2))) as raster:
        assert not raster.has_gaps
    deep = pixels.astype("uint16") * 257
    deep = write(tmp_path / "deep.tif", deep, photometric="RGB", alpha="yes", **PLACE)
    with open_raster(deep) as raster:
        assert np.array_equal(raster.data_mask(0, 90, 600, 20)[:, 3], np.arange(20) >= 10)


def test_a_mask_within_a_tiff_says_where_there_is_data(tmp_path):
    has_data = np.zeros((50, 60), bool)
    has_data[10:] = True
    path = tmp_path / "x.tif"
    profile = {"driver": "GTiff", "width": 60, "height": 50, "count": 3, "dtype": "uint8", **PLACE}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as dataset:
        dataset.write(noise(60, 50))
        dataset.write_mask(has_data)
    with open_raster(path) as raster:
        assert np.array_equal(raster.data_mask(0, 0, 60, 50), has_data)
    with open_raster(path, View(ground_resolution=0.4)) as raster:
        assert (raster.width, raster.height) == (60, 40)


def test_nodata_of_sixteen_bits_and_beside_a_raster(tmp_path):
    pixels = noise(60, 50, dtype="uint16")
    pixels[:, :, :7] = 65535
    path = write(tmp_path / "x.tif", pixels, nodata=65535, **PLACE)
    with open_raster(path) as raster:
        assert raster.data_mask(0, 0, 60, 50).mean() == pytest.approx(53 / 60)
        low, high = raster.range_of(0, 0, 60, 50)
        assert high < 65_000
    path = write(tmp_path / "y.tif", pixels, **PLACE)
    (tmp_path / "y.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>65535</NoDataValue></PAMRasterBand>'
        "</PAMDataset>"
    )
    with open_raster(path) as raster:
        assert raster.data_mask(0, 0, 60, 50).mean() == pytest.approx(53 / 60)
        assert raster.crs == "EPSG:32611"


def test_larger_numbers_than_16_bits_are_refused_unless_they_are_no_data(tmp_path):
    pixels = noise(60, 50, 1, "uint16").astype(np.int32)
    pixels[0, 0, 0] = 70_000
    path = write(tmp_path / "x.tif", pixels, **PLACE)
    with pytest.raises(UnreadableImage, match="larger numbers than 16 bits.*--stretch auto"):
        whole(path)
    assert whole(path, View(stretch="auto")).max() == 255
    path = write(tmp_path / "nodata.tif", pixels, nodata=70_000, **PLACE)
    assert np.array_equal(whole(path)[:, :, 1], (pixels[0] >> 8).clip(0, 255))


def test_a_stretch_maps_a_range_to_all_greys(tmp_path):
    pixels = np.arange(3000, dtype=np.uint16).reshape(1, 50, 60) + 500
    path = write(tmp_path / "x.tif", pixels, **PLACE)
    got = whole(path, View(stretch=(1000, 3000)))[:, :, 0]
    expected = np.rint((pixels[0].clip(1000, 3000) - 1000.0) * 255 / 2000)
    assert np.array_equal(got, expected)
    view = View(stretch="auto")
    with open_raster(path, view) as raster:
        stretch = raster.range_of(0, 0, 60, 50)
        assert stretch == pytest.approx((560, 3440), abs=1)
        assert np.array_equal(
            raster.read(0, 0, 60, 50, stretch), whole(path, View(stretch=stretch))
        )
        upper = raster.range_of(0, 0, 60, 25)
        assert upper == pytest.approx((530, 1970), abs=1)
    photo = tmp_path / "x.png"
    picture(60, 50).save(photo)
    assert whole(photo, View(stretch=(0, 127))).max() == 255
    assert np.array_equal(whole(photo, View(stretch=(0, 255))), whole(photo))


def test_twelve_bits_are_read_by_their_upper_eight(tmp_path):
    pixels = noise(64, 64, 1, "uint16") >> 4
    path = write(tmp_path / "x.tif", pixels, nbits=12, **PLACE)
    assert np.array_equal(whole(path)[:, :, 0], pixels[0] >> 4)
    path = write(tmp_path / "placeless.tif", pixels, nbits=12)
    assert np.array_equal(whole(path)[:, :, 0], pixels[0] >> 4)


def test_twelve_bits_in_jpeg_are_one_line(tmp_path):
    """No library here writes one: an 8-bit one is changed to say that it has 12."""
    path = write(tmp_path / "x.tif", noise(64, 64, 1), compress="jpeg", **PLACE)
    content = path.read_bytes()
    bits = struct.pack("<HHIH", 258, 3, 1, 8)
    frame = content.index(b"\xff\xc0") + 4
    content = content[:frame] + b"\x0c" + content[frame + 1 :]
    path.write_bytes(content.replace(bits, struct.pack("<HHIH", 258, 3, 1, 12)))
    with pytest.raises(UnreadableImage, match="JPEG of 12 bits.*convert it to a TIFF"):
        whole(path)


@pytest.mark.parametrize("driver, suffix", [("JP2OpenJPEG", "jp2"), ("GTiff", "tif")])
def test_jpeg_2000_and_bigtiff_are_read(tmp_path, driver, suffix):
    pixels = noise(700, 600)
    options = {"BIGTIFF": "YES"} if driver == "GTiff" else {"QUALITY": 100, "REVERSIBLE": "YES"}
    path = write(tmp_path / f"x.{suffix}", pixels, driver, **options, **PLACE)
    assert np.array_equal(whole(path), np.moveaxis(pixels, 0, -1))
    with open_raster(path) as raster:
        assert raster.crs == "EPSG:32611"
        assert np.array_equal(
            raster.read(333, 222, 50, 60), np.moveaxis(pixels, 0, -1)[222:282, 333:383]
        )
