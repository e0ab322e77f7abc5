"""Which sites are odd ones out: those that do far better or worse than their city's other sites.

A site is named if two things hold together: its distance from its city's other sites is more than
the chance of their few rasters makes, and it is far more than sites of a city usually differ. Both
allow for the number of sites that are looked at: of 100 tests without an odd site about five name
one (found: docs/statistics.md).

Accuracies are compared as logits: there sites are spread about as far near 95 % as near 50 %. A
site counts as many patches as its rasters are worth, and half a patch more right and wrong
(Haldane, Annals of Human Genetics 20, 1956), so that 100 % is a number, too.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from dl_slicer.results.intervals import RasterCounts
from dl_slicer.results.site_intervals import raster_correlation, raster_noise

MOST_CHANCE = 0.05  # of naming any site where none is odd
DRAWS = 2000
MOST_REMOVED = 60  # sites that are looked at
SHARED = 4  # windows at half a stride show each place four times


@dataclass(frozen=True)
class OddSite:
    """A site, by its number; accuracies in 0 .. 1. others: of its city's other sites together.

    p_value: how often one of all sites is so far off or more by chance, where none is odd.
    from_rasters: whether it is known that the chance of its rasters does not make it; where every
    site has one raster, the site cannot be told from the picture.
    """

    site: int
    accuracy: float
    others: float
    p_value: float
    from_rasters: bool


def find(rasters: RasterCounts, site: np.ndarray) -> list[OddSite]:
    """Find the odd ones among the M sites of R rasters, the oddest first.

    site (R,) int, 0 .. M - 1: which site each raster is of.
    """
    patches = np.bincount(site, rasters.patches)
    right = np.bincount(site, rasters.right)
    city = np.zeros(len(patches), int)
    city[site] = rasters.city
    correlation = raster_correlation(rasters, site)
    worth = raster_noise(rasters, site, correlation)
    worth = np.where(np.isnan(worth), SHARED / patches, worth)
    share = (right / patches + worth / 2) / (1 + worth)
    noise = worth / (share * (1 - share))  # the variance of the logit
    removed = remove_farthest(special.logit(share)[None], city, float(noise.mean()))
    taken = removed.site[0]
    if not len(taken):
        return []
    by_rasters = _chance_of_rasters(removed.distance[0], taken, city, site, noise)
    chance = np.fmax(_chance_among_sites(removed.ratio[0], city), by_rasters)
    return [
        OddSite(
            site=int(number),
            accuracy=float(right[number] / patches[number]),
            others=_of_others(number, city, right, patches),
            p_value=float(chance[k]),
            from_rasters=correlation is not None,
        )
        for k, number in enumerate(taken)
        if chance[k] < MOST_CHANCE
    ]


def _of_others(number: int, city: np.ndarray, right: np.ndarray, patches: np.ndarray) -> float:
    others = city == city[number]
    others[number] = False
    return float(right[others].sum() / patches[others].sum())


class Removed(NamedTuple):
    """The sites that were taken away one after the other: L of them, in each of D data sets."""

    site: np.ndarray  # (D, L) int
    distance: np.ndarray  # (D, L): from the mean of what is left of its city
    ratio: np.ndarray  # (D, L): that distance over its standard error, by the spread that is left


def remove_farthest(values: np.ndarray, city: np.ndarray, least: float = 0) -> Removed:
    """Take the site away that is farthest from the others of its city, then the next, and so on.

    values (D, M); city (M,) int; least: the variance below which that of sites is not believed to
    lie. How far is told by the spread of those that are left, all cities together, without the
    site itself (externally studentised). Of a city the majority stays, of two sites one, which is
    the one that is less far from the median of all; at most one is taken for each city.
    """
    _, city, sites = np.unique(city, return_inverse=True, return_counts=True)
    may_lose = np.where(sites == 2, 1, (sites - 1) // 2)
    freedom = len(city) - len(sites)
    count = min(MOST_REMOVED, int((sites > 1).sum()), max(0, freedom - 1))
    member = np.eye(len(sites))[city]  # (M, C)
    is_kept = np.ones(values.shape, bool)
    off = np.abs(values - np.median(values, axis=1, keepdims=True))
    off = 1e-9 * off / off.max(axis=1, keepdims=True).clip(1e-12)  # decides between equals
    every = np.arange(len(values))
    steps = []
    for step in range(count):
        left = (is_kept @ member)[:, city]
        mean = ((is_kept * values) @ member)[:, city] / left.clip(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = (values - mean) * left / (left - 1)
            square = distance**2 * (left - 1) / left
        possible = is_kept & (left > 1) & (left > (sites - may_lose)[city])
        total = (is_kept * (values - mean) ** 2).sum(axis=1, keepdims=True)
        spread = np.maximum(total - square, 0) / (freedom - step - 1)
        ratio = np.sqrt(square / np.maximum(spread, max(least, 1e-12)))
        farthest = np.where(possible, ratio * (1 + off), -1).argmax(axis=1)
        steps.append((farthest, distance[every, farthest], ratio[every, farthest]))
        is_kept[every, farthest] = False
    if not steps:
        nothing = np.zeros((len(values), 0))
        return Removed(nothing.astype(int), nothing, nothing)
    return Removed(*(np.stack(column, axis=1) for column in zip(*steps, strict=True)))


def _chance_of_rasters(
    distance: np.ndarray, taken: np.ndarray, city: np.ndarray, site: np.ndarray, noise: np.ndarray
) -> np.ndarray:
    """P value (L,) of each distance, were rasters alone its cause; NaN where that is not known.

    By Student's t, times the number of sites (Bonferroni). taken (L,): the sites; city (M,); noise
    (M,): the variance of each site's logit. What is left of a city is taken to be as uncertain as
    one of its sites is in the mean.
    """
    freedom = len(site) - len(city)
    if freedom < 1:
        return np.full(len(taken), np.nan)
    of_city = np.bincount(city, noise)[city] / np.bincount(city)[city]
    error = np.sqrt(noise[taken] + of_city[taken])
    return np.minimum(1, 2 * stats.t.sf(np.abs(distance) / error, freedom) * len(city))


def _chance_among_sites(ratio: np.ndarray, city: np.ndarray) -> np.ndarray:
    """P value (L,) of the ratios of remove_farthest(), were no site odd.

    By draws of normal sites in the same cities. The first site taken away is compared with the
    first of each draw, the second with the second: many odd sites do not hide one another (Rosner,
    Technometrics 25, 1983). The least such share is compared with the least of each draw (Westfall
    and Young, Resampling-Based Multiple Testing, 1993). A site has the smallest p value of its own
    and of all that were taken after it.
    """
    _, number = np.unique(city, return_inverse=True)
    by_step, least = _ratios_by_chance(tuple(number.tolist()))
    shares = [_share_above(by_step[:, k], value) for k, value in enumerate(ratio)]
    adjusted = np.searchsorted(least, shares, side="right") / len(least)
    return np.minimum.accumulate(adjusted[::-1])[::-1]


def _share_above(ordered: np.ndarray, value: float) -> float:
    """Give the share of some values, in order, that are as large as one or larger; above 0."""
    above = len(ordered) - np.searchsorted(ordered, value)
    return (1 + above) / (1 + len(ordered))


@lru_cache(maxsize=8)
def _ratios_by_chance(city: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Draw the ratios of remove_farthest() where no site is odd.

    Returns (DRAWS, L), each column sorted; and of each draw the smallest of the shares that its
    ratios have there: (DRAWS,), sorted.
    """
    drawn = np.random.default_rng(0).standard_normal((DRAWS, len(city)))
    ratio = remove_farthest(drawn, np.array(city)).ratio
    by_step = np.sort(ratio, axis=0)
    shares = np.ones(DRAWS)
    for k in range(ratio.shape[1]):
        above = DRAWS - np.searchsorted(by_step[:, k], ratio[:, k])
        shares = np.minimum(shares, (1 + above) / (1 + DRAWS))
    return by_step, np.sort(shares)
