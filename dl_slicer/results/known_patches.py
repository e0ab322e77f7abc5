"""Published test patches found among a patch set's windows, by their pixels.

Whoever tiles the published rasters anew gets a split of their own, unless their sites sort as the
authors' did. Networks of the authors may then have been trained on what is test here. Names do not
tell: patches that were published as test patches, found among the windows, do.

A patch becomes a fingerprint: the mean colours of 16 x 16 cells. Of one window that was compressed
again, however strongly, these means stay (JPEG keeps means and loses detail); of the next window,
half a patch away, none is as before. docs/authors_models.md has what was measured.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dl_slicer.patch_sets import batching
from dl_slicer.patch_sets.reading import Indices, PatchSet, open_split

CELLS = 16  # of a fingerprint in either direction, or fewer: pixels of a cell are whole
SAME = 1.2  # grey levels (root mean square) by which two fingerprints of one window differ at most
DETAIL = 3  # grey levels between most neighbouring cells, from which on a window is told apart
LOOKED_FOR = 40  # published patches of a city
ENOUGH = 20  # of them, found
BLOCK = 256  # windows that are compared at a time: 39 MB at 224 pixels


@dataclass(frozen=True)
class Found:
    """How many published test patches were looked for, and are windows of a patch set."""

    looked_for: Mapping[str, int]  # {city as published: patches}
    in_test: Mapping[str, int]  # {city of the set: patches}, of all its cities
    in_train: Mapping[str, int]  # {city of the set: patches}, of those that have some

    @property
    def is_held_out(self) -> bool:
        """Whether the set's test windows were held out by the authors as well.

        At least 20 published test patches are among those of each city, and none is in train.
        """
        return not self.in_train and min(self.in_test.values(), default=0) >= ENOUGH

    def __str__(self) -> str:
        looked_for = sum(self.looked_for.values())
        return (
            f"of {looked_for} published test patches {sum(self.in_test.values())} are among the"
            f" test windows (at least {min(self.in_test.values(), default=0)} a city),"
            f" {sum(self.in_train.values())} among those of train"
        )


def find_published(
    processed: str | Path, patch_set_train: PatchSet, patch_set_test: PatchSet
) -> Found:
    """Look for published test patches among the windows of a patch set.

    processed: a folder in the published layout with test_b. The two splits must have one
    image_size. Patches that are much the same all over (water, fog) are not looked for: they cannot
    be told from others. Half a million windows take three minutes of two cores, and the memory
    of a few batches. InputError if patches cannot be read.
    """
    published = open_split(processed, "test_b", patch_set_test.image_size)
    labels, wanted = _draw(published)
    cities = np.array(published.classes)[labels]
    return Found(
        looked_for={city: int((cities == city).sum()) for city in published.classes},
        in_test=dict.fromkeys(patch_set_test.classes, 0) | _find(wanted, patch_set_test),
        in_train=_find(wanted, patch_set_train),
    )


def fingerprints(images: np.ndarray) -> np.ndarray:
    """Give the mean colours of at most 16 x 16 cells.

    images: uint8 (n, side, side, 3); what no whole cell covers at the right and lower edge is left
    out. Result: float32 (n, cells, cells, 3), grey levels.
    """
    count, side = images.shape[:2]
    cell = math.ceil(side / CELLS)
    cells = side // cell
    inside = images[:, : cells * cell, : cells * cell]
    rows = inside.reshape(count, cells, cell, -1).sum(2, dtype=np.uint16)
    sums = rows.reshape(count, cells, cells, cell, 3).sum(3, dtype=np.uint32)
    return sums.astype(np.float32) / cell**2


def detail(found: np.ndarray) -> np.ndarray:
    """Give how much each fingerprint varies: the median difference of neighbouring cells.

    The median, so that a shore or a black margin is no detail, however strong it is. Of the three
    colours the one that differs most counts. found: (n, cells, cells, 3); result: (n,).
    """
    count = len(found)
    right = np.abs(np.diff(found, axis=2)).max(3).reshape(count, -1)
    below = np.abs(np.diff(found, axis=1)).max(3).reshape(count, -1)
    return np.median(np.concatenate([right, below], 1), axis=1)


def _draw(published: PatchSet) -> tuple[np.ndarray, np.ndarray]:
    """Draw patches of each city that can be told from others: labels and (n, values)."""
    rng = np.random.default_rng(0)
    drawn = [
        _with_detail(published, rng.permutation(np.flatnonzero(published.labels == label)))
        for label in range(len(published.classes))
    ]
    labels = np.repeat(np.arange(len(drawn)), [len(found) for found in drawn])
    return labels, np.concatenate(drawn)


def _with_detail(published: PatchSet, candidates: np.ndarray) -> np.ndarray:
    """Give the (n, values) of the first patches that have detail; no more are read than needed."""
    side = fingerprints(published.read([0]))[0].shape
    kept = [np.empty((0, *side), np.float32)]
    for start in range(0, len(candidates), LOOKED_FOR):
        found = fingerprints(published.read(candidates[start : start + LOOKED_FOR]))
        kept.append(found[detail(found) >= DETAIL])
        if sum(map(len, kept)) >= LOOKED_FOR:
            break
    return np.concatenate(kept)[:LOOKED_FOR].reshape(-1, np.prod(side))


def _find(wanted: np.ndarray, patch_set: PatchSet) -> Counter[str]:
    """Count by city the windows of a split that are nearest to what is wanted, and the same."""
    if not len(wanted):
        return Counter()
    nearest = np.full(len(wanted), np.inf, np.float32)  # mean square of the differences
    window = np.zeros(len(wanted), np.int64)
    for indices, found in _all_fingerprints(patch_set):
        squares = _mean_squares(found, wanted)
        best = squares.argmin(0)
        distance = np.take_along_axis(squares, best[None], 0)[0]
        is_nearer = distance < nearest
        nearest = np.where(is_nearer, distance, nearest)
        window = np.where(is_nearer, indices[best], window)
    same = window[nearest <= SAME**2]
    return Counter(patch_set.classes[label] for label in patch_set.labels[same])


def _all_fingerprints(patch_set: PatchSet) -> Iterator[tuple[Indices, np.ndarray]]:
    """All windows of a split, a block at a time: their numbers and (n, values) fingerprints."""
    starts = range(0, len(patch_set), BLOCK)
    order = [np.arange(start, min(start + BLOCK, len(patch_set))) for start in starts]
    cpu = torch.device("cpu")
    batches = batching.batches(patch_set, order, cpu, patch_set.default_workers)
    bar = tqdm(order, desc=f"comparing {patch_set.split}", unit=" blocks", disable=None)
    for indices, (images, _) in zip(bar, batches, strict=True):
        yield indices, fingerprints(images.numpy()).reshape(len(indices), -1)


def _mean_squares(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Mean squared differences of (n, values) and (m, values): (n, m)."""
    some = some - 128  # near 0, where float32 is finer
    others = others - 128
    squares = (some**2).sum(1)[:, None] + (others**2).sum(1) - 2 * some @ others.T
    return squares / some.shape[1]
