"""Patches read from a patch set, or from a folder in the published layout."""

import csv
import mmap
import os
import re
import threading
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from dl_slicer import machine
from dl_slicer.cli import InputError, printable
from dl_slicer.patch_sets import image_files, on_disk
from dl_slicer.patch_sets.image_files import UnreadableImage

KEPT_BYTES = (
    64 * 2**20
)  # of a split's arrays that may count as memory of the process that reads patches; a training run has two


def open_split(root, split, image_size=None):
    """The patches of one split of a patch set (or of a folder in the published layout).

    image_size: side of a patch in pixels; None takes the set's own, 224 for a JPEG folder. InputError if this is no whole
    patch set, if it lacks the split, or if its patches have another size.
    The result has: classes (list of city names), labels (N,) uint8 (uint16 beyond 256 cities), len(), name(i), read(indices), original(i),
    image_size, patch_size, stride (None where a JPEG folder does not say), default_workers (processes that reading is worth).
    """
    root = Path(root)
    if split not in on_disk.SPLITS:
        raise InputError(f"--split {printable(split)}: must be one of {', '.join(on_disk.SPLITS)}")
    if (root / "dataset.json").is_file():
        return ArrayPatches(root, split, image_size)
    if not root.is_dir():
        raise InputError(
            f"{printable(root)}: no such folder; make a patch set with preprocessing.py --out {printable(root)}"
        )
    if (root / "arrays").is_dir():
        raise InputError(
            f"{printable(root)}: preprocessing has not finished here (no dataset.json); run preprocessing.py again, it goes on where it stopped"
        )
    if any((root / name).is_dir() for name in on_disk.SPLITS):
        return JpegPatches(root, split, image_size or 224)
    raise InputError(
        f"{printable(root)}: no patch set (no dataset.json, no train, val or test folder); make one with preprocessing.py --out"
    )


class ArrayPatches:
    """The patches of one split as slices of memory-mapped arrays. See open_split."""

    default_workers = (
        0  # a slice takes microseconds, handing it from one process to another takes longer
    )

    def __init__(self, root, split, image_size):
        self.root, self.split = Path(root), split
        self.description = description = on_disk.load_description(root)
        self.classes = description["classes"]
        self.patch_size, self.stride, self.image_size = (
            description[key] for key in ("patch_size", "stride", "image_size")
        )
        if image_size not in (None, self.image_size):
            raise InputError(
                f"{printable(root)}: its patches are {self.image_size} pixels wide, {image_size} are asked for; "
                f"make a set with preprocessing.py --image-size {image_size}"
            )
        self.step = on_disk.scaled_stride(self.patch_size, self.stride, self.image_size)
        self.regions = on_disk.load_regions(root, split.removesuffix("_b"))
        counts = np.array([region.rows * region.cols for region in self.regions], dtype=np.int64)
        self._first = np.concatenate(
            [[0], np.cumsum(counts)]
        )  # flat index of each region's first patch
        self._cols = np.array([region.cols for region in self.regions], dtype=np.int64)
        self._subset = self._load_test_b() if split == "test_b" else None
        number = {city: i for i, city in enumerate(self.classes)}
        if not {region.city for region in self.regions} <= number.keys():
            raise InputError(
                f"{printable(root)}: regions.csv has cities that dataset.json has not; run preprocessing.py again"
            )
        labels = np.array(
            [number[region.city] for region in self.regions], on_disk.label_type(self.classes)
        )
        self.labels = (
            np.repeat(labels, counts)
            if self._subset is None
            else labels[self._locate(np.arange(len(self)))[0]]
        )
        if not len(self):
            raise InputError(f"{printable(root)}: no patches in {split}")
        self._check_files()
        machine.allow_open_files(len(self.regions))
        self.nbytes = sum(
            on_disk.array_bytes(region.rows, region.cols, description) for region in self.regions
        )  # of the arrays
        self._mapped, self._touched, self._from_disk = {}, 0, True

    def _load_test_b(self):
        number = {region.region: i for i, region in enumerate(self.regions)}
        file = self.root / "test_b.csv"
        try:
            with open(file, newline="", encoding="utf-8") as lines:
                rows = [
                    (number[row["region"]], int(row["row"]), int(row["col"]))
                    for row in csv.DictReader(lines)
                ]
        except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
            raise InputError(
                f"{printable(file)}: cannot be read ({printable(error)}); run preprocessing.py again"
            ) from None
        region, row, col = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        return self._first[region] + row * self._cols[region] + col

    def _check_files(self):
        # Now rather than after nine hours.
        for region in self.regions:
            file = self.root / region.file
            if not file.is_file() or file.stat().st_size != on_disk.array_bytes(
                region.rows, region.cols, self.description
            ):
                raise InputError(
                    f"{printable(file)}: missing or not whole; run preprocessing.py again, it makes only what is missing"
                )

    def __len__(self):
        return int(self._first[-1]) if self._subset is None else len(self._subset)

    def _locate(self, indices):
        flat = np.asarray(indices) if self._subset is None else self._subset[indices]
        region = np.searchsorted(self._first, flat, side="right") - 1
        row, col = np.divmod(flat - self._first[region], self._cols[region])
        return region, row, col

    def locate(self, index):
        """(region, row, col) of one patch, region a Region."""
        region, row, col = (int(value) for value in self._locate(index))
        return self.regions[region], row, col

    def name(self, index):
        region, row, col = self.locate(index)
        return f"{region.region}/r{row:02d}_c{col:02d}"

    def raster(self, index):
        """Path of the raster a patch was cut from, relative to the raw folder."""
        return self.locate(index)[0].raster

    def read(self, indices, out=None):
        """Patches as uint8 (n, image_size, image_size, 3), in `out` if that is given."""
        size, step = self.image_size, self.step
        batch = np.empty((len(indices), size, size, 3), np.uint8) if out is None else out
        places = list(zip(*(part.tolist() for part in self._locate(indices))))
        before = machine.blocks_read()
        if self._from_disk:  # ask for all of them, in the disk's order: twice as fast as one after the other where they are first used
            for region, row in sorted({place[:2] for place in places}):
                mapped, array = self._array(region)
                start = (128 + row * step * array.strides[0]) // mmap.PAGESIZE * mmap.PAGESIZE
                mapped.madvise(
                    mmap.MADV_WILLNEED, start, 128 + (row * step + size) * array.strides[0] - start
                )
        for i, (region, row, col) in enumerate(places):
            mapped, array = self._array(region)
            batch[i] = array[row * step : row * step + size, col * step : col * step + size]
            if self.nbytes > KEPT_BYTES:
                self._mapped[region] = mapped
                self._touched += size * array.strides[0]
                if self._touched > KEPT_BYTES:
                    self._give_back()
        self._from_disk = machine.blocks_read() > before
        return batch

    def _array(self, region):
        return _map(f"{self.root}/{self.regions[region].file}")

    def _give_back(self):
        # The system keeps the pages as long as it has room, but they no longer count as this process's memory.
        for mapped in self._mapped.values():
            mapped.madvise(mmap.MADV_DONTNEED)
        self._mapped, self._touched = {}, 0

    def region_arrays(self):
        """The array of each region, uint8 (H, W, 3), read one after the other."""
        for region in self.regions:
            yield np.load(self.root / region.file)

    def corners(self, indices):
        """(region, y, x) of patches, int64 (n,) each: the number of the region, and the upper-left pixel in its array."""
        region, row, col = self._locate(indices)
        return region, row * self.step, col * self.step

    def original(self, index, raw=None):
        """The patch as a Pillow image cut from its raster at full size, or from the array where the raster is gone or changed.

        raw: the raw folder, where it has moved since preprocessing.
        """
        region, row, col = self.locate(index)
        x, y = region.x + col * self.stride, region.y + row * self.stride
        stored = self.read([index])[0]
        try:
            patch = _raster(Path(raw or self.root / self.description["raw"]) / region.raster).crop(
                (x, y, x + self.patch_size, y + self.patch_size)
            )
        except UnreadableImage:
            return Image.fromarray(stored)
        difference = np.abs(
            np.asarray(image_files.resize(patch, (self.image_size, self.image_size)), np.int16)
            - stored
        )
        return (
            patch if difference.mean() < 4 else Image.fromarray(stored)
        )  # less: another version of Pillow


