"""How sure an accuracy is for new sites of the same cities.

The unit is the site: rasters lie within sites, sites within cities. The cities are given, the
sites are drawn. So an interval from here holds for other sites of these cities, not for other
cities; and since the networks of the folds share training sites, their errors are not independent
and it is approximate (Bengio and Grandvalet, No unbiased estimator of the variance of K-fold
cross-validation, JMLR 5, 2004).

What is counted of each site is a RasterCounts: its M units are sites here.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from dl_slicer.results import intervals, paired_intervals
from dl_slicer.results.intervals import Interval, RasterCounts

# So much heavier than normal at most are the tails of the sites' accuracies taken to be. Without
# the bound intervals of four cities at 95 % get half as wide again as they need be.
MOST_KURTOSIS = 0.9
CERTAIN = 1e-4  # accuracies are kept so far from 0 and 1 where a variance is predicted from them


@dataclass(frozen=True)
class Spread:
    """How far accuracies lie apart, as standard deviations in shares; None where it is not known.

    sites: of the sites of a city, rasters' chance taken off. cities: of the cities, that of their
    sites taken off. rasters: what of the former comes from having measured few rasters a site.
    p_value: that cities differ so much or more by chance, if it were their sites alone that differ
    (F test of one-way analysis of variance).
    """

    sites: float | None
    cities: float | None
    rasters: float | None
    p_value: float | None


def overall_interval(
    counts: RasterCounts, cities: int, alike: bool = False
) -> tuple[float, Interval | None]:
    """Give the accuracy over all patches, and its 95 % interval over sites.

    alike: every city that has patches weighs the same, instead of as many patches as it has.
    None where no city has two sites.

    A site counts as one observation of its city, so what rasters and patches add to its spread is
    in it. The variance of the mean (stratified by city, ratio to the patches of a site: Cochran,
    Sampling Techniques, 1977, chapter 6) gives the effective number of independent patches, and
    this, with Student's t, Wilson's interval, as in intervals.py. The degrees of freedom are
    Satterthwaite's (1946), but from variances that the cities' accuracies predict with one
    correlation within sites: those of the few sites of each city are too uncertain. And they allow
    for tails heavier than normal, those of the beta distribution with that correlation: near 100 %
    sites differ little but for a few bad ones. A city with a single site gets the predicted
    variance. Where the sites of each city do not differ at all, a site counts as one trial.
    """
    sites = counts.per_city(None, cities)
    tested = np.flatnonzero(sites)
    total = counts.per_city(counts.patches, cities)[tested]
    hits = counts.per_city(counts.right, cities)[tested]
    weight = np.full(len(tested), 1 / len(tested)) if alike else total / total.sum()
    accuracy = float(weight @ (hits / total))
    if sites.max(initial=0) < 2:
        return accuracy, None
    sites = sites[tested].astype(float)
    own = variances(counts, cities)[tested]  # of a city's mean, NaN for single sites
    correlation = common_correlation(own * sites, hits / total, sites)
    # Drawn towards the mean, since a city whose three sites are all right may have worse ones.
    drawn = np.clip((hits / total * sites + accuracy) / (sites + 1), CERTAIN, 1 - CERTAIN)
    predicted = correlation * drawn * (1 - drawn) / sites
    variance = weight**2 @ np.where(sites > 1, own, predicted)
    if variance > 0:
        effective = np.clip(accuracy * (1 - accuracy) / variance, sites.sum(), total.sum())
    else:  # the spread of the sites tells nothing
        effective = sites.sum()
    freedom = _freedom(weight**2 * drawn * (1 - drawn) / sites, sites, drawn, correlation)
    return accuracy, intervals.wilson(accuracy, effective, freedom)


def variances(counts: RasterCounts, cities: int) -> np.ndarray:
    """Give the variance of each city's accuracy over sites: (cities,), NaN below two sites."""
    sites = counts.per_city(None, cities)
    total = counts.per_city(counts.patches, cities)
    with np.errstate(divide="ignore", invalid="ignore"):
        accuracy = counts.per_city(counts.right, cities) / total
        residual = counts.right - accuracy[counts.city] * counts.patches
        squares = counts.per_city(residual**2, cities)
        return np.where(sites > 1, sites / (sites - 1) * squares / total**2, np.nan)


def common_correlation(between: np.ndarray, accuracy: np.ndarray, sites: np.ndarray) -> float:
    """Give the one correlation within sites, 0 .. 1, that fits all cities.

    All are (C,), of cities: between: the variance between their sites, NaN below two sites. With
    the correlation c it is c * p (1 - p), where accuracy (1 - accuracy) is too small for p (1 - p)
    by the variance of the mean.
    """
    known = ~np.isnan(between)
    possible = (accuracy * (1 - accuracy) + between / sites)[known].sum()
    if possible <= 0:
        return 0.0
    return float(np.clip(between[known].sum() / possible, 0, 1))


def _freedom(
    variance: np.ndarray, sites: np.ndarray, accuracy: np.ndarray, correlation: float
) -> float:
    """Satterthwaite's degrees of freedom of a sum of cities' variances, all (C,), see above.

    A variance of m values whose excess kurtosis is k has as many as one of m - 1 would have that
    solve 2 / freedom = 2 / (m - 1) + k / m.
    """
    several = sites > 1
    kurtosis = np.clip(beta_kurtosis(accuracy, correlation), 0, MOST_KURTOSIS)
    of_city = np.zeros(len(sites))
    m = sites[several]
    of_city[several] = 2 / (2 / (m - 1) + kurtosis[several] / m)
    of_city[~several] = of_city.sum()  # what is predicted is as certain as all together
    return float(variance.sum() ** 2 / (variance**2 / of_city).sum())


