"""Tile rasters into a patch set with a train, val and test split.

    python preprocessing.py --raw data/raw --out data/patches
    python preprocessing.py --raw data/raw --out data/patches --stride 120 --jpegs
    python preprocessing.py --raw data/raw --out data/patches --shard 1/4

Rasters lie as <raw>/<City (CODE)>/<site>/.../<raster>.jpg (png, tif). Of each city's sites in
sorted order the last is held out: the left half of its rasters is test, the right half val; all
other sites are train. --held-out and --val choose otherwise. A second run does only what is missing
or changed, and removes what belongs to rasters that are gone; it asks for --prune where many are.
With --shard several machines work at one set, in a folder they share.
"""

import argparse
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from dl_slicer import machine
from dl_slicer.cities import labels
from dl_slicer.cli import InputError, Parser, number, printable, run
from dl_slicer.files import locked
from dl_slicer.patch_sets import arranging, completing, on_disk, progress, records, tiling
from dl_slicer.patch_sets.jobs import Request
from dl_slicer.patch_sets.on_disk import Region
from dl_slicer.patch_sets.rasters import View

ALL = ""  # in place of a city's name


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
    add_split_flags(data)
    add_patch_flags(parser.add_argument_group("patches"))
    add_place_flags(parser.add_argument_group("places"))
    add_view_flags(parser.add_argument_group("how rasters are seen"))
    add_machine_flags(parser.add_argument_group("machine"))
    args = parser.parse_args(argv)
    if len(args.bands or "1") not in (1, 3):
        parser.error(f"--bands: three, or one that is read as grey; {len(args.bands)} are given")
    args.stretch = read_stretch(parser, args.stretch)
    return args


def add_split_flags(group: argparse._ArgumentGroup) -> None:
    """Flags that say which sites are held out."""
    group.add_argument(
        "--held-out",
        type=number(least=1, most=on_disk.LARGEST_NUMBER),
        default=1,
        metavar="N",
        help="which site of each city is held out: 1 the last in sorted order, as published, 2 the"
        " one before it, and so on, going round where a city has fewer",
    )
    group.add_argument(
        "--val",
        choices=on_disk.VALS,
        default="half",
        help="half: val is the right half of the held-out rasters, as published, and test the left;"
        " site: test is the whole held-out site, and val the site that the next --held-out would"
        " hold out, in cities of three sites or more",
    )


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


def add_place_flags(group: argparse._ArgumentGroup) -> None:
    """Flags that say what becomes of rasters by where they lie on the ground."""
    group.add_argument(
        "--sites",
        type=number(least=2),
        metavar="N",
        help="give a city whose rasters lie directly in its folder N sites, by where they lie:"
        " rasters that overlap or touch stay together; the set remembers them",
    )
    group.add_argument(
        "--mosaic",
        action="store_true",
        help="take tiles of a site that touch or overlap, on one grid of pixels, for one raster",
    )
    group.add_argument(
        "--allow-overlap",
        action="store_true",
        help="go on where the same ground lies in different splits, which makes every figure too"
        " good; results say so",
    )


def add_view_flags(group: argparse._ArgumentGroup) -> None:
    """Flags that say how rasters are seen: georeferenced ones, and those of many bands or bits."""
    group.add_argument(
        "--ground-resolution",
        type=number(float, least=0.001, most=100_000),
        metavar="METRES",
        help="see georeferenced rasters at so many metres a pixel, north up; published: 0.417;"
        " default: pixels as they are",
    )
    group.add_argument(
        "--bands",
        type=number(least=1, most=on_disk.LARGEST_BAND),
        nargs="+",
        metavar="N",
        help="bands to read as red, green and blue, or one as grey; default: the first three",
    )
    group.add_argument(
        "--stretch",
        nargs="+",
        metavar=("LOW", "HIGH"),
        help="range of values that becomes 0 to 255, or auto: the 2nd and 98th percentile of each"
        " region; default: 8 bits as they are, the upper 8 of 16",
    )
    group.add_argument(
        "--max-nodata",
        type=number(float, least=0, most=1),
        default=on_disk.MAX_NODATA,
        metavar="SHARE",
        help="leave out windows of whose pixels a larger share is without data",
    )
    group.add_argument(
        "--crs",
        type=system,
        metavar="EPSG:N",
        help="coordinate system of rasters that name none, such as those with a world file",
    )


def read_stretch(
    parser: argparse.ArgumentParser, words: Sequence[str] | None
) -> tuple[float, float] | str | None:
    """Give the value of --stretch; InputError if it is none."""
    if words is None or words == ["auto"]:
        return words and "auto"
    try:
        low, high = map(float, words)
    except ValueError:
        low = high = 0.0
    if not on_disk.is_stretch([low, high]):
        parser.error(
            f"argument --stretch: {' '.join(words)!r}: must be two numbers, the smaller one first,"
            " or auto"
        )
    return low, high


