"""What a patch set is on disk: which files there are, what stands in them, how large they are.

No other module knows a file's name or a column's. The order in which files are written, and what
an interrupted run leaves, is the business of tiling and completing.
"""

import csv
import errno
import io
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np

from dl_slicer import cities
from dl_slicer.cli import InputError, printable

# As published: a patch is 200 m by 200 m, and overlaps the next one by half (--stride).
PATCH_SIZE = 480  # pixels of the raster
STRIDE = 240
IMAGE_SIZE = 224  # pixels that the network sees

LARGEST_IMAGE = 4096  # pixels of a side that a stored patch may have
LARGEST_NUMBER = 2**31  # of pixels or windows: products of two still fit into 64 bits

FORMAT = 1
SPLITS = ("train", "val", "test", "test_b")

DESCRIPTION = "dataset.json"  # written last: a set without it is not finished
REGIONS = "regions.csv"
TEST_B = "test_b.csv"
ARRAYS = "arrays"  # the folder of arrays and of records, which lie as the rasters do in theirs

ARRAY_HEADER = 128  # bytes that NumPy's header of a three-dimensional array takes

TABLES = (DESCRIPTION, REGIONS, TEST_B)  # the files that speak of all rasters

NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
NOT_READABLE = (KeyError, TypeError, ValueError, csv.Error)  # what a damaged table raises


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

Parsed = TypeVar("Parsed")
Window = tuple[Region, int, int]  # a patch: its region, row and column


@dataclass(frozen=True)
class Description:
    """What dataset.json says, as far as readers need it, and checked."""

    patch_size: int  # pixels of the raster
    stride: int
    image_size: int  # pixels of a stored patch
    classes: list[str]  # names of the cities
    raw: str  # path of the raw folder, relative to the patch set
    counts: dict[str, dict[str, int]] | None  # patches of each split and city, where it says so

    @property
    def settings(self) -> dict[str, int]:
        """What all rasters have been tiled with."""
        return make_settings(self.patch_size, self.stride, self.image_size)


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
    return f"{os.path.splitext(raster)[0]}.{split}"


def array_file(region: str) -> str:
    """Path of the array of a region by its name, relative to the patch set."""
    return f"{ARRAYS}/{region}.npy"


def is_array_name(name: str) -> bool:
    """Whether a file is called as arrays are."""
    return name.endswith(tuple(f".{split}.npy" for split in SPLITS))


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
    name = jpeg_name(flat_name(region.city, region.raster), row, col)
    return f"{out}/{split}/{region.city}/{name}"


def jpeg_name(raster: str, row: int, col: int) -> str:
    """Name of a patch as a JPEG; raster: its flat_name."""
    return f"{raster}_{window_name(row, col)}.jpg"


def jpeg_folders(region: Region) -> list[str]:
    """The folders, relative to the patch set, in which patches of a region can lie as JPEGs."""
    splits = ("test", "test_b") if region.split == "test" else (region.split,)
    return [f"{split}/{region.city}" for split in splits]


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


def is_array(file: str | Path, rows: int, cols: int, settings: Mapping[str, Any]) -> bool:
    """Whether a file is what write_array makes of the array that so many windows cover.

    By its size and its header: with another one it is read as other pixels. OSError if it may not
    be read.
    """
    try:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_size != array_bytes(rows, cols, settings):
            return False
        with open(file, "rb", buffering=0) as opened:
            return opened.read(ARRAY_HEADER) == _array_header(*array_shape(rows, cols, settings))
    except OSError as error:
        if error.errno in NOT_THERE:
            return False
        raise


@lru_cache(maxsize=64)
def _array_header(height: int, width: int) -> bytes:
    header = io.BytesIO()
    content = {"descr": "|u1", "fortran_order": False, "shape": (height, width, 3)}
    np.lib.format.write_array_header_1_0(header, content)
    return header.getvalue()


def write_array(file: IO[bytes], array: np.ndarray) -> None:
    """Write an array as np.save does.

    np.save says "400 requested and 200 written" where the disk is full, without saying that it is.
    """
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(np.ascontiguousarray(array))


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


