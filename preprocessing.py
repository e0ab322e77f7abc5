"""Tile rasters into a patch set with a train, val and test split.

    python preprocessing.py --raw data/raw --out data/patches
    python preprocessing.py --raw data/raw --out data/patches --stride 120 --jpegs
    python preprocessing.py --raw data/raw --out data/patches --shard 1/4      one of four machines, into one shared folder

Rasters lie as <raw>/<City (CODE)>/<site>/.../<raster>.jpg (png, tif). Of each city's sites in sorted order the last is held
out: the left half of its rasters is test, the right half val; all other sites are train. A second run does only what is
missing or changed, and removes what belongs to rasters that are gone.
"""

import argparse
import itertools
import re
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from dl_slicer import machine
from dl_slicer.cities import city_code
from dl_slicer.cli import InputError, Parser, number, printable, run
from dl_slicer.files import locked
from dl_slicer.machine import keep_memory
from dl_slicer.patch_sets import completing, finding, on_disk, progress, tiling


def arguments(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--raw", default="data/raw", help="folder of <City (CODE)>/<site>/<raster>")
    parser.add_argument("--out", default="data/patches", help="folder of the patch set")
    parser.add_argument(
        "--patch-size",
        type=number(least=1),
        default=480,
        help="pixels of the raster a patch is wide and high",
    )
    parser.add_argument(
        "--stride",
        type=number(least=1),
        default=240,
        help="pixels of the raster from one patch to the next",
    )
    parser.add_argument(
        "--image-size", type=number(least=1), default=224, help="pixels a patch has for the network"
    )
    parser.add_argument(
        "--test-b", type=number(least=1), default=500, help="test patches drawn of each city"
    )
    parser.add_argument("--seed", type=number(least=0), default=0, help="of that draw")
    parser.add_argument(
        "--workers",
        type=number(least=1),
        default=machine.available_cores(),
        help="processes; default: all cores",
    )
    parser.add_argument(
        "--jpegs",
        action="store_true",
        help="also write <split>/<City (CODE)>/*.jpg at full size, as published; later runs keep them up to date",
    )
    parser.add_argument(
        "--shard",
        type=shard,
        default=(1, 1),
        metavar="I/N",
        help="do only the I-th of N parts of the rasters (I from 1); the shard that ends last completes the set",
    )
    return parser.parse_args(argv)


def shard(text):
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: must be I/N with I from 1 to N, as in 2/4")
    return int(found[1]), int(found[2])


def main(argv=None):
    args = arguments(argv)
    keep_memory()
    on_disk.scaled_stride(args.patch_size, args.stride, args.image_size)
    raw, out = Path(args.raw), Path(args.out)
    settings = {
        "format": on_disk.FORMAT,
        "patch_size": args.patch_size,
        "stride": args.stride,
        "image_size": args.image_size,
    }
    progress.refuse_other_set(out, settings)
    # JPEGs that are there are kept up to date: they must never show another split than the arrays.
    jpegs = args.jpegs or any((out / split).is_dir() for split in on_disk.SPLITS)

    jobs = finding.find_rasters(raw, out)
    mine = jobs[args.shard[0] - 1 :: args.shard[1]]
    done = progress.find_finished(out, mine, settings, jpegs)  # {raster: its regions}
    todo = [job for job in mine if job["raster"] not in done]
    part = (
        f", {len(mine)} of them in shard {args.shard[0]}/{args.shard[1]}"
        if len(mine) < len(jobs)
        else ""
    )
    print(
        f"{printable(raw)}: {len({job['city'] for job in jobs})} cities, {len(jobs)} rasters{part}; {len(done)} done before",
        flush=True,
    )

    faults, started = {}, time.time()
    todo = tiling.plan_regions(raw, todo, args.patch_size, faults)
    if todo:
        tiling.check_space(out, todo, settings, jpegs, args.test_b)
        out.mkdir(parents=True, exist_ok=True)
        with locked(out, shared=True):
            (out / "dataset.json").unlink(
                missing_ok=True
            )  # the set is not whole until it is completed below
            tiling.tile_all(
                todo,
                partial(tiling.tile_raster, raw, out, settings, jpegs),
                args.workers,
                done,
                faults,
            )
    seconds = time.time() - started
    if faults:
        raise InputError(
            "\n".join(
                f"{printable(raw / raster)}: {fault}" for raster, fault in sorted(faults.items())
            )
            + f"\n{len(done)} of {len(mine)} rasters are done and kept; mend the above and run the same command again"
        )

    done |= progress.find_finished(
        out, [job for job in jobs if job["raster"] not in done], settings, jpegs
    )
    missing = [job["raster"] for job in jobs if job["raster"] not in done]
    if missing:
        print(
            f"{printable(out)}: the {len(mine)} rasters of this shard are done, {len(missing)} of other shards are missing, the first is "
            f"{printable(missing[0])}; the shard that ends last completes the set, or this command without --shard"
        )
        return
    with locked(out, shared=False):
        description = completing.complete(out, raw, args, settings, jpegs, done)
    summary(out, description, done, len(todo), seconds)


def summary(out, description, done, tiled, seconds):
    counts, size, stride = description["counts"], description["patch_size"], description["stride"]
    print(f"\n{'city':<28}{'train':>9}{'val':>9}{'test':>9}{'test_b':>9}   left over")
    unused, pixels = defaultdict(int), defaultdict(int)
    for region in itertools.chain(*done.values()):
        pixels[region.city] += region.width * region.height
        unused[region.city] += region.width * region.height - np.prod(
            [(n - 1) * stride + size for n in (region.rows, region.cols)]
        )
    for city in description["classes"]:
        print(
            f"{printable(city):<28}"
            + "".join(f"{counts[split][city]:>9}" for split in on_disk.SPLITS)
            + f"{100 * unused[city] / pixels[city]:>10.1f} %"
        )
    print(
        f"{'all':<28}"
        + "".join(f"{sum(counts[split].values()):>9}" for split in on_disk.SPLITS)
        + f"{100 * sum(unused.values()) / sum(pixels.values()):>10.1f} %  of the pixels, at the right and lower edges"
    )
    short = [
        city for city in description["classes"] if counts["test_b"][city] < description["test_b"]
    ]
    if short:
        print(
            f"test_b: fewer than {description['test_b']} test patches, so all of them, in {len(short)} "
            f"{'city' if len(short) == 1 else 'cities'}: {', '.join(printable(city_code(city)) for city in short)}"
        )
    rate = (
        f"{tiled} rasters in {seconds:.1f} s, {tiled / seconds:.1f} a second"
        if tiled
        else "nothing was left to tile"
    )
    print(f"patch set: {printable(out)}; {rate}")


if __name__ == "__main__":
    run(main)
