"""Results of folds whose numbers are drawn by lot, as test_classification.py leaves them."""

import json

import numpy as np

from dl_slicer.files import write_rows
from dl_slicer.results import raster_sums, tables
from dl_slicer.results.pooled_folds import Fold

CITIES = ("Aa (AAA)", "Bb (BBB)", "Cc (CCC)", "Dd (DDD)")
PATCHES = 40  # of a raster, half of them in its left half


def fold_results(folder, number, sites, classes=CITIES, rasters=2, colour=True, limit=None):
    """Write the results of a fold into <folder>; give it as a Fold.

    sites: {city: (site, share of its patches that are right)}. limit: of the train sites.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(number)
    rows = [
        (label, sites[city][0], raster, patch)
        for label, city in enumerate(classes)
        for raster in range(rasters)
        for patch in range(PATCHES)
    ]
    predictions, logits = predict(rng, rows, classes, [sites[city][1] for city in classes])
    tables.write_predictions(folder / "predictions.csv", predictions)
    write_rows(folder / "per_city.csv", ("city", "n"), [(city, 1) for city in classes])
    np.save(folder / "logits.npy", logits)
    raster_sums.collect(predictions).save(folder / "raster_sums.npz")
    (folder / "metrics.json").write_text(json.dumps({"n": len(rows), "arch": "resnet18"}))
    if colour:
        guesses = rng.integers(0, len(classes), len(rows))
        named = zip(predictions.names, guesses, strict=True)
        colours = [(name, classes[guess]) for name, guess in named]
        write_rows(folder / "colour_alone.csv", ("patch", "predicted"), colours)
    return Fold(number, folder, limit)


def predict(rng, rows, classes, share_right):
    """Give Predictions and logits of patches, whose rows are (label, site, raster, patch)."""
    true = np.array([label for label, *_ in rows])
    wrong = (true + rng.integers(1, len(classes), len(true))) % len(classes)
    predicted = np.where(rng.random(len(true)) < np.array(share_right)[true], true, wrong)
    logits = rng.normal(0, 1, (len(true), len(classes))).astype(np.float32)
    logits[np.arange(len(true)), predicted] += 8
    exp = np.exp(logits)
    halves = ["test" if patch < PATCHES // 2 else "val" for *_, patch in rows]
    predictions = tables.Predictions(
        classes=list(classes),
        names=[
            f"{classes[label]}/{site}/{raster}.{half}/r00_c{patch:02d}"
            for (label, site, raster, patch), half in zip(rows, halves, strict=True)
        ],
        rasters=[f"{classes[label]}/{site}/{raster}.jpg" for label, site, raster, _ in rows],
        true=true,
        probabilities=exp / exp.sum(1, keepdims=True),
        features=rng.random((len(true), 5)) + np.eye(len(classes), 5)[true],
        sites=[site for _, site, *_ in rows],
    )
    return predictions, logits


def shares(classes=CITIES, odd=0.1, usual=0.9):
    """Three folds: the first city has two sites, and the second city's site02 is an odd one."""
    folds = []
    for number in (1, 2, 3):
        sites = {city: (f"site{4 - number:02d}", usual) for city in classes}
        sites[classes[0]] = (("site02", "site01")[(number - 1) % 2], usual)
        if number == 2:
            sites[classes[1]] = ("site02", odd)
        folds.append(sites)
    return folds


def cross_validation(out, curve=True, **more):
    """Write three folds, and those of a curve, into <out>; give them all."""
    classes = more.get("classes", CITIES)
    folds = []
    for number, sites in enumerate(shares(classes), 1):
        folds.append(fold_results(out / f"fold_{number}" / "results", number, sites, **more))
        if curve:
            folder = out / "curve_1" / f"fold_{number}" / "results"
            worse = {city: (site, share * 0.7) for city, (site, share) in sites.items()}
            folds.append(fold_results(folder, number, worse, limit=1, **more))
    return folds
