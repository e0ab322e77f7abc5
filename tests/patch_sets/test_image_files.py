"""Images of every kind, and of no kind."""

import errno
import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from conftest import ROOT, picture
from PIL import Image

from dl_slicer.patch_sets import image_files
from dl_slicer.patch_sets.image_files import UnreadableImage


def png(pixels, colour_type, bits=16):
    """A PNG of 16 bits a channel, which Pillow does not write.

    With pixels=(width, height) one that only claims that size.
    """

    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    if isinstance(pixels, tuple):
        width, height = pixels
        lines = b""
    else:
        height, width = pixels.shape[:2]
        lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
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


def kinds_of_pixels():
    """{name: (file or bytes, what it must look like, how far it may be from that)}."""
    photo = picture(60, 50)
    rgb = np.asarray(photo).astype(int)
    grey = np.asarray(photo.convert("L")).astype(int)
    deep = np.random.default_rng(0).integers(0, 65536, (50, 60, 4), dtype=np.uint16)
    alpha = photo.convert("RGBA")
    alpha.putalpha(Image.fromarray(np.tile(np.arange(60, dtype=np.uint8), (50, 1))))
    palette = photo.quantize(256)
    palette_clear = photo.quantize(255)
    wide = np.array(photo.convert("L")).astype(np.int32) << 8
    finest = {"progressive": True, "quality": 100, "subsampling": 0}
    return {
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
        "progressive.jpeg": ((photo, finest), rgb, 12),
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


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_every_kind_of_pixel_becomes_what_it_looks_like(tmp_path):
    for name, (content, expected, tolerance) in kinds_of_pixels().items():
        content, options = content if isinstance(content, tuple) else (content, {})
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            content.save(tmp_path / name, **options)
        image = image_files.read_image(tmp_path / name)
        got = np.asarray(image).astype(int)
        if expected.ndim == 2:
            expected = expected[:, :, None]
        expected = np.broadcast_to(expected, (50, 60, 3))
        assert image.mode == "RGB", name
        assert got.shape == (50, 60, 3), name
        assert np.abs(got - expected).max() <= tolerance, name


def test_grey_of_16_bits_in_several_strips(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (600, 20), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "tall.png")
    image = image_files.read_image(tmp_path / "tall.png")
    assert np.array_equal(np.asarray(image)[:, :, 1], deep >> 8)


def test_32_bits_that_are_used_would_be_white(tmp_path):
    pixels = np.full((600, 20), 65535, np.int32)
    Image.fromarray(pixels).save(tmp_path / "wide.tif")
    assert np.asarray(image_files.read_image(tmp_path / "wide.tif")).min() == 255
    pixels[599, 19] = 65536
    Image.fromarray(pixels).save(tmp_path / "wide.tif")
    with pytest.raises(image_files.UnreadableImage, match="larger numbers than 16 bits"):
        image_files.read_image(tmp_path / "wide.tif")


@pytest.mark.parametrize(
    "largest, is_dark", [(255, True), (2047, True), (4095, True), (4096, False)]
)
def test_16_bits_that_are_not_used_would_be_black(tmp_path, largest, is_dark):
    deep = np.random.default_rng(0).integers(0, largest + 1, (500, 600, 4), dtype=np.uint16)
    deep[::50] = largest
    kinds = {
        "grey.png": png(deep[:, :, :1], 0),
        "grey-alpha.png": png(np.dstack([deep[:, :, :1], np.full_like(deep[:, :, :1], 65535)]), 4),
        "rgb.png": png(deep[:, :, :3], 2),
        "rgba.png": png(np.dstack([deep[:, :, :3], np.full_like(deep[:, :, :1], 65535)]), 6),
        "grey.tif": tiff(deep[:, :, :1]),
        "grey-big-endian.tif": tiff(deep[:, :, :1], ">"),
        "rgb.tif": tiff(deep[:, :, :3]),
        "near-infrared.tif": tiff(deep, extra=[(338, 0)]),
    }
    for name, content in kinds.items():
        (tmp_path / name).write_bytes(content)
    Image.fromarray(deep[:, :, 0]).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    Image.fromarray(deep[:, :, 0].astype(np.int32)).save(tmp_path / "grey32.tif")
    for path in sorted(tmp_path.iterdir()):
        if is_dark:
            with pytest.raises(UnreadableImage, match="only values below 4096"):
                image_files.read_image(path)
        else:
            assert np.asarray(image_files.read_image(path)).max() == 16, path.name
    Image.new("RGB", (50, 60)).save(tmp_path / "black.png")  # 8 bits may be as dark as they like
    assert not np.asarray(image_files.read_image(tmp_path / "black.png")).any()


def test_what_cannot_be_an_image(tmp_path):
    good = io.BytesIO()
    picture(200, 200).save(good, "JPEG")
    floats = io.BytesIO()
    gif = io.BytesIO()
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
        assert "\n" not in str(caught.value), name
        assert str(tmp_path) not in str(caught.value), name
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")  # to open it would wait for ever
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "zero.jpg"):
        with pytest.raises(UnreadableImage, match="no regular file"):
            image_files.read_image(tmp_path / name)
    with pytest.raises(UnreadableImage, match="a folder, not an image; name the image files in it"):
        image_files.read_image(tmp_path / "folder.jpg")
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
import random
import signal
import sys
from pathlib import Path

from benchmarks.growth import memory
from dl_slicer.patch_sets import image_files

HEADS = [b"\\xff\\xff\\xff\\xff", b"\\x7f\\xff\\xff\\xff", b"\\0\\0\\0\\0", b"\\0\\1\\0\\0"]
folder = Path(sys.argv[1])
seed = random.Random(0)
originals = sorted(folder.glob("base*"))
read = 0
for n in range(2000):
    original = originals[0] if n < 1000 else seed.choice(originals[1:])
    data = bytearray(original.read_bytes())
    for _ in range(seed.choice([1, 1, 2, 4, 16])):
        at = seed.randrange(len(data) if seed.random() < 0.5 else min(len(data), 200))
        what = seed.randrange(5)
        if what == 0:
            data[at] ^= 1 << seed.randrange(8)
        if what == 1:
            data[at] = seed.choice([0, 127, 128, 255])
        if what == 2:
            del data[at + 1:]
        if what == 3:
            data[at:at] = seed.randbytes(seed.randrange(1, 9))
        if what == 4:
            data[at:at + 4] = seed.choice(HEADS)
    file = folder / f"mutation{original.suffix}"
    file.write_bytes(data)
    signal.alarm(10)  # a hang ends this process
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
