"""Rasters cut into the arrays of a patch set, in several processes."""

import io
import itertools
import shutil
import signal
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
from PIL import Image
from tqdm import tqdm

from dl_slicer import machine
from dl_slicer.cli import InputError, printable
from dl_slicer.files import atomic, locked
from dl_slicer.patch_sets import image_files, on_disk, progress, records
from dl_slicer.patch_sets.image_files import UnreadableImage
from dl_slicer.patch_sets.jobs import Job, Request, stamp_of
from dl_slicer.patch_sets.on_disk import Region

JPEG_QUALITY = 95
JPEG_BYTES_A_PIXEL = 0.6  # at that quality, on the generous side, for the estimate of disk space

Done = MutableMapping[str, Sequence[Region]]  # {raster: its regions}
Faults = MutableMapping[str, str]  # {raster: what is wrong with it, and what to do}


# ------------------------------------------------------------------------------- planning


def plan_regions(request: Request, jobs: Iterable[Job], faults: Faults) -> list[Job]:
    """Give each job its regions, from the size in the file's header.

    Jobs of rasters that cannot be cut are left out, and said in faults.
    """
    planned = []
    for job in jobs:
        try:
            with image_files.open_image(request.raw / job.raster) as image:
                width, height = image.size
        except UnreadableImage as error:
            faults[job.raster] = str(error)
            continue
        regions = _regions_of(job, width, height, request.settings)
        if all(region.rows and region.cols for region in regions):
            planned.append(replace(job, regions=regions))
        else:
            size = request.settings["patch_size"]
            held_out = " in each half (its site is held out)" if len(regions) == 2 else ""
            faults[job.raster] = (
                f"{width} x {height} pixels, smaller than a patch of {size} x {size}{held_out};"
                " replace or delete it"
            )
    return planned


def _regions_of(job: Job, width: int, height: int, settings: dict[str, int]) -> tuple[Region, ...]:
    """The whole raster, or its left and its right half: no window reaches over the middle."""
    if len(job.splits) == 1:
        parts = [(0, width)]
    else:
        middle = round(width / 2)
        parts = [(0, middle), (middle, width - middle)]
    size = settings["patch_size"]
    stride = settings["stride"]
    regions = []
    for split, (x, part_width) in zip(job.splits, parts, strict=True):
        name = on_disk.region_name(job.raster, split)
        region = Region(
            region=name,
            split=split,
            city=job.city,
            site=job.site,
            raster=job.raster,
            x=x,
            y=0,
            width=part_width,
            height=height,
            rows=on_disk.count_windows(height, size, stride),
            cols=on_disk.count_windows(part_width, size, stride),
            file=on_disk.array_file(name),
        )
        regions.append(region)
    return tuple(regions)


def check_space(request: Request, jobs: Sequence[Job]) -> None:
    """Say how much disk the planned jobs need; InputError if it is not there."""
    jpeg_bytes = request.settings["patch_size"] ** 2 * JPEG_BYTES_A_PIXEL
    need = 0.0
    test_patches: dict[str, int] = defaultdict(int)  # of each city
    for region in itertools.chain.from_iterable(job.regions for job in jobs):
        need += on_disk.array_bytes(region.rows, region.cols, request.settings)
        if request.jpegs:
            need += region.rows * region.cols * jpeg_bytes
        if region.split == "test":
            test_patches[region.city] += region.rows * region.cols
    if request.jpegs:
        copies = sum(min(request.test_b, count) for count in test_patches.values())
        need += copies * jpeg_bytes
    out = request.out
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    print(
        f"{len(jobs)} rasters to do, {need / 1e9:.2f} GB needed in {printable(out)},"
        f" {free / 1e9:.1f} GB free",
        flush=True,
    )
    if need > free:
        raise InputError(
            f"{printable(out)}: needs {need / 1e9:.2f} GB, only {free / 1e9:.2f} GB are free;"
            " make room or choose another --out"
        )


# ------------------------------------------------------------------------------- one raster


def tile_raster(request: Request, job: Job) -> Sequence[Region]:
    """Cut one raster into arrays (and JPEGs). Returns its regions.

    They are also written into the raster's record, which vouches for the rest once it is finished.
    UnreadableImage if the raster cannot be used, or has changed since it was found.
    """
    file = request.raw / job.raster
    image = image_files.read_image(file)
    # Planned for the size that it had: beyond the edges of a smaller one all would be black.
    if stamp_of(file.stat()) != job.stamp:
        raise UnreadableImage("has changed since it was found; wait until it is whole")
    begun = records.begin(request, job)
    for region in job.regions:
        covered = _crop_covered(image, region, request.settings)
        height, width = on_disk.array_shape(region.rows, region.cols, request.settings)
        with atomic(request.out / region.file, sync=False) as file:
            on_disk.write_array(file, np.asarray(image_files.resize(covered, (width, height))))
        if request.jpegs:
            _write_jpegs(request, covered, region)
    records.finish(request, job, begun)
    return job.regions


