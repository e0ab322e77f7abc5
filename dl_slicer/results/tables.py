"""The tables of a test, on disk and on the terminal.

What a table has in its columns is decided where its rows are made: per_city.csv in
accuracy.per_city, similarity.csv in resemblance.city_pairs, nearest.csv in resemblance.nearest,
nearest_shares.csv in resemblance_stability.share_rows, predictions.csv and metrics.json below.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn import metrics
from torch.nn.functional import cross_entropy

from dl_slicer import cities
from dl_slicer.cli import printable
from dl_slicer.files import atomic, write_rows
from dl_slicer.model import temperature
from dl_slicer.patch_sets.reading import PatchSet
from dl_slicer.results import (
    accuracy,
    dendrogram,
    intervals,
    plots,
    raster_sums,
    resemblance,
    resemblance_stability,
)
from dl_slicer.results.raster_sums import RasterSums
from dl_slicer.results.resemblance_stability import Stability


@dataclass
class Predictions:
    """What a network says of N patches of K cities."""

    classes: list[str]  # names of the K cities, in class order
    names: list[str]  # of the patches
    rasters: list[str]  # from which the patches are
    true: np.ndarray  # (N,) int, class numbers
    probabilities: np.ndarray  # (N, K)
    features: np.ndarray  # (N, D) of the penultimate layer
    doubts: list[str] = field(default_factory=list)  # of which patches are of one raster
    sites: list[str] = field(default_factory=list)  # within their cities, of the patches
    temperature: float | None = None  # of the probabilities; None: not known, so that it is 1
    untempered: np.ndarray | None = None  # (N, K) probabilities without it; None: the same

    @property
    def predicted(self) -> np.ndarray:
        """The likeliest class of each patch: (N,) int."""
        return self.probabilities.argmax(1)

    @property
    def codes(self) -> list[str]:
        """The labels of the cities on figures."""
        return cities.labels(self.classes)

    def confusion_matrix(self) -> np.ndarray:
        """Count patches by true (rows) and predicted city: (K, K) int."""
        labels = range(len(self.classes))
        return metrics.confusion_matrix(self.true, self.predicted, labels=labels)


def collect(
    patch_set: PatchSet,
    classes: list[str],
    logits: torch.Tensor,
    features: torch.Tensor,
    divisor: float | None = None,
) -> Predictions:
    """Put together what a network says of every patch of a set.

    logits (N, K) and features (N, D) on the CPU, in the set's order. divisor: the temperature, None
    where it is not known.
    """
    patches = range(len(patch_set))
    return Predictions(
        classes=classes,
        names=[patch_set.name(i) for i in patches],
        rasters=[patch_set.raster(i) for i in patches],
        true=patch_set.labels.astype(np.int64),
        probabilities=temperature.probabilities(logits, divisor or temperature.NEUTRAL).numpy(),
        features=features.numpy(),
        doubts=patch_set.doubts(),
        sites=[patch_set.site(i) for i in patches],
        temperature=divisor,
        untempered=None if divisor is None else logits.softmax(1).numpy(),
    )


def losses(logits: torch.Tensor, true: np.ndarray, divisor: float) -> dict[str, float]:
    """Give the mean negative log-likelihood of the true cities, with the temperature and without.

    logits (N, K) on the CPU; true (N,); divisor: the temperature, 1 where it is not known.
    """
    labels = torch.from_numpy(true)
    return {
        "loss": cross_entropy(logits / divisor, labels).item(),
        "loss_untempered": cross_entropy(logits, labels).item(),
    }


class Results(NamedTuple):
    """What a test found, as it is written."""

    metrics: dict  # metrics.json
    cities: list[dict]  # rows of per_city.csv
    nearest: list[dict]  # rows of nearest.csv


class Resemblance(NamedTuple):
    """The two views of resemblance.py: (K, K) each."""

    by_confusion: np.ndarray
    by_features: np.ndarray


def write_results(out: Path, predictions: Predictions, more: dict) -> Results:
    """Write all tables and diagrams of a test into a folder.

    more: what else to say in metrics.json.
    """
    matrix = predictions.confusion_matrix()
    views = Resemblance(
        resemblance.by_confusion(matrix),
        resemblance.by_features(predictions.features, predictions.true, len(predictions.classes)),
    )
    sums = raster_sums.collect(predictions)
    sums.save(out / raster_sums.FILE)
    write_predictions(out / "predictions.csv", predictions)
    write_confusion(out, matrix, predictions)
    rows = write_cities(out, predictions)
    stable = resemblance_stability.stability([sums])
    nearest = write_resemblance(out, views, stable, predictions.codes)
    found = summarise(predictions, matrix, views) | more
    with atomic(out / "metrics.json", "w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(found, file, indent=1, ensure_ascii=False, allow_nan=False)
    return Results(found, rows, nearest)


def summarise(predictions: Predictions, matrix: np.ndarray, views: Resemblance) -> dict:
    """Give what metrics.json says of the predictions. matrix: of confusions, rows true."""
    true = predictions.true
    rasters = predictions.rasters
    overall_interval, _ = intervals.accuracy_intervals(
        true, predictions.predicted == true, rasters, len(predictions.classes)
    )
    _, city_of_raster = intervals.group_by_raster(true, rasters)
    untempered = predictions.untempered
    if untempered is None:
        untempered = predictions.probabilities
    return {
        **accuracy.summarise(true, predictions.probabilities),
        "ece_untempered": accuracy.calibration(true, untempered).error,
        "temperature": predictions.temperature,
        "accuracy_ci95": overall_interval,
        "interval": intervals.describe_interval(true, rasters, predictions.doubts),
        "n_rasters": len(city_of_raster),
        "raster_accuracy": accuracy.raster_accuracy(true, predictions.probabilities, rasters),
        "raster_accuracy_untempered": accuracy.raster_accuracy(true, untempered, rasters),
        "n": len(true),
        "confused_pairs": accuracy.confused_pairs(matrix, predictions.classes),
        "views_rank_correlation": resemblance.views_correlation(*views),
    }


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions.csv: a row a patch."""
    write_dicts(path, _prediction_rows(predictions))


