"""How good predictions are: shares, calibration, and what each city reaches.

How sure the shares are is told by the intervals over rasters, see intervals.py. Even these speak
of rasters like those tested, from these sites: what another site of the city would give cannot be
known from one site.

Everywhere here `true` (N,) int is the class number of each patch, and `probabilities` (N, K) is
what the network gave it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn import metrics

from dl_slicer.cities import labels as city_labels
from dl_slicer.results import intervals


class Calibration(NamedTuple):
    """How far stated probabilities are off: overall, and for each of B bins of the highest."""

    error: float  # expected calibration error, 0 .. 1
    counts: np.ndarray  # (B,) patches in the bin
    confidence: np.ndarray  # (B,) mean of their highest probabilities, NaN where a bin is empty
    accuracy: np.ndarray  # (B,) share of them that are right, NaN where a bin is empty


def summarise(true: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Shares in 0 .. 1 over all patches.

    In the macro and balanced ones every city that has patches weighs the same.
    """
    predicted = probabilities.argmax(1)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        true, predicted, labels=np.unique(true), average="macro", zero_division=0
    )
    # scikit-learn's top-k refuses two classes and k = all of them.
    probability_of_true = probabilities[np.arange(len(true)), true][:, None]
    rank = (probabilities > probability_of_true).sum(1)
    return {
        "accuracy": float((predicted == true).mean()),
        "top5_accuracy": float((rank < 5).mean()),
        "balanced_accuracy": float(recall),
        "macro_precision": float(precision),
        "macro_recall": float(recall),
        "macro_f1": float(f1),
        "ece": calibration(true, probabilities).error,
    }


def calibration(true: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> Calibration:
    """Compare the highest probability of each patch with how often it is right, bin by bin.

    Bin m of equal bins is ((m - 1) / bins, m / bins]. The error is the mean over patches of
    |accuracy - confidence| of their bin: Guo et al., On Calibration of Modern Neural Networks,
    ICML 2017, equation 3.
    """
    highest = probabilities.max(1).astype(np.float64)
    is_right = probabilities.argmax(1) == true
    index = np.clip(np.ceil(highest * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(index, None, bins)
    confidence = np.bincount(index, highest, bins)
    right = np.bincount(index, is_right, bins)
    error = float(np.abs(right - confidence).sum() / len(true))
    with np.errstate(invalid="ignore"):
        return Calibration(error, counts, confidence / counts, right / counts)


def raster_accuracy(true: np.ndarray, probabilities: np.ndarray, rasters: Sequence[str]) -> float:
    """Share of the rasters whose city has the highest mean of its patches' probabilities."""
    index, city = intervals.group_by_raster(true, rasters)
    sums = np.zeros((len(city), probabilities.shape[1]))
    np.add.at(sums, index, probabilities)
    return float((sums.argmax(1) == city).mean())


def confused_pairs(matrix: np.ndarray, classes: Sequence[str], most: int = 10) -> list[dict]:
    """Pairs of cities most often taken for each other, by the confusion matrix (rows true).

    share is of the patches of both.
    """
    total = matrix.sum(1)
    pairs = []
    for a, b in zip(*np.triu_indices(len(matrix), 1), strict=True):
        confused = matrix[a, b] + matrix[b, a]
        if confused:
            pair = {
                "a": classes[a],
                "b": classes[b],
                "a_as_b": int(matrix[a, b]),
                "b_as_a": int(matrix[b, a]),
                "n": int(confused),
                "share": float(confused / (total[a] + total[b])),
            }
            pairs.append(pair)
    return sorted(pairs, key=lambda pair: -pair["n"])[:most]


def per_city(
    true: np.ndarray,
    probabilities: np.ndarray,
    rasters: Sequence[str],
    classes: Sequence[str],
    seed: int = 0,
) -> list[dict]:
    """Give the rows of per_city.csv, one a city: its columns are the keys of the dict below.

    A city's accuracy is its recall; the interval is of the accuracy, None where there is none.
    What a city without patches cannot have is None, too.
    """
    predicted = probabilities.argmax(1)
    labels = np.arange(len(classes))
    precision, recall, f1, patches = metrics.precision_recall_fscore_support(
        true, predicted, labels=labels, zero_division=0
    )
    matrix = metrics.confusion_matrix(true, predicted, labels=labels)
    city_of_raster = intervals.group_by_raster(true, rasters)[1]
    raster_count = np.bincount(city_of_raster, minlength=len(classes))
    _, city_intervals = intervals.accuracy_intervals(
        true, predicted == true, rasters, len(classes), seed
    )
    codes = city_labels(classes)
    rows = []
    for label, city in enumerate(classes):
        interval = city_intervals[label]
        low, high = interval or (None, None)
        has_patches = patches[label] > 0
        row = {
            "city": city,
            "code": codes[label],
            "n": int(patches[label]),
            "rasters": int(raster_count[label]),
            "accuracy": float(recall[label]) if has_patches else None,
            "ci95_low": low,
            "ci95_high": high,
            "interval": _what_interval_is_over(interval, has_patches),
            "precision": float(precision[label]) if has_patches else None,
            "recall": float(recall[label]) if has_patches else None,
            "f1": float(f1[label]) if has_patches else None,
            "most_confused_with": _most_confused_with(matrix[label], label, classes),
        }
        rows.append(row)
    return rows


def _what_interval_is_over(interval: intervals.Interval | None, has_patches: bool) -> str:
    if not has_patches:
        return "none: no patches"
    return "rasters" if interval else "none: one raster"


def _most_confused_with(counts: np.ndarray, label: int, classes: Sequence[str]) -> str:
    """Name the city most often predicted in place of the true one; empty if none ever was.

    counts (K,): how often each city was predicted for patches of city `label`.
    """
    wrong = counts.copy()
    wrong[label] = 0
    return classes[wrong.argmax()] if wrong.any() else ""
