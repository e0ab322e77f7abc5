"""Names of sites exchanged: all ways by hand, and many of them by lot."""

import itertools

import numpy as np
import pytest

from dl_slicer.results.exchanged_sites import exchange_sites


def made_up(cities, sites, patches, seed=0):
    rng = np.random.default_rng(seed)
    true = np.repeat(np.arange(cities), sites * patches)
    site = [f"site{number}" for number in np.tile(np.repeat(np.arange(sites), patches), cities)]
    predicted = np.where(rng.random(len(true)) < 0.6, true, rng.integers(0, cities, len(true)))
    return true, predicted, site


@pytest.mark.parametrize("cities, sites", [(4, 1), (3, 2)])
def test_all_ways_one_patch_at_a_time(cities, sites):
    true, predicted, site = made_up(cities, sites, 10)
    units = sorted(set(zip(true.tolist(), site, strict=True)))
    accuracies = []
    for order in itertools.permutations(range(len(units))):
        named = {unit: units[k][0] for unit, k in zip(units, order, strict=True)}
        names = [named[key] for key in zip(true.tolist(), site, strict=True)]
        accuracies.append(np.mean(predicted == names))
    found = exchange_sites(true, predicted, site, cities)
    assert found.ways == len(accuracies) and found.is_all
    assert found.median == pytest.approx(np.median(accuracies))
    assert found.p95 == pytest.approx(np.percentile(accuracies, 95, method="higher"))
    actual = np.mean(predicted == true)
    assert found.at_least == pytest.approx(np.mean(np.array(accuracies) >= actual - 1e-12))
    assert found.chance == 1 / cities
    assert found.sites == cities * sites


def test_where_there_are_too_many_ways_some_are_drawn():
    true, predicted, site = made_up(12, 1, 20)
    found = exchange_sites(true, predicted, site, 12, most_ways=2000)
    assert (found.ways, found.is_all) == (2000, False)
    assert found == exchange_sites(true, predicted, site, 12, most_ways=2000)
    assert found.median == pytest.approx(1 / 12, abs=0.05)
    assert found.median < found.p95 < np.mean(predicted == true)
    assert 1 / 2001 <= found.at_least < 0.01  # the true way is one of them


def test_a_site_taken_for_one_thing_makes_chance_wide():
    """Each of four sites is taken for one city as a whole: right or wrong together."""
    true = np.repeat(np.arange(4), 30)
    found = exchange_sites(true, true, ["s"] * 120, 4)
    assert found.median == 0.25  # 9 of 24 ways give 0, 8 give a quarter
    assert found.p95 == 0.5
    assert found.at_least == pytest.approx(1 / 24)
