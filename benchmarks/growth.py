"""What grows with the data: start-up, memory, the order of an epoch, and the disk.

    python -m benchmarks.growth --rasters 1600 16000 --out /scratch/growth

160000 rasters are a hundred times the real data. Sets of empty files stand for the real ones: two
thirds of the rasters are train, one third is held out; each array has the size that a raster of
4800 x 4800 pixels gives, but its file is sparse and takes no room on the disk.

Prints seconds and memory of what a training run does apart from the network: open train and val,
order an epoch, read patches, score val. held (RssAnon, the process's own pages) and peak (VmHWM,
the mapped files' pages as well) are both beyond what Python and torch take. The disk is simulated:
a read returns no sooner than a disk of --disk GB a second could have read what the patches lie in.
"""

import json
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from dl_slicer.cli import Parser, number, run
from dl_slicer.patch_sets import batching, on_disk, ordering, reading
from dl_slicer.patch_sets.on_disk import IMAGE_SIZE, PATCH_SIZE, STRIDE, Region

RASTER = 4800  # pixels of a side
WINDOWS = on_disk.count_windows(RASTER, PATCH_SIZE, STRIDE)  # along a side
HELD_OUT_WINDOWS = on_disk.count_windows(RASTER // 2, PATCH_SIZE, STRIDE)

SETTINGS = on_disk.make_settings(PATCH_SIZE, STRIDE, IMAGE_SIZE)


def main() -> None:
    """Print a line of JSON for each number of rasters."""
    parser = Parser(__doc__)
    parser.add_argument("--rasters", type=number(least=135), nargs="+", default=[160, 1600])
    parser.add_argument("--out", required=True, help="folder of the made-up sets, which stay")
    parser.add_argument(
        "--disk", type=number(float, above=0), default=2.0, help="GB a second of the simulated disk"
    )
    args = parser.parse_args()
    for rasters in args.rasters:
        folder = Path(args.out, str(rasters))
        make_set(folder, rasters)
        # A process of its own: what the one before it took would count.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(grow, (folder, args.disk))
        print(json.dumps({"rasters": rasters, **found}), flush=True)


def make_set(folder: Path, rasters: int, cities: int = 45) -> None:
    """Make a patch set of so many rasters in sparse files, if it is not there.

    A raster has 361 train patches, or 171 of val and of test.
    """
    if on_disk.is_finished(folder):
        return
    names = [f"City {i:02d} (C{i:02d})" for i in range(cities)]
    regions = []
    for i in range(rasters):
        city = names[i % cities]
        for region in regions_of_raster(city, str(i), held_out=i // cities % 3 == 2):
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


def grow(folder: Path, disk: float) -> dict[str, float]:
    """Do what a training run does apart from the network, and give what it took."""
    memory_before = memory("RssAnon")
    peak_before = memory("VmHWM")
    started = time.perf_counter()
    patch_set = reading.open_split(folder, "train")
    val = reading.open_split(folder, "val")
    opened = time.perf_counter()
    order = ordering.epoch_order(patch_set.labels, 128, 0, 0)
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
    rate = rate_from_disk(patch_set, first[50:], touched, disk)
    return {
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


def rate_from_disk(
    patch_set: reading.ArrayPatches, order: np.ndarray, touched: int, disk: float
) -> float:
    """Patches a second that reach the network's loop if nothing is cached.

    touched: bytes that a patch makes the disk read. disk: GB a second that it reads.
    """
    read = patch_set.read
    disk_is_free_at = time.perf_counter()

    def read_from_disk(indices, out=None):
        nonlocal disk_is_free_at
        begins = max(disk_is_free_at, time.perf_counter())
        disk_is_free_at = begins + touched * len(indices) / (disk * 1e9)
        batch = read(indices, out)
        time.sleep(max(0, disk_is_free_at - time.perf_counter()))
        return batch

    patch_set.read = read_from_disk
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
