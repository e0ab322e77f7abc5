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
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np

from dl_slicer import cities
from dl_slicer.cli import InputError, printable
from dl_slicer.patch_sets import gaps
from dl_slicer.patch_sets.rasters import View

# As published: a patch is 200 m by 200 m, and overlaps the next one by half (--stride).
PATCH_METRES = 200
PATCH_SIZE = 480  # pixels of the raster
STRIDE = 240
IMAGE_SIZE = 224  # pixels that the network sees

LARGEST_IMAGE = 4096  # pixels of a side that a stored patch may have
LARGEST_NUMBER = 2**31  # of pixels or windows: products of two still fit into 64 bits

# What patch sets of the two formats say: the second also where patches lie on the ground, how
# values became grey levels, and which windows have no data.
FORMATS = (1, 2)
AS_THEY_ARE = View()
MAX_NODATA = 0.05  # of a window's pixels that may be without data
LARGEST_BAND = 65535  # that a raster can have
SYSTEM = re.compile(r"EPSG:[0-9]{1,9}", re.ASCII)  # a coordinate system by its code
KEYS_OF_FORMAT_2 = ("ground_resolution", "bands", "stretch", "crs", "max_nodata", "allow_overlap")
LONGEST_SYSTEM = 10_000  # letters that the WKT of a coordinate system may have

SPLITS = ("train", "val", "test", "test_b")
# All patches of each city's held-out site: test, and of val what is of the same site.
HELD_OUT = "held-out"
READABLE = (*SPLITS, HELD_OUT)

# Where val comes from: the right half of the held-out rasters, or another held-out site.
VALS = ("half", "site")
USUAL_SPLIT = {"held_out": 1, "val": "half"}  # as published; sets of before do not say it

DESCRIPTION = "dataset.json"  # written last: a set without it is not finished
REGIONS = "regions.csv"
TEST_B = "test_b.csv"
SITES = "sites.csv"  # sites that were found by place
MOSAICS = "mosaics"  # the folder of what joins tiles, which lies as the rasters do in theirs
FOOTPRINTS = "footprints.json"  # where rasters lie: made anew where it is missing
ARRAYS = "arrays"  # the folder of arrays and of records, which lie as the rasters do in theirs

ARRAY_HEADER = 128  # bytes that NumPy's header of a three-dimensional array takes

TABLES = (DESCRIPTION, REGIONS, TEST_B, SITES, FOOTPRINTS)  # the files that speak of all rasters

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
    # In format 2. What is not known is empty or None.
    crs: str = ""  # the raster's coordinate system, "EPSG:32611" or WKT
    left: float | None = None  # in it, the upper-left corner of the raster as it was seen
    top: float | None = None
    metres_a_pixel: float | None = None
    bands: str = ""  # "4 1 2" where they were chosen
    stretch: str = ""  # "low high": the range of values that became 0 to 255
    without_data: str = ""  # "0-18 37": numbers of windows that are left out, row by row from 0


COLUMNS = Region._fields[: Region._fields.index("crs")]  # of format 1
PLACE = Region._fields[len(COLUMNS) :]  # what format 2 has besides
NUMBERS = frozenset(("x", "y", "width", "height", "rows", "cols"))  # the columns of whole numbers
NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?(e[+-]?[0-9]{1,3})?", re.ASCII)  # as repr's
FLOATS = frozenset(("left", "top", "metres_a_pixel"))  # of numbers that may be missing

Parsed = TypeVar("Parsed")
Window = tuple[Region, int, int]  # a patch: its region, row and column
Indices = Sequence[int] | np.ndarray  # the numbers of patches in their split


class Part(NamedTuple):
    """Patches of a split, one after the other, with the files that hold their pixels alone."""

    patches: range
    files: Sequence[Path]
    layout: str  # what besides the bytes of the files decides what the patches are


@dataclass(frozen=True)
class Description:
    """What dataset.json says, as far as readers need it, and checked."""

    patch_size: int  # pixels of the raster
    stride: int
    image_size: int  # pixels of a stored patch
    classes: list[str]  # names of the cities
    raw: str  # path of the raw folder, relative to the patch set
    counts: dict[str, dict[str, int]] | None  # patches of each split and city, where it says so
    format: int = 1
    view: View = AS_THEY_ARE  # how rasters were seen
    max_nodata: float = MAX_NODATA
    allow_overlap: bool = False  # whether rasters of two splits show the same ground
    # {city: metres} from its held-out site to its nearest train raster, where both are known.
    held_out_distance: Mapping[str, float] = field(default_factory=dict)
    held_out: int = 1  # which site of each city is held out, counted from the last one
    val: str = "half"  # one of VALS

    @property
    def settings(self) -> dict[str, Any]:
        """What all rasters have been tiled with."""
        sizes = (self.patch_size, self.stride, self.image_size)
        return make_settings(
            *sizes, self.view, self.max_nodata, held_out=self.held_out, val=self.val
        )


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


