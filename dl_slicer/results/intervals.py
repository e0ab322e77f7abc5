"""Intervals that know that patches come from few rasters."""

import numpy as np
from scipy import stats

LEVEL = 0.95
DRAWS = 2000  # bootstrap samples: a standard error is then known to about 1.6 %
PRIOR_FREEDOM = 4  # degrees of freedom that all cities together lend to one city's spread


def group_by_raster(true, rasters):
    """Numbers of the rasters: (N,) int, which raster each patch is of, and (M,) int, the city of each raster. rasters: N names."""
    numbers = {}
    index = np.array([numbers.setdefault(key, len(numbers)) for key in zip(true.tolist(), rasters)])
    return index, np.array([city for city, _ in numbers])


def accuracy_intervals(true, right, rasters, cities, seed=0):
    """95 % intervals of the accuracy by bootstrap over rasters. true (N,) int < cities, right (N,) bool, rasters: N names.

    Returns (overall, per_city): (low, high), or None where none can be had, for all patches and for each city.

    The cities are given and the rasters are drawn, so rasters are drawn anew within each city: m - 1 of its m, weighted by m / (m - 1),
    without which the bootstrap of few rasters is too narrow (Rao and Wu, JASA 83, 1988). Of a city with a single raster nothing can
    be learned about the spread: it gets no interval of its own, and all such cities are drawn as one group for the overall interval,
    which then also holds the differences between them and is rather too wide (collapsed strata).

    The bootstrap's standard error gives the effective number of independent patches, and this, with Student's t in place of the normal
    quantile, Wilson's interval (after Korn and Graubard, Survey Methodology 24, 1998): it stays within 0 .. 1 and has a width where all
    is right. Degrees of freedom are rasters less groups. A city's few rasters do not tell its standard error well, so it is averaged
    with what the correlation within rasters, estimated from all cities together, predicts (as Smyth, SAGMB 3, 2004, does for
    variances). Where nothing at all is wrong, a raster counts as one trial.
    """
    index, city = group_by_raster(true, rasters)
    if len(city) < 2:
        return None, [None] * cities
    rng = np.random.default_rng(seed)
    n, k = (
        np.bincount(index).astype(float),
        np.bincount(index, right),
    )  # of each raster: patches, and those that are right
    count, total, hits, squares = (
        np.bincount(city, weights, cities) for weights in (None, n, k, n * n)
    )

    alone = count[city] == 1
    group = np.where(alone, cities, city)
    if alone.sum() == 1:  # it has no partner but the city of the fewest other rasters
        group[alone] = min(group[~alone], key=lambda c: count[c])
    groups = [np.flatnonzero(group == number) for number in np.unique(group)]
    error = np.std(np.divide(*sum(resampled(k[own], n[own], rng) for own in groups)))
    most = n.sum() / len(
        n
    )  # the design effect if all patches of a raster are right or wrong together
    design = design_effect(error, k.sum(), n.sum())
    overall = wilson(
        k.sum() / n.sum(),
        n.sum() / np.clip(np.nan_to_num(design, nan=most), 1, most),
        len(n) - len(groups),
    )

    several = np.flatnonzero(count > 1)
    count, total, hits, squares = (values[several] for values in (count, total, hits, squares))
    error = np.array(
        [np.std(np.divide(*resampled(k[city == c], n[city == c], rng))) for c in several]
    )
    design = design_effect(error, hits, total)
    # A design effect is 1 + (patches a raster - 1) * correlation. The one correlation that fits all cities best:
    weight, room = hits * (total - hits) / total**3, squares / total - 1
    known = weight > 0
    possible = (weight * room)[known].sum()
    correlation = (
        np.clip((weight * (design - 1))[known].sum() / possible, 0, 1) if possible > 0 else 1
    )
    expected = 1 + room * correlation
    freedom = count - 1
    lent = np.minimum(PRIOR_FREEDOM, freedom.sum() - freedom)
    design = np.where(
        known, (freedom * np.nan_to_num(design) + lent * expected) / (freedom + lent), expected
    )
    per_city = [None] * cities
    for c, *values in zip(
        several, hits / total, total / np.clip(design, 1, total / count), freedom + lent
    ):
        per_city[c] = wilson(*values)
    return overall, per_city


def resampled(k, n, rng):
    """Sums of k and of n over rasters drawn anew: array (2, DRAWS)."""
    m = len(n)
    weights = rng.multinomial(m - 1, np.full(m, 1 / m), DRAWS) * (m / (m - 1))
    return np.stack([weights @ k, weights @ n])


def design_effect(error, hits, total):
    """How many times the variance of as many independent patches error ** 2 is; NaN where these are all right or all wrong."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(
            (hits > 0) & (hits < total), error**2 / (hits * (total - hits) / total**3), np.nan
        )


def wilson(share, effective, freedom):
    """(low, high): Wilson's 95 % interval of a share of so many independent trials, by Student's t with these degrees of freedom."""
    t2 = stats.t.ppf((1 + LEVEL) / 2, freedom) ** 2 / effective
    middle, half = (
        (share + t2 / 2) / (1 + t2),
        np.sqrt(t2 * share * (1 - share) + t2**2 / 4) / (1 + t2),
    )
    return float(max(0, middle - half)), float(min(1, middle + half))


def describe_interval(true, rasters):
    """In words, what the overall interval of intervals() is over."""
    index, city = group_by_raster(true, rasters)
    alone = int((np.bincount(city) == 1).sum())
    if len(city) < 2:
        return "none: all patches are from one raster"
    text = f"bootstrap over {len(city)} rasters"
    if len(city) == len(index):
        return f"{text}; each patch counts as a raster of its own, too narrow if several come from one raster"
    if alone == 1:
        return f"{text}, within each city; the one city with one raster only is drawn with another"
    if alone:
        return f"{text}, within each city; {alone} cities have one raster only and are drawn as one group, so the interval also holds their differences"
    return f"{text}, within each city"
