"""Which cities resemble each other, seen two ways.

By what the network confuses, and by what it sees (its features). Both views are square arrays
(K, K) over the cities, symmetric, NaN on the diagonal and where a city has no patches.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:  # that module imports this one
    from dl_slicer.results.resemblance_stability import Stability

ONE_RASTER = "one raster"  # of which nothing can be learned about other rasters
NAMED = 3  # nearest cities that nearest.csv names in each view


def by_confusion(matrix: np.ndarray) -> np.ndarray:
    """View cities by their confusion matrix (..., K, K), rows true.

    Mean of the share of a's patches taken for b and of b's taken for a, 0 .. 1. Shares of rows,
    not counts: a city with more patches has more confusions, but is not more like the others for
    it.
    """
    total = matrix.sum(-1, keepdims=True).astype(float)
    total[total == 0] = np.nan
    shares = matrix / total
    return without_diagonal((shares + shares.swapaxes(-1, -2)) / 2)


def by_features(features: np.ndarray, true: np.ndarray, cities: int) -> np.ndarray:
    """View cities by the cosine of their mean features, -1 .. 1.

    features (N, D) of the penultimate layer, true (N,) int < cities.

    The mean over all cities is taken off first. Features behind a ReLU are all positive and share
    one large common part, so plain cosines are all near 1 and say little; what sets a city apart
    is where its mean lies from the others' (Mu and Viswanath, All-but-the-Top, ICLR 2018, for
    embeddings; Papyan, Han and Donoho, PNAS 117, 2020, for class means of networks). Every city
    weighs the same in the common mean. K centred means that differ equally have a cosine of
    -1 / (K - 1): that is 0 resemblance.
    """
    means = np.full((cities, features.shape[1]), np.nan)
    for city in np.unique(true):
        means[city] = features[true == city].mean(0, dtype=np.float64)
    return by_means(means)


def by_means(means: np.ndarray) -> np.ndarray:
    """View cities by the features' means (..., K, D) of each, as by_features() does.

    NaN for a city without patches, and for one whose mean is that of all.
    """
    means = means - np.nanmean(means, axis=-2, keepdims=True)
    length = np.linalg.norm(means, axis=-1, keepdims=True)
    length[length == 0] = np.nan
    means /= length
    return without_diagonal((means @ means.swapaxes(-1, -2)).clip(-1, 1))


def without_diagonal(view: np.ndarray) -> np.ndarray:
    """Copy a view (..., K, K) with NaN on the diagonal: no city is compared with itself."""
    view = view.copy()
    city = np.arange(view.shape[-1])
    view[..., city, city] = np.nan
    return view


def city_pairs(
    confusion_view: np.ndarray, feature_view: np.ndarray, classes: Sequence[str]
) -> list[dict]:
    """Give the rows of similarity.csv, one for every two cities: its columns are the keys below.

    None where a view has no value.
    """
    return [
        {
            "a": classes[a],
            "b": classes[b],
            "confusion": _none_if_nan(confusion_view[a, b]),
            "features": _none_if_nan(feature_view[a, b]),
        }
        for a, b in zip(*np.triu_indices(len(classes), 1), strict=True)
    ]


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else value


def nearest(
    confusion_view: np.ndarray,
    feature_view: np.ndarray,
    tie_breaker: np.ndarray,
    classes: Sequence[str],
    codes: Sequence[str],
    stable: "Stability | None" = None,
) -> list[dict]:
    """Give the rows of nearest.csv, one a city: its columns are the keys of the dict below.

    The nearest three cities in each view, the rank correlation of the views over the other cities,
    and if the views agree, see compare_views(). Cities that were never confused with this one are
    no neighbours by confusion; where that is all of them, the view is empty.
    tie_breaker: by_confusion() of the summed probabilities, which decides between pairs confused
    equally often.
    stable: how the views vary over draws. It adds in which share of them each view's first city
    came first, and if that is told apart from all others; see resemblance_stability.py.
    """
    rows = []
    for city, name in enumerate(classes):
        by_falling_confusion = rank_others(confusion_view, city, tie_breaker, above=0)
        by_falling_features = rank_others(feature_view, city)
        has_patches = not np.isnan(confusion_view[city]).all()
        row = {
            "city": name,
            "code": codes[city],
            **_name_nearest("confusion", by_falling_confusion, classes),
            **_name_nearest("features", by_falling_features, classes),
            "rank_correlation": correlation(confusion_view[city], feature_view[city]),
            "views": compare_views(by_falling_confusion, by_falling_features, has_patches),
        }
        if stable is not None:
            row |= _how_sure("confusion", city, by_falling_confusion, stable)
            row |= _how_sure("features", city, by_falling_features, stable)
        rows.append(row)
    return rows


def rank_others(
    view: np.ndarray, city: int, tie_breaker: np.ndarray | None = None, above: float = -np.inf
) -> list[int]:
    """Give the other cities by falling resemblance to one.

    Those without a value or not above the bound are left out. tie_breaker: a view that decides
    between equals.
    """
    if tie_breaker is None:
        tie_breaker = view
    others = np.flatnonzero(np.nan_to_num(view[city], nan=-np.inf) > above)
    order = np.lexsort((-tie_breaker[city, others], -view[city, others]))
    return others[order].tolist()


def _name_nearest(view: str, ranked: list[int], classes: Sequence[str]) -> dict[str, str]:
    """Columns <view>_1, <view>_2 ...: names of the first cities, empty where there are fewer."""
    names = [classes[city] for city in ranked[:NAMED]]
    names += [""] * (NAMED - len(names))
    return {f"{view}_{rank}": name for rank, name in enumerate(names, 1)}


def _how_sure(view: str, city: int, ranked: list[int], stable: "Stability") -> dict:
    """Columns <view>_1_share and <view>_told_apart, empty where there is no neighbour."""
    found = stable.by_confusion if view == "confusion" else stable.by_features
    told = found.told[city] if ranked else ""
    known = bool(ranked) and stable.draws > 0 and told != ONE_RASTER
    return {
        f"{view}_1_share": float(found.shares[city, ranked[0]]) if known else None,
        f"{view}_told_apart": told,
    }


def compare_views(
    by_falling_confusion: list[int], by_falling_features: list[int], has_patches: bool
) -> str:
    """Say in a word or two if the two views of a city agree, or why that cannot be told.

    They agree where the nearest city of each view is among the nearest three of the other (with
    less than ten cities: the nearest third, else chance would do).
    """
    if not by_falling_features:
        return "no features" if has_patches else "no patches"
    if not by_falling_confusion:
        return "no confusions"
    first = max(1, min(NAMED, len(by_falling_features) // 3))
    agree = (
        by_falling_confusion[0] in by_falling_features[:first]
        and by_falling_features[0] in by_falling_confusion[:first]
    )
    return "agree" if agree else "disagree"


def views_correlation(confusion_view: np.ndarray, feature_view: np.ndarray) -> float | None:
    """Spearman's rank correlation of the two views over all pairs of cities; None if undefined."""
    upper = np.triu_indices(len(confusion_view), 1)
    return correlation(confusion_view[upper], feature_view[upper])


def correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's rank correlation of two (n,) over what both have a value for.

    None for less than three values, or where all of one are equal.
    """
    known = ~(np.isnan(one) | np.isnan(other))
    one = one[known]
    other = other[known]
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(stats.spearmanr(one, other).statistic)