def system(text: str) -> str:
    """A coordinate system by its code, EPSG:N: an argparse type."""
    name = text.upper()
    if not on_disk.SYSTEM.fullmatch(name):
        raise argparse.ArgumentTypeError(f"{text!r}: must be EPSG:N, as in EPSG:32611")
    # rasterio takes a third of a second, which other calls do without.
    from dl_slicer.patch_sets import ground

    if ground.usable_system(name) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r}: no coordinate system of places on the ground has this code"
        )
    return name


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

    arrangement = arranging.arrange(request)
    jobs = arrangement.jobs
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
    to_do = tiling.plan_regions(request, to_do, faults, args.workers)
    say_patch_sides(request, [job.regions for job in to_do] + list(done.values()))
    to_do = progress.leave_out_obstructed(request, to_do, faults)
    tiling.begin(request, to_do)
    arrangement.remember(request)
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
        description = completing.complete(request, done, arrangement.facts)
    print_summary(description, chain.from_iterable(done.values()))
    print(f"patch set: {printable(out)}; {speed(len(to_do), seconds)}")


def read_request(args: argparse.Namespace) -> Request:
    """Give what the flags ask for; InputError if the sizes do not go together."""
    out = Path(args.out)
    bands = args.bands and tuple(args.bands)
    view = View(args.ground_resolution, bands, args.stretch, args.crs)
    return Request(
        raw=Path(args.raw),
        out=out,
        settings=on_disk.make_settings(
            args.patch_size,
            args.stride,
            args.image_size,
            view,
            args.max_nodata,
            args.held_out,
            args.val,
        ),
        # JPEGs that are there are kept up to date: they must not show another split than arrays.
        jpegs=args.jpegs or records.has_jpegs(out),
        test_b=args.test_b,
        seed=args.seed,
        prune=args.prune,
        sites=args.sites,
        allow_overlap=args.allow_overlap,
        mosaic=args.mosaic,
    )


def say_patch_sides(request: Request, rasters: Iterable[Sequence[Region]]) -> None:
    """Say once if patches of georeferenced rasters show more or less of the world than meant.

    rasters: the regions of each.
    """
    if request.view.ground_resolution is not None:
        return  # whoever chooses that knows
    size = request.settings["patch_size"]
    sides = {
        regions[0].raster: size * regions[0].metres_a_pixel
        for regions in rasters
        if regions and regions[0].metres_a_pixel
    }
    wrong = sorted(
        raster
        for raster, side in sides.items()
        if abs(side - on_disk.PATCH_METRES) > 0.05 * on_disk.PATCH_METRES
    )
    if not wrong:
        return
    first = wrong[0]
    metres = sides[first]
    print(
        f"{len(wrong)} of {len(sides)} georeferenced rasters: a patch of {size} pixels is not"
        f" {on_disk.PATCH_METRES} m wide there, as published; in the first, {printable(first)}, it"
        f" is {metres:.3g} m ({metres / size:.3g} m a pixel); to see {on_disk.PATCH_METRES} m"
        f" everywhere: --ground-resolution {on_disk.PATCH_METRES / size:.3g}",
        flush=True,
    )


def refuse_faults(raw: Path, faults: Mapping[str, str], finished: str) -> None:
    """InputError: a line for each raster that cannot be used, and what is done nevertheless."""
    lines = [f"{printable(raw / raster)}: {fault}" for raster, fault in sorted(faults.items())]
    lines.append(
        f"{finished} rasters are done and kept; mend the above and run the same command again"
    )
    raise InputError("\n".join(lines))


@dataclass
class Area:
    """Pixels of some rasters, as they were seen."""

    all: float = 0
    covered: float = 0  # by the windows of their regions
    without_data: float = 0  # of these, by the share of windows that are left out

    @property
    def left_over(self) -> float:
        """The share that no window covers, in per cent."""
        return 100 * (self.all - self.covered) / self.all

    @property
    def no_data(self) -> float:
        """The share in windows without data, in per cent."""
        return 100 * self.without_data / self.all


def print_summary(description: Mapping[str, Any], regions: Iterable[Region]) -> None:
    """Print a table of the patches, and what is missing: test patches, data.

    description: dataset.json. regions: also those that have no window with data. The last columns
    are shares of the pixels.
    """
    regions = list(regions)
    areas = measure_areas(description, regions)
    total = areas.pop(ALL)
    has_gaps = total.without_data > 0
    counts = description["counts"]
    titles = "".join(f"{split:>9}" for split in on_disk.SPLITS)
    print(f"\n{'city':<28}{titles}   left over{'   no data' if has_gaps else ''}")
    for city in description["classes"]:
        columns = "".join(f"{counts[split][city]:>9}" for split in on_disk.SPLITS)
        print(f"{printable(city):<28}{columns}{as_shares(areas[city], has_gaps)}")
    columns = "".join(f"{sum(counts[split].values()):>9}" for split in on_disk.SPLITS)
    meaning = "of the pixels, at the right and lower edges"
    if has_gaps:
        meaning += f"; in windows with more than {description['max_nodata']:.3g} without data"
    print(f"{'all':<28}{columns}{as_shares(total, has_gaps)}  {meaning}")
    say_what_is_held_out(description, regions)
    say_how_far_apart(description)
    say_what_is_short(description)
    say_what_has_no_data(description, regions)