def _prediction_rows(predictions: Predictions) -> Iterator[dict]:
    """Rows of predictions.csv: its columns are the keys of the dict below."""
    classes = predictions.classes
    sites = predictions.sites or [""] * len(predictions.names)
    pairs = zip(predictions.true, predictions.predicted, strict=True)
    for i, (true, predicted) in enumerate(pairs):
        yield {
            "patch": predictions.names[i],
            "true": classes[true],
            "predicted": classes[predicted],
            "probability": f"{predictions.probabilities[i, predicted]:.6f}",
            "true_probability": f"{predictions.probabilities[i, true]:.6f}",
            "raster": predictions.rasters[i],
            "site": sites[i],  # empty where the patches do not tell, as in a folder of JPEGs
        }


def write_confusion(out: Path, matrix: np.ndarray, predictions: Predictions) -> None:
    """Write confusion_matrix.csv and its two diagrams, in counts and in per cent."""
    write_rows(
        out / "confusion_matrix.csv",
        ("true \\ predicted", *predictions.classes),
        ((city, *row) for city, row in zip(predictions.classes, matrix.tolist(), strict=True)),
    )
    codes = predictions.codes
    plots.draw_confusion(out / "confusion_matrix", matrix, codes, percent=False)
    plots.draw_confusion(out / "confusion_matrix_percent", matrix, codes, percent=True)


def write_cities(out: Path, predictions: Predictions) -> list[dict]:
    """Write per_city.csv, a row a city, and the reliability diagram. Returns the rows."""
    true = predictions.true
    probabilities = predictions.probabilities
    rows = accuracy.per_city(true, probabilities, predictions.rasters, predictions.classes)
    write_dicts(out / "per_city.csv", rows)
    plots.draw_reliability(out / "reliability", true, probabilities, predictions.untempered)
    return rows


