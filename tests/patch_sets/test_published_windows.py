"""What names and pictures of numbered patches tell: rasters, columns, and where they contradict."""

import random
import shutil
import threading

import numpy as np
import pytest
from conftest import picture
from PIL import Image
from published_layout import copy_to_test_b, windows_of, write_published

import test_classification
from dl_slicer.patch_sets import overlapping_pictures, published_names, reading
from dl_slicer.patch_sets.published_names import read_name

CITY = "Aa (AAA)"


@pytest.mark.parametrize(
    "name, split, said",
    [
        ("a_7.jpg", "train", ("a", (7,))),
        ("a_half1_7.jpg", "test", ("a", (7,))),
        ("a_half1_7.jpg", "test_b", ("a", (7,))),
        ("a_half2_7.jpg", "val", ("a", (7,))),
        ("a_half1_7.jpg", "train", ("a_half1", (7,))),
        ("a_half1_half1_7.jpg", "test", ("a_half1", (7,))),
        ("a_half2_half1_7.jpg", "test", ("a_half2", (7,))),
        ("a_1_2_half2_0.jpg", "val", ("a_1_2", (0,))),
        ("a_1_2_360.JPG", "train", ("a_1_2", (360,))),
        ("site__a.b_r01_c12.jpg", "val", ("site__a.b", (1, 12))),
        ("a_r01_c12_half1_3.jpg", "test", ("a_r01_c12", (3,))),
        # what fits neither
        ("a_7.jpg", "test", None),
        ("a_half2_7.jpg", "test", None),
        ("a_half1_7.jpg", "val", None),
        ("_half1_7.jpg", "test", None),
        ("_7.jpg", "train", None),
        ("IMG_0007.jpg", "train", None),
        ("a-7.jpg", "train", None),
        ("7.jpg", "train", None),
        ("a_half1_1234567890.jpg", "test", None),
        ("a_half1_٧.jpg", "test", None),
    ],
)
def test_names(name, split, said):
    assert read_name(name, split) == said


def test_names_are_sorted_as_a_patch_set_has_them():
    theirs = [f"{raster}_half1_{n}.jpg" for raster in ("a", "a_1", "a_half1") for n in (0, 2, 10)]
    ours = [f"{site}__a_r{n:02d}_c00.jpg" for site in ("s", "s__t", "sA") for n in (0, 2, 100)]
    others = ["b-1.jpg", "b.jpg"]
    for names in (theirs, ours, others):
        assert published_names.sort_names(sorted(names, key=hash), "test") == names


def folder_of(tmp_path, rasters, patch_size=48, stride=24, **options):
    """A folder in the published layout. rasters: {site/name: image}; the last site is held out.

    A second city is there, too.
    """
    for path, image in rasters.items():
        file = tmp_path / "raw" / CITY / f"{path}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    other = tmp_path / "raw" / "Bb (BBB)" / "site1"
    other.mkdir(parents=True)
    picture(150, 60, seed=5).save(other / "b.png")
    return write_published(tmp_path / "raw", tmp_path / "folder", patch_size, stride, **options)


def shape(rows, cols, stride=24, patch_size=48):
    """(width, height) of so many windows."""
    return patch_size + stride * (cols - 1), patch_size + stride * (rows - 1)


def half_of(rows, cols, seed=0, **sizes):
    """A held-out raster whose halves have so many windows."""
    width, height = shape(rows, cols, **sizes)
    return picture(2 * width, height, seed)


def located(folder, split):
    """{name: (row, col)} of the first city's patches; and the patches."""
    patches = reading.open_split(folder, split, 28)
    places = {}
    for index in np.flatnonzero(patches.labels == 0):
        found = patches.locate(int(index))
        places[patches.name(int(index))] = found and found[1:]
    return places, patches


def assert_located(written, places, expected=None):
    assert places == {name: (expected or {}).get(name, written[name][1:]) for name in places}


