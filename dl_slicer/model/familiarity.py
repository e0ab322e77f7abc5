"""Is a patch like anything that the network knows?

A network names one of its cities for any picture, a forest or a face, too. How far the features of
a patch (those of the penultimate layer) are from what the cities of training have there, says more
than the probabilities: they must sum to one.

The distance of features f to a city with mean features m is that of Mahalanobis, with a covariance
S that all cities share (Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution
Samples and Adversarial Attacks, NeurIPS 2018, equation 2); a patch has that to the nearest city:

    d = min over cities of (f - m)' S^-1 (f - m)

Means and covariance are of train patches in eval mode, the same number of each city. How large a
distance is usual, val patches say, whose sites were not trained on: a patch is as familiar as

    (1 + val patches as far off, or farther) / (1 + val patches)

of that city, each with its own distance to whatever city is nearest to it: a share above 0 that is
evenly spread up to 1 over patches of places like those of val. Where it is at most 1 in 100, what
is seen is called unlike any city. With below 99 val patches no share is as small as that: then it
cannot be told.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dl_slicer.distributed import total
from dl_slicer.model import devices

TRAIN_PATCHES = 20_000  # at most, of which means and covariance are taken
LEAST_VAL_PATCHES = 99  # of a city; with fewer no share is as small as UNLIKE
UNLIKE = 0.01  # up to this familiarity a patch is called unlike any city that the network knows
SHRINKAGE = 0.1  # how far the covariance is drawn to one that is the same in all directions
KEYS = ("means", "axes", "distances", "labels", "patches")
MOST_VAL_PATCHES = 10**7


def choose_patches(labels: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Give the numbers of the train patches that are taken, rising: of each city as many.

    A city with fewer gives all it has. labels: (N,) class numbers. Drawn by the seed.
    """
    rng = np.random.default_rng([seed, 1])
    of_each = max(1, TRAIN_PATCHES // classes)
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[:of_each] for label in range(classes)
    ]
    return np.sort(np.concatenate(chosen))


@dataclass
class Moments:
    """Sums over patches, in a memory that no patch makes larger; in float64 where there is it."""

    counts: Tensor  # (K,)
    sums: Tensor  # (K, D) of the features, by their city
    products: Tensor  # (D, D) of two features

    @classmethod
    def none(cls, classes: int, width: int, device: torch.device) -> "Moments":
        """Give those of no patch. width: D, of features."""
        sizes = [(classes,), (classes, width), (width, width)]
        dtype = devices.sum_dtype(device)
        return cls(*(torch.zeros(size, dtype=dtype, device=device) for size in sizes))

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Take further patches. features: float (n, D); labels: int (n,), both on the device."""
        features = features.to(self.sums.dtype)
        self.counts.index_add_(0, labels, torch.ones_like(labels, dtype=self.counts.dtype))
        self.sums.index_add_(0, labels, features)
        with _exactly(features.device):
            self.products += features.T @ features

    def known(self) -> "Known":
        """Give what all processes' patches say. All must call it."""
        for each in (self.counts, self.sums, self.products):
            total(each)
        counts, sums, products = (
            devices.to_cpu(each).double() for each in (self.counts, self.sums, self.products)
        )
        means = sums / counts.clamp(min=1)[:, None]
        patches = int(counts.sum())
        within = (products - (sums.T @ means)) / max(1, patches)
        return Known(means.float(), _axes(within), patches)


def _exactly(device: torch.device) -> torch.autocast:
    """Give the context in which products are not rounded, whatever the network is computed in."""
    return torch.autocast(device.type, enabled=False)


