"""GDAL as this project uses it: little memory, no network, nothing beside a file, no messages."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import rasterio
from rasterio._err import CPLE_BaseError, CPLE_OutOfMemoryError
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError

from dl_slicer.patch_sets import image_files
from dl_slicer.patch_sets.image_files import UnreadableImage

# What GDAL says reaches users as one line of ours.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
logging.getLogger("rasterio").propagate = False

# PROJ would fetch grids that a raster's coordinate system needs, where it is set up to.
os.environ["PROJ_NETWORK"] = "OFF"

SETTINGS = {
    # No overviews, masks and metadata beside a file: they may be links, and name files.
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    # No network. The proxy is a port that nobody listens at.
    "CPL_VSIL_CURL_ALLOWED_FILENAME": "none",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none",
    "GDAL_HTTP_PROXY": "127.0.0.1:9",
    "GDAL_HTTPS_PROXY": "127.0.0.1:9",
    # MB of decoded blocks in a process; GDAL would take 5 % of the memory.
    "GDAL_CACHEMAX": 128,
    "GDAL_NUM_THREADS": "1",
    "GDAL_MAX_DATASET_POOL_SIZE": 64,
}
FAULTS = (RasterioError, CRSError, CPLE_BaseError, OSError)
DAMAGED = "is damaged or cut off, its pixels cannot be read; replace or delete it"


@contextmanager
def opened(path: str, driver: str) -> Iterator[rasterio.DatasetReader]:
    """Open a local file by one driver. UnreadableImage if it cannot, or names other files."""
    with session():
        try:
            with image_files.without_stderr():
                dataset = rasterio.open(Path(path), driver=driver)
        except FAULTS:
            raise UnreadableImage(image_files.NO_IMAGE) from None
    try:
        with session():
            _refuse_references(dataset)
        yield dataset
    finally:
        with session():
            dataset.close()


def _refuse_references(dataset: rasterio.DatasetReader) -> None:
    """UnreadableImage if a raster's own metadata name another file, which GDAL would open."""
    if dataset.tags(ns="OVERVIEWS"):
        raise UnreadableImage(
            "names another file as its overview, which is not opened; copy it with gdal_translate"
        )


@contextmanager
def session() -> Iterator[None]:
    """GDAL set up for the calls within, in this thread; entered for each use.

    What GDAL raises becomes UnreadableImage.
    """
    try:
        with rasterio.Env(**SETTINGS):
            yield
    except (MemoryError, CPLE_OutOfMemoryError):
        raise UnreadableImage(image_files.reason(MemoryError())) from None
    except FAULTS:
        raise UnreadableImage(DAMAGED) from None
