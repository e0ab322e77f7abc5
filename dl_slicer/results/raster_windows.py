"""Whole rasters cut into windows as large as the patches that a network was trained on."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from affine import Affine
from PIL import Image
from tqdm import tqdm

from dl_slicer.model.checkpoints import SAME_SIDE, Checkpoint
from dl_slicer.patch_sets import gaps, ground, on_disk, rasters, strips
from dl_slicer.patch_sets.image_files import UnreadableImage
from dl_slicer.patch_sets.rasters import Raster, View
from relevance_cam.rasters import Batch, Corner, Grid, cut_windows, mean_by_place, median_by_place

PUBLISHED_SIDE = 200  # metres that a patch is wide
STRIP = 4_000_000  # pixels of the raster that are read at a time
THUMBNAIL = 3000  # pixels of the longer side of pictures of a whole raster


@dataclass(frozen=True)
class Windows:
    """The windows that a checkpoint's network looks at."""

    patch_size: int  # pixels of the raster
    size: int  # the same length in the network's pixels
    step: int  # between windows, in the network's pixels

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Windows":
        """Give those of a checkpoint: the published ones where the file does not say."""
        patch_size = checkpoint.patch_size or on_disk.PATCH_SIZE
        stride = checkpoint.stride or on_disk.STRIDE
        size = checkpoint.image_size
        return cls(patch_size, size, max(1, round(stride * size / patch_size)))

    @property
    def scale(self) -> float:
        """Pixels of the raster that one of the network's is wide."""
        return self.patch_size / self.size

    @property
    def stride(self) -> int | None:
        """Pixels of the raster between windows; None where that is no whole number."""
        stride, rest = divmod(self.step * self.patch_size, self.size)
        return None if rest else stride

    def seen(self, length: int) -> int:
        """The network's pixels along a side of a raster all of which is covered."""
        return max(self.size, round(length / self.scale))

    def covered(self, length: int) -> int:
        """Pixels of a side that whole windows cover, at exactly the scale of training."""
        if self.stride is not None:
            return (length - self.patch_size) // self.stride * self.stride + self.patch_size
        unit = self.patch_size // math.gcd(self.patch_size, self.size)
        return length // unit * unit


