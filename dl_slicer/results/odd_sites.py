"""Which sites are odd ones out: those that do far better or worse than their city's other sites.

A site is named if two things hold together: its distance from its city's middle site is more than
the chance of its few rasters makes, and it is far more than sites of a city usually differ. Both
allow for the number of sites that are looked at: of 100 tests without an odd site about five name
one (found: docs/statistics.md).

Accuracies are compared as logits: there sites are spread about as far near 95 % as near 50 %. A
site counts as many patches as its rasters are worth, and half a patch more right and wrong
(Haldane, Annals of Human Genetics 20, 1956), so that 100 % is a number, too.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special, stats

from dl_slicer.results.intervals import RasterCounts
from dl_slicer.results.site_intervals import raster_correlation, raster_noise

MOST_CHANCE = 0.05  # of naming any site where none is odd
DRAWS = 4000
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
    variance = worth / (share * (1 - share))  # of the logit
    distance, scale = distances(special.logit(share), city)
    scale = max(float(scale), np.sqrt(variance.mean()))
    by_rasters = _chance_of_rasters(distance, city, site, variance)
    by_sites = _chance_among_sites(np.abs(distance) / scale, city)
    chance = np.fmax(by_sites, by_rasters)
    return [
        OddSite(
            site=int(number),
            accuracy=float(right[number] / patches[number]),
            others=_of_others(number, city, right, patches),
            p_value=float(chance[number]),
            from_rasters=correlation is not None,
        )
        for number in np.lexsort((-np.abs(distance), chance))
        if chance[number] < MOST_CHANCE
    ]


def _of_others(number: int, city: np.ndarray, right: np.ndarray, patches: np.ndarray) -> float:
    others = city == city[number]
    others[number] = False
    return float(right[others].sum() / patches[others].sum())


def distances(logits: np.ndarray, city: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give each site's distance from its city's middle, and how far sites usually lie apart.

    logits (..., M); city (M,) int. Returns (..., M) and (...,).

    The middle of a city is its median site; of two sites the one that is farther from all others
    has the distance between the two. Usual is the range of the half of a city's sites that agree
    best (as in Rousseeuw's least median of squares, JASA 79, 1984), in the root mean square over
    cities of three sites or more: one odd site in every city does not change it.
    """
    distance = np.zeros_like(logits)
    squares = []
    squares_of_two = []
    middle = np.median(logits, axis=-1, keepdims=True)
    for number in np.unique(city):
        own = np.flatnonzero(city == number)
        values = logits[..., own]
        if len(own) == 2:
            between = values - values[..., ::-1]
            off = np.abs(values - middle)
            distance[..., own] = np.where(off > off[..., ::-1], between, 0)
            squares_of_two.append(between[..., 0] ** 2)
        elif len(own) > 2:
            distance[..., own] = values - np.median(values, axis=-1, keepdims=True)
            squares.append(_shortest_half(values) ** 2)
    if squares:
        return distance, np.sqrt(np.mean(squares, axis=0))
    if squares_of_two:
        return distance, np.sqrt(np.median(squares_of_two, axis=0))
    return distance, np.zeros(logits.shape[:-1])


def _shortest_half(values: np.ndarray) -> np.ndarray:
    """Give the range of the more than half of some values that lie closest together: (...,)."""
    half = values.shape[-1] // 2 + 1
    ordered = np.sort(values, axis=-1)
    ranges = ordered[..., half - 1 :] - ordered[..., : ordered.shape[-1] - half + 1]
    return ranges.min(axis=-1)


def _chance_of_rasters(
    distance: np.ndarray, city: np.ndarray, site: np.ndarray, noise: np.ndarray
) -> np.ndarray:
    """P value (M,) of each distance, were rasters alone its cause; NaN where that is not known.

    By Student's t, times the number of sites (Bonferroni). noise (M,): the variance of each
    site's logit. The middle of the city is taken to be as uncertain as its sites are in the mean.
    """
    sites = np.bincount(city)
    of_middle = (np.bincount(city, noise) / np.maximum(sites, 1))[city]
    freedom = len(site) - len(distance)
    if freedom < 1:
        return np.full(len(distance), np.nan)
    ratio = np.abs(distance) / np.sqrt(noise + of_middle)
    return np.minimum(1, 2 * stats.t.sf(ratio, freedom) * len(distance))


def _chance_among_sites(ratio: np.ndarray, city: np.ndarray) -> np.ndarray:
    """P value (M,) of each distance over the usual one, were no site odd.

    By draws of normal sites in the same cities. The largest ratio is compared with the largest of
    each draw, the second largest with the second, up to one a city: many odd sites do not hide
    one another (as in Rosner, Technometrics 25, 1983). The least such share is compared with the
    least of each draw (Westfall and Young, Resampling-Based Multiple Testing, 1993). A site has
    the smallest p value of its rank and of all below it: if six are too far off for chance, so are
    the first five.
    """
    _, number = np.unique(city, return_inverse=True)
    by_rank, least = _ratios_by_chance(tuple(number.tolist()))
    order = np.argsort(-ratio, kind="stable")
    ranks = by_rank.shape[1]
    shares = [_share_above(by_rank[:, k], ratio[order[k]]) for k in range(ranks)]
    adjusted = np.searchsorted(least, shares, side="right") / len(least)
    chance = np.ones(len(ratio))
    chance[order[:ranks]] = np.minimum.accumulate(adjusted[::-1])[::-1]
    return chance


def _share_above(ordered: np.ndarray, value: float) -> float:
    """Give the share of some values, in order, that are as large as one or larger; above 0."""
    above = len(ordered) - np.searchsorted(ordered, value)
    return (1 + above) / (1 + len(ordered))


@lru_cache(maxsize=8)
def _ratios_by_chance(city: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Draw ratios where no site is odd.

    Returns (DRAWS, C), the largest, second largest ... of C cities with several sites, each column
    sorted; and of each draw the smallest of the shares that its ratios have there: (DRAWS,),
    sorted.
    """
    drawn = np.random.default_rng(0).standard_normal((DRAWS, len(city)))
    distance, scale = distances(drawn, np.array(city))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(np.abs(distance) / scale[:, None], nan=np.inf)
    ranks = int((np.bincount(city) > 1).sum())
    by_draw = -np.sort(-ratio, axis=1)[:, :ranks]
    by_rank = np.sort(by_draw, axis=0)
    shares = np.ones(DRAWS)
    for k in range(ranks):
        above = DRAWS - np.searchsorted(by_rank[:, k], by_draw[:, k])
        shares = np.minimum(shares, (1 + above) / (1 + DRAWS))
    return by_rank, np.sort(shares)
