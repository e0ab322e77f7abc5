"""What Pillow alone does with a raster: decoding it, and tiling it as such scripts are usually written.

A module of its own, for processes of their own: they have the memory settings of neither the benchmark nor preprocessing.py.
"""

import time

from PIL import Image


def decode(path):
    """The CPU seconds that it took."""
    started = time.process_time()
    with Image.open(path) as image:
        image.load()
    return time.process_time() - started


def tile(paths, out):
    """The seconds a raster that it took."""
    out.mkdir(exist_ok=True)
    started = time.perf_counter()
    for path in paths:
        image = Image.open(path).convert("RGB")
        for y in range(0, image.height - 479, 240):
            for x in range(0, image.width - 479, 240):
                image.crop((x, y, x + 480, y + 480)).save(
                    out / f"{path.stem}_{y}_{x}.jpg", quality=95
                )
    return (time.perf_counter() - started) / len(paths)