@pytest.mark.parametrize(
    "rows, cols", [(19, 9), (9, 19), (1, 12), (12, 1), (2, 2), (7, 11), (1, 1)]
)
def test_rows_and_columns_come_from_the_pictures(tmp_path, rows, cols):
    whole = picture(*shape(rows, cols), seed=3)
    written = folder_of(tmp_path, {"site1/a": whole, "site2/a": half_of(rows, cols)})
    for split in ("train", "val", "test"):
        places, patches = located(tmp_path / "folder", split)
        assert len(places) == rows * cols
        assert_located(written, places)
        region = patches.locate(0)[0]
        assert (region.rows, region.cols) == (rows, cols)
        assert region.region == f"{CITY}/a.{split}"
        if rows * cols > 1:
            assert patches.find_sizes() == (48, 24)


def test_several_rasters_of_eight_columns(tmp_path):
    """Pairs that are drawn for the stride must not all be the last and the first of two rows."""
    wholes = {f"site1/{k}": picture(*shape(6, 8), seed=k) for k in range(4)}
    written = folder_of(tmp_path, {**wholes, "site2/a": half_of(3, 3)})
    places, _ = located(tmp_path / "folder", "train")
    assert len(places) == 4 * 48
    assert_located(written, places)


@pytest.mark.parametrize("rows, cols", [(19, 9), (9, 19)])
def test_test_b_alone(tmp_path, rows, cols):
    written = folder_of(tmp_path, {"site2/a": half_of(rows, cols)})
    folder = tmp_path / "folder"
    test = sorted(path.name for path in (folder / "test" / CITY).iterdir())
    shutil.move(folder / "test", tmp_path / "test")
    shutil.rmtree(folder / "val")
    random.Random(0).shuffle(test)
    for count in (171, 70, 25):
        for name in test[count:]:
            (folder / "test_b" / CITY / name).unlink(missing_ok=True)
        places, patches = located(folder, "test_b")
        assert len(places) == count
        assert_located(written, places)
        assert not patches.describe_unplaced()


def keep_test_b(tmp_path, written, numbers):
    names = [f"a_half1_{number}.jpg" for number in numbers]
    copy_to_test_b(tmp_path / "folder", written, CITY, names)


def test_too_few_neighbours_are_said_or_the_other_half_tells(tmp_path, capsys):
    written = folder_of(tmp_path, {"site2/a": half_of(10, 9)})
    # none of them overlaps another
    keep_test_b(tmp_path, written, [0, 2, 24, 60, 80])
    folder = tmp_path / "folder"
    places, patches = located(folder, "test_b")  # by test
    assert_located(written, places)
    shutil.move(folder / "test", tmp_path / "test")
    places, patches = located(folder, "test_b")  # by val, whose half is as wide
    assert_located(written, places)
    shutil.rmtree(folder / "val")
    places, patches = located(folder, "test_b")
    assert set(places.values()) == {None}
    assert patches.describe_unplaced() == (
        f"of 1 of 2 rasters the patches do not tell which of them overlap; the first is {CITY}/a"
    )
    assert not patches.doubts()
    test_classification.say_doubts(patches)
    assert capsys.readouterr().out.startswith("portraits: of 1 of 2 rasters the patches do not")
    keep = folder / "test_b" / CITY
    for path in list(keep.iterdir())[1:]:
        path.unlink()
    assert not located(folder, "test_b")[1].describe_unplaced()  # one patch overlaps no other


@pytest.mark.parametrize("numbers, is_told", [([2, 3], False), ([0, 1, 2], True)])
def test_little_of_a_raster_is_neither_guessed_nor_doubted(tmp_path, numbers, is_told):
    """Two patches side by side may be a row's last two; three numbers are no row and a half."""
    written = folder_of(tmp_path, {"site2/a": half_of(2, 2)})
    keep_test_b(tmp_path, written, numbers)
    for split in ("test", "val"):
        shutil.rmtree(tmp_path / "folder" / split)
    places, patches = located(tmp_path / "folder", "test_b")
    if is_told:
        assert_located(written, places)
    else:
        assert set(places.values()) == {None}
    assert not patches.doubts()