@dataclass(frozen=True)
class SeenRaster:
    """A raster as a network sees it."""

    raster: Raster
    windows: Windows
    width: int  # pixels of the raster that are covered, from its upper left corner
    height: int
    max_nodata: float  # share of a window's pixels that may be without data
    density: int = 1  # windows a step, along each side

    @classmethod
    def of(cls, raster: Raster, checkpoint: Checkpoint) -> "SeenRaster":
        """See a raster, which is a window large at least, as in training.

        Where it lies on the ground, has gaps or is large, what the last whole window leaves over
        is not covered: so its scale is exactly that of training. Others are covered to the rim.
        """
        windows = Windows.of(checkpoint)
        size = (raster.width, raster.height)
        is_large = raster.width * raster.height > rasters.WHOLE
        if raster.transform is not None or raster.has_gaps or is_large:
            size = (windows.covered(raster.width), windows.covered(raster.height))
        return cls(raster, windows, *size, checkpoint.max_nodata)

    @property
    def is_placed(self) -> bool:
        """Whether it is known where the raster lies."""
        return self.raster.transform is not None and self.raster.crs is not None

    @cached_property
    def grid(self) -> Grid:
        """The windows, in the network's pixels."""
        windows = self.windows
        height, width = (windows.seen(length) for length in (self.height, self.width))
        return Grid(height, width, windows.size, windows.step // self.density)

    def denser(self) -> "SeenRaster":
        """See the same raster through windows half a step apart, where a step can be halved.

        A window knows nothing of what lies beyond its rim. That draws a map aside which is blended
        from windows half a patch apart: in layer4 by up to 18 of 224 pixels, but by 8 where they
        lie a quarter of a patch apart.
        """
        windows = self.windows
        can_halve = windows.step % 2 == 0 and (windows.stride or 0) % 2 == 0
        is_wide = 2 * windows.step >= windows.size
        return replace(self, density=2 if can_halve and is_wide else 1)

    @cached_property
    def corners(self) -> list[Corner]:
        """Upper left corners of the windows with data, in the network's pixels, row by row."""
        corners = self.grid.corners()
        if not self.raster.has_gaps or self.windows.stride is None:
            return corners
        rows = len({y for y, _ in corners})
        settings = {
            "patch_size": self.windows.patch_size,
            "stride": self.windows.stride // self.density,
            "max_nodata": self.max_nodata,
        }
        without = gaps.find_windows(self.raster, (0, 0), rows, len(corners) // rows, settings)
        gone = set(without.tolist())
        if len(gone) == len(corners):
            raise UnreadableImage(
                f"no patch of it has data in more than {1 - self.max_nodata:.0%} of its pixels"
            )
        return [corner for number, corner in enumerate(corners) if number not in gone]

    def by_place(self, probabilities: np.ndarray) -> np.ndarray:
        """Mean probabilities (rows, cols, K) of the windows (n, K) with data over each place.

        A place is a step wide; NaN where there is no window. Of denser windows those count that
        lie a step apart. Where it is known where a raster lies, a place that is cut off at a rim
        is left out.
        """
        step = self.windows.step
        grid = self.grid._replace(step=step)
        wanted = set(grid.corners())
        counts = [corner in wanted for corner in self.corners]
        corners = [corner for corner in self.corners if corner in wanted]
        by_place = mean_by_place(corners, probabilities[counts], grid)
        if self.is_placed:
            by_place = by_place[: grid.height // step, : grid.width // step]
        return by_place

    def median_by_place(self, values: np.ndarray) -> np.ndarray:
        """Median (rows, cols) of the values (n,) of the windows with data over each place.

        The places are those of by_place; windows must lie a step apart. NaN is no value.
        """
        grid = self.grid
        found = median_by_place(self.corners, values, grid)
        if self.is_placed:
            found = found[: grid.height // grid.step, : grid.width // grid.step]
        return found

    @property
    def cell(self) -> float:
        """Pixels of the raster that a place is wide."""
        return self.windows.step * self.windows.scale

    def transform(self, cell: float) -> Affine:
        """Where cells so many pixels of the raster wide lie, from the upper left corner."""
        return ground.windowed(self.raster.transform, 0, 0, cell)

    @property
    def megapixels(self) -> float:
        """Pixels of the raster that are covered."""
        return self.width * self.height / 1e6

    def batches(self, batch_size: int, bar: tqdm) -> Iterator[Batch]:
        """Give the windows with data, some at a time; what is read counts on a bar."""
        yield from cut_windows(self._strips(bar), self.corners, self.grid.size, batch_size)

    def _strips(self, bar: tqdm) -> Iterator[np.ndarray]:
        box = (0, 0, self.width, self.height)
        size = (self.grid.width, self.grid.height)
        rows = min(self.grid.step, max(1, round(STRIP / self.width / self.windows.scale)))
        smaller = SmallerPicture(-(-max(size) // THUMBNAIL))
        for strip in strips.resized_strips(self.raster, box, size, rows):
            bar.update(self.megapixels * len(strip) / self.grid.height)
            yield strip
            if max(size) > THUMBNAIL:
                smaller.add(strip)
        if max(size) > THUMBNAIL:
            # Another look at a large raster would take as long as all of this.
            self.__dict__["picture"] = smaller.finish()

    @cached_property
    def picture(self) -> Image.Image:
        """What is covered, at most THUMBNAIL pixels long, in colours."""
        picture = self.raster.thumbnail(THUMBNAIL)
        whole = (self.raster.width, self.raster.height)
        if whole == (self.width, self.height):
            return picture
        shares = (self.width / whole[0], self.height / whole[1])
        box = (0, 0, picture.width * shares[0], picture.height * shares[1])
        size = (max(1, round(box[2])), max(1, round(box[3])))
        return picture.resize(size, Image.Resampling.BILINEAR, box=box)


class SmallerPicture:
    """A picture made smaller by a whole factor, of strips that come one after the other."""

    def __init__(self, factor: int):
        self._factor = factor
        self._waiting: np.ndarray | None = None
        self._parts: list[np.ndarray] = []

    def add(self, strip: np.ndarray) -> None:
        """Take further rows, uint8 (h, W, 3)."""
        rows = strip if self._waiting is None else np.concatenate([self._waiting, strip])
        whole = len(rows) // self._factor * self._factor
        self._waiting = rows[whole:].copy()
        self._reduce(rows[:whole])

    def finish(self) -> Image.Image:
        """Give the picture."""
        self._reduce(self._waiting)
        return Image.fromarray(np.concatenate(self._parts))

    def _reduce(self, rows: np.ndarray) -> None:
        if len(rows):
            self._parts.append(np.asarray(Image.fromarray(rows).reduce(self._factor)))


@contextmanager
def open_raster(
    path: Path, checkpoint: Checkpoint, root: Path | None = None
) -> Iterator[SeenRaster]:
    """Open a raster as the network saw those of its training.

    A picture that does not say where it lies is taken to have the ground resolution of training.
    root: nothing outside this folder is opened, None for the file's own. UnreadableImage, also
    within the context, if that cannot be.
    """
    view = checkpoint.view
    if view.ground_resolution is not None and not _lies_somewhere(path, view, root):
        view = replace(view, ground_resolution=None)
    if view.stretch == "auto":
        with rasters.open_raster(path, view, root) as raster:
            seen = SeenRaster.of(_large_enough(raster, checkpoint), checkpoint)
            view = replace(view, stretch=raster.range_of(0, 0, seen.width, seen.height))
    with rasters.open_raster(path, view, root) as raster:
        raster.remarks += _remarks_on_size(raster, checkpoint)
        yield SeenRaster.of(_large_enough(raster, checkpoint), checkpoint)


def _remarks_on_size(raster: Raster, checkpoint: Checkpoint) -> list[str]:
    """Say what cannot be known, or differs, of a raster's ground resolution."""
    resolution = checkpoint.ground_resolution
    if resolution is not None:
        if raster.transform is not None:
            return []
        return [f"has no georeference: taken to have {resolution:g} m a pixel, as in training"]
    if raster.metres_a_pixel is None:
        return []
    patch_size = Windows.of(checkpoint).patch_size
    side = patch_size * raster.metres_a_pixel
    trained = PUBLISHED_SIDE
    if checkpoint.metres_a_pixel is not None:
        trained = patch_size * checkpoint.metres_a_pixel
    if abs(side - trained) <= SAME_SIDE * trained:
        return []
    whose = "published ones" if checkpoint.metres_a_pixel is None else "those of training"
    return [f"its patches are {side:.4g} m wide, {whose} {trained:.4g} m"]


def _lies_somewhere(path: Path, view: View, root: Path | None) -> bool:
    with rasters.open_raster(path, replace(view, ground_resolution=None), root) as raster:
        if raster.transform is not None and raster.crs is None:
            raise UnreadableImage(
                "has a georeference, but names no coordinate system that is known; write it in:"
                " gdal_edit.py -a_srs EPSG:N FILE"
            )
        return raster.transform is not None


def _large_enough(raster: Raster, checkpoint: Checkpoint) -> Raster:
    size = Windows.of(checkpoint).patch_size
    if min(raster.width, raster.height) < size:
        raise UnreadableImage(
            f"{raster.width} x {raster.height} pixels, smaller than a patch of {size} x {size}"
            " pixels; take a larger picture of the same ground resolution"
        )
    return raster
