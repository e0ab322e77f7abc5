"""Is a patch like anything that the network knows?

A network names one of its cities for any picture, a forest or a face, too, and its probabilities
must sum to one. What it computes on the way says more. Of each patch three distances are taken:

*texture*: the channels of layer2 and layer3, each by its mean over the patch, x, are as far from
the nearest city's mean m as Mahalanobis has it, with a covariance S that all cities share (Lee et
al., A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks,
NeurIPS 2018, equation 2, there of several layers):

    d = min over cities of (x - m)' S^-1 (x - m)

*kind*: the same of log(0.01 + x) of layer3, in which channels that hardly answer count as well.

*strength*: how much of what tells cities apart is there at all: the length of the features f that
the last layer is given. A city that was not trained on has less of it. This distance is -|f|.

Means and covariances are of train patches in eval mode, the same number of each city. How large
distances usually are, val patches say, whose sites were not trained on. By each distance a patch is
as familiar as the share of val patches that are as far off or farther; the smallest of the three
shares is compared with theirs once more, so that what comes out,

    (1 + val patches as far off, or farther) / (1 + val patches),

is evenly spread up to 1 over patches of places like those of val. Where it is at most 1 in 100,
what is seen is called unlike any city. With below 99 val patches of some city too little is known
of what is usual: then it cannot be told. docs/statistics.md has what was measured, and what else
was tried.
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
# How far the correlations of each view are drawn to none.
SHRINKAGE = {"texture": 0.5, "kind": 0.1}
FAINT = 0.01  # what is added to channels before their logarithm
KEYS = ("texture", "kind", "distances", "labels", "patches")


class Inside(NamedTuple):
    """What a network has computed of n patches on its way to the logits, float32."""

    layer2: Tensor  # (n, C): its channels, each by its mean
    layer3: Tensor  # (n, 2 C): the same
    features: Tensor  # (n, D): what the last layer is given

    def view(self, name: str) -> Tensor:
        """Give what Mahalanobis' distance is taken of: texture (n, 3 C) or kind (n, 2 C)."""
        if name == "kind":
            return (self.layer3.clamp(min=0) + FAINT).log()
        return torch.cat([self.layer2, self.layer3], 1)


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
    """Sums over patches of one view, in a memory that no patch makes larger.

    In float64 where the device has it.
    """

    counts: Tensor  # (K,)
    sums: Tensor  # (K, W), by city
    products: Tensor  # (W, W) of two values of a patch

    @classmethod
    def none(cls, classes: int, width: int, device: torch.device) -> "Moments":
        """Give those of no patch. width: W, of the view."""
        sizes = [(classes,), (classes, width), (width, width)]
        dtype = devices.sum_dtype(device)
        return cls(*(torch.zeros(size, dtype=dtype, device=device) for size in sizes))

    def add(self, view: Tensor, labels: Tensor) -> None:
        """Take further patches. view: float (n, W); labels: int (n,), both on the device."""
        view = view.to(self.sums.dtype)
        self.counts.index_add_(0, labels, torch.ones_like(labels, dtype=self.counts.dtype))
        self.sums.index_add_(0, labels, view)
        with _exactly(view.device):
            self.products += view.T @ view

    def space(self, shrinkage: float) -> "Space":
        """Give what all processes' patches say, on the CPU. All must call it."""
        for each in (self.counts, self.sums, self.products):
            total(each)
        counts, sums, products = (
            devices.to_cpu(each).numpy().astype(float)
            for each in (self.counts, self.sums, self.products)
        )
        means = sums / np.maximum(counts, 1)[:, None]
        within = (products - sums.T @ means) / max(1.0, counts.sum())
        return Space(torch.from_numpy(means.astype(np.float32)), _axes(within, shrinkage))


def _exactly(device: torch.device) -> torch.autocast:
    """Give the context in which products are not rounded, whatever the network is computed in."""
    return torch.autocast(device.type, enabled=False)


def _axes(covariance: np.ndarray, shrinkage: float) -> Tensor:
    """Give A (W, W) with A A' the inverse of a covariance, float32; it is shrunk first.

    Its correlations are drawn to none; a channel that never varies counts as one that varies by a
    hundredth of what others do.
    """
    deviations = np.sqrt(np.maximum(covariance.diagonal(), 0))
    floor = max(deviations.mean() / 100, np.finfo(np.float32).eps)
    deviations = np.maximum(deviations, floor)
    correlations = covariance / np.outer(deviations, deviations)
    shrunk = (1 - shrinkage) * correlations + shrinkage * np.eye(len(covariance))
    variances, directions = np.linalg.eigh(shrunk)
    axes = directions / np.sqrt(np.maximum(variances, shrinkage / 2)) / deviations[:, None]
    return torch.from_numpy(axes.astype(np.float32))


class Space(NamedTuple):
    """The space of one view, in which distances are Mahalanobis'."""

    means: Tensor  # float32 (K, W) of the cities
    axes: Tensor  # float32 (W, W): values times these vary alike in all directions

    def nearest(self, view: Tensor) -> Tensor:
        """Give how far patches (n, W) are from the nearest city: (n,)."""
        # From their middle: far from 0 float32 would lose the digits of small distances.
        middle = self.means.mean(0)
        with _exactly(view.device):
            cities = (self.means - middle) @ self.axes
            squares = torch.cdist((view - middle) @ self.axes, cities) ** 2
        return squares.amin(1)


