"""What a patch set is on disk and how it is read; images of every kind, and of no kind."""

import errno
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from conftest import ROOT, SMALL, make_raw, picture
from PIL import Image

from dl_slicer.cities import city_code
from dl_slicer.cli import InputError
from dl_slicer.patch_sets import image_files, on_disk, reading
from dl_slicer.patch_sets.image_files import UnreadableImage

# ------------------------------------------------------------------------------------------------------------- small functions


def test_code():
    assert [
        city_code(city)
        for city in (
            "Almaty (ALA)",
            "Sao Paulo (x) (GRU)",
            "Paris",
            "Odd (A) tail",
            "Empty ()",
            "Space ( B )",
        )
    ] == ["ALA", "GRU", "Paris", "A", "Empty ()", "B"]


def test_windows_are_those_that_fit():
    for length in range(1, 60):
        for size in (1, 7, 24):
            for stride in (1, 5, 24, 30):
                assert on_disk.count_windows(length, size, stride) == sum(
                    start + size <= length for start in range(0, length, stride)
                )


def test_scaled_stride():
    assert on_disk.scaled_stride(480, 240, 224) == 112
    assert on_disk.scaled_stride(480, 60, 224) == 28
    assert on_disk.scaled_stride(480, 240, 256) == 128
    for stride, image_size, near in (
        (100, 224, (90, 105)),
        (100, 255, (96, 128)),
        (1, 224, (15,)),
        (239, 224, (225, 240)),
    ):
        with pytest.raises(InputError, match=f"--stride {' or '.join(map(str, near))}$"):
            on_disk.scaled_stride(480, stride, image_size)
        for works in near:
            on_disk.scaled_stride(480, works, image_size)


def test_arrays_are_what_numpy_saves(tmp_path):
    for rows, cols in ((1, 1), (19, 9)):
        sizes = {"patch_size": 480, "stride": 240, "image_size": 224}
        shape = (*on_disk.array_shape(rows, cols, sizes), 3)
        assert shape == (112 * rows + 112, 112 * cols + 112, 3)
        array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        with open(tmp_path / "ours.npy", "wb") as file:
            on_disk.write_array(file, array)
        np.save(tmp_path / "numpy.npy", array)
        assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()
        assert (tmp_path / "ours.npy").stat().st_size == on_disk.array_bytes(rows, cols, sizes)


# ---------------------------------------------------------------------------------------------------------- reading a patch set


