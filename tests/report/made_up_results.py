"""The files of a test whose numbers are drawn by lot, in the formats of test_classification.py."""

import json

import numpy as np
from conftest import picture

from dl_slicer.cities import city_code
from dl_slicer.files import write_rows
from dl_slicer.report import page

PATCHES = 20  # of each city
PORTRAITS = 4  # in a row of a sheet
ROLES = (("typical", "least unlike"), ("taken for neighbour", "closest to neighbour"))


def made_up(out, cities, seed=0, intervals=True, log=True, pictures=True, rasters=12):
    """Write all files of a test into <out>, and of its run beside it; give the page's path."""
    out.mkdir(parents=True)
    matrix = confusion_matrix(cities, seed)
    write_rows(
        out / "confusion_matrix.csv",
        ("true \\ predicted", *cities),
        ((city, *row) for city, row in zip(cities, matrix, strict=True)),
    )
    write_per_city(out, cities, matrix, rasters, intervals)
    write_resemblance(out, cities, matrix)
    write_metrics(out, cities, matrix, rasters, intervals)
    if log:
        write_run(out.parent, cities)
    if pictures:
        picture(19, 29).resize((1900, 2900), 0).save(out / "similarity.png")
        picture(10, 12).resize((750, 900), 0).save(out / "reliability.png")
        write_portraits(out / "portraits", cities, matrix, seed)
    return page.write_report(out)


def confusion_matrix(cities, seed):
    """As lists of whole numbers."""
    rng = np.random.default_rng(seed)
    k = len(cities)
    share = rng.beta(5, 1, k)
    matrix = [[0] * k for _ in cities]
    for i in range(k):
        for j in np.where(rng.random(PATCHES) < share[i], i, rng.integers(0, k, PATCHES)):
            matrix[i][j] += 1
    return matrix


def accuracies(matrix):
    return [row[i] / PATCHES for i, row in enumerate(matrix)]


def most_confused(matrix, i):
    """The number of the city that patches of city i are most often taken for."""
    return max((j for j in range(len(matrix)) if j != i), key=lambda j: matrix[i][j])


def write_per_city(out, cities, matrix, rasters, intervals):
    columns = ("city", "code", "n", "rasters", "accuracy", "ci95_low", "ci95_high", "interval")
    columns += ("precision", "recall", "f1", "most_confused_with")
    rows = []
    for i, accuracy in enumerate(accuracies(matrix)):
        ends = (max(0, accuracy - 0.1), min(1, accuracy + 0.05)) if intervals else (None, None)
        how = "rasters" if intervals else "none: one raster"
        other = cities[most_confused(matrix, i)] if accuracy < 1 else ""
        rows.append(
            (
                cities[i],
                city_code(cities[i]),
                PATCHES,
                rasters,
                accuracy,
                *ends,
                how,
                0.9,
                accuracy,
                0.9,
                other,
            )
        )
    write_rows(out / "per_city.csv", columns, rows)


VIEWS = ("confusion", "features")


def write_resemblance(out, cities, matrix):
    k = len(cities)
    views = ("agree", "disagree", "no confusions")
    columns = [f"{view}_{i}" for view in VIEWS for i in (1, 2, 3)]
    nearest = []
    for i, city in enumerate(cities):
        by_confusion = (cities[most_confused(matrix, i)], "", "")
        by_features = (cities[(i + 1) % k], "", "")
        sure = (0.9, "yes", 0.61, ("no", "yes", "one raster")[i % 3])
        nearest.append(
            (city, city_code(city), *by_confusion, *by_features, None, views[i % 3], *sure)
        )
    columns += ["rank_correlation", "views"]
    columns += [f"{view}_{what}" for view in VIEWS for what in ("1_share", "told_apart")]
    write_rows(out / "nearest.csv", ("city", "code", *columns), nearest)
    pairs = ((cities[i], cities[j], 0.01 * i, 0.5) for i in range(k) for j in range(i + 1, k))
    write_rows(out / "similarity.csv", ("a", "b", "confusion", "features"), pairs)


def write_metrics(out, cities, matrix, rasters, intervals):
    pair = {"a": cities[0], "b": cities[1], "a_as_b": 2, "b_as_a": 1, "n": 3, "share": 0.075}
    how = "bootstrap over rasters" if intervals else "none: all patches are from one raster"
    metrics = {
        "accuracy": float(np.mean(accuracies(matrix))),
        "accuracy_ci95": [0.7, 0.9] if intervals else None,
        "interval": how,
        "n_rasters": len(cities) * rasters,
        "raster_accuracy": 0.9,
        "top5_accuracy": 0.99,
        "balanced_accuracy": 0.8,
        "macro_f1": 0.8,
        "ece": 0.03,
        "views_rank_correlation": 0.5 if intervals else None,
        "confused_pairs": [pair],
        "n": len(cities) * PATCHES,
        "device": "cpu",
        "dtype": "float32",
        "checkpoint": str(out.parent / "best.pth"),
        "epoch": 2,
        "arch": "resnet50",
        "data": "data/<patches> & more",
        "split": "test_b",
        "versions": {"torch": "2.6", "cuda": None},
    }
    (out / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")


def write_run(folder, cities):
    """log.csv and config.json, this one as it was before it named the flags that were given."""
    write_rows(
        folder / "log.csv",
        ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"),
        [
            (1, 1e-3, 1.2, 0.4, 9.5, 0.3),
            (2, 1e-3, 0.7, 0.7, 0.8, 0.72),
            (3, 1e-3, 0.5, 0.8, float("nan"), 0.6),
        ],
    )
    config = {
        "data": "x",
        "run": "r </script> é",
        "arch": "resnet50",
        "weights": "none",
        "epochs": 3,
        "batch_size": 8,
        "lr": 1e-3,
        "flips": False,
        "recipe": "robust",
        "compile": True,
        "deterministic": False,
        "workers": None,
        "dtype": "float32",
        "data_set": {
            "classes": list(cities),
            "patch_size": 480,
            "stride": 240,
            "image_size": 224,
            "train": 99,
            "val": 9,
        },
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def write_portraits(folder, cities, matrix, seed):
    """A sheet a city, and its patches as tiles: smaller ones where there are many cities."""
    (folder / "tiles").mkdir(parents=True)
    columns = ("city", "role", "patch", "true", "predicted", "explained", "probability")
    columns += ("available", "tile", "side")
    side = 224 if len(cities) <= 8 else 128
    quality = 80 if len(cities) <= 8 else 64
    sheet = picture(1200, 1400, seed)
    rows = []
    for i, city in enumerate(cities):
        sheet.crop((i, i, i + 936, i + 1072)).save(folder / f"{i}.jpg", quality=88)
        explained = (city, cities[most_confused(matrix, i)])
        roles = (ROLES[0][i % 4 == 0], ROLES[1][i % 3 == 0])
        for k in range(2 * PORTRAITS):
            row = k // PORTRAITS
            x = k % PORTRAITS
            tile = f"tiles/{i}_{k}.jpg"
            left = i + 8 + side * x
            top = i + 72 + 2 * side * row
            cut = sheet.crop((left, top, left + side, top + 2 * side))
            cut.save(folder / tile, quality=quality, optimize=True)
            rows.append(
                (
                    city,
                    roles[row],
                    f"{city}/x/r0{x}_c00",
                    city,
                    city,
                    explained[row],
                    "0.987654",
                    9,
                    tile,
                    side,
                )
            )
    write_rows(folder / "portraits.csv", (*columns,), rows)
