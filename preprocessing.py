"""Tile rasters into a patch set with a train, val and test split.

    python preprocessing.py --raw data/raw --out data/patches
    python preprocessing.py --raw data/raw --out data/patches --stride 120 --jpegs
    python preprocessing.py --raw data/raw --out data/patches --shard 1/4      one of four machines, into one shared folder

Rasters lie as <raw>/<City (CODE)>/<site>/.../<raster>.jpg (png, tif). Of each city's sites in sorted order the last is held
out: the left half of its rasters is test, the right half val; all other sites are train. A second run does only what is
missing or changed, and removes what belongs to rasters that are gone.
"""

import argparse
import csv
import fcntl
import io
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import stat
import sys
import threading
import time
import zlib
from bisect import bisect_right
from collections import defaultdict
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import PIL
from tqdm import tqdm

from dl_slicer.cli import InputError, Parser, atomic, keep_memory, number, run, shown
from dl_slicer.patch_sets import reading as patches
from dl_slicer.patch_sets.reading import Region

JPEG_QUALITY = 95
JPEG_BYTES_A_PIXEL = 0.6  # at that quality, on the generous side, for the estimate of disk space


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
        default=len(os.sched_getaffinity(0)),
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
    patches.scaled_stride(args.patch_size, args.stride, args.image_size)
    raw, out = Path(args.raw), Path(args.out)
    settings = {
        "format": patches.FORMAT,
        "patch_size": args.patch_size,
        "stride": args.stride,
        "image_size": args.image_size,
    }
    refuse_other_set(out, settings)
    # JPEGs that are there are kept up to date: they must never show another split than the arrays.
    jpegs = args.jpegs or any((out / split).is_dir() for split in patches.SPLITS)

    jobs = find_rasters(raw, out)
    mine = jobs[args.shard[0] - 1 :: args.shard[1]]
    done = done_before(out, mine, settings, jpegs)  # {raster: its regions}
    todo = [job for job in mine if job["raster"] not in done]
    part = (
        f", {len(mine)} of them in shard {args.shard[0]}/{args.shard[1]}"
        if len(mine) < len(jobs)
        else ""
    )
    print(
        f"{shown(raw)}: {len({job['city'] for job in jobs})} cities, {len(jobs)} rasters{part}; {len(done)} done before",
        flush=True,
    )

    faults, started = {}, time.time()
    todo = measure(raw, todo, args.patch_size, faults)
    if todo:
        check_space(out, todo, settings, jpegs, args.test_b)
        out.mkdir(parents=True, exist_ok=True)
        with locked(out, fcntl.LOCK_SH):
            (out / "dataset.json").unlink(
                missing_ok=True
            )  # the set is not whole until it is completed below
            tile_all(todo, partial(tile, raw, out, settings, jpegs), args.workers, done, faults)
    seconds = time.time() - started
    if faults:
        raise InputError(
            "\n".join(f"{shown(raw / raster)}: {fault}" for raster, fault in sorted(faults.items()))
            + f"\n{len(done)} of {len(mine)} rasters are done and kept; mend the above and run the same command again"
        )

    done |= done_before(out, [job for job in jobs if job["raster"] not in done], settings, jpegs)
    missing = [job["raster"] for job in jobs if job["raster"] not in done]
    if missing:
        print(
            f"{shown(out)}: the {len(mine)} rasters of this shard are done, {len(missing)} of other shards are missing, the first is "
            f"{shown(missing[0])}; the shard that ends last completes the set, or this command without --shard"
        )
        return
    with locked(out, fcntl.LOCK_EX):
        description = complete(out, raw, args, settings, jpegs, done)
    summary(out, description, done, len(todo), seconds)


# ---------------------------------------------------------------------------------------------------------------- what is there


