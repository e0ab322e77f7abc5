"""The records of preprocessing.py: one a raster, which lists what has been made of it.

A record is written before the first of a raster's files, then marked as unfinished, and again after
the last one. What no record lists is somebody else's: it is neither deleted nor written over.
"""

import json
import os
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from dl_slicer.files import atomic
from dl_slicer.patch_sets import gaps, on_disk
from dl_slicer.patch_sets.jobs import Job, Request
from dl_slicer.patch_sets.on_disk import Region

# What files.atomic leaves of a process that is killed: its number, the checksum of the final name.
LEFTOVER = re.compile(r"\.\d+-([0-9a-f]{8})\.tmp")

JPEG = re.compile(r"(?P<raster>.+)_r(?P<row>[0-9]+)_c(?P<col>[0-9]+)\.jpg", re.DOTALL)
SUFFIX = ".json"


class Record(NamedTuple):
    """What has been made of a raster, or is being made."""

    job: dict[str, Any]  # which raster, and in which role: jobs.Job.identity()
    settings: dict[str, Any]  # on_disk.make_settings
    regions: list[Region]  # of an unfinished one also those of before, whose files may be there
    unfinished: bool = False

    @property
    def raster(self) -> str:
        """Path of the raster relative to the raw folder."""
        return self.job["raster"]


def begin(request: Request, job: Job) -> Record:
    """Write down that a raster is being tiled: from here on all its files are ours, none counts."""
    regions = list(job.regions)
    before = load(request.out, job.raster)
    if before is not None:
        regions += [region for region in before.regions if region not in regions]
    begun = Record(job.identity(), request.settings, regions, unfinished=True)
    _write(request.out, begun)
    return begun


def finish(request: Request, job: Job, begun: Record) -> None:
    """Write down that all files of a raster are there, and delete those it had in another role."""
    finished = Record(job.identity(), request.settings, list(job.regions))
    if len(begun.regions) > len(finished.regions):
        needed = Listing([finished], request.jpegs)
        before = Listing([begun], request.jpegs)
        delete(request.out, before, keep=lambda _, name: name in needed)
    _write(request.out, finished)


def _write(out: Path, record: Record) -> None:
    content = record._asdict()
    content["regions"] = [on_disk.fields_of(region) for region in record.regions]
    if not record.unfinished:
        del content["unfinished"]
    path = on_disk.record_file(out, record.raster)
    with atomic(path, "w", sync=False, encoding="utf-8") as file:
        json.dump(content, file)


def load(out: Path, raster: str) -> Record | None:
    """The record of a raster; None if there is none, or if it is damaged or somebody else's."""
    return _load(out, on_disk.record_file(out, raster))


def load_all(out: Path) -> Iterator[Record]:
    """All records of a patch set, finished or not, also of rasters that are gone."""
    for folder, folders, names in os.walk(out / on_disk.ARRAYS):
        folders.sort()
        for name in sorted(names):
            record = _load(out, Path(folder, name)) if name.endswith(SUFFIX) else None
            if record is not None:
                yield record


def _load(out: Path, file: Path) -> Record | None:
    try:
        record = Record(**json.loads(file.read_text(encoding="utf-8")))
        record = record._replace(regions=[Region(*region) for region in record.regions])
        return record if _is_sound(out, file, record) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _is_sound(out: Path, file: Path, record: Record) -> bool:
    """Whether a record lists files of its own raster alone: what it lists may be deleted."""
    city, _, inside = record.raster.partition("/")
    return (
        bool(inside)
        and isinstance(record.settings, dict)
        and on_disk.record_file(out, record.raster) == file
        and all(
            region.split in on_disk.SPLITS
            and region.city == city
            and region.region == on_disk.region_name(record.raster, region.split)
            and region.region == on_disk.region_name(region.raster, region.split)
            and region.file == on_disk.array_file(region.region)
            and type(region.rows) is type(region.cols) is int
            and type(region.without_data) is str
            and gaps.last_in(region.without_data) < region.rows * region.cols
            for region in record.regions
        )
    )


# ------------------------------------------------------------------------------- what is ours