def _crop_covered(image: Image.Image, region: Region, settings: dict[str, int]) -> Image.Image:
    """The part of a raster that the windows of a region cover.

    Cropped before it is resized: the filter must not see the neighbouring split. The box that
    Pillow's resize takes would not do, the filter looks beyond its edges.
    """
    width, height = on_disk.covered_size(region.rows, region.cols, settings)
    box = (region.x, region.y, region.x + width, region.y + height)
    if box == (0, 0, *image.size):
        return image
    return image.crop(box)


def _write_jpegs(request: Request, covered: Image.Image, region: Region) -> None:
    size = request.settings["patch_size"]
    stride = request.settings["stride"]
    for window in on_disk.each_window([region]):
        _, row, col = window
        left = col * stride
        upper = row * stride
        jpeg = io.BytesIO()
        patch = covered.crop((left, upper, left + size, upper + size))
        patch.save(jpeg, "JPEG", quality=JPEG_QUALITY)
        with atomic(on_disk.jpeg_file(request.out, region.split, window), sync=False) as file:
            file.write(jpeg.getbuffer())


# ------------------------------------------------------------------------------- all rasters


def begin(request: Request, jobs: Sequence[Job]) -> None:
    """Take the folder for a set of planned jobs, which is unfinished from then on.

    InputError if the disk has no room, or if another process has begun another set there: the
    check is made again, one process after the other, since two may have been started at an instant.
    """
    if not jobs:
        return
    check_space(request, jobs)
    arrays = request.out / on_disk.ARRAYS
    arrays.mkdir(parents=True, exist_ok=True)
    with locked(request.out, shared=True), locked(arrays, shared=False):
        progress.refuse_other_set(request.out, request.settings)
        (request.out / on_disk.DESCRIPTION).unlink(missing_ok=True)
        records.begin(request, jobs[0])


def tile(request: Request, jobs: Sequence[Job], workers: int, done: Done, faults: Faults) -> None:
    """Tile the rasters of planned jobs into the patch set.

    Their regions are noted in done, what fails in faults.
    """
    if not jobs:
        return
    with locked(request.out, shared=True):
        # Another process may have completed the set meanwhile.
        (request.out / on_disk.DESCRIPTION).unlink(missing_ok=True)
        tile_all(jobs, partial(tile_raster, request), workers, done, faults)


def tile_all(
    jobs: Sequence[Job],
    work: Callable[[Job], Sequence[Region]],
    workers: int,
    done: Done,
    faults: Faults,
) -> None:
    """Run work on every job in processes. What fails is noted in faults, and the rest goes on.

    Few jobs are handed out at a time: memory, and the time that Ctrl-C takes, do not grow with
    the number of rasters.
    """
    workers = min(workers, len(jobs))
    waiting = iter(jobs)
    running: dict[Future, str] = {}
    with (
        interrupts_held() as interrupts,
        ProcessPoolExecutor(workers, machine.worker_processes(), _start_worker) as pool,
        tqdm(total=len(jobs), unit=" rasters", desc="tiling", disable=None) as bar,
    ):
        try:
            while not interrupts:
                with (
                    machine.interrupts_blocked()
                ):  # workers, which are started in here, inherit that
                    for job in itertools.islice(waiting, 2 * workers - len(running)):
                        running[pool.submit(work, job)] = job.raster
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    _note_result(future, running[future], done, faults)
                    del running[future]
                    bar.update()
        except BrokenProcessPool:
            first = printable(next(iter(running.values())))
            raise InputError(
                f"a worker process was killed, most likely for want of memory, at {first} or"
                f" another of {len(running)} rasters at work; run the same command again with"
                " fewer --workers, it goes on from there"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _note_result(future: Future, raster: str, done: Done, faults: Faults) -> None:
    try:
        done[raster] = future.result()
    except UnreadableImage as error:
        faults[raster] = str(error)
    except MemoryError:
        faults[raster] = (
            "does not fit into memory; cut it into smaller rasters, or take fewer --workers"
        )


# ------------------------------------------------------------------------------- processes


@contextmanager
def interrupts_held() -> Iterator[list]:
    """Have Ctrl-C take effect at the end of the block.

    Yields a list into which Ctrl-C puts something; a second Ctrl-C takes effect at once.
    """
    interrupts: list[tuple] = []
    handler = signal.getsignal(signal.SIGINT)

    def note(*arguments) -> None:
        interrupts.append(arguments)
        if len(interrupts) > 1:
            handler(*arguments)

    if callable(handler):
        signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, handler)
    if interrupts:
        handler(*interrupts[0])


def _start_worker() -> None:
    machine.follow_parent()
    machine.keep_memory()  # a forked worker has inherited that, another one has not
