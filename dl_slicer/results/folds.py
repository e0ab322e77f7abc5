"""What the folds of a cross-validation over sites say together.

Each fold has one site of each city held out and a network that has never seen it. Here the patches
of all held-out sites are pooled: every site counts once, by the first fold that holds it out.

    folds.csv           a row a site and fold: accuracy, interval over rasters, odd ones out
    curve.csv           the same accuracy with 1, 2, ... train sites a city, where --curve made it
    metrics.json, per_city.csv, confusion_matrix.*, reliability.*, similarity.*, nearest.csv
                        as of a test, but with intervals over sites
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from dl_slicer import cities
from dl_slicer.files import atomic
from dl_slicer.results import (
    accuracy,
    intervals,
    odd_sites,
    plots,
    pooled_folds,
    raster_sums,
    site_intervals,
    tables,
)
from dl_slicer.results.intervals import Interval
from dl_slicer.results.odd_sites import OddSite
from dl_slicer.results.pooled_folds import UNKNOWN, Fold, Grouped, Patches

__all__ = ["Fold", "write"]

ALL = "all"  # train sites, in curve.csv
TEST = ".test"  # how the regions end that the published split tests
WORDS = (
    "over sites, within each city: for new sites of these cities, not for new cities; approximate,"
    " since the folds share train sites (Bengio and Grandvalet, JMLR 5, 2004)"
)


def write(out: Path, folds: Sequence[Fold]) -> None:
    """Write the tables of all folds into a folder: folds.csv, metrics.json and what goes with them.

    out: the folder of the cross-validation, which the caller holds. folds: those measured so far,
    at least one with all training sites; those with fewer make curve.csv. Tables of before are
    replaced; metrics.json comes last. InputError names the results that are missing, damaged, or
    not of the same cities as those of the other folds.
    """
    folds = sorted(folds, key=lambda fold: fold.number)
    whole = [fold for fold in folds if fold.training_sites is None]
    every = pooled_folds.read(whole)
    patches = every.only(pooled_folds.first_results(every))
    sums = [raster_sums.load(fold.results / raster_sums.FILE) for fold in whole]
    curve = curve_rows(patches, folds)

    (out / "metrics.json").unlink(missing_ok=True)  # what a kill leaves is not taken for whole
    temperatures = pooled_folds.fit_temperatures(patches)
    predictions = as_predictions(patches, pooled_folds.probabilities(patches, temperatures))
    odd = find_odd_sites(patches)
    tables.write_dicts(out / "folds.csv", fold_rows(every, odd))
    tables.write_dicts(out / "per_city.csv", city_rows(patches, predictions.probabilities))
    tables.write_confusion(out, predictions.confusion_matrix(), predictions)
    plots.draw_reliability(out / "reliability", patches.true, predictions.probabilities)
    tables.write_pooled_resemblance(out, sums)
    (out / "curve.csv").unlink(missing_ok=True)
    if curve:
        tables.write_dicts(out / "curve.csv", curve)
    found = summarise(patches, predictions, temperatures, odd)
    with atomic(out / "metrics.json", "w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(found, file, indent=1, ensure_ascii=False, allow_nan=False)


def as_predictions(patches: Patches, probabilities: np.ndarray) -> tables.Predictions:
    """Give the pooled patches as the predictions of one test, without features.

    probabilities: (N, K), tempered. Features of several networks have no common space.
    """
    return tables.Predictions(
        classes=patches.classes,
        names=patches.names.tolist(),
        rasters=patches.rasters.tolist(),
        true=patches.true,
        probabilities=probabilities,
        features=np.zeros((len(patches.true), 0), np.float32),
        sites=patches.sites.tolist(),
    )


# ----------------------------------------------------------------------------------- the sites


def find_odd_sites(patches: Patches) -> dict[tuple[int, str], OddSite]:
    """Find the odd ones out, by city and name of the site; the oddest first."""
    grouped = pooled_folds.group(patches)
    found = odd_sites.find(grouped.count_rasters(patches.right), grouped.group_of_raster)
    return {(int(grouped.city[odd.site]), grouped.site[odd.site]): odd for odd in found}


def fold_rows(every: Patches, odd: dict[tuple[int, str], OddSite]) -> list[dict]:
    """Give the rows of folds.csv: its columns are the keys of the dict below.

    every: the patches of all folds, a site's later results, too. low, high: the 95 % interval over
    the rasters of the site; empty where it has one.
    """
    grouped = pooled_folds.group(every)
    counts = grouped.count(every.right)
    by_colour = grouped.count(every.by_colour == every.true)
    rasters = np.bincount(grouped.group_of_raster)
    ends = intervals_of_sites(every, grouped)
    is_first = np.zeros(len(grouped.city), bool)
    is_first[grouped.group] = pooled_folds.first_results(every)
    has_colour = np.ones(len(grouped.city), bool)
    has_colour[grouped.group[every.by_colour == UNKNOWN]] = False
    codes = cities.labels(every.classes)
    rows = []
    for k, (city, site) in enumerate(zip(grouped.city.tolist(), grouped.site, strict=True)):
        low, high = ends[k] or (None, None)
        found = odd.get((city, site))
        row = {
            "city": every.classes[city],
            "code": codes[city],
            "site": site,
            "fold": int(grouped.fold[k]),
            "first": "yes" if is_first[k] else "no",
            "rasters": int(rasters[k]),
            "patches": int(counts.patches[k]),
            "right": int(counts.right[k]),
            "accuracy": float(counts.right[k] / counts.patches[k]),
            "low": low,
            "high": high,
            "odd": describe_odd(found) if found and is_first[k] else "",
            "colour_alone": (
                float(by_colour.right[k] / by_colour.patches[k]) if has_colour[k] else None
            ),
        }
        rows.append(row)
    return rows


def intervals_of_sites(every: Patches, grouped: Grouped) -> list[Interval | None]:
    """Give the interval over its rasters of each site's accuracy, None for a single raster.

    As that of a city in intervals.py; all sites together lend to one site's spread.
    """
    counts = grouped.count_rasters(every.right)
    by_site = intervals.RasterCounts(grouped.group_of_raster, counts.patches, counts.right)
    sites = len(grouped.city)
    if np.bincount(grouped.group_of_raster).max() < 2:
        return [None] * sites
    return intervals.city_intervals(by_site, sites, np.random.default_rng(0))


def describe_odd(odd: OddSite) -> str:
    """Say why a site is an odd one out, in words for folds.csv and the page."""
    better = "better" if odd.accuracy > odd.others else "worse"
    text = (
        f"{better} than its city's other sites: {100 * odd.accuracy:.1f} % right,"
        f" theirs {100 * odd.others:.1f} %"
    )
    if not odd.from_rasters:
        text += "; with one raster a site it may be this picture alone"
    return text


# ---------------------------------------------------------------------------------- the cities


def city_rows(patches: Patches, probabilities: np.ndarray) -> list[dict]:
    """Give the rows of per_city.csv: those of a test, but with intervals over sites."""
    grouped = pooled_folds.group(patches)
    counts = grouped.count(patches.right)
    share = counts.right / counts.patches
    own = site_intervals.city_intervals(counts, len(patches.classes))
    rows = accuracy.per_city(patches.true, probabilities, patches.rasters.tolist(), patches.classes)
    for city, (row, ends) in enumerate(zip(rows, own, strict=True)):
        of_sites = share[grouped.city == city]
        low, high = ends or (None, None)
        row |= {"ci95_low": low, "ci95_high": high}
        if len(of_sites):
            row["interval"] = "sites" if ends else "none: one site"
        row |= {
            "sites": len(of_sites),
            "lowest_site": float(of_sites.min()) if len(of_sites) else None,
            "highest_site": float(of_sites.max()) if len(of_sites) else None,
        }
    return rows


# ------------------------------------------------------------------------------------- the whole


def summarise(
    patches: Patches,
    predictions: tables.Predictions,
    temperatures: dict[int, float],
    odd: dict[tuple[int, str], OddSite],
) -> dict:
    """Give what metrics.json says."""
    grouped = pooled_folds.group(patches)
    untempered = {fold: 1.0 for fold in temperatures}
    plain = pooled_folds.probabilities(patches, untempered)
    true = patches.true
    rasters = predictions.rasters
    return {
        "cross_validation": True,
        **accuracy.summarise(true, predictions.probabilities),
        **accuracies(grouped, patches),
        "interval": WORDS,
        "n": len(true),
        "n_rasters": len(grouped.group_of_raster),
        "n_sites": len(grouped.city),
        "folds": sorted(temperatures),
        "raster_accuracy": accuracy.raster_accuracy(true, predictions.probabilities, rasters),
        "raster_accuracy_untempered": accuracy.raster_accuracy(true, plain, rasters),
        "ece_untempered": accuracy.calibration(true, plain).error,
        "loss": pooled_folds.mean_loss(patches, temperatures),
        "loss_untempered": pooled_folds.mean_loss(patches, untempered),
        "temperatures": {str(fold): found for fold, found in temperatures.items()},
        "temperature_from": "the other folds" if len(temperatures) > 1 else "none: one fold only",
        "spread": asdict(spread_of(grouped, patches)),
        "odd_sites": [
            {"city": patches.classes[city], "site": site, "p_value": found.p_value}
            for (city, site), found in odd.items()
        ],
        "published_split": published_split(patches),
        "colour_alone": colour_alone(grouped, patches),
        "confused_pairs": accuracy.confused_pairs(predictions.confusion_matrix(), patches.classes),
    }


def accuracies(grouped: Grouped, patches: Patches) -> dict:
    """Give the accuracy over patches and the mean over cities, with intervals over sites."""
    counts = grouped.count(patches.right)
    number = len(patches.classes)
    overall, ends = site_intervals.overall_interval(counts, number)
    alike, alike_ends = site_intervals.overall_interval(counts, number, alike=True)
    return {
        "accuracy": overall,
        "accuracy_ci95": ends,
        "mean_of_cities": alike,
        "mean_of_cities_ci95": alike_ends,
    }


def spread_of(grouped: Grouped, patches: Patches) -> site_intervals.Spread:
    """Give how far the sites of a city lie apart, beside the cities."""
    counts = grouped.count(patches.right)
    rasters = grouped.count_rasters(patches.right)
    correlation = site_intervals.raster_correlation(rasters, grouped.group_of_raster)
    worth = site_intervals.raster_noise(rasters, grouped.group_of_raster, correlation)
    share = counts.right / counts.patches
    return site_intervals.spread(counts, len(patches.classes), worth * share * (1 - share))


def published_split(patches: Patches) -> dict | None:
    """Give the one figure that the published split would have: of test patches of the first fold.

    Those are the left halves of the rasters of each city's last site (with --val site, all of
    them). None if the first fold is not there. The interval is over rasters, as a single split's
    report gives it.
    """
    chosen = patches.fold == 1
    regions = [name.rpartition("/")[0] for name in patches.names.tolist()]
    is_test = np.array([region.endswith(TEST) for region in regions])
    own = patches.only(chosen & is_test)
    if not len(own.true):
        return None
    ends, _ = intervals.accuracy_intervals(
        own.true, own.right, own.rasters.tolist(), len(own.classes)
    )
    return {
        "accuracy": float(own.right.mean()),
        "accuracy_ci95": ends,
        "n": len(own.true),
        "halves": bool((chosen & ~is_test).any()),
    }


def colour_alone(grouped: Grouped, patches: Patches) -> dict | None:
    """Give how good colour alone is, and how much better the networks are: over sites.

    None where it was not measured in every fold.
    """
    if (patches.by_colour == UNKNOWN).any():
        return None
    right = patches.by_colour == patches.true
    number = len(patches.classes)
    share, ends = site_intervals.overall_interval(grouped.count(right), number)
    lead = patches.right.astype(int) - right
    difference, difference_ends = site_intervals.paired_interval(
        grouped.count(lead), grouped.count(np.abs(lead)).right, number
    )
    return {
        "accuracy": share,
        "accuracy_ci95": ends,
        "difference": difference,
        "difference_ci95": difference_ends,
    }


# ------------------------------------------------------------------------------------- the curve


def curve_rows(patches: Patches, folds: Sequence[Fold]) -> list[dict]:
    """Give the rows of curve.csv, by rising number of train sites: columns are the keys below.

    patches: each site's first results with all train sites, which are the last row. A row has the
    sites that all of its folds and these share. Empty where there are no folds with fewer sites.
    """
    numbers = sorted({fold.training_sites for fold in folds if fold.training_sites is not None})
    known = set(zip(patches.true.tolist(), patches.sites.tolist(), patches.fold, strict=True))
    rows = []
    for number in numbers:
        own = pooled_folds.read([fold for fold in folds if fold.training_sites == number])
        _check_cities(own, patches)
        keys = zip(own.true.tolist(), own.sites.tolist(), own.fold, strict=True)
        rows.append(_curve_row(str(number), own.only(np.array([key in known for key in keys]))))
    return [*rows, _curve_row(ALL, patches)] if rows else []


def _check_cities(own: Patches, patches: Patches) -> None:
    if own.classes != patches.classes:
        raise pooled_folds.other_cities("the folds with fewer train sites", "those with all")


def _curve_row(number: str, patches: Patches) -> dict:
    grouped = pooled_folds.group(patches)
    found = accuracies(grouped, patches)
    low, high = found["accuracy_ci95"] or (None, None)
    alike_low, alike_high = found["mean_of_cities_ci95"] or (None, None)
    return {
        "training_sites": number,
        "folds": len(np.unique(patches.fold)),
        "sites": len(grouped.city),
        "patches": len(patches.true),
        "accuracy": found["accuracy"],
        "low": low,
        "high": high,
        "mean_of_cities": found["mean_of_cities"],
        "mean_low": alike_low,
        "mean_high": alike_high,
    }
