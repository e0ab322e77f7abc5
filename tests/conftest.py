"""What several tests need: pictures made by a program, folders of them, small patch sets, a run."""

import signal
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import preprocessing
from dl_slicer.patch_sets import tiling

ROOT = Path(__file__).parent.parent


def as_flags(values):
    return [str(part) for flag in values.items() for part in flag]


# Flags of preprocessing.py for patches that take milliseconds.
SIZES = {"--patch-size": 48, "--stride": 24, "--image-size": 28, "--test-b": 5, "--workers": 1}
SMALL = as_flags(SIZES)


def picture(width, height, seed=0):
    """A picture with the contrasts of a photograph: smooth shapes, edges and a little noise."""
    rng = np.random.default_rng([seed, width, height])
    coarse = (height // 24 + 2, width // 24 + 2, 3)
    shapes = Image.fromarray(rng.integers(0, 256, coarse, dtype=np.uint8))
    noise = rng.integers(-6, 7, (height, width, 1), dtype=np.int16)
    pixels = np.asarray(shapes.resize((width, height), Image.Resampling.BICUBIC), np.int16) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_raw(raw, cities=("Aa (AAA)", "Bb (BBB)"), sites=3, size=(150, 110)):
    """<raw>/<city>/site1/2020.png and so on; every raster has the same name, whatever its site."""
    for i, city in enumerate(cities):
        for j in range(1, sites + 1):
            (raw / city / f"site{j}").mkdir(parents=True)
            picture(*size, seed=10 * i + j).save(raw / city / f"site{j}" / "2020.png")
    return raw


METRES = 200 / 48  # a pixel, so that a patch of SIZES is 200 m wide


def write_geotiff(path, pixels, crs="EPSG:32611", corner=(300_000, 4_000_000), **options):
    """A GeoTIFF of pixels (height, width, bands) or an image, without overviews.

    corner: where its upper-left corner lies. options: metres of a pixel, or the whole transform;
    and what rasterio's open takes, such as nodata.
    """
    import rasterio  # not above: most tests need none
    from rasterio.transform import from_origin

    bands = np.atleast_3d(np.asarray(pixels))
    metres = options.pop("metres", METRES)
    profile = {
        "driver": "GTiff",
        "height": bands.shape[0],
        "width": bands.shape[1],
        "count": bands.shape[2],
        "dtype": bands.dtype,
        "crs": crs,
        "transform": from_origin(*corner, metres, metres),
        "photometric": "RGB" if bands.shape[2] == 3 else "MINISBLACK",
        **options,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(bands.transpose(2, 0, 1))
    return path


def make_geotiffs(raw, cities=("Aa (AAA)", "Bb (BBB)"), sites=3, size=(150, 110), **options):
    """<raw>/<city>/site1/2020.tif and so on, with the pixels of make_raw; sites lie 5 km apart."""
    for i, city in enumerate(cities):
        for j in range(1, sites + 1):
            corner = (300_000 + 50_000 * i, 4_000_000 + 5_000 * j)
            path = raw / city / f"site{j}" / "2020.tif"
            write_geotiff(path, picture(*size, seed=10 * i + j), corner=corner, **options)
    return raw


def files(folder):
    """{path: bytes} of all files in a folder, but for the lock, which is always empty."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


class Inline(Executor):
    """A pool of processes that is none."""

    def __init__(self, *arguments):
        pass

    def submit(self, work, job):
        future = Future()
        try:
            future.set_result(work(job))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def preprocess(monkeypatch, tmp_path):
    """preprocessing.py --raw <tmp>/raw --out <tmp>/out in this process.

    With small patches, and the flags that are given.
    """

    def call(*flags, raw=tmp_path / "raw", out=tmp_path / "out"):
        monkeypatch.setattr(tiling, "ProcessPoolExecutor", Inline)
        preprocessing.main(["--raw", str(raw), "--out", str(out), *SMALL, *map(str, flags)])
        return out

    return call


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A patch set of three easy cities, of patches of 32 x 32 pixels.

    162 train, 36 val and 36 test patches in each city.
    """
    root = tmp_path_factory.mktemp("training")
    rng = np.random.default_rng(0)
    for number, city in enumerate(("Aa (AAA)", "Bb (BBB)", "Cc (CCC)")):
        for site in range(3):
            pixels = rng.normal(100, 40, (240, 240, 3))
            pixels[:: 3 + number] += 60
            folder = root / "raw" / city / f"site{site}"
            folder.mkdir(parents=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "2020.png")
    folders = {"--raw": root / "raw", "--out": root / "patches"}
    preprocessing.main(as_flags({**folders, **SIZES, "--image-size": 32, "--test-b": 20}))
    return root / "patches"


def flags(data, out, *more):
    """Flags of train_classification.py for two epochs of a ResNet-18 from scratch."""
    return [
        "--data",
        str(data),
        "--out",
        str(out),
        "--arch",
        "resnet18",
        "--weights",
        "none",
        "--epochs",
        "2",
        "--batch-size",
        "32",
        *more,
    ]


@contextmanager
def signal_handlers_kept():
    """Training catches SIGTERM and SIGINT; afterwards they are again what they were."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def default_signals():
    with signal_handlers_kept():
        yield


@pytest.fixture(scope="session")
def finished(data, tmp_path_factory):
    """A run of two epochs that nothing disturbed."""
    import train_classification  # not above: torch takes seconds, and most tests need none

    out = tmp_path_factory.mktemp("runs") / "whole"
    with signal_handlers_kept():
        train_classification.main(flags(data, out))
    return out
