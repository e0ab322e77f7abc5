"""Rasters to arrays: geometry, splits, JPEGs, space on the disk."""

import csv
import json
import multiprocessing
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SIZES, Inline, as_flags, files, make_raw, picture
from PIL import Image
from preprocessing_runs import array, refused

import preprocessing
from dl_slicer import machine
from dl_slicer.patch_sets import on_disk, reading, tiling
from dl_slicer.patch_sets.jobs import Job, Request


def regions_of(out):
    return {region.region: region for region in on_disk.load_regions(out)}


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """(raster, patch set) of 4800 x 4800 pixels with the published geometry."""
    root = tmp_path_factory.mktemp("full")
    raster = picture(4800, 4800)
    for site in ("site1", "site2"):
        (root / "raw" / "City (CTY)" / site).mkdir(parents=True)
    first = root / "raw" / "City (CTY)" / "site1" / "2020.tif"
    raster.save(first)
    shutil.copy(first, root / "raw" / "City (CTY)" / "site2" / "2020.tif")
    make_raw(root / "raw", cities=["Tiny (TNY)"], sites=2, size=(960, 480))
    preprocessing.main(["--raw", str(root / "raw"), "--out", str(root / "out"), "--workers", "2"])
    return raster, root / "out"


def test_361_train_171_test_and_171_val_patches(full_size):
    _, out = full_size
    train, test, val = (
        regions_of(out)[f"City (CTY)/{name}"]
        for name in ("site1/2020.train", "site2/2020.test", "site2/2020.val")
    )
    assert (train.rows, train.cols, train.x, train.width) == (19, 19, 0, 4800)
    assert (test.rows, test.cols, test.x, test.width) == (19, 9, 0, 2400)
    assert (val.rows, val.cols, val.x, val.width) == (19, 9, 2400, 2400)
    counts = json.loads((out / "dataset.json").read_text(encoding="utf-8"))["counts"]
    assert [counts[split]["City (CTY)"] for split in on_disk.SPLITS] == [361, 171, 171, 171]
    # None across the middle, none over an edge.
    assert test.x + (test.cols - 1) * 240 + 480 <= 2400 <= val.x
    assert val.x + (val.cols - 1) * 240 + 480 <= 4800
    assert array(out, train).shape == (2240, 2240, 3)
    assert array(out, test).shape == array(out, val).shape == (2240, 1120, 3)


def test_slices_equal_resized_crops(full_size):
    raster, out = full_size
    rng = np.random.default_rng(0)
    for split, x in (("train", 0), ("test", 0), ("val", 2400)):
        dataset = reading.open_split(out, split)
        count = int((dataset.labels == 0).sum())  # of the large raster's city, which comes first
        for i in {0, count - 1, *rng.integers(count, size=20).tolist()}:
            _, row, col = dataset.locate(i)
            left = x + 240 * col
            upper = 240 * row
            crop = raster.crop((left, upper, left + 480, upper + 480))
            resized = crop.resize((224, 224), Image.Resampling.BILINEAR)
            difference = np.abs(np.asarray(resized, int) - dataset.read([i])[0])
            assert difference[2:-2, 2:-2].max() == 0, dataset.name(i)
            assert difference.max() <= 5, dataset.name(i)


@pytest.mark.parametrize(
    "width, height", [(150, 110), (151, 48), (149, 97), (96, 71), (153, 500), (240, 240)]
)
def test_windows_of_any_size_of_raster(preprocess, tmp_path, width, height):
    make_raw(tmp_path / "raw", cities=["A", "B"], sites=2, size=(width, height))
    out = preprocess()
    half = round(width / 2)
    for name, x, wide in (
        ("site1/2020.train", 0, width),
        ("site2/2020.test", 0, half),
        ("site2/2020.val", half, width - half),
    ):
        region = regions_of(out)[f"A/{name}"]
        assert (region.x, region.y, region.width, region.height) == (x, 0, wide, height)
        assert region.cols == len([left for left in range(0, wide, 24) if left + 48 <= wide])
        assert region.rows == len([upper for upper in range(0, height, 24) if upper + 48 <= height])
        covered = (14 * (region.rows - 1) + 28, 14 * (region.cols - 1) + 28, 3)
        assert array(out, region).shape == covered