def test_the_other_half_may_have_a_column_less(tmp_path):
    width, height = shape(6, 8)
    raster = picture(2 * width - 1, height)  # 216 and 215 pixels
    written = folder_of(tmp_path, {"site2/a": raster})
    assert written[f"test/{CITY}/a_half1_8.jpg"][1:] == (1, 0)
    assert written[f"val/{CITY}/a_half2_7.jpg"][1:] == (1, 0)
    shutil.rmtree(tmp_path / "folder" / "test_b")
    for name, kept in (("test", [0, 9, 27]), ("val", range(42))):
        for path in (tmp_path / "folder" / name / CITY).iterdir():
            if int(path.stem.rpartition("_")[2]) not in kept:
                path.unlink()
    places, _ = located(tmp_path / "folder", "test")
    assert_located(written, places)


@pytest.mark.parametrize("water", ["flat", "slope", "noise"])
def test_water_tells_nothing_and_land_beside_it_does(tmp_path, water):
    """Half of each row is water; the raster above it is but for a strip of land."""
    rows, cols = 8, 6
    width, height = shape(rows, cols)
    land = np.asarray(half_of(rows, cols, seed=1)).copy()
    columns = np.arange(land.shape[1])
    rng = np.random.default_rng(0)
    sea = {
        "flat": np.full(land.shape, 70),
        "slope": np.broadcast_to((60 + columns / 8)[None, :, None], land.shape),
        "noise": np.full(land.shape, 70) + rng.integers(-1, 2, land.shape),
    }[water]
    is_land = (columns % width) > 0.7 * width
    land[:, ~is_land] = sea[:, ~is_land]
    written = folder_of(tmp_path, {"site2/a": Image.fromarray(land)})
    for split in ("test", "val"):
        places, patches = located(tmp_path / "folder", split)
        assert_located(written, places)
    nothing_but_water = Image.fromarray(sea.astype(np.uint8))
    shutil.rmtree(tmp_path / "raw")
    shutil.rmtree(tmp_path / "folder")
    written = folder_of(tmp_path, {"site2/a": nothing_but_water})
    places, patches = located(tmp_path / "folder", "test")
    assert not patches.doubts()
    if set(places.values()) == {None}:
        assert "1 of 2 rasters" in patches.describe_unplaced()
    else:  # the noise of water that is cut without loss tells, too
        assert_located(written, places)


@pytest.mark.parametrize("patch_size, stride", [(48, 16), (48, 36), (50, 20), (480, 120), (49, 24)])
def test_other_strides(tmp_path, patch_size, stride):
    """Also such that JPEG's blocks of neighbours are others."""
    rows, cols = (3, 4) if patch_size == 480 else (7, 5)
    half = half_of(rows, cols, stride=stride, patch_size=patch_size)
    written = folder_of(tmp_path, {"site2/a": half}, patch_size, stride, quality=75)
    places, patches = located(tmp_path / "folder", "test")
    assert_located(written, places)
    assert patches.find_sizes() == (patch_size, stride)


def test_patches_that_do_not_overlap_are_said(tmp_path):
    half = half_of(4, 6, stride=60)
    folder_of(tmp_path, {"site2/a": half}, 48, 60)
    places, patches = located(tmp_path / "folder", "test")
    assert set(places.values()) == {None}
    assert patches.find_sizes() is None
    assert "do not tell which of them overlap" in patches.describe_unplaced()


