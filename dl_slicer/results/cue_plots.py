"""The figure of what a network goes by."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dl_slicer.results import alterations
from dl_slicer.results.plots import GREY, INK, save_plot

SHOWN = "#3b78b5"
REFITTED = "#c2410c"
APART = 0.17  # of a row, between the two points in it
NAMES = {  # what the rows are called where there is little room
    "grey": "grey",
    "channels": "channels levelled",
    "halves": "halves shuffled",
    "quarters": "quarters shuffled",
    "eighths": "eighths shuffled",
    "turns": "quarter turns",
    "pixels": "pixels shuffled",
    "low-pass and grey": "low-pass 16 px, grey",
}


def draw_cues(path: Path, rows: Sequence[dict], controls: Mapping) -> None:
    """Draw <path>.png and .pdf: the accuracy of each row of cues.csv, as shown and fitted anew.

    Lines through points: 95 % intervals of the difference from the patches as they are (dashed).
    Below all: colour alone, and what exchanged names of sites give.
    """
    as_it_is, *altered = rows
    figure, axes = plt.subplots(figsize=(5.6, 0.36 * len(altered) + 2.8), layout="constrained")
    # Dashes between dashes, since both are often the same.
    _draw_reference(axes, as_it_is["accuracy"], SHOWN, 0)
    _draw_reference(axes, as_it_is["refitted_accuracy"], REFITTED, 4)
    labels = []
    for y, row in enumerate(altered):
        _draw_point(axes, y - APART, row, "", as_it_is["accuracy"], SHOWN, "o")
        refitted = as_it_is["refitted_accuracy"]
        _draw_point(axes, y + APART, row, "refitted_", refitted, REFITTED, "s")
        labels.append(f"{row['cue']}: {_name(row)}")
    labels += _draw_controls(axes, len(altered), controls)
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.set(xlim=(-1, 101), ylim=(len(labels) - 0.4, -0.6), xlabel="accuracy, %")
    axes.axhline(len(altered) - 0.5, color=GREY, linewidth=0.8)
    for y in range(len(altered)):
        axes.axhline(y, color="#dddddd", linewidth=0.5, zorder=0)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(handles=_legend(), loc="outside lower center", frameon=False, fontsize=9)
    save_plot(path, figure)


def _name(row: Mapping) -> str:
    if row["cue"] == "fine texture":
        return f"low-pass {row['parameter']:g} px, {alterations.round_metres(row['metres'])} m"
    return NAMES[row["altered"]]


def _draw_reference(axes: Axes, accuracy: float, colour: str, first: int) -> None:
    dashes = (first, (4, 4))
    axes.axvline(100 * accuracy, color=colour, linestyle=dashes, linewidth=1, zorder=1)


def _draw_point(
    axes: Axes, y: float, row: Mapping, prefix: str, as_it_is: float, colour: str, marker: str
) -> None:
    low = row[f"{prefix}low"]
    high = row[f"{prefix}high"]
    if low is not None:
        ends = [100 * min(1, max(0, as_it_is + end)) for end in (low, high)]
        axes.plot(ends, [y, y], color=colour, linewidth=1.4, zorder=2)
    axes.plot(100 * row[f"{prefix}accuracy"], y, marker, color=colour, markersize=5, zorder=3)


def _draw_controls(axes: Axes, first: int, controls: Mapping) -> list[str]:
    """Draw the controls from row `first` on, and give their labels."""
    colour = controls["colour_alone"]
    if colour["interval"]:
        ends = [100 * end for end in colour["interval"]]
        axes.plot(ends, [first, first], color=INK, linewidth=1.4)
    axes.plot(100 * colour["accuracy"], first, "D", color=INK, markersize=5)
    exchanged = controls["exchanged"]
    ends = [100 * exchanged["median"], 100 * exchanged["p95"]]
    axes.plot(ends, [first + 1, first + 1], color=GREY, linewidth=1.4)
    axes.plot(ends, [first + 1, first + 1], "|", color=GREY, markersize=9, markeredgewidth=2)
    axes.plot(100 * exchanged["chance"], first + 1, "x", color=INK, markersize=6)
    return ["colour alone, no network", "sites exchanged, 1/K (x)"]


def _legend() -> list[Patch | Line2D]:
    return [
        Patch(color=SHOWN, label="the network as it is"),
        Patch(color=REFITTED, label="last layer fitted anew for such patches"),
        Line2D([], [], color=GREY, linestyle=(0, (4, 4)), label="patches as they are"),
        Line2D([], [], color=GREY, label="95 % interval of the difference from these"),
        Line2D([], [], color=GREY, marker="|", label="sites exchanged: median, 95th percentile"),
    ]
