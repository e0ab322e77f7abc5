"""Is a patch like anything that the network knows?

A network names one of its cities for any picture, a forest or a face, too, and its probabilities
must sum to one. What it computes on the way says more, in two ways:

*kind*: what the patch is made of. The channels of layer3, each by its mean over the patch, x, are
as far from the nearest city's mean m as Mahalanobis has it, with a covariance S that all cities
share (Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples and
Adversarial Attacks, NeurIPS 2018, equation 2, there of several layers):

    d = min over cities of (x - m)' S^-1 (x - m)

*strength*: how much of what tells cities apart is there at all: the length of the features f that
the last layer is given. A city that was not trained on has less of it. Its distance is

    s = -|f|

Means and covariance are of train patches in eval mode, the same number of each city. How large
distances usually are, val patches say, whose sites were not trained on. By either distance a patch
is as familiar as the share of the nearest city's val patches that are as far off or farther; the
smaller one of the two shares is compared with theirs once more, so that what comes out,

    (1 + val patches as far off, or farther) / (1 + val patches),

is evenly spread up to 1 over patches of places like those of val. Where it is at most 1 in 100,
what is seen is called unlike any city. With below 99 val patches of a city no share is as small as
that: then it cannot be told. docs/statistics.md has what was measured, and what else was tried.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

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


class Inside(NamedTuple):
    """What a network has computed of n patches on its way to the logits, float32."""

    middle: Tensor  # (n, C): the channels of layer3, each by its mean
    features: Tensor  # (n, D): what the last layer is given


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
    sums: Tensor  # (K, C) of the channels, by city
    products: Tensor  # (C, C) of two channels

    @classmethod
    def none(cls, classes: int, width: int, device: torch.device) -> "Moments":
        """Give those of no patch. width: C, of channels."""
        sizes = [(classes,), (classes, width), (width, width)]
        dtype = devices.sum_dtype(device)
        return cls(*(torch.zeros(size, dtype=dtype, device=device) for size in sizes))

    def add(self, middle: Tensor, labels: Tensor) -> None:
        """Take further patches. middle: float (n, C); labels: int (n,), both on the device."""
        middle = middle.to(self.sums.dtype)
        self.counts.index_add_(0, labels, torch.ones_like(labels, dtype=self.counts.dtype))
        self.sums.index_add_(0, labels, middle)
        with _exactly(middle.device):
            self.products += middle.T @ middle

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
    """Give A (C, C) with A A' the inverse of a covariance, float32; the covariance is shrunk first.

    A covariance of channels may be singular: some never vary, or there are fewer patches.
    """
    width = len(covariance)
    floor = torch.finfo(torch.float32).eps
    mean_variance = (covariance.trace() / width).clamp(min=floor)
    same = torch.eye(width, dtype=covariance.dtype) * mean_variance
    variances, directions = torch.linalg.eigh((1 - SHRINKAGE) * covariance + SHRINKAGE * same)
    return (directions / variances.clamp(min=SHRINKAGE * mean_variance / 2).sqrt()).float()


@dataclass
class Known:
    """What a network knows of its K cities: all on one device."""

    means: Tensor  # float32 (K, C)
    axes: Tensor  # float32 (C, C): channels times these vary alike in all directions
    patches: int  # of train, that these were taken from
    distances: Tensor | None = None  # float32 (N, 2) of the val patches, by kind and by strength
    labels: Tensor | None = None  # int64 (N,): their true cities

    @cached_property
    def centres(self) -> Tensor:
        """The means along the axes: (K, C)."""
        with _exactly(self.means.device):
            return self.means @ self.axes

    @cached_property
    def usual(self) -> dict[int, "Usual"]:
        """What is usual of the cities that have enough val patches."""
        distances = devices.to_cpu(self.distances).numpy()
        labels = devices.to_cpu(self.labels).numpy()
        of_city = {label: distances[labels == label] for label in range(len(self.means))}
        return {k: Usual.of(each) for k, each in of_city.items() if len(each) >= LEAST_VAL_PATCHES}

    def nearest(self, inside: Inside) -> tuple[Tensor, Tensor]:
        """Give how far n patches are, by kind and by strength (n, 2), and the nearest city (n,).

        inside: on the same device.
        """
        with _exactly(inside.middle.device):
            squares = torch.cdist(inside.middle @ self.axes, self.centres) ** 2
        kind, labels = squares.min(1)
        return torch.stack([kind, -inside.features.norm(dim=1)], 1), labels

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

    def familiarity(self, inside: Inside) -> np.ndarray:
        """Give how familiar n patches are: float64 (n,), above 0 to 1; NaN where it cannot be told.

        inside: on the same device.
        """
        distances, labels = (devices.to_cpu(each).numpy() for each in self.nearest(inside))
        found = np.full(len(distances), np.nan)
        for label, usual in self.usual.items():
            is_here = labels == label
            found[is_here] = usual.familiarity(distances[is_here])
        return found


@dataclass(frozen=True)
class Usual:
    """How far the n val patches of a city are."""

    rising: np.ndarray  # (n, 2): distances by kind and by strength, each in order
    smaller: np.ndarray  # (n,): the smaller one of each patch's two shares, in order

    @classmethod
    def of(cls, distances: np.ndarray) -> "Usual":
        """Give that of patches with these distances (n, 2)."""
        rising = np.sort(distances, axis=0)
        return cls(rising, np.sort(_smaller_share(rising, distances)))

    def familiarity(self, distances: np.ndarray) -> np.ndarray:
        """Give that of other patches (m, 2): float64 (m,)."""
        shares = _smaller_share(self.rising, distances)
        farther = np.searchsorted(self.smaller, shares, side="right")
        return (1 + farther) / (1 + len(self.smaller))


def _smaller_share(rising: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """The smaller share (m,) of usual patches that are as far as these (m, 2), or farther."""
    nearer = [np.searchsorted(rising[:, k], distances[:, k], side="left") for k in (0, 1)]
    return (len(rising) - np.maximum(*nearer)) / len(rising)


def is_right(found: object, model: dict[str, Tensor], classes: int) -> bool:
    """Whether a checkpoint's value can be what as_dict gave for a network of so many classes.

    model: its state dict.
    """
    if type(found) is not dict or set(found) != set(KEYS):
        return False
    tensors = {key: found[key] for key in KEYS if key != "patches"}
    if not all(type(each) is Tensor for each in tensors.values()):
        return False
    width = channels_of(model)
    count = found["labels"].numel()
    shapes = {
        "means": (classes, width),
        "axes": (width, width),
        "distances": (count, 2),
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


def channels_of(model: dict[str, Tensor]) -> int | None:
    """Give how many channels layer3 of a ResNet has, by its state dict; None if it is none.

    The last layer is given twice as many, those of layer4.
    """
    last = model.get("fc.weight")
    return None if last is None or last.ndim != 2 else last.shape[1] // 2
