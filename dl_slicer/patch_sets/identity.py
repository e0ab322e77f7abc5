"""Which patches a set has: what tells it from another one, wherever it lies."""

import hashlib

import numpy as np

from dl_slicer.patch_sets.reading import PatchSet

NAMES = 1000  # of a split's patches that are looked at
PICTURES = 32  # of them that are read


def identify(*splits: PatchSet) -> str:
    """Give a checksum of the splits of a set: their cities, sizes, and a sample of their patches.

    Sets that differ in single patches alone may have the same. InputError if a patch cannot be
    read.
    """
    found = hashlib.sha256()
    for patch_set in splits:
        sizes = (patch_set.patch_size, patch_set.stride, patch_set.image_size, len(patch_set))
        named = [patch_set.name(i) for i in _spread(patch_set, NAMES)]
        found.update(repr([patch_set.classes, sizes, named]).encode(errors="backslashreplace"))
        found.update(patch_set.read(_spread(patch_set, PICTURES)).tobytes())
    return found.hexdigest()


def _spread(patch_set: PatchSet, most: int) -> np.ndarray:
    """Numbers of patches from the first to the last."""
    return np.linspace(0, len(patch_set) - 1, min(most, len(patch_set)), dtype=np.int64)
