"""Intervals that know that patches come from few rasters.

Neighbouring patches overlap, and patches of one raster are right or wrong together. So n patches
say far less than n independent trials would: the independent unit is the raster.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
DRAWS = 2000  # bootstrap samples: a standard error is then known to about 1.6 %
PRIOR_FREEDOM = 4  # degrees of freedom that all cities together lend to one city's spread

Interval = tuple[float, float]  # its low and its high end


@dataclass
class RasterCounts:
    """What was counted of each of M rasters, all (M,)."""

    city: np.ndarray  # int
    patches: np.ndarray  # float
    right: np.ndarray  # float: the patches whose city was recognised

    def per_city(self, weights: np.ndarray | None, cities: int) -> np.ndarray:
        """Sum weights (M,) over the rasters of each city, or count these: (cities,)."""
        return np.bincount(self.city, weights, cities)


def group_by_raster(true: np.ndarray, rasters: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Number the rasters of N patches, which have the cities `true` and are from these rasters.

    Returns (N,) int, which raster each patch is of, and (M,) int, the city of each raster. Rasters
    of two cities are two, even if they have one name.
    """
    numbers = {}
    keys = zip(true.tolist(), rasters, strict=True)
    index = np.array([numbers.setdefault(key, len(numbers)) for key in keys])
    return index, np.array([city for city, _ in numbers])


def accuracy_intervals(
    true: np.ndarray, right: np.ndarray, rasters: Sequence[str], cities: int, seed: int = 0
) -> tuple[Interval | None, list[Interval | None]]:
    """95 % intervals of the accuracy by bootstrap over rasters.

    true (N,) int < cities, right (N,) bool, rasters: N names. Returns the interval of all patches
    and that of each city; None where none can be had.

    The cities are given and the rasters are drawn, so rasters are drawn anew within each city:
    m - 1 of its m, weighted by m / (m - 1), without which the bootstrap of few rasters is too
    narrow (Rao and Wu, JASA 83, 1988). Of a city with a single raster nothing can be learned about
    the spread: it gets no interval of its own, and all such cities are drawn as one group for the
    overall interval, which then also holds the differences between them and is rather too wide
    (collapsed strata).

    The bootstrap's standard error gives the effective number of independent patches, and this,
    with Student's t in place of the normal quantile, Wilson's interval (after Korn and Graubard,
    Survey Methodology 24, 1998): it stays within 0 .. 1 and has a width where all is right.
    Degrees of freedom are rasters less groups. A city's few rasters do not tell its standard error
    well, so it is averaged with what the correlation within rasters, estimated from all cities
    together, predicts (as Smyth, SAGMB 3, 2004, does for variances). Where nothing at all is
    wrong, a raster counts as one trial.
    """
    index, city = group_by_raster(true, rasters)
    if len(city) < 2:
        return None, [None] * cities
    counts = RasterCounts(city, np.bincount(index).astype(float), np.bincount(index, right))
    # The overall interval takes the first random numbers, the cities' intervals those that follow.
    rng = np.random.default_rng(seed)
    overall = overall_interval(counts, cities, rng)
    return overall, city_intervals(counts, cities, rng)


def overall_interval(counts: RasterCounts, cities: int, rng: np.random.Generator) -> Interval:
    """Give the interval of the accuracy over all patches."""
    groups = bootstrap_groups(counts, cities)
    right, patches = sum(
        resample(counts.right[group], counts.patches[group], rng) for group in groups
    )
    error = np.std(right / patches)

    total = counts.patches.sum()
    hits = counts.right.sum()
    # The design effect if all patches of a raster are right or wrong together:
    most = total / len(counts.patches)
    design = np.nan_to_num(design_effect(error, hits, total), nan=most)
    effective = total / np.clip(design, 1, most)
    return wilson(hits / total, effective, len(counts.patches) - len(groups))


def bootstrap_groups(counts: RasterCounts, cities: int) -> list[np.ndarray]:
    """Give the groups within which rasters are drawn, as the numbers of their rasters.

    A city is a group, but all cities with a single raster are one.
    """
    rasters_of_city = counts.per_city(None, cities)
    from_single = rasters_of_city[counts.city] == 1
    group = np.where(from_single, cities, counts.city)
    if from_single.sum() == 1:  # it has no partner but the city of the fewest other rasters
        group[from_single] = min(group[~from_single], key=lambda city: rasters_of_city[city])
    return [np.flatnonzero(group == number) for number in np.unique(group)]


