"""Rasters cut into the arrays of a patch set, in several processes."""

import io
import itertools
import shutil
import signal
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from dl_slicer import machine
from dl_slicer.cli import InputError, printable
from dl_slicer.files import atomic, locked
from dl_slicer.patch_sets import gaps, on_disk, progress, rasters, records, strips
from dl_slicer.patch_sets.image_files import UnreadableImage
from dl_slicer.patch_sets.jobs import Job, Request, stamp_of
from dl_slicer.patch_sets.on_disk import Region
from dl_slicer.patch_sets.rasters import Raster

# Files whose size stands at their beginning: Pillow reads them, and tells it in no time.
QUICK = (".jpg", ".jpeg", ".png")

JPEG_QUALITY = 95
JPEG_BYTES_A_PIXEL = 0.6  # at that quality, on the generous side, for the estimate of disk space

BAR_SECONDS = 0.5  # after which the bar moves, also where no raster is done

Done = MutableMapping[str, Any]  # {raster: its regions, or its plan}
Faults = MutableMapping[str, str]  # {raster: what is wrong with it, and what to do}


# ------------------------------------------------------------------------------- planning


def plan_regions(
    request: Request, jobs: Sequence[Job], faults: Faults, workers: int = 1
) -> list[Job]:
    """Give each job its regions, from the size in the file's header.

    Jobs of rasters that cannot be cut are left out, and said in faults. Where data begin in a large
    raster may be seen in its pixels alone, so that several processes look.
    """
    known = {job.raster: _planned_before(request, job) for job in jobs}
    plans = {raster: Plan(regions) for raster, regions in known.items() if regions}
    to_plan = [job for job in jobs if job.raster not in plans]
    if workers > 1 and not all(_is_quick(request, job) for job in to_plan):
        tile_all(to_plan, partial(plan_raster, request), workers, plans, faults)
    else:
        for job in to_plan:
            try:
                plans[job.raster] = plan_raster(request, job)
            except UnreadableImage as error:
                faults[job.raster] = str(error)
    _say_remarks(plans)
    return [replace(job, regions=plans[job.raster].regions) for job in jobs if job.raster in plans]


class Plan(NamedTuple):
    """What is to be made of a raster."""

    regions: tuple[Region, ...]
    remarks: tuple[str, ...] = ()  # what a user should know of it


def _say_remarks(plans: Mapping[str, Plan]) -> None:
    """Say each remark once, with the number of rasters and the first of them."""
    rasters_of: dict[str, list[str]] = defaultdict(list)
    for raster, plan in plans.items():
        for remark in plan.remarks:
            rasters_of[remark].append(raster)
    for remark, found in rasters_of.items():
        first = f"the first is {printable(min(found))}"
        noun = "raster" if len(found) == 1 else "rasters"
        print(f"{len(found)} {noun}: {remark}; {first}", flush=True)


def _is_quick(request: Request, job: Job) -> bool:
    return request.settings["format"] == 1 and job.raster.lower().endswith(QUICK)


def _planned_before(request: Request, job: Job) -> tuple[Region, ...]:
    """The regions that a run which was interrupted has planned; none if it has not."""
    record = records.load(request.out, job.raster)
    if record is None or not record.unfinished or record.job != job.identity():
        return ()
    if record.settings != request.settings:
        return ()
    # What follows has been made of the raster in another role.
    return tuple(record.regions[: len(job.splits)])


def plan_raster(request: Request, job: Job) -> Plan:
    """Give the regions of one raster, and what is to be said of it.

    UnreadableImage if it cannot be cut.
    """
    with rasters.open_raster(request.raw / job.raster, request.view, request.raw) as raster:
        regions = _regions_of(job, raster, request)
        if all(region.rows and region.cols for region in regions):
            return Plan(regions, tuple(raster.remarks))
        size = request.settings["patch_size"]
        resolution = request.view.ground_resolution
        seen = f" of {resolution:g} m" if resolution else ""
        held_out = " in each half (its site is held out)" if len(regions) == 2 else ""
        raise UnreadableImage(
            f"{raster.width} x {raster.height} pixels{seen}, smaller than a patch of"
            f" {size} x {size}{held_out}; replace or delete it"
        )


