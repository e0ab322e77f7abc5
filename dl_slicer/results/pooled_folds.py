"""The patches of all folds of a cross-validation, read from their folders of results.

Every site counts once, by the first fold that holds it out: a city with fewer sites than others
goes round, and later folds test a site of it again.
"""

import tokenize
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from dl_slicer.cli import InputError, printable
from dl_slicer.model import temperature
from dl_slicer.results import saved_predictions
from dl_slicer.results.intervals import RasterCounts
from dl_slicer.results.saved_tables import read_columns

LOGITS = "logits.npy"
COLOUR_ALONE = "colour_alone.csv"
UNKNOWN = -1  # class number where colour alone was not measured
AGREEING = 0.99  # of logits and predictions, rounding apart
DAMAGE = (OSError, ValueError, EOFError, MemoryError, tokenize.TokenError)


@dataclass(frozen=True)
class Fold:
    """A fold that has been measured.

    number: N of `preprocessing.py --held-out N`, from 1 on. results: the folder that
    `test_classification.py --split held-out --logits` wrote. training_sites: to how many sites of
    each city training was limited, in the folds of --curve; None where it had all.
    """

    number: int
    results: Path
    training_sites: int | None = None


@dataclass(frozen=True)
class Patches:
    """What networks say of N patches of K cities, each a network that has not seen their site."""

    classes: list[str]
    names: np.ndarray  # (N,) str
    rasters: np.ndarray  # (N,) str
    sites: np.ndarray  # (N,) str, within their cities
    fold: np.ndarray  # (N,) int: the number of the fold
    true: np.ndarray  # (N,) int, class numbers
    predicted: np.ndarray  # (N,) int
    logits: np.ndarray  # (N, K) float32, before any temperature
    by_colour: np.ndarray  # (N,) int: what colour alone takes it for; UNKNOWN where not measured

    @property
    def right(self) -> np.ndarray:
        """Which patches' cities were recognised: (N,) bool."""
        return self.true == self.predicted

    def only(self, chosen: np.ndarray) -> "Patches":
        """Keep some patches: (N,) bool."""
        columns = {
            column.name: getattr(self, column.name)[chosen]
            for column in fields(self)
            if column.name != "classes"
        }
        return replace(self, **columns)


@dataclass(frozen=True)
class Grouped:
    """Patches by the site in a fold, and by raster: M groups, R rasters in them."""

    city: np.ndarray  # (M,) int, class numbers
    site: list[str]  # M names
    fold: np.ndarray  # (M,) int
    group: np.ndarray  # (N,) int: of each patch
    raster: np.ndarray  # (N,) int: of each patch
    group_of_raster: np.ndarray  # (R,) int

    def count(self, right: np.ndarray) -> RasterCounts:
        """Count by group; right (N,): of each patch, or what else is to be summed."""
        return self._counts(self.group, self.city, right)

    def count_rasters(self, right: np.ndarray) -> RasterCounts:
        """Count by raster, as count()."""
        return self._counts(self.raster, self.city[self.group_of_raster], right)

    def _counts(self, index: np.ndarray, city: np.ndarray, right: np.ndarray) -> RasterCounts:
        return RasterCounts(
            city, np.bincount(index).astype(float), np.bincount(index, right).astype(float)
        )


def group(patches: Patches) -> Grouped:
    """Group patches by city, site and fold, in this order, and within these by raster."""
    keys = zip(patches.true.tolist(), patches.sites.tolist(), patches.fold.tolist(), strict=True)
    keys = list(keys)
    known = sorted(set(keys))
    number = {key: k for k, key in enumerate(known)}
    index = np.array([number[key] for key in keys])
    rasters: dict[tuple[int, str], int] = {}
    pairs = zip(index.tolist(), patches.rasters.tolist(), strict=True)
    of_patch = np.array([rasters.setdefault(pair, len(rasters)) for pair in pairs])
    return Grouped(
        city=np.array([city for city, _, _ in known]),
        site=[site for _, site, _ in known],
        fold=np.array([fold for _, _, fold in known]),
        group=index,
        raster=of_patch,
        group_of_raster=np.array([of for of, _ in rasters]),
    )


def read(folds: Sequence[Fold]) -> Patches:
    """Read the patches of all folds, by rising number of the fold.

    InputError names the results that are missing, damaged, or not of the cities of the others.
    """
    folds = sorted(folds, key=lambda fold: fold.number)
    parts = [read_fold(fold) for fold in folds]
    first = parts[0]
    for fold, part in zip(folds, parts, strict=True):
        if part.classes != first.classes:
            raise other_cities(printable(fold.results), printable(folds[0].results))
    columns = {
        column.name: np.concatenate([getattr(part, column.name) for part in parts])
        for column in fields(Patches)
        if column.name != "classes"
    }
    return Patches(first.classes, **columns)


