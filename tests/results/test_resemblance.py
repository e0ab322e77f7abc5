"""Which cities resemble each other: by hand, and on cities that were made alike."""

import csv
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from dl_slicer.results import plots, resemblance, tables

CODES = list("ABCDEF")


def test_by_confusion():
    matrix = np.array([[8, 2, 0, 0], [10, 90, 0, 0], [0, 1, 3, 0], [0, 0, 0, 0]])
    view = resemblance.by_confusion(matrix)
    assert view[0, 1] == view[1, 0] == pytest.approx((2 / 10 + 10 / 100) / 2)
    assert view[1, 2] == pytest.approx((0 + 1 / 4) / 2)
    assert view[0, 2] == 0
    assert np.isnan(np.diag(view)).all()
    assert np.isnan(view[3]).all()


def test_by_features_is_free_of_what_all_cities_share():
    rng = np.random.default_rng(0)
    means = rng.normal(size=(4, 16))
    means -= means.mean(0)
    true = np.repeat(np.arange(4), [50, 20, 90, 5])
    features = 100 + means[true] + 1e-3 * rng.normal(size=(165, 16))
    view = resemblance.by_features(features.astype(np.float32), true, 5)
    length = np.linalg.norm(means, axis=1)
    expected = means @ means.T / np.outer(length, length)
    upper = np.triu_indices(4, 1)
    np.testing.assert_allclose(view[:4, :4][upper], expected[upper], atol=2e-3)
    assert np.isnan(view[4]).all()
    assert np.isnan(np.diag(view)).all()


def square(pairs, cities=6):
    view = np.zeros((cities, cities))
    for (a, b), value in pairs.items():
        view[a, b] = view[b, a] = value
    return resemblance.without_diagonal(view)


def test_nearest_and_where_the_views_disagree():
    confusion = square({(0, 1): 0.3, (0, 2): 0.1, (0, 3): 0.1, (2, 3): 0.2})
    features = square({(0, 1): 0.9, (2, 4): 0.8, (3, 5): 0.7, (2, 3): 0.1})
    probability = square({(0, 3): 0.02, (0, 2): 0.01})
    cities = [f"City {c}" for c in CODES]
    rows = resemblance.nearest(confusion, features, probability, cities, CODES)
    # C and D are equally often confused with A: D has the higher mean probability.
    assert [rows[0][f"confusion_{i}"] for i in (1, 2, 3)] == ["City B", "City D", "City C"]
    assert [rows[1][f"confusion_{i}"] for i in (1, 2, 3)] == ["City A", "", ""]
    assert rows[0]["features_1"] == "City B"
    assert [row["views"] for row in rows] == [
        "agree",
        "agree",
        "disagree",
        "disagree",
        "no confusions",
        "no confusions",
    ]
    assert rows[4]["rank_correlation"] is None
    assert -1 <= rows[0]["rank_correlation"] <= 1
    empty = resemblance.nearest(*[np.full((2, 2), np.nan)] * 3, ["A", "B"], ["A", "B"])
    assert empty[0]["views"] == "no patches"
    assert empty[0]["features_1"] == ""


def test_rank_correlation_of_the_views():
    rng = np.random.default_rng(0)
    view = square({(a, b): rng.random() for a in range(6) for b in range(a)})
    assert resemblance.views_correlation(view, np.exp(view)) == pytest.approx(1)
    assert resemblance.views_correlation(view, -view) == pytest.approx(-1)
    assert resemblance.views_correlation(square({}), view) is None


# All tables and pictures, of made-up predictions


