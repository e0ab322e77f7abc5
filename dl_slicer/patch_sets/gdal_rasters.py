"""Rasters read in windows by GDAL: where they lie, which of their pixels are data, 8 bits each."""

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from PIL import Image
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window

from dl_slicer.cli import printable
from dl_slicer.patch_sets import gdal, ground, image_files, rasters, vrts
from dl_slicer.patch_sets.image_files import UnreadableImage
from dl_slicer.patch_sets.rasters import Raster, View
from dl_slicer.patch_sets.sidecars import Sidecars, usable_transform

Box = tuple[int, int, int, int]  # x, y, width, height in pixels

DEEP_JPEG = (
    "is a JPEG of 12 bits, which GDAL does not read as it is installed here; convert it to a TIFF"
    " without JPEG"
)
LARGEST_BLOCK = 100_000_000  # bytes of all bands of a block: they are read together
SAMPLES = 16  # windows in a row and in a column of a thin sample
SAMPLE = 16  # pixels in a row and in a column of each
STRIP = 8_000_000  # pixels that are averaged at a time


@contextmanager
def open_raster(
    path: str | Path,
    kind: str,
    view: View,
    beside: Sidecars,
    root: str | Path | None,
) -> Iterator[Raster]:
    """Open a raster by one driver of GDAL, as a view shows it. Other arguments: see rasters."""
    with ExitStack() as files:
        name = os.path.abspath(path)
        if kind == "VRT":
            vrt = vrts.read(path, root, files)
            name = vrt.name
            beside = replace(
                beside, transform=beside.transform or vrt.transform, crs=beside.crs or vrt.crs
            )
        dataset = files.enter_context(gdal.opened(name, kind))
        _refuse_what_has_no_windows(dataset, path)
        with gdal.session():
            raster: Raster = _windowed(dataset, view, beside, path)
        if view.ground_resolution is not None:
            # Only views need it.
            from dl_slicer.patch_sets import warped_rasters

            raster = warped_rasters.WarpedRaster(raster, view.ground_resolution)
        yield raster


def _windowed(
    dataset: rasterio.DatasetReader, view: View, beside: Sidecars, path: str | Path
) -> "WindowedRaster":
    is_small = dataset.width * dataset.height <= rasters.WHOLE
    if dataset.driver == "JPEG" and is_small and dataset.count in (1, 3):
        return _Photograph(dataset, view, beside, path)
    return WindowedRaster(dataset, view, beside)


def _refuse_what_has_no_windows(dataset: rasterio.DatasetReader, path: str | Path) -> None:
    """UnreadableImage for a large raster that its format lets nobody read in windows."""
    if dataset.width * dataset.height <= rasters.WHOLE:
        return
    name = os.path.basename(path)
    kind = None
    if dataset.driver == "JPEG" and image_files.is_progressive(path):
        kind = "a progressive JPEG"
    if dataset.driver == "PNG" and image_files.is_interlaced(path):
        kind = "an interlaced PNG"
    height, width = dataset.block_shapes[0]
    block = height * width * sum(_dtype(each).itemsize for each in dataset.dtypes)
    if block > LARGEST_BLOCK or dataset.driver == "GTiff" and image_files.is_one_strip(path):
        kind = "compressed in one piece"
    if dataset.driver == "JP2OpenJPEG" and image_files.tile_of_jpeg_2000(path) > rasters.WHOLE:
        kind = "compressed in one piece"
    if kind:
        command = "gdal_translate -co TILED=YES -co COMPRESS=DEFLATE -co BIGTIFF=IF_SAFER"
        files = shlex.join([printable(name), printable(os.path.splitext(name)[0] + "-tiled.tif")])
        raise UnreadableImage(
            f"has more than {rasters.WHOLE / 1e6:.0f} million pixels and is {kind}, which nobody"
            f" can read in parts; make it a tiled TIFF: {command} {files}"
        )


