"""Patches read from a patch set, or from a folder in the published layout."""

import atexit
import mmap
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from dl_slicer import machine
from dl_slicer.cli import InputError, printable
from dl_slicer.patch_sets import image_files, on_disk, rasters
from dl_slicer.patch_sets.image_files import UnreadableImage
from dl_slicer.patch_sets.jpeg_patches import JpegPatches
from dl_slicer.patch_sets.on_disk import Indices, Part, Region, Window
from dl_slicer.patch_sets.rasters import Raster, View

# What of a split's arrays may count as memory of the process that reads its patches; a training
# run has two splits.
KEPT_BYTES = 64 * 2**20

# Mean difference in grey levels between a stored patch and one cut anew. Less: resized by another
# version of Pillow. More: the raster has changed.
SAME_PICTURE = 4


def open_split(
    root: str | Path, split: str, image_size: int | None = None
) -> "ArrayPatches | JpegPatches":
    """The patches of one split of a patch set (or of a folder in the published layout).

    image_size: side of a patch in pixels; None takes the set's own, 224 for a JPEG folder.
    InputError if this is no finished patch set, if it lacks the split, or if its patches have
    another size.

    The result has: classes (names of the cities), labels (N,) uint8 (uint16 beyond 256 cities),
    len(), name(i), raster(i), site(i), locate(i), parts(), doubts(), read(indices), original(i),
    image_size, patch_size, stride, view, metres_a_pixel (None where a JPEG folder does not say),
    default_workers (processes that reading is worth).
    """
    root = Path(root)
    if split not in on_disk.READABLE:
        choices = ", ".join(on_disk.READABLE)
        raise InputError(f"--split {printable(split)}: must be one of {choices}")
    if on_disk.is_finished(root):
        return ArrayPatches(root, split, image_size)
    if not root.is_dir():
        raise InputError(
            f"{printable(root)}: no such folder;"
            f" make a patch set with preprocessing.py --out {printable(root)}"
        )
    if on_disk.has_arrays(root):
        raise InputError(
            f"{printable(root)}: preprocessing has not finished here (no {on_disk.DESCRIPTION});"
            " run preprocessing.py again, it goes on where it stopped"
        )
    if on_disk.has_jpegs(root):
        if split == on_disk.HELD_OUT:
            raise InputError(
                f"{printable(root)}: JPEGs do not tell which of them are of the held-out site, so"
                f" --split {split} needs a patch set of preprocessing.py; --split test has the part"
                " of it that is test"
            )
        return JpegPatches(root, split, image_size or on_disk.IMAGE_SIZE)
    raise InputError(
        f"{printable(root)}: no patch set (no {on_disk.DESCRIPTION}, no train, val or test folder);"
        " make one with preprocessing.py --out"
    )


