"""Image files, read as 8-bit RGB or refused in one line."""

import os
import stat
import warnings
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

warnings.filterwarnings("ignore", module="PIL\\.")
from dl_slicer.cli import printable

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
FORMATS = (
    "JPEG",
    "PNG",
    "TIFF",
)  # nothing else is tried, whatever a file's name: Pillow would start Ghostscript for some


class UnreadableImage(Exception):
    """An image file that cannot be used; the message says why and what to do, without the path."""


@contextmanager
def opened(path):
    """Pillow's Image.open, with whatever a damaged or hostile file makes Pillow raise turned into UnreadableImage."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UnreadableImage("no regular file; delete it")
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(
            "no JPEG, PNG or TIFF image that can be read; replace or delete it"
        ) from None
    except Image.DecompressionBombError:
        raise UnreadableImage(
            f"has more than {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels; cut it into smaller images"
        ) from None
    except MemoryError:
        raise UnreadableImage(
            "does not fit into memory; cut it into smaller images, or take fewer processes"
        ) from None
    except Exception as error:
        reason = (
            getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        )
        raise UnreadableImage(
            f"cannot be read ({printable(reason)}); replace or delete it"
        ) from None


def read_image(path):
    """The whole file as an 8-bit RGB Pillow image; UnreadableImage if that cannot be.

    Of 16 bits a channel the upper 8 are taken; transparency is dropped; palettes, CMYK and grey are converted.
    """
    with opened(path) as image:
        image.load()
        if image.mode == "F":
            raise UnreadableImage(
                "its pixels are floating-point numbers; convert it to 8 or 16 bits a channel"
            )
        if image.mode == "I" or image.mode.startswith("I;16"):
            image = _upper_8_bits(image)
        return image if image.mode == "RGB" else image.convert("RGB")


def _upper_8_bits(image):
    grey = np.empty((image.height, image.width), np.uint8)
    for y in range(
        0, image.height, 256
    ):  # in strips: 32 and 64 bits a pixel of a large image are gigabytes
        strip = np.asarray(image.crop((0, y, image.width, min(y + 256, image.height))))
        grey[y : y + 256] = (strip.astype(np.int64) >> 8).clip(0, 255)
    return Image.fromarray(grey)


def resize(image, size):
    """Pillow's bilinear resize with antialiasing; size: (width, height)."""
    return image.resize(size, Image.Resampling.BILINEAR)
