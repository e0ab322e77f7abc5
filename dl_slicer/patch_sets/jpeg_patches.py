"""Patches read from a folder in the published layout: <split>/<City (CODE)>/*.jpg."""

from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from dl_slicer import cities, machine
from dl_slicer.cli import InputError, printable
from dl_slicer.patch_sets import image_files, on_disk, published_names, published_windows
from dl_slicer.patch_sets.image_files import UnreadableImage
from dl_slicer.patch_sets.on_disk import Indices, Part, Region, Window
from dl_slicer.patch_sets.published_names import OTHER_HALF, SAME_PART, Patches, PatchName
from dl_slicer.patch_sets.published_windows import Windows

FILES_A_PART = 512


class JpegPatches:
    """The patches of one split as JPEG files in the published layout. See reading.open_split.

    They are in the order of city, raster and window, as those of a patch set, where names tell it.
    """

    default_workers = machine.available_cores()

    def __init__(self, root: Path, split: str, image_size: int):
        self.root = root
        self.split = split
        self.image_size = image_size
        self.patch_size = None
        self.stride = None
        self.view = None
        self.allow_overlap = False
        self.max_nodata = on_disk.MAX_NODATA
        self.metres_a_pixel = None
        folder = root / split
        if not folder.is_dir():
            raise InputError(f"{printable(folder)}: no such folder")
        # A city has the same number in every split, also where one of them lacks a city.
        names = {city for name in on_disk.SPLITS for city in _list_cities(root / name)}
        self.classes = sorted(names)
        for city in self.classes:
            cities.check_name(city, f"{printable(root)}: folder")
        labels = []
        self.files: list[Path] = []
        for label, city in enumerate(self.classes):
            names = published_names.list_images(folder / city)
            sorted_names = published_names.sort_names(names, split)
            self.files += [folder / city / name for name in sorted_names]
            labels += [label] * len(names)
        if not self.files:
            raise InputError(f"{printable(folder)}: no images in it, expected <City (CODE)>/*.jpg")
        self.labels = np.array(labels, on_disk.label_type(self.classes))

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """Name of a patch: its path in the folder."""
        return self.files[index].relative_to(self.root).as_posix()

    def raster(self, index: int) -> str:
        """The raster's name as far as a file's name tells it; else the patch's own."""
        file = self.files[index]
        said = self._said(index)
        name = file.stem if said is None else said.raster
        return f"{self.split}/{file.parent.name}/{name}"

    def site(self, index: int) -> str:
        """The site's name, if a file that preprocessing.py named tells it; else nothing."""
        site, separator, _ = self.files[index].name.partition("__")
        return site if separator else ""

    def parts(self) -> list[Part]:
        """Some hundreds of files of a city in each part, in order."""
        ends = np.flatnonzero(np.diff(self.labels)) + 1
        return [
            Part(
                range(start, min(start + FILES_A_PART, end)),
                self.files[start : min(start + FILES_A_PART, end)],
                f"jpeg {self.image_size}",
            )
            for begin, end in zip([0, *ends.tolist()], [*ends.tolist(), len(self)], strict=True)
            for start in range(begin, end, FILES_A_PART)
        ]

    def locate(self, index: int) -> Window | None:
        """(region, row, col) of one patch, as far as names and pictures tell; None if they do not.

        The region has names, rows and cols alone: where it lies in its raster is not known. The
        first call reads some pictures of each raster.
        """
        said = self._said(index)
        if said is None:
            return None
        city = self.files[index].parent.name
        grid = self._windows.grids[city, said.raster]
        row_col = grid.locate(said.place)
        if row_col is None:
            return None
        split = self.split.removesuffix("_b")
        region = Region(
            region=f"{city}/{said.raster}.{split}",
            split=split,
            city=city,
            site="",
            raster=self.raster(index),
            x=0,
            y=0,
            width=0,
            height=0,
            rows=grid.rows,
            cols=grid.cols,
            file="",
        )
        return region, *row_col

    def find_sizes(self) -> tuple[int, int] | None:
        """(side, stride) of patches in pixels of their pictures, None where they do not tell."""
        sizes = self._windows.sizes
        return None if sizes is None else (sizes.side, sizes.stride)

    def doubts(self) -> list[str]:
        """What names and pictures leave open of which patches are of one raster, in words.

        Nothing is said where no name tells a raster.
        """
        unnamed = sum(self._said(index) is None for index in range(len(self)))
        if unnamed == len(self):
            return []
        doubts = []
        if unnamed:
            doubts.append(
                f"{unnamed} patches whose names tell no raster count as rasters of their own"
            )
        grids = self._windows.grids
        unfit = [key for key, grid in grids.items() if not grid.fits]
        if unfit:
            doubts.append(
                f"{len(unfit)} of {len(grids)} rasters may each be several of one name, as their"
                " numbers or pictures do not fit together; the first is"
                f" {printable('/'.join(unfit[0]))}"
            )
        return doubts

    def describe_unplaced(self) -> str:
        """Say of how many rasters it is not known which patches overlap; empty if of none."""
        grids = self._windows.grids
        said = [(file.parent.name, self._said(i)) for i, file in enumerate(self.files)]
        patches = Counter((city, name.raster) for city, name in said if name is not None)
        unknown = [key for key, count in patches.items() if count > 1 and grids[key].cols is None]
        if not unknown:
            return ""
        return (
            f"of {len(unknown)} of {len(grids)} rasters the patches do not tell which of them"
            f" overlap; the first is {printable('/'.join(unknown[0]))}"
        )

    def read(self, indices: Indices, out: np.ndarray | None = None) -> np.ndarray:
        """Patches as uint8 (n, image_size, image_size, 3), in `out` if that is given."""
        size = (self.image_size, self.image_size)
        batch = np.empty((len(indices), *size, 3), np.uint8) if out is None else out
        for i, index in enumerate(indices):
            batch[i] = np.asarray(image_files.resize(self.original(index), size))
        return batch

    def original(self, index: int, raw: str | Path | None = None) -> Image.Image:
        """The patch as a Pillow image, of the size that its file has. raw is not needed."""
        try:
            return image_files.read_image(self.files[index])
        except UnreadableImage as error:
            raise InputError(f"{printable(self.files[index])}: {error}") from None

    def _said(self, index: int) -> PatchName | None:
        return published_names.read_name(self.files[index].name, self.split)

    @cached_property
    def _windows(self) -> Windows:
        """How the windows of all rasters lie. Training does not ask, and does not pay."""

        def find(splits: Iterable[str]) -> Patches:
            return published_names.find_patches(self.root, splits, self.classes)

        own = published_names.group_patches(self.files)
        same_part = published_names.join_patches(own, find(SAME_PART[self.split]))
        return published_windows.find_windows(same_part, lambda: find(OTHER_HALF[self.split]))


def _list_cities(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return [
        path.name
        for path in folder.iterdir()
        if path.is_dir() and not image_files.is_passed_over(path.name)
    ]
