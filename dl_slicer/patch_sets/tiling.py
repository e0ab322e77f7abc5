"""Rasters cut into the arrays of a patch set, in several processes."""

import io
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections import defaultdict
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dl_slicer import machine
from dl_slicer.cli import InputError, printable
from dl_slicer.files import atomic
from dl_slicer.patch_sets import image_files, on_disk
from dl_slicer.patch_sets.image_files import UnreadableImage
from dl_slicer.patch_sets.on_disk import Region

JPEG_QUALITY = 95
JPEG_BYTES_A_PIXEL = 0.6  # at that quality, on the generous side, for the estimate of disk space


def plan_regions(raw, jobs, patch_size, faults):
    """Give each job its regions, from the size in the file's header. Those that cannot be cut go into faults."""
    good = []
    for job in jobs:
        try:
            with image_files.opened(raw / job["raster"]) as image:
                width, height = image.size
        except UnreadableImage as error:
            faults[job["raster"]] = str(error)
            continue
        half = round(width / 2)
        parts = [(0, half), (half, width - half)] if len(job["splits"]) == 2 else [(0, width)]
        if height < patch_size or min(w for _, w in parts) < patch_size:
            faults[job["raster"]] = (
                f"{width} x {height} pixels, smaller than a patch of {patch_size} x {patch_size}"
                + (" in each half (its site is held out)" if len(parts) == 2 else "")
                + "; replace or delete it"
            )
            continue
        good.append({**job, "parts": [(x, 0, w, height) for x, w in parts]})
    return good


def tile_raster(raw, out, settings, jpegs, job):
    """Cut one raster into arrays (and JPEGs). Returns its regions; they are also written, last, into the raster's record."""
    size, stride = settings["patch_size"], settings["stride"]
    image = image_files.read_image(raw / job["raster"])
    record = Path(on_disk.record_file(out, job["raster"]))
    record.unlink(missing_ok=True)  # from here on what an earlier run made does not count
    regions = []
    for split, (x, y, width, height) in zip(job["splits"], job["parts"]):
        rows, cols = (
            on_disk.count_windows(height, size, stride),
            on_disk.count_windows(width, size, stride),
        )
        name = f"{Path(job['raster']).with_suffix('').as_posix()}.{split}"
        region = Region(
            name,
            split,
            job["city"],
            job["site"],
            job["raster"],
            x,
            y,
            width,
            height,
            rows,
            cols,
            f"arrays/{name}.npy",
        )
        # Cropped before it is resized: the filter must not see the neighbouring split.
        box = (x, y, x + (cols - 1) * stride + size, y + (rows - 1) * stride + size)
        part = (
            image if box == (0, 0, *image.size) else image.crop(box)
        )  # resize's own box would not do, it looks beyond its edges
        with atomic(out / region.file, sync=False) as file:
            on_disk.write_array(
                file,
                np.asarray(
                    image_files.resize(part, on_disk.array_shape(rows, cols, settings)[::-1])
                ),
            )
        for _, row, col in on_disk.each_patch([region] if jpegs else []):
            left, upper, jpeg = col * stride, row * stride, io.BytesIO()
            part.crop((left, upper, left + size, upper + size)).save(
                jpeg, "JPEG", quality=JPEG_QUALITY
            )
            with atomic(on_disk.jpeg_file(out, split, region, row, col), sync=False) as file:
                file.write(jpeg.getbuffer())
        regions.append(region)
    made = {
        "job": {key: job[key] for key in ("raster", "city", "site", "splits", "stamp")},
        "settings": settings,
        "regions": regions,
    }
    with atomic(record, "w", sync=False, encoding="utf-8") as file:
        json.dump(made, file)
    return regions


def tile_all(jobs, work, workers, done, faults):
    """Run work on every job in processes. What fails is noted in faults, and the rest goes on."""
    workers, waiting, running = min(workers, len(jobs)), iter(jobs), {}
    with (
        interrupts_held() as interrupts,
        ProcessPoolExecutor(workers, machine.worker_processes(), end_with_parent) as pool,
        tqdm(total=len(jobs), unit=" rasters", desc="tiling", disable=None) as bar,
    ):
        try:
            while not interrupts:
                # A terminal sends Ctrl-C to all its processes. The workers, which are started in here, never see it.
                mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                try:
                    for job in itertools.islice(waiting, 2 * workers - len(running)):
                        running[pool.submit(work, job)] = job["raster"]
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    raster = running[future]
                    try:
                        done[raster] = future.result()
                    except UnreadableImage as error:
                        faults[raster] = str(error)
                    except MemoryError:
                        faults[raster] = (
                            "does not fit into memory; cut it into smaller rasters, or take fewer --workers"
                        )
                    del running[future]
                    bar.update()
        except BrokenProcessPool:
            raise InputError(
                f"a worker process was killed, most likely for want of memory, at {printable(next(iter(running.values())))} or another of "
                f"{len(running)} rasters at work; run the same command again with fewer --workers, it goes on from there"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def interrupts_held():
    """Yields a list: Ctrl-C puts something into it, and takes effect at the end of the block; a second Ctrl-C does so at once."""
    came, handler = [], signal.getsignal(signal.SIGINT)

    def note(*arguments):
        came.append(arguments)
        if len(came) > 1:
            handler(*arguments)

    if callable(handler):
        signal.signal(signal.SIGINT, note)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        handler(*came[0])


def end_with_parent():
    """In a worker: end as soon as the parent has ended, however it did."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def check_space(out, jobs, settings, jpegs, test_b):
    """Say how much disk the jobs need; InputError if it is not there."""
    size, stride = settings["patch_size"], settings["stride"]
    need, copies = 0.0, defaultdict(int)
    for job in jobs:
        for split, (_, _, width, height) in zip(job["splits"], job["parts"]):
            rows, cols = (
                on_disk.count_windows(height, size, stride),
                on_disk.count_windows(width, size, stride),
            )
            need += on_disk.array_bytes(rows, cols, settings)
            if jpegs:
                need += rows * cols * size * size * JPEG_BYTES_A_PIXEL
                copies[job["city"]] += rows * cols * (split == "test")
    need += sum(min(test_b, count) for count in copies.values()) * size * size * JPEG_BYTES_A_PIXEL
    free = shutil.disk_usage(
        next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    ).free
    print(
        f"{len(jobs)} rasters to do, {need / 1e9:.2f} GB needed in {printable(out)}, {free / 1e9:.1f} GB free",
        flush=True,
    )
    if need > free:
        raise InputError(
            f"{printable(out)}: needs {need / 1e9:.2f} GB, only {free / 1e9:.2f} GB are free; make room or choose another --out"
        )
