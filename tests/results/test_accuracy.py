"""Figures by hand, calibration, and intervals that must cover the truth."""

import numpy as np
import pytest

from dl_slicer.results import accuracy, intervals
from dl_slicer.results.accuracy import calibration

CITIES = [f"City {c} ({c})" for c in "ABCDEFG"]


def test_figures_by_hand():
    true = np.array([0, 0, 0, 1, 2, 2])
    probabilities = np.eye(7)[[0, 0, 1, 1, 2, 0]] * 0.9 + np.linspace(0, 0.01, 7)
    overall = accuracy.summarise(true, probabilities)
    assert overall["accuracy"] == pytest.approx(4 / 6)
    recall = (2 / 3 + 1 + 1 / 2) / 3
    assert overall["balanced_accuracy"] == overall["macro_recall"] == pytest.approx(recall)
    # over the three cities that have patches
    assert overall["macro_precision"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    # twice the true class ranks sixth or lower
    assert overall["top5_accuracy"] == pytest.approx(4 / 6)
    rows = accuracy.per_city(true, probabilities, ["a", "a", "b", "c", "d", "d"], CITIES)
    assert rows[0]["precision"] == pytest.approx(2 / 3)
    assert rows[0]["most_confused_with"] == "City B (B)"
    assert rows[1]["most_confused_with"] == ""
    assert [(row["n"], row["rasters"], row["interval"]) for row in rows[:4]] == [
        (3, 2, "rasters"),
        (1, 1, "none: one raster"),
        (2, 1, "none: one raster"),
        (0, 0, "none: no patches"),
    ]
    assert rows[0]["ci95_low"] < rows[0]["accuracy"] == rows[0]["recall"] < rows[0]["ci95_high"]
    assert rows[1]["ci95_low"] is None
    assert rows[3]["accuracy"] is rows[3]["f1"] is None


def test_calibration_by_hand():
    # 15 bins: 0.6 is the upper end of the ninth bin, 0.95 and 1 lie in the last
    probabilities = np.array([[0.6, 0.4], [0.4, 0.6], [0.95, 0.05], [1.0, 0.0]])
    error, counts, confidence, accuracy = calibration(np.array([0, 0, 0, 0]), probabilities)
    assert counts[8] == 2
    assert counts[14] == 2
    assert counts.sum() == 4
    assert accuracy[8] == 0.5
    assert confidence[8] == pytest.approx(0.6)
    assert accuracy[14] == 1
    assert np.isnan(accuracy[0])
    assert error == pytest.approx((2 * 0.1 + 2 * 0.025) / 4)


def test_calibration_of_honest_and_of_boastful_probabilities():
    rng = np.random.default_rng(0)
    share = rng.uniform(0.5, 1, 50000)
    true = (rng.random(50000) > share).astype(int)
    assert calibration(true, np.stack([share, 1 - share], 1))[0] < 0.01
    assert calibration(true, np.eye(2)[np.zeros(50000, int)])[0] == pytest.approx(0.25, abs=0.01)


def test_whole_rasters():
    true = np.array([0, 0, 0, 1, 1, 1])
    rasters = ["a", "a", "a", "a", "b", "b"]  # a raster's name may be that of another city's
    probabilities = np.array(
        [[0.9, 0.1], [0.4, 0.6], [0.4, 0.6], [0.8, 0.2], [0.1, 0.9], [0.6, 0.4]]
    )
    assert accuracy.raster_accuracy(true, probabilities, rasters) == pytest.approx(2 / 3)


def test_confused_pairs():
    matrix = np.array([[8, 2, 0], [1, 9, 0], [0, 1, 19]])
    pairs = accuracy.confused_pairs(matrix, ["A", "B", "C"])
    assert pairs == [
        {"a": "A", "b": "B", "a_as_b": 2, "b_as_a": 1, "n": 3, "share": 3 / 20},
        {"a": "B", "b": "C", "a_as_b": 0, "b_as_a": 1, "n": 1, "share": 1 / 30},
    ]
    assert accuracy.confused_pairs(np.diag([3, 4]), ["A", "B"]) == []


# Intervals


def test_wilson_interval_is_the_known_one():
    # Newcombe, Statistics in Medicine 17, 1998, table I: 81 of 263 and 0 of 20
    assert intervals.wilson(81 / 263, 263, np.inf) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert intervals.wilson(0, 20, np.inf) == pytest.approx((0, 0.1611), abs=5e-5)


def simulated(rng, rasters, accuracy, correlation, patches=100):
    """A test of cities with so many rasters: the city of each patch, if it is right, its raster.

    Each raster has its own share of right patches, drawn from a beta distribution.
    """
    city = np.repeat(np.arange(len(rasters)), rasters)
    size = rng.integers(patches // 2, patches * 3 // 2, sum(rasters))
    spread = 1 / correlation - 1
    share = rng.beta(accuracy * spread, (1 - accuracy) * spread, len(city))
    right = rng.random(size.sum()) < np.repeat(share, size)
    return np.repeat(city, size), right, np.repeat(np.arange(len(city)), size).tolist()


FEW = [3] * 6
MANY = [5, 6, 7, 8] * 11 + [6]
ONE = [1] * 6


@pytest.mark.parametrize(
    "rasters, accuracy, correlation, times",
    [
        (MANY, 0.84, 0.1, 100),
        (MANY, 0.95, 0.3, 60),
        (MANY, 0.5, 0.1, 60),
        (FEW, 0.5, 0.1, 200),
        (FEW, 0.95, 0.1, 300),
        ([2] * 6, 0.84, 0.1, 300),
        (ONE, 0.5, 0.2, 300),
        (ONE, 0.95, 0.05, 300),
        ([1, 1, 2, 3, 5, 5], 0.84, 0.1, 300),
    ],
)
def test_intervals_cover_the_truth(monkeypatch, rasters, accuracy, correlation, times):
    monkeypatch.setattr(intervals, "DRAWS", 400)
    rng = np.random.default_rng(1)
    overall, cities, binomial = [], [], []
    for seed in range(times):
        true, right, names = simulated(rng, rasters, accuracy, correlation)
        (low, high), per_city = intervals.accuracy_intervals(true, right, names, len(rasters), seed)
        overall.append(low <= accuracy <= high)
        cities += [ends[0] <= accuracy <= ends[1] for ends in per_city if ends]
        half = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / len(right))
        binomial.append(abs(right.mean() - accuracy) <= half)
    assert 0.90 <= np.mean(overall) <= 0.99  # 0.98, and the chance of so many simulations
    assert np.mean(binomial) < 0.75
    assert len(cities) == times * sum(count > 1 for count in rasters)
    if cities:
        assert 0.90 <= np.mean(cities) <= 0.98


def test_intervals_of_independent_patches_are_the_plain_ones():
    rng = np.random.default_rng(0)
    right = rng.random(20000) < 0.84
    names = np.repeat(np.arange(200), 100).tolist()
    (low, high), _ = intervals.accuracy_intervals(np.zeros(20000, int), right, names, 1)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.84 * 0.16 / 20000), rel=0.15)