class ArrayPatches:
    """The patches of one split as slices of memory-mapped arrays. See open_split."""

    # A slice takes microseconds, handing it from one process to another takes longer.
    default_workers = 0

    def __init__(self, root: Path, split: str, image_size: int | None):
        self.root = root
        self.split = split
        self.description = on_disk.load_description(root)
        self.settings = self.description.settings
        self.classes = self.description.classes
        self.patch_size = self.description.patch_size
        self.stride = self.description.stride
        self.image_size = self.description.image_size
        if image_size not in (None, self.image_size):
            raise InputError(
                f"{printable(root)}: its patches are {self.image_size} pixels wide, {image_size}"
                f" are asked for; make a set with preprocessing.py --image-size {image_size}"
            )
        self.step = on_disk.scaled_stride(self.patch_size, self.stride, self.image_size)
        self.view = self.description.view
        self.allow_overlap = self.description.allow_overlap
        self.max_nodata = self.description.max_nodata
        self.regions = self._load_regions()
        self._check_regions()
        counts = np.array([region.rows * region.cols for region in self.regions], dtype=np.int64)
        # In one row of all windows: where those of each region begin, and how many there are.
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self._cols = np.array([region.cols for region in self.regions], dtype=np.int64)
        # The windows of that row that are patches of this split; None: all.
        self._subset = self._load_test_b() if split == "test_b" else self._leave_out()
        self.labels = self._label_patches(counts)
        self._check_counts()
        if not len(self):
            raise InputError(f"{printable(root)}: no patches in {split}")
        machine.allow_open_files(len(self.regions))
        # Of all arrays. What read() remembers: maps that were used, bytes of them that may count
        # as memory by now, and whether the last batch had to come from a disk.
        self.nbytes = sum(self._array_bytes(region) for region in self.regions)
        self._mapped: dict[int, mmap.mmap] = {}
        self._touched = 0
        self._from_disk = True

    def __getstate__(self) -> dict:
        # For processes that are started anew: a map belongs to the process that made it.
        return {**self.__dict__, "_mapped": {}, "_touched": 0}

    def _load_regions(self) -> list[Region]:
        its_format = self.description.format
        if self.split != on_disk.HELD_OUT:
            return on_disk.load_regions(self.root, self.split.removesuffix("_b"), its_format)
        every = on_disk.load_regions(self.root, None, its_format)
        test_sites = {(region.city, region.site) for region in every if region.split == "test"}
        is_halved = self.description.val == "half"
        return [
            region
            for region in every
            if region.split != "train" and (is_halved or (region.city, region.site) in test_sites)
        ]

    def _load_test_b(self) -> np.ndarray:
        rows = on_disk.load_test_b(self.root, self.regions)
        region, row, col = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        return self._first[region] + row * self._cols[region] + col

    def _leave_out(self) -> np.ndarray | None:
        """Give the windows with data; None if that is all."""
        if not any(region.without_data for region in self.regions):
            return None
        # Of tens of millions of patches half the memory.
        index_type = np.int32 if self._first[-1] < 2**31 else np.int64
        with_data = [
            (on_disk.windows_with_data(region) + first).astype(index_type)
            for region, first in zip(self.regions, self._first, strict=False)
        ]
        return np.concatenate(with_data)

    def _label_patches(self, counts: np.ndarray) -> np.ndarray:
        number = {city: i for i, city in enumerate(self.classes)}
        label_type = on_disk.label_type(self.classes)
        of_region = np.array([number[region.city] for region in self.regions], label_type)
        if self._subset is None:
            return np.repeat(of_region, counts)
        region, _, _ = self._locate(np.arange(len(self)))
        return of_region[region]

    def _array_bytes(self, region: Region) -> int:
        return on_disk.array_bytes(region.rows, region.cols, self.settings)

    def _check_regions(self) -> None:
        if not {region.city for region in self.regions} <= set(self.classes):
            raise InputError(
                f"{printable(self.root)}: {on_disk.REGIONS} has cities that"
                f" {on_disk.DESCRIPTION} has not;"
                " run preprocessing.py again"
            )
        # All of them when the set is opened: training is not to stop at one hours later.
        for region in self.regions:
            fault = on_disk.fault_of_region(region, self.settings)
            if fault:
                raise InputError(
                    f"{printable(self.root / on_disk.REGIONS)}: {printable(region.region)} {fault};"
                    " run preprocessing.py again"
                )
            file = f"{self.root}/{region.file}"
            if not on_disk.is_array(file, region.rows, region.cols, self.settings):
                raise InputError(
                    f"{printable(file)}: missing or not whole; run preprocessing.py again, it"
                    " makes only what is missing"
                )

    def _check_counts(self) -> None:
        if self.description.counts is None:
            return
        counts = np.bincount(self.labels, minlength=len(self.classes)).tolist()
        found = dict(zip(self.classes, counts, strict=True))
        expected = self._expected_counts(self.description.counts)
        for city in [*found, *expected]:
            if found.get(city) != expected.get(city):
                raise InputError(
                    f"{printable(self.root)}: {on_disk.DESCRIPTION} counts"
                    f" {expected.get(city, 'no')} patches of {printable(city[:200])}"
                    f" in {self.split}, its tables have {found.get(city, 'no')};"
                    " run preprocessing.py again"
                )

    def _expected_counts(self, counts: Mapping[str, Mapping[str, int]]) -> Mapping[str, int]:
        """{city: patches} of this split by dataset.json."""
        if self.split != on_disk.HELD_OUT:
            return counts[self.split]
        # The val patches of a city are all of its held-out site, or none is.
        halved = {region.city for region in self.regions if region.split == "val"}
        return {
            city: count + (counts["val"].get(city, 0) if city in halved else 0)
            for city, count in counts["test"].items()
        }

    def __len__(self) -> int:
        return int(self._first[-1]) if self._subset is None else len(self._subset)

    def _locate(self, indices: Indices) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(number of the region, row, col) of patches."""
        in_row = np.asarray(indices) if self._subset is None else self._subset[indices]
        region = np.searchsorted(self._first, in_row, side="right") - 1
        row, col = np.divmod(in_row - self._first[region], self._cols[region])
        return region, row, col

    def locate(self, index: int) -> Window:
        """(region, row, col) of one patch."""
        region, row, col = (int(value) for value in self._locate(index))
        return self.regions[region], row, col

    def name(self, index: int) -> str:
        """Name of a patch: its region, and where it lies in that."""
        region, row, col = self.locate(index)
        return f"{region.region}/{on_disk.window_name(row, col)}"

    def raster(self, index: int) -> str:
        """Path of the raster a patch was cut from, relative to the raw folder."""
        return self.locate(index)[0].raster

    def doubts(self) -> list[str]:
        """What is not known of which patches are of one raster: nothing. See JpegPatches."""
        return []

    def describe_unplaced(self) -> str:
        """Say of how many rasters it is not known which patches overlap: of none."""
        return ""

    def site(self, index: int) -> str:
        """Name of the site of a patch, within its city."""
        return self.locate(index)[0].site

    def parts(self) -> list[Part]:
        """The patches of each region, in order; of any split but test_b."""
        first = self._first
        if self._subset is not None:
            first = np.searchsorted(self._subset, self._first)
        return [
            Part(
                range(int(begin), int(end)),
                [self.root / region.file],
                f"{self.image_size} {self.step} {region.without_data}",
            )
            for region, begin, end in zip(self.regions, first, first[1:], strict=False)
            if end > begin
        ]

    def read(self, indices: Indices, out: np.ndarray | None = None) -> np.ndarray:
        """Patches as uint8 (n, image_size, image_size, 3), in `out` if that is given."""
        size = self.image_size
        batch = np.empty((len(indices), size, size, 3), np.uint8) if out is None else out
        region_row_col = (part.tolist() for part in self._locate(indices))
        windows = list(zip(*region_row_col, strict=True))
        blocks_before = machine.blocks_read()
        if self._from_disk:
            self._read_ahead(windows)
        for i, (region, row, col) in enumerate(windows):
            mapped, array = self._array(region)
            y = row * self.step
            x = col * self.step
            batch[i] = array[y : y + size, x : x + size]
            if self.nbytes > KEPT_BYTES:
                self._mapped[region] = mapped
                self._touched += size * array.strides[0]
                if self._touched > KEPT_BYTES:
                    self._give_back()
        self._from_disk = machine.blocks_read() > blocks_before
        return batch

    def _array(self, region: int) -> tuple[mmap.mmap, np.ndarray]:
        return _map(f"{self.root}/{self.regions[region].file}")

    def _read_ahead(self, windows: Sequence[tuple[int, int, int]]) -> None:
        """Ask the disk for all patches of a batch, in its own order.

        That is twice as fast as waiting for one after the other where they are first used.
        """
        for region, row in sorted({(region, row) for region, row, _ in windows}):
            mapped, array = self._array(region)
            line = array.strides[0]  # bytes
            first = on_disk.ARRAY_HEADER + row * self.step * line
            end = first + self.image_size * line
            page = first // mmap.PAGESIZE * mmap.PAGESIZE
            _advise(mapped, "MADV_WILLNEED", page, end - page)

    def _give_back(self) -> None:
        # The system keeps the pages as long as it has room, but they no longer count as this
        # process's memory.
        for mapped in self._mapped.values():
            _advise(mapped, "MADV_DONTNEED")
        self._mapped = {}
        self._touched = 0

    @property
    def metres_a_pixel(self) -> float | None:
        """Metres of the ground that a pixel of the rasters is wide, as they were seen.

        None where rasters differ by more than 5 %, or do not say.
        """
        metres = [region.metres_a_pixel for region in self.regions]
        if None in metres or max(metres) > 1.05 * min(metres):
            return None
        return float(np.median(metres))

    def region_arrays(self) -> Iterator[np.ndarray]:
        """The array of each region, uint8 (H, W, 3), read one after the other."""
        for region in self.regions:
            yield np.load(self.root / region.file)

    def corners(self, indices: Indices) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(region, y, x) of patches, int64 (n,) each.

        That is the number of the region, and the upper-left pixel in its array.
        """
        region, row, col = self._locate(indices)
        return region, row * self.step, col * self.step

    def patches_before(self, region: np.ndarray, row: np.ndarray) -> np.ndarray:
        """How many patches stand before a row of windows of a region; of any split but test_b."""
        window = self._first[region] + row * self._cols[region]
        return window if self._subset is None else np.searchsorted(self._subset, window)

    def original(self, index: int, raw: str | Path | None = None) -> Image.Image:
        """The patch as a Pillow image, cut from its raster at full size.

        The stored patch where the raster is gone or has changed. raw: the raw folder, where it has
        moved since preprocessing.
        """
        region, row, col = self.locate(index)
        x = region.x + col * self.stride
        y = region.y + row * self.stride
        size = self.patch_size
        stored = self.read([index])[0]
        raw = Path(raw or self.root / self.description.raw)
        try:
            file = on_disk.raster_path(self.root, raw, region.raster)
            raster = _raster(file, self.view, raw)
            if x + size > raster.width or y + size > raster.height:
                raise UnreadableImage("has become smaller")
            patch = Image.fromarray(raster.read(x, y, size, size, on_disk.stretch_of(region)))
        except UnreadableImage:
            return Image.fromarray(stored)
        resized = image_files.resize(patch, (self.image_size, self.image_size))
        difference = np.abs(np.asarray(resized, np.int16) - stored)
        return patch if difference.mean() < SAME_PICTURE else Image.fromarray(stored)


