"""What grows with the data: start-up, memory, the order of an epoch, and the disk.

    python -m benchmarks.growth --rasters 1600 16000 --out /scratch/growth
    python -m benchmarks.growth --rasters 160000 --ratio 10 --out /scratch/growth

160000 rasters are a hundred times the real data. Sets of empty files stand for the real ones: two
thirds of the rasters are train, one third is held out; each array has the size that a raster of
4800 x 4800 pixels gives, but its file is sparse and takes no room on the disk.

Prints seconds and memory of what a training run does apart from the network: open train and val,
order an epoch, read patches, score val. held (RssAnon, the process's own pages) and peak (VmHWM,
the mapped files' pages as well) are both beyond what Python and torch take. The disk is simulated:
a read returns no sooner than a disk of --disk GB a second could have read what the patches lie in.

Both orders of train_classification.py are measured: random, and grouped with a buffer of --buffer
GB. Its bytes a patch are those of all that it reads in an epoch by the patches it uses, and stand
beside those of one sweep: the bytes of all arrays by all patches. --ratio 10: the largest city has
ten times the rasters of the smallest; cities still come equally often.
"""

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dl_slicer.cli import Parser, number, run
from dl_slicer.patch_sets import batching, grouping, on_disk, ordering, reading, slab_reading
from dl_slicer.patch_sets.grouping import GroupedOrder
from dl_slicer.patch_sets.on_disk import IMAGE_SIZE, PATCH_SIZE, STRIDE, Region

