"""What the names of patches say in a folder of the published layout, ours or theirs.

preprocessing.py --jpegs names a patch <site>__<raster>_r<row>_c<col>.jpg. The published scripts
name it <raster>_<N>.jpg in train, <raster>_half1_<N>.jpg in test and test_b and
<raster>_half2_<N>.jpg in val; N counts the windows of that part of the raster row by row from 0.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dl_slicer.patch_sets import image_files

OURS = re.compile(r"(?P<raster>.+)_r(?P<row>[0-9]{1,9})_c(?P<col>[0-9]{1,9})", re.DOTALL)
# A script that counts writes no zeros in front: IMG_0001.jpg is not theirs.
NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
HALVES = {"train": "", "val": "_half2", "test": "_half1", "test_b": "_half1"}

# What else shows windows of the same part of a raster, and what shows the other half.
SAME_PART = {"train": (), "val": (), "test": ("test_b",), "test_b": ("test",)}
OTHER_HALF = {"train": (), "val": ("test", "test_b"), "test": ("val",), "test_b": ("val",)}

Place = tuple[int, ...]  # (row, col), or (N,)
RasterKey = tuple[str, str]  # city, raster
Places = dict[Place, list[Path]]  # the files of each place in a raster's part
Patches = dict[RasterKey, Places]


class PatchName(NamedTuple):
    """What a name says of a patch."""

    raster: str
    place: Place


def read_name(name: str, split: str) -> PatchName | None:
    """Give what a patch's file name says in this split; None if it fits neither ours nor theirs."""
    raster, _, last = name.rpartition(".")[0].rpartition("_")
    half = HALVES[split]
    # Only the end of a name is looked at: a raster, too, may be called a_half1 or a_1.
    if NUMBER.fullmatch(last):
        is_theirs = raster.endswith(half) and raster != half
        return PatchName(raster.removesuffix(half), (int(last),)) if is_theirs else None
    ours = OURS.fullmatch(f"{raster}_{last}") if last.startswith("c") else None
    return ours and PatchName(ours["raster"], (int(ours["row"]), int(ours["col"])))


def sort_names(names: Iterable[str], split: str) -> list[str]:
    """Sort the names of a city's patches as a patch set has them: by raster, then by window."""
    rasters: dict[str, list[tuple[Place, str]]] = defaultdict(list)
    for name in names:
        said = read_name(name, split)
        rasters[_sort_key(name, said)].append((said.place if said else (), name))
    return [name for key in sorted(rasters) for _, name in sorted(rasters[key])]


def _sort_key(name: str, said: PatchName | None) -> str:
    """Give what a patch set sorts regions by: their paths, with a dot after the raster's name."""
    if said is None:
        return name
    is_ours = len(said.place) == 2
    return (said.raster.replace("__", "/") if is_ours else said.raster) + "."


def list_images(folder: Path) -> list[str]:
    """Give the names of the images that lie directly in a folder, which need not be there."""
    names = os.listdir(folder) if folder.is_dir() else []
    return [name for name in names if image_files.is_image_name(name)]


def find_patches(root: Path, splits: Iterable[str], cities: Sequence[str]) -> Patches:
    """Find the patches of these splits whose names say where they lie."""
    files = (
        root / split / city / name
        for split in splits
        for city in cities
        for name in sorted(list_images(root / split / city))
    )
    return group_patches(files)


def group_patches(files: Iterable[Path]) -> Patches:
    """Group patches, <split>/<City (CODE)>/*.jpg, whose names say where they lie."""
    found: Patches = defaultdict(lambda: defaultdict(list))
    for file in files:
        said = read_name(file.name, file.parent.parent.name)
        if said is not None:
            found[file.parent.name, said.raster][said.place].append(file)
    return {key: dict(places) for key, places in found.items()}


def join_patches(patches: Patches, others: Patches) -> Patches:
    """Add to the patches of some rasters what others show of these."""
    joined = {}
    for key, places in patches.items():
        more = others.get(key, {})
        joined[key] = {
            place: places.get(place, []) + more.get(place, []) for place in places | more
        }
    return joined
