"""Patch sets that were edited by hand, or come from elsewhere: refused in one line, or read right.

Each edit leaves all else as preprocessing.py wrote it.
"""

import csv
import io
import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import METRES, SMALL, make_geotiffs, picture, write_geotiff
from PIL import Image

import preprocessing
import test_classification
from dl_slicer.cli import InputError
from dl_slicer.patch_sets import on_disk, reading
from relevance_cam import __main__ as relevance_cam

NAMES_OF_NOTHING = ("../../../X", "/elsewhere/X", "..", ".", "", "a\nb", "a\x1b[31m", "\ud800")
TOO_LONG = "x" * 201


@pytest.fixture
def copy(data, tmp_path):
    """A copy of the set of three cities."""
    return shutil.copytree(data, tmp_path / "set")


def refusal(folder):
    """What is said of a set; one line that names a file in it, or the set."""
    with pytest.raises(InputError) as caught:
        reading.open_split(folder, "test_b")
    said = str(caught.value)
    assert said.isprintable()
    assert str(folder) in said
    assert len(said) < 600
    return said


# ------------------------------------------------------------------------------- dataset.json


def edit_description(folder, **changes):
    file = folder / "dataset.json"
    description = json.loads(file.read_text(encoding="utf-8"))
    description.update(changes)
    file.write_text(json.dumps(description))


CITIES = ["Aa (AAA)", "Bb (BBB)", "Cc (CCC)"]
COUNTS = {
    "train": dict.fromkeys(CITIES, 162),
    "val": dict.fromkeys(CITIES, 36),
    "test": dict.fromkeys(CITIES, 36),
    "test_b": dict.fromkeys(CITIES, 20),
}
SIZES = [0, -48, "48", 48.0, None, True, [48], 10**20, float("inf"), float("nan")]
WRONG_VALUES = {
    "format": ["1", True, 1.0, None, 2, [1], {}, "x" * 1000],
    "patch_size": [*SIZES, 47],
    "stride": [*SIZES, 24.5, 7],
    "image_size": [*SIZES, 4097, 33],
    "classes": [
        None,
        CITIES[0],
        {},
        [],
        [1, 2, 3],
        [CITIES[0]] * 3,
        [[city] for city in CITIES],
        [*CITIES[:2], None],
    ],
    "raw": [None, 3, [], {}, "", "a\0b"],
    "counts": [
        3,
        [],
        {},
        "all",
        {**COUNTS, "test_b": 60},
        {**COUNTS, "test_b": {}},
        {**COUNTS, "test_b": dict.fromkeys(CITIES, 19)},
        {**COUNTS, "test_b": dict.fromkeys(CITIES, "20")},
        {**COUNTS, "test_b": dict.fromkeys(CITIES, -20)},
        {**COUNTS, "test_b": dict.fromkeys([*CITIES, "Dd (DDD)"], 20)},
        {**COUNTS, "other": dict.fromkeys(CITIES, 20)},
    ],
}


@pytest.mark.parametrize(
    "key, value", [(key, value) for key, values in WRONG_VALUES.items() for value in values]
)
def test_a_wrong_value_in_the_description_is_refused(copy, key, value):
    edit_description(copy, **{key: value})
    assert key in refusal(copy)


@pytest.mark.parametrize(
    "classes, said",
    [
        (CITIES[:2], "regions.csv has cities that dataset.json has not"),
        ([*CITIES, "Dd (DDD)"], "counts no patches of Dd (DDD) in test_b, its tables have 0"),
        (["Dd (DDD)", *CITIES[1:]], "regions.csv has cities"),
    ],
)
def test_other_classes_than_those_of_the_tables_are_refused(copy, classes, said):
    edit_description(copy, classes=classes)
    assert said in refusal(copy)


@pytest.mark.parametrize("sizes", [{"stride": 12}, {"image_size": 64}, {"patch_size": 96}])
def test_sizes_that_others_could_have_are_not_those_of_the_arrays(copy, sizes):
    edit_description(copy, **sizes)
    assert "has 9 rows and 4 cols" in refusal(copy) or "missing or not whole" in refusal(copy)


@pytest.mark.parametrize("key", ["format", "patch_size", "stride", "image_size", "classes", "raw"])
def test_a_description_without_a_key_is_refused(copy, key):
    file = copy / "dataset.json"
    description = json.loads(file.read_text())
    del description[key]
    file.write_text(json.dumps(description))
    assert "dataset.json: damaged" in refusal(copy)


@pytest.mark.parametrize("text", ["", "null", "3", "[" * 100_000, '{"format": 1}', "\ufeff{}"])
def test_what_is_no_description_is_refused(copy, text):
    (copy / "dataset.json").write_text(text, encoding="utf-8")
    assert "dataset.json: damaged" in refusal(copy)


