"""What earlier runs of preprocessing.py have done, and whether it still holds."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from dl_slicer.cli import InputError, printable
from dl_slicer.patch_sets import on_disk, records
from dl_slicer.patch_sets.jobs import Job, Request
from dl_slicer.patch_sets.on_disk import Region
from dl_slicer.patch_sets.records import Listing, Record

GONE_AT_MOST = 0.1  # of all rasters: beyond it a disk may be missing rather than rasters


def find_finished(request: Request, jobs: Iterable[Job]) -> dict[str, list[Region]]:
    """{raster: its regions} of the jobs whose result is there and still holds.

    It holds where the raster, its role and the settings are the same, and all files have their
    size, arrays also their header. InputError if the settings are others: sets are not mixed.
    """
    finished = {}
    for job in jobs:
        record = records.load(request.out, job.raster)
        if record is None:
            continue
        refuse_other_settings(request.out, record.settings, request.settings)
        same = record.job == job.identity() and not record.unfinished
        if same and _files_are_complete(request, record.regions):
            finished[job.raster] = record.regions
    return finished


def _files_are_complete(request: Request, regions: Iterable[Region]) -> bool:
    if not _arrays_are_complete(request, regions):
        return False
    if not request.jpegs:
        return True
    try:
        return all(
            os.path.getsize(on_disk.jpeg_file(request.out, window[0].split, window))
            for window in on_disk.each_window(regions)
        )
    except OSError:  # not there
        return False


def _arrays_are_complete(request: Request, regions: Iterable[Region]) -> bool:
    try:
        return all(
            on_disk.is_array(request.out / region.file, region.rows, region.cols, request.settings)
            for region in regions
            if on_disk.count_patches(region)
        )
    except OSError:
        return False


# ------------------------------------------------------------------------------- what is not ours


def refuse_other_set(out: Path, settings: Mapping[str, Any]) -> None:
    """InputError rather than mix this set with another, or with a folder that is none of ours."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{printable(out)}: a file, no folder; choose another --out")
    if next(records.load_all(out), None) is None:
        _refuse_files_of_others(out)
    if on_disk.is_finished(out):
        refuse_other_settings(out, on_disk.load_description(out).settings, settings)
    for record in records.load_all(out):
        refuse_other_settings(out, record.settings, settings)


def _refuse_files_of_others(out: Path) -> None:
    """InputError if names that a patch set has are taken, in a folder without any record."""
    taken = [name for name in (*on_disk.TABLES, *on_disk.SPLITS) if os.path.lexists(out / name)]
    arrays = (
        Path(folder, name)
        for folder, _, names in os.walk(out / on_disk.ARRAYS)
        for name in names
        if name != ".lock" and not records.LEFTOVER.fullmatch(name)
    )
    taken += [on_disk.ARRAYS] if next(arrays, None) else []
    if taken:
        raise InputError(
            f"{printable(out)}: holds {', '.join(taken)}: files or folders that preprocessing.py"
            f" did not write (its records are not in {on_disk.ARRAYS}); choose another --out"
        )


def leave_out_obstructed(
    request: Request, jobs: Sequence[Job], faults: MutableMapping[str, str]
) -> list[Job]:
    """Give the planned jobs that write over no file of others; the rest is said in faults."""
    if not jobs:
        return []
    listing = Listing(records.load_all(request.out), records.has_jpegs(request.out))
    free = []
    for job in jobs:
        file = _file_of_others(request, job, listing)
        if file is None or _was_written_meanwhile(request, job, file):
            free.append(job)
        else:
            faults[job.raster] = (
                f"{printable(request.out / file)} would be written over, and no record of"
                " preprocessing.py lists it; move or delete that file"
            )
    return free


def _file_of_others(request: Request, job: Job, listing: Listing) -> str | None:
    """The first file in a job's way that is not ours; None if there is none."""
    listed = all(region.file in listing for region in job.regions)
    # Before 2.0 the record came last: what a killed run left has its arrays, and no record.
    if not listed and _arrays_are_complete(request, job.regions):
        return None
    for name in _names_of(request, job):
        path = request.out / name
        # A power cut leaves files empty, records among them.
        if name not in listing and os.path.lexists(path) and os.path.getsize(path):
            return name
    return None


def _was_written_meanwhile(request: Request, job: Job, file: str) -> bool:
    """Whether another process has begun the same raster since the records were read."""
    record = records.load(request.out, job.raster)
    if record is None:
        return False
    return file in Listing([record], records.has_jpegs_of(request.out, record))