def load_description(root: str | Path) -> Description:
    """dataset.json. InputError if it is damaged, edited to what cannot be, or of another format."""
    file = Path(root, DESCRIPTION)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        its_format = content["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _damaged(file, "no description of a set") from None
    if type(its_format) is not int or its_format != FORMAT:
        raise InputError(
            f"{printable(file)}: patch set of format {printable(str(its_format)[:40])}, this"
            f" version has {FORMAT}; delete the set and make it anew with preprocessing.py"
        )
    wrong = [key for key, is_right in _check_description(content).items() if not is_right]
    if wrong:
        raise _damaged(file, f"its {', '.join(wrong)} cannot be right")
    for city in content["classes"]:
        cities.check_name(city, f"{printable(file)}: class")
    if content["image_size"] * content["stride"] % content["patch_size"]:
        raise _damaged(file, "its image_size * stride / patch_size is no whole number")
    keys = ("patch_size", "stride", "image_size", "classes", "raw")
    return Description(**{key: content[key] for key in keys}, counts=content.get("counts"))


def _check_description(content: Mapping[str, Any]) -> dict[str, bool]:
    """{key: whether its value can be right}."""
    raw = content.get("raw")
    counts = content.get("counts")
    return {
        "patch_size": is_whole_number(content.get("patch_size")),
        "stride": is_whole_number(content.get("stride")),
        "image_size": is_whole_number(content.get("image_size"), most=LARGEST_IMAGE),
        "classes": are_names(content.get("classes")),
        "raw": type(raw) is str and raw != "" and "\0" not in raw,
        "counts": counts is None or _are_counts(counts),
    }


def is_whole_number(value: object, least: int = 1, most: int = LARGEST_NUMBER) -> bool:
    """Whether a value from a file is a whole number within bounds; True and 1.0 are none."""
    return type(value) is int and least <= value <= most


def are_names(value: object) -> bool:
    """Whether a value from a file is a list of names, each once, and at least one."""
    if not isinstance(value, list) or not all(type(name) is str for name in value):
        return False
    return 0 < len(set(value)) == len(value)


def _are_counts(value: object) -> bool:
    """Whether this has numbers by the names of cities for each split."""
    if not isinstance(value, dict) or value.keys() != set(SPLITS):
        return False
    return all(
        isinstance(of_city, dict)
        and all(is_whole_number(count, 0, LARGEST_NUMBER**2) for count in of_city.values())
        for of_city in value.values()
    )


def _damaged(file: Path, why: str) -> InputError:
    return InputError(
        f"{printable(file)}: damaged, or not written by preprocessing.py ({why}); move it away"
        " and run preprocessing.py again as before, with the same --seed and --test-b, it makes"
        " this file alone anew"
    )


def load_regions(root: str | Path, split: str | None = None) -> list[Region]:
    """The rows of regions.csv, of one split or of all. InputError if they cannot be right."""
    file = Path(root, REGIONS)
    where = printable(file)
    # One object for equal values: a third of the memory of hundreds of thousands of rows.
    shared: dict[str | int, str | int] = {}
    arrays = set()  # of all splits: no array may be in two of them
    names = set()

    def keep(row: Mapping[str, str]) -> Region | None:
        region = _region_of(row, where)
        if region.file in arrays or region.region in names:
            raise ValueError("a region or its file stands above")
        arrays.add(region.file)
        if split not in (None, region.split):
            return None
        names.add(region.region)
        return Region._make(shared.setdefault(value, value) for value in region)

    rows = _read_table(file, Region._fields, keep)
    return [region for region in rows if region is not None]


def _region_of(row: Mapping[str, str], where: str) -> Region:
    """A row of regions.csv. ValueError or InputError if it contradicts itself or leads outside.

    where: the file, for what is said.
    """
    values = {
        column: _whole_number(row, column) if column in NUMBERS else row[column]
        for column in Region._fields
    }
    region = Region(**values)
    if region.split not in ("train", "val", "test"):
        raise ValueError(f"no split is called {printable(region.split[:40])}")
    cities.check_name(region.city, f"{where}: city")
    cities.check_name(region.site, f"{where}: site")
    cities.check_path(region.raster, f"{where}: raster")
    if not region.raster.startswith(f"{region.city}/"):
        raise ValueError("its raster is none of its city")
    # Exchanged names would show one city's patches as another's.
    if region.region != region_name(region.raster, region.split):
        raise ValueError("its region is not called after its raster and split")
    if region.file != array_file(region.region):
        raise ValueError("its file is not called after its region")
    return region


def fault_of_region(region: Region, settings: Mapping[str, Any]) -> str | None:
    """Say why a region cannot have been tiled with these settings; or None."""
    rows = count_windows(region.height, settings["patch_size"], settings["stride"])
    cols = count_windows(region.width, settings["patch_size"], settings["stride"])
    if rows * cols == 0 or (region.rows, region.cols) != (rows, cols):
        return (
            f"has {region.rows} rows and {region.cols} cols, but {rows} and {cols} windows fit"
            f" into its {region.height} x {region.width} pixels"
        )
    return None


def load_test_b(root: str | Path, regions: Sequence[Region]) -> list[tuple[int, int, int]]:
    """The rows of test_b.csv: the region's place in `regions`, row, col.

    InputError if they cannot be read, or name a patch twice or one that the regions have not.
    """
    number = {region.region: i for i, region in enumerate(regions)}
    drawn = set()

    def locate(row: Mapping[str, str]) -> tuple[int, int, int]:
        if row["region"] not in number:
            raise ValueError(f"{REGIONS} has no region {printable(row['region'][:200])} in test")
        place = number[row["region"]]
        patch = (place, _whole_number(row, "row"), _whole_number(row, "col"))
        region = regions[place]
        if patch[1] >= region.rows or patch[2] >= region.cols:
            raise ValueError(f"its region has {region.rows} rows and {region.cols} cols")
        if patch in drawn:
            raise ValueError("a patch that stands above")
        drawn.add(patch)
        return patch

    return list(_read_table(Path(root, TEST_B), ("region", "row", "col"), locate))


def _read_table(
    file: Path, columns: Sequence[str], parse: Callable[[Mapping[str, str]], Parsed]
) -> Iterator[Parsed]:
    """What parse makes of each row, {column: text}; its ValueErrors get the number of the line.

    Other columns may follow. InputError if the file is not there or damaged, OSError if the system
    refuses it.
    """
    try:
        with open(file, newline="", encoding="utf-8") as lines:
            rows = csv.DictReader(lines, strict=True)
            header = rows.fieldnames or ()
            missing = [column for column in columns if header.count(column) != 1]
            if missing:
                raise ValueError(f"its header must have once each: {', '.join(missing)}")
            for row in rows:
                try:
                    if None in row or None in row.values():
                        raise ValueError("it has more or fewer fields than the header")
                    yield parse(row)
                except ValueError as error:
                    raise ValueError(f"line {rows.line_num}: {error}") from None
    except (FileNotFoundError, *NOT_READABLE) as error:
        raise _cannot_be_read(file, error) from None


def _whole_number(row: Mapping[str, str], column: str) -> int:
    text = row[column]
    if not (text.isascii() and text.isdigit() and int(text[:11]) <= LARGEST_NUMBER):
        raise ValueError(f"its {column} is no whole number from 0 on: {printable(text[:40])}")
    return int(text)


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
