"""Image files, read as 8-bit RGB or refused in one line."""

import logging
import os
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from dl_slicer.cli import printable

# What Pillow warns of (odd metadata, many pixels) is either read well or refused below.
warnings.filterwarnings("ignore", module="PIL\\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".jp2", ".vrt"}

# What systems put into archives and onto disks: copies, small pictures, deleted files.
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}

# Nothing else is tried, whatever a file's name: Pillow would start Ghostscript for some.
FORMATS = ("JPEG", "PNG", "TIFF")

# Of 16 bits a channel the upper 8 are taken. Satellites often use 11 or 12 of them: whatever is
# below this would be read as nearly black.
DARK = 4096
JPEG_2000_HEAD = 1_000_000  # bytes within which the image begins; before it are its metadata
SAMPLE = 256  # pixels in a row and in a column that are looked at for that

NO_IMAGE = "no JPEG, PNG or TIFF image that can be read; replace or delete it"
TOO_BRIGHT = (
    "its pixels are larger numbers than 16 bits hold, it would be read as nearly white; pass"
    " --stretch auto, or convert it to 8 or 16 bits a channel"
)

STRIP = 256  # rows converted at a time: 32 and 64 bits a pixel of a large image are gigabytes


class UnreadableImage(Exception):
    """An image file that cannot be used; the message says why and what to do, without the path."""


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image; hidden files are not."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")


def is_passed_over(folder: str) -> bool:
    """Whether a folder of this name is hidden or a system's own: it holds nobody's rasters."""
    return folder.startswith(".") or folder in SYSTEM_FOLDERS


class _Screen:
    """Where stderr goes, and how many calls want it to be nowhere."""

    lock = threading.Lock()
    silent = 0
    kept: int | None = None


@contextmanager
def without_stderr() -> Iterator[None]:
    """Keep from the screen what libraries in C write to it past Python, in all threads.

    libtiff in Pillow and libgeotiff in GDAL do that where a file is damaged.
    """
    with _Screen.lock:
        _Screen.silent += 1
        if _Screen.silent == 1:
            with suppress(OSError):  # there may be no screen
                _Screen.kept = os.dup(2)
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, 2)
                os.close(nothing)
    try:
        yield
    finally:
        with _Screen.lock:
            _Screen.silent -= 1
            if _Screen.silent == 0 and _Screen.kept is not None:
                os.dup2(_Screen.kept, 2)
                os.close(_Screen.kept)
                _Screen.kept = None


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """Pillow's Image.open as a context.

    Whatever a damaged or hostile file makes Pillow raise, also within the context, becomes
    UnreadableImage.
    """
    try:
        refuse_irregular(path)
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(reason(error)) from None


