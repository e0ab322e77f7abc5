"""The files of a patch set that speak of all its rasters."""

import csv
import io
import itertools
import json
import os
import zlib
from bisect import bisect_right
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import numpy as np

from dl_slicer import versions
from dl_slicer.files import atomic
from dl_slicer.patch_sets import on_disk
from dl_slicer.patch_sets.on_disk import Region


def complete(out, raw, args, settings, jpegs, done):
    """Write regions.csv, test_b.csv (and its JPEGs) and, last, dataset.json, unless they are as they must be. Returns what that says."""
    regions = sorted(itertools.chain(*done.values()))
    drawn = draw_test_b(regions, args.test_b, args.seed)
    counts = {
        split: dict.fromkeys(sorted({region.city for region in regions}), 0)
        for split in on_disk.SPLITS
    }
    for region in regions:
        counts[region.split][region.city] += region.rows * region.cols
    for region, _, _ in drawn:
        counts["test_b"][region.city] += 1
    description = {
        **settings,
        "classes": list(counts["train"]),
        "seed": args.seed,
        "test_b": args.test_b,
        "counts": counts,
        "jpegs": jpegs,
        "raw": os.path.relpath(os.path.realpath(raw), os.path.realpath(out)),
        "versions": versions.without_torch(),
    }
    texts = {
        "regions.csv": as_csv(Region._fields, regions),
        "test_b.csv": as_csv(
            ("region", "row", "col"), [(region.region, row, col) for region, row, col in drawn]
        ),
        "dataset.json": json.dumps(description, indent=1, ensure_ascii=False) + "\n",
    }
    copies = {
        on_disk.jpeg_file(out, "test_b", *window): on_disk.jpeg_file(out, "test", *window)
        for window in drawn
        if jpegs
    }
    if all(holds(out / name, text) for name, text in texts.items()) and all(
        map(os.path.exists, copies)
    ):
        return description

    (out / "dataset.json").unlink(missing_ok=True)
    remove_stale(out, regions, copies)
    for copy, jpeg in copies.items():
        with atomic(copy, sync=False) as file:
            file.write(Path(jpeg).read_bytes())
    for name, text in texts.items():
        if name == "dataset.json":
            os.sync()  # the rest first: no dataset.json may survive a power cut that the arrays did not
        with atomic(out / name) as file:
            file.write(text.encode())
    return description


def draw_test_b(regions, size, seed):
    """[(region, row, col)]: up to `size` test patches of each city without replacement. A city's draw depends on nothing but the
    seed, its name and its own test patches."""
    drawn, of_city = [], defaultdict(list)
    for region in regions:
        if region.split == "test":
            of_city[region.city].append(region)
    for city, tests in sorted(of_city.items()):
        first = np.cumsum(
            [0] + [region.rows * region.cols for region in tests]
        ).tolist()  # each region's first patch, and their number
        rng = np.random.default_rng([seed, zlib.crc32(city.encode())])
        for patch in sorted(rng.choice(first[-1], min(size, first[-1]), replace=False).tolist()):
            i = bisect_right(first, patch) - 1
            drawn.append((tests[i], *divmod(patch - first[i], tests[i].cols)))
    return drawn


def as_csv(header, rows):
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    return text.getvalue()


def holds(path, text):
    return path.is_file() and path.read_bytes() == text.encode()


def remove_stale(out, regions, copies):
    """Delete what earlier runs made of rasters that are gone or have changed sides, and what killed ones left half-written."""
    keep = (
        {f"{out}/{region.file}" for region in regions}
        | {on_disk.record_file(out, region.raster) for region in regions}
        | copies.keys()
    )
    tiled = {
        (region.split, region.city, on_disk.flat_name(region.city, region.raster)): region
        for region in regions
    }
    for top in ("arrays", *on_disk.SPLITS):
        for folder, _, names in os.walk(f"{out}/{top}", topdown=False):
            for name in names:
                found = (on_disk.ARRAY if top == "arrays" else on_disk.JPEG).fullmatch(name)
                region = (
                    tiled.get((top, os.path.basename(folder), found["raster"]))
                    if found and top != "arrays"
                    else None
                )
                current = (
                    region and int(found["row"]) < region.rows and int(found["col"]) < region.cols
                )
                if found and not current and f"{folder}/{name}" not in keep:
                    os.unlink(f"{folder}/{name}")
            with suppress(OSError):
                os.rmdir(folder)  # if nothing is left in it
