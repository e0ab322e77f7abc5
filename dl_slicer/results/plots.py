"""Diagrams, each as PNG and PDF."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

matplotlib.use("Agg")
import warnings

from matplotlib.colors import PowerNorm
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from dl_slicer.files import atomic
from dl_slicer.results.accuracy import calibration


def draw_reliability(path, true, probabilities):
    """The reliability diagram as <path>.png and .pdf: in each bin of the highest probability, how often it was right, and how many patches."""
    bins = 15
    error, counts, confidence, accuracy = calibration(true, probabilities, bins)
    figure, (axis, below) = plt.subplots(
        2, 1, figsize=(5, 6), height_ratios=(3, 1), sharex=True, layout="constrained"
    )
    middle = (np.arange(bins) + 0.5) / bins
    axis.plot(
        (0, 1), (0, 1), color="#888888", linestyle="--", linewidth=1, label="perfectly calibrated"
    )
    axis.bar(middle, accuracy, 0.92 / bins, color="#3b78b5", label="accuracy")
    axis.plot(
        confidence,
        confidence,
        "_",
        color="#c2410c",
        markersize=11,
        markeredgewidth=2,
        label="mean confidence",
    )
    axis.set(
        xlim=(0, 1),
        ylim=(0, 1.02),
        ylabel="accuracy",
        title=f"expected calibration error {100 * error:.1f} %, accuracy "
        f"{100 * (probabilities.argmax(1) == true).mean():.1f} %",
    )
    axis.legend(loc="upper left", frameon=False)
    below.bar(middle, 100 * counts / len(true), 0.92 / bins, color="#888888")
    below.set(xlabel="confidence (highest probability)", ylabel="% of patches")
    for each in (axis, below):
        each.spines[["top", "right"]].set_visible(False)
    save_plot(path, figure)


def draw_confusion(path, matrix, codes, percent):
    """The confusion matrix as <path>.png and .pdf: rows are true cities, coloured by their share, written as counts or per cent."""
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = max(4.5, 0.36 * len(codes) + 1.6)
    figure, axes = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
    image = axes.imshow(100 * share, cmap="Blues", vmin=0, vmax=100)
    size = 10 if len(codes) <= 12 else 7
    for i, j in np.ndindex(*matrix.shape):
        if matrix[i, j]:
            text = f"{100 * share[i, j]:.0f}" if percent else str(matrix[i, j])
            axes.text(
                j,
                i,
                text,
                ha="center",
                va="center",
                fontsize=size - (len(text) > 3),
                color="white" if share[i, j] > 0.55 else "#222222",
            )
    axes.set_xticks(
        range(len(codes)),
        codes,
        rotation=90,
        fontsize=size + 1,
        family="monospace",
        parse_math=False,
    )
    axes.set_yticks(
        range(len(codes)), codes, fontsize=size + 1, family="monospace", parse_math=False
    )
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title("patches, % of each true city" if percent else "patches")
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(len(codes)) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(codes)) - 0.5, minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.4)
    axes.tick_params(which="minor", length=0)
    figure.colorbar(image, ax=axes, shrink=0.6, label="% of the true city's patches")
    save_plot(path, figure)


def draw_resemblance(path, confusion, features, codes):
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
    save_plot(path, figure)


def save_plot(path, figure):
    """<path>.png and .pdf; the figure is closed."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph"
        )  # a label in a script that the font lacks is drawn as boxes
        for kind in ("png", "pdf"):
            with atomic(path.with_name(f"{path.name}.{kind}")) as file:
                figure.savefig(file, dpi=150, format=kind)
    plt.close(figure)