class JpegPatches:
    """The patches of one split as JPEG files in the published folder layout. See open_split."""

    default_workers = machine.available_cores()

    def __init__(self, root, split, image_size):
        self.root, self.split, self.image_size = Path(root), split, image_size
        self.patch_size = self.stride = None
        folder = self.root / split
        if not folder.is_dir():
            raise InputError(f"{printable(folder)}: no such folder")
        # Every split must number the classes alike, also if one lacks a city.
        self.classes = sorted(
            {city.name for name in on_disk.SPLITS for city in _folders(self.root / name)}
        )
        files = [
            (label, path)
            for label, city in enumerate(self.classes)
            for path in _images(folder / city)
        ]
        if not files:
            raise InputError(f"{printable(folder)}: no images in it, expected <City (CODE)>/*.jpg")
        self.labels = np.array([label for label, _ in files], on_disk.label_type(self.classes))
        self.files = [path for _, path in files]

    def __len__(self):
        return len(self.files)

    def name(self, index):
        return self.files[index].relative_to(self.root).as_posix()

    def raster(self, index):
        """The raster's name as far as preprocessing.py's file names tell it: all before _rNN_cNN."""
        return re.sub(r"_r\d+_c\d+$", "", Path(self.name(index)).with_suffix("").as_posix())

    def read(self, indices, out=None):
        """Patches as uint8 (n, image_size, image_size, 3), in `out` if that is given."""
        size = (self.image_size, self.image_size)
        batch = np.empty((len(indices), *size, 3), np.uint8) if out is None else out
        for i, index in enumerate(indices):
            batch[i] = np.asarray(image_files.resize(self.original(index), size))
        return batch

    def original(self, index, raw=None):
        try:
            return image_files.read_image(self.files[index])
        except UnreadableImage as error:
            raise InputError(f"{printable(self.files[index])}: {error}")


def _folders(folder):
    return (
        sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        if folder.is_dir()
        else []
    )


def _images(folder):
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [
        folder / name
        for name in names
        if os.path.splitext(name)[1].lower() in image_files.SUFFIXES and not name.startswith(".")
    ]


_maps, _maps_lock = {}, threading.Lock()


def _map(file):
    """(mmap, array) of an array's file; the latest used are kept open."""
    found = _maps.get(file)
    if found is None:
        with open(file, "rb") as opened, _maps_lock:
            if len(_maps) >= machine.mappable_files():
                _maps.pop(next(iter(_maps)))
            np.lib.format.read_magic(opened)
            shape, _, _ = np.lib.format.read_array_header_1_0(opened)
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            found = _maps[file] = mapped, np.frombuffer(mapped, np.uint8, offset=128).reshape(shape)
    return found


@lru_cache(maxsize=1)
def _raster(file):
    return image_files.read_image(file)