def test_a_description_without_counts_is_taken(copy):
    edit_description(copy, counts=None)
    assert len(reading.open_split(copy, "test_b")) == 60


# ------------------------------------------------------------------------------- tables


def edit_table(file, change):
    """Change a table, a list of lists of fields, header and all."""
    with open(file, newline="", encoding="utf-8") as lines:
        rows = list(csv.reader(lines))
    change(rows)
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    file.write_bytes(text.getvalue().encode("utf-8", "surrogatepass"))


def put(column, value, test=lambda row: True):
    """Set a column of the first row that passes a test."""

    def change(rows):
        row = next(row for row in rows[1:] if test(row))
        row[rows[0].index(column)] = str(value)

    return change


def is_test(row):
    return row[1] == "test"


NUMBERS = [-1, "", "x", "1.0", "1e3", "+4", "0x4", "٤", 10**30, 2**31 + 1]
PATHS = [
    "../x.npy",
    "/etc/passwd",
    "Aa (AAA)/../../x",
    "Aa (AAA)//x",
    "Aa (AAA)/./x",
    "Aa (AAA)/a\nb",
    f"Aa (AAA)/{TOO_LONG}",
    "",
    ".",
]
WRONG_FIELDS = {
    "rows": [*NUMBERS, 0, 8, 10],
    "cols": [*NUMBERS, 0, 3, 5],
    "x": NUMBERS,
    "y": NUMBERS,
    "width": [*NUMBERS, 0, 47, 100, 240],
    "height": [*NUMBERS, 0, 47, 2**31],
    "split": ["", "tset", "Test", "test_b", "train", "val"],
    "city": [*NAMES_OF_NOTHING, TOO_LONG, "Zz (ZZZ)", "Bb (BBB)"],
    "site": [*NAMES_OF_NOTHING, TOO_LONG, "a/b"],
    "region": [*PATHS, "Zz (ZZZ)/site2/2020.test", "Aa (AAA)"],
    "raster": [*PATHS, "Zz (ZZZ)/site2/2020.png", "Aa (AAA)"],
    "file": [*PATHS, "arrays", "arrays/other.npy", "arrays/Bb (BBB)/site2/2020.test.npy"],
}


@pytest.mark.parametrize(
    "column, value",
    [(column, value) for column, values in WRONG_FIELDS.items() for value in values],
)
def test_a_wrong_field_of_a_region_is_refused(copy, column, value):
    edit_table(copy / "regions.csv", put(column, value, is_test))
    refusal(copy)


def drop(column):
    def change(rows):
        number = rows[0].index(column)
        for row in rows:
            del row[number]

    return change


def repeat_a_region(rows):
    rows.append(next(row for row in rows if is_test(row)))


def repeat_an_array(rows):
    """One city's array in two splits: of the same size, so that nothing else is wrong with it."""
    test = next(row for row in rows if is_test(row))
    val = next(row for row in rows if row[1] == "val")
    test[-1] = val[-1]


@pytest.mark.parametrize(
    "change",
    [
        *map(drop, on_disk.COLUMNS),
        repeat_a_region,
        repeat_an_array,
        lambda rows: rows[0].__setitem__(0, "raster"),  # a column twice
        lambda rows: rows[3].append("more"),
        lambda rows: rows[3].pop(),
        lambda rows: rows.__delitem__(slice(1, None)),
        lambda rows: rows.remove(next(row for row in rows if is_test(row))),
        lambda rows: rows.clear(),
    ],
)
def test_a_wrong_table_of_regions_is_refused(copy, change):
    edit_table(copy / "regions.csv", change)
    refusal(copy)


def exchange(column, splits=("test", "test")):
    """Exchange a column's fields of the first and the last region of these splits."""

    def change(rows):
        number = rows[0].index(column)
        first = next(row for row in rows[1:] if row[1] == splits[0])
        last = next(row for row in reversed(rows[1:]) if row[1] == splits[1])
        first[number], last[number] = last[number], first[number]

    return change


@pytest.mark.parametrize("column", ["region", "raster", "file"])
@pytest.mark.parametrize("splits", [("test", "test"), ("test", "val"), ("train", "train")])
def test_two_regions_with_exchanged_fields_are_refused(copy, column, splits):
    """Whatever is exchanged has the right size, and is a field of its own in the table."""
    edit_table(copy / "regions.csv", exchange(column, splits))
    refusal(copy)


def test_columns_may_follow(copy):
    def add(rows):
        for row in rows:
            row.append("new")

    edit_table(copy / "regions.csv", add)
    assert len(reading.open_split(copy, "test_b")) == 60


WRONG_DRAWS = {
    "row": [*NUMBERS, 9],
    "col": [*NUMBERS, 4, 5],
    "region": ["", "X/y.test", "Aa (AAA)/site2/2020.val", "Aa (AAA)/site0/2020.train", "\x1b"],
}