def made_up(classes, patches, rasters=3, spread=0.6, dimensions=64, seed=0):
    """Predictions of a network that sees cities as points: those near each other are confused.

    Every two cities, beginning with the first, are near each other.
    """
    rng = np.random.default_rng(seed)
    cities = len(classes)
    centre = 2 * rng.normal(size=(cities, 4))
    centre[1::2] = centre[: cities // 2 * 2 : 2] + 0.5 * rng.normal(size=(cities // 2, 4))
    true = np.repeat(np.arange(cities), patches)
    raster = np.arange(len(true)) % rasters
    of_patch = spread * rng.normal(size=(len(true), 4))
    of_raster = spread * rng.normal(size=(cities, rasters, 4))
    position = centre[true] + of_patch + of_raster[true, raster]
    logits = -2 * ((position[:, None] - centre) ** 2).sum(2)
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    directions = rng.normal(size=(4, dimensions)).astype(np.float32)
    return tables.Predictions(
        classes=classes,
        names=[f"{i}" for i in range(len(true))],
        rasters=[f"{city}/{number}.jpg" for city, number in zip(true, raster, strict=True)],
        true=true,
        probabilities=probabilities.astype(np.float32),
        features=np.maximum(2 + position.astype(np.float32) @ directions, 0),
    )


def without(predictions, cities):
    """The predictions of the patches that are not from these cities (class numbers)."""
    keep = np.flatnonzero(~np.isin(predictions.true, cities))
    return tables.Predictions(
        classes=predictions.classes,
        names=[predictions.names[i] for i in keep],
        rasters=[predictions.rasters[i] for i in keep],
        true=predictions.true[keep],
        probabilities=predictions.probabilities[keep],
        features=predictions.features[keep],
    )


def rows(file):
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_cities_made_alike_are_neighbours(tmp_path):
    classes = [f"City {i} (C{i})" for i in range(8)]
    predictions = made_up(classes, 300, spread=0.3)
    metrics, _, _ = tables.write_results(tmp_path, predictions, {"more": 1})
    for i, row in enumerate(rows(tmp_path / "nearest.csv")):
        assert row["confusion_1"] == row["features_1"] == classes[i ^ 1]
        assert row["views"] == "agree"
    assert {frozenset((pair["a"], pair["b"])) for pair in metrics["confused_pairs"][:4]} == {
        frozenset(classes[i : i + 2]) for i in (0, 2, 4, 6)
    }
    assert metrics["views_rank_correlation"] > 0.5
    assert metrics["more"] == 1
    pairs = rows(tmp_path / "similarity.csv")
    assert len(pairs) == 28
    similar = {frozenset((row["a"], row["b"])) for row in pairs if float(row["features"]) > 0.6}
    assert similar >= {frozenset(classes[:2])}
    low, high = json.loads((tmp_path / "metrics.json").read_text())["accuracy_ci95"]
    assert low < metrics["accuracy"] < high
    table = rows(tmp_path / "per_city.csv")
    assert sum(float(row["accuracy"]) for row in table) / 8 == pytest.approx(metrics["accuracy"])
    for row in table:
        assert float(row["ci95_low"]) < float(row["accuracy"]) < float(row["ci95_high"])
        assert row["rasters"] == "3"
    found = rows(tmp_path / "predictions.csv")
    recognised = [row for row in found if row["true"] == row["predicted"]]
    assert len(recognised) / len(found) == pytest.approx(metrics["accuracy"])
    assert all(row["probability"] == row["true_probability"] for row in recognised)


COLUMNS = {
    "predictions": "patch,true,predicted,probability,true_probability,raster,site",
    "confusion_matrix": "true \\ predicted,Aa (A),Bb (B)",
    "per_city": "city,code,n,rasters,accuracy,ci95_low,ci95_high,interval,precision,recall,f1,"
    "most_confused_with",
    "similarity": "a,b,confusion,features",
    "nearest": "city,code,confusion_1,confusion_2,confusion_3,features_1,features_2,features_3,"
    "rank_correlation,views",
}


def test_columns_of_all_tables(tmp_path):
    """Other people's scripts rely on them; new ones may follow."""
    tables.write_results(tmp_path, made_up(["Aa (A)", "Bb (B)"], 6), {})
    for name, columns in COLUMNS.items():
        header = (tmp_path / f"{name}.csv").read_text(encoding="utf-8").splitlines()[0]
        assert header.startswith(columns)


PICTURES = ("similarity", "reliability", "confusion_matrix", "confusion_matrix_percent")


@pytest.mark.parametrize(
    "classes, empty, perfect, rasters",
    [
        (["Aa (A)"], [], False, 3),
        (["Aa (A)", "Bb (B)"], [], False, 3),
        (["Aa (A)", "Bb (B)"], [], True, 1),
        (["Aa (A)", "Bb (B)"], [1], False, 2),
        (['A, "b" ($x_)', "Ünïted (東京)", "C\nd", "$ {} % $"], [2], False, 1),
        ([f"{i}" for i in range(5)], [0, 4], True, 2),
    ],
)
def test_odd_cities(tmp_path, classes, empty, perfect, rasters):
    predictions = made_up(classes, 30, rasters)
    if perfect:
        predictions.probabilities = np.eye(len(classes), dtype=np.float32)[predictions.true]
    results = tables.write_results(tmp_path, without(predictions, empty), {})
    tables.print_results(results)
    metrics, cities, nearest = results
    for name in PICTURES:
        assert min(Image.open(tmp_path / f"{name}.png").size) > 300
        assert (tmp_path / f"{name}.pdf").read_bytes()[:4] == b"%PDF"
    assert [row["city"] for row in rows(tmp_path / "nearest.csv")] == classes
    assert [row["city"] for row in rows(tmp_path / "per_city.csv")] == classes
    for i in empty:
        assert cities[i]["n"] == 0
        assert cities[i]["accuracy"] is None
        assert nearest[i]["views"] in ("no patches", "no features")
    if perfect:
        assert metrics["accuracy"] == metrics["raster_accuracy"] == 1
        assert metrics["ece"] == 0
        assert metrics["confused_pairs"] == []
        present = [i for i in range(len(classes)) if i not in empty]
        assert {nearest[i]["views"] for i in present} == {"no confusions"}
    ends = metrics["accuracy_ci95"]
    if metrics["n_rasters"] == 1:
        assert ends is None
    else:
        assert 0 <= ends[0] < ends[1] <= 1
    assert all(math.isfinite(value) for value in metrics.values() if isinstance(value, float))


def test_labels_of_forty_five_cities_do_not_overlap(tmp_path, monkeypatch):
    """Measured in what is drawn: no two labels of an axis touch, none is smaller than 7 points."""
    import matplotlib.pyplot as plt

    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    codes = [f"{chr(65 + i % 26)}W{i // 26}" for i in range(45)]
    predictions = made_up(codes, 20)
    confusion = predictions.confusion_matrix()
    plots.draw_resemblance(
        tmp_path / "similarity",
        resemblance.by_confusion(confusion),
        resemblance.by_features(predictions.features, predictions.true, 45),
        codes,
    )
    plots.draw_confusion(tmp_path / "confusion", confusion, codes, percent=True)
    monkeypatch.undo()
    checked = 0
    for figure in drawn:
        renderer = figure.canvas.get_renderer()
        for axes in figure.axes:
            for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
                labels = [label for label in ticks if label.get_text() in codes]
                boxes = [label.get_window_extent(renderer) for label in labels]
                for i, box in enumerate(boxes):
                    assert not any(box.overlaps(other) for other in boxes[:i])
                    assert figure.bbox.x0 <= box.x0
                    assert box.x1 <= figure.bbox.x1
                    assert figure.bbox.y0 <= box.y0
                    assert box.y1 <= figure.bbox.y1
                assert all(label.get_fontsize() >= 7 for label in labels)
                checked += len(boxes)
        plt.close(figure)
    assert checked == 45 * 6


def test_forty_five_cities_take_a_minute_and_two_gigabytes_at_most(tmp_path):
    # Seconds of the process itself: the machine may be busy.
    program = f"""
import sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}, {str(ROOT / "tests" / "results")!r}]
from benchmarks.growth import memory
from pathlib import Path
from dl_slicer.results import tables
from test_resemblance import made_up
classes = [f"City {{i}} (C{{i:02}})" for i in range(45)]
predictions = made_up(classes, 500, rasters=6, dimensions=2048)
started = time.process_time()
tables.write_results(Path({str(tmp_path)!r}), predictions, {{}})
print(time.process_time() - started, memory("VmHWM"))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < 60
    assert megabytes < 1900
    assert len(rows(tmp_path / "similarity.csv")) == 990
    assert len(rows(tmp_path / "predictions.csv")) == 22500
