"""What earlier runs of preprocessing.py have done, and whether it still holds."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dl_slicer.cli import InputError, printable
from dl_slicer.patch_sets import on_disk
from dl_slicer.patch_sets.jobs import Job, Request
from dl_slicer.patch_sets.on_disk import Region


def find_finished(request: Request, jobs: Iterable[Job]) -> dict[str, list[Region]]:
    """{raster: its regions} of the jobs whose result is there and still holds.

    It holds where the raster, its role and the settings are the same, and all files have their
    size. InputError if the settings are others: sets are not mixed.
    """
    finished = {}
    for job in jobs:
        record = on_disk.load_record(on_disk.record_file(request.out, job.raster))
        if record is None:
            continue
        refuse_other_settings(request.out, record.settings, request.settings)
        if record.job == job.identity() and _files_are_complete(request, record.regions):
            finished[job.raster] = record.regions
    return finished


def _files_are_complete(request: Request, regions: list[Region]) -> bool:
    try:
        for region in regions:
            expected = on_disk.array_bytes(region.rows, region.cols, request.settings)
            if os.path.getsize(request.out / region.file) != expected:
                return False
        if not request.jpegs:
            return True
        return all(
            os.path.getsize(on_disk.jpeg_file(request.out, window[0].split, window))
            for window in on_disk.each_window(regions)
        )
    except (OSError, ValueError, TypeError):  # not there; or the record is damaged
        return False


def refuse_other_set(out: Path, settings: Mapping[str, int]) -> None:
    """InputError rather than mix this set with another, or with a folder that is none of ours."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{printable(out)}: a file, no folder; choose another --out")
    if on_disk.is_finished(out):
        refuse_other_settings(out, on_disk.load_description(out).settings, settings)
    elif not on_disk.has_arrays(out) and any((out / split).exists() for split in on_disk.SPLITS):
        raise InputError(
            f"{printable(out)}: holds train, val or test folders that preprocessing.py did not"
            " write; choose another --out"
        )


def refuse_other_settings(
    out: Path, before: Mapping[str, Any], settings: Mapping[str, int]
) -> None:
    """InputError, naming the flags, if a set was made with other settings.

    before: those of an earlier run; other keys in it do not count.
    """
    changed = [
        f"--{key.replace('_', '-')} {printable(before.get(key))}"
        for key, value in settings.items()
        if before.get(key) != value
    ]
    if changed:
        raise InputError(
            f"{printable(out)}: this patch set was made with {' '.join(changed)};"
            " choose another --out, or delete it first"
        )
