"""Tile rasters into a patch set with a train, val and test split.

    python preprocessing.py --raw data/raw --out data/patches
    python preprocessing.py --raw data/raw --out data/patches --stride 120 --jpegs
    python preprocessing.py --raw data/raw --out data/patches --shard 1/4

Rasters lie as <raw>/<City (CODE)>/<site>/.../<raster>.jpg (png, tif). Of each city's sites in
sorted order the last is held out: the left half of its rasters is test, the right half val; all
other sites are train. A second run does only what is missing or changed, and removes what belongs
to rasters that are gone; it asks for --prune where many are. With --shard several machines work at
one set, in a folder they share.
"""

import argparse
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from dl_slicer import machine
from dl_slicer.cities import labels
from dl_slicer.cli import InputError, Parser, number, printable, run
from dl_slicer.files import locked
from dl_slicer.patch_sets import completing, finding, on_disk, progress, records, tiling
from dl_slicer.patch_sets.jobs import Request
from dl_slicer.patch_sets.on_disk import Region


def read_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the flags; InputError if they are wrong."""
    parser = Parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--raw", default="data/raw", help="folder of <City (CODE)>/<site>/<raster>")
    data.add_argument("--out", default="data/patches", help="folder of the patch set")
    data.add_argument(
        "--prune",
        action="store_true",
        help="remove rasters that are gone from the set even where a whole city is gone, or more"
        " than one raster and more than a tenth of them",
    )
    add_patch_flags(parser.add_argument_group("patches"))
    add_machine_flags(parser.add_argument_group("machine"))
    return parser.parse_args(argv)


def add_patch_flags(group: argparse._ArgumentGroup) -> None:
    """Flags that say what is cut."""
    group.add_argument(
        "--patch-size",
        type=number(least=1, most=on_disk.LARGEST_NUMBER),
        default=on_disk.PATCH_SIZE,
        help="pixels of the raster a patch is wide and high",
    )
    group.add_argument(
        "--stride",
        type=number(least=1, most=on_disk.LARGEST_NUMBER),
        default=on_disk.STRIDE,
        help="pixels of the raster from one patch to the next",
    )
    group.add_argument(
        "--image-size",
        type=number(least=1, most=on_disk.LARGEST_IMAGE),
        default=on_disk.IMAGE_SIZE,
        help="pixels a patch has for the network",
    )
    group.add_argument(
        "--test-b", type=number(least=1), default=500, help="test patches drawn of each city"
    )
    group.add_argument("--seed", type=number(least=0), default=0, help="of that draw")
    group.add_argument(
        "--jpegs",
        action="store_true",
        help="also write <split>/<City (CODE)>/*.jpg at full size, as published;"
        " later runs keep them up to date",
    )


def add_machine_flags(group: argparse._ArgumentGroup) -> None:
    """Flags that say who does the work."""
    group.add_argument(
        "--workers",
        type=number(least=1),
        default=machine.available_cores(),
        help="processes; default: all cores",
    )
    group.add_argument(
        "--shard",
        type=shard,
        default=(1, 1),
        metavar="I/N",
        help="do only the I-th of N parts of the rasters (I from 1);"
        " the shard that ends last completes the set; default: all of them",
    )


def shard(text: str) -> tuple[int, int]:
    """I/N as two whole numbers: an argparse type."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: must be I/N with I from 1 to N, as in 2/4")
    return int(found[1]), int(found[2])