def test_no_pixel_reaches_two_splits(preprocess, tmp_path):
    """Paint all pixels of one split: nothing of any other split may change.

    Neither arrays nor JPEGs.
    """
    raw = make_raw(tmp_path / "raw", cities=["A", "B"], sites=2, size=(151, 110))
    before = files(preprocess("--jpegs"))
    changed_by_any = set()
    for split, site, left, right in (
        ("train", "site1", 0, 151),
        ("test", "site2", 0, 76),
        ("val", "site2", 76, 151),
    ):
        raster = raw / "A" / site / "2020.png"
        clean = raster.read_bytes()
        with Image.open(raster) as image:
            image.load()
        image.paste((255, 0, 255), (left, 0, right, 110))
        image.save(raster)
        after = files(preprocess("--jpegs", out=tmp_path / split))
        changed = {
            name
            for name in before
            if name.endswith((".npy", ".jpg")) and before[name] != after[name]
        }
        theirs = {
            name
            for name in before
            if name.startswith("arrays/A/")
            and name.endswith(f".{split}.npy")
            or name.startswith((f"{split}/A/", f"{split}_b/A/"))
        }
        assert before.keys() == after.keys()
        assert changed == theirs
        changed_by_any |= theirs
        raster.write_bytes(clean)
    assert changed_by_any == {
        name for name in before if "/A/" in name and name.endswith((".npy", ".jpg"))
    }


def test_jpegs(preprocess, tmp_path):
    raw = make_raw(tmp_path / "raw")
    plain = files(preprocess())
    with_jpegs = files(preprocess("--jpegs", out=tmp_path / "jpegs"))
    jpegs = {name for name in with_jpegs if name.endswith(".jpg")}
    # The arrays do not depend on it.
    assert all(with_jpegs[name] == plain[name] for name in plain if name.endswith((".npy", ".csv")))
    expected = {
        f"{region.split}/{region.city}/{region.site}__2020_r{row:02d}_c{col:02d}.jpg"
        for region in on_disk.load_regions(tmp_path / "jpegs")
        for row in range(region.rows)
        for col in range(region.cols)
    }
    test_b = {name for name in jpegs if name.startswith("test_b/")}
    assert jpegs == expected | test_b
    assert len(expected) == 84
    assert len(test_b) == 10
    with open(tmp_path / "jpegs" / "test_b.csv", newline="") as file:
        assert test_b == {
            f"test_b/{row['region'].split('/')[0]}/site3__2020_r0{row['row']}_c0{row['col']}.jpg"
            for row in csv.DictReader(file)
        }
    assert all(with_jpegs[name] == with_jpegs[name.replace("test_b/", "test/")] for name in test_b)
    with (
        Image.open(tmp_path / "jpegs" / "val" / "Bb (BBB)" / "site3__2020_r01_c01.jpg") as jpeg,
        Image.open(raw / "Bb (BBB)" / "site3" / "2020.png") as raster,
    ):
        crop = raster.crop((75 + 24, 24, 75 + 72, 72))
        assert jpeg.size == (48, 48)
        assert np.abs(np.asarray(jpeg, int) - np.asarray(crop, int)).mean() < 4


def test_a_raster_of_11_bits_is_refused_by_name(preprocess, tmp_path):
    """It would be read as nearly black."""
    raw = make_raw(tmp_path / "raw")
    deep = np.asarray(picture(150, 110).convert("L")).astype(np.uint16) << 3
    Image.fromarray(deep).save(raw / "Aa (AAA)" / "site2" / "deep.tif")
    lines = refused(preprocess, "site2/deep.tif: of its 16 bits a channel only values below 4096")
    assert lines[1:] == [
        "6 of 7 rasters are done and kept; mend the above and run the same command again"
    ]
    Image.fromarray(deep << 5).save(raw / "Aa (AAA)" / "site2" / "deep.tif")
    preprocess()