def test_intervals_where_nothing_varies():
    def ends(true, right, names):
        return intervals.accuracy_intervals(np.array(true), np.array(right), names, 3)

    # no raster but one: nothing can be said
    assert ends([0] * 9, [True] * 8 + [False], ["a"] * 9) == (None, [None] * 3)
    # all right: six rasters are six trials, whatever their number of patches
    six_rasters = np.repeat(list("abcdef"), 100).tolist()
    (low, high), cities = ends(np.repeat([0, 1], 300), [True] * 600, six_rasters)
    assert high == 1
    assert 0.3 < low < 0.7
    assert cities[2] is None
    assert cities[0] == cities[1]
    assert cities[0][0] < 0.7
    assert cities[0][1] == 1
    # equal rasters: not narrower than independent patches would be
    three_in_four = [True, True, True, False]
    four_rasters = np.repeat(list("abcd"), 50).tolist()
    (low, high), _ = ends(np.repeat([0, 1], 100), np.tile(three_in_four, 50), four_rasters)
    assert high - low > 2 * 1.96 * np.sqrt(0.75 * 0.25 / 200)
    # one city with one raster beside others
    three_rasters = np.repeat(list("abc"), 40).tolist()
    (low, high), cities = ends(np.repeat([0, 0, 1], 40), np.tile(three_in_four, 30), three_rasters)
    assert 0 <= low < 0.75 < high <= 1
    assert cities[1] is None
    assert cities[0]


def test_one_city_alone_has_the_interval_of_all():
    true, right, names = simulated(np.random.default_rng(0), [3], 0.8, 0.1)
    overall, (city,) = intervals.accuracy_intervals(true, right, names, 1)
    assert city == pytest.approx(overall, abs=0.02)
    twice = np.tile(true, 2) + np.repeat([0, 1], len(true))
    (low, high), _ = intervals.accuracy_intervals(twice, np.tile(right, 2), [*names, *names], 2)
    assert high - low < 0.7 * (overall[1] - overall[0])


def test_the_same_data_give_the_same_interval():
    true, right, names = simulated(np.random.default_rng(3), FEW, 0.8, 0.1)
    first = intervals.accuracy_intervals(true, right, names, 6)
    assert first == intervals.accuracy_intervals(true, right, names, 6)


@pytest.mark.parametrize(
    "true, rasters, said",
    [
        ([0, 0], ["a", "a"], "none: all patches are from one raster"),
        ([0, 0, 1, 1], list("abcd"), "counts as a raster of its own"),
        (
            [0, 0, 1, 1],
            list("aabb"),
            "bootstrap over 2 rasters, within each city;"
            " 2 cities have one raster only and are drawn as one group",
        ),
        ([0, 0, 0, 1], list("aabc"), "the one city with one raster only is drawn with another"),
        ([0, 0, 0, 1, 1, 1], list("aabccd"), "bootstrap over 4 rasters, within each city"),
    ],
)
def test_what_an_interval_is_over(true, rasters, said):
    assert said in intervals.describe_interval(np.array(true), rasters)


def test_what_is_not_known_of_rasters_stands_with_the_interval():
    said = intervals.describe_interval(
        np.array([0, 0, 1, 1]), list("abcd"), ["one is odd", "or two"]
    )
    assert said.endswith("too narrow if several come from one raster; one is odd; or two")