def _axes(covariance: Tensor) -> Tensor:
    """Give A (D, D) with A A' the inverse of a covariance, float32; the covariance is shrunk first.

    A covariance of features is singular: some never vary, or there are fewer patches than features.
    """
    width = len(covariance)
    mean_variance = covariance.trace() / width
    floor = torch.finfo(torch.float32).eps
    same = torch.eye(width, dtype=covariance.dtype) * mean_variance.clamp(min=floor)
    variances, directions = torch.linalg.eigh((1 - SHRINKAGE) * covariance + SHRINKAGE * same)
    return (directions / variances.clamp(min=floor).sqrt()).float()


@dataclass
class Known:
    """What a network knows of its K cities: all on one device."""

    means: Tensor  # float32 (K, D)
    axes: Tensor  # float32 (D, R): features times these are alike in all directions
    patches: int  # of train, that these were taken from
    distances: Tensor | None = None  # float32 (N,) of the val patches to their nearest cities
    labels: Tensor | None = None  # int64 (N,): their true cities

    @cached_property
    def centres(self) -> Tensor:
        """The means along the axes: (K, R)."""
        with _exactly(self.means.device):
            return self.means @ self.axes

    @cached_property
    def usual(self) -> dict[int, np.ndarray]:
        """The distances of val patches by their city, rising; of those cities that have enough."""
        distances = devices.to_cpu(self.distances).numpy()
        labels = devices.to_cpu(self.labels).numpy()
        of_city = {label: np.sort(distances[labels == label]) for label in range(len(self.means))}
        return {k: rising for k, rising in of_city.items() if len(rising) >= LEAST_VAL_PATCHES}

    def nearest(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Give how far patches are from the nearest city (n,), and which that is (n,).

        features: float (n, D) on the same device.
        """
        with _exactly(features.device):
            squares = torch.cdist(features.float() @ self.axes, self.centres) ** 2
        found = squares.min(1)
        return found.values, found.indices

    def as_dict(self) -> dict[str, Any]:
        """Give what a checkpoint holds of it."""
        return {key: getattr(self, key) for key in KEYS}

    @classmethod
    def of(cls, found: dict, device: torch.device) -> "Known":
        """Give what a checkpoint says, on a device."""
        return cls(
            **{
                key: value.to(device) if isinstance(value, Tensor) else value
                for key, value in found.items()
            }
        )

    def few(self) -> list[int]:
        """Give the cities that have too few val patches."""
        return [label for label in range(len(self.means)) if label not in self.usual]

    def familiarity(self, features: Tensor) -> np.ndarray:
        """Give how familiar patches are: float64 (n,), above 0 to 1; NaN where it cannot be told.

        features: float (n, D) on the same device.
        """
        distances, labels = (devices.to_cpu(each).numpy() for each in self.nearest(features))
        found = np.full(len(distances), np.nan)
        for label, rising in self.usual.items():
            is_here = labels == label
            as_near = np.searchsorted(rising, distances[is_here], side="left")
            found[is_here] = (1 + len(rising) - as_near) / (1 + len(rising))
        return found


def is_right(found: object, model: dict[str, Tensor], classes: int) -> bool:
    """Whether a checkpoint's value can be what as_dict gave for a network of so many classes.

    model: its state dict.
    """
    if type(found) is not dict or set(found) != set(KEYS) or "fc.weight" not in model:
        return False
    width = model["fc.weight"].shape[1]
    tensors = {key: found[key] for key in KEYS if key != "patches"}
    if not all(type(each) is Tensor for each in tensors.values()):
        return False
    count = found["labels"].numel()
    shapes = {
        "means": (classes, width),
        "axes": (width, width),
        "distances": (count,),
        "labels": (count,),
    }
    for key, each in tensors.items():
        dtype = torch.int64 if key == "labels" else torch.float32
        if tuple(each.shape) != shapes[key] or each.dtype != dtype:
            return False
        if not bool(each.isfinite().all()):
            return False
    labels = found["labels"]
    return (
        type(found["patches"]) is int
        and found["patches"] >= 0
        and count <= MOST_VAL_PATCHES
        and bool(((labels >= 0) & (labels < classes)).all())
    )