def refuse_irregular(path: str | Path) -> None:
    """UnreadableImage if a path leads to no regular file."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise UnreadableImage(reason(error)) from None
    if stat.S_ISDIR(mode):
        raise UnreadableImage("a folder, not an image; name the image files in it")
    # Opening a pipe would wait for ever, and some devices never end.
    if not stat.S_ISREG(mode):
        raise UnreadableImage("no regular file but a pipe or a device; name an image file")


def reason(error: Exception) -> str:
    """What an error of Pillow or of the system means for the user, and what to do."""
    if isinstance(error, UnidentifiedImageError):
        return NO_IMAGE
    if isinstance(error, Image.DecompressionBombError):
        millions = 2 * Image.MAX_IMAGE_PIXELS / 1e6
        return f"has more than {millions:.0f} million pixels; cut it into smaller images"
    if isinstance(error, MemoryError):
        return "does not fit into memory; cut it into smaller images, or take fewer processes"
    in_one_line = " ".join(str(error).split())
    said = getattr(error, "strerror", None) or in_one_line or type(error).__name__
    return f"cannot be read ({printable(said)}); replace or delete it"


def is_progressive(path: str | Path) -> bool:
    """Whether a JPEG is stored in several scans, each of the whole image."""
    with open(path, "rb") as file:
        file.seek(2)
        while True:
            head = file.read(4)
            if len(head) < 4 or head[0] != 0xFF:
                return False
            if 0xC0 <= head[1] <= 0xCF and head[1] not in (0xC4, 0xC8, 0xCC):
                return head[1] in (0xC2, 0xC6, 0xCA, 0xCE)
            file.seek(int.from_bytes(head[2:], "big") - 2, os.SEEK_CUR)


def is_interlaced(path: str | Path) -> bool:
    """Whether a PNG is stored in several passes, each of the whole image."""
    with open(path, "rb") as file:
        return file.read(29)[28:] == b"\1"


def is_one_strip(path: str | Path) -> bool:
    """Whether a TIFF is compressed as a whole. GDAL starts at its top for every step back."""
    with open(path, "rb") as file:
        header = file.read(8)
        if 43 in header[2:4]:  # BigTIFF
            header += file.read(8)
        try:
            tags = TiffImagePlugin.ImageFileDirectory_v2(header)
            file.seek(tags.next)
            tags.load(file)
            height = tags[TiffImagePlugin.IMAGELENGTH]
            rows = tags.get(TiffImagePlugin.ROWSPERSTRIP, height)
            is_compressed = tags.get(TiffImagePlugin.COMPRESSION, 1) != 1
            is_tiled = TiffImagePlugin.TILEOFFSETS in tags
        except Exception as error:
            raise UnreadableImage(reason(error)) from None
    return is_compressed and not is_tiled and rows >= height


def tile_of_jpeg_2000(path: str | Path) -> int:
    """The pixels of a tile of a JPEG 2000 file, which are decoded together; 0 if it is damaged."""
    with open(path, "rb") as file:
        head = file.read(JPEG_2000_HEAD)
    at = head.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(head) < at + 32:
        return 0
    width, height = struct.unpack(">II", head[at + 24 : at + 32])
    return width * height


def read_image(path: str | Path) -> Image.Image:
    """The whole file as an 8-bit RGB Pillow image; UnreadableImage if that cannot be.

    Of 16 bits a channel the upper 8 are taken; transparency is dropped; palettes, CMYK and grey are
    converted. 16 bits a channel that hold small values alone are refused, and larger numbers.
    """
    with open_image(path) as image:
        is_deep = ";16" in str(image.tile)  # Pillow tells it nowhere else, and forgets it below
        with without_stderr() if image.format == "TIFF" else nullcontext():
            image.load()
        if image.mode == "F":
            raise UnreadableImage(
                "its pixels are floating-point numbers; convert it to 8 or 16 bits a channel"
            )
        if image.mode == "I" or image.mode.startswith("I;16"):
            is_deep = True
            image = _upper_8_bits(image)
        if image.mode != "RGB":
            image = image.convert("RGB")
        if is_deep:
            _refuse_dark(image)
        return image


def _refuse_dark(image: Image.Image) -> None:
    """UnreadableImage if a sample of what was 16 bits a channel has only values below DARK.

    image: the upper 8 bits of it.
    """
    size = (min(image.width, SAMPLE), min(image.height, SAMPLE))
    sample = np.asarray(image.resize(size, Image.Resampling.NEAREST))
    if sample.max() < DARK >> 8:
        raise UnreadableImage(too_dark(DARK))


def too_dark(limit: int) -> str:
    """What is wrong with a raster whose values all lie below a limit, and what to type."""
    return (
        f"of its 16 bits a channel only values below {limit} are used, it would be read as nearly"
        " black; pass --stretch auto, or --stretch 0 65535 if that is meant"
    )


def _upper_8_bits(image: Image.Image) -> Image.Image:
    grey = np.empty((image.height, image.width), np.uint8)
    for upper in range(0, image.height, STRIP):
        lower = min(upper + STRIP, image.height)
        strip = np.asarray(image.crop((0, upper, image.width, lower)))
        if strip.max() >= 1 << 16:
            raise UnreadableImage(TOO_BRIGHT)
        grey[upper:lower] = (strip.astype(np.int64) >> 8).clip(0, 255)
    return Image.fromarray(grey)


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Pillow's bilinear resize with antialiasing; size: (width, height)."""
    return image.resize(size, Image.Resampling.BILINEAR)