@pytest.mark.parametrize(
    "column, value", [(column, value) for column, values in WRONG_DRAWS.items() for value in values]
)
def test_a_wrong_field_of_a_drawn_patch_is_refused(copy, column, value):
    edit_table(copy / "test_b.csv", put(column, value))
    assert "test_b.csv: cannot be read (line 2: " in refusal(copy)


@pytest.mark.parametrize(
    "change",
    [
        *map(drop, ("region", "row", "col")),
        lambda rows: rows.append(rows[1]),
        lambda rows: rows.__setitem__(2, rows[1]),
        lambda rows: rows.pop(),
        lambda rows: rows.__delitem__(slice(1, None)),
        lambda rows: rows.clear(),
    ],
)
def test_a_wrong_table_of_drawn_patches_is_refused(copy, change):
    edit_table(copy / "test_b.csv", change)
    refusal(copy)


# ------------------------------------------------------------------------------- format 2


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    """A set of georeferenced rasters, stretched, with a window that has no data."""
    root = tmp_path_factory.mktemp("placed")
    raw = make_geotiffs(root / "raw", sites=2, size=(200, 120))
    pixels = np.asarray(picture(200, 120, seed=2)).clip(1)
    pixels[:48, :48] = 0
    write_geotiff(raw / "Aa (AAA)" / "site2" / "2020.tif", pixels, nodata=0)
    flags = ["--bands", "3", "2", "1", "--stretch", "auto", "--ground-resolution", str(METRES)]
    preprocessing.main(["--raw", str(raw), "--out", str(root / "set"), *SMALL, *flags])
    return root / "set"


@pytest.fixture
def placed_copy(placed, tmp_path):
    return shutil.copytree(placed, tmp_path / "set")


def test_a_set_of_georeferenced_rasters_is_read(placed):
    assert len(reading.open_split(placed, "test_b")) == 10
    (region,) = (each for each in reading.open_split(placed, "test").regions if each.without_data)
    assert region.without_data == "0-1 3-4"


WRONG_VIEWS = {
    "ground_resolution": ["4", 0, -1.0, True, [4], float("nan"), float("inf"), 5],
    "bands": ["3 2 1", 3, [], [3, 2], [3, 2, 0], [3, 2, "1"], [3, 2, 1.0], [1, 2, 3], None],
    "stretch": ["Auto", 3, [], [1], [2, 1], [1, 1], [0, "9"], [0, float("inf")], [0, 255], None],
    "crs": [3, "", "epsg:32611", "32611", "EPSG:", ["EPSG:32611"]],
    "max_nodata": ["0", None, -0.1, 1.5, True, float("nan")],
    "allow_overlap": [None, 0, 1, "true", []],
    "format": [0, 3, 2.0],
}


@pytest.mark.parametrize(
    "key, value", [(key, value) for key, values in WRONG_VIEWS.items() for value in values]
)
def test_a_wrong_view_is_refused(placed_copy, key, value):
    edit_description(placed_copy, **{key: value})
    said = refusal(placed_copy)
    assert key in said or (key == "ground_resolution" and "metres a pixel" in said)


@pytest.mark.parametrize("key", on_disk.KEYS_OF_FORMAT_2)
def test_a_view_without_a_key_is_refused(placed_copy, key):
    file = placed_copy / "dataset.json"
    description = json.loads(file.read_text())
    del description[key]
    file.write_text(json.dumps(description))
    assert f"a set of format 2 without {key}" in refusal(placed_copy)


PLACES = ["", "x", "nan", "inf", "1e400", "0x4", "1_000", " 4", "+4", "٤", "4" * 30]
WRONG_PLACES = {
    "crs": ["", "a\nb", "x" * 10_001],
    "left": PLACES,
    "top": PLACES,
    "metres_a_pixel": [*PLACES, 0, -4.0, 5],
    "bands": ["", "3 2", "3 2 1 4", "0 2 1", "03 2 1", "3  2 1", "3,2,1", "1 2 3", "99999999 2 1"],
    "stretch": ["", "5", "5 5", "9 3", "0 nan", "0 inf", "a b", "0 1 2"],
    "without_data": ["x", "-1", "1-", "3-1", "1 1", "01", "0-999999999", "0-11", "9999999999", " "],
}


@pytest.mark.parametrize(
    "column, value",
    [(column, value) for column, values in WRONG_PLACES.items() for value in values],
)
def test_a_wrong_place_of_a_region_is_refused(placed_copy, column, value):
    edit_table(placed_copy / "regions.csv", put(column, value, is_test))
    refusal(placed_copy)