def _regions_of(job: Job, raster: Raster, request: Request) -> tuple[Region, ...]:
    """The whole raster, or its left and its right part: no window reaches over the cut."""
    width = raster.width
    if len(job.splits) == 1:
        parts = [(0, width)]
    else:
        end, begin = _cut(job, raster)
        parts = [(0, end), (begin, width - begin)]
    size = request.settings["patch_size"]
    stride = request.settings["stride"]
    place = _place_of(raster, request)
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
            height=raster.height,
            rows=on_disk.count_windows(raster.height, size, stride),
            cols=on_disk.count_windows(part_width, size, stride),
            file=on_disk.array_file(name),
            **place,
        )
        regions.append(region)
    return tuple(regions)


def _cut(job: Job, raster: Raster) -> tuple[int, int]:
    """Columns where the left part of a held-out raster ends, and where the right one begins.

    In a warped view a pixel shows something of what lies around it: the parts keep so far apart
    that no pixel of the raster is seen in both.
    """
    if job.cut is not None:
        end, begin = job.cut
        return end - raster.reach, begin + raster.reach
    # The right part's windows begin where they do in another version of the raster.
    middle = round(raster.width / 2)
    return middle - 2 * raster.reach, middle


def _place_of(raster: Raster, request: Request) -> dict[str, Any]:
    """The columns of regions.csv that say where a raster lies, and how it is seen."""
    place: dict[str, Any] = {}
    if request.view.bands:
        place["bands"] = " ".join(map(str, request.view.bands))
    if raster.crs:
        place |= {
            "crs": raster.crs,
            "left": float(raster.transform.c),
            "top": float(raster.transform.f),
            "metres_a_pixel": raster.metres_a_pixel,
        }
    return place


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
    with rasters.open_raster(file, request.view, request.raw) as raster:
        raster.whole()  # one that Pillow cannot read is refused before anything is written
        _refuse_changed(file, job)
        begun = records.begin(request, job)
        regions = tuple(_write_array(request, raster, region) for region in job.regions)
        for region in regions if request.jpegs else ():
            _write_jpegs(request, raster, region)
    _refuse_changed(file, job)  # a large one takes minutes
    records.finish(request, replace(job, regions=regions), begun)
    return regions


def _refuse_changed(file: Path, job: Job) -> None:
    """UnreadableImage if a raster is no longer what it was planned as.

    Beyond the edges of a smaller one all would be black.
    """
    if stamp_of(file.stat()) != job.stamp:
        raise UnreadableImage("has changed since it was found; wait until it is whole")


def _covered_box(region: Region, settings: Mapping[str, Any]) -> strips.Box:
    """The part of a raster that the windows of a region cover.

    Cut out before it is resized: the filter must not see the neighbouring split.
    """
    return (region.x, region.y, *on_disk.covered_size(region.rows, region.cols, settings))


def _write_array(request: Request, raster: Raster, region: Region) -> Region:
    """Write a region's array. Give the region with what only its pixels tell.

    That is its stretch, and its windows without data; if none has data, nothing is written.
    """
    settings = request.settings
    box = _covered_box(region, settings)
    height, width = on_disk.array_shape(region.rows, region.cols, settings)
    region = _with_stretch(raster, region, request)
    watched = gaps.Watched(raster, box, region.rows, region.cols, settings)
    source = watched if raster.has_gaps else raster
    try:
        with atomic(request.out / region.file, sync=False) as file:
            parts = strips.resized(source, box, (width, height), on_disk.stretch_of(region))
            pixels_a_row = box[2] * box[3] / height
            on_disk.write_strips(file, (height, width), _counted(parts, pixels_a_row))
            left_out = watched.without_data(request.max_nodata)
            region = region._replace(without_data=gaps.as_text(left_out))
            if not on_disk.count_patches(region):
                raise _WithoutDataError
    except _WithoutDataError:
        (request.out / region.file).unlink(missing_ok=True)  # of an earlier run
    return region


class _WithoutDataError(Exception):
    """An array that was written in vain."""


def _with_stretch(raster: Raster, region: Region, request: Request) -> Region:
    stretch = request.view.stretch
    if stretch == "auto":
        # Of what this region covers alone: a range is something that is learnt of pixels.
        stretch = raster.range_of(*_covered_box(region, request.settings))
    if stretch is None:
        return region
    return region._replace(stretch=f"{float(stretch[0])!r} {float(stretch[1])!r}")