def write_resemblance(
    out: Path, views: Resemblance, stable: Stability, codes: list[str]
) -> list[dict]:
    """Write similarity.csv, its diagram, nearest.csv and nearest_shares.csv.

    stable: how the views vary over draws of the rasters. Returns the rows of nearest.csv.
    """
    classes = stable.classes
    tie_breaker = stable.views.tie_breaker
    nearest = resemblance.nearest(*views, tie_breaker, classes, codes, stable)
    write_dicts(out / "similarity.csv", resemblance.city_pairs(*views, classes))
    write_dicts(out / "nearest.csv", nearest)
    columns = resemblance_stability.COLUMNS
    write_rows(out / "nearest_shares.csv", columns, resemblance_stability.share_rows(stable))
    support = stable.support(dendrogram.group_by_features(views.by_features))
    plots.draw_resemblance(out / "similarity", *views, codes, support)
    return nearest


def write_pooled_resemblance(out: Path, sums: Sequence[RasterSums]) -> list[dict]:
    """Write what write_resemblance() does of several tests: folds, or networks of other seeds.

    sums: of each test, of the same cities. Returns the rows of nearest.csv.
    """
    stable = resemblance_stability.stability(sums)
    views = Resemblance(stable.views.confusion, stable.views.features)
    return write_resemblance(out, views, stable, cities.labels(stable.classes))


def write_dicts(path: Path, rows: Iterable[dict]) -> None:
    """Write a CSV file of dicts that have the same keys, which are its columns."""
    rows = list(rows)
    columns = list(rows[0]) if rows else []  # one city alone has no pairs
    write_rows(path, columns, (row.values() for row in rows))


def print_results(results: Results) -> None:
    """Print a line a city, and below what is said of all."""
    print(
        f"\n{'city':<28}{'patches':>8}{'rasters':>8}{'accuracy %':>12}{'95 %':>14}{'F1 %':>7}"
        f"   {'taken for':<11}nearest by features"
    )
    names = [city["city"] for city in results.cities]
    labels = dict(zip(names, cities.labels(names), strict=True)) | {"": ""}
    for city, nearest in zip(results.cities, results.nearest, strict=True):
        print(_city_line(city, nearest, labels))
    print(f"\n{_summary_line(results.metrics)}\ninterval: {results.metrics['interval']}")


def _city_line(city: dict, nearest: dict, labels: dict[str, str]) -> str:
    """Set one city's row of per_city.csv and of nearest.csv in columns. labels: of all cities."""
    interval = ""
    if city["ci95_low"] is not None:
        interval = f"{_percent(city['ci95_low'])} - {_percent(city['ci95_high'])}"
    taken_for = printable(labels[city["most_confused_with"]])
    nearest_codes = [labels[nearest[f"features_{rank}"]] for rank in (1, 2, 3)]
    remark = "  (views disagree)" if nearest["views"] == "disagree" else ""
    return (
        f"{printable(city['city']):<28}{city['n']:>8}{city['rasters']:>8}"
        f"{_percent(city['accuracy']):>12}{interval:>14}{_percent(city['f1']):>7}"
        f"   {taken_for:<11}{printable(' '.join(nearest_codes))}{remark}"
    )


def _summary_line(found: dict) -> str:
    """Set the most important of metrics.json in one line."""
    parts = [f"top-1 {found['accuracy']:.4f}"]
    if found["accuracy_ci95"]:
        low, high = found["accuracy_ci95"]
        parts[0] += f" (95 %: {low:.4f} to {high:.4f})"
    parts += [
        f"top-5 {found['top5_accuracy']:.4f}",
        f"balanced {found['balanced_accuracy']:.4f}",
        f"macro F1 {found['macro_f1']:.4f}",
        f"whole rasters {found['raster_accuracy']:.4f}",
        f"calibration error {found['ece']:.4f}",
    ]
    return "  ".join(parts)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