def other_cities(one: str, other: str) -> InputError:
    """Give the line that refuses folds which do not belong together."""
    return InputError(f"{one}: of other cities than {other}; give one --out to each data set")


def read_fold(fold: Fold) -> Patches:
    """Read the patches of one fold."""
    saved = saved_predictions.read_predictions(fold.results)
    classes = read_columns(fold.results / "per_city.csv", ("city",))["city"]
    number = {city: k for k, city in enumerate(classes)}
    unknown = next((city for city in [*saved.true, *saved.predicted] if city not in number), None)
    if unknown is not None:
        raise _refusal(fold.results / "per_city.csv", f"it has no {unknown}")
    if not all(saved.sites):
        raise _refusal(fold.results / saved_predictions.PREDICTIONS, "it does not say the sites")
    predicted = np.array([number[city] for city in saved.predicted])
    logits = _read_logits(fold.results / LOGITS, (len(predicted), len(classes)))
    if (logits.argmax(1) == predicted).mean() < AGREEING:
        raise _refusal(fold.results / LOGITS, "not of the test of predictions.csv")
    return Patches(
        classes=classes,
        names=np.array(saved.patches, object),
        rasters=np.array(saved.rasters, object),
        sites=np.array(saved.sites, object),
        fold=np.full(len(predicted), fold.number),
        true=np.array([number[city] for city in saved.true]),
        predicted=predicted,
        logits=logits,
        by_colour=_read_colour_alone(fold.results / COLOUR_ALONE, saved.patches, number),
    )


def _read_logits(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Read logits.npy, float32 of this shape."""
    if not path.is_file():
        raise _refusal(path, "not there; test_classification.py --logits writes it")
    try:
        logits = np.load(path, allow_pickle=False, mmap_mode="r")
        if logits.dtype != np.float32 or logits.shape != shape:
            raise ValueError(f"{logits.dtype} {logits.shape}, not float32 {shape}")
        logits = np.array(logits)
    except DAMAGE as error:
        raise _refusal(path, str(error)) from None
    if not np.isfinite(logits).all():
        raise _refusal(path, "numbers that are not finite")
    return logits


def _read_colour_alone(path: Path, names: Sequence[str], number: dict[str, int]) -> np.ndarray:
    """Read the class number that colour alone gives each patch: (N,) int."""
    if not path.is_file():
        return np.full(len(names), UNKNOWN)
    columns = read_columns(path, ("patch", "predicted"))
    predicted = dict(zip(columns["patch"], columns["predicted"], strict=True))
    missing = next((name for name in names if predicted.get(name) not in number), None)
    if missing is not None:
        raise _refusal(path, f"it has no city for {missing}")
    return np.array([number[predicted[name]] for name in names])


def _refusal(path: Path, reason: str) -> InputError:
    return InputError(
        f"{printable(path)}: no whole results of a fold ({printable(reason)[:200]}); run it again"
    )


def first_results(patches: Patches) -> np.ndarray:
    """Say of each patch whether its fold is the first that tests its site: (N,) bool."""
    grouped = group(patches)
    seen: set[tuple[int, str]] = set()
    is_first = np.zeros(len(grouped.city), bool)
    for k in np.argsort(grouped.fold, kind="stable"):
        key = (int(grouped.city[k]), grouped.site[k])
        is_first[k] = key not in seen
        seen.add(key)
    return is_first[grouped.group]


def fit_temperatures(patches: Patches) -> dict[int, float]:
    """Fit the temperature of each fold on the patches of all others: {fold: temperature}.

    So no patch has a say in how sure its own network is made. 1 where there is one fold only.
    """
    folds = np.unique(patches.fold).tolist()
    if len(folds) == 1:
        return {folds[0]: temperature.NEUTRAL}
    found = {}
    for fold in folds:
        others = patches.fold != fold
        sites = set(zip(patches.true[others].tolist(), patches.sites[others], strict=True))
        found[fold] = temperature.fit_temperature(
            patches.logits[others], patches.true[others], len(sites)
        )
    return found


def probabilities(patches: Patches, temperatures: dict[int, float]) -> np.ndarray:
    """Give the stated probabilities: float32 (N, K), each fold's by its own temperature."""
    stated = np.empty_like(patches.logits)
    for fold, found in temperatures.items():
        own = patches.fold == fold
        logits = torch.from_numpy(patches.logits[own])
        stated[own] = temperature.probabilities(logits, found).numpy()
    return stated


def mean_loss(patches: Patches, temperatures: dict[int, float]) -> float:
    """Give the mean negative log-likelihood of the true cities, by each fold's temperature."""
    divisors = np.array([temperatures[fold] for fold in patches.fold.tolist()])
    logits = torch.from_numpy(patches.logits).double() / torch.from_numpy(divisors)[:, None]
    true = torch.from_numpy(patches.true).long()
    return torch.nn.functional.cross_entropy(logits, true).item()
