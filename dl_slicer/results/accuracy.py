"""How good predictions are, and how sure that is: figures, calibration, and intervals that know that patches come from few rasters.

Neighbouring patches overlap and patches of one raster are right or wrong together, so n patches say far less than n independent
trials would. The independent unit is the raster. Even so an interval speaks of rasters like these, from these sites: what another
site of the city would give cannot be known from one site.
"""

import numpy as np
from sklearn import metrics

from dl_slicer.cities import city_code
from dl_slicer.results import intervals


def summarise(true, probabilities):
    """Shares in 0 .. 1 over all patches; true (N,) int, probabilities (N, K). Macro and balanced figures weigh every city that has patches alike."""
    predicted, present = probabilities.argmax(1), np.unique(true)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        true, predicted, labels=present, average="macro", zero_division=0
    )
    # scikit-learn's top-k refuses two classes and k = all of them.
    rank = (probabilities > probabilities[np.arange(len(true)), true][:, None]).sum(1)
    return {
        "accuracy": float((predicted == true).mean()),
        "top5_accuracy": float((rank < 5).mean()),
        "balanced_accuracy": float(recall),
        "macro_precision": float(precision),
        "macro_recall": float(recall),
        "macro_f1": float(f1),
        "ece": calibration(true, probabilities)[0],
    }


def calibration(true, probabilities, bins=15):
    """Expected calibration error, and what the reliability diagram shows: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.

    Returns (ece, counts, confidence, accuracy), the last three (bins,) by equal bins of the highest probability, NaN where a bin is
    empty. ece: mean over patches of |accuracy - confidence| of their bin, 0 .. 1.
    """
    confidence, right = probabilities.max(1).astype(np.float64), probabilities.argmax(1) == true
    index = np.clip(
        np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1
    )  # bin m is ((m - 1) / bins, m / bins]
    counts, confidence, right = (
        np.bincount(index, weights, bins) for weights in (None, confidence, right)
    )
    with np.errstate(invalid="ignore"):
        return (
            float(np.abs(right - confidence).sum() / len(true)),
            counts,
            confidence / counts,
            right / counts,
        )


def raster_accuracy(true, probabilities, rasters):
    """Share of the rasters whose city has the highest mean of its patches' probabilities."""
    index, city = intervals.group_by_raster(true, rasters)
    sums = np.zeros((len(city), probabilities.shape[1]))
    np.add.at(sums, index, probabilities)
    return float((sums.argmax(1) == city).mean())


def confused_pairs(matrix, classes, most=10):
    """The pairs of cities most often taken for each other, from a confusion matrix (rows true): share is of the patches of both."""
    both, total = matrix + matrix.T, matrix.sum(1)
    pairs = [
        {
            "a": classes[a],
            "b": classes[b],
            "a_as_b": int(matrix[a, b]),
            "b_as_a": int(matrix[b, a]),
            "n": int(both[a, b]),
            "share": float(both[a, b] / (total[a] + total[b])),
        }
        for a, b in zip(*np.triu_indices(len(matrix), 1))
        if both[a, b]
    ]
    return sorted(pairs, key=lambda pair: -pair["n"])[:most]


def per_city(true, probabilities, rasters, classes, seed=0):
    """One dict a city: patches, rasters, accuracy (which is its recall) with its interval and what that is over, precision, F1, and the
    city it is most often taken for. A city without patches has no figures: None."""
    predicted, labels = probabilities.argmax(1), np.arange(len(classes))
    precision, recall, f1, n = metrics.precision_recall_fscore_support(
        true, predicted, labels=labels, zero_division=0
    )
    wrong = metrics.confusion_matrix(true, predicted, labels=labels) * (
        1 - np.eye(len(classes), dtype=int)
    )
    count = np.bincount(intervals.group_by_raster(true, rasters)[1], minlength=len(classes))
    rows = []
    for i, (city, ends) in enumerate(
        zip(
            classes,
            intervals.accuracy_intervals(true, predicted == true, rasters, len(classes), seed)[1],
        )
    ):
        low, high = ends or (None, None)
        row = {
            "city": city,
            "code": city_code(city),
            "n": int(n[i]),
            "rasters": int(count[i]),
            "accuracy": float(recall[i]),
            "ci95_low": low,
            "ci95_high": high,
            "interval": "rasters" if ends else "none: one raster",
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "most_confused_with": classes[wrong[i].argmax()] if wrong[i].any() else "",
        }
        if not n[i]:
            row |= {
                "accuracy": None,
                "precision": None,
                "recall": None,
                "f1": None,
                "interval": "none: no patches",
            }
        rows.append(row)
    return rows
