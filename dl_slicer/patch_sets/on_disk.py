"""What a patch set is on disk."""

import csv
import json
import math
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dl_slicer.cli import InputError, printable

# As published: a patch is 200 m by 200 m, and each half of it is in the next one, too.
PATCH_SIZE = 480  # pixels of the raster
STRIDE = 240
IMAGE_SIZE = 224  # pixels that the network sees

FORMAT = 1
SPLITS = ("train", "val", "test", "test_b")


class Region(NamedTuple):
    """A row of regions.csv: the part of a raster that belongs to one split."""

    region: str  # City (CODE)/site/raster.split
    split: str  # train, val or test
    city: str
    site: str
    raster: str  # path relative to the raw folder
    x: int  # rectangle in pixels of the raster
    y: int
    width: int
    height: int
    rows: int  # windows
    cols: int
    file: str  # path of the array, relative to the patch set


def count_windows(length, patch_size, stride):
    """How many windows fit into a length of so many pixels."""
    return (length - patch_size) // stride + 1 if length >= patch_size else 0


def scaled_stride(patch_size, stride, image_size):
    """The stride in pixels of the arrays. InputError if it is no whole number, with the nearest strides that work."""
    if image_size * stride % patch_size == 0:
        return image_size * stride // patch_size
    step = patch_size // math.gcd(patch_size, image_size)
    near = sorted({max(step, stride // step * step), -(-stride // step) * step})
    raise InputError(
        f"--stride {stride}: image_size * stride / patch_size = {image_size} * {stride} / {patch_size} is no whole "
        f"number; the nearest that works: --stride {' or '.join(map(str, near))}"
    )


def load_description(root):
    """dataset.json as a dict. InputError if it is damaged or of another format."""
    file = Path(root) / "dataset.json"
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
        made_by = description["format"]
        if (
            made_by == FORMAT
            and not {"patch_size", "stride", "image_size", "classes", "raw"} <= description.keys()
        ):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{printable(file)}: damaged, or not written by preprocessing.py; delete this file and run preprocessing.py again"
        ) from None
    if made_by != FORMAT:
        raise InputError(
            f"{printable(file)}: patch set of format {printable(made_by)}, this version has {FORMAT}; "
            "delete the set and make it anew with preprocessing.py"
        )
    return description


def load_regions(root, split=None):
    """The rows of regions.csv, of one split or of all."""
    file = Path(root) / "regions.csv"
    whole = ("x", "y", "width", "height", "rows", "cols")
    same = {}  # one object for what many rows say: of hundreds of thousands of rows a third of the memory
    try:
        with open(file, newline="", encoding="utf-8") as lines:
            rows = (
                {key: int(value) if key in whole else value for key, value in row.items()}
                for row in csv.DictReader(lines)
            )
            return [
                Region(**{key: same.setdefault(value, value) for key, value in row.items()})
                for row in rows
                if split in (None, row["split"])
            ]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(
            f"{printable(file)}: cannot be read ({printable(error)}); run preprocessing.py again"
        ) from None


def label_type(classes):
    # Small: labels of tens of millions of patches would else be much of what a training run takes besides its network.
    return np.min_scalar_type(len(classes) - 1)


def array_shape(rows, cols, description):
    """(height, width) of the array that so many windows cover; description: dataset.json, or its sizes."""
    size, stride, image_size = (description[key] for key in ("patch_size", "stride", "image_size"))
    return tuple((n - 1) * stride * image_size // size + image_size for n in (rows, cols))


def array_bytes(rows, cols, description):
    """Size of the array's file; NumPy's header of a three-dimensional array takes 128 bytes."""
    height, width = array_shape(rows, cols, description)
    return 128 + height * width * 3


def write_array(file, array):
    """np.save, which says "400 requested and 200 written" where the disk is full, without saying that it is."""
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(np.ascontiguousarray(array))


@lru_cache(maxsize=1)
def flat_name(city, raster):
    """site__raster, without the suffix: what the raster's patches are called in a folder of JPEGs."""
    return "__".join(Path(raster).relative_to(city).with_suffix("").parts)


def record_file(out, raster):
    return f"{out}/arrays/{Path(raster).with_suffix('.json')}"


def jpeg_file(out, split, region, row, col):
    return f"{out}/{split}/{region.city}/{flat_name(region.city, region.raster)}_r{row:02d}_c{col:02d}.jpg"


def each_patch(regions):
    """(region, row, col) of every patch."""
    return (
        (region, row, col)
        for region in regions
        for row in range(region.rows)
        for col in range(region.cols)
    )


TEMPORARY = r"\.\d+-[0-9a-f]{8}\.tmp"
ARRAY = re.compile(TEMPORARY + r"|.+\.(json|train\.npy|val\.npy|test\.npy)", re.DOTALL)
JPEG = re.compile(TEMPORARY + r"|(?P<raster>.+)_r(?P<row>\d+)_c(?P<col>\d+)\.jpg", re.DOTALL)
