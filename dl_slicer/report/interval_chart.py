"""The geometry of a chart of accuracies with their intervals: a line a model, the best on top.

All lengths are in units of the chart's own width and height.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dl_slicer.report.runs_files import Run

WIDTH = 380
LEFT = 20
RIGHT = WIDTH - 20
TOP = 44  # below the title, and the label of the paper's line
LINE_HEIGHT = 38
BELOW = 26  # for the labels of the axis
LONGEST_NAME = 38  # characters that fit beside the figure
MOST_GRID_LINES = 6
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class GridLine:
    """A line across the chart, and the label below it."""

    x: float
    label: str


@dataclass(frozen=True)
class Line:
    """A model: its name above its interval and its point."""

    kind: str  # as CSS calls it
    name: str
    value: float  # a share
    x: float
    ends: tuple[float, float] | None
    text_y: float
    y: float


@dataclass(frozen=True)
class Chart:
    """Accuracies beside that of the paper."""

    description: str
    grid: list[GridLine]
    paper_x: float
    lines: list[Line]
    height: float

    width: int = WIDTH
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP

    @property
    def bottom(self) -> float:
        """Where the axis lies."""
        return self.height - BELOW


def lay_out(runs: Sequence[Run], paper: float) -> Chart:
    """Lay out the top-1 accuracy of at least one model; paper: that of the paper, a share."""
    ordered = sorted(runs, key=lambda run: -run.top1)
    values = [paper, *(run.top1 for run in runs)]
    values += [end for run in runs for end in run.interval or ()]
    low, high, step = _axis(min(values), max(values))

    def x(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (value - low) / (high - low)

    lines = [
        Line(
            kind="train" if run.is_of_authors else "val",
            name=shorten(run.model),
            value=run.top1,
            x=x(run.top1),
            ends=run.interval and (x(run.interval[0]), x(run.interval[1])),
            text_y=TOP + number * LINE_HEIGHT + 12,
            y=TOP + number * LINE_HEIGHT + 27,
        )
        for number, run in enumerate(ordered)
    ]
    marks = [low + number * step for number in range(round((high - low) / step) + 1)]
    best = ordered[0]
    return Chart(
        description=f"Top-1 accuracy of {len(runs)} models with 95 % intervals: from"
        f" {100 * ordered[-1].top1:.1f} to {100 * best.top1:.1f} %; the paper: {100 * paper:.0f} %",
        grid=[GridLine(x(mark), f"{100 * mark:.0f} %") for mark in marks],
        paper_x=x(paper),
        lines=lines,
        height=TOP + LINE_HEIGHT * len(lines) + BELOW,
    )


def _axis(least: float, most: float) -> tuple[float, float, float]:
    """Give both ends of the axis and the step between its marks, so that all values are inside."""
    for step in STEPS:
        first = math.floor(least / step)
        last = math.ceil(most / step)
        if last - first <= MOST_GRID_LINES and last > first:
            return first * step, last * step, step
    raise AssertionError("from 0 to 1 there are five steps of 0.2")


def shorten(name: str) -> str:
    """Give a name that fits into the chart."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
