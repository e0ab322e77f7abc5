"""Diagrams, each as PNG and PDF."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from scipy.cluster import hierarchy

from dl_slicer.files import atomic
from dl_slicer.results.accuracy import Calibration, calibration
from dl_slicer.results.dendrogram import Tree, group_by_features

matplotlib.use("Agg")  # draws into files: no display is needed

INK = "#222222"
GREY = "#888888"
DARK = "#444444"  # a branch of the dendrogram
PALE = "#c8c8c8"  # one that few draws of the rasters have
SURE = 0.7  # of the draws have a branch that is not drawn pale
FEW_CITIES = 12  # up to so many, there is room for larger labels and for numbers in every cell
# The largest side of a square map in inches. Up to 60 cities have a cell each that a label fits
# beside; more make the cells smaller, not the picture larger than programs open.
LARGEST_CONFUSION = 24
LARGEST_RESEMBLANCE = 12
LABELS_AN_INCH = 6
LONGEST_LABEL = 40  # letters: longer ones would leave no room for the map


def draw_reliability(
    path: Path, true: np.ndarray, probabilities: np.ndarray, untempered: np.ndarray | None = None
) -> None:
    """Draw <path>.png and .pdf: in each bin of the highest probability, how often it was right.

    And below, how many patches the bin has. true (N,) int, probabilities (N, K); untempered: those
    that the network would state without its temperature, drawn as dots; None: there is none.
    """
    bins = 15
    calibrated = calibration(true, probabilities, bins)
    accuracy = (probabilities.argmax(1) == true).mean()
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(5, 6), height_ratios=(3, 1), sharex=True, layout="constrained"
    )
    middles = (np.arange(bins) + 0.5) / bins
    width = 0.92 / bins
    _draw_bins(upper, calibrated, middles, width)
    error = f"expected calibration error {100 * calibrated.error:.1f} %"
    if untempered is not None:
        before = calibration(true, untempered, bins)
        _draw_dots(upper, before)
        error += f"\nwithout temperature {100 * before.error:.1f} %"
    upper.set(
        xlim=(0, 1),
        ylim=(0, 1.02),
        ylabel="accuracy",
    )
    upper.set_title(f"{error}, accuracy {100 * accuracy:.1f} %", fontsize=11)
    upper.legend(loc="upper left", frameon=False)
    lower.bar(middles, 100 * calibrated.counts / len(true), width, color=GREY)
    lower.set(xlabel="confidence (highest probability)", ylabel="% of patches")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    save_plot(path, figure)


def _draw_bins(axes: Axes, calibrated: Calibration, middles: np.ndarray, width: float) -> None:
    axes.plot((0, 1), (0, 1), color=GREY, linestyle="--", linewidth=1, label="perfectly calibrated")
    axes.bar(middles, calibrated.accuracy, width, color="#3b78b5", label="accuracy")
    axes.plot(
        calibrated.confidence,
        calibrated.confidence,
        "_",
        color="#c2410c",
        markersize=11,
        markeredgewidth=2,
        label="mean confidence",
    )


def _draw_dots(axes: Axes, untempered: Calibration) -> None:
    axes.plot(
        untempered.confidence,
        untempered.accuracy,
        "o",
        color="white",
        markeredgecolor=INK,
        markersize=5,
        label="accuracy without temperature",
    )


def draw_confusion(path: Path, matrix: np.ndarray, codes: Sequence[str], percent: bool) -> None:
    """Draw the confusion matrix (K, K) as <path>.png and .pdf: rows are true cities.

    Coloured by their share of the row, written as counts or per cent.
    """
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(LARGEST_CONFUSION, max(4.5, 0.36 * len(codes) + 1.6))
    figure, axes = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
    image = axes.imshow(100 * share, cmap="Blues", vmin=0, vmax=100)
    size = 10 if len(codes) <= FEW_CITIES else 7
    has_room = side < LARGEST_CONFUSION
    for row, column in np.argwhere(matrix) if has_room else ():
        text = f"{100 * share[row, column]:.0f}" if percent else str(matrix[row, column])
        text_size = size - 1 if len(text) > 3 else size
        colour = "white" if share[row, column] > 0.55 else INK
        _write_in_cell(axes, row, column, text, text_size, colour)
    remark = _label_with_codes(axes, codes, size + 1, side)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(("patches, % of each true city" if percent else "patches") + remark)
    if has_room:
        _draw_cell_borders(axes, len(codes))
    figure.colorbar(image, ax=axes, shrink=0.6, label="% of the true city's patches")
    save_plot(path, figure)


def _write_in_cell(axes: Axes, row: int, column: int, text: str, size: float, colour: str) -> None:
    axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)


def _label_with_codes(axes: Axes, codes: Sequence[str], size: float, side: float) -> str:
    """Write the cities' codes below and left of a square map, as many as it has room for.

    side: of the map, in inches. Returns what the title says of it; empty if all are there.
    """
    room = int(side * LABELS_AN_INCH)
    step = -(-len(codes) // room)  # rounded up
    named = range(0, len(codes), step)
    labels = [_without_middle(codes[city]) for city in named]
    # A code is no formula, whatever signs it has.
    style = {"fontsize": size, "family": "monospace", "parse_math": False}
    axes.set_xticks(named, labels, rotation=90, **style)
    axes.set_yticks(named, labels, **style)
    axes.tick_params(length=0)
    return "" if step == 1 else f" (one city in {step} is named)"


def _without_middle(label: str) -> str:
    """Shorten a label: what tells it from others stands at its beginning or at its end."""
    if len(label) <= LONGEST_LABEL:
        return label
    half = LONGEST_LABEL // 2
    return f"{label[: half - 1]}…{label[-half:]}"


def _draw_cell_borders(axes: Axes, cities: int) -> None:
    axes.set_xticks(np.arange(cities) - 0.5, minor=True)
    axes.set_yticks(np.arange(cities) - 0.5, minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.4)
    axes.tick_params(which="minor", length=0)


def draw_resemblance(
    path: Path,
    confusion_view: np.ndarray,
    feature_view: np.ndarray,
    codes: Sequence[str],
    support: np.ndarray | None = None,
) -> None:
    """Draw both views of resemblance.py as heat maps into <path>.png and .pdf.

    Cities are in the order of a dendrogram of the features (average linkage of 1 - cosine). One
    order for both, and the dendrogram beside both, so that they can be compared; from the
    features, since most pairs are never confused.
    support (n - 1,): in which share of draws each branch occurs, in the order of the dendrogram's
    links; the branches of less than SURE are drawn pale. None: not known, all are drawn alike.
    """
    tree = group_by_features(feature_view)
    codes = [codes[city] for city in tree.order]
    side = min(LARGEST_RESEMBLANCE, max(3.6, 0.19 * len(codes) + 0.6))
    figure, ((upper_tree, upper), (lower_tree, lower)) = plt.subplots(
        2,
        2,
        figsize=(1.25 * side + 1.6, 2 * side + 1.6),
        width_ratios=(0.25, 1),
        layout="constrained",
    )
    rearranged = np.ix_(tree.order, tree.order)

    _draw_tree(upper_tree, tree, support)
    cosines = feature_view[rearranged]
    image = _draw_heat_map(upper, cosines, cmap="RdBu_r", vmin=-1, vmax=1)
    remark = _label_heat_map(upper, codes, side)
    upper.set_title(f"features: cosine of centred means{remark}", fontsize=11)
    _write_values(upper, image, cosines, _without_leading_zero)
    figure.colorbar(image, ax=upper, shrink=0.6, pad=0.01)

    _draw_tree(lower_tree, tree, support)
    confusions = (100 * confusion_view)[rearranged]
    image = _draw_heat_map(lower, confusions, cmap="Blues", norm=_root_scale(confusions))
    remark = _label_heat_map(lower, codes, side)
    lower.set_title(f"confusions: % taken for each other{remark}", fontsize=11)
    _write_values(lower, image, confusions, _two_digits)
    figure.colorbar(image, ax=lower, shrink=0.6, pad=0.01)
    save_plot(path, figure)


def _draw_tree(axes: Axes, tree: Tree, support: np.ndarray | None) -> None:
    if tree.links is None:
        axes.axis("off")
        return
    first_link = len(tree.order)  # scipy numbers the links after the cities
    hierarchy.dendrogram(
        tree.links,
        orientation="left",
        no_labels=True,
        ax=axes,
        link_color_func=lambda link: _branch_colour(link - first_link, support),
    )
    # Leaves lie at 5, 15, ...: the first on top, as in the heat maps.
    axes.set_ylim(10 * len(tree.order), 0)
    axes.set_xlabel(f"1 - cosine{_what_pale_means(support)}", fontsize=9)
    axes.spines[["left", "right", "top"]].set_visible(False)


def _branch_colour(branch: int, support: np.ndarray | None) -> str:
    return PALE if support is not None and support[branch] < SURE else DARK


def _what_pale_means(support: np.ndarray | None) -> str:
    """A line below the dendrogram, where it has pale branches."""
    if support is None or (support >= SURE).all():
        return ""
    return f"\npale: in less than\n{100 * SURE:.0f} % of draws"


def _draw_heat_map(axes: Axes, values: np.ndarray, **colours):
    """Draw a square map; grey where there is no value. colours: of imshow."""
    axes.set_facecolor("#e4e4e4")
    return axes.imshow(values, interpolation="nearest", aspect="auto", **colours)


def _label_heat_map(axes: Axes, codes: Sequence[str], side: float) -> str:
    return _label_with_codes(axes, codes, 10 if len(codes) <= FEW_CITIES else 9, side)


def _root_scale(values: np.ndarray) -> PowerNorm:
    """Scale colours by the square root: a few pairs have most of the confusions."""
    highest = np.nanmax(values) if np.isfinite(values).any() else 0
    return PowerNorm(0.5, 0, highest if highest > 0 else 1)


def _write_values(axes: Axes, image, values: np.ndarray, as_text) -> None:
    """Write every value but 0 into its cell, if there is room; light on dark colours."""
    if len(values) > FEW_CITIES:
        return
    for row, column in np.argwhere(np.isfinite(values) & (values != 0)):
        value = values[row, column]
        red, green, blue, _ = image.cmap(image.norm(value))
        is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        _write_in_cell(axes, row, column, as_text(value), 8, "white" if is_dark else INK)


def _without_leading_zero(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".")


def _two_digits(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def save_plot(path: Path, figure: Figure) -> None:
    """Write a figure to <path>.png and .pdf, and close it."""
    with warnings.catch_warnings():
        # A label in a script that the font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph")
        for kind in ("png", "pdf"):
            with atomic(path.with_name(f"{path.name}.{kind}")) as file:
                figure.savefig(file, dpi=150, format=kind)
    plt.close(figure)