class WindowedRaster(Raster):
    """A raster with its own pixels, read in windows."""

    def __init__(self, dataset: rasterio.DatasetReader, view: View, beside: Sidecars):
        super().__init__()
        self.system: CRS | None = None
        self.width = dataset.width
        self.height = dataset.height
        self._dataset = dataset
        self._view = view
        self._is_checked = False
        self._automatic: rasters.Stretch | None = None
        self._alpha = self._alpha_band()
        self._bands = self._pick_bands()
        self._refuse_kinds_of_numbers()
        self._to_rgb = self._conversion()
        self._find_gaps(beside)
        self._find_place(beside)

    # --------------------------------------------------------------------------- bands

    def _alpha_band(self) -> int | None:
        """The band that says where there is data, None if there is none."""
        chosen = self._view.bands or ()
        for index, meaning in enumerate(self._dataset.colorinterp, 1):
            if meaning == ColorInterp.alpha and index > 1 and index not in chosen:
                sample = self.sample((0, 0, self.width, self.height), [index])
                if np.isin(sample, (0, 255, 65535)).all():
                    return index
                self.remarks.append(
                    f"band {index} is marked as alpha and has other values than 0 and 255: it is"
                    " taken for a band like any other"
                )
        return None

    def _pick_bands(self) -> list[int]:
        count = self._dataset.count
        chosen = self._view.bands
        if chosen:
            for index in chosen:
                if not 1 <= index <= count:
                    raise UnreadableImage(
                        f"has {count} bands, no band {index}; name others with --bands"
                    )
            return list(chosen)
        colours = [index for index in range(1, count + 1) if index != self._alpha]
        if len(colours) == 2:
            raise UnreadableImage(
                "has 2 bands; say with --bands 1 which of them is to be read as grey, or with"
                " --bands 1 2 2 as which colours"
            )
        if self._is_cmyk():
            return colours[:4]
        return colours[:3]

    def _is_cmyk(self) -> bool:
        return self._dataset.colorinterp[0] == ColorInterp.cyan and self._dataset.count >= 4

    def _refuse_kinds_of_numbers(self) -> None:
        for index in self._bands:
            kind = _dtype(self._dataset.dtypes[index - 1]).kind
            if kind == "c":
                raise UnreadableImage(
                    "its pixels are complex numbers; convert it to 8 or 16 bits a channel"
                )
            if kind == "f":
                raise UnreadableImage(
                    "its pixels are floating-point numbers; convert it to 8 or 16 bits a channel"
                )

    def _depth(self) -> int:
        """Bits a value uses of the bands that are read."""
        depths = []
        for index in self._bands:
            said = self._dataset.tags(index, ns="IMAGE_STRUCTURE").get("NBITS")
            stored = 8 * _dtype(self._dataset.dtypes[index - 1]).itemsize
            depths.append(int(said) if said else min(stored, 16))
        return max(depths)

    def _conversion(self) -> Callable[[np.ndarray], np.ndarray]:
        """How values (bands, height, width) become colours, uint8 (height, width, bands)."""
        is_palette = self._dataset.colorinterp[0] == ColorInterp.palette
        if is_palette and self._bands == [1] and not self._view.stretch:
            colours = np.zeros((256, 3), np.uint8)
            for value, colour in self._dataset.colormap(1).items():
                if value < 256:
                    colours[value] = colour[:3]
            return lambda values: colours[np.minimum(values[0], 255)]
        depth = self._depth()
        is_inverted = (
            depth == 8 and self._dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
        )

        def convert(values: np.ndarray) -> np.ndarray:
            values = np.moveaxis(values, 0, -1)
            if depth < 8:
                return (values * (255 // (2**depth - 1))).astype(np.uint8)
            if values.dtype != np.uint8 or depth > 8:
                values = (values >> (depth - 8)).clip(0, 255).astype(np.uint8)
            return 255 - values if is_inverted else values

        return convert

    def _refuse_dark(self) -> None:
        """UnreadableImage if 16 bits a channel are used so little that they would look black."""
        if self._is_checked:
            return
        self._is_checked = True
        if self._view.stretch is None and self._depth() > 8:
            sample = self.sample((0, 0, self.width, self.height), self._bands)
            if sample.max(initial=0) >> (self._depth() - 8) < image_files.DARK >> 8:
                raise UnreadableImage(
                    image_files.too_dark(image_files.DARK >> (16 - self._depth()))
                )

    def _refuse_bright(self, values: np.ndarray) -> None:
        """UnreadableImage if values that are data are larger than 16 bits hold."""
        if values.dtype.itemsize > 2 and values.max() >= 1 << 16:
            named = [value for value in self._nodata if value is not None]
            if (values[~np.isin(values, named)] >= 1 << 16).any():
                raise UnreadableImage(image_files.TOO_BRIGHT)

    # --------------------------------------------------------------------------- place

    def _find_gaps(self, beside: Sidecars) -> None:
        """Find out what says where there is no data: an alpha band, nodata values or a mask."""
        flags = [self._dataset.mask_flag_enums[index - 1] for index in self._bands]
        self._has_mask = any(
            MaskFlags.per_dataset in flag and MaskFlags.alpha not in flag for flag in flags
        )
        named = [self._dataset.nodatavals[index - 1] for index in self._bands]
        self._nodata = [beside.nodata if value is None else value for value in named]
        self.has_gaps = self._alpha is not None or self._has_mask or None not in self._nodata

    def _find_place(self, beside: Sidecars) -> None:
        transform = self._dataset.transform
        if beside.transform is not None:
            transform = Affine(*beside.transform)
        # GDAL says the identity where there is none, and else whatever numbers a file holds.
        if transform == Affine.identity() or usable_transform(*transform[:6]) is None:
            return
        self.transform = transform
        self.system = ground.usable_system(self._dataset.crs, beside.crs, self._view.crs)
        if self.system:
            self.crs = self.system.to_string()
            self.metres_a_pixel = ground.metres_a_pixel(
                self.system, transform, self.width, self.height
            )

    # --------------------------------------------------------------------------- pixels

    def _values(self, bands: list[int], box: Box, step: int = 1) -> np.ndarray:
        """Values (bands, height, width) of a box, or every step-th of them."""
        shape = (len(bands), *_shape(box, step))
        try:
            with gdal.session():
                return self._dataset.read(bands, window=Window(*box), out_shape=shape)
        except UnreadableImage:
            compression = self._dataset.tags(ns="IMAGE_STRUCTURE").get("COMPRESSION", "")
            if "JPEG" in compression and self._depth() == 12:
                raise UnreadableImage(DEEP_JPEG) from None
            raise

    def sample(self, box: Box, bands: list[int] | None = None) -> np.ndarray:
        """Values (n, bands) of a box, in small windows spread over it; those without data, too."""
        bands = bands or self._bands
        return np.concatenate(
            [self._values(bands, small).reshape(len(bands), -1).T for small in thin_windows(box)]
        )

    def read(self, x, y, width, height, stretch=None):
        """See Raster."""
        self._refuse_dark()
        return self._colours(self._values(self._bands, (x, y, width, height)), stretch)

    def _colours(self, values: np.ndarray, stretch: rasters.Stretch | None) -> np.ndarray:
        if stretch is None and self._view.stretch is not None:
            stretch = self._view.stretch
            if stretch == "auto":
                stretch = self._whole_range()
        if stretch is not None:
            pixels = rasters.stretched(np.moveaxis(values, 0, -1), stretch)
        else:
            self._refuse_bright(values)
            pixels = self._to_rgb(values)
        if pixels.shape[2] == 4:
            pixels = np.asarray(
                Image.fromarray(np.ascontiguousarray(pixels), "CMYK").convert("RGB")
            )
        if pixels.shape[2] == 1:
            pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
        return np.ascontiguousarray(pixels)

    def _whole_range(self) -> rasters.Stretch:
        if self._automatic is None:
            self._automatic = self.range_of(0, 0, self.width, self.height)
        return self._automatic

    def data_mask(self, x, y, width, height):
        """See Raster."""
        return self._mask((x, y, width, height))

    def _mask(self, box: Box, step: int = 1, values: np.ndarray | None = None) -> np.ndarray:
        """Where there is data, bool; values: those of the box, if they are there already.

        There is none where all bands have their value for no data.
        """
        if self._alpha is not None:
            return self._values([self._alpha], box, step)[0] != 0
        shape = _shape(box, step)
        if self._has_mask:
            with gdal.session():
                return self._dataset.read_masks(1, window=Window(*box), out_shape=shape) != 0
        if None in self._nodata:
            return np.ones(shape, bool)
        if values is None:
            values = self._values(self._bands, box, step)
        mask = values[0] != self._nodata[0]
        for band, nodata in zip(values[1:], self._nodata[1:], strict=True):
            mask |= band != nodata
        return mask

    def range_of(self, x, y, width, height):
        """See Raster."""
        sample = []
        for box in thin_windows((x, y, width, height)):
            values, has_data = self.values(box)
            sample.append(values[:, has_data].ravel())
        return rasters.percentiles(np.concatenate(sample))

    def values(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Values as stored (bands, height, width) of a box, and where there is data, bool."""
        values = self._values(self._bands, box)
        return values, self._mask(box, values=values)

    def thumbnail(self, longest):
        """See Raster. Averaged first by a whole factor, in strips, from overviews if it can."""
        factor = max(1, max(self.width, self.height) // longest)
        pixels = self.reduced((0, 0, self.width, self.height), factor, with_overviews=True)
        return rasters.shrunk(Image.fromarray(pixels[:, :, :3]), longest)

    def reduced(
        self,
        box: Box,
        factor: int,
        stretch: rasters.Stretch | None = None,
        with_overviews: bool = False,
    ) -> np.ndarray:
        """Averages of the data in squares of factor x factor pixels, and how much data they have.

        box: its left and upper side are multiples of factor. Returns uint8 (height, width, 4); the
        last is 255 for squares full of data and 0 for those without. with_overviews: take what
        overviews in the file say, which may be averages or not.
        """
        x, y, width, height = box
        step = self._overview(factor) if with_overviews else 1
        rows = max(1, STRIP // (width * factor)) * factor
        strips = []
        for upper in range(y, y + height, rows):
            part = (x, upper, width, min(rows, y + height - upper))
            pixels = np.empty((*_shape(part, step), 4), np.uint8)
            values = self._values(self._bands, part, step)
            pixels[:, :, :3] = self._colours(values, stretch)
            pixels[:, :, 3] = self._mask(part, step, values) * np.uint8(255)
            strips.append(averaged(pixels, factor // step))
        return np.concatenate(strips)

    def _overview(self, factor: int) -> int:
        """The largest reduction that overviews in the file have and that divides a factor."""
        overviews = [self._dataset.overviews(index) for index in self._bands]
        shared = set(overviews[0]).intersection(*overviews[1:])
        return max((each for each in shared if factor % each == 0), default=1)


class _Photograph(WindowedRaster):
    """A JPEG that has a place, its pixels read whole by Pillow.

    A decoder may fill in the colours between pixels as it likes, and GDAL's and Pillow's differ: a
    world file is not to change what a JPEG looks like.
    """

    def __init__(
        self, dataset: rasterio.DatasetReader, view: View, beside: Sidecars, path: str | Path
    ):
        super().__init__(dataset, view, beside)
        self._path = path
        self._image: Image.Image | None = None

    def _values(self, bands, box, step=1):
        if self._image is None:
            self._image = image_files.read_image(self._path)
        x, y, width, height = box
        pixels = np.asarray(self._image.crop((x, y, x + width, y + height)))
        return np.moveaxis(pixels[::step, ::step, [band - 1 for band in bands]], -1, 0)


def _dtype(name: str) -> np.dtype:
    """A type of rasterio's; NumPy has no complex integers."""
    return np.dtype("complex64" if name == "complex_int16" else name)


def _shape(box: Box, step: int) -> tuple[int, int]:
    """(height, width) of every step-th pixel of a box."""
    return -(-box[3] // step), -(-box[2] // step)


def averaged(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Averages over squares of factor x factor pixels, as uint8 (height, width, 4).

    pixels: colours and 255 or 0 for data or none, which does not count. At the right and lower
    edge squares may be cut off.
    """
    if factor == 1:
        return pixels
    # Pillow takes the last of four channels for alpha, and weighs by it.
    return np.asarray(Image.fromarray(pixels).reduce(factor))


def thin_windows(box: Box) -> Iterator[Box]:
    """Small windows spread evenly over a box (x, y, width, height): all of it, if it is small."""
    x, y, width, height = box
    columns = _starts(width)
    for top, rows in _starts(height):
        for left, wide in columns:
            yield (x + left, y + top, wide, rows)


def _starts(length: int) -> list[tuple[int, int]]:
    """(start, length) of the windows of a thin sample along one side."""
    if length <= SAMPLES * SAMPLE:
        return [(0, length)]
    starts = np.linspace(0, length - SAMPLE, SAMPLES).astype(int).tolist()
    return [(start, SAMPLE) for start in starts]
