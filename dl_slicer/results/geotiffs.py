"""Cloud-optimised GeoTIFFs of what a network says of each place of a raster.

Written block by block as it is computed into a plain GeoTIFF, which GDAL then copies: a
cloud-optimised one has its parts in an order that is known at the end.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.errors import RasterioError
from rasterio.io import DatasetWriter
from rasterio.windows import Window

from dl_slicer import cities
from dl_slicer.cli import InputError, printable
from dl_slicer.patch_sets import gdal
from dl_slicer.results.familiar_places import Places

BLOCK = 256  # pixels of a side of a tile
MOST_COLOURS = 255  # classes of a byte, whose last value is that of no data


@dataclass(frozen=True)
class Cells:
    """A grid of cells on the ground."""

    height: int
    width: int
    transform: Affine  # from cells to coordinates
    crs: str


@contextmanager
def create(
    path: Path, cells: Cells, bands: Sequence[str], kind: str, nodata: float
) -> Iterator[DatasetWriter]:
    """Give a GeoTIFF to write to, and make a cloud-optimised one of it when the block ends well.

    bands: their names; kind: of numbers, as numpy names it. InputError if it cannot be written.
    """
    plain = path.with_name(f"{path.name}.plain")
    overviews = "AVERAGE" if kind == "float32" else "MODE"
    try:
        with rasterio.Env(**gdal.SETTINGS):
            with rasterio.open(
                plain,
                "w",
                driver="GTiff",
                height=cells.height,
                width=cells.width,
                count=len(bands),
                dtype=kind,
                nodata=nodata,
                crs=cells.crs,
                transform=cells.transform,
                tiled=True,
                blockxsize=BLOCK,
                blockysize=BLOCK,
                BIGTIFF="IF_SAFER",
            ) as dataset:
                dataset.descriptions = list(bands)
                yield dataset
            rasterio.shutil.copy(
                plain,
                path,
                driver="COG",
                compress="DEFLATE",
                blocksize=BLOCK,
                overview_resampling=overviews,
                BIGTIFF="IF_SAFER",
            )
    except RasterioError as error:
        raise InputError(
            f"{printable(path.name)}: cannot be written ({printable(error)}); is the disk full?"
        ) from None
    finally:
        plain.unlink(missing_ok=True)


def write_places(new: Path, name: str, cells: Cells, places: Places, classes: Sequence[str]):
    """Write <name>.places.tif, .certainty.tif and .probabilities.tif, and .familiarity.tif.

    The last one where it is known.
    """
    by_place = places.shares
    has_data = ~np.isnan(by_place[..., 0])
    known = np.where(has_data[..., None], by_place, 0)
    _write_classes(new / f"{name}.places.tif", cells, known.argmax(-1), has_data, classes)
    per_cent = np.where(has_data, np.rint(100 * known.max(-1)), 255).astype(np.uint8)
    with create(new / f"{name}.certainty.tif", cells, ["certainty, %"], "uint8", 255) as dataset:
        dataset.write(per_cent, 1)
    path = new / f"{name}.probabilities.tif"
    with create(path, cells, classes, "float32", float("nan")) as dataset:
        for band in range(len(classes)):
            dataset.write(by_place[..., band].astype(np.float32), band + 1)
    if places.familiarity is not None:
        path = new / f"{name}.familiarity.tif"
        with create(path, cells, ["familiarity"], "float32", float("nan")) as dataset:
            dataset.write(places.familiarity.astype(np.float32), 1)


def _write_classes(
    path: Path, cells: Cells, best: np.ndarray, has_data: np.ndarray, classes: Sequence[str]
) -> None:
    """Write class numbers, with their colours and names.

    More classes than a byte has room for are two bytes, which have no colour table.
    """
    is_byte = len(classes) <= MOST_COLOURS
    kind, nodata = ("uint8", 255) if is_byte else ("uint16", 65535)
    with create(path, cells, ["most similar city"], kind, nodata) as dataset:
        dataset.write(np.where(has_data, best, nodata).astype(kind), 1)
        if is_byte:
            colours = {number: (*cities.colour(number), 255) for number in range(len(classes))}
            dataset.write_colormap(1, colours | {nodata: (0, 0, 0, 0)})
    # rasterio has no call for the names of categories; GDAL and QGIS read them from this file.
    categories = "".join(f"<Category>{escape(city)}</Category>" for city in classes)
    path.with_name(f"{path.name}.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1">'
        f"<CategoryNames>{categories}</CategoryNames></PAMRasterBand></PAMDataset>\n",
        encoding="utf-8",
    )


def write_rows(dataset: DatasetWriter, top: int, rows: Sequence[np.ndarray]) -> None:
    """Write rows (m, w) of each band, which begin at a row of the file."""
    height, width = rows[0].shape
    if height:
        dataset.write(np.stack(rows), window=Window(0, top, width, height))