def test_patches_are_slices_in_order(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    out = preprocess()
    for split, regions in (("train", 4), ("val", 2), ("test", 2)):
        dataset = reading.open_split(out, split)
        expected, labels, names, rasters = [], [], [], []
        for region in on_disk.load_regions(out):
            if region.split != split:
                continue
            array = np.load(out / region.file)
            for row in range(region.rows):
                for col in range(region.cols):
                    expected.append(array[14 * row : 14 * row + 28, 14 * col : 14 * col + 28])
                    labels.append(["Aa (AAA)", "Bb (BBB)"].index(region.city))
                    names.append(f"{region.region}/r{row:02d}_c{col:02d}")
                    rasters.append(region.raster)
        assert len(dataset) == len(expected) > 0 and len(dataset.regions) == regions
        assert np.array_equal(dataset.read(np.arange(len(dataset))), expected)
        assert dataset.labels.dtype == np.uint8 and dataset.labels.tolist() == labels
        assert [dataset.name(i) for i in range(len(dataset))] == names
        assert [dataset.raster(i) for i in range(len(dataset))] == rasters
        assert (dataset.classes, dataset.patch_size, dataset.stride, dataset.image_size) == (
            ["Aa (AAA)", "Bb (BBB)"],
            48,
            24,
            28,
        )
        shuffled = np.random.default_rng(0).permutation(len(dataset))
        assert np.array_equal(dataset.read(shuffled), np.array(expected)[shuffled])


def test_test_b_is_part_of_test(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    out = preprocess()
    test, sample = reading.open_split(out, "test"), reading.open_split(out, "test_b")
    number = {test.name(i): i for i in range(len(test))}
    chosen = [number[sample.name(i)] for i in range(len(sample))]
    assert len(set(chosen)) == len(chosen) == 10
    assert sample.labels.tolist() == test.labels[chosen].tolist() == [0] * 5 + [1] * 5
    assert np.array_equal(sample.read(range(10)), test.read(chosen))


def test_original_is_cut_from_the_raster(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    out = preprocess()
    dataset = reading.open_split(out, "val")
    for i in (0, len(dataset) - 1):
        region, row, col = dataset.locate(i)
        with Image.open(tmp_path / "raw" / region.raster) as raster:
            x, y = region.x + 24 * col, 24 * row
            assert (
                region.x == 75
                and dataset.original(i).tobytes() == raster.crop((x, y, x + 48, y + 48)).tobytes()
            )


@pytest.mark.parametrize("change", ["gone", "text", "smaller", "other pixels"])
def test_original_of_a_raster_that_has_changed_is_the_stored_patch(preprocess, tmp_path, change):
    make_raw(tmp_path / "raw")
    dataset = reading.open_split(preprocess(), "test")
    raster = tmp_path / "raw" / dataset.raster(0)
    reading._raster.cache_clear()
    raster.unlink()
    if change == "text":
        raster.write_text("no image")
    elif change != "gone":
        picture(*{"smaller": (30, 30), "other pixels": (150, 110)}[change], seed=99).save(raster)
    assert dataset.original(0).tobytes() == dataset.read([0])[0].tobytes()


def test_original_where_the_raw_folder_has_moved(preprocess, tmp_path):
    raw = make_raw(tmp_path / "raw")
    dataset = reading.open_split(preprocess(), "test")
    raw.rename(tmp_path / "moved")
    reading._raster.cache_clear()
    assert dataset.original(0).size == (28, 28)
    assert dataset.original(0, raw=tmp_path / "moved").size == (48, 48)


def test_a_set_that_has_moved_finds_its_rasters(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    (tmp_path / "disk").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "disk", target_is_directory=True)
    out = preprocess(
        out=tmp_path / "here" / "link" / "out"
    )  # `..` from here leads to disk, not to here
    assert reading.open_split(out, "test").original(0).size == (48, 48)
    for name in ("raw", "disk"):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    reading._raster.cache_clear()
    assert reading.open_split(tmp_path / "elsewhere" / "disk" / "out", "test").original(0).size == (
        48,
        48,
    )


def edit(file, **changes):
    description = json.loads(file.read_text(encoding="utf-8"))
    description.update(changes)
    file.write_text(
        json.dumps({key: value for key, value in description.items() if value is not None})
    )


def drop_line(file):
    file.write_bytes(b"\r\n".join(file.read_bytes().split(b"\r\n")[1:]))


BROKEN_SETS = {
    "unfinished": (
        lambda out: (out / "dataset.json").unlink(),
        "not finished .*run preprocessing.py again",
    ),
    "older": (
        lambda out: edit(out / "dataset.json", format=0),
        "format 0, this version has 1; delete the set",
    ),
    "no JSON": (lambda out: (out / "dataset.json").write_text("{"), "dataset.json: damaged"),
    "no object": (lambda out: (out / "dataset.json").write_text("[1]"), "dataset.json: damaged"),
    "no text": (
        lambda out: (out / "dataset.json").write_bytes(b"\xff\xfe"),
        "dataset.json: damaged",
    ),
    "no classes": (lambda out: edit(out / "dataset.json", classes=None), "dataset.json: damaged"),
    "other classes": (
        lambda out: edit(out / "dataset.json", classes=["Aa (AAA)"]),
        "regions.csv has cities",
    ),
    "no regions": (lambda out: (out / "regions.csv").unlink(), "regions.csv: cannot be read"),
    "regions without header": (
        lambda out: drop_line(out / "regions.csv"),
        "regions.csv: cannot be read",
    ),
    "regions binary": (
        lambda out: (out / "regions.csv").write_bytes(bytes(range(256))),
        "regions.csv: cannot be read",
    ),
    "regions endless": (
        lambda out: (out / "regions.csv").write_text("region\n" + "x" * 200_000),
        "regions.csv: cannot be read",
    ),
    "no sample": (lambda out: (out / "test_b.csv").unlink(), "test_b.csv: cannot be read"),
    "sample of another set": (
        lambda out: (out / "test_b.csv").write_text("region,row,col\nX/y.test,0,0\n"),
        "test_b.csv: cannot be read",
    ),
    "no array": (
        lambda out: next(out.rglob("*.test.npy")).unlink(),
        r"\.test\.npy: missing or not whole",
    ),
    "short array": (
        lambda out: os.truncate(next(out.rglob("*.test.npy")), 500),
        r"\.test\.npy: missing or not whole",
    ),
}


@pytest.mark.parametrize("name", BROKEN_SETS)
def test_broken_sets_are_refused(preprocess, tmp_path, name):
    make_raw(tmp_path / "raw")
    out = preprocess()
    reading.open_split(out, "test_b")
    damage, message = BROKEN_SETS[name]
    damage(out)
    with pytest.raises(InputError, match=message) as caught:
        reading.open_split(out, "test_b")
    assert "\n" not in str(caught.value) and str(out) in str(caught.value)


def test_what_is_no_patch_set(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    with pytest.raises(InputError, match="no such folder"):
        reading.open_split(tmp_path / "nowhere", "train")
    with pytest.raises(InputError, match="no patch set"):
        reading.open_split(tmp_path / "raw", "train")
    with pytest.raises(InputError, match="must be one of train, val, test, test_b"):
        reading.open_split(tmp_path / "raw", "tes\nt")
    out = preprocess()
    with pytest.raises(InputError, match="28 pixels wide, 32 are asked for"):
        reading.open_split(out, "train", 32)
    assert len(reading.open_split(out, "train", 28))


# ----------------------------------------------------------------------------------------------------------- the published layout


def copy_jpegs(out, to):
    for split in on_disk.SPLITS:
        shutil.copytree(out / split, to / split)
    return to


def test_jpegs_read_back_as_data(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    out = preprocess("--jpegs")
    jpegs = copy_jpegs(out, tmp_path / "published")
    for split in on_disk.SPLITS:
        arrays, folder = reading.open_split(out, split), reading.open_split(jpegs, split, 28)
        assert folder.classes == arrays.classes and folder.image_size == 28
        # Both are in the order of city, site, raster, row and column.
        assert folder.labels.dtype == np.uint8 and folder.labels.tolist() == arrays.labels.tolist()
        both = (
            folder.read(range(len(folder))).astype(int),
            arrays.read(range(len(arrays))).astype(int),
        )
        assert np.abs(both[0] - both[1]).mean() < 3 and np.abs(both[0] - both[1][::-1]).mean() > 10
        assert folder.original(0).size == (48, 48)
        assert folder.name(0).startswith(f"{split}/Aa (AAA)/site") and folder.name(0).endswith(
            ".jpg"
        )
        assert (
            folder.raster(0) == f"{split}/Aa (AAA)/{'site1' if split == 'train' else 'site3'}__2020"
        )
    assert reading.open_split(jpegs, "train").read([0]).shape == (1, 224, 224, 3)


def test_every_split_of_a_folder_numbers_the_classes_alike(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    jpegs = copy_jpegs(preprocess("--jpegs"), tmp_path / "published")
    shutil.rmtree(jpegs / "test" / "Aa (AAA)")
    (jpegs / "test" / ".ipynb_checkpoints").mkdir()
    (jpegs / "test" / "Bb (BBB)" / "Thumbs.db").write_text("")
    (jpegs / "test" / "Bb (BBB)" / ".hidden.jpg").write_text("")
    test = reading.open_split(jpegs, "test")
    assert test.classes == ["Aa (AAA)", "Bb (BBB)"] and set(test.labels) == {1}
    assert len(test) == len(reading.open_split(tmp_path / "out", "test")) / 2
    test.read(range(len(test)))
    shutil.rmtree(jpegs / "val")
    with pytest.raises(InputError, match="val: no such folder"):
        reading.open_split(jpegs, "val")
    shutil.rmtree(jpegs / "test" / "Bb (BBB)")
    with pytest.raises(InputError, match="test: no images"):
        reading.open_split(jpegs, "test")


def test_a_broken_jpeg_is_named(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    jpegs = copy_jpegs(preprocess("--jpegs"), tmp_path / "published")
    dataset = reading.open_split(jpegs, "val", 28)
    os.truncate(dataset.files[1], 900)
    dataset.read([0])
    with pytest.raises(
        InputError, match=r"_c01\.jpg: cannot be read \(.*truncated.*replace or delete it"
    ):
        dataset.read([0, 1])
    dataset.files[1].unlink()
    os.mkfifo(dataset.files[1])
    with pytest.raises(InputError, match=r"_c01\.jpg: no regular file"):
        dataset.read([1])


def test_reading_needs_no_torch(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    jpegs = copy_jpegs(preprocess("--jpegs"), tmp_path / "published")
    code = """import sys, preprocessing
from dl_slicer.patch_sets import reading
for folder in sys.argv[1:]: reading.open_split(folder, "test").read([0])
slow = {"torch", "torchvision", "sklearn", "matplotlib", "scipy"} & sys.modules.keys()
assert not slow, slow"""
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out"), str(jpegs)], cwd=ROOT, check=True
    )


# --------------------------------------------------------------------------------------------------------------- images of all kinds


def png(pixels, colour_type, bits=16):
    """A PNG of 16 bits a channel, which Pillow does not write; with pixels=(width, height) one that only claims that size."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    width, height = pixels if isinstance(pixels, tuple) else pixels.shape[1::-1]
    lines = (
        b""
        if isinstance(pixels, tuple)
        else b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    )
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def tiff(pixels, order="<", extra=()):
    """An uncompressed TIFF of 16 bits a channel; extra: (tag, value) of two bytes."""
    height, width, channels = pixels.shape
    bits = 8 + 2 + 12 * (9 + len(extra)) + 4
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    tags = [
        (256, width),
        (257, height),
        (258, 16),
        (259, 1),
        (262, 2 if channels > 1 else 1),
        (273, bits + 2 * channels),
        (277, channels),
        (278, height),
        (279, len(data)),
        *extra,
    ]
    entries = b""
    for tag, value in tags:
        if tag == 258 and channels > 2:
            entries += struct.pack(order + "HHII", tag, 3, channels, bits)
        else:
            entries += struct.pack(order + "HHII", tag, 4, 1, value)
    return (
        (b"II*\0" if order == "<" else b"MM\0*")
        + struct.pack(order + "IH", 8, len(tags))
        + entries
        + bytes(4)
        + struct.pack(order + "H", 16) * channels
        + data
    )


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_every_kind_of_pixel_becomes_what_it_looks_like(tmp_path):
    photo = picture(60, 50)
    rgb, grey = np.asarray(photo).astype(int), np.asarray(photo.convert("L")).astype(int)
    deep = np.random.default_rng(0).integers(0, 65536, (50, 60, 4), dtype=np.uint16)
    alpha = photo.convert("RGBA")
    alpha.putalpha(Image.fromarray(np.tile(np.arange(60, dtype=np.uint8), (50, 1))))
    palette = photo.quantize(256)
    palette_clear = photo.quantize(255)
    wide = np.array(photo.convert("L")).astype(np.int32) << 8
    kinds = {  # name: (file or bytes, what it must look like, how far it may be from that)
        "grey.jpg": (photo.convert("L"), grey, 12),
        "grey.png": (photo.convert("L"), grey, 0),
        "grey-alpha.png": (photo.convert("LA"), grey, 0),
        "two.png": (photo.convert("1"), np.asarray(photo.convert("1")).astype(int) * 255, 0),
        "palette.png": (palette, np.asarray(palette.convert("RGB")).astype(int), 0),
        "palette.tif": (palette, np.asarray(palette.convert("RGB")).astype(int), 0),
        "palette-clear.png": (
            (palette_clear, {"transparency": bytes(range(255))}),
            np.asarray(palette_clear.convert("RGB")).astype(int),
            0,
        ),
        "rgb.PNG": (photo, rgb, 0),
        "rgb.tiff": (photo, rgb, 0),
        "rgba.png": (alpha, rgb, 0),
        "rgba.tif": (alpha, rgb, 0),
        "cmyk.jpg": (photo.convert("CMYK"), rgb, 12),
        "cmyk.tif": (photo.convert("CMYK"), rgb, 2),
        "ycbcr.tif": ((photo, {"compression": "jpeg"}), rgb, 60),
        "lzw.tif": ((photo, {"compression": "tiff_lzw"}), rgb, 0),
        "deflate.tif": ((photo, {"compression": "tiff_adobe_deflate"}), rgb, 0),
        "progressive.jpeg": (
            (photo, {"progressive": True, "quality": 100, "subsampling": 0}),
            rgb,
            12,
        ),
        "grey16.png": (Image.fromarray(deep[:, :, 0]), deep[:, :, 0] >> 8, 0),
        "grey16.tif": (Image.fromarray(deep[:, :, 0]), deep[:, :, 0] >> 8, 0),
        "grey16be.tif": (tiff(deep[:, :, :1], ">"), deep[:, :, 0] >> 8, 0),
        "grey32.tif": (Image.fromarray(wide), grey, 0),
        "rgb16.png": (png(deep[:, :, :3], 2), deep[:, :, :3] >> 8, 0),
        "rgba16.png": (png(deep, 6), deep[:, :, :3] >> 8, 0),
        "grey-alpha16.png": (png(deep[:, :, :2], 4), deep[:, :, 0] >> 8, 0),
        "rgb16.tif": (tiff(deep[:, :, :3]), deep[:, :, :3] >> 8, 0),
        "rgb16be.tif": (tiff(deep[:, :, :3], ">"), deep[:, :, :3] >> 8, 0),
        "near-infrared16.tif": (tiff(deep, extra=[(338, 0)]), deep[:, :, :3] >> 8, 0),
    }
    for name, (content, expected, tolerance) in kinds.items():
        content, options = content if isinstance(content, tuple) else (content, {})
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            content.save(tmp_path / name, **options)
        image = image_files.read_image(tmp_path / name)
        got = np.asarray(image).astype(int)
        expected = np.broadcast_to(
            expected if expected.ndim == 3 else expected[:, :, None], (50, 60, 3)
        )
        assert (
            image.mode == "RGB"
            and got.shape == (50, 60, 3)
            and np.abs(got - expected).max() <= tolerance
        ), name


def test_grey_of_16_bits_in_several_strips(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (600, 20), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "tall.png")
    assert np.array_equal(
        np.asarray(image_files.read_image(tmp_path / "tall.png"))[:, :, 1], deep >> 8
    )


def test_what_cannot_be_an_image(tmp_path):
    good = io.BytesIO()
    picture(200, 200).save(good, "JPEG")
    floats, gif = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.zeros((50, 60), np.float32)).save(floats, "TIFF")
    picture(50, 50).save(gif, "GIF")
    cases = {
        "text.jpg": (b"no image", "no JPEG, PNG or TIFF"),
        "empty.png": (b"", "no JPEG, PNG or TIFF"),
        "gif.jpg": (gif.getvalue(), "no JPEG, PNG or TIFF"),
        "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no JPEG, PNG"),
        "short.jpg": (good.getvalue()[:-4000], r"truncated \(.*\)\); replace or delete it"),
        "header.jpg": (good.getvalue()[:300], "read"),
        "float.tif": (floats.getvalue(), "floating-point"),
        "bomb.png": (png((30000, 30000), 2, 8), "more than 179 million pixels; cut it"),
        "none.png": (png((0, 0), 2, 8), "read"),
        "flat.png": (png((10, 0), 2, 8), "read"),
        "claim.png": (png((1, 1_000_000), 2, 8), "truncated"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableImage, match=message) as caught:
            image_files.read_image(tmp_path / name)
        assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value), name
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")  # to open it would wait for ever
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name in ("folder.jpg", "pipe.jpg", "zero.jpg"):
        with pytest.raises(UnreadableImage, match="no regular file"):
            image_files.read_image(tmp_path / name)
    with pytest.raises(UnreadableImage, match=r"cannot be read \(No such file or directory\)"):
        image_files.read_image(tmp_path / "gone.jpg")


def test_a_file_without_permission_is_told_as_such(tmp_path, monkeypatch):
    picture(50, 50).save(tmp_path / "x.png")

    def refuse(path, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(UnreadableImage, match=r"cannot be read \(Permission denied\)"):
        image_files.read_image(tmp_path / "x.png")


FUZZ = """
import random, signal, sys
from pathlib import Path
from dl_slicer.patch_sets import image_files
from benchmarks.growth import memory
folder, seed = Path(sys.argv[1]), random.Random(0)
originals, read = sorted(folder.glob("base*")), 0
for n in range(2000):
    original = originals[0] if n < 1000 else seed.choice(originals[1:])
    data = bytearray(original.read_bytes())
    for _ in range(seed.choice([1, 1, 2, 4, 16])):
        at, what = seed.randrange(len(data) if seed.random() < 0.5 else min(len(data), 200)), seed.randrange(5)
        if what == 0: data[at] ^= 1 << seed.randrange(8)
        if what == 1: data[at] = seed.choice([0, 127, 128, 255])
        if what == 2: del data[at + 1:]
        if what == 3: data[at:at] = seed.randbytes(seed.randrange(1, 9))
        if what == 4: data[at:at + 4] = seed.choice([b"\\xff\\xff\\xff\\xff", b"\\x7f\\xff\\xff\\xff", b"\\0\\0\\0\\0", b"\\0\\1\\0\\0"])
    file = folder / f"mutation{original.suffix}"
    file.write_bytes(data)
    signal.alarm(10)        # a hang ends this process
    try:
        assert image_files.read_image(file).mode == "RGB"
        read += 1
    except image_files.UnreadableImage as error:
        assert str(error).isprintable(), str(error)
    signal.alarm(0)
assert 200 < read < 1800, read
assert memory("VmHWM") < 1900, memory("VmHWM")
"""


def test_mutated_images_give_a_picture_or_a_line(tmp_path):
    photo = picture(56, 40)
    for name, options in (
        ("base0.jpg", {}),
        ("base1.jpg", {"progressive": True}),
        ("base2.png", {}),
        ("base3.tif", {}),
        ("base4.tif", {"compression": "tiff_lzw"}),
        ("base5.tif", {"compression": "jpeg"}),
    ):
        photo.save(tmp_path / name, **options)
    Image.fromarray(np.asarray(photo)[:, :, 0].astype(np.uint16) * 257).save(tmp_path / "base6.tif")
    run = subprocess.run(
        [sys.executable, "-c", FUZZ, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_mutated_images_through_the_command_line(tmp_path):
    import random

    seed, raw = random.Random(0), make_raw(tmp_path / "raw")
    data = io.BytesIO()
    picture(120, 100).save(data, "JPEG")
    for n in range(30):
        broken = bytearray(data.getvalue())
        broken[seed.randrange(200)] ^= 1 << seed.randrange(8)
        (raw / "Aa (AAA)" / "site1" / f"{n:02d}.jpg").write_bytes(
            broken[: seed.choice([None, -500])]
        )
    run = subprocess.run(
        [sys.executable, "preprocessing.py", "--raw", raw, "--out", tmp_path / "out", *SMALL],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    lines = run.stderr.splitlines()
    assert run.returncode == 2 and 8 < len(lines) < 30, run.stderr
    assert all(line.startswith("preprocessing.py: ") for line in lines)
    named = [line.split(": ")[1] for line in lines[:-1]]
    assert len(set(named)) == len(named) and all(name.endswith(".jpg") for name in named)
    assert lines[-1].startswith(
        f"preprocessing.py: {36 - len(named)} of 36 rasters are done and kept"
    )
