"""Paired intervals: Tango's, computed the slow way, and coverage of the truth."""

import numpy as np
import pytest
from scipy import optimize, stats

from dl_slicer.results import intervals, paired_intervals
from dl_slicer.results.paired_intervals import effective_freedom, paired_interval, tango


def slow_limits(only_a, only_b, pairs):
    """Tango's limits on a grid of differences, each judged at the likeliest shares under it."""
    inside = []
    for supposed in np.linspace(-0.999, 0.999, 1999):

        def cost(share_b, supposed=supposed):
            shares = np.array([share_b + supposed, share_b, 1 - 2 * share_b - supposed])
            counts = np.array([only_a, only_b, pairs - only_a - only_b])
            return -(counts * np.log(np.maximum(shares, 1e-300))).sum()

        bounds = (max(0, -supposed), (1 - supposed) / 2)
        share_b = optimize.minimize_scalar(cost, bounds=bounds, method="bounded").x
        error = np.sqrt((2 * share_b + supposed - supposed**2) / pairs)
        if abs((only_a - only_b) / pairs - supposed) <= stats.norm.ppf(0.975) * error:
            inside.append(supposed)
    return min(inside), max(inside)


@pytest.mark.parametrize("only_a, only_b, pairs", [(9, 2, 50), (0, 1, 44), (0, 0, 30)])
def test_tangos_interval_is_the_one_computed_the_slow_way(only_a, only_b, pairs):
    found = tango((only_a - only_b) / pairs, (only_a + only_b) / pairs, pairs, np.inf)
    assert found == pytest.approx(slow_limits(only_a, only_b, pairs), abs=0.0011)


def test_limits_lie_on_both_sides_of_the_difference_and_within_its_range():
    rng = np.random.default_rng(0)
    for _ in range(300):
        difference = rng.uniform(-1, 1) * rng.integers(0, 2)
        differing = rng.uniform(abs(difference), 1)
        freedom = rng.choice([1, 1.3, 5, 300])
        low, high = tango(difference, differing, rng.choice([1.5, 4, 50, 1e4]), freedom)
        assert -1 <= low <= difference <= high <= 1
        assert low < high
    assert tango(1, 1, 10, 5)[1] == 1
    assert tango(-1, 1, 10, 5) == pytest.approx([-end for end in tango(1, 1, 10, 5)[::-1]])


def test_freedom_is_rasters_less_groups_and_less_where_sizes_differ():
    equal = [np.full(3, 100.0), np.full(3, 100.0)]
    assert effective_freedom(equal, 0.3) == pytest.approx(4)
    assert 2 < effective_freedom([np.array([20.0, 100, 171])] * 2, 0.3) < 3.5
    # Drawn the slow way: the freedom of a variance is 2 mean^2 / variance.
    size = np.array([20.0, 171, 60, 100])
    spread = np.sqrt(size * (1 + (size - 1) * 0.2))
    drawn = np.random.default_rng(0).normal(0, spread, (200_000, 4)).var(1, ddof=1)
    slow = 2 * drawn.mean() ** 2 / drawn.var()
    assert effective_freedom([size], 0.2) == pytest.approx(slow, rel=0.02)


# Coverage


def simulated(rng, rasters, accuracy, own, correlation=0.7):
    """Two equal models on cities with so many rasters of 20 to 171 patches.

    Each model finds each raster easier or harder by a draw of its own, of standard deviation `own`
    on the scale of a probit, and both err on the same patches as far as `correlation` says.
    Returns the city of each patch, whether each model is right, and its raster.
    """
    city = np.repeat(np.arange(len(rasters)), rasters)
    size = rng.integers(20, 172, len(city))
    raster = np.repeat(np.arange(len(city)), size)
    level = stats.norm.ppf(accuracy) * np.sqrt(1 + own**2)
    common = np.sqrt(correlation) * rng.normal(size=len(raster))
    right = []
    for _ in range(2):
        ease = level + rng.normal(0, own, len(city))[raster]
        alone = np.sqrt(1 - correlation) * rng.normal(size=len(raster))
        right.append(ease + common + alone > 0)
    return city[raster], *right, raster.tolist()


