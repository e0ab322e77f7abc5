"""Rasters seen at a ground resolution, north up, on a metric grid: warped as they are read."""

from collections import OrderedDict

import numpy as np
from affine import Affine
from PIL import Image
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.warp import reproject

from dl_slicer.patch_sets import data_bounds, gdal, gdal_rasters, ground, rasters
from dl_slicer.patch_sets.gdal_rasters import Box, WindowedRaster
from dl_slicer.patch_sets.image_files import UnreadableImage
from dl_slicer.patch_sets.rasters import Raster, Stretch

# A view is warped in chunks of its own grid, whatever is read: with chunks that followed the
# reading, strips would differ from the whole.
CHUNK_WIDTH = 1024
CHUNK_HEIGHT = 256
CACHED = 96_000_000  # bytes of chunks that are kept: a row of them in a view of 90,000 pixels
ANY = "any"  # a chunk of whatever stretch, where only its data counts
REACH = 4  # source pixels that the widest kernel, a cubic one at half the size, looks at; and 1

KERNEL = 2  # pixels to each side that a cubic kernel covers
SAME_GRID = 1e-6  # pixels by which two grids may be off and be one

TOLERANCE = 0.01  # pixels that the place of a pixel may be off: between exact points it is linear
SLACK = 0.01  # a view's last pixel may lack this share of its data


