"""A large raster is read in bounded memory, in processes that were forked, and in threads."""

import multiprocessing
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
from conftest import ROOT
from rasterio.windows import Window
from test_rasters import PLACE, noise, whole, write

from dl_slicer.patch_sets.rasters import View, open_raster

SIDE = 12_000  # 430 MB as RGB, 580 MB as Pillow holds it
ALLOWED = 350  # MB; 128 of them are GDAL's blocks

READ = """
import re
import sys
import threading
import time
from pathlib import Path

from dl_slicer.patch_sets.rasters import View, open_raster


def measure():
    while True:
        status = Path("/proc/self/status").read_text()
        parts = re.findall(r"Rss(?:Anon|Shmem):\\s+(\\d+)", status)
        peaks.append(sum(map(int, parts)) / 1024)
        time.sleep(0.05)


peaks = []
threading.Thread(target=measure, daemon=True).start()
resolution = float(sys.argv[2])
with open_raster(sys.argv[1], View(ground_resolution=resolution or None)) as raster:
    for y in range(0, raster.height // int(sys.argv[3]), 480):
        rows = min(480, raster.height - y)
        raster.read(0, y, raster.width, rows)
        raster.data_mask(0, y, raster.width, rows)
    raster.range_of(0, 0, raster.width, raster.height)
    raster.thumbnail(1000)
time.sleep(0.1)
print(raster.width, max(peaks))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A BigTIFF of which few tiles are stored; the others have no data."""
    path = tmp_path_factory.mktemp("large") / "x.tif"
    profile = {"driver": "GTiff", "width": SIDE, "height": SIDE, "count": 3, "dtype": "uint8"}
    options = {"tiled": True, "compress": "deflate", "BIGTIFF": "YES", "SPARSE_OK": True}
    with rasterio.open(path, "w", **profile, **options, nodata=255, **PLACE) as dataset:
        for place in range(0, SIDE, 3800):
            dataset.write(noise(600, 600), window=Window(place, place, 600, 600))
    return path


@pytest.mark.parametrize(
    "resolution, share, expected", [(0, 2, SIDE), (0.4, 16, SIDE), (3, 1, SIDE * 0.4 / 3)]
)
def test_a_large_raster_takes_little_memory(large, resolution, share, expected):
    run = subprocess.run(
        [sys.executable, "-c", READ, str(large), str(resolution), str(share)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    width, peak = run.stdout.split()
    assert int(width) == expected
    assert 50 < float(peak) < ALLOWED


def read_part(path):
    with open_raster(path, View(ground_resolution=0.5)) as raster:
        return raster.read(100, 100, 200, 200)


def test_rasters_are_read_in_threads_and_in_forked_processes(tmp_path):
    path = write(tmp_path / "x.tif", noise(900, 800), tiled=True, compress="deflate", **PLACE)
    expected = read_part(path)
    with ThreadPoolExecutor(4) as pool:
        assert all(np.array_equal(got, expected) for got in pool.map(read_part, [path] * 12))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(np.array_equal(got, expected) for got in pool.map(read_part, [path] * 4))
    with open_raster(path) as first, open_raster(path) as second:
        assert np.array_equal(first.read(0, 0, 9, 9), second.read(0, 0, 9, 9))
    assert whole(path).shape == (800, 900, 3)
