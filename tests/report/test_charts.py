"""Where lines, points and labels of the charts lie."""

import math

import pytest

from dl_slicer.report import charts, confusion
from dl_slicer.report.records import Confusion, Epoch


def log(*losses):
    """Epochs with these val losses, and a train loss of 1."""
    return [Epoch(i, 1.0, 0.5, loss, 0.5) for i, loss in enumerate(losses, 1)]


def val_curve(*losses):
    chart = charts.loss_chart(log(*losses), chosen=None)
    return next(curve for curve in chart.curves if curve.split == "val")


def inside(x, y):
    return charts.LEFT <= x <= charts.RIGHT and charts.TOP <= y <= charts.BOTTOM


def test_one_line_through_all_points_where_none_is_beyond():
    curve = val_curve(1.5, 1.2, 1.1)
    assert len(curve.lines) == 1
    assert curve.lines[0] == curve.points
    assert [x for x, _ in curve.points] == [charts.LEFT, 245, charts.RIGHT]
    assert all(inside(*point) for point in curve.points)


def test_a_point_beyond_the_chart_is_left_out_and_its_line_leaves_the_picture():
    curve = val_curve(1.0, 90.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    assert len(curve.points) == 8
    assert len(curve.lines) == 2
    up, down = curve.lines
    assert up[-1][1] == charts.TOP
    assert down[0][1] == charts.TOP
    assert all(inside(*point) for line in curve.lines for point in line)
    # The pieces lie on the lines to the point that is left out.
    axes = charts.Axes(1, 9, 3 * 1.05)
    share = (3.15 - 1) / (90 - 1)
    assert up[-1][0] == pytest.approx(axes.x(1 + share))
    assert down[0][0] == pytest.approx(axes.x(3 - share))


def test_a_line_comes_in_where_the_first_point_is_beyond():
    curve = val_curve(90.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    assert len(curve.lines) == 1
    assert curve.lines[0][0][1] == charts.TOP
    assert curve.lines[0][0][0] > charts.LEFT
    assert len(curve.points) == 5


def test_two_neighbours_beyond_leave_a_gap():
    curve = val_curve(*[1.0] * 20, 90.0, 80.0, 1.0)
    assert len(curve.lines) == 2
    assert [len(line) for line in curve.lines] == [21, 2]


def test_what_is_no_number_is_passed_over():
    curve = val_curve(1.0, math.nan, 1.2, math.inf, 1.1)
    assert len(curve.points) == 3
    assert curve.lines == [curve.points]


def test_no_chart_without_a_finite_loss():
    lost = [Epoch(1, math.nan, 0.5, math.inf, 0.5)]
    assert charts.loss_chart(lost, chosen=1) is None
    assert charts.accuracy_chart(lost, chosen=1) is not None


def test_one_epoch_lies_in_the_middle():
    chart = charts.accuracy_chart(log(1.0), chosen=1)
    assert chart.chosen_x == (charts.LEFT + charts.RIGHT) / 2
    assert [tick.epoch for tick in chart.ticks] == [1]


@pytest.mark.parametrize(
    ("epochs", "ticks"),
    [
        (3, [1, 2, 3]),
        (12, [1, 4, 6, 8, 10, 12]),
        (100, [1, 20, 40, 60, 80, 100]),
        (10**6, [1, *range(200_000, 10**6 + 1, 200_000)]),
    ],
)
def test_few_epochs_are_labelled(epochs, ticks):
    rows = [Epoch(epoch, 1.0, 0.5, 1.0, 0.5) for epoch in (1, epochs)]
    chart = charts.loss_chart(rows, chosen=None)
    assert [tick.epoch for tick in chart.ticks] == ticks
    assert chart.chosen_x is None
    assert [entry.kind for entry in chart.legend] == ["val", "train"]


@pytest.mark.parametrize("largest", [1e-12, 0.003, 0.9, 7.3, 1e30])
def test_grid_lines_are_round_and_few(largest):
    chart = charts.loss_chart([Epoch(1, largest, 0.5, largest, 0.5)], chosen=1)
    labels = [float(line.label) for line in chart.grid]
    assert 2 <= len(labels) <= 6
    assert labels[0] == 0
    assert chart.grid[0].y == charts.BOTTOM
    assert all(f"{label:.0e}"[0] in "0123456789" for label in labels)
    assert all(charts.TOP <= line.y <= charts.BOTTOM for line in chart.grid)


def test_the_matrix_leaves_out_empty_cells():
    matrix = confusion.lay_out(Confusion(["Aa (AAA)", "Bb"], [[399, 1], [0, 0]]))
    first, second = matrix.rows
    assert [(cell.n, cell.of, cell.number) for cell in first.cells] == [
        (399, 400, "100"),
        (1, 400, "<1"),
    ]
    assert second.cells == []
    assert (first.code, second.code) == ("AAA", "Bb")
    assert matrix.right == 399
    assert first.cells[0].right
    assert first.cells[0].strong
    assert not first.cells[1].strong


def test_a_large_matrix_has_no_numbers():
    cities = [f"City {i}" for i in range(16)]
    counts = [[int(i == j) for j in range(16)] for i in range(16)]
    matrix = confusion.lay_out(Confusion(cities, counts))
    assert not matrix.with_numbers
    assert {cell.number for row in matrix.rows for cell in row.cells} == {""}