def make_settings(
    patch_size: int,
    stride: int,
    image_size: int,
    view: View = AS_THEY_ARE,
    max_nodata: float = MAX_NODATA,
    held_out: int = 1,
    val: str = "half",
) -> dict[str, Any]:
    """Give what all rasters of a set must have been tiled with, as its files say it.

    What came with format 2 is only there where it is not as in sets without it: settings_of_view
    gives it all. So are held_out and val, which any format may have. InputError if the three sizes
    do not go together.
    """
    scaled_stride(patch_size, stride, image_size)
    usual = settings_of_view(AS_THEY_ARE, MAX_NODATA)
    chosen = settings_of_view(view, max_nodata)
    more = {key: value for key, value in chosen.items() if value != usual[key]}
    split = {"held_out": held_out, "val": val}
    of_split = {key: value for key, value in split.items() if value != USUAL_SPLIT[key]}
    return {
        "format": 2 if more else 1,
        "patch_size": patch_size,
        "stride": stride,
        "image_size": image_size,
        **more,
        **of_split,
    }


def settings_of_view(view: View, max_nodata: float) -> dict[str, Any]:
    """Give how rasters are seen, by the keys of dataset.json and in its types."""
    return {
        "ground_resolution": view.ground_resolution,
        "bands": None if view.bands is None else list(view.bands),
        "stretch": list(view.stretch) if isinstance(view.stretch, tuple) else view.stretch,
        "crs": view.crs,
        "max_nodata": max_nodata,
    }


def view_of(settings: Mapping[str, Any]) -> View:
    """Give the view of settings: of make_settings, or all of dataset.json."""
    bands = settings.get("bands")
    stretch = settings.get("stretch")
    return View(
        ground_resolution=settings.get("ground_resolution"),
        bands=None if bands is None else tuple(bands),
        stretch=tuple(stretch) if isinstance(stretch, list) else stretch,
        crs=settings.get("crs"),
    )


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
    """(region, row, col) of every patch, row by row; windows without data are none."""
    for region in regions:
        left_out = set(gaps.parse(region.without_data).tolist())
        for number in range(region.rows * region.cols):
            if number not in left_out:
                yield region, *divmod(number, region.cols)


def count_patches(region: Region) -> int:
    """How many patches a region has: its windows but for those without data."""
    return region.rows * region.cols - gaps.count_in(region.without_data)


def windows_with_data(region: Region) -> np.ndarray:
    """The numbers of a region's patches among its windows, int64 (n,)."""
    every = np.arange(region.rows * region.cols)
    return np.delete(every, gaps.parse(region.without_data))


def is_patch(region: Region, row: int, col: int) -> bool:
    """Whether a region has this window, with data."""
    if row >= region.rows or col >= region.cols:
        return False
    number = row * region.cols + col
    return not region.without_data or number not in gaps.parse(region.without_data)


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


def raster_path(out: str | Path, raw: str | Path, raster: str) -> Path:
    """Path of a raster's file: in the raw folder, of joined tiles in the patch set."""
    joined = Path(out, MOSAICS, raster)
    # GDAL takes the .. of what joins tiles without regard for symbolic links.
    return Path(os.path.realpath(joined)) if joined.is_file() else Path(raw, raster)


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
    """Write an array uint8 (height, width, 3) as np.save does.

    np.save says "400 requested and 200 written" where the disk is full, without saying that it is.
    """
    write_strips(file, array.shape[:2], [array])


def write_strips(file: IO[bytes], shape: tuple[int, int], strips: Iterable[np.ndarray]) -> None:
    """Write an array of a shape (height, width) of which there are strips, from above."""
    file.write(_array_header(*shape))
    for strip in strips:
        file.write(np.ascontiguousarray(strip))


def text_of_regions(regions: Iterable[Region], its_format: int = 1) -> str:
    """Give the content of regions.csv."""
    columns = Region._fields if its_format == 2 else COLUMNS
    return _as_csv(columns, (region[: len(columns)] for region in regions))


