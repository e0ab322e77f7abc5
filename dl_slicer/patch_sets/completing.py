"""The files of a patch set that speak of all its rasters."""

import itertools
import os
import zlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dl_slicer import versions
from dl_slicer.files import atomic, clear_leftovers
from dl_slicer.patch_sets import on_disk
from dl_slicer.patch_sets.jobs import Request
from dl_slicer.patch_sets.on_disk import Region, Window


def complete(request: Request, done: Mapping[str, Sequence[Region]]) -> dict[str, Any]:
    """Write regions.csv, test_b.csv (and its JPEGs) and, last, dataset.json; give what that says.

    done: the regions of all rasters. Nothing is written if all is as it must be.
    """
    out = request.out
    # The caller holds the lock alone: what lies here half-written, a killed process has left.
    clear_leftovers(out)
    regions = sorted(itertools.chain(*done.values()))
    drawn = draw_test_b(regions, request.test_b, request.seed)
    description = _describe(request, regions, drawn)
    texts = {
        on_disk.REGIONS: on_disk.text_of_regions(regions),
        on_disk.TEST_B: on_disk.text_of_test_b(drawn),
        on_disk.DESCRIPTION: on_disk.text_of_description(description),
    }
    copies = _copies_in_test_b(out, drawn) if request.jpegs else {}
    texts_stand = all(_has_text(out / name, text) for name, text in texts.items())
    if texts_stand and all(os.path.exists(copy) for copy in copies):
        return description

    (out / on_disk.DESCRIPTION).unlink(missing_ok=True)
    remove_stale(out, regions, copies)
    for copy, jpeg in copies.items():
        with atomic(copy, sync=False) as file:
            file.write(Path(jpeg).read_bytes())
    for name, text in texts.items():
        if name == on_disk.DESCRIPTION:
            _write_to_disk()
        with atomic(out / name) as file:
            file.write(text.encode())
    return description


def _describe(
    request: Request, regions: Sequence[Region], drawn: Sequence[Window]
) -> dict[str, Any]:
    """The content of dataset.json."""
    classes = sorted({region.city for region in regions})
    counts = {split: dict.fromkeys(classes, 0) for split in on_disk.SPLITS}
    for region in regions:
        counts[region.split][region.city] += region.rows * region.cols
    for region, _, _ in drawn:
        counts["test_b"][region.city] += 1
    return {
        **request.settings,
        "classes": classes,
        "seed": request.seed,
        "test_b": request.test_b,
        "counts": counts,
        "jpegs": request.jpegs,
        "raw": _path_between(request.out, request.raw),
        "versions": versions.without_torch(),
    }


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
        counts = [region.rows * region.cols for region in tests]
        first = np.cumsum([0, *counts]).tolist()  # of each region the number of its first patch
        total = first[-1]
        rng = np.random.default_rng([seed, zlib.crc32(city.encode())])
        for patch in sorted(rng.choice(total, min(size, total), replace=False).tolist()):
            number = bisect_right(first, patch) - 1
            region = tests[number]
            row, col = divmod(patch - first[number], region.cols)
            drawn.append((region, row, col))
    return drawn


def remove_stale(out: Path, regions: Iterable[Region], copies: Collection[str]) -> None:
    """Delete what does not belong to the set any more, and folders in which nothing is left.

    That is what earlier runs made of rasters that are gone or have changed sides, and what killed
    ones left half-written. Files that are not named as ours stay.
    """
    needed = {Path(copy) for copy in copies}
    tiled = {}
    for region in regions:
        needed.add(out / region.file)
        needed.add(on_disk.record_file(out, region.raster))
        raster = on_disk.flat_name(region.city, region.raster)
        tiled[region.split, region.city, raster] = region
    for top, folder, names in _folders_of_ours(out):
        for name in names:
            if top == on_disk.ARRAYS:
                may_go = on_disk.ARRAY.fullmatch(name) is not None
            else:
                may_go = _is_superfluous_jpeg(name, top, folder.name, tiled)
            if may_go and folder / name not in needed:
                os.unlink(folder / name)
        with suppress(OSError):
            os.rmdir(folder)  # if nothing is left in it


def _folders_of_ours(out: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """(folder at the top, folder, its files), each folder after those in it."""
    for top in (on_disk.ARRAYS, *on_disk.SPLITS):
        for folder, _, names in os.walk(out / top, topdown=False):
            yield top, Path(folder), names


def _is_superfluous_jpeg(
    name: str, split: str, city: str, tiled: Mapping[tuple[str, str, str], Region]
) -> bool:
    """Whether a file is named as one of ours, but is no patch of a region that was tiled."""
    found = on_disk.JPEG.fullmatch(name)
    if found is None:
        return False
    region = tiled.get((split, city, found["raster"]))
    if region is None:
        return True
    return int(found["row"]) >= region.rows or int(found["col"]) >= region.cols