class Listing:
    """The files that records list, by their paths relative to the patch set.

    jpegs: whether the set has patches as JPEGs; otherwise files of their names are not ours.
    """

    def __init__(self, records: Iterable[Record], jpegs: bool):
        self._arrays: dict[str, set[str]] = defaultdict(set)  # {folder: names}; records, too
        # {folder: {flat name of a raster: its regions}}
        self._jpegs: dict[str, dict[str, list[Region]]] = defaultdict(lambda: defaultdict(list))
        for record in records:
            folder, _, name = on_disk.record_file("", record.raster).as_posix().rpartition("/")
            self._arrays[folder].add(name)
            for region in record.regions:
                self._arrays[folder].add(region.file.rpartition("/")[2])
                if jpegs:
                    raster = on_disk.flat_name(region.city, region.raster)
                    for jpeg_folder in on_disk.jpeg_folders(region):
                        self._jpegs[jpeg_folder][raster].append(region)

    def __contains__(self, name: str) -> bool:
        folder, _, name = name.rpartition("/")
        if folder in self._arrays:
            return name in self._arrays[folder]
        found = JPEG.fullmatch(name)
        if folder not in self._jpegs or found is None:
            return False
        row = int(found["row"])
        col = int(found["col"])
        return name == on_disk.jpeg_name(found["raster"], row, col) and any(
            on_disk.is_patch(region, row, col)
            for region in self._jpegs[folder].get(found["raster"], ())
        )

    def folders(self) -> list[str]:
        """The folders of the files, sorted."""
        return sorted({*self._arrays, *self._jpegs})

    def existing(self, out: Path) -> Iterator[tuple[str, str]]:
        """(file, name) of each listed file that is there, but for the records themselves.

        What a killed process left half-written is there as well; its name is the one that the
        file would have got.
        """
        for folder in self.folders():
            names = _names_in(out / folder)
            leftovers = {}
            for name in names:
                found = LEFTOVER.fullmatch(name)
                if found:
                    leftovers[name] = found[1]
                elif not name.endswith(SUFFIX) and f"{folder}/{name}" in self:
                    yield f"{folder}/{name}", f"{folder}/{name}"
            if leftovers:
                final = {_checksum(name): name for name in self._names_of(folder)}
                for name, checksum in leftovers.items():
                    if checksum in final:
                        yield f"{folder}/{name}", f"{folder}/{final[checksum]}"

    def _names_of(self, folder: str) -> Iterator[str]:
        yield from self._arrays.get(folder, ())
        for raster, regions in self._jpegs.get(folder, {}).items():
            for _, row, col in on_disk.each_window(regions):
                yield on_disk.jpeg_name(raster, row, col)


def delete(out: Path, listing: Listing, keep: Callable[[str, str], bool]) -> None:
    """Delete the listed files that are there, unless keep(file, name) as of Listing.existing."""
    for file, name in listing.existing(out):
        if not keep(file, name):
            (out / file).unlink(missing_ok=True)


def delete_records(out: Path, records: Iterable[Record]) -> None:
    """Delete records whose files are gone, and folders in which nothing is left."""
    records = list(records)
    for record in records:
        on_disk.record_file(out, record.raster).unlink(missing_ok=True)
    for name in Listing(records, jpegs=True).folders():
        folder = out / name
        with suppress(OSError):  # something is left in it
            while folder != out:
                os.rmdir(folder)
                folder = folder.parent


def has_jpegs(out: Path) -> bool:
    """Whether a patch set of ours also holds its patches as JPEGs."""
    if not any((out / split).is_dir() for split in on_disk.SPLITS):
        return False
    return any(has_jpegs_of(out, record) for record in load_all(out))


def has_jpegs_of(out: Path, record: Record) -> bool:
    """Whether patches of a raster lie there as JPEGs, be it not all of them."""
    firsts = (next(on_disk.each_window([region]), None) for region in record.regions)
    return any(
        os.path.exists(on_disk.jpeg_file(out, window[0].split, window))
        for window in firsts
        if window is not None
    )


def _names_in(folder: Path) -> list[str]:
    with suppress(OSError):
        return sorted(os.listdir(folder))
    return []


def _checksum(name: str) -> str:
    return f"{zlib.crc32(os.fsencode(name)):08x}"