@dataclass
class Known:
    """What a network knows of its K cities: all on one device."""

    texture: Space
    kind: Space
    patches: int  # of train, that these were taken from
    distances: Tensor | None = None  # float32 (N, 3) of the val patches: texture, kind, strength
    labels: Tensor | None = None  # int64 (N,): their true cities

    def far(self, inside: Inside) -> Tensor:
        """Give how far n patches are, by texture, kind and strength: float32 (n, 3).

        inside: on the same device.
        """
        texture = self.texture.nearest(inside.view("texture"))
        kind = self.kind.nearest(inside.view("kind"))
        return torch.stack([texture, kind, -inside.features.norm(dim=1)], 1)

    def as_dict(self) -> dict[str, Any]:
        """Give what a checkpoint holds of it."""
        spaces = {name: getattr(self, name)._asdict() for name in SHRINKAGE}
        return {key: getattr(self, key) for key in KEYS} | spaces

    @classmethod
    def of(cls, found: dict, device: torch.device) -> "Known":
        """Give what a checkpoint says, on a device."""
        spaces = {
            name: Space(*(found[name][key].to(device) for key in Space._fields))
            for name in SHRINKAGE
        }
        return cls(
            **spaces,
            patches=found["patches"],
            distances=found["distances"].to(device),
            labels=found["labels"].to(device),
        )

    def few(self) -> list[int]:
        """Give the cities that have too few val patches."""
        counts = torch.bincount(devices.to_cpu(self.labels), minlength=len(self.kind.means))
        return (counts < LEAST_VAL_PATCHES).nonzero().flatten().tolist()

    @cached_property
    def usual(self) -> "Usual | None":
        """What is usual, None where a city has too few val patches."""
        return None if self.few() else Usual.of(devices.to_cpu(self.distances).numpy())

    def familiarity(self, inside: Inside) -> np.ndarray:
        """Give how familiar n patches are: float64 (n,), above 0 to 1; NaN where it cannot be told.

        inside: on the same device.
        """
        if self.usual is None:
            return np.full(len(inside.features), np.nan)
        return self.usual.familiarity(devices.to_cpu(self.far(inside)).numpy())


@dataclass(frozen=True)
class Usual:
    """How far the N val patches are."""

    rising: np.ndarray  # (N, 3): each of the distances in order
    smallest: np.ndarray  # (N,): the smallest of each patch's shares, in order

    @classmethod
    def of(cls, distances: np.ndarray) -> "Usual":
        """Give that of patches with these distances (N, 3)."""
        rising = np.sort(distances, axis=0)
        return cls(rising, np.sort(_smallest_share(rising, distances)))

    def familiarity(self, distances: np.ndarray) -> np.ndarray:
        """Give that of other patches (n, 3): float64 (n,)."""
        shares = _smallest_share(self.rising, distances)
        farther = np.searchsorted(self.smallest, shares, side="right")
        return (1 + farther) / (1 + len(self.smallest))


def _smallest_share(rising: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """The smallest share (n,) of usual patches that are as far as these (n, 3), or farther."""
    nearer = [
        np.searchsorted(usual, found, side="left")
        for usual, found in zip(rising.T, distances.T, strict=True)
    ]
    return 1 - np.max(nearer, axis=0) / len(rising)


def is_right(found: object, model: dict[str, Tensor], classes: int) -> bool:
    """Whether a checkpoint's value can be what as_dict gave for a network of so many classes.

    model: its state dict.
    """
    if type(found) is not dict or set(found) != set(KEYS):
        return False
    spaces = [found[name] for name in SHRINKAGE]
    if any(type(space) is not dict or set(space) != set(Space._fields) for space in spaces):
        return False
    labels = found["labels"]
    if type(labels) is not Tensor or labels.dtype != torch.int64 or labels.ndim != 1:
        return False
    of_floats = [(found["distances"], (len(labels), 3))]
    for name, width in widths_of(model).items():
        of_floats += [(found[name]["means"], (classes, width))]
        of_floats += [(found[name]["axes"], (width, width))]
    if not all(_is_right_tensor(*each) for each in of_floats):
        return False
    return (
        type(found["patches"]) is int
        and found["patches"] >= 0
        and bool(((labels >= 0) & (labels < classes)).all())
    )


def _is_right_tensor(value: object, shape: tuple[int, ...]) -> bool:
    is_tensor = type(value) is Tensor and value.dtype == torch.float32
    return is_tensor and tuple(value.shape) == shape and bool(value.isfinite().all())


def widths_of(model: dict[str, Tensor]) -> dict[str, int]:
    """Give how wide each view of a ResNet is, by its state dict.

    The last layer is given the channels of layer4; each layer before it has half as many.
    """
    last = model.get("fc.weight")
    features = last.shape[1] if last is not None and last.ndim == 2 else 0
    return {"texture": features // 4 + features // 2, "kind": features // 2}