def city_intervals(
    counts: RasterCounts, cities: int, rng: np.random.Generator
) -> list[Interval | None]:
    """Give the interval of each city's accuracy, None for a city of less than two rasters."""
    several = np.flatnonzero(counts.per_city(None, cities) > 1)
    rasters = counts.per_city(None, cities)[several]
    total = counts.per_city(counts.patches, cities)[several]
    hits = counts.per_city(counts.right, cities)[several]
    squares = counts.per_city(counts.patches * counts.patches, cities)[several]

    errors = np.array([city_error(counts, city, rng) for city in several])
    own_design = design_effect(errors, hits, total)
    weight = hits * (total - hits) / total**3
    effective, freedom = share_designs(own_design, weight, rasters, total, squares)

    intervals = [None] * cities
    for k, city in enumerate(several):
        intervals[city] = wilson(hits[k] / total[k], effective[k], freedom[k])
    return intervals


def share_designs(
    own_design: np.ndarray,
    weight: np.ndarray,
    rasters: np.ndarray,
    total: np.ndarray,
    squares: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Average each city's design effect with what all cities together predict, see above.

    All are (C,), of cities with several rasters. own_design: NaN where it is unknown, weight 0;
    weight: the variance that independent patches would have; rasters, total: how many rasters and
    patches; squares: the sum of squared numbers of patches of the rasters. Returns the effective
    numbers of independent patches and the degrees of freedom, (C,) each.
    """
    # The mean number of other patches in the raster of a patch. With it a design effect is
    # 1 + other_patches * correlation.
    other_patches = squares / total - 1
    correlation = common_correlation(own_design, weight, other_patches)
    common_design = 1 + other_patches * correlation

    own_freedom = rasters - 1
    lent_freedom = np.minimum(PRIOR_FREEDOM, own_freedom.sum() - own_freedom)
    freedom = own_freedom + lent_freedom
    averaged = (own_freedom * np.nan_to_num(own_design) + lent_freedom * common_design) / freedom
    design = np.where(weight > 0, averaged, common_design)
    return total / np.clip(design, 1, total / rasters), freedom


def city_error(counts: RasterCounts, city: int, rng: np.random.Generator) -> float:
    """Give the bootstrap's standard error of one city's accuracy."""
    own = counts.city == city
    right, patches = resample(counts.right[own], counts.patches[own], rng)
    return np.std(right / patches)


def common_correlation(design: np.ndarray, weight: np.ndarray, other_patches: np.ndarray) -> float:
    """Give the one correlation within rasters, 0 .. 1, that fits the design effects best.

    All three are (C,), of cities. A city of weight 0 has no design effect and is left out. Where
    no city could tell, patches of a raster are taken to be right or wrong together: 1.
    """
    known = weight > 0
    possible = (weight * other_patches)[known].sum()
    if possible <= 0:
        return 1
    return np.clip((weight * (design - 1))[known].sum() / possible, 0, 1)


def resample(right: np.ndarray, patches: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw m - 1 of m rasters anew, DRAWS times: sums of right and of patches, (2, DRAWS)."""
    m = len(patches)
    weights = rng.multinomial(m - 1, np.full(m, 1 / m), DRAWS) * (m / (m - 1))
    return np.stack([weights @ right, weights @ patches])


def design_effect(
    error: np.ndarray | float, hits: np.ndarray | float, total: np.ndarray | float
) -> np.ndarray:
    """How many times the variance of as many independent patches is error ** 2?

    hits of total patches are right; NaN where that is none or all of them.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        independent = hits * (total - hits) / total**3
        return np.where((hits > 0) & (hits < total), error**2 / independent, np.nan)


def wilson(share: float, effective: float, freedom: float) -> Interval:
    """Wilson's 95 % interval of a share of so many independent trials.

    By Student's t with these degrees of freedom in place of the normal quantile.
    """
    t2 = stats.t.ppf((1 + LEVEL) / 2, freedom) ** 2 / effective
    middle = (share + t2 / 2) / (1 + t2)
    half = np.sqrt(t2 * share * (1 - share) + t2**2 / 4) / (1 + t2)
    return float(max(0, middle - half)), float(min(1, middle + half))


def describe_interval(true: np.ndarray, rasters: Sequence[str]) -> str:
    """Say in words what the overall interval of accuracy_intervals() is over."""
    index, city = group_by_raster(true, rasters)
    singles = int((np.bincount(city) == 1).sum())
    if len(city) < 2:
        return "none: all patches are from one raster"
    text = f"bootstrap over {len(city)} rasters"
    if len(city) == len(index):
        return (
            f"{text}; each patch counts as a raster of its own,"
            " too narrow if several come from one raster"
        )
    if singles == 1:
        return f"{text}, within each city; the one city with one raster only is drawn with another"
    if singles:
        return (
            f"{text}, within each city; {singles} cities have one raster only and are drawn"
            " as one group, so the interval also holds their differences"
        )
    return f"{text}, within each city"
