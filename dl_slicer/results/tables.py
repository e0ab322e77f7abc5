"""The tables of a test, on disk and on the terminal."""

import json

import numpy as np
from sklearn import metrics

from dl_slicer.cities import city_code
from dl_slicer.cli import printable
from dl_slicer.files import atomic, write_rows
from dl_slicer.results import accuracy, intervals, plots, resemblance


def write_results(out, classes, names, rasters, true, probabilities, features, more):
    """All tables and pictures of a test. N patches: names and rasters (lists), true (N,) int, probabilities (N, K), features (N, D);
    more: what else to say in metrics.json. Returns what is in metrics.json, per_city.csv and nearest.csv (dicts)."""
    predicted, codes = probabilities.argmax(1), [city_code(city) for city in classes]
    everything = range(len(classes))
    matrix = metrics.confusion_matrix(true, predicted, labels=everything)
    write_rows(
        out / "predictions.csv",
        ("patch", "true", "predicted", "probability", "true_probability", "raster"),
        (
            (
                names[i],
                classes[t],
                classes[p],
                f"{probabilities[i, p]:.6f}",
                f"{probabilities[i, t]:.6f}",
                rasters[i],
            )
            for i, (t, p) in enumerate(zip(true, predicted))
        ),
    )
    write_rows(
        out / "confusion_matrix.csv",
        ("true \\ predicted", *classes),
        ((city, *row) for city, row in zip(classes, matrix.tolist())),
    )
    plots.draw_confusion(out / "confusion_matrix", matrix, codes, percent=False)
    plots.draw_confusion(out / "confusion_matrix_percent", matrix, codes, percent=True)

    cities = accuracy.per_city(true, probabilities, rasters, classes)
    write_rows(out / "per_city.csv", cities[0], (row.values() for row in cities))
    plots.draw_reliability(out / "reliability", true, probabilities)

    expected = np.array([probabilities[true == city].sum(0) for city in everything])
    confused, alike = (
        resemblance.by_confusion(matrix),
        resemblance.by_features(features, true, len(classes)),
    )
    near = resemblance.nearest(confused, alike, resemblance.by_confusion(expected), classes, codes)
    pairs = resemblance.pairs(confused, alike, classes)
    write_rows(out / "similarity.csv", pairs[0], (row.values() for row in pairs))
    write_rows(out / "nearest.csv", near[0], (row.values() for row in near))
    plots.draw_resemblance(out / "similarity", confused, alike, codes)

    figures = {
        **accuracy.summarise(true, probabilities),
        "accuracy_ci95": intervals.accuracy_intervals(
            true, predicted == true, rasters, len(classes)
        )[0],
        "interval": intervals.describe_interval(true, rasters),
        "n_rasters": sum(row["rasters"] for row in cities),
        "raster_accuracy": accuracy.raster_accuracy(true, probabilities, rasters),
        "n": len(true),
        "confused_pairs": accuracy.confused_pairs(matrix, classes),
        "views_rank_correlation": resemblance.views_correlation(confused, alike),
        **more,
    }
    with atomic(out / "metrics.json", "w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(figures, file, indent=1, ensure_ascii=False, allow_nan=False)
    return figures, cities, near


def print_results(figures, cities, near):
    def percent(value):
        return "" if value is None else f"{100 * value:.1f}"

    print(
        f"\n{'city':<28}{'patches':>8}{'rasters':>8}{'accuracy %':>12}{'95 %':>14}{'F1 %':>7}   {'taken for':<11}nearest by features"
    )
    for row, other in zip(cities, near):
        ends = (
            f"{percent(row['ci95_low'])} - {percent(row['ci95_high'])}"
            if row["ci95_low"] is not None
            else ""
        )
        codes = [city_code(other[f"features_{i}"]) for i in (1, 2, 3)]
        print(
            f"{printable(row['city']):<28}{row['n']:>8}{row['rasters']:>8}{percent(row['accuracy']):>12}{ends:>14}{percent(row['f1']):>7}   "
            f"{printable(city_code(row['most_confused_with'])):<11}{printable(' '.join(codes))}{'  (views disagree)' if other['views'] == 'disagree' else ''}"
        )
    ends = figures["accuracy_ci95"]
    print(
        f"\ntop-1 {figures['accuracy']:.4f}"
        + (f" (95 %: {ends[0]:.4f} to {ends[1]:.4f})" if ends else "")
        + f"  top-5 {figures['top5_accuracy']:.4f}  "
        f"balanced {figures['balanced_accuracy']:.4f}  macro F1 {figures['macro_f1']:.4f}  whole rasters {figures['raster_accuracy']:.4f}  "
        f"calibration error {figures['ece']:.4f}\ninterval: {figures['interval']}"
    )
