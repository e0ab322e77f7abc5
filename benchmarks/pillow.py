"""What Pillow alone does with a raster.

Decoding it, and tiling it as such scripts are usually written. A module of its own, for processes
of their own: they have the memory settings of neither the benchmark nor preprocessing.py.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from dl_slicer.patch_sets.on_disk import PATCH_SIZE, STRIDE


def decode(path: Path) -> float:
    """Decode a raster and give the CPU seconds that it took."""
    started = time.process_time()
    with Image.open(path) as image:
        image.load()
    return time.process_time() - started


def tile(paths: Sequence[Path], out: Path) -> float:
    """Save the patches of all rasters as JPEG and give the seconds that a raster took."""
    out.mkdir(exist_ok=True)
    started = time.perf_counter()
    for path in paths:
        image = Image.open(path).convert("RGB")
        for y in range(0, image.height - PATCH_SIZE + 1, STRIDE):
            for x in range(0, image.width - PATCH_SIZE + 1, STRIDE):
                patch = image.crop((x, y, x + PATCH_SIZE, y + PATCH_SIZE))
                patch.save(out / f"{path.stem}_{y}_{x}.jpg", quality=95)
    return (time.perf_counter() - started) / len(paths)
