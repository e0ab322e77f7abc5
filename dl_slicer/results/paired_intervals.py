"""Intervals of the difference between two accuracies on the same patches.

As in intervals.py the rasters are the independent units. Here they are drawn once for both models:
what makes a raster easy or hard for both of them then cancels out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from dl_slicer.results.intervals import (
    LEVEL,
    Interval,
    RasterCounts,
    bootstrap_groups,
    city_error,
    group_by_raster,
    resample,
    share_designs,
)

# Of 100 intervals of so many rasters at most, how many held the truth in simulations of varied
# models and cities: docs/compare.md.
COVERAGE = ((7, "94 to 100"), (13, "90 to 100"), (20, "91 to 100"))


@dataclass
class PairedCounts(RasterCounts):
    """What was counted of each of M rasters; `right` is that of a less that of b, -n .. n."""

    differing: np.ndarray  # (M,) float: the patches that one of the two alone recognised


def paired_interval(
    true: np.ndarray,
    right_a: np.ndarray,
    right_b: np.ndarray,
    rasters: Sequence[str],
    cities: int,
    seed: int = 0,
) -> tuple[float, Interval | None]:
    """Accuracy of a less that of b, and its 95 % interval; None where there is only one raster.

    true (N,) int < cities; right_a, right_b (N,) bool; rasters: N names. Shares, -1 .. 1.
    """
    overall, _ = paired_intervals(true, right_a, right_b, rasters, cities, seed)
    return float(np.mean(right_a)) - float(np.mean(right_b)), overall


def paired_intervals(
    true: np.ndarray,
    right_a: np.ndarray,
    right_b: np.ndarray,
    rasters: Sequence[str],
    cities: int,
    seed: int = 0,
) -> tuple[Interval | None, list[Interval | None]]:
    """95 % intervals of the accuracy of a less that of b, of all patches and of each city.

    Arguments as of paired_interval(); None where no interval can be had.

    The rasters are drawn anew as in intervals.accuracy_intervals(), the same for a and for b. The
    bootstrap's standard error gives the effective number of independent patches, and this, with
    Student's t in place of the normal quantile, Tango's score interval for paired shares
    (Statistics in Medicine 17, 1998): it stays within -1 .. 1 and has a width where no patch
    differs; there a raster counts as one patch. The degrees of freedom allow for rasters of unequal
    size (Satterthwaite, Biometrics Bulletin 2, 1946). A city's standard error is averaged with
    what all cities together predict, as for accuracies.
    """
    index, city = group_by_raster(true, rasters)
    if len(city) < 2:
        return None, [None] * cities
    difference = np.subtract(right_a, right_b, dtype=float)
    counts = PairedCounts(
        city,
        np.bincount(index).astype(float),
        np.bincount(index, difference),
        np.bincount(index, np.abs(difference)),
    )
    rng = np.random.default_rng(seed)
    return _overall_interval(counts, cities, rng), _city_intervals(counts, cities, rng)


def _overall_interval(counts: PairedCounts, cities: int, rng: np.random.Generator) -> Interval:
    groups = bootstrap_groups(counts, cities)
    right, patches = sum(
        resample(counts.right[group], counts.patches[group], rng) for group in groups
    )
    error = np.std(right / patches)

    total = counts.patches.sum()
    difference = counts.right.sum() / total
    differing = counts.differing.sum() / total
    # The design effect if all patches of a raster differ together:
    most = (counts.patches**2).sum() / total
    independent = (differing - difference**2) / total
    design = np.clip(error**2 / independent, 1, most) if independent > 0 else most
    correlation = (design - 1) / (most - 1) if most > 1 else 0
    freedom = effective_freedom([counts.patches[group] for group in groups], correlation)
    return tango(difference, differing, total / design, freedom)


def _city_intervals(
    counts: PairedCounts, cities: int, rng: np.random.Generator
) -> list[Interval | None]:
    """Give the interval of each city's difference, None for a city of less than two rasters."""
    several = np.flatnonzero(counts.per_city(None, cities) > 1)
    rasters = counts.per_city(None, cities)[several]
    total = counts.per_city(counts.patches, cities)[several]
    squares = counts.per_city(counts.patches**2, cities)[several]
    difference = counts.per_city(counts.right, cities)[several] / total
    differing = counts.per_city(counts.differing, cities)[several] / total

    errors = np.array([city_error(counts, city, rng) for city in several])
    independent = (differing - difference**2) / total
    known = independent > 0
    own_design = np.divide(errors**2, independent, out=np.full(len(several), np.nan), where=known)
    effective, freedom = share_designs(own_design, independent, rasters, total, squares)

    intervals = [None] * cities
    for k, city in enumerate(several):
        intervals[city] = tango(difference[k], differing[k], effective[k], freedom[k])
    return intervals


def effective_freedom(patches: Sequence[np.ndarray], correlation: float) -> float:
    """Degrees of freedom of a variance between rasters, summed over groups of them.

    patches: for each group the numbers of patches of its m rasters, float (m,), m > 1;
    correlation: of patches within a raster, 0 .. 1. For equal rasters and equal groups it is
    rasters less groups; else it is less, since few rasters then decide.
    """
    variance = 0
    doubt = 0  # half the variance of the estimated variance
    for size in patches:
        m = len(size)
        of_raster = size * (1 + (size - 1) * correlation)
        total = of_raster.sum()
        variance += total
        doubt += (m / (m - 1)) ** 2 * ((1 - 2 / m) * (of_raster**2).sum() + (total / m) ** 2)
    return variance**2 / doubt


def tango(difference: float, differing: float, effective: float, freedom: float) -> Interval:
    """Tango's 95 % score interval of the difference between two paired shares.

    difference: a's share less b's; differing: the share of pairs in which one alone is right;
    effective: the number of independent pairs. By Student's t with these degrees of freedom in
    place of the normal quantile.
    """
    quantile = stats.t.ppf((1 + LEVEL) / 2, freedom)
    only_b = (differing - difference) / 2

    def score(supposed: float) -> float:
        """How many standard errors lie between the difference found and one supposed."""
        # The share of pairs in which b alone is right that is likeliest if that difference holds.
        linear = (2 - difference) * supposed - differing
        root = np.sqrt(linear**2 + 8 * only_b * supposed * (1 - supposed))
        likeliest = (root - linear) / 4
        variance = (2 * likeliest + supposed * (1 - supposed)) / effective
        return (difference - supposed) / np.sqrt(max(variance, 1e-300))

    nearly_one = 1 - 1e-12
    low = -1.0
    high = 1.0
    if difference > -nearly_one:
        low = optimize.brentq(lambda supposed: score(supposed) - quantile, -nearly_one, difference)
    if difference < nearly_one:
        high = optimize.brentq(lambda supposed: score(supposed) + quantile, difference, nearly_one)
    return float(low), float(high)


def describe_coverage(rasters: int) -> str | None:
    """Say how often such intervals held the truth where rasters are few; None where they are not.

    The figures are those of docs/compare.md.
    """
    for most, share in COVERAGE:
        if rasters <= most:
            return (
                f"there are only {rasters} rasters: in simulations of so few, {share} of 100 such"
                " intervals held the truth (docs/compare.md)"
            )
    return None