def _counted(parts: Iterable[np.ndarray], pixels_a_row: float) -> Iterator[np.ndarray]:
    """Let the parent know how far a raster is, and stop as soon as it does.

    pixels_a_row: of the raster for one of the array.
    """
    for part in parts:
        yield part
        for counter, stop in _shared:
            if stop.is_set():
                raise _StoppedError
            with counter:
                counter.value += round(len(part) * pixels_a_row)


def _write_jpegs(request: Request, raster: Raster, region: Region) -> None:
    """Write the patches at full size, each read by itself."""
    size = request.settings["patch_size"]
    stride = request.settings["stride"]
    stretch = on_disk.stretch_of(region)
    for window in on_disk.each_window([region]):
        _, row, col = window
        x = region.x + col * stride
        y = region.y + row * stride
        jpeg = io.BytesIO()
        patch = Image.fromarray(raster.read(x, y, size, size, stretch))
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
        # What it took long to see, a run that goes on after this one is to know.
        for job in jobs[1:]:
            if not _is_quick(request, job):
                records.begin(request, job)


def tile(request: Request, jobs: Sequence[Job], workers: int, done: Done, faults: Faults) -> None:
    """Tile the rasters of planned jobs into the patch set.

    Their regions are noted in done, what fails in faults.
    """
    if not jobs:
        return
    with locked(request.out, shared=True):
        # Another process may have completed the set meanwhile.
        (request.out / on_disk.DESCRIPTION).unlink(missing_ok=True)
        pixels = 0
        for region in itertools.chain.from_iterable(job.regions for job in jobs):
            width, height = on_disk.covered_size(region.rows, region.cols, request.settings)
            pixels += width * height
        tile_all(jobs, partial(tile_raster, request), workers, done, faults, pixels)


def tile_all(
    jobs: Sequence[Job],
    work: Callable[[Job], Any],
    workers: int,
    done: Done,
    faults: Faults,
    pixels: int | None = None,
) -> None:
    """Run work on every job in processes. What fails is noted in faults, and the rest goes on.

    pixels: what the bar shows the way through, which work counts; None: it shows rasters that are
    looked at. Few jobs are handed out at a time: memory, and the time that Ctrl-C takes, do not
    grow with the number of rasters.
    """
    workers = min(workers, len(jobs))
    waiting = iter(jobs)
    running: dict[Future, str] = {}
    context = machine.worker_processes()
    counter = context.Value("q", 0)
    stop = context.Event()
    with (
        interrupts_held() as interrupts,
        ProcessPoolExecutor(workers, context, _start_worker, (counter, stop)) as pool,
        _bar(len(jobs), pixels) as bar,
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
                # Within a raster of gigapixels the bar is to move, too.
                for future in wait(running, timeout=BAR_SECONDS, return_when=FIRST_COMPLETED).done:
                    _note_result(future, running[future], done, faults)
                    del running[future]
                    bar.update(pixels is None)
                if pixels is not None:
                    bar.update(counter.value - bar.n)
        except BrokenProcessPool:
            first = printable(next(iter(running.values())))
            raise InputError(
                f"a worker process was killed, most likely for want of memory, at {first} or"
                f" another of {len(running)} rasters at work; run the same command again with"
                " fewer --workers, it goes on from there"
            ) from None
        finally:
            stop.set()  # a raster of gigapixels would be waited for, for minutes
            pool.shutdown(cancel_futures=True)


def _bar(jobs: int, pixels: int | None) -> tqdm:
    if pixels is None:
        return tqdm(total=jobs, unit=" rasters", desc="looking", disable=None)
    return tqdm(total=pixels, unit="px", unit_scale=True, desc="tiling", disable=None)


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


class _StoppedError(Exception):
    """A raster was given up since the parent is about to end."""


# In a worker, what it shares with its parent and the others: a counter of pixels that are tiled,
# and whether to stop.
_shared: list[tuple[Synchronized, Event]] = []


def _start_worker(counter: Synchronized, stop: Event) -> None:
    _shared.append((counter, stop))
    machine.follow_parent()
    machine.keep_memory()  # a forked worker has inherited that, another one has not
