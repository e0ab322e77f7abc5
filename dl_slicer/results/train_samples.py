"""A few train patches of each city, and which of them are left out together.

For what is fitted anew beside a network: it must be cheap, and its penalty must be chosen for
places that it has not seen.
"""

from typing import NamedTuple

import numpy as np

from dl_slicer.patch_sets.reading import PatchSet

MOST_CHOICES = 3  # of sites to leave out


class Sample(NamedTuple):
    """Some train patches, n of them."""

    rows: np.ndarray  # (n,) int64: their numbers in the train split, rising
    labels: np.ndarray  # (n,) int64: class numbers
    choice: np.ndarray  # (n,) int64: the number of the choice that leaves a patch out; -1: none
    choices: int
    units: str  # what is left out: "sites", "rasters", "sites and rasters", "" for nothing


def draw(train: PatchSet, most: int, seed: int = 0) -> Sample:
    """Draw at most so many train patches, of each city about equally many, without replacement.

    most: of all cities together. A city with fewer patches gives all.
    """
    rng = np.random.default_rng([seed, 18])
    labels = train.labels.astype(np.int64)
    classes = np.unique(labels)
    each = max(1, most // len(classes))
    drawn = []
    for label in classes:
        patches = np.flatnonzero(labels == label)
        drawn.append(rng.choice(patches, min(each, len(patches)), replace=False))
    rows = np.sort(np.concatenate(drawn))
    return leave_out(train, rows)


def leave_out(train: PatchSet, rows: np.ndarray) -> Sample:
    """Deal the sites of each city to at most three choices; rasters where a city has one site.

    So that every choice leaves out whole sites of many cities, and no city loses all of its
    patches: one with a single site and raster is never left out.
    """
    labels = train.labels[rows].astype(np.int64)
    sites = np.array([train.site(row) for row in rows.tolist()])
    rasters = np.array([train.raster(row) for row in rows.tolist()])
    choice = np.full(len(rows), -1)
    most = 0
    units = set()
    for label in np.unique(labels):
        of_city = labels == label
        for what, names in (("sites", sites), ("rasters", rasters)):
            found, number = np.unique(names[of_city], return_inverse=True)
            if len(found) > 1:
                choice[of_city] = number.reshape(-1)
                most = max(most, len(found))
                units.add(what)
                break
    choices = min(MOST_CHOICES, most)
    if choices:
        choice[choice >= 0] %= choices
    return Sample(rows, labels, choice, choices, " and ".join(sorted(units, reverse=True)))


def equal_classes(labels: np.ndarray, is_taken: np.ndarray) -> np.ndarray:
    """Weigh patches so that classes count the same and the sum is 1; those not taken weigh 0.

    labels (n,) int, is_taken (n,) bool; float64 (n,).
    """
    counts = np.bincount(labels[is_taken], minlength=labels.max() + 1)
    present = max(1, int((counts > 0).sum()))
    weights = np.zeros(len(labels))
    weights[is_taken] = 1 / (present * counts[labels[is_taken]])
    return weights