def fields_of(region: Region) -> list[Any]:
    """Give a region's fields as records keep them: those of format 1 if the rest is empty."""
    has_place = any(region[len(COLUMNS) :])
    return list(region if has_place else region[: len(COLUMNS)])


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
    if type(its_format) is not int or its_format not in FORMATS:
        raise InputError(
            f"{printable(file)}: patch set of format {printable(str(its_format)[:40])}, this"
            f" version has {' and '.join(map(str, FORMATS))};"
            " delete the set and make it anew with preprocessing.py"
        )
    checked = _check_description(content)
    if its_format == 2:
        missing = [key for key in KEYS_OF_FORMAT_2 if key not in content]
        if missing:
            raise _damaged(file, f"a set of format 2 without {', '.join(missing)}")
        checked |= _check_view(content)
    wrong = [key for key, is_right in checked.items() if not is_right]
    if wrong:
        raise _damaged(file, f"its {', '.join(wrong)} cannot be right")
    for city in content["classes"]:
        cities.check_name(city, f"{printable(file)}: class")
    if content["image_size"] * content["stride"] % content["patch_size"]:
        raise _damaged(file, "its image_size * stride / patch_size is no whole number")
    keys = ["format", "patch_size", "stride", "image_size", "classes", "raw"]
    view = AS_THEY_ARE
    if its_format == 2:
        keys += ["max_nodata", "allow_overlap"]
        view = view_of(content)
    found = {key: content[key] for key in keys}
    found["held_out_distance"] = content.get("held_out_distance", {})
    found |= {key: content.get(key, usual) for key, usual in USUAL_SPLIT.items()}
    return Description(**found, counts=content.get("counts"), view=view)


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
        "held_out_distance": _are_distances(content.get("held_out_distance", {})),
        "held_out": is_whole_number(content.get("held_out", 1)),
        "val": content.get("val", "half") in VALS,
    }


def _check_view(content: Mapping[str, Any]) -> dict[str, bool]:
    """{key: whether its value can be right}, of what format 2 has besides."""
    crs = content["crs"]
    return {
        "ground_resolution": content["ground_resolution"] is None
        or is_number(content["ground_resolution"], above=0),
        "bands": content["bands"] is None or are_bands(content["bands"]),
        "stretch": content["stretch"] is None or is_stretch(content["stretch"]),
        "crs": crs is None or (type(crs) is str and SYSTEM.fullmatch(crs) is not None),
        "max_nodata": is_share(content["max_nodata"]),
        "allow_overlap": type(content["allow_overlap"]) is bool,
    }


def is_number(value: object, above: float = -math.inf) -> bool:
    """Whether a value from a file is a finite number above another one; True is none."""
    return type(value) in (int, float) and math.isfinite(value) and value > above


def is_share(value: object) -> bool:
    """Whether a value from a file is a number from 0 to 1."""
    return is_number(value) and 0 <= value <= 1


def are_bands(value: object) -> bool:
    """Whether a value from a file is a list of the numbers of three bands or of one."""
    if not isinstance(value, list) or len(value) not in (1, 3):
        return False
    return all(is_whole_number(band, most=LARGEST_BAND) for band in value)


def is_stretch(value: object) -> bool:
    """Whether a value from a file is "auto", or a list of two numbers in ascending order."""
    if value == "auto":
        return True
    if not isinstance(value, list) or len(value) != 2 or not all(map(is_number, value)):
        return False
    return value[0] < value[1]


def is_whole_number(value: object, least: int = 1, most: int = LARGEST_NUMBER) -> bool:
    """Whether a value from a file is a whole number within bounds; True and 1.0 are none."""
    return type(value) is int and least <= value <= most


def are_names(value: object) -> bool:
    """Whether a value from a file is a list of names, each once, and at least one."""
    if not isinstance(value, list) or not all(type(name) is str for name in value):
        return False
    return 0 < len(set(value)) == len(value)


def _are_distances(value: object) -> bool:
    """Whether this has metres by the names of cities."""
    return isinstance(value, dict) and all(
        is_number(metres) and metres >= 0 for metres in value.values()
    )


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