@pytest.mark.parametrize(
    "rasters, accuracy, own, times",
    [
        ([5, 6, 7, 8] * 11 + [6], 0.84, 0.7, 100),
        ([3] * 6, 0.6, 0.7, 200),
        ([2, 2], 0.84, 0.7, 200),
        ([1] * 6, 0.9, 1, 200),
    ],
)
def test_intervals_of_equal_models_hold_zero(monkeypatch, rasters, accuracy, own, times):
    monkeypatch.setattr(intervals, "DRAWS", 300)
    rng = np.random.default_rng(2)
    overall, of_cities, over_patches = [], [], []
    for seed in range(times):
        true, right_a, right_b, names = simulated(rng, rasters, accuracy, own)
        (low, high), per_city = paired_intervals.paired_intervals(
            true, right_a, right_b, names, len(rasters), seed
        )
        overall.append(low <= 0 <= high)
        of_cities += [ends[0] <= 0 <= ends[1] for ends in per_city if ends]
        difference = np.subtract(right_a, right_b, dtype=float)
        half = 1.96 * difference.std() / np.sqrt(len(difference))
        over_patches.append(abs(difference.mean()) <= half)
    assert 0.91 <= np.mean(overall) <= 0.995  # and the chance of so few simulations
    assert np.mean(over_patches) < 0.6
    assert len(of_cities) == times * sum(count > 1 for count in rasters)
    if of_cities:
        assert 0.92 <= np.mean(of_cities) <= 0.99


def test_what_makes_a_raster_hard_for_both_cancels_out():
    """The interval of the difference is far narrower than those of the accuracies."""
    rng = np.random.default_rng(0)
    hard = rng.random(12) < 0.5
    raster = np.repeat(np.arange(12), 100)
    true = raster // 6
    right_a = rng.random(1200) < np.where(hard, 0.3, 0.9)[raster]
    right_b = right_a ^ (rng.random(1200) < 0.02)
    difference, (low, high) = paired_interval(true, right_a, right_b, raster.tolist(), 2)
    assert difference == pytest.approx(right_a.mean() - right_b.mean())
    (alone_low, alone_high), _ = intervals.accuracy_intervals(true, right_a, raster.tolist(), 2)
    assert high - low < 0.2 * (alone_high - alone_low)
    assert low < difference < high


def test_the_order_of_models_only_changes_the_sign():
    true, right_a, right_b, names = simulated(np.random.default_rng(3), [2, 3, 1, 1], 0.8, 0.7)
    difference, (low, high) = paired_interval(true, right_a, right_b, names, 4)
    turned, ends = paired_interval(true, right_b, right_a, names, 4)
    assert turned == -difference
    assert ends == pytest.approx((-high, -low))


def test_intervals_where_nothing_differs():
    true = np.repeat([0, 1], 300)
    names = np.repeat(list("abcdef"), 100).tolist()
    right = np.arange(600) % 3 > 0
    difference, (low, high) = paired_interval(true, right, right, names, 2)
    assert difference == 0
    assert high == pytest.approx(-low)
    assert 0.4 < high < 0.8  # six rasters are six patches
    # So are those of a city where nothing differs, beside one that says how rasters vary.
    right_b = right.copy()
    right_b[:20] = ~right[:20]
    overall, cities = paired_intervals.paired_intervals(true, right, right_b, names, 3)
    assert overall[0] < 0 < overall[1]
    assert cities[1][0] < 0 < cities[1][1]
    assert cities[2] is None
    # Of one raster nothing can be said.
    one = paired_interval(true * 0, right, right_b, ["a"] * 600, 3)
    assert one == (pytest.approx(right.mean() - right_b.mean()), None)
    assert paired_intervals.paired_intervals(true * 0, right, right_b, ["a"] * 600, 3) == (
        None,
        [None] * 3,
    )


@pytest.mark.parametrize(
    "rasters, share", [(2, "94 to 100"), (7, "94 to 100"), (12, "90 to 100"), (20, "91 to 100")]
)
def test_few_rasters_are_said(rasters, share):
    said = paired_intervals.describe_coverage(rasters)
    assert f"only {rasters} rasters" in said and f"{share} of 100" in said


def test_many_rasters_need_no_words():
    assert paired_intervals.describe_coverage(21) is None
