"""Which cities resemble each other, seen two ways: by what the network confuses, and by what it sees (its features).

Both views are square arrays (K, K) over the cities, symmetric, NaN on the diagonal and where a city has no patches.
"""

import numpy as np
from scipy import stats


def by_confusion(matrix):
    """From a confusion matrix (rows true): mean of the share of a's patches taken for b and of b's taken for a, 0 .. 1.

    Shares of rows, not counts: a city with more patches has more confusions, but is not more like the others for it.
    """
    total = matrix.sum(1, keepdims=True).astype(float)
    total[total == 0] = np.nan
    return without_diagonal((matrix / total + (matrix / total).T) / 2)


def by_features(features, true, cities):
    """Cosine of the cities' mean features, -1 .. 1; features (N, D) of the penultimate layer, true (N,) int < cities.

    The mean over all cities is taken off first. Features behind a ReLU are all positive and share one large common part, so plain
    cosines are all near 1 and say little; what sets a city apart is where its mean lies from the others' (Mu and Viswanath,
    All-but-the-Top, ICLR 2018, for embeddings; Papyan, Han and Donoho, PNAS 117, 2020, for class means of networks).
    Each city weighs alike in the common mean. K centred means that differ equally have a cosine of -1 / (K - 1): that is 0 resemblance.
    """
    means = np.full((cities, features.shape[1]), np.nan)
    for city in np.unique(true):
        means[city] = features[true == city].mean(0, dtype=np.float64)
    means -= np.nanmean(means, axis=0)
    length = np.linalg.norm(means, axis=1, keepdims=True)
    length[length == 0] = np.nan
    means /= length
    return without_diagonal((means @ means.T).clip(-1, 1))


def without_diagonal(view):
    view = view.copy()
    np.fill_diagonal(view, np.nan)
    return view


def pairs(confusion, features, classes):
    """One dict for every two cities; None where a view has no value."""
    values = (
        {"a": classes[a], "b": classes[b], "confusion": confusion[a, b], "features": features[a, b]}
        for a, b in zip(*np.triu_indices(len(classes), 1))
    )
    return [
        {key: None if value != value else value for key, value in row.items()} for row in values
    ]


def ranked(view, city, ties=None, above=-np.inf):
    """The other cities by falling resemblance to one, those without a value or not above the bound left out. ties: a view that decides between equals."""
    others = np.flatnonzero(np.nan_to_num(view[city], nan=-np.inf) > above)
    return others[
        np.lexsort((-(view if ties is None else ties)[city, others], -view[city, others]))
    ].tolist()


def nearest(confusion, features, probability, classes, codes):
    """One dict a city: its nearest three in each view, the rank correlation of the views over the other cities, and if they agree.

    They agree where the nearest city of each view is among the nearest three of the other (with less than ten cities: the nearest
    third, else chance would do). Cities that were never confused with this one are no neighbours by confusion; where that is all
    of them, the view is empty. probability: by_confusion() of the summed probabilities, which decides between pairs confused equally often.
    """
    rows = []
    for city, name in enumerate(classes):
        confused, alike = ranked(confusion, city, probability, above=0), ranked(features, city)
        near = max(1, min(3, len(alike) // 3))
        if not alike:
            verdict = "no patches" if np.isnan(confusion[city]).all() else "no features"
        elif not confused:
            verdict = "no confusions"
        else:
            verdict = (
                "agree"
                if confused[0] in alike[:near] and alike[0] in confused[:near]
                else "disagree"
            )
        row = {"city": name, "code": codes[city]}
        for view, order in (("confusion", confused), ("features", alike)):
            row |= {
                f"{view}_{i + 1}": classes[order[i]] if i < len(order) else "" for i in range(3)
            }
        rows.append(
            row
            | {"rank_correlation": correlation(confusion[city], features[city]), "views": verdict}
        )
    return rows


def views_correlation(confusion, features):
    """Spearman's rank correlation of the two views over all pairs of cities; None where there is none."""
    upper = np.triu_indices(len(confusion), 1)
    return correlation(confusion[upper], features[upper])


def correlation(one, other):
    known = ~(np.isnan(one) | np.isnan(other))
    one, other = one[known], other[known]
    return (
        float(stats.spearmanr(one, other).statistic)
        if len(one) > 2 and np.ptp(one) > 0 and np.ptp(other) > 0
        else None
    )