def _names_of(request: Request, job: Job) -> Iterator[str]:
    """The files that a job will make, and the copies in test_b."""
    yield on_disk.record_file("", job.raster).as_posix()
    for region in job.regions:
        yield region.file
        for folder in on_disk.jpeg_folders(region) if request.jpegs else ():
            if (request.out / folder).is_dir():
                raster = on_disk.flat_name(region.city, region.raster)
                for _, row, col in on_disk.each_window([region]):
                    yield f"{folder}/{on_disk.jpeg_name(raster, row, col)}"


def refuse_other_settings(
    out: Path, before: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """InputError, naming the flags, if a set was made with other settings.

    before: those of an earlier run; other keys in it do not count.
    """
    usual = on_disk.settings_of_view(on_disk.AS_THEY_ARE, on_disk.MAX_NODATA)
    usual |= on_disk.USUAL_SPLIT
    before = usual | before
    settings = usual | settings
    changed = [_flag(key, before.get(key)) for key in settings if before.get(key) != settings[key]]
    # The two formats are told apart by what else they say.
    if before.get("format") in on_disk.FORMATS:
        changed = [flag for flag in changed if not flag.startswith("--format ")]
    if changed:
        raise InputError(
            f"{printable(out)}: this patch set was made with {' '.join(changed)};"
            " choose another --out, or delete it first"
        )


def _flag(key: str, value: object) -> str:
    """A flag as it must have been typed."""
    flag = f"--{key.replace('_', '-')}"
    if value is None:
        return f"no {flag}"
    if isinstance(value, list):
        value = " ".join(f"{part:g}" if on_disk.is_number(part) else str(part) for part in value)
    return f"{flag} {printable(value)}"


# ------------------------------------------------------------------------------- what is gone


def find_stale(request: Request, jobs: Sequence[Job]) -> list[Record]:
    """The records of rasters that were not found; says how many are gone, renamed ones are not.

    jobs: of all rasters that were found. InputError if so many are gone that a disk may be missing
    instead, or a whole city is, unless the request says that they may go.
    """
    recorded = list(records.load_all(request.out))
    stale = _not_found(request, recorded, jobs)
    made = [record for record in recorded if _has_arrays(request, record)]
    gone = [record for record in stale if _has_arrays(request, record)]
    gone = _without_joined(gone, jobs)
    gone = _without_renamed(gone, recorded, jobs)
    if not gone:
        return stale
    number = f"{len(gone)} of the {len(made)} rasters of {printable(request.out)}"
    where = f"{printable(request.raw)}: {number} are gone"
    first = f"the first is {printable(gone[0].raster)}"
    cities = sorted({_city(record) for record in gone} - {job.city for job in jobs})
    many = len(gone) > 1 and len(gone) > GONE_AT_MOST * len(made)
    if (cities or many) and not request.prune:
        whole = f", all of {printable(', '.join(cities[:5]))} among them" if cities else ""
        raise InputError(
            f"{where}{whole}; {first}; if they are to be removed from the set, add --prune;"
            " if not, a disk may not be mounted, or --raw is another folder"
        )
    print(f"{where}; what was made of them is removed; {first}", flush=True)
    return stale


def _not_found(request: Request, recorded: Iterable[Record], jobs: Iterable[Job]) -> list[Record]:
    # A record's path, not the raster's: one with another suffix takes the place of the first.
    found = {on_disk.record_file(request.out, job.raster) for job in jobs}
    return [
        record
        for record in recorded
        if on_disk.record_file(request.out, record.raster) not in found
    ]


def _without_joined(gone: Iterable[Record], jobs: Iterable[Job]) -> list[Record]:
    """Leave out tiles that are part of a mosaic by now, and mosaics whose tiles are elsewhere."""
    there = {tile[0] for job in jobs for tile in job.tiles}
    there |= {job.raster for job in jobs}
    return [
        record
        for record in gone
        if record.raster not in there
        and not any(tile[0] in there for tile in record.job.get("tiles", ()))
    ]


def _without_renamed(
    gone: Iterable[Record], recorded: Iterable[Record], jobs: Iterable[Job]
) -> list[Record]:
    """Leave out those for which the same city has a new raster of the same size and time."""
    known = {record.raster for record in recorded if not record.unfinished}
    new = Counter((job.city, str(job.stamp)) for job in jobs if job.raster not in known)
    left = []
    for record in gone:
        stamp = (_city(record), str(record.job.get("stamp")))
        if new[stamp]:
            new[stamp] -= 1
        else:
            left.append(record)
    return left


def _has_arrays(request: Request, record: Record) -> bool:
    """Whether anything has been made of a raster: of one that cannot be read nothing is."""
    return any(os.path.exists(request.out / region.file) for region in record.regions)


def _city(record: Record) -> str:
    return record.raster.partition("/")[0]