def test_no_space(preprocess, tmp_path, monkeypatch):
    make_raw(tmp_path / "raw")
    usage = Counter()

    def little(path):
        usage[str(path)] += 1
        return shutil._ntuple_diskusage(10**9, 10**9 - 10**4, 10**4)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", little)
        message = "needs 0.00 GB, only 0.00 GB are free; make room or choose another --out"
        refused(preprocess, message)
        assert usage == {str(tmp_path): 1}
        assert not (tmp_path / "out").exists()
    before = files(preprocess())
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", little)
        preprocess()  # nothing to do needs nothing
        refused(lambda: preprocess("--jpegs"), "make room")
    assert files(tmp_path / "out") == before


def test_the_space_that_is_asked_for(preprocess, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tiling.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**12))
    # 100 held-out rasters of 4800 x 4800: twice 2240 x 1120 x 3 bytes each; 342 patches each, and
    # 500 of test_b once more.
    Image.new("RGB", (4800, 4800)).save(tmp_path / "x.jpg")
    job = Job("x.jpg", "A", "s", ["test", "val"], [0, 0])
    settings = on_disk.make_settings(480, 240, 224)
    arrays = 100 * 2 * (2240 * 1120 * 3 + 128)
    jpeg = 480 * 480 * tiling.JPEG_BYTES_A_PIXEL
    for jpegs, need in ((False, arrays), (True, arrays + (100 * 342 + 500) * jpeg)):
        request = Request(tmp_path, tmp_path, settings, jpegs, test_b=500, seed=0)
        tiling.check_space(request, 100 * tiling.plan_regions(request, [job], {}))
        line = f"100 rasters to do, {need / 1e9:.2f} GB needed in {tmp_path}, "
        assert line in capsys.readouterr().out
    # And a photograph's JPEGs take less than is reckoned with.
    make_raw(tmp_path / "raw", size=(250, 200))
    out = preprocess("--jpegs")
    sizes = [path.stat().st_size for path in out.rglob("*.jpg")]
    # Small ones carry their tables each.
    assert sum(sizes) < len(sizes) * 48 * 48 * tiling.JPEG_BYTES_A_PIXEL * 2.5


def test_few_rasters_are_handed_out_at_a_time(tmp_path, monkeypatch):
    """Memory and the time that Ctrl-C takes must not grow with the number of rasters."""
    pending = set()
    most = 0

    class Counting(Inline):
        def submit(self, work, job):
            nonlocal most
            future = super().submit(work, job)
            pending.add(future)
            most = max(most, len(pending))
            return future

    monkeypatch.setattr(tiling, "ProcessPoolExecutor", Counting)
    wait = tiling.wait

    def forget(futures, **options):
        ended = wait(futures, **options)
        pending.difference_update(ended.done)
        return ended

    monkeypatch.setattr(tiling, "wait", forget)
    done = {}
    faults = {}
    jobs = [Job(f"{n}.png", "A", "s", ["train"], [0, 0]) for n in range(1000)]
    tiling.tile_all(jobs, lambda job: [job.raster], 3, done, faults)
    assert most == 6
    assert len(done) == 1000
    assert not faults


def test_workers_may_be_started_anew(tmp_path, monkeypatch, capfd):
    """As on macOS and Windows: what they are handed can be pickled, and the set is the same."""
    raw = make_raw(tmp_path / "raw")
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        monkeypatch.setattr(machine, "worker_processes", lambda context=context: context)
        folders = {"--raw": raw, "--out": tmp_path / method, "--workers": 2}
        preprocessing.main(as_flags({**SIZES, **folders}))
    assert files(tmp_path / "fork") == files(tmp_path / "spawn")
    assert "Traceback" not in capfd.readouterr().err
