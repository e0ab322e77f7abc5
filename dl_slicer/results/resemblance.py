"""Which cities resemble each other, seen two ways: by what the network confuses, and by what it sees (its features).

Both views are square arrays (K, K) over the cities, symmetric, NaN on the diagonal and where a city has no patches.
"""

import warnings

import matplotlib
import numpy as np
from matplotlib.colors import PowerNorm
from scipy import stats
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from dl_slicer.cli import atomic

matplotlib.use("Agg")
import matplotlib.pyplot as plt


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


def draw(path, confusion, features, codes):
    """<path>.png and .pdf: both views as heat maps, cities in the order of a dendrogram of the features (average linkage of 1 - cosine).

    One order for both, and the dendrogram beside both, so that they can be compared; from the features, since most pairs are never confused.
    """
    present = np.flatnonzero(~np.isnan(features).all(1))
    links = None
    if len(present) < 2:  # nothing to compare: empty maps
        present = np.arange(len(codes))
    else:
        distance = 1 - features[np.ix_(present, present)]
        np.fill_diagonal(distance, 0)
        links = hierarchy.linkage(
            squareform(distance, checks=False), "average", optimal_ordering=True
        )
        present = present[hierarchy.leaves_list(links)]
    codes = [codes[i] for i in present]
    side = max(3.6, 0.19 * len(codes) + 0.6)
    figure, axes = plt.subplots(
        2,
        2,
        figsize=(1.25 * side + 1.6, 2 * side + 1.6),
        width_ratios=(0.25, 1),
        layout="constrained",
    )
    views = (
        (
            "features: cosine of centred means",
            features,
            "RdBu_r",
            {"vmin": -1, "vmax": 1},
            lambda value: f"{value:.2f}".replace("0.", "."),
        ),
        (
            "confusions: % taken for each other",
            100 * confusion,
            "Blues",
            None,
            lambda value: f"{value:.1f}" if value < 9.95 else f"{value:.0f}",
        ),
    )
    for (tree, axis), (title, view, colours, limits, text) in zip(axes, views):
        if links is None:
            tree.axis("off")
        else:
            hierarchy.dendrogram(
                links,
                orientation="left",
                no_labels=True,
                ax=tree,
                color_threshold=0,
                above_threshold_color="#444444",
            )
            tree.set_ylim(
                10 * len(codes), 0
            )  # leaves lie at 5, 15, ...; the first on top, as in the heat maps
            tree.set_xlabel("1 - cosine", fontsize=9)
            tree.spines[["left", "right", "top"]].set_visible(False)
        view = view[np.ix_(present, present)]
        top = np.nanmax(view) if np.isfinite(view).any() else 0
        limits = limits or {
            "norm": PowerNorm(0.5, 0, top if top > 0 else 1)
        }  # a root: a few pairs have most of the confusions
        axis.set_facecolor("#e4e4e4")
        image = axis.imshow(view, cmap=colours, interpolation="nearest", aspect="auto", **limits)
        size = 10 if len(codes) <= 12 else 9
        axis.set_xticks(
            range(len(codes)),
            codes,
            rotation=90,
            fontsize=size,
            family="monospace",
            parse_math=False,
        )
        axis.set_yticks(
            range(len(codes)), codes, fontsize=size, family="monospace", parse_math=False
        )
        axis.tick_params(length=0)
        axis.set_title(title, fontsize=11)
        if len(codes) <= 12:
            for i, j in np.argwhere(np.isfinite(view) & (view != 0)):
                red, green, blue, _ = image.cmap(image.norm(view[i, j]))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
                axis.text(
                    j,
                    i,
                    text(view[i, j]),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else "#222222",
                )
        figure.colorbar(image, ax=axis, shrink=0.6, pad=0.01)
    save_figure(path, figure)


def save_figure(path, figure):
    """<path>.png and .pdf; the figure is closed."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph"
        )  # a label in a script that the font lacks is drawn as boxes
        for kind in ("png", "pdf"):
            with atomic(path.with_name(f"{path.name}.{kind}")) as file:
                figure.savefig(file, dpi=150, format=kind)
    plt.close(figure)
