"""The tables of several models: their differences and how far they agree."""

from pathlib import Path

import numpy as np
import pytest

from dl_slicer.results import runs_table
from dl_slicer.results.paired_intervals import paired_interval
from dl_slicer.results.saved_predictions import Circumstances, SavedPredictions

CITIES = ("Aa (AAA)", "Bb (BBB)", "Cc (CCC)", "Dd (DDD)")
MADE = Circumstances(48, "best.pth", "patches", "test_b", "resnet18", False, None, None, 28, None)


def predictions(right, order=None):
    """12 patches of two rasters in each of four cities. right: (48,) bool, in city order."""
    order = np.arange(48) if order is None else order
    city = [CITIES[i // 12] for i in order]
    other = [CITIES[(i // 12 + 1) % 4] for i in order]
    found = [true if right[i] else wrong for i, true, wrong in zip(order, city, other, strict=True)]
    return SavedPredictions(
        Path("results"),
        MADE,
        [f"patch{i}" for i in order],
        [f"raster{i // 6}" for i in order],
        city,
        found,
        np.ones(48),
        np.ones(48),
    )


def test_a_difference_is_that_of_the_same_patches_in_any_order():
    rng = np.random.default_rng(0)
    right_a, right_b = rng.random((2, 48)) < 0.7
    a = predictions(right_a)
    b = predictions(right_b, rng.permutation(48))
    difference, interval = paired_interval(a.labels, right_a, right_b, a.rasters, 4)
    found = runs_table.difference(("a", a), ("b", b))
    assert found == ("a", "b", difference, *interval, 48, 8)
    assert difference == pytest.approx(right_a.mean() - right_b.mean())


def test_models_on_other_patches_have_no_difference():
    a = predictions(np.ones(48, bool))
    b = predictions(np.ones(48, bool))
    b.patches[7] = "another"
    assert runs_table.difference(("a", a), ("b", b)) is None


def test_agreement_is_the_rank_correlation_of_the_cities():
    def with_accuracies(*twelfths):
        return predictions(np.concatenate([np.arange(12) < count for count in twelfths]))

    a = ("a", with_accuracies(2, 5, 7, 12))
    assert runs_table.agreement(a, ("b", with_accuracies(1, 2, 3, 4))) == ("a", "b", 1, 4)
    assert runs_table.agreement(a, ("b", with_accuracies(9, 8, 7, 0)))[2] == pytest.approx(-1)
    # Ranks 1 2 3 4 and 2 1 3 4: 1 - 6 * 2 / (4 * 15).
    assert runs_table.agreement(a, ("b", with_accuracies(3, 1, 7, 9)))[2] == pytest.approx(0.8)
    assert runs_table.agreement(a, ("b", with_accuracies(5, 5, 5, 5)))[2] is None


def test_many_pairs_stand_in_their_file_alone():
    row = dict.fromkeys(("top1", "top5", "macro_f1", "whole_rasters"), 0.5) | {
        "model": "m",
        "report": "m/test_b/report.html",
        "parameters": 11_200_000,
        "epochs": None,
        "hours": None,
        "top1_low": None,
        "top1_high": None,
        "patches": 48,
        "rasters": 8,
        "test_patches": "published test_b",
        "epoch": None,
        "chosen_epoch": "as published",
    }
    pair = ("m", "n", -0.012, -0.05, 0.04, 48, 8)
    agreement = ("m", "n", None, 4)
    few = list(runs_table.markdown([row], [pair], [agreement]))
    assert few[3].startswith("| [m](m/test_b/report.html) | 11.2 |  |  | 50.0 |  | 50.0 |")
    assert few[-1] == "| m | n | -1.2 | -5.0 to +4.0 |  |"
    many = list(runs_table.markdown([row], [pair] * 31, [agreement]))
    assert "differences.csv" in many[-1]