def beta_kurtosis(mean: np.ndarray, correlation: float) -> np.ndarray:
    """Excess kurtosis of the beta distribution of a mean in 0 .. 1 and variance c m (1 - m)."""
    both = 1 / np.clip(correlation, CERTAIN, 1 - CERTAIN) - 1
    a = mean * both
    b = (1 - mean) * both
    above = (a - b) ** 2 * (both + 1) - a * b * (both + 2)
    return 6 * above / (a * b * (both + 2) * (both + 3))


def city_intervals(counts: RasterCounts, cities: int) -> list[Interval | None]:
    """Give the interval over sites of each city's accuracy, None for less than two sites.

    As intervals.city_intervals() does it for rasters: two or three sites do not tell their spread,
    so it is averaged with what all cities together predict. How often such intervals hold the
    truth was measured: docs/statistics.md.
    """
    sites = counts.per_city(None, cities)
    several = np.flatnonzero(sites > 1)
    if not len(several):
        return [None] * cities
    total = counts.per_city(counts.patches, cities)[several]
    hits = counts.per_city(counts.right, cities)[several]
    squares = counts.per_city(counts.patches**2, cities)[several]
    errors = np.sqrt(variances(counts, cities)[several])
    design = intervals.design_effect(errors, hits, total)
    weight = hits * (total - hits) / total**3
    effective, freedom = intervals.share_designs(design, weight, sites[several], total, squares)
    found: list[Interval | None] = [None] * cities
    for k, city in enumerate(several):
        found[city] = intervals.wilson(hits[k] / total[k], effective[k], freedom[k])
    return found


def spread(counts: RasterCounts, cities: int, noise: np.ndarray) -> Spread:
    """Take apart how far sites and cities differ: one-way analysis of variance of accuracies.

    Every site weighs the same. noise (M,): the variance that each site's accuracy has by the
    chance of which rasters it has, see raster_noise(); NaN where it is not known.
    """
    accuracy = counts.right / counts.patches
    sites = counts.per_city(None, cities)
    tested = np.flatnonzero(sites)
    sites = sites[tested].astype(float)
    freedom = sites.sum() - len(sites)
    if freedom < 1:
        return Spread(None, None, None, None)
    means = counts.per_city(accuracy, cities)[tested] / sites
    mean_of_site = means[np.searchsorted(tested, counts.city)]
    within = ((accuracy - mean_of_site) ** 2).sum() / freedom
    chance = np.nan if np.isnan(noise).any() else noise.mean()
    between = p_value = None
    if len(sites) > 1:
        square = (sites * (means - sites @ means / sites.sum()) ** 2).sum() / (len(sites) - 1)
        usual = (sites.sum() - (sites**2).sum() / sites.sum()) / (len(sites) - 1)
        between = float(np.sqrt(max(0, (square - within) / usual)))
        if within > 0:
            p_value = float(stats.f.sf(square / within, len(sites) - 1, freedom))
        elif square > 0:
            p_value = 0.0
    return Spread(
        sites=float(np.sqrt(max(0, within - np.nan_to_num(chance)))),
        cities=between,
        rasters=None if np.isnan(chance) else float(np.sqrt(chance)),
        p_value=p_value,
    )


def raster_correlation(rasters: RasterCounts, site: np.ndarray) -> float | None:
    """Give the correlation of patches within a raster, 0 .. 1, beyond that of their site.

    rasters: what was counted of each of R rasters; site (R,) int: which site it is of. None where
    no site has two rasters.
    """
    of_sites = RasterCounts(site, rasters.patches, rasters.right)
    sites = int(site.max()) + 1
    number = of_sites.per_city(None, sites)
    own = variances(of_sites, sites)
    total = of_sites.per_city(of_sites.patches, sites)
    hits = of_sites.per_city(of_sites.right, sites)
    if number.max() < 2:
        return None
    return common_correlation(own * number, hits / total, number)


def raster_noise(rasters: RasterCounts, site: np.ndarray, correlation: float | None) -> np.ndarray:
    """Give 1 / the number of patches that each of M sites is worth: (M,), NaN if it is not known.

    Times p (1 - p) it is the variance that a site's accuracy has by the chance of its rasters.
    The arguments are as of, and from, raster_correlation().
    """
    total = np.bincount(site, rasters.patches)
    if correlation is None:
        return np.full(len(total), np.nan)
    squares = np.bincount(site, rasters.patches**2)
    return np.maximum(correlation * squares / total**2, 1 / total)


def paired_interval(
    counts: RasterCounts, differing: np.ndarray, cities: int
) -> tuple[float, Interval | None]:
    """Give the accuracy of a less that of b over all patches, and its 95 % interval over sites.

    counts.right: of each of M sites the patches that a recognised less those that b did; differing
    (M,): the patches that one of the two alone recognised. Tango's interval for paired shares, as
    in paired_intervals.py, with the sites' variance and degrees of freedom. None where no city has
    two sites.
    """
    sites = counts.per_city(None, cities)
    total = counts.patches.sum()
    difference = float(counts.right.sum() / total)
    several = sites > 1
    if not several.any():
        return difference, None
    own = variances(counts, cities)[several]
    weight = (counts.per_city(counts.patches, cities) / total)[several]
    # Cities with a single site count as the others do in the mean.
    variance = weight**2 @ own / weight.sum() ** 2
    share = float(differing.sum() / total)
    independent = share - difference**2
    effective = sites.sum() if variance <= 0 else independent / variance
    effective = np.clip(effective, sites.sum(), total)
    spread_evenly = weight**2 / sites[several]
    freedom = spread_evenly.sum() ** 2 / (spread_evenly**2 / (sites[several] - 1)).sum()
    return difference, paired_intervals.tango(difference, share, effective, float(freedom))
