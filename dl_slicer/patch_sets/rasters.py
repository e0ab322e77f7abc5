"""Rasters of every kind behind one interface: a size, windows, and where they lie on the ground."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from dl_slicer.patch_sets import image_files, raster_safety, sidecars
from dl_slicer.patch_sets.image_files import UnreadableImage

if TYPE_CHECKING:
    from affine import Affine

Stretch = tuple[float, float]

# Pixels up to which Pillow reads a raster whole: 4 bytes each, up to 10 while a progressive JPEG
# is read, and a worker stays below 600 MB.
WHOLE = 48_000_000

# The tags of a TIFF that place it: pixel scale, tie points, transformation, GeoKeys.
GEOREFERENCE_TAGS = (33550, 33922, 34264, 34735)

BITS = 258  # the tag of a TIFF for bits a value, one of each band
STRIP = 8_000_000  # pixels of a mask that are looked at at a time

GREY_SHARES = (2, 98)  # percentiles that `--stretch auto` maps to 0 and 255


@dataclass(frozen=True)
class View:
    """How rasters are seen: one view for a whole patch set, which a checkpoint remembers.

    ground_resolution: metres a pixel, None for pixels as they are. bands: counted from 1, three or
    one. stretch: the range of values that becomes 0 to 255, "auto" for that of each region, None.
    crs: the system of rasters that have a transform and name no system.
    """

    ground_resolution: float | None = None
    bands: tuple[int, ...] | None = None
    stretch: Stretch | str | None = None
    crs: str | None = None


class Raster(ABC):
    """A raster as a view shows it.

    width, height: pixels of the view. crs: "EPSG:32611" or WKT, None without georeference.
    transform: from pixels of the view to crs, None without. metres_a_pixel: on the ellipsoid at
    the centre, None where that is not known. has_gaps: whether there may be pixels without data.
    remarks: what a user should know of the raster, a line each.

    Every method raises UnreadableImage if the file turns out to be damaged.
    """

    width: int
    height: int
    crs: str | None = None
    transform: "Affine | None" = None
    metres_a_pixel: float | None = None
    has_gaps: bool = False
    # How many pixels away what lies beside a pixel of the view may show in it, since it is warped.
    reach: int = 0

    def __init__(self):
        self.remarks: list[str] = []

    def whole(self) -> Image.Image | None:
        """The raster as one RGB image, if it is small enough to be read whole by Pillow."""
        return None

    @abstractmethod
    def read(
        self, x: int, y: int, width: int, height: int, stretch: Stretch | None = None
    ) -> np.ndarray:
        """Pixels as uint8 (height, width, 3); stretch: the range to take instead of the view's."""

    def data_mask(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Bool (height, width), True where there is data."""
        return np.ones((height, width), bool)

    def thin_mask(self, step: int) -> np.ndarray:
        """The data mask of the whole view, of every step-th pixel of every step-th row."""
        rows = max(1, STRIP // (self.width * step)) * step
        strips = [
            self.data_mask(0, upper, self.width, min(rows, self.height - upper))[::step, ::step]
            for upper in range(0, self.height, rows)
        ]
        return np.concatenate(strips)

    @abstractmethod
    def range_of(self, x: int, y: int, width: int, height: int) -> Stretch:
        """The 2nd and 98th percentile over a thin sample of the data, all bands together."""

    @abstractmethod
    def thumbnail(self, longest: int) -> Image.Image:
        """The whole view as a Pillow RGB image whose longer side is at most `longest` pixels."""


class _WholeRaster(Raster):
    """What Pillow reads, and has no georeference: nothing but the header until the first read."""

    def __init__(self, path: str | Path, size: tuple[int, int]):
        super().__init__()
        self.width, self.height = size
        self._path = path
        self._image: Image.Image | None = None

    def whole(self):
        """See Raster."""
        if self._image is None:
            self._image = image_files.read_image(self._path)
        return self._image

    def read(self, x, y, width, height, stretch=None):
        image = self.whole()
        if (x, y, width, height) != (0, 0, *image.size):
            image = image.crop((x, y, x + width, y + height))
        pixels = np.asarray(image)
        return pixels if stretch is None else stretched(pixels, stretch)

    def range_of(self, x, y, width, height):
        steps = (max(1, height // image_files.SAMPLE), max(1, width // image_files.SAMPLE))
        return percentiles(self.read(x, y, width, height)[:: steps[0], :: steps[1]])

    def thumbnail(self, longest):
        return shrunk(self.whole(), longest)


def stretched(values: np.ndarray, stretch: Stretch) -> np.ndarray:
    """Map a range of integer values to 0 … 255, as uint8 of the same shape.

    What lies outside the range becomes 0 or 255.
    """
    low, high = stretch
    scale = 255 / max(high - low, 1e-9)
    if values.dtype.itemsize > 2 or values.dtype.kind != "u":
        return np.rint((values.astype(np.float64) - low) * scale).clip(0, 255).astype(np.uint8)
    every = np.arange(np.iinfo(values.dtype).max + 1, dtype=np.float64)
    return np.rint((every - low) * scale).clip(0, 255).astype(np.uint8)[values]


def shrunk(image: Image.Image, longest: int) -> Image.Image:
    """An image, or a smaller copy whose longer side has `longest` pixels."""
    factor = longest / max(image.size)
    if factor >= 1:
        return image
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image_files.resize(image, size)


def percentiles(values: np.ndarray) -> Stretch:
    """The 2nd and 98th percentile of values, at least 1 apart; (0, 1) of none."""
    if not values.size:
        return (0.0, 1.0)
    low, high = np.percentile(values, GREY_SHARES)
    return (float(low), float(max(high, low + 1)))


@contextmanager
def open_raster(
    path: str | Path, view: View | None = None, root: str | Path | None = None
) -> Iterator[Raster]:
    """Open a raster as a view shows it.

    root: nothing outside this folder is opened, whatever the file names; None: the file's own.
    Raises UnreadableImage, also within the context, for whatever is wrong with the file.
    """
    view = view or View()
    image_files.refuse_irregular(path)
    kind = raster_safety.kind_of(path)
    beside = sidecars.read(path, root)
    whole = None if view.bands or view.stretch or beside else _open_whole(path, kind)
    if whole is not None and view.ground_resolution is None:
        yield whole
        return
    # rasterio takes a third of a second, which sets of plain photographs do without.
    from dl_slicer.patch_sets import gdal_rasters

    with gdal_rasters.open_raster(path, kind, view, beside or sidecars.Sidecars(), root) as raster:
        yield raster


def _open_whole(path: str | Path, kind: str) -> Raster | None:
    """The raster if Pillow is to read it, None if it is larger or lies somewhere."""
    if kind in ("JP2OpenJPEG", "VRT"):
        return None
    try:
        with Image.open(path, formats=image_files.FORMATS) as image:
            size = image.size
            tags = getattr(image, "tag_v2", {})
            is_for_gdal = kind == "GTiff" and any(tag in tags for tag in GEOREFERENCE_TAGS)
            is_for_gdal |= 12 in tags.get(BITS, ())  # Pillow takes them for 16
    except Image.DecompressionBombError:
        return None
    except UnidentifiedImageError:
        if kind == "GTiff":  # GDAL knows more kinds of TIFF
            return None
        raise UnreadableImage(image_files.reason(UnidentifiedImageError())) from None
    except Exception as error:
        raise UnreadableImage(image_files.reason(error)) from None
    if is_for_gdal or size[0] * size[1] > WHOLE:
        return None
    return _WholeRaster(path, size)
