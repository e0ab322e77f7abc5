"""What a patch set is on disk: which files there are, what stands in them, how large they are.

No other module knows a file's name or a column's. The order in which files are written, and what
an interrupted run leaves, is the business of tiling and completing.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from dl_slicer.cli import InputError, printable

# As published: a patch is 200 m by 200 m, and overlaps the next one by half (--stride).
PATCH_SIZE = 480  # pixels of the raster
STRIDE = 240
IMAGE_SIZE = 224  # pixels that the network sees

FORMAT = 1
SPLITS = ("train", "val", "test", "test_b")

DESCRIPTION = "dataset.json"  # written last: a set without it is not finished
REGIONS = "regions.csv"
TEST_B = "test_b.csv"
ARRAYS = "arrays"  # the folder of arrays and of records, which lie as the rasters do in theirs

ARRAY_HEADER = 128  # bytes that NumPy's header of a three-dimensional array takes

# The files that preprocessing.py may delete, by their names alone.
TEMPORARY = r"\.\d+-[0-9a-f]{8}\.tmp"
ARRAY = re.compile(TEMPORARY + r"|.+\.(json|train\.npy|val\.npy|test\.npy)", re.DOTALL)
JPEG = re.compile(TEMPORARY + r"|(?P<raster>.+)_r(?P<row>\d+)_c(?P<col>\d+)\.jpg", re.DOTALL)

NOT_READABLE = (OSError, KeyError, TypeError, ValueError, csv.Error)  # what a damaged table raises


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


NUMBERS = frozenset(("x", "y", "width", "height", "rows", "cols"))  # the columns of whole numbers

Window = tuple[Region, int, int]  # a patch: its region, row and column


# ------------------------------------------------------------------------------- geometry


def count_windows(length: int, patch_size: int, stride: int) -> int:
    """How many windows fit into a length of so many pixels."""
    if length < patch_size:
        return 0
    return (length - patch_size) // stride + 1


def scaled_stride(patch_size: int, stride: int, image_size: int) -> int:
    """Give the stride in pixels of the arrays.

    InputError if it is no whole number, with the nearest strides that work.
    """
    if image_size * stride % patch_size == 0:
        return image_size * stride // patch_size
    step = patch_size // math.gcd(patch_size, image_size)  # its multiples are what works
    below = max(step, stride // step * step)
    above = -(-stride // step) * step
    nearest = " or ".join(str(works) for works in sorted({below, above}))
    raise InputError(
        f"--stride {stride}: image_size * stride / patch_size"
        f" = {image_size} * {stride} / {patch_size} is no whole number;"
        f" the nearest that works: --stride {nearest}"
    )


def make_settings(patch_size: int, stride: int, image_size: int) -> dict[str, int]:
    """Give what all rasters of a set must have been tiled with, as its files say it.

    InputError if the three sizes do not go together.
    """
    scaled_stride(patch_size, stride, image_size)
    return {
        "format": FORMAT,
        "patch_size": patch_size,
        "stride": stride,
        "image_size": image_size,
    }


def covered_size(rows: int, cols: int, settings: Mapping[str, Any]) -> tuple[int, int]:
    """(width, height) in pixels of the raster that so many windows cover."""
    size = settings["patch_size"]
    stride = settings["stride"]
    return (cols - 1) * stride + size, (rows - 1) * stride + size


def array_shape(rows: int, cols: int, settings: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of the array that so many windows cover.

    settings: of make_settings, or all of dataset.json.
    """
    size = settings["patch_size"]
    stride = settings["stride"]
    image_size = settings["image_size"]
    height = (rows - 1) * stride * image_size // size + image_size
    width = (cols - 1) * stride * image_size // size + image_size
    return height, width


def array_bytes(rows: int, cols: int, settings: Mapping[str, Any]) -> int:
    """Size of the file of the array that so many windows cover."""
    height, width = array_shape(rows, cols, settings)
    return ARRAY_HEADER + height * width * 3


def each_window(regions: Iterable[Region]) -> Iterator[Window]:
    """(region, row, col) of every patch, row by row."""
    return (
        (region, row, col)
        for region in regions
        for row in range(region.rows)
        for col in range(region.cols)
    )


# ------------------------------------------------------------------------------- names


def region_name(raster: str, split: str) -> str:
    """Give what the part of a raster that belongs to a split is called."""
    return f"{Path(raster).with_suffix('').as_posix()}.{split}"


def array_file(region: str) -> str:
    """Path of the array of a region by its name, relative to the patch set."""
    return f"{ARRAYS}/{region}.npy"


def record_file(out: str | Path, raster: str) -> Path:
    """Path of the file that says what has been made of a raster."""
    return Path(out, ARRAYS, raster).with_suffix(".json")


def window_name(row: int, col: int) -> str:
    """Give the end of a patch's name: where it lies in its region."""
    return f"r{row:02d}_c{col:02d}"


@lru_cache(maxsize=1)
def flat_name(city: str, raster: str) -> str:
    """site__raster, without the suffix: what a raster's patches are called in a folder of JPEGs."""
    return "__".join(Path(raster).relative_to(city).with_suffix("").parts)


