"""Patches read from a patch set, and from a folder in the published layout."""

import json
import mmap
import os
import pickle
import resource
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from conftest import ROOT, make_raw, picture
from PIL import Image

from dl_slicer.cli import InputError, run
from dl_slicer.patch_sets import image_files, on_disk, reading


def test_patches_are_slices_in_order(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    out = preprocess()
    for split, regions in (("train", 4), ("val", 2), ("test", 2)):
        dataset = reading.open_split(out, split)
        expected = []
        labels = []
        names = []
        rasters = []
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
        assert len(dataset) == len(expected) > 0
        assert len(dataset.regions) == regions
        assert np.array_equal(dataset.read(np.arange(len(dataset))), expected)
        assert dataset.labels.dtype == np.uint8
        assert dataset.labels.tolist() == labels
        assert [dataset.name(i) for i in range(len(dataset))] == names
        assert [dataset.raster(i) for i in range(len(dataset))] == rasters
        assert dataset.classes == ["Aa (AAA)", "Bb (BBB)"]
        assert (dataset.patch_size, dataset.stride, dataset.image_size) == (48, 24, 28)
        shuffled = np.random.default_rng(0).permutation(len(dataset))
        assert np.array_equal(dataset.read(shuffled), np.array(expected)[shuffled])


def test_test_b_is_part_of_test(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    out = preprocess()
    test = reading.open_split(out, "test")
    sample = reading.open_split(out, "test_b")
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
            x = region.x + 24 * col
            y = 24 * row
            assert region.x == 75
            assert dataset.original(i).tobytes() == raster.crop((x, y, x + 48, y + 48)).tobytes()


@pytest.mark.parametrize("change", ["gone", "text", "smaller", "other pixels"])
def test_original_of_a_raster_that_has_changed_is_the_stored_patch(preprocess, tmp_path, change):
    make_raw(tmp_path / "raw")
    dataset = reading.open_split(preprocess(), "test")
    raster = tmp_path / "raw" / dataset.raster(0)
    reading.close_rasters()
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
    reading.close_rasters()
    assert dataset.original(0).size == (28, 28)
    assert dataset.original(0, raw=tmp_path / "moved").size == (48, 48)


def test_a_set_that_has_moved_finds_its_rasters(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    (tmp_path / "disk").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "disk", target_is_directory=True)
    # `..` from here leads to disk, not to here.
    out = preprocess(out=tmp_path / "here" / "link" / "out")
    assert reading.open_split(out, "test").original(0).size == (48, 48)
    for name in ("raw", "disk"):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    reading.close_rasters()
    moved = reading.open_split(tmp_path / "elsewhere" / "disk" / "out", "test")
    assert moved.original(0).size == (48, 48)


def edit(file, **changes):
    description = json.loads(file.read_text(encoding="utf-8"))
    description.update(changes)
    kept = {key: value for key, value in description.items() if value is not None}
    file.write_text(json.dumps(kept))


def drop_line(file):
    file.write_bytes(b"\r\n".join(file.read_bytes().split(b"\r\n")[1:]))


BROKEN_SETS = {
    "unfinished": (
        lambda out: (out / "dataset.json").unlink(),
        "not finished .*run preprocessing.py again",
    ),
    "older": (
        lambda out: edit(out / "dataset.json", format=0),
        "format 0, this version has 1 and 2; delete the set",
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
    assert "\n" not in str(caught.value)
    assert str(out) in str(caught.value)


@pytest.mark.parametrize("name", ["regions.csv", "test_b.csv"])
def test_a_table_that_the_system_refuses_is_not_called_damaged(preprocess, tmp_path, capsys, name):
    make_raw(tmp_path / "raw")
    table = preprocess() / name
    table.unlink()
    table.mkdir()
    with pytest.raises(SystemExit) as caught:
        run(partial(reading.open_split, tmp_path / "out", "test_b"))
    assert caught.value.code == 2
    assert f"{table}: Is a directory; a folder is in the way" in capsys.readouterr().err


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


def copy_jpegs(out, to):
    for split in on_disk.SPLITS:
        shutil.copytree(out / split, to / split)
    return to


def test_jpegs_read_back_as_data(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    out = preprocess("--jpegs")
    jpegs = copy_jpegs(out, tmp_path / "published")
    for split in on_disk.SPLITS:
        arrays = reading.open_split(out, split)
        folder = reading.open_split(jpegs, split, 28)
        assert folder.classes == arrays.classes
        assert folder.image_size == 28
        # Both are in the order of city, site, raster, row and column.
        assert folder.labels.dtype == np.uint8
        assert folder.labels.tolist() == arrays.labels.tolist()
        of_folder = folder.read(range(len(folder))).astype(int)
        of_arrays = arrays.read(range(len(arrays))).astype(int)
        assert np.abs(of_folder - of_arrays).mean() < 3
        assert np.abs(of_folder - of_arrays[::-1]).mean() > 10
        assert folder.original(0).size == (48, 48)
        assert folder.name(0).startswith(f"{split}/Aa (AAA)/site")
        assert folder.name(0).endswith(".jpg")
        site = "site1" if split == "train" else "site3"
        assert folder.raster(0) == f"{split}/Aa (AAA)/{site}__2020"
    assert reading.open_split(jpegs, "train").read([0]).shape == (1, 224, 224, 3)


def test_every_split_of_a_folder_numbers_the_classes_alike(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    jpegs = copy_jpegs(preprocess("--jpegs"), tmp_path / "published")
    shutil.rmtree(jpegs / "test" / "Aa (AAA)")
    (jpegs / "test" / ".ipynb_checkpoints").mkdir()
    (jpegs / "test" / "Bb (BBB)" / "Thumbs.db").write_text("")
    (jpegs / "test" / "Bb (BBB)" / ".hidden.jpg").write_text("")
    test = reading.open_split(jpegs, "test")
    assert test.classes == ["Aa (AAA)", "Bb (BBB)"]
    assert set(test.labels) == {1}
    assert len(test) == len(reading.open_split(tmp_path / "out", "test")) / 2
    test.read(range(len(test)))
    shutil.rmtree(jpegs / "val")
    with pytest.raises(InputError, match="val: no such folder"):
        reading.open_split(jpegs, "val")
    shutil.rmtree(jpegs / "test" / "Bb (BBB)")
    with pytest.raises(InputError, match="test: no images"):
        reading.open_split(jpegs, "test")


@pytest.mark.parametrize("name", sorted(image_files.SYSTEM_FOLDERS))
def test_what_a_system_leaves_in_a_folder_of_jpegs_is_no_class(preprocess, tmp_path, name):
    make_raw(tmp_path / "raw")
    jpegs = copy_jpegs(preprocess("--jpegs"), tmp_path / "published")
    for folder in (jpegs, jpegs / "train", jpegs / "test"):
        (folder / name).mkdir()
        shutil.copy(next((jpegs / "val").rglob("*.jpg")), folder / name / "a.jpg")
    for split in on_disk.SPLITS:
        assert reading.open_split(jpegs, split).classes == ["Aa (AAA)", "Bb (BBB)"]


def test_a_folder_of_jpegs_whose_name_no_city_can_have_is_refused(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    jpegs = copy_jpegs(preprocess("--jpegs"), tmp_path / "published")
    (jpegs / "train" / "C\nc").mkdir()
    with pytest.raises(InputError, match=r"published: folder 'C\\nc': its name has a line break"):
        reading.open_split(jpegs, "test")


def test_a_broken_jpeg_is_named(preprocess, tmp_path):
    make_raw(tmp_path / "raw")
    jpegs = copy_jpegs(preprocess("--jpegs"), tmp_path / "published")
    dataset = reading.open_split(jpegs, "val", 28)
    os.truncate(dataset.files[1], 900)
    dataset.read([0])
    message = r"_c01\.jpg: cannot be read \(.*truncated.*replace or delete it"
    with pytest.raises(InputError, match=message):
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


def test_patches_can_be_handed_to_another_process(preprocess, tmp_path, monkeypatch):
    """As workers need it that are started anew; also after patches have been read."""
    make_raw(tmp_path / "raw")
    out = preprocess("--jpegs")
    jpegs = copy_jpegs(out, tmp_path / "published")
    monkeypatch.setattr(reading, "KEPT_BYTES", 50000)
    for folder in (out, jpegs):
        dataset = reading.open_split(folder, "train", 28)
        expected = dataset.read(range(10))
        copy = pickle.loads(pickle.dumps(dataset))
        assert np.array_equal(copy.read(range(10)), expected)
        assert copy.name(3) == dataset.name(3)
    # Maps were remembered, and are not handed on.
    arrays = reading.open_split(out, "train")
    arrays.read(range(3))
    assert arrays._mapped
    assert not pickle.loads(pickle.dumps(arrays))._mapped


@pytest.mark.parametrize("module, call", [(mmap, "MADV_"), (resource, "RUSAGE_THREAD")])
def test_reading_does_without_what_only_some_systems_have(
    preprocess, tmp_path, monkeypatch, module, call
):
    make_raw(tmp_path / "raw")
    out = preprocess()
    expected = reading.open_split(out, "train").read(range(30))
    for name in [name for name in dir(module) if name.startswith(call)]:
        monkeypatch.delattr(module, name)
    monkeypatch.setattr(reading, "KEPT_BYTES", 1000)
    dataset = reading.open_split(out, "train")
    for _ in range(2):
        assert np.array_equal(dataset.read(range(30)), expected)