def find_rasters(raw, out):
    """A job for each raster, sorted by city, site and path. InputError if the layout is not as expected, all faults at once.

    A job says what is to be cut from which raster; its stamp tells whether the file has changed since.
    """
    if not raw.is_dir():
        raise InputError(
            f"{shown(raw)}: no such folder; --raw must hold <City (CODE)>/<site>/<raster>.jpg"
        )
    real_raw, real_out = os.path.realpath(raw), os.path.realpath(out)
    if os.path.commonpath([real_raw, real_out]) == real_raw:
        raise InputError(
            f"{shown(out)}: lies inside the raw folder {shown(raw)}; choose another --out"
        )
    rasters, faults = defaultdict(list), []
    for folder, folders, names in os.walk(
        raw, onerror=lambda error: faults.append(f"{shown(error.filename)}: {error.strerror}")
    ):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images = sorted(
            name
            for name in names
            if Path(name).suffix.lower() in patches.IMAGES and not name.startswith(".")
        )
        for path in (Path(folder, name) for name in folders + images):
            inside, status = path.relative_to(raw), path.lstat()
            if stat.S_ISLNK(status.st_mode):
                faults.append(
                    f"{shown(path)}: a symbolic link, these are not followed; put what it points to in its place (cp -rL does)"
                )
            elif path.name in folders:
                continue
            elif not stat.S_ISREG(status.st_mode):
                faults.append(f"{shown(path)}: no regular file; delete it")
            elif len(inside.parts) < 3:
                faults.append(
                    f"{shown(path)}: a raster must lie in a site's folder, {shown(raw)}/<City (CODE)>/<site>/{shown(path.name)}"
                )
            elif str(inside) != os.fsencode(inside).decode(errors="replace"):
                faults.append(f"{shown(path)}: its name is not in UTF-8; rename it")
            else:
                rasters[inside.parts[0]].append(
                    (inside.parts[1], str(inside), [status.st_size, status.st_mtime_ns])
                )
    if not rasters and not faults:
        raise InputError(
            f"{shown(raw)}: no rasters in it; expected <City (CODE)>/<site>/<raster>.jpg (or png, tif)"
        )

    jobs = []
    for city, files in sorted(rasters.items()):
        sites, seen = sorted({site for site, _, _ in files}), {}
        if len(sites) == 1:
            faults.append(
                f"{shown(raw / city)}: only one site ({shown(sites[0])}) has rasters; at least two are needed, one of them is held out"
            )
        for site, raster, stamp in sorted(files):
            name = flat_name(city, raster).casefold()
            if name in seen:
                faults.append(
                    f"{shown(raw / raster)}: would get the same name as {shown(raw / seen[name])}; rename one of them"
                )
            seen.setdefault(name, raster)
            splits = ["test", "val"] if site == sites[-1] else ["train"]
            jobs.append(
                {"raster": raster, "city": city, "site": site, "splits": splits, "stamp": stamp}
            )
    if faults:
        raise InputError("\n".join(faults))
    return jobs


@lru_cache(maxsize=1)
def flat_name(city, raster):
    """site__raster, without the suffix: what the raster's patches are called in a folder of JPEGs."""
    return "__".join(Path(raster).relative_to(city).with_suffix("").parts)


def record_file(out, raster):
    return f"{out}/arrays/{Path(raster).with_suffix('.json')}"


def jpeg_file(out, split, region, row, col):
    return f"{out}/{split}/{region.city}/{flat_name(region.city, region.raster)}_r{row:02d}_c{col:02d}.jpg"


def each_patch(regions):
    """(region, row, col) of every patch."""
    return (
        (region, row, col)
        for region in regions
        for row in range(region.rows)
        for col in range(region.cols)
    )


