"""A patch set with fewer train sites than another one, of which it has all else."""

import json
import os
import shutil
import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dl_slicer.files import atomic
from dl_slicer.patch_sets import on_disk
from dl_slicer.patch_sets.on_disk import Region


def limit_train_sites(source: Path, out: Path, most: int, seed: int) -> None:
    """Make a patch set of another one in which each city has at most so many train sites.

    Arrays are hard links, so that it takes no disk and seconds; copies where a file system has no
    links. What is there is made anew, since the source may have been. dataset.json comes last, says
    so in train_sites, and does not say how far the held-out site lies from training. InputError if
    the source is no finished set of ours.
    """
    (out / on_disk.DESCRIPTION).unlink(missing_ok=True)
    description = on_disk.load_description(source)
    regions = on_disk.load_regions(source, None, description.format)
    kept = keep_train_sites(regions, most, seed)
    for region in kept:
        _link(source / region.file, out / region.file)
    content = json.loads((source / on_disk.DESCRIPTION).read_text(encoding="utf-8"))
    train = dict.fromkeys(description.classes, 0)
    for region in kept:
        if region.split == "train":
            train[region.city] += on_disk.count_patches(region)
    content["counts"] = {**content["counts"], "train": train}
    content["train_sites"] = most
    content["jpegs"] = False
    content["raw"] = os.path.relpath(
        os.path.realpath(source / description.raw), os.path.realpath(out)
    )
    content.pop("held_out_distance", None)
    contents = {
        on_disk.REGIONS: on_disk.text_of_regions(kept, description.format).encode(),
        on_disk.TEST_B: (source / on_disk.TEST_B).read_bytes(),
        on_disk.DESCRIPTION: on_disk.text_of_description(content).encode(),
    }
    for name, content_of_file in contents.items():
        with atomic(out / name) as file:
            file.write(content_of_file)


def keep_train_sites(regions: Sequence[Region], most: int, seed: int) -> list[Region]:
    """Leave out the regions of train sites beyond the first so many of each city.

    A city's sites are in an order that depends on nothing but the seed, its name and its train
    sites: what fewer sites have, more of them have, too.
    """
    sites: dict[str, set[str]] = defaultdict(set)
    for region in regions:
        if region.split == "train":
            sites[region.city].add(region.site)
    kept = {}
    for city, names in sites.items():
        rng = np.random.default_rng([seed, zlib.crc32(city.encode())])
        kept[city] = set(rng.permutation(sorted(names)).tolist()[:most])
    return [
        region for region in regions if region.split != "train" or region.site in kept[region.city]
    ]


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # of a call that was killed, which may have been copying
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
