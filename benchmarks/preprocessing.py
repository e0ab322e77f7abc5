"""Seconds a raster: the whole command, one process of Pillow, and decoding alone."""

import shutil
import statistics
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import Resize

from benchmarks import in_turns, pillow, script
from benchmarks.sides import CORES, Sizes
from dl_slicer.machine import keep_memory
from dl_slicer.patch_sets import reading
from dl_slicer.patch_sets.on_disk import IMAGE_SIZE, PATCH_SIZE, STRIDE


def compare(work: Path, sizes: Sizes, device: torch.device) -> dict[str, object]:
    """The command and decoding take as many processes as there are cores, plain takes one."""
    rasters = sorted((work / "raw").rglob("*.jpg"))
    check_patches(work)
    # CPU seconds of each round: they say the same on a machine that others use, too.
    cpu = {"ours": [], "decoding": []}

    def ours():
        shutil.rmtree(work / "out", ignore_errors=True)
        flags = ("--raw", work / "raw", "--out", work / "out", "--workers", CORES)
        spent = script("preprocessing.py", *flags)
        cpu["ours"].append(spent.cpu_seconds)
        return spent.seconds

    # Processes with the memory settings of a usual script, and not of this one.
    new_pool = get_context("spawn").Pool
    with (
        new_pool(CORES) as usual,
        new_pool(CORES, keep_memory) as keeping_memory,
        new_pool(1) as script_like,
    ):

        def decoding():
            cpu["decoding"].append(sum(usual.map(pillow.decode, rasters, chunksize=1)))

        def decoding_kept():
            keeping_memory.map(pillow.decode, rasters, chunksize=1)

        def plain():
            four = rasters[:: len(rasters) // 4]
            return script_like.apply(pillow.tile, (four, work / "plain"))

        sides = {"ours": ours, "decoding": decoding, "decoding_kept": decoding_kept, "plain": plain}
        # Not counted: processes start, and a virtual machine is slow the first time that it uses
        # a page of memory.
        for side in sides.values():
            side()
        for seconds in cpu.values():
            seconds.clear()
        found = in_turns(sizes.rounds, **sides)
    return summarise(found, cpu, len(rasters))


def summarise(
    found: dict[str, float], cpu: dict[str, list[float]], rasters: int
) -> dict[str, object]:
    """The part's keys of the JSON file.

    found: median seconds of each side, of all rasters but for plain. cpu: CPU seconds of each
    round, of all rasters.
    """
    for name in ("ours", "decoding", "decoding_kept"):
        found[name] /= rasters
    our_cpu = statistics.median(cpu["ours"])
    decoding_cpu = statistics.median(cpu["decoding"])
    return {
        "plain": found["plain"],
        "ours": found["ours"],
        "ratio": found["plain"] / found["ours"],
        "unit": "s a raster",
        "workers": CORES,
        "rasters": rasters,
        "pixels": [4800, 4800],
        "decoding": found["decoding"],
        "decoding_kept": found["decoding_kept"],
        "times_decoding": found["ours"] / found["decoding"],
        "cpu": our_cpu / rasters,
        "decoding_cpu": decoding_cpu / rasters,
        "times_decoding_cpu": our_cpu / decoding_cpu,
    }


def check_patches(work: Path) -> None:
    """A patch is the crop of the raster, resized, to one grey level away from its border.

    AssertionError if not.
    """
    patch_set = reading.open_split(work / "patches", "train")
    resize = Resize((IMAGE_SIZE, IMAGE_SIZE))
    for index in range(0, len(patch_set), max(1, len(patch_set) // 8)):
        region, row, col = patch_set.locate(index)
        left = col * STRIDE
        top = row * STRIDE
        with Image.open(patch_set.root / patch_set.description.raw / region.raster) as image:
            crop = image.crop((left, top, left + PATCH_SIZE, top + PATCH_SIZE))
        plain = np.asarray(resize(crop), int)
        difference = abs(plain - patch_set.read([index])[0])
        assert difference[2:-2, 2:-2].max() <= 1, f"{region.region} {row} {col}"
