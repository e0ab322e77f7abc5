"""The files of a patch set that speak of all its rasters."""

import itertools
import os
import zlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dl_slicer import versions
from dl_slicer.cli import InputError, printable
from dl_slicer.files import atomic, clear_leftovers, locked
from dl_slicer.patch_sets import on_disk, records
from dl_slicer.patch_sets.jobs import Request
from dl_slicer.patch_sets.on_disk import Region, Window
from dl_slicer.patch_sets.records import Listing, Record


def complete(request: Request, done: Mapping[str, Sequence[Region]]) -> dict[str, Any]:
    """Write regions.csv, test_b.csv (and its JPEGs) and, last, dataset.json; give what that says.

    done: the regions of all rasters. Nothing is written if all is as it must be. InputError if
    another process has begun to write JPEGs: those of the rasters that are done here are missing.
    """
    out = request.out
    if not request.jpegs and records.has_jpegs(out):
        raise InputError(
            f"{printable(out)}: another process with --jpegs has begun to write JPEGs meanwhile;"
            " run the same command again, it makes those that are missing"
        )
    # The caller holds the lock alone: what lies here half-written, a killed process has left.
    clear_leftovers(out, on_disk.TABLES)
    every = itertools.chain(*done.values())
    regions = sorted(region for region in every if on_disk.count_patches(region))
    if len({region.city for region in regions}) < 2:
        raise InputError(
            f"{printable(request.raw)}: fewer than two cities have windows with enough data, and"
            f" two are needed; add rasters, or allow more than --max-nodata {request.max_nodata:g}"
        )
    drawn = draw_test_b(regions, request.test_b, request.seed)
    description = _describe(request, regions, drawn)
    texts = {
        on_disk.REGIONS: on_disk.text_of_regions(regions, description["format"]),
        on_disk.TEST_B: on_disk.text_of_test_b(drawn),
        on_disk.DESCRIPTION: on_disk.text_of_description(description),
    }
    copies = _copies_in_test_b(out, drawn) if request.jpegs else {}
    texts_stand = all(_has_text(out / name, text) for name, text in texts.items())
    if texts_stand and all(_has_content(copy) for copy in copies):
        return description

    (out / on_disk.DESCRIPTION).unlink(missing_ok=True)
    remove_leftovers(request, copies)
    for copy, jpeg in copies.items():
        with atomic(copy, sync=False) as file:
            file.write(Path(jpeg).read_bytes())
    for name, text in texts.items():
        if name == on_disk.DESCRIPTION:
            _write_to_disk()
        with atomic(out / name) as file:
            file.write(text.encode())
    _name_unlisted_arrays(out)
    return description


def _describe(
    request: Request, regions: Sequence[Region], drawn: Sequence[Window]
) -> dict[str, Any]:
    """The content of dataset.json."""
    classes = sorted({region.city for region in regions})
    counts = {split: dict.fromkeys(classes, 0) for split in on_disk.SPLITS}
    for region in regions:
        counts[region.split][region.city] += on_disk.count_patches(region)
    for region, _, _ in drawn:
        counts["test_b"][region.city] += 1
    description = {
        **request.settings,
        "classes": classes,
        "seed": request.seed,
        "test_b": request.test_b,
        "counts": counts,
        "jpegs": request.jpegs,
        "raw": _path_between(request.out, request.raw),
        "versions": versions.without_torch(),
    }
    if any(len(on_disk.fields_of(region)) > len(on_disk.COLUMNS) for region in regions):
        description["format"] = 2
    if description["format"] == 1:  # such sets are to stay as they were, to the byte
        del description["versions"]["rasterio"]
    else:
        description |= on_disk.settings_of_view(request.view, request.max_nodata)
        description["allow_overlap"] = False
    return description


def _path_between(out: Path, raw: Path) -> str:
    """The raw folder as seen from the patch set: both may be moved together."""
    real_raw = os.path.realpath(raw)
    try:
        return os.path.relpath(real_raw, os.path.realpath(out))
    except ValueError:  # on Windows no path leads from one drive to another
        return real_raw


def _copies_in_test_b(out: Path, drawn: Iterable[Window]) -> dict[str, str]:
    """{path in test_b: path in test} of the JPEGs of the patches that were drawn."""
    return {
        on_disk.jpeg_file(out, "test_b", window): on_disk.jpeg_file(out, "test", window)
        for window in drawn
    }


def _has_text(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _has_content(path: str) -> bool:
    # A power cut leaves files empty.
    return os.path.isfile(path) and os.path.getsize(path) > 0


def _write_to_disk() -> None:
    """Have all that was written reach the disk, where the system can be asked for that.

    No dataset.json may survive a power cut that the arrays did not.
    """
    if hasattr(os, "sync"):
        os.sync()


def draw_test_b(regions: Iterable[Region], size: int, seed: int) -> list[Window]:
    """Up to `size` test patches of each city, without replacement, sorted as the regions are.

    A city's draw depends on nothing but the seed, its name and its own test patches.
    """
    tests_of_city: dict[str, list[Region]] = defaultdict(list)
    for region in regions:
        if region.split == "test":
            tests_of_city[region.city].append(region)
    drawn = []
    for city, tests in sorted(tests_of_city.items()):
        counts = [on_disk.count_patches(region) for region in tests]
        first = np.cumsum([0, *counts]).tolist()  # of each region the number of its first patch
        total = first[-1]
        rng = np.random.default_rng([seed, zlib.crc32(city.encode())])
        for patch in sorted(rng.choice(total, min(size, total), replace=False).tolist()):
            number = bisect_right(first, patch) - 1
            region = tests[number]
            window = int(on_disk.windows_with_data(region)[patch - first[number]])
            drawn.append((region, *divmod(window, region.cols)))
    return drawn


def remove_stale(request: Request, stale: Collection[Record]) -> None:
    """Delete what was made of rasters that are gone; the set is unfinished from then on."""
    out = request.out
    if not stale or all(record in stale for record in records.load_all(out)):
        return  # without any record the rest would be taken for somebody else's
    # A shard that has been started at the same time may have done it, and be at work.
    with locked(out, shared=True), locked(out / on_disk.ARRAYS, shared=False):
        (out / on_disk.DESCRIPTION).unlink(missing_ok=True)
        there = [record for record in stale if on_disk.record_file(out, record.raster).exists()]
        records.delete(out, Listing(there, request.jpegs), keep=lambda file, name: False)
        records.delete_records(out, there)


def remove_leftovers(request: Request, copies: Collection[str]) -> None:
    """Delete what killed processes left half-written, and patches in test_b that are not drawn.

    copies: paths of the JPEGs in test_b.
    """
    drawn = {Path(copy).relative_to(request.out).as_posix() for copy in copies}
    records.delete(
        request.out,
        Listing(records.load_all(request.out), request.jpegs),
        keep=lambda file, name: file == name and (name in drawn or not _is_copy(name)),
    )


def _is_copy(name: str) -> bool:
    return name.startswith("test_b/")


def _name_unlisted_arrays(out: Path) -> None:
    """Say which arrays no record lists: they are left, whoever wrote them."""
    listing = Listing(records.load_all(out), jpegs=False)
    left = [
        file
        for file in (out / on_disk.ARRAYS).rglob("*.npy")
        if on_disk.is_array_name(file.name) and file.relative_to(out).as_posix() not in listing
    ]
    if left:
        print(
            f"{printable(out)}: arrays that no record of preprocessing.py lists were left,"
            f" {len(left)} of them, such as {printable(min(left))}; delete what nobody needs"
        )
