"""A folder of patches as the published scripts write it: window by window, named by number."""

import random
import shutil
from pathlib import Path

from PIL import Image

QUALITY = 95


def write_published(raw, out, patch_size=480, stride=240, names=None, test_b=500, **jpeg):
    """Cut <raw>/<City (CODE)>/<site>/<raster> into <out>/<split>/<city>/<raster>_<N>.jpg.

    names: {path of a raster relative to raw: its name}, instead of its file's. test_b: how many
    test patches of a city are drawn. jpeg: how files are compressed. Returns {path in out:
    (raster's path, row, col)}; where two rasters have one name, what the later one wrote.
    """
    written = {}
    for city in sorted(path for path in raw.iterdir() if path.is_dir()):
        sites = sorted(path for path in city.iterdir() if path.is_dir())
        for site in sites:
            for file in sorted(path for path in site.rglob("*") if path.is_file()):
                raster = file.relative_to(raw).as_posix()
                name = (names or {}).get(raster, file.stem)
                with Image.open(file) as image:
                    image = image.convert("RGB")
                for split, part, suffix in parts_of(image, site == sites[-1]):
                    folder = out / split / city.name
                    folder.mkdir(parents=True, exist_ok=True)
                    for number, row, col, patch in windows_of(part, patch_size, stride):
                        path = folder / f"{name}{suffix}_{number}.jpg"
                        patch.save(path, **({"quality": QUALITY} | jpeg))
                        written[path.relative_to(out).as_posix()] = raster, row, col
    draw_test_b(out, written, test_b)
    return written


def parts_of(image, is_held_out):
    """(split, part of the raster, what its name gets)."""
    if not is_held_out:
        return [("train", image, "")]
    middle = round(image.width / 2)
    left = image.crop((0, 0, middle, image.height))
    right = image.crop((middle, 0, image.width, image.height))
    return [("test", left, "_half1"), ("val", right, "_half2")]


def windows_of(image, patch_size, stride):
    """(N, row, col, patch), row by row."""
    number = 0
    for row, y in enumerate(range(0, image.height - patch_size + 1, stride)):
        for col, x in enumerate(range(0, image.width - patch_size + 1, stride)):
            yield number, row, col, image.crop((x, y, x + patch_size, y + patch_size))
            number += 1


def draw_test_b(out, written, count):
    """Copy so many patches of each city from test to test_b."""
    generator = random.Random(0)
    for city in sorted((out / "test").iterdir()):
        names = sorted(path.name for path in city.iterdir())
        copy_to_test_b(out, written, city.name, generator.sample(names, min(count, len(names))))


def copy_to_test_b(out, written, city, names):
    """Make these patches of a city's test its test_b."""
    folder = Path(out, "test_b", city)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in names:
        shutil.copy(out / "test" / city / name, folder / name)
        written[f"test_b/{city}/{name}"] = written[f"test/{city}/{name}"]
