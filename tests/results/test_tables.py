"""The tables and diagrams of a test, from predictions made up in memory."""

import numpy as np
import pytest
from PIL import Image

from dl_slicer.report import page
from dl_slicer.results import tables

PATCHES = 10  # of each city


def predictions_of(classes, seed=0):
    rng = np.random.default_rng(seed)
    true = np.repeat(np.arange(len(classes)), PATCHES)
    probabilities = rng.dirichlet(np.full(len(classes), 0.05), len(true))
    hits = rng.random(len(true)) < 0.5
    probabilities[hits] *= 0.1
    probabilities[hits, true[hits]] += 0.9
    return tables.Predictions(
        classes=list(classes),
        names=[f"p{i}" for i in range(len(true))],
        rasters=[f"{label}/{i % 2}" for i, label in enumerate(true)],
        true=true,
        probabilities=probabilities,
        features=rng.random((len(true), 8)),
    )


CIRCUMSTANCES = {
    "checkpoint": "run/best.pth",
    "epoch": 1,
    "arch": "resnet18",
    "data": "nowhere",
    "split": "test",
}


@pytest.mark.filterwarnings("error")  # Pillow's of pictures too large, too
def test_three_hundred_cities(tmp_path):
    """Diagrams stay as large as programs open, and the page can be made of all files."""
    classes = [f"City number {i} (C{i:03d})" for i in range(300)]
    results = tables.write_results(tmp_path, predictions_of(classes), CIRCUMSTANCES)
    tables.print_results(results)
    for name in ("confusion_matrix", "confusion_matrix_percent", "similarity"):
        with Image.open(tmp_path / f"{name}.png") as diagram:
            assert max(diagram.size) <= 4000
            diagram.load()
    assert page.write_report(tmp_path, tmp_path).stat().st_size < 10e6


@pytest.mark.filterwarnings("error")  # matplotlib's of maps without room, too
def test_long_names_leave_room_for_the_map(tmp_path):
    classes = [f"{letter * 190} {letter}" for letter in "ab"]
    tables.write_results(tmp_path, predictions_of(classes), CIRCUMSTANCES)
    assert (tmp_path / "similarity.png").is_file()


def test_cities_of_one_code_are_told_apart(tmp_path, capsys):
    same = ["San Jose (SJ)", "Sankt Johann (SJ)"]
    results = tables.write_results(tmp_path, predictions_of([*same, "Rome (FCO)"]), CIRCUMSTANCES)
    assert [row["code"] for row in results.cities] == [*same, "FCO"]
    assert [row["code"] for row in results.nearest] == [*same, "FCO"]
    tables.print_results(results)
    nearest = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert not any(words[-1] == "SJ" for words in nearest if words)
