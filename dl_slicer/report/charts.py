"""The geometry of the training curves: where lines, points and labels of a chart lie.

All lengths are in units of the chart's own width and height.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dl_slicer.report.records import Epoch

WIDTH = 460
HEIGHT = 270
LEFT = 44
RIGHT = WIDTH - 14
TOP = 34
BOTTOM = HEIGHT - 34

MOST_EPOCHS_WITH_POINTS = 30
MOST_GRID_LINES = 5.2
MOST_EPOCH_LABELS = 8
LEGEND_GAP = 12
# A single bad epoch must not flatten all others: the axis of losses ends at so many times the loss
# that nine of ten stay below, and what lies above leaves the picture.
HIGHEST_LOSS = 3

Point = tuple[float, float]


@dataclass(frozen=True)
class GridLine:
    """A line across the chart, and the label at its left end."""

    y: float
    label: str


@dataclass(frozen=True)
class Tick:
    """An epoch's number under the chart."""

    x: float
    epoch: int


@dataclass(frozen=True)
class Curve:
    """One split: lines (several where parts lie beyond the chart) and points, as (x, y)."""

    split: str
    lines: list[list[Point]]
    points: list[Point]


@dataclass(frozen=True)
class LegendEntry:
    """A word whose right end is at x, and a piece of line that begins at line_x."""

    kind: str
    label: str
    x: float
    line_x: float


@dataclass(frozen=True)
class Chart:
    """One quantity of train and val over the epochs."""

    title: str
    description: str
    grid: list[GridLine]
    ticks: list[Tick]
    chosen_x: float | None  # of the epoch that was measured
    curves: list[Curve]
    legend: list[LegendEntry]

    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM


@dataclass(frozen=True)
class Axes:
    """From epochs and values to places in the chart."""

    first: int
    last: int
    highest: float  # the value at the upper edge; 0 lies at the lower one

    def x(self, epoch: float) -> float:
        """Give the distance from the left edge."""
        span = self.last - self.first
        share = (epoch - self.first) / span if span > 0 else 0.5
        return LEFT + (RIGHT - LEFT) * share

    def y(self, value: float) -> float:
        """Give the distance from the upper edge; above the chart for what is beyond `highest`."""
        return TOP + (BOTTOM - TOP) * (1 - value / self.highest)


def accuracy_chart(log: Sequence[Epoch], chosen: int | None) -> Chart:
    """Lay out train and val accuracy; log: at least one epoch; chosen: the epoch measured."""
    series = {
        "train": [(row.epoch, row.train_accuracy) for row in log],
        "val": [(row.epoch, row.val_accuracy) for row in log],
    }
    axes = _axes(log, highest=1.0)
    grid = [GridLine(axes.y(value), f"{100 * value:.0f} %") for value in _grid_values(1.0)]
    return _chart("Accuracy", series, axes, grid, chosen)


def loss_chart(log: Sequence[Epoch], chosen: int | None) -> Chart | None:
    """Lay out train and val loss, as accuracy_chart; None if no loss is finite."""
    series = {
        "train": [(row.epoch, row.train_loss) for row in log],
        "val": [(row.epoch, row.val_loss) for row in log],
    }
    values = sorted(
        value for points in series.values() for _, value in points if math.isfinite(value)
    )
    if not values:
        return None
    most = HIGHEST_LOSS * values[int(0.9 * (len(values) - 1))]
    highest = max(1e-9, min(values[-1], most)) * 1.05
    axes = _axes(log, highest)
    grid = [GridLine(axes.y(value), f"{value:g}") for value in _grid_values(highest)]
    return _chart("Loss", series, axes, grid, chosen)


def _axes(log: Sequence[Epoch], highest: float) -> Axes:
    last = max(row.epoch for row in log)
    return Axes(first=min(1, last), last=last, highest=highest)


def _grid_values(highest: float) -> list[float]:
    """Round values from 0 to `highest`: steps of 1, 2 or 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(highest / 2))
    steps = [power * factor for factor in (1, 2, 5, 10)]
    step = next(step for step in steps if highest / step <= MOST_GRID_LINES)
    return [i * step for i in range(int(highest / step + 1e-6) + 1)]


def _chart(
    title: str,
    series: dict[str, list[tuple[int, float]]],
    axes: Axes,
    grid: list[GridLine],
    chosen: int | None,
) -> Chart:
    ends = [
        f"{split} from {points[0][1]:.3g} to {points[-1][1]:.3g}"
        for split, points in series.items()
    ]
    epochs = len(series["train"])
    chosen_x = axes.x(chosen) if chosen and axes.first <= chosen <= axes.last else None
    return Chart(
        title=title,
        description=f"{title} over {epochs} epochs: {', '.join(ends)}",
        grid=grid,
        ticks=[Tick(axes.x(epoch), epoch) for epoch in _labelled_epochs(axes)],
        chosen_x=chosen_x,
        curves=[_curve(split, points, axes) for split, points in series.items()],
        legend=_legend(with_chosen=chosen_x is not None),
    )


def _labelled_epochs(axes: Axes) -> list[int]:
    """The first epoch and every so many, few enough to be read."""
    powers = [10**exponent for exponent in range(10)]
    steps = [factor * power for power in powers for factor in (1, 2, 5)]
    step = next(step for step in steps if axes.last / step <= MOST_EPOCH_LABELS)
    epochs = {axes.first, *range(step, axes.last + 1, step)}
    if step > 1 and step - axes.first == 1:
        epochs.remove(step)  # its number would touch the first one's
    return sorted(epochs)


def _curve(split: str, points: list[tuple[int, float]], axes: Axes) -> Curve:
    finite = [(epoch, value) for epoch, value in points if math.isfinite(value)]
    inside = [(epoch, value) for epoch, value in finite if value <= axes.highest]
    with_points = len(points) <= MOST_EPOCHS_WITH_POINTS
    return Curve(
        split=split,
        lines=[
            [(axes.x(epoch), axes.y(value)) for epoch, value in line]
            for line in _lines_inside(finite, axes.highest)
        ],
        points=[(axes.x(epoch), axes.y(value)) for epoch, value in inside] if with_points else [],
    )


def _lines_inside(points: list[tuple[int, float]], highest: float) -> list[list[Point]]:
    """The parts of a line through all points that lie below `highest`, cut where it leaves."""
    lines: list[list[Point]] = []
    previous = None
    for point in points:
        inside = point[1] <= highest
        was_inside = previous is not None and previous[1] <= highest
        if inside and not was_inside:
            lines.append([])
        if previous is not None and inside != was_inside:
            lines[-1].append(_crossing(previous, point, highest))
        if inside:
            lines[-1].append(point)
        previous = point
    return lines


def _crossing(one: Point, other: Point, height: float) -> Point:
    """Where the line from one point to another passes a height."""
    share = (height - one[1]) / (other[1] - one[1])
    return one[0] + share * (other[0] - one[0]), height


def _legend(with_chosen: bool) -> list[LegendEntry]:
    """The entries from the right to the left."""
    words = [("val", "watched (val)", 92), ("train", "train", 42)]
    if with_chosen:
        words.insert(0, ("chosen", "epoch measured", 112))
    entries = []
    x = RIGHT
    for kind, label, length in words:
        entries.append(LegendEntry(kind, label, x=x, line_x=x - length))
        x -= length + LEGEND_GAP
    return entries