def jpeg_file(out: str | Path, split: str, window: Window) -> str:
    """Path of a patch as a JPEG."""
    region, row, col = window
    name = f"{flat_name(region.city, region.raster)}_{window_name(row, col)}"
    return f"{out}/{split}/{region.city}/{name}.jpg"


def raster_of_jpeg(name: str) -> str:
    """Path of a JPEG without what window_name gave it, and without its suffix."""
    return re.sub(r"_r\d+_c\d+$", "", Path(name).with_suffix("").as_posix())


def is_finished(root: str | Path) -> bool:
    """Whether this folder is a patch set that was completed."""
    return Path(root, DESCRIPTION).is_file()


def has_arrays(root: str | Path) -> bool:
    """Whether this folder is a patch set, be it finished or not."""
    return Path(root, ARRAYS).is_dir()


def has_jpegs(root: str | Path) -> bool:
    """Whether this folder holds patches in the published layout."""
    return any(Path(root, split).is_dir() for split in SPLITS)


# ------------------------------------------------------------------------------- content


def write_array(file: IO[bytes], array: np.ndarray) -> None:
    """Write an array as np.save does.

    np.save says "400 requested and 200 written" where the disk is full, without saying that it is.
    """
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(np.ascontiguousarray(array))


class Record(NamedTuple):
    """What has been made of a raster: the content of its record_file."""

    job: dict[str, Any]  # which raster, and in which role: jobs.Job.identity()
    settings: dict[str, int]  # of make_settings
    regions: list[Region]


def write_record(file: IO[str], record: Record) -> None:
    """Write the record of a raster as JSON."""
    json.dump(record._asdict(), file)


def load_record(file: Path) -> Record | None:
    """The record of a raster; None if there is none, or if it is damaged."""
    try:
        record = Record(**json.loads(file.read_text(encoding="utf-8")))
        if not isinstance(record.settings, dict):
            return None
        return record._replace(regions=[Region(*region) for region in record.regions])
    except (OSError, ValueError, TypeError):
        return None


def text_of_regions(regions: Iterable[Region]) -> str:
    """Give the content of regions.csv."""
    return _as_csv(Region._fields, regions)


def text_of_test_b(windows: Iterable[Window]) -> str:
    """Give the content of test_b.csv."""
    rows = ((region.region, row, col) for region, row, col in windows)
    return _as_csv(("region", "row", "col"), rows)


def text_of_description(description: Mapping[str, Any]) -> str:
    """Give the content of dataset.json."""
    return json.dumps(description, indent=1, ensure_ascii=False) + "\n"


def _as_csv(header: Sequence[str], rows: Iterable[Sequence]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def load_description(root: str | Path) -> dict[str, Any]:
    """dataset.json as a dict. InputError if it is damaged or of another format."""
    file = Path(root, DESCRIPTION)
    needed = {"patch_size", "stride", "image_size", "classes", "raw"}
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
        its_format = description["format"]
        if its_format == FORMAT and not needed <= description.keys():
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{printable(file)}: damaged, or not written by preprocessing.py;"
            " delete this file and run preprocessing.py again"
        ) from None
    if its_format != FORMAT:
        raise InputError(
            f"{printable(file)}: patch set of format {printable(its_format)}, this version has"
            f" {FORMAT}; delete the set and make it anew with preprocessing.py"
        )
    return description


def load_regions(root: str | Path, split: str | None = None) -> list[Region]:
    """The rows of regions.csv, of one split or of all. InputError if they cannot be read."""
    file = Path(root, REGIONS)
    # One object for equal values: a third of the memory of hundreds of thousands of rows.
    shared: dict[str | int, str | int] = {}
    regions = []
    try:
        with open(file, newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                values = {
                    column: int(text) if column in NUMBERS else text for column, text in row.items()
                }
                if split in (None, values["split"]):
                    regions.append(
                        Region(**{key: shared.setdefault(v, v) for key, v in values.items()})
                    )
    except NOT_READABLE as error:
        raise _cannot_be_read(file, error) from None
    return regions


def load_test_b(root: str | Path, regions: Sequence[Region]) -> list[tuple[int, int, int]]:
    """The rows of test_b.csv: the region's place in `regions`, row, col.

    InputError if they cannot be read, or name other regions.
    """
    file = Path(root, TEST_B)
    number = {region.region: i for i, region in enumerate(regions)}
    try:
        with open(file, newline="", encoding="utf-8") as lines:
            return [
                (number[row["region"]], int(row["row"]), int(row["col"]))
                for row in csv.DictReader(lines)
            ]
    except NOT_READABLE as error:
        raise _cannot_be_read(file, error) from None


def _cannot_be_read(file: Path, error: Exception) -> InputError:
    return InputError(
        f"{printable(file)}: cannot be read ({printable(error)}); run preprocessing.py again"
    )


def label_type(classes: Sequence[str]) -> np.dtype:
    """Give the smallest type of labels: uint8 up to 256 classes.

    Larger labels of tens of millions of patches would be much of what a training run takes besides
    its network.
    """
    return np.min_scalar_type(len(classes) - 1)