def done_before(out, jobs, settings, jpegs):
    """{raster: regions} of the jobs whose result is there and still holds: same file, same role, same settings."""
    done = {}
    for job in jobs:
        try:
            record = json.loads(Path(record_file(out, job["raster"])).read_text(encoding="utf-8"))
            refuse_other_settings(out, record["settings"], settings)
            regions = [Region(*region) for region in record["regions"]]
            whole = (
                record["job"] == job
                and all(
                    os.path.getsize(out / region.file)
                    == patches.array_bytes(region.rows, region.cols, settings)
                    for region in regions
                )
                and all(
                    os.path.getsize(jpeg_file(out, region.split, region, row, col))
                    for region, row, col in each_patch(regions)
                    if jpegs
                )
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, or damaged
            continue
        if whole:
            done[job["raster"]] = regions
    return done


def refuse_other_set(out, settings):
    """InputError rather than mix this set with another, or with a folder that is none of ours."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{shown(out)}: a file, no folder; choose another --out")
    if (out / "dataset.json").is_file():
        refuse_other_settings(out, patches.load_description(out), settings)
    elif not (out / "arrays").is_dir() and any((out / split).exists() for split in patches.SPLITS):
        raise InputError(
            f"{shown(out)}: holds train, val or test folders that preprocessing.py did not write; choose another --out"
        )


def refuse_other_settings(out, before, settings):
    changed = [
        f"--{key.replace('_', '-')} {shown(before.get(key))}"
        for key in settings
        if before.get(key) != settings[key]
    ]
    if changed:
        raise InputError(
            f"{shown(out)}: this patch set was made with {' '.join(changed)}; choose another --out, or delete it first"
        )


@contextmanager
def locked(out, how):
    """Hold a lock on the patch set, shared to tile and exclusive to complete it: completing removes what is left over, and must
    not take it from under another process's hands. A file system without locks goes without."""
    with ExitStack() as stack:
        with suppress(OSError):
            file = stack.enter_context(open(out / ".lock", "w"))
            try:
                fcntl.flock(file, how | fcntl.LOCK_NB)
            except BlockingIOError:
                print(
                    f"{shown(out)}: waiting for another process that works on this patch set",
                    flush=True,
                )
                fcntl.flock(file, how)
        yield


# ---------------------------------------------------------------------------------------------------------------- one raster


def measure(raw, jobs, patch_size, faults):
    """Give each job its regions, from the size in the file's header. Those that cannot be cut go into faults."""
    good = []
    for job in jobs:
        try:
            with patches.opened(raw / job["raster"]) as image:
                width, height = image.size
        except patches.UnreadableImage as error:
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


def tile(raw, out, settings, jpegs, job):
    """Cut one raster into arrays (and JPEGs). Returns its regions; they are also written, last, into the raster's record."""
    size, stride = settings["patch_size"], settings["stride"]
    image = patches.read_image(raw / job["raster"])
    record = Path(record_file(out, job["raster"]))
    record.unlink(missing_ok=True)  # from here on what an earlier run made does not count
    regions = []
    for split, (x, y, width, height) in zip(job["splits"], job["parts"]):
        rows, cols = patches.windows(height, size, stride), patches.windows(width, size, stride)
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
            patches.write_array(
                file,
                np.asarray(patches.resize(part, patches.array_shape(rows, cols, settings)[::-1])),
            )
        for _, row, col in each_patch([region] if jpegs else []):
            left, upper, jpeg = col * stride, row * stride, io.BytesIO()
            part.crop((left, upper, left + size, upper + size)).save(
                jpeg, "JPEG", quality=JPEG_QUALITY
            )
            with atomic(jpeg_file(out, split, region, row, col), sync=False) as file:
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
        ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), end_with_parent) as pool,
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
                    except patches.UnreadableImage as error:
                        faults[raster] = str(error)
                    except MemoryError:
                        faults[raster] = (
                            "does not fit into memory; cut it into smaller rasters, or take fewer --workers"
                        )
                    del running[future]
                    bar.update()
        except BrokenProcessPool:
            raise InputError(
                f"a worker process was killed, most likely for want of memory, at {shown(next(iter(running.values())))} or another of "
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
            rows, cols = patches.windows(height, size, stride), patches.windows(width, size, stride)
            need += patches.array_bytes(rows, cols, settings)
            if jpegs:
                need += rows * cols * size * size * JPEG_BYTES_A_PIXEL
                copies[job["city"]] += rows * cols * (split == "test")
    need += sum(min(test_b, count) for count in copies.values()) * size * size * JPEG_BYTES_A_PIXEL
    free = shutil.disk_usage(
        next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    ).free
    print(
        f"{len(jobs)} rasters to do, {need / 1e9:.2f} GB needed in {shown(out)}, {free / 1e9:.1f} GB free",
        flush=True,
    )
    if need > free:
        raise InputError(
            f"{shown(out)}: needs {need / 1e9:.2f} GB, only {free / 1e9:.2f} GB are free; make room or choose another --out"
        )


# ---------------------------------------------------------------------------------------------------------------- the whole set


def complete(out, raw, args, settings, jpegs, done):
    """Write regions.csv, test_b.csv (and its JPEGs) and, last, dataset.json, unless they are as they must be. Returns what that says."""
    regions = sorted(itertools.chain(*done.values()))
    drawn = draw_test_b(regions, args.test_b, args.seed)
    counts = {
        split: dict.fromkeys(sorted({region.city for region in regions}), 0)
        for split in patches.SPLITS
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
        "versions": {
            "python": sys.version.split()[0],
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
    }
    texts = {
        "regions.csv": as_csv(Region._fields, regions),
        "test_b.csv": as_csv(
            ("region", "row", "col"), [(region.region, row, col) for region, row, col in drawn]
        ),
        "dataset.json": json.dumps(description, indent=1, ensure_ascii=False) + "\n",
    }
    copies = {
        jpeg_file(out, "test_b", *window): jpeg_file(out, "test", *window)
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


TEMPORARY = r"\.\d+-[0-9a-f]{8}\.tmp"
ARRAY = re.compile(TEMPORARY + r"|.+\.(json|train\.npy|val\.npy|test\.npy)", re.DOTALL)
JPEG = re.compile(TEMPORARY + r"|(?P<raster>.+)_r(?P<row>\d+)_c(?P<col>\d+)\.jpg", re.DOTALL)


def remove_stale(out, regions, copies):
    """Delete what earlier runs made of rasters that are gone or have changed sides, and what killed ones left half-written."""
    keep = (
        {f"{out}/{region.file}" for region in regions}
        | {record_file(out, region.raster) for region in regions}
        | copies.keys()
    )
    tiled = {
        (region.split, region.city, flat_name(region.city, region.raster)): region
        for region in regions
    }
    for top in ("arrays", *patches.SPLITS):
        for folder, _, names in os.walk(f"{out}/{top}", topdown=False):
            for name in names:
                found = (ARRAY if top == "arrays" else JPEG).fullmatch(name)
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
            f"{shown(city):<28}"
            + "".join(f"{counts[split][city]:>9}" for split in patches.SPLITS)
            + f"{100 * unused[city] / pixels[city]:>10.1f} %"
        )
    print(
        f"{'all':<28}"
        + "".join(f"{sum(counts[split].values()):>9}" for split in patches.SPLITS)
        + f"{100 * sum(unused.values()) / sum(pixels.values()):>10.1f} %  of the pixels, at the right and lower edges"
    )
    short = [
        city for city in description["classes"] if counts["test_b"][city] < description["test_b"]
    ]
    if short:
        print(
            f"test_b: fewer than {description['test_b']} test patches, so all of them, in {len(short)} "
            f"{'city' if len(short) == 1 else 'cities'}: {', '.join(shown(patches.code(city)) for city in short)}"
        )
    rate = (
        f"{tiled} rasters in {seconds:.1f} s, {tiled / seconds:.1f} a second"
        if tiled
        else "nothing was left to tile"
    )
    print(f"patch set: {shown(out)}; {rate}")


if __name__ == "__main__":
    run(main)
