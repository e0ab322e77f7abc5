"""What grows with the data: start-up, memory, the order of an epoch, and the disk. Sets of empty files stand for the real ones.

    python -m benchmarks.growth --rasters 1600 16000 --out /scratch/growth        160000 is a hundred times the real data

Two thirds of the rasters are train, one third is held out; each array has the size that a raster of 4800 x 4800 pixels gives, but its file
is sparse and takes no room on the disk. Prints seconds and memory, that is, what a training run does apart from the network: open train and
val, order an epoch, read patches, score val. held (RssAnon, the process's own pages) and peak (VmHWM, the mapped files' pages as well) are
both beyond what Python and torch take. The disk is simulated: a read returns no sooner than a disk of --disk GB a second could have read what the patches lie in.
"""

import csv
import json
import multiprocessing
import time
from pathlib import Path

import numpy as np

from dl_slicer.cli import Parser, number, run
from dl_slicer.patch_sets import batching, on_disk, ordering, reading
from dl_slicer.patch_sets.on_disk import Region


def main():
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
            print(
                json.dumps({"rasters": rasters, **pool.apply(grow, (folder, args.disk))}),
                flush=True,
            )


def make_set(folder, rasters, cities=45):
    """A patch set of so many rasters in sparse files: 361 train patches each, or 171 of val and of test."""
    if (folder / "dataset.json").exists():
        return
    names, rows = [f"City {i:02d} (C{i:02d})" for i in range(cities)], []
    settings = {"format": on_disk.FORMAT, "patch_size": 480, "stride": 240, "image_size": 224}
    for i in range(rasters):
        city = names[i % cities]
        (folder / f"arrays/{city}/{i}").mkdir(parents=True)
        for split, x, width, cols in (
            [("val", 2400, 2400, 9), ("test", 0, 2400, 9)]
            if i // cities % 3 == 2
            else [("train", 0, 4800, 19)]
        ):
            region = Region(
                f"{city}/{i}/r.{split}",
                split,
                city,
                str(i),
                f"{city}/{i}/r.jpg",
                x,
                0,
                width,
                4800,
                19,
                cols,
                f"arrays/{city}/{i}/r.{split}.npy",
            )
            with open(folder / region.file, "wb") as array:
                np.lib.format.write_array_header_1_0(
                    array,
                    {
                        "descr": "|u1",
                        "fortran_order": False,
                        "shape": (*on_disk.array_shape(19, cols, settings), 3),
                    },
                )
                array.truncate(on_disk.array_bytes(19, cols, settings))
            rows.append(region)
    with open(folder / "regions.csv", "w", newline="") as file:
        csv.writer(file).writerows([Region._fields, *rows])
    (folder / "dataset.json").write_text(json.dumps({**settings, "classes": names, "raw": "raw"}))


def grow(folder, disk):
    import torch

    before, peak, started = memory("RssAnon"), memory("VmHWM"), time.perf_counter()
    patch_set, val = reading.open_split(folder, "train"), reading.open_split(folder, "val")
    opened = time.perf_counter()
    order = ordering.epoch_order(patch_set.labels, 128, 0, 0)
    ordered = time.perf_counter()
    held = memory("RssAnon")
    for indices in order[:50]:
        patch_set.read(indices)
    first = order[:90].copy()
    del order, indices
    scores, batches = (
        torch.ones(len(val), 2),
        [range(i, i + 64) for i in range(0, len(val), 64)],
    )  # what classifier.evaluate keeps
    for batch in batches[:30]:
        val.read(batch)
    # What a patch makes the disk read: its rows are far apart in the file, so all between them as well.
    touched = patch_set.image_size * 3 * on_disk.array_shape(1, 19, patch_set.description)[1]
    rate = rate_from_disk(patch_set, first[50:], touched, disk)
    return {
        "patches": len(patch_set),
        "val_patches": len(scores),
        "open_s": round(opened - started, 2),
        "order_s": round(ordered - opened, 2),
        "held_MB": held - before,
        "peak_MB": memory("VmHWM") - peak,
        "bytes_a_patch_from_disk": touched,
        "patches_a_second_from_disk": round(rate),
        "epoch_hours_from_disk": round(len(patch_set) / rate / 3600, 2),
        "epoch_hours_in_one_sweep": round(patch_set.nbytes / disk / 3.6e12, 2),
    }


def rate_from_disk(patch_set, order, touched, disk):
    """Patches a second that reach the network's loop if nothing is cached and the disk reads so many GB a second."""
    import torch

    read, free = (
        patch_set.read,
        time.perf_counter(),
    )  # free: when the disk has done what it was asked for

    def from_disk(indices, out=None):
        nonlocal free
        free = max(free, time.perf_counter()) + touched * len(indices) / (disk * 1e9)
        batch = read(indices, out)
        time.sleep(max(0, free - time.perf_counter()))
        return batch

    patch_set.read = from_disk
    started = time.perf_counter()
    for _ in batching.batches(patch_set, order, torch.device("cpu"), storage="files"):
        pass
    return order.size / (time.perf_counter() - started)


def memory(kind):
    """MB of this process, by /proc: RssAnon, RssFile or VmHWM. (getrusage's peak begins with that of the process that started this one.)"""
    return next(
        int(line.split()[1]) // 1024
        for line in open("/proc/self/status")
        if line.startswith(f"{kind}:")
    )


if __name__ == "__main__":
    run(main)
