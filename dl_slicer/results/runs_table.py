"""Several models beside the paper: a row each, their differences, and how far they agree.

Made from the results that test_classification.py left of each, read back from their folders.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy import stats

from dl_slicer.cli import InputError, printable
from dl_slicer.files import atomic, write_rows
from dl_slicer.model import networks
from dl_slicer.results.paired_intervals import paired_interval
from dl_slicer.results.saved_predictions import SavedPredictions, read_predictions

TABLE = "table.csv"
MOST_PAIRS = 30  # of rows that table.md lists; differences.csv has them all
FEWEST_CITIES = 3  # whose order says something
PAPER = "the paper: ResNet-50, 500 patches of each of 45 cities"
PAPER_TOP1 = 0.84

DIFFERENCES = ("a", "b", "difference", "low", "high", "patches", "rasters")
AGREEMENT = ("a", "b", "rank_correlation", "cities")


@dataclass(frozen=True)
class Measured:
    """A model that was measured on a split, and what is known of it. None: not known."""

    name: str  # of the row, and of its folder
    arch: str
    trained_by: str  # here, or the authors
    checkpoint: Path
    data: str  # as the test calls it
    test_patches: str  # in words
    classes: int
    chosen_epoch: str  # why this checkpoint, in words
    recipe: str | None = None
    seed: int | None = None
    epochs: int | None = None
    hours: float | None = None
    split: str = "test_b"

    @property
    def results(self) -> str:
        """The folder of its results, relative to that of the tables."""
        return f"{self.name}/{self.split}"


def write_tables(out: Path, models: Sequence[Measured]) -> str:
    """Write table.csv, differences.csv, agreement.csv and table.md. Give what table.md says.

    InputError if the results of a model are missing or damaged.
    """
    predictions = [read_predictions(out / model.results) for model in models]
    rows = [table_row(out, model) for model in models]
    names = [model.name for model in models]
    pairs = list(combinations(zip(names, predictions, strict=True), 2))
    differences = [row for a, b in pairs if (row := difference(a, b))]
    agreements = [agreement(a, b) for a, b in pairs]
    write_rows(out / "differences.csv", DIFFERENCES, differences)
    write_rows(out / "agreement.csv", AGREEMENT, agreements)
    text = "\n".join(markdown(rows, differences, agreements))
    with atomic(out / "table.md", "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    write_rows(out / TABLE, list(rows[0]), (row.values() for row in rows))
    return text


def table_row(out: Path, model: Measured) -> dict[str, object]:
    """Give a row of table.csv: its columns are the keys of the dict below. Shares are 0 .. 1."""
    path = out / model.results / "metrics.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        low, high = found["accuracy_ci95"] or (None, None)
        return {
            "model": model.name,
            "arch": model.arch,
            "recipe": model.recipe,
            "seed": model.seed,
            "trained_by": model.trained_by,
            "parameters": networks.count_parameters(model.arch, model.classes),
            "epochs": model.epochs,
            "hours": model.hours,
            "patches": found["n"],
            "rasters": found["n_rasters"],
            "top1": found["accuracy"],
            "top1_low": low,
            "top1_high": high,
            "top5": found["top5_accuracy"],
            "macro_f1": found["macro_f1"],
            "whole_rasters": found["raster_accuracy"],
            "test_patches": model.test_patches,
            "results": model.results,
            "report": f"{model.results}/report.html",
            "epoch": found["epoch"],
            "chosen_epoch": model.chosen_epoch,
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{printable(path)}: no whole results of test_classification.py ({printable(error)});"
            " delete its folder and run the same command again"
        ) from None


Named = tuple[str, SavedPredictions]


def difference(a: Named, b: Named) -> tuple | None:
    """Give a row of differences.csv: a's accuracy less b's. None if their patches differ."""
    (name_a, of_a), (name_b, of_b) = a, b
    place = {patch: i for i, patch in enumerate(of_b.patches)}
    order = [place.get(patch) for patch in of_a.patches]
    if None in order or len(order) != len(of_b.patches):
        return None
    rasters = of_a.rasters
    found, interval = paired_interval(
        of_a.labels, of_a.right, of_b.right[order], rasters, len(of_a.cities)
    )
    low, high = interval or (None, None)
    count = len(set(zip(of_a.true, rasters, strict=True)))
    return name_a, name_b, found, low, high, len(rasters), count


def agreement(a: Named, b: Named) -> tuple:
    """Give a row of agreement.csv: how far the same cities are hard for both (Spearman).

    None where one of them does all cities equally well, or where there are too few.
    """
    accuracy_a, accuracy_b = (accuracy_of_cities(found) for _, found in (a, b))
    both = [city for city in accuracy_a if city in accuracy_b]
    values = [[accuracy[city] for city in both] for accuracy in (accuracy_a, accuracy_b)]
    correlation = None
    if len(both) >= FEWEST_CITIES and all(len(set(each)) > 1 for each in values):
        correlation = float(stats.spearmanr(*values).statistic)
    return a[0], b[0], correlation, len(both)


def accuracy_of_cities(found: SavedPredictions) -> dict[str, float]:
    """{city: share of its patches that were recognised}."""
    right = np.bincount(found.labels, found.right, len(found.cities))
    patches = np.bincount(found.labels, minlength=len(found.cities))
    return dict(zip(found.cities, (right / patches).tolist(), strict=True))


# ----------------------------------------------------------------------------------- table.md


def markdown(
    rows: Sequence[dict], differences: Sequence[tuple], agreements: Sequence[tuple]
) -> Iterable[str]:
    """Give the lines of table.md."""
    yield (
        "| model | parameters, millions | epochs | hours | top-1, % | 95 % | top-5, %"
        " | macro F1, % | whole rasters, % | tested on | epoch measured |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    yield f"| {PAPER} | | 100 | | {percent(PAPER_TOP1, 0)} | | | | | published test_b | |"
    for row in rows:
        cells = (
            f"[{row['model']}]({row['report']})",
            f"{row['parameters'] / 1e6:.1f}",
            row["epochs"],
            None if row["hours"] is None else f"{row['hours']:.2f}",
            percent(row["top1"]),
            interval_text(row["top1_low"], row["top1_high"]),
            percent(row["top5"]),
            percent(row["macro_f1"]),
            percent(row["whole_rasters"]),
            f"{row['patches']} patches of {row['rasters']} rasters: {row['test_patches']}",
            epoch_text(row),
        )
        yield line_of(cells)
    if len(differences) > MOST_PAIRS:
        yield "\nThe differences between models are in differences.csv, agreement in agreement.csv."
        return
    agrees = {(a, b): found for a, b, found, _ in agreements}
    if differences:
        yield "\n| a | b | top-1 of a less b, points | 95 % | cities' order alike (-1 to 1) |"
        yield "|---|---|---|---|---|"
    for a, b, found, low, high, *_ in differences:
        alike = agrees[a, b]
        alike_text = None if alike is None else f"{alike:.2f}"
        interval = interval_text(low, high, signed=True)
        yield line_of((a, b, f"{100 * found:+.1f}", interval, alike_text))


def epoch_text(row: dict) -> str:
    """Say which epoch was measured."""
    number = "" if row["epoch"] is None else f"{row['epoch']}, "
    return f"{number}{row['chosen_epoch']}"


def line_of(cells: Iterable[object]) -> str:
    """Set a row in Markdown; None is an empty cell."""
    texts = ("" if cell is None else str(cell) for cell in cells)
    return f"| {' | '.join(texts)} |"


def percent(share: float, places: int = 1) -> str:
    """Give a share in per cent, as text."""
    return f"{100 * share:.{places}f}"


def interval_text(low: float | None, high: float | None, signed: bool = False) -> str:
    """Give an interval of shares in per cent; empty where there is none."""
    if low is None or high is None:
        return ""
    sign = "+" if signed else ""
    return f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"