def main(argv: Sequence[str] | None = None) -> None:
    """Find the rasters, tile those that no earlier run has done, complete the set, sum it up."""
    args = read_flags(argv)
    machine.keep_memory()
    request = read_request(args)
    raw = request.raw
    out = request.out
    progress.refuse_other_set(out, request.settings)

    jobs = finding.find_rasters(raw, out)
    stale = progress.find_stale(request, jobs)
    part, parts = args.shard
    jobs_of_shard = jobs[part - 1 :: parts]
    done = progress.find_finished(request, jobs_of_shard)
    in_shard = f", {len(jobs_of_shard)} of them in shard {part}/{parts}"
    print(
        f"{printable(raw)}: {len({job.city for job in jobs})} cities, {len(jobs)} rasters"
        f"{in_shard if len(jobs_of_shard) < len(jobs) else ''}; {len(done)} done before",
        flush=True,
    )

    started = time.time()
    faults: dict[str, str] = {}  # {raster: what is wrong with it}
    to_do = [job for job in jobs_of_shard if job.raster not in done]
    to_do = tiling.plan_regions(request, to_do, faults)
    to_do = progress.leave_out_obstructed(request, to_do, faults)
    tiling.begin(request, to_do)
    completing.remove_stale(request, stale)
    tiling.tile(request, to_do, args.workers, done, faults)
    seconds = time.time() - started
    if faults:
        refuse_faults(raw, faults, f"{len(done)} of {len(jobs_of_shard)}")

    # Another shard may have ended meanwhile.
    done |= progress.find_finished(request, [job for job in jobs if job.raster not in done])
    missing = [job.raster for job in jobs if job.raster not in done]
    if missing:
        print(
            f"{printable(out)}: the {len(jobs_of_shard)} rasters of this shard are done,"
            f" {len(missing)} of other shards are missing, the first is {printable(missing[0])};"
            " the shard that ends last completes the set, or this command without --shard"
        )
        return
    with locked(out, shared=False):
        description = completing.complete(request, done)
    print_summary(description, chain.from_iterable(done.values()))
    print(f"patch set: {printable(out)}; {speed(len(to_do), seconds)}")


def read_request(args: argparse.Namespace) -> Request:
    """Give what the flags ask for; InputError if the sizes do not go together."""
    out = Path(args.out)
    return Request(
        raw=Path(args.raw),
        out=out,
        settings=on_disk.make_settings(args.patch_size, args.stride, args.image_size),
        # JPEGs that are there are kept up to date: they must not show another split than arrays.
        jpegs=args.jpegs or records.has_jpegs(out),
        test_b=args.test_b,
        seed=args.seed,
        prune=args.prune,
    )


def refuse_faults(raw: Path, faults: Mapping[str, str], finished: str) -> None:
    """InputError: a line for each raster that cannot be used, and what is done nevertheless."""
    lines = [f"{printable(raw / raster)}: {fault}" for raster, fault in sorted(faults.items())]
    lines.append(
        f"{finished} rasters are done and kept; mend the above and run the same command again"
    )
    raise InputError("\n".join(lines))


def print_summary(description: Mapping[str, Any], regions: Iterable[Region]) -> None:
    """Print a table of the patches, and which cities have fewer than --test-b.

    description: dataset.json. The last column is the share of pixels that no window covers.
    """
    pixels: dict[str, int] = defaultdict(int)
    unused: dict[str, int] = defaultdict(int)
    for region in regions:
        width, height = on_disk.covered_size(region.rows, region.cols, description)
        pixels[region.city] += region.width * region.height
        unused[region.city] += region.width * region.height - width * height

    counts = description["counts"]
    print(f"\n{'city':<28}{'train':>9}{'val':>9}{'test':>9}{'test_b':>9}   left over")
    for city in description["classes"]:
        columns = "".join(f"{counts[split][city]:>9}" for split in on_disk.SPLITS)
        print(f"{printable(city):<28}{columns}{100 * unused[city] / pixels[city]:>10.1f} %")
    columns = "".join(f"{sum(counts[split].values()):>9}" for split in on_disk.SPLITS)
    left_over = 100 * sum(unused.values()) / sum(pixels.values())
    print(f"{'all':<28}{columns}{left_over:>10.1f} %  of the pixels, at the right and lower edges")

    wanted = description["test_b"]
    classes = description["classes"]
    short = [
        printable(label)
        for city, label in zip(classes, labels(classes), strict=True)
        if counts["test_b"][city] < wanted
    ]
    if short:
        noun = "city" if len(short) == 1 else "cities"
        print(
            f"test_b: fewer than {wanted} test patches, so all of them,"
            f" in {len(short)} {noun}: {', '.join(short)}"
        )


def speed(rasters: int, seconds: float) -> str:
    """Say how long it took to tile so many rasters."""
    if not rasters:
        return "nothing was left to tile"
    return f"{rasters} rasters in {seconds:.1f} s, {rasters / seconds:.1f} a second"


if __name__ == "__main__":
    run(main)
