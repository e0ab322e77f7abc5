"""What preprocessing.py is asked for: a patch set, and for it a job for each raster.

Jobs are handed to worker processes, so all in them can be pickled.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dl_slicer.patch_sets import on_disk
from dl_slicer.patch_sets.on_disk import Region
from dl_slicer.patch_sets.rasters import View


@dataclass(frozen=True)
class Request:
    """The patch set that is asked for."""

    raw: Path  # folder of the rasters
    out: Path  # folder of the patch set
    settings: dict[str, Any]  # on_disk.make_settings
    jpegs: bool  # whether it also holds patches as JPEGs
    test_b: int  # test patches drawn of each city
    seed: int  # of that draw
    prune: bool = False  # whether any number of rasters may be gone
    sites: int | None = None  # how many a city without site folders gets
    allow_overlap: bool = False  # whether the same ground may lie in different splits
    mosaic: bool = False  # whether tiles of a site that touch are one raster

    @property
    def view(self) -> View:
        """How rasters are seen."""
        return on_disk.view_of(self.settings)

    @property
    def held_out(self) -> int:
        """Which site of each city is held out, counted from the last one."""
        return self.settings.get("held_out", 1)

    @property
    def val(self) -> str:
        """Where val comes from: one of on_disk.VALS."""
        return self.settings.get("val", "half")

    @property
    def max_nodata(self) -> float:
        """The share of a window's pixels that may be without data."""
        return self.settings.get("max_nodata", on_disk.MAX_NODATA)


@dataclass(frozen=True)
class Job:
    """One raster, and what is to be cut from it."""

    raster: str  # path relative to the raw folder
    city: str
    site: str
    splits: list[str]  # one; or test and val, the left and the right half of a held-out raster
    stamp: list[int]  # bytes and time of the file, which tell whether it has changed since
    regions: tuple[Region, ...] = ()  # one for each split, once tiling.plan_regions has seen it
    # Columns where the left part of a held-out raster ends and the right one begins; None: in the
    # middle. In pixels of the raster as it is seen.
    cut: tuple[int, int] | None = None
    # What it is joined of, each with its bytes and time, if it is no file of its own.
    tiles: tuple[tuple[str, int, int], ...] = ()

    def identity(self) -> dict[str, Any]:
        """Give what must not have changed since for an earlier result to count, as records say."""
        others: dict[str, Any] = {}
        if self.cut is not None:
            others["cut"] = list(self.cut)
        if self.tiles:
            others["tiles"] = [list(tile) for tile in self.tiles]
        return {
            "raster": self.raster,
            "city": self.city,
            "site": self.site,
            "splits": self.splits,
            "stamp": self.stamp,
            **others,
        }


def stamp_of(status: os.stat_result) -> list[int]:
    """Give what tells whether a file has changed since: its bytes, and its time in nanoseconds."""
    return [status.st_size, status.st_mtime_ns]