@pytest.mark.parametrize(
    "first, second",
    [
        ((8, 8), (6, 6)),  # the second writes over the first patches, with other columns
        ((6, 8), (3, 8)),  # with the same columns
        ((7, 7), (6, 8)),  # numbers beyond rows x cols
        ((4, 3), (1, 7)),
    ],
)
def test_two_rasters_of_one_name_are_noticed(tmp_path, first, second):
    images = [picture(*shape(*first), seed=1), picture(*shape(*second), seed=2)]
    folder_of(tmp_path, {"site1/a": images[0], "site2/a": images[1], "site3/b": half_of(6, 8)})
    _, patches = located(tmp_path / "folder", "train")
    (said,) = patches.doubts()
    assert said == (
        "1 of 1 rasters may each be several of one name, as their numbers or pictures do not fit"
        f" together; the first is {CITY}/a"
    )
    assert not located(tmp_path / "folder", "test")[1].doubts()


def test_one_number_twice_is_noticed(tmp_path):
    folder_of(tmp_path, {"site2/a": half_of(3, 4)})
    folder = tmp_path / "folder" / "test" / CITY
    shutil.copy(folder / "a_half1_3.jpg", folder / "a_half1_3.jpeg")
    assert "several of one name" in located(tmp_path / "folder", "test")[1].doubts()[0]


def test_a_damaged_or_foreign_picture_is_no_second_raster(tmp_path):
    written = folder_of(tmp_path, {"site2/a": half_of(8, 6)})
    folder = tmp_path / "folder" / "test" / CITY
    (folder / "a_half1_21.jpg").write_bytes(b"no picture")
    Image.new("RGB", (30, 30)).save(folder / "a_half1_9.jpg")
    picture(48, 48, seed=9).save(folder / "a_half1_15.jpg")
    places, patches = located(tmp_path / "folder", "test")
    assert_located(written, places)
    assert not patches.doubts()


def test_names_that_fit_neither_count_as_before(tmp_path):
    folder_of(tmp_path, {"site2/a": half_of(3, 4)})
    folder = tmp_path / "folder" / "test" / CITY
    shutil.copy(folder / "a_half1_3.jpg", folder / "photo.jpg")
    patches = reading.open_split(tmp_path / "folder", "test", 28)
    index = next(i for i in range(len(patches)) if "photo" in patches.name(i))
    assert patches.raster(index) == f"test/{CITY}/photo"
    assert patches.locate(index) is None
    assert patches.doubts() == [
        "1 patches whose names tell no raster count as rasters of their own"
    ]
    for k, path in enumerate((tmp_path / "folder" / "test").rglob("*.jpg")):
        path.rename(path.with_name(f"photo-{k}.jpg"))
    patches = reading.open_split(tmp_path / "folder", "test", 28)
    assert not patches.doubts() and not patches.describe_unplaced()  # the interval says it
    assert len({patches.raster(i) for i in range(len(patches))}) == len(patches)


def test_few_pictures_are_read_and_none_for_training(tmp_path, monkeypatch):
    folder_of(tmp_path, {"site2/a": half_of(12, 9), "site2/b": half_of(12, 9, seed=1)})
    read = []
    lock = threading.Lock()
    read_grey = overlapping_pictures.read_grey

    def counted(file, factor):
        with lock:
            read.append(file)
        return read_grey(file, factor)

    monkeypatch.setattr(overlapping_pictures, "read_grey", counted)
    patches = reading.open_split(tmp_path / "folder", "test", 28)
    patches.read(range(20))
    rasters = {patches.raster(i) for i in range(len(patches))}
    assert len(rasters) == 3
    assert not read
    patches.locate(0)
    # Pairs for the stride, and a column of each raster.
    assert len(read) <= 2 * overlapping_pictures.PAIRS + 2 * 14 + 10
    read.clear()
    for i in range(len(patches)):
        patches.locate(i)
    patches.doubts()
    assert not read


def test_windows_are_cut_as_the_published_scripts_do():
    numbers = [
        (n, row, col) for n, row, col, _ in windows_of(Image.new("RGB", (530, 770)), 480, 240)
    ]
    assert numbers == [(0, 0, 0), (1, 1, 0)]