RASTER = 4800  # pixels of a side
WINDOWS = on_disk.count_windows(RASTER, PATCH_SIZE, STRIDE)  # along a side
HELD_OUT_WINDOWS = on_disk.count_windows(RASTER // 2, PATCH_SIZE, STRIDE)

BATCH = 128
CITIES = 45

SETTINGS = on_disk.make_settings(PATCH_SIZE, STRIDE, IMAGE_SIZE)


def main() -> None:
    """Print a line of JSON for each number of rasters."""
    parser = Parser(__doc__)
    parser.add_argument("--rasters", type=number(least=135), nargs="+", default=[160, 1600])
    parser.add_argument("--out", required=True, help="folder of the made-up sets, which stay")
    parser.add_argument(
        "--disk", type=number(float, above=0), default=2.0, help="GB a second of the simulated disk"
    )
    parser.add_argument(
        "--buffer", type=number(float, above=0), default=1.0, help="GB, of the grouped order"
    )
    parser.add_argument(
        "--ratio",
        type=number(float, least=1),
        default=1.0,
        help="of the largest city's rasters to the smallest one's",
    )
    args = parser.parse_args()
    for rasters in args.rasters:
        name = str(rasters) if args.ratio == 1 else f"{rasters}-{args.ratio:g}"
        folder = Path(args.out, name)
        make_set(folder, rasters, args.ratio)
        # A process of its own each: what the one before it took would count.
        for measure, more in ((grow, ()), (grow_grouped, (args.buffer,))):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found = pool.apply(measure, (folder, args.disk, *more))
            print(json.dumps({"rasters": rasters, "ratio": args.ratio, **found}), flush=True)


def make_set(folder: Path, rasters: int, ratio: float = 1.0) -> None:
    """Make a patch set of so many rasters in sparse files, if it is not there.

    A raster has 361 train patches, or 171 of val and of test. ratio: the cities' numbers of rasters
    rise evenly from one to so many.
    """
    if on_disk.is_finished(folder):
        return
    names = [f"City {i:02d} (C{i:02d})" for i in range(CITIES)]
    weights = np.linspace(1, ratio, CITIES)
    ends = np.round(np.cumsum(weights) / weights.sum() * rasters).astype(int)
    regions = []
    for city, begin, end in zip(names, [0, *ends], ends, strict=False):
        for i in range(begin, end):
            for region in regions_of_raster(city, str(i), held_out=(i - begin) % 3 == 2):
                make_sparse_array(folder / region.file, region)
                regions.append(region)
    with open(folder / on_disk.REGIONS, "w", newline="", encoding="utf-8") as file:
        file.write(on_disk.text_of_regions(regions))
    description = on_disk.text_of_description({**SETTINGS, "classes": names, "raw": "raw"})
    (folder / on_disk.DESCRIPTION).write_text(description, encoding="utf-8")


def regions_of_raster(city: str, site: str, held_out: bool) -> Iterator[Region]:
    """The regions of a site's only raster, as preprocessing.py would cut them."""
    half = RASTER // 2
    if held_out:
        parts = [("val", half, half, HELD_OUT_WINDOWS), ("test", 0, half, HELD_OUT_WINDOWS)]
    else:
        parts = [("train", 0, RASTER, WINDOWS)]
    raster = f"{city}/{site}/r.jpg"
    for split, x, width, cols in parts:
        region = on_disk.region_name(raster, split)
        yield Region(
            region=region,
            split=split,
            city=city,
            site=site,
            raster=raster,
            x=x,
            y=0,
            width=width,
            height=RASTER,
            rows=WINDOWS,
            cols=cols,
            file=on_disk.array_file(region),
        )


def make_sparse_array(path: Path, region: Region) -> None:
    """A file with the header and the size of a region's array, and nothing in it."""
    header = {
        "descr": "|u1",
        "fortran_order": False,
        "shape": (*on_disk.array_shape(region.rows, region.cols, SETTINGS), 3),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(on_disk.array_bytes(region.rows, region.cols, SETTINGS))


def grow(folder: Path, disk: float) -> dict[str, float | str]:
    """Do what a training run does apart from the network, in random order; give what it took."""
    memory_before = memory("RssAnon")
    peak_before = memory("VmHWM")
    started = time.perf_counter()
    patch_set = reading.open_split(folder, "train")
    val = reading.open_split(folder, "val")
    opened = time.perf_counter()
    order = ordering.epoch_order(patch_set.labels, BATCH, 0, 0)
    ordered = time.perf_counter()
    memory_held = memory("RssAnon")
    for indices in order[:50]:
        patch_set.read(indices)
    first = order[:90].copy()
    del order, indices
    # What evaluation.score keeps.
    scores = torch.ones(len(val), 2)
    batches = [range(i, i + 64) for i in range(0, len(val), 64)]
    for batch in batches[:30]:
        val.read(batch)
    # What a patch makes the disk read: its rows are far apart in the file, so all between them
    # as well.
    width = on_disk.array_shape(1, WINDOWS, patch_set.settings)[1]
    touched = patch_set.image_size * 3 * width
    rate = random_rate_from_disk(patch_set, first[50:], touched, disk)
    return {
        "order": "random",
        "patches": len(patch_set),
        "val_patches": len(scores),
        "open_s": round(opened - started, 2),
        "order_s": round(ordered - opened, 2),
        "held_MB": memory_held - memory_before,
        "peak_MB": memory("VmHWM") - peak_before,
        "bytes_a_patch_from_disk": touched,
        "patches_a_second_from_disk": round(rate),
        "epoch_hours_from_disk": round(len(patch_set) / rate / 3600, 2),
        "epoch_hours_in_one_sweep": round(patch_set.nbytes / disk / 3.6e12, 2),
    }


def grow_grouped(
    folder: Path, disk: float, buffer: float, batches: int = 1600
) -> dict[str, float | str]:
    """The same of the grouped order, but for val, which is read as it lies.

    batches: so many are read from the simulated disk, enough to go through several groups.
    """
    memory_before = memory("RssAnon")
    peak_before = memory("VmHWM")
    patch_set = reading.open_split(folder, "train")
    started = time.perf_counter()
    slabs = grouping.cut_slabs(patch_set)
    places = grouping.count_places(slabs, CITIES, round(buffer * 1e9))
    order = grouping.grouped_order(slabs, patch_set.labels, BATCH, (0, 0), True, places)
    ordered = time.perf_counter()
    memory_held = memory("RssAnon")
    of_patch = slabs.nbytes[order.loads.slab].sum() / order.size
    of_sweep = patch_set.nbytes / len(patch_set)
    rate = grouped_rate_from_disk(patch_set, order[:batches], disk)
    return {
        "order": "grouped",
        "patches": len(patch_set),
        "buffer_GB": buffer,
        "slabs_of_a_city_at_a_time": grouping.count_group(places, CITIES),
        "order_s": round(ordered - started, 2),
        "held_MB": memory_held - memory_before,
        "peak_MB": memory("VmHWM") - peak_before,
        "most_off_equal_in_100_batches": round(most_off_equal(patch_set, order), 4),
        "bytes_a_patch_from_disk": round(of_patch),
        "in_times_of_one_sweep": round(of_patch / of_sweep, 3),
        "patches_a_second_from_disk": round(rate),
        "epoch_hours_from_disk": round(len(patch_set) / rate / 3600, 2),
    }


def most_off_equal(patch_set: reading.ArrayPatches, order: GroupedOrder) -> float:
    """How far a city's share of a hundred batches is from equal at most, as a part of that."""
    most = 0.0
    for first in range(0, len(order) - 99, max(1, len(order) // 500)):
        labels = patch_set.labels[order.patches[first : first + 100]]
        shares = np.bincount(labels.ravel(), minlength=CITIES) / labels.size
        most = max(most, float(np.abs(shares * CITIES - 1).max()))
    return most


class Disk:
    """A disk of so many GB a second, which reads one thing after another."""

    def __init__(self, speed: float):
        self.speed = speed
        self.is_free_at = time.perf_counter()

    def paced(self, read: Callable[..., Any], count: Callable[..., int]) -> Callable[..., Any]:
        """Give a function that reads no sooner than the disk could have.

        count: the bytes that a call of it reads.
        """

        def read_from_disk(*arguments: Any) -> Any:
            begins = max(self.is_free_at, time.perf_counter())
            self.is_free_at = begins + count(*arguments) / (self.speed * 1e9)
            found = read(*arguments)
            time.sleep(max(0, self.is_free_at - time.perf_counter()))
            return found

        return read_from_disk


def random_rate_from_disk(
    patch_set: reading.ArrayPatches, order: np.ndarray, touched: int, speed: float
) -> float:
    """Patches a second that reach the network's loop if nothing is cached.

    touched: bytes that a patch makes the disk read. speed: GB a second that it reads.
    """
    read = patch_set.read
    patch_set.read = Disk(speed).paced(read, lambda indices, out: touched * len(indices))
    try:
        return rate(patch_set, order)
    finally:
        del patch_set.read


def grouped_rate_from_disk(
    patch_set: reading.ArrayPatches, order: GroupedOrder, speed: float
) -> float:
    """The same of a grouped order, from its first batch on: filling the buffer counts."""
    buffer = slab_reading.SlabBuffer
    read = buffer.read_slab
    nbytes = order.slabs.nbytes
    buffer.read_slab = Disk(speed).paced(read, lambda _, slab, place: int(nbytes[slab]))
    try:
        return rate(patch_set, order)
    finally:
        buffer.read_slab = read


def rate(patch_set: reading.ArrayPatches, order: batching.Order) -> float:
    """Patches a second that reach the network's loop."""
    started = time.perf_counter()
    for _ in batching.batches(patch_set, order, torch.device("cpu"), storage="files"):
        pass
    return order.size / (time.perf_counter() - started)


def memory(kind: str) -> int:
    """MB of this process, as Linux says in /proc: RssAnon, RssFile or VmHWM.

    getrusage's peak would begin with that of the process that started this one.
    """
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(f"{kind}:"):
                return int(line.split()[1]) // 1024
    raise ValueError(f"/proc/self/status has no {kind}")


if __name__ == "__main__":
    run(main)