def test_other_windows_without_data_are_not_those_that_were_counted(placed_copy):
    edit_table(placed_copy / "regions.csv", put("without_data", "0-1", is_test))
    with pytest.raises(InputError, match="counts 8 patches of Aa .* its tables have 10"):
        reading.open_split(placed_copy, "test")


@pytest.mark.parametrize("column", on_disk.PLACE)
def test_a_table_without_a_column_of_places_is_refused(placed_copy, column):
    edit_table(placed_copy / "regions.csv", drop(column))
    assert f"must have once each: {column}" in refusal(placed_copy)


# ------------------------------------------------------------------------------- arrays


def with_its_size(make):
    """An array's file made anew, filled up or cut to the size that it had."""

    def change(file):
        size = file.stat().st_size
        array = np.load(file)
        make(file, array)
        os.truncate(file, size)

    return change


def save(file, array):
    with open(file, "wb") as opened:
        np.save(opened, array)


def put_in_place(make):
    def change(file):
        file.unlink()
        make(file)

    return change


def in_place_of_folder(folder):
    shutil.rmtree(folder)
    folder.write_text("")


WRONG_ARRAYS = {
    "objects": with_its_size(lambda file, a: save(file, np.array([{}, a.tolist()], object))),
    "turned": with_its_size(lambda file, a: save(file, a.transpose(1, 0, 2).copy())),
    "another order": with_its_size(lambda file, a: save(file, np.asfortranarray(a))),
    "another type": with_its_size(lambda file, a: save(file, a.view(np.int8))),
    "grey": with_its_size(lambda file, a: save(file, a.reshape(a.shape[0], -1))),
    "no header": with_its_size(lambda file, a: file.write_bytes(a.tobytes())),
    "text": with_its_size(lambda file, a: file.write_text("no array")),
    "longer": lambda file: os.truncate(file, file.stat().st_size + 1),
    "empty": lambda file: os.truncate(file, 0),
    "a folder": put_in_place(os.mkdir),
    "a pipe": put_in_place(os.mkfifo),
    "a link to itself": put_in_place(lambda file: file.symlink_to(file)),
    "a folder that is a file": lambda file: in_place_of_folder(file.parent),
}


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_a_wrong_array_is_refused(copy, name):
    WRONG_ARRAYS[name](copy / "arrays" / "Bb (BBB)" / "site2" / "2020.test.npy")
    assert "2020.test.npy: missing or not whole; run" in refusal(copy)


# ------------------------------------------------------------------------------- names


def rename_city(folder, name):
    """The first city gets another name in all files."""
    edit_description(folder, classes=[name, *CITIES[1:]], counts=None)

    def change(rows):
        for row in rows[1:]:
            row[:] = [field.replace(CITIES[0], name) for field in row]

    for table in ("regions.csv", "test_b.csv"):
        edit_table(folder / table, change)


@pytest.mark.parametrize("name", [*NAMES_OF_NOTHING, TOO_LONG])
def test_a_city_is_one_name(copy, name):
    rename_city(copy, name)
    assert "dataset.json: class" in refusal(copy)


def test_a_city_of_the_longest_name_is_read(copy):
    rename_city(copy, "é" * 100)
    (copy / "arrays" / CITIES[0]).rename(copy / "arrays" / ("é" * 100))
    assert len(reading.open_split(copy, "test_b")) == 60


def test_commands_write_nothing_outside_their_folder(copy, finished, tmp_path):
    """A city of this name led from <out>/<city>/ to beside the set."""
    rename_city(copy, "../../../X")
    checkpoint = torch.load(finished / "best.pth", weights_only=True)
    torch.save({**checkpoint, "classes": ["../../../X", *CITIES[1:]]}, tmp_path / "evil.pth")
    out = tmp_path / "a" / "b" / "c" / "d"
    raster = copy.parent / "raster.png"
    Image.new("RGB", (60, 60)).save(raster)
    # What the checkpoint says is refused, and what the set says beside a checkpoint without names.
    torch.save(checkpoint["model"], tmp_path / "nameless.pth")
    calls = [
        (test_classification.main, "evil.pth", []),
        (test_classification.main, "evil.pth", ["--images", raster]),
        (test_classification.main, "nameless.pth", []),
        (relevance_cam.main, "evil.pth", ["--per-city", 1]),
        (relevance_cam.main, "evil.pth", ["--raster", raster]),
        (relevance_cam.main, "nameless.pth", ["--per-city", 1]),
    ]
    for main, file, more in calls:
        flags = ["--checkpoint", tmp_path / file, "--data", copy, "--out", out, *more]
        with pytest.raises(InputError, match=r"class \.\./\.\./\.\./X: must be a name without /"):
            main([str(flag) for flag in flags])
    assert not (tmp_path / "a").exists()
    assert not list(tmp_path.rglob("X*"))