def measure_areas(description: Mapping[str, Any], regions: Iterable[Region]) -> dict[str, Area]:
    """Give the pixels of each city, and of ALL."""
    areas: dict[str, Area] = defaultdict(Area)
    for region in regions:
        width, height = on_disk.covered_size(region.rows, region.cols, description)
        left_out = 1 - on_disk.count_patches(region) / (region.rows * region.cols)
        for area in (areas[region.city], areas[ALL]):
            area.all += region.width * region.height
            area.covered += width * height
            area.without_data += width * height * left_out
    return areas


def as_shares(area: Area, has_gaps: bool) -> str:
    """Give the last columns of a row of the table."""
    return f"{area.left_over:>10.1f} %" + (f"{area.no_data:>8.1f} %" if has_gaps else "")


def say_what_is_held_out(description: Mapping[str, Any], regions: Iterable[Region]) -> None:
    """Say which cities are split otherwise than --held-out and --val say, having too few sites."""
    held_out = description.get("held_out", 1)
    sites: dict[str, set[str]] = defaultdict(set)
    for region in regions:
        sites[region.city].add(region.site)
    classes = description["classes"]
    number_of = dict(zip(labels(classes), (len(sites[city]) for city in classes), strict=True))
    round_again = [
        f"{printable(code)} ({number})" for code, number in number_of.items() if number < held_out
    ]
    if round_again:
        print(
            f"--held-out {held_out}: goes round in cities of fewer sites, where it holds out again"
            f" what a smaller number does: {', '.join(round_again)}"
        )
    halved = [printable(code) for code, number in number_of.items() if number < 3]
    if description.get("val") == "site" and halved:
        print(
            "--val site: has no third site, so val is the right half of the held-out rasters, in"
            f" {', '.join(halved)}"
        )


def say_how_far_apart(description: Mapping[str, Any]) -> None:
    """Say how far each city's held-out site lies from its nearest train raster."""
    distances = description.get("held_out_distance")
    if distances:
        classes = description["classes"]
        codes = dict(zip(classes, labels(classes), strict=True))
        nearest = sorted(codes.keys() & distances.keys(), key=lambda city: (distances[city], city))
        parts = [f"{printable(codes[city])} {distances[city]:,.0f} m" for city in nearest]
        print(f"from the held-out site to the nearest train raster: {', '.join(parts)}")


def say_what_is_short(description: Mapping[str, Any]) -> None:
    """Say which cities have fewer than --test-b."""
    wanted = description["test_b"]
    counts = description["counts"]["test_b"]
    classes = description["classes"]
    short = [
        printable(label)
        for city, label in zip(classes, labels(classes), strict=True)
        if counts[city] < wanted
    ]
    if short:
        noun = "city" if len(short) == 1 else "cities"
        print(
            f"test_b: fewer than {wanted} test patches, so all of them,"
            f" in {len(short)} {noun}: {', '.join(short)}"
        )


def say_what_has_no_data(description: Mapping[str, Any], regions: Iterable[Region]) -> None:
    """Say which rasters and which cities have no window with data."""
    has_patches: dict[str, bool] = defaultdict(bool)
    cities = set()
    for region in regions:
        has_patches[region.raster] |= on_disk.count_patches(region) > 0
        cities.add(region.city)
    empty = sorted(raster for raster, has_some in has_patches.items() if not has_some)
    if empty:
        print(
            f"no data: {len(empty)} rasters have no window with enough data and give no patch; the"
            f" first is {printable(empty[0])}"
        )
    for city in sorted(cities - set(description["classes"])):
        print(f"no data: {printable(city)} has no patch at all and is no class of this set")
    counts = description["counts"]
    for city in description["classes"]:
        lacking = [split for split in ("train", "val", "test") if not counts[split][city]]
        if lacking:
            print(
                f"no data: {printable(city)} has no patch in {' and '.join(lacking)}; add rasters"
                " with data there, or leave the city out: it cannot be learnt and tested so"
            )


def speed(rasters: int, seconds: float) -> str:
    """Say how long it took to tile so many rasters."""
    if not rasters:
        return "nothing was left to tile"
    rate = f"{rasters / seconds:.1f} a second"
    if rasters < seconds:
        rate = f"{seconds / rasters:.1f} s each"
    return f"{rasters} rasters in {seconds:.1f} s, {rate}"


if __name__ == "__main__":
    run(main)
