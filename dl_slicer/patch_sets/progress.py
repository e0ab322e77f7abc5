"""What earlier runs of preprocessing.py have done, and whether it still holds."""

import json
import os
from pathlib import Path

from dl_slicer.cli import InputError, printable
from dl_slicer.patch_sets import on_disk
from dl_slicer.patch_sets.on_disk import Region


def find_finished(out, jobs, settings, jpegs):
    """{raster: regions} of the jobs whose result is there and still holds: same file, same role, same settings."""
    done = {}
    for job in jobs:
        try:
            record = json.loads(
                Path(on_disk.record_file(out, job["raster"])).read_text(encoding="utf-8")
            )
            refuse_other_settings(out, record["settings"], settings)
            regions = [Region(*region) for region in record["regions"]]
            whole = (
                record["job"] == job
                and all(
                    os.path.getsize(out / region.file)
                    == on_disk.array_bytes(region.rows, region.cols, settings)
                    for region in regions
                )
                and all(
                    os.path.getsize(on_disk.jpeg_file(out, region.split, region, row, col))
                    for region, row, col in on_disk.each_patch(regions)
                    if jpegs
                )
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, or damaged
            continue
        if whole:
            done[job["raster"]] = regions
    return done


def refuse_other_set(out, settings):
    """InputError rather than mix this set with another, or with a folder that is none of ours."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{printable(out)}: a file, no folder; choose another --out")
    if (out / "dataset.json").is_file():
        refuse_other_settings(out, on_disk.load_description(out), settings)
    elif not (out / "arrays").is_dir() and any((out / split).exists() for split in on_disk.SPLITS):
        raise InputError(
            f"{printable(out)}: holds train, val or test folders that preprocessing.py did not write; choose another --out"
        )


def refuse_other_settings(out, before, settings):
    changed = [
        f"--{key.replace('_', '-')} {printable(before.get(key))}"
        for key in settings
        if before.get(key) != settings[key]
    ]
    if changed:
        raise InputError(
            f"{printable(out)}: this patch set was made with {' '.join(changed)}; choose another --out, or delete it first"
        )