PatchSet = ArrayPatches | JpegPatches


_maps: dict[str, tuple[mmap.mmap, np.ndarray]] = {}
_maps_lock = threading.Lock()


def _map(file: str) -> tuple[mmap.mmap, np.ndarray]:
    """The map of an array's file, and the array in it; the latest used are kept open."""
    known = _maps.get(file)
    if known is not None:
        return known
    with open(file, "rb") as opened, _maps_lock:
        if len(_maps) >= machine.mappable_files():
            _maps.pop(next(iter(_maps)))
        np.lib.format.read_magic(opened)
        shape, _, _ = np.lib.format.read_array_header_1_0(opened)
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        array = np.frombuffer(mapped, np.uint8, offset=on_disk.ARRAY_HEADER).reshape(shape)
        _maps[file] = mapped, array
    return mapped, array


def _advise(mapped: mmap.mmap, advice: str, *part: int) -> None:
    """Tell the system what a map, or a part of it, will be used for; Windows cannot be told."""
    if hasattr(mmap, advice):
        mapped.madvise(getattr(mmap, advice), *part)


# The latest raster that a patch was cut from, kept open: {what was asked for: (raster, how it is
# closed)}.
_opened: dict[tuple, tuple[Raster, ExitStack]] = {}


def _raster(file: Path, view: View, root: Path) -> Raster:
    key = (file, view, root)
    if key not in _opened:
        close_rasters()
        stack = ExitStack()
        _opened[key] = stack.enter_context(rasters.open_raster(file, view, root)), stack
    return _opened[key][0]


@atexit.register  # at the very end GDAL cannot be called any more
def close_rasters() -> None:
    """Close the raster that the latest patch was cut from."""
    while _opened:
        _, stack = _opened.popitem()[1]
        stack.close()


# Before modules go: a raster that is closed after GDAL has gone makes Python complain.
atexit.register(close_rasters)