def load_regions(
    root: str | Path, split: str | None = None, its_format: int | None = None
) -> list[Region]:
    """The rows of regions.csv, of one split or of all. InputError if they cannot be right.

    its_format: of the set; None takes the table's word for it.
    """
    file = Path(root, REGIONS)
    where = printable(file)
    # One object for equal values: a third of the memory of hundreds of thousands of rows.
    shared: dict[tuple[type, Any], Any] = {}
    arrays = set()  # of all splits: no array may be in two of them
    names = set()

    def keep(row: Mapping[str, str]) -> Region | None:
        region = _region_of(row, where, its_format)
        if region.file in arrays or region.region in names:
            raise ValueError("a region or its file stands above")
        arrays.add(region.file)
        if split not in (None, region.split):
            return None
        names.add(region.region)
        return Region._make(shared.setdefault((type(value), value), value) for value in region)

    columns = Region._fields if its_format == 2 else COLUMNS
    return [region for region in _read_table(file, columns, keep) if region is not None]


def _region_of(row: Mapping[str, str], where: str, its_format: int | None) -> Region:
    """A row of regions.csv. ValueError or InputError if it contradicts itself or leads outside.

    where: the file, for what is said.
    """
    values: dict[str, Any] = {
        column: _whole_number(row, column) if column in NUMBERS else row[column]
        for column in COLUMNS
    }
    if its_format == 2 or (its_format is None and row.keys() >= set(PLACE)):
        values |= {
            column: _optional_number(row, column) if column in FLOATS else row[column]
            for column in PLACE
        }
    region = Region(**values)
    _check_place(region)
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


def _check_place(region: Region) -> None:
    """ValueError if what format 2 says of a region cannot be right."""
    if len(region.crs) > LONGEST_SYSTEM or not region.crs.isprintable():
        raise ValueError("its crs is no coordinate system")
    if (region.left is None) is not (region.top is None) or bool(region.crs) is (
        region.left is None
    ):
        raise ValueError("its crs, left and top are not given together")
    if region.metres_a_pixel is not None and region.metres_a_pixel <= 0:
        raise ValueError("its metres_a_pixel is not above 0")
    if region.bands and not are_bands([_band(text) for text in region.bands.split(" ")]):
        raise ValueError(f"its bands are none: {printable(region.bands[:40])}")
    if region.stretch and stretch_of(region) is None:
        raise ValueError(f"its stretch is no range: {printable(region.stretch[:80])}")
    try:
        last = gaps.last_in(region.without_data)
    except ValueError as error:
        raise ValueError(f"its without_data is wrong: {error}") from None
    if last >= region.rows * region.cols:
        raise ValueError("its without_data names windows that it has not")
    if region.without_data and count_patches(region) == 0:
        raise ValueError("its without_data leaves no window")


def _band(text: str) -> int:
    return int(text) if re.fullmatch(r"[1-9][0-9]{0,4}", text, re.ASCII) else 0


def stretch_of(region: Region) -> tuple[float, float] | None:
    """The range of values that became 0 to 255; None if there is none."""
    try:
        low, high = map(float, region.stretch.split(" "))
    except ValueError:
        return None
    return (low, high) if is_stretch([low, high]) else None


def fault_of_region(region: Region, settings: Mapping[str, Any]) -> str | None:
    """Say why a region cannot have been tiled with these settings; or None."""
    rows = count_windows(region.height, settings["patch_size"], settings["stride"])
    cols = count_windows(region.width, settings["patch_size"], settings["stride"])
    if rows * cols == 0 or (region.rows, region.cols) != (rows, cols):
        return (
            f"has {region.rows} rows and {region.cols} cols, but {rows} and {cols} windows fit"
            f" into its {region.height} x {region.width} pixels"
        )
    view = view_of(settings)
    resolution = view.ground_resolution
    if resolution is not None and region.metres_a_pixel != resolution:
        return f"has {region.metres_a_pixel} metres a pixel, and not the {resolution} of its set"
    if region.bands != " ".join(map(str, view.bands or ())):
        return f"has bands {region.bands or 'as they are'}, and not those of its set"
    stretch = stretch_of(region)
    if (stretch is None) is not (view.stretch is None) or view.stretch not in ("auto", stretch):
        return f"has a stretch {region.stretch or 'of none'}, and not that of its set"
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
        if not is_patch(region, *patch[1:]):
            raise ValueError("a window without data")
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


def _optional_number(row: Mapping[str, str], column: str) -> float | None:
    text = row[column]
    if text == "":
        return None
    if not NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise ValueError(f"its {column} is no number: {printable(text[:40])}")
    return float(text)


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
