"""Intervals over sites: formulas recomputed the slow way, and the truth that they must hold."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.site_intervals import Circumstances, simulate
from dl_slicer.results import odd_sites, site_intervals
from dl_slicer.results.intervals import RasterCounts, wilson


def sites_of(*cities):
    """Counts of sites: for each city a list of (right, patches)."""
    rows = [(k, patches, right) for k, city in enumerate(cities) for right, patches in city]
    city, patches, right = np.array(rows, float).T
    return RasterCounts(city.astype(int), patches, right)


UNEQUAL = sites_of(
    [(80, 100), (30, 50), (190, 200)],
    [(99, 100), (150, 160)],
    [(10, 100), (60, 100), (55, 100), (70, 120)],
)


def test_variance_of_a_city_by_hand():
    found = site_intervals.variances(UNEQUAL, 4)
    for city, rows in enumerate(([(80, 100), (30, 50), (190, 200)], [(99, 100), (150, 160)])):
        total = sum(n for _, n in rows)
        accuracy = sum(r for r, _ in rows) / total
        squares = sum((r - accuracy * n) ** 2 for r, n in rows)
        slow = len(rows) / (len(rows) - 1) * squares / total**2
        assert found[city] == pytest.approx(slow)
    assert np.isnan(found[3])
    # Of equal sites it is the textbook's: the variance of the accuracies over their number.
    equal = site_intervals.variances(sites_of([(50, 100), (60, 100), (85, 100)]), 1)
    assert equal[0] == pytest.approx(np.var([0.5, 0.6, 0.85], ddof=1) / 3)


def test_kurtosis_is_that_of_the_beta_distribution():
    for mean, correlation in ((0.5, 0.1), (0.95, 0.05), (0.8, 0.3)):
        both = 1 / correlation - 1
        slow = stats.beta(mean * both, (1 - mean) * both).stats(moments="k")
        found = site_intervals.beta_kurtosis(np.array([mean]), correlation)
        assert found[0] == pytest.approx(float(slow))


def test_overall_interval_by_hand():
    """Two alike cities near 50 %, where a beta distribution has light tails."""
    rows = [(50, 100), (60, 100), (40, 100)]
    accuracy, ends = site_intervals.overall_interval(sites_of(rows, rows), 2)
    assert accuracy == 0.5
    variance = np.var([0.5, 0.6, 0.4], ddof=1) / 3 / 2
    assert ends == pytest.approx(wilson(0.5, 0.25 / variance, 4))
    low, high = ends
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, 4) * variance**0.5, rel=0.05)


def test_both_means():
    overall, _ = site_intervals.overall_interval(UNEQUAL, 3)
    assert overall == pytest.approx(UNEQUAL.right.sum() / UNEQUAL.patches.sum())
    alike, _ = site_intervals.overall_interval(UNEQUAL, 3, alike=True)
    assert alike == pytest.approx(np.mean([300 / 350, 249 / 260, 195 / 420]))
    # A city that was not tested does not count.
    assert site_intervals.overall_interval(UNEQUAL, 5, alike=True)[0] == pytest.approx(alike)


@pytest.mark.parametrize("right", [0, 100])
def test_where_nothing_varies_a_site_is_one_trial(right):
    counts = sites_of([(right, 100)] * 3, [(right, 100)] * 3)
    accuracy, ends = site_intervals.overall_interval(counts, 2)
    assert accuracy == right / 100
    assert ends[0] <= accuracy <= ends[1]
    assert 0.3 < ends[1] - ends[0] < 0.7


def test_where_sites_do_not_differ_a_site_is_one_trial():
    """However many patches they have: the sites of two cities are all right, of two all wrong."""
    widths = []
    for patches in (10, 1000):
        cities = [[(right * patches, patches)] * 3 for right in (0, 1, 0, 1)]
        accuracy, ends = site_intervals.overall_interval(sites_of(*cities), 4)
        assert accuracy == 0.5
        widths.append(ends[1] - ends[0])
        found = site_intervals.spread(sites_of(*cities), 4, np.full(12, np.nan))
        assert found.p_value == 0
    assert widths[0] == pytest.approx(widths[1])
    assert widths[0] > 0.4


def test_where_no_city_has_two_sites_there_is_no_interval():
    counts = sites_of([(5, 10)], [(7, 10)])
    assert site_intervals.overall_interval(counts, 2) == (0.6, None)
    assert site_intervals.city_intervals(counts, 2) == [None, None]
    assert site_intervals.paired_interval(counts, counts.right, 2)[1] is None
    spread = site_intervals.spread(counts, 2, np.full(2, np.nan))
    assert spread == site_intervals.Spread(None, None, None, None)


def test_a_city_with_one_site_widens_the_whole():
    many = [[(80, 100), (70, 100), (90, 100)]] * 3
    _, without = site_intervals.overall_interval(sites_of(*many, [(80, 100)] * 3), 4)
    _, single = site_intervals.overall_interval(sites_of(*many, [(240, 300)]), 4)
    assert single[0] < without[0]
    own = site_intervals.city_intervals(sites_of(*many, [(240, 300)]), 4)
    assert own[3] is None
    assert own[0][0] < 0.8 < own[0][1]


@pytest.mark.parametrize("cities, sites, accuracy", [(4, 3, 0.95), (12, 3, 0.8)])
def test_intervals_hold_the_truth(cities, sites, accuracy):
    """All circumstances, 2,000 simulations each: benchmarks/site_intervals.py."""
    found = simulate(Circumstances(cities, sites, accuracy, 0.6), 300)
    assert 0.90 <= found["held"] <= 0.99
    assert 0.90 <= found["held_alike"] <= 0.99
    assert found["width"] <= 1.4
    assert found["held_by_cities"] >= 0.92
    assert found["false_alarms"] <= 0.1


def test_the_interval_of_a_difference():
    same = sites_of([(0, 100)] * 3, [(0, 100)] * 3)
    difference, ends = site_intervals.paired_interval(same, np.zeros(6), 2)
    assert difference == 0
    assert ends[0] < 0 < ends[1]  # that no patch differs does not say that none would
    better = sites_of([(20, 100), (24, 100), (22, 100)], [(30, 100), (31, 100), (35, 100)])
    difference, ends = site_intervals.paired_interval(better, better.right + 4, 2)
    assert difference == pytest.approx(0.27)
    assert 0.2 < ends[0] < 0.27 < ends[1] < 0.35


def test_spread_is_taken_apart():
    """Drawn with known spreads: 3 points of rasters, 8 of sites, 5 of cities."""
    rng = np.random.default_rng(0)
    city = np.repeat(np.arange(300), 4)
    share = 0.6 + 0.05 * rng.standard_normal(300)[city] + 0.08 * rng.standard_normal(1200)
    share += 0.03 * rng.standard_normal(1200)
    counts = RasterCounts(city, np.full(1200, 1e6), 1e6 * share)
    found = site_intervals.spread(counts, 300, np.full(1200, 0.03**2))
    assert found.sites == pytest.approx(0.08, abs=0.006)
    assert found.cities == pytest.approx(0.05, abs=0.008)
    assert found.rasters == pytest.approx(0.03)
    assert found.p_value < 1e-6
    slow = stats.f_oneway(*(share[city == k] for k in range(300))).pvalue
    assert found.p_value == pytest.approx(slow)


# -------------------------------------------------------------------------------- odd ones out


def drawn_rasters(shares, rasters, seed=0):
    """Rasters of sites: shares (C, S) of right patches; 300 patches a raster."""
    rng = np.random.default_rng(seed)
    cities, sites = np.shape(shares)
    site = np.repeat(np.arange(cities * sites), rasters)
    right = rng.binomial(300, np.ravel(shares)[site]).astype(float)
    return RasterCounts(site // sites, np.full(len(site), 300.0), right), site


@pytest.mark.parametrize("rasters", [1, 3])
def test_one_odd_site_in_every_city_is_found(rasters):
    """As where one site of each city is of a sensor of its own, not the last."""
    shares = [[0.95, 0.1, 0.93], [0.9, 0.08, 0.92], [0.94, 0.12, 0.9], [0.92, 0.1, 0.95]]
    counts, site = drawn_rasters(shares, rasters)
    found = odd_sites.find(counts, site)
    assert sorted(odd.site for odd in found) == [1, 4, 7, 10]
    assert all(odd.accuracy < 0.2 and odd.others > 0.85 for odd in found)
    assert {odd.from_rasters for odd in found} == {rasters > 1}


def test_no_site_is_odd_where_all_differ_alike():
    shares = [[0.95, 0.7, 0.85], [0.6, 0.9, 0.8], [0.94, 0.75, 0.85], [0.7, 0.95, 0.8]]
    assert odd_sites.find(*drawn_rasters(shares, 3)) == []


def test_rasters_that_differ_excuse_a_site():
    """Of the odd site one raster of two fails, as others of other sites do."""
    counts, site = drawn_rasters([[0.9, 0.9, 0.9], [0.9, 0.9, 0.9], [0.9, 0.9, 0.9]], 2)
    counts.right[::2] = [290, 100, 290, 280, 110, 290, 285, 290, 105]
    counts.right[1::2] = [100, 290, 110, 120, 290, 100, 105, 110, 100]
    assert odd_sites.find(counts, site) == []


def test_of_two_sites_one_can_be_odd():
    shares = [[0.9, 0.92], [0.91, 0.9], [0.92, 0.9], [0.93, 0.9], [0.9, 0.91], [0.9, 0.05]]
    (odd,) = odd_sites.find(*drawn_rasters(shares, 3))
    assert odd.site == 11
    assert odd_sites.find(*drawn_rasters([[0.9, 0.1]], 3)) == []  # nothing to compare with


def test_the_farthest_are_taken_one_after_the_other():
    values = np.array([[0.0, 1.0, 10.0, 0.0, 1.0, -5.0, 2.0]])
    city = np.array([0, 0, 0, 1, 1, 1, 2])
    removed = odd_sites.remove_farthest(values, city)
    assert removed.site.tolist() == [[2, 5]]
    # By hand: without it the spread is that of the others, by 3 degrees of freedom.
    spread = (0.5 + (0 - -4 / 3) ** 2 + (1 - -4 / 3) ** 2 + (-5 - -4 / 3) ** 2) / 3
    assert removed.distance[0, 0] == pytest.approx(9.5)
    assert removed.ratio[0, 0] == pytest.approx(9.5 / np.sqrt(spread * 1.5))