class WarpedRaster(Raster):
    """A view of a raster in WGS 84 / UTM, or UPS near the poles."""

    def __init__(self, source: WindowedRaster, resolution: float):
        super().__init__()
        self.remarks = source.remarks
        self._source = source
        self._from = _system_of(source)
        self._to = ground.metric_system(*_centre(source))
        self.crs = self._to.to_string()
        self.has_gaps = True
        self.metres_a_pixel = resolution
        left, lower, right, upper = data_bounds.find(source, self._to)
        self.width = max(1, int(np.ceil((right - left) / resolution - SLACK)))
        self.height = max(1, int(np.ceil((upper - lower) / resolution - SLACK)))
        self.transform = Affine(resolution, 0, left, 0, -resolution, upper)
        self._sides = _sides_of_a_pixel(source, self._to)
        self.reach = 0 if self._has_grid_of_source() else self._reach_of_kernel()
        self._chunks: OrderedDict[tuple[int, int], tuple[Stretch | None, np.ndarray]] = (
            OrderedDict()
        )

    def _has_grid_of_source(self) -> bool:
        """Whether each pixel of the view is one of the source."""
        between = ~self._source.transform @ self.transform
        whole = Affine.translation(round(between.c), round(between.f))
        return self._from == self._to and between.almost_equals(whole, SAME_GRID)

    def _reach_of_kernel(self) -> int:
        """Pixels of the view that a cubic kernel, two pixels of what is warped wide, covers."""
        factor = self._factor(self.transform.a)
        side = max(self._sides) * factor / self.transform.a
        return int(np.ceil(KERNEL * max(1, side))) + 1

    def _factor(self, resolution: float) -> int:
        """Pixels of the source along a side that are averaged before they are warped."""
        return max(1, int(resolution / max(self._sides) + SLACK))

    def read(self, x, y, width, height, stretch=None):
        """See Raster. Black where there is no data."""
        return np.ascontiguousarray(self._pixels((x, y, width, height), stretch)[:, :, :3])

    def data_mask(self, x, y, width, height):
        """See Raster."""
        return self._pixels((x, y, width, height), ANY)[:, :, 3] >= 128

    def _pixels(self, box: Box, stretch: Stretch | str | None) -> np.ndarray:
        """Colours and how much data there is, uint8 (height, width, 4)."""
        x, y, width, height = box
        pixels = np.empty((height, width, 4), np.uint8)
        for row in range(y // CHUNK_HEIGHT, -(-(y + height) // CHUNK_HEIGHT)):
            for col in range(x // CHUNK_WIDTH, -(-(x + width) // CHUNK_WIDTH)):
                chunk = self._chunk((col, row), stretch)
                down = row * CHUNK_HEIGHT - y
                along = col * CHUNK_WIDTH - x
                part = chunk[max(0, -down) : height - down, max(0, -along) : width - along]
                upper = max(0, down)
                left = max(0, along)
                pixels[upper : upper + part.shape[0], left : left + part.shape[1]] = part
        return pixels

    def _chunk(self, place: tuple[int, int], stretch: Stretch | str | None) -> np.ndarray:
        """Pixels (height, width, 4) of the chunk in a column and a row."""
        made_with, chunk = self._chunks.pop(place, (None, None))
        if chunk is None or stretch not in (ANY, made_with):
            left = place[0] * CHUNK_WIDTH
            upper = place[1] * CHUNK_HEIGHT
            width = min(CHUNK_WIDTH, self.width - left)
            height = min(CHUNK_HEIGHT, self.height - upper)
            made_with = None if stretch == ANY else stretch
            chunk = self._warp(self.transform, (left, upper, width, height), made_with)
        self._chunks[place] = (made_with, chunk)
        while sum(each.nbytes for _, each in self._chunks.values()) > CACHED:
            self._chunks.popitem(last=False)
        return chunk

    def _warp(
        self,
        transform: Affine,
        box: Box,
        stretch: Stretch | None,
        with_overviews: bool = False,
    ) -> np.ndarray:
        """Pixels (height, width, 4) of a box of a north-up grid.

        Where a pixel of the grid is as wide as two or more of the source, these are averaged first:
        that takes bounded memory, and the kernel never looks at many pixels.
        """
        warped = np.zeros((4, box[3], box[2]), np.uint8)
        resolution = transform.a
        factor = self._factor(resolution)
        window = self._window(transform, box, factor)
        if window is None:
            return np.moveaxis(warped, 0, -1)
        pixels = self._source.reduced(window, factor, stretch, with_overviews)
        scales = [min(1.0, side * factor / resolution) for side in self._sides]
        with gdal.session():
            reproject(
                np.ascontiguousarray(np.moveaxis(pixels, -1, 0)),
                warped,
                src_transform=ground.windowed(self._source.transform, *window[:2], factor),
                src_crs=self._from,
                dst_transform=ground.windowed(transform, *box[:2]),
                dst_crs=self._to,
                src_alpha=4,
                dst_alpha=4,
                resampling=Resampling.cubic,
                num_threads=1,
                tolerance=TOLERANCE,
                XSCALE=scales[0],
                YSCALE=scales[1],
            )
        return np.moveaxis(warped, 0, -1)

    def _window(self, transform: Affine, box: Box, factor: int) -> Box | None:
        """What a box of a grid needs of the source, from a multiple of factor; None if nothing."""
        xs, ys = np.meshgrid(
            np.linspace(box[0], box[0] + box[2], 9), np.linspace(box[1], box[1] + box[3], 9)
        )
        cols, rows = self._to_source(transform, xs.ravel(), ys.ravel())
        known = np.isfinite(cols) & np.isfinite(rows)
        if not known.any():
            return None
        reach = REACH * factor
        sides = []
        for places, length in ((cols, self._source.width), (rows, self._source.height)):
            first = int(max(0, (places[known].min() - reach) // factor * factor))
            last = int(min(length, np.ceil(places[known].max() + reach)))
            sides.append((first, last - first))
        (x, width), (y, height) = sides
        return (x, y, width, height) if width > 0 and height > 0 else None

    def _to_source(self, transform: Affine, xs: np.ndarray, ys: np.ndarray):
        """Columns and rows of the source where points of a grid lie."""
        places = ground.convert(self._to, self._from, *ground.apply(transform, xs, ys))
        return ground.apply(~self._source.transform, *places)

    def range_of(self, x, y, width, height):
        """See Raster. Each pixel of the sample is the source's nearest."""
        values = []
        for box in gdal_rasters.thin_windows((x, y, width, height)):
            values.append(self._nearest(box))
        return rasters.percentiles(np.concatenate(values))

    def _nearest(self, box: Box) -> np.ndarray:
        """The source's values at the pixels of a box of the view that have data, (n,)."""
        xs, ys = np.meshgrid(np.arange(box[2]) + box[0] + 0.5, np.arange(box[3]) + box[1] + 0.5)
        cols, rows = self._to_source(self.transform, xs.ravel(), ys.ravel())
        source = self._source
        inside = (cols >= 0) & (cols < source.width) & (rows >= 0) & (rows < source.height)
        if not inside.any():
            return np.empty(0)
        cols = cols[inside].astype(int)
        rows = rows[inside].astype(int)
        corner = (int(cols.min()), int(rows.min()))
        size = (int(np.ptp(cols)) + 1, int(np.ptp(rows)) + 1)
        values, has_data = source.values((*corner, *size))
        at = (rows - corner[1], cols - corner[0])
        return values[:, at[0], at[1]][:, has_data[at]].ravel()

    def thumbnail(self, longest):
        """See Raster. Warped at a coarser resolution, from overviews where there are some."""
        shrink = max(1.0, max(self.width, self.height) / longest)
        width = max(1, round(self.width / shrink))
        height = max(1, round(self.height / shrink))
        image = Image.new("RGB", (width, height))
        transform = ground.windowed(self.transform, 0, 0, shrink)
        for upper in range(0, height, CHUNK_HEIGHT):
            for left in range(0, width, CHUNK_WIDTH):
                size = (min(CHUNK_WIDTH, width - left), min(CHUNK_HEIGHT, height - upper))
                pixels = self._warp(transform, (left, upper, *size), None, with_overviews=True)
                image.paste(Image.fromarray(pixels[:, :, :3]), (left, upper))
        return image


def _system_of(source: WindowedRaster) -> CRS:
    """A raster's coordinate system; UnreadableImage if a view of it cannot be made."""
    if source.transform is None:
        raise UnreadableImage(
            "has no georeference, so that --ground-resolution cannot be kept; leave it out, or give"
            " it a world file and --crs EPSG:N"
        )
    if source.system is None:
        raise UnreadableImage(
            "has a georeference, but names no coordinate system that is known; name it with"
            " --crs EPSG:N"
        )
    return source.system


def _centre(source: WindowedRaster) -> tuple[float, float]:
    """Longitude and latitude of a raster's centre."""
    middle = ground.apply(
        source.transform, np.array([source.width / 2]), np.array([source.height / 2])
    )
    longitudes, latitudes = ground.convert(source.system, ground.DEGREES, *middle)
    if not np.isfinite([longitudes[0], latitudes[0]]).all():
        raise UnreadableImage(ground.NOWHERE)
    return float(longitudes[0]), float(latitudes[0])


def _sides_of_a_pixel(source: WindowedRaster, system: CRS) -> tuple[float, float]:
    """Metres that a step to the next column, and to the next row, takes at the centre."""
    x, y = source.width / 2, source.height / 2
    corners = ground.apply(source.transform, np.array([x, x + 1, x]), np.array([y, y, y + 1]))
    xs, ys = ground.convert(source.system, system, *corners)
    sides = np.hypot(xs[1:] - xs[0], ys[1:] - ys[0])
    if not (np.isfinite(sides).all() and sides.min() > 0):
        raise UnreadableImage(ground.NOWHERE)
    return float(sides[0]), float(sides[1])
