"""Two models on the same patches: what each recognises that the other does not.

Needs no torch.
"""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats

from dl_slicer.cities import labels
from dl_slicer.cli import InputError, printable
from dl_slicer.files import atomic, write_rows
from dl_slicer.results import paired_intervals
from dl_slicer.results.intervals import Interval, describe_interval, group_by_raster
from dl_slicer.results.saved_predictions import SavedPredictions, read_predictions

TOO_SURE = (
    "it takes patches as independent, which neighbours are not: its p value is too small,"
    " the interval over rasters is the one to go by"
)


@dataclass(frozen=True)
class Comparison:
    """Two tests on the same N patches, in the same order, and what was found."""

    a: SavedPredictions
    b: SavedPredictions
    names: tuple[str, str]  # short, of a and b
    found: dict  # comparison.json
    cities: list[dict]  # rows of per_city.csv


def compare(folder_a: str | Path, folder_b: str | Path) -> Comparison:
    """Compare what test_classification.py left in two folders.

    InputError if results are missing or damaged, or not of the same patches.
    """
    if Path(folder_a).resolve() == Path(folder_b).resolve():
        raise InputError(f"{printable(folder_b)}: given twice; give the results of two models")
    a = read_predictions(folder_a)
    b = in_order_of(a, read_predictions(folder_b))
    names = short_names(a.folder, b.folder)
    overall, by_city = paired_intervals.paired_intervals(
        a.labels, a.right, b.right, a.rasters, len(a.cities)
    )
    return Comparison(a, b, names, summarise(a, b, names, overall), city_rows(a, b, by_city))


def short_names(a: Path, b: Path) -> tuple[str, str]:
    """Name two folders by the part of their paths in which they differ, counted from the end.

    checkpoints/resnet50/test_b and checkpoints/resnet18/test_b are resnet50 and resnet18.
    """
    a = Path(os.path.abspath(a))
    b = Path(os.path.abspath(b))
    pairs = zip(reversed(a.parts), reversed(b.parts), strict=False)
    differing = (pair for pair in pairs if pair[0] != pair[1])
    return next(differing, (a.name, b.name))


# The same patches


def in_order_of(a: SavedPredictions, b: SavedPredictions) -> SavedPredictions:
    """Give b with its patches in a's order; InputError, with a remedy, if they are not a's."""
    place = {patch: i for i, patch in enumerate(b.patches)}
    difference = _difference(a, b, place)
    if difference:
        raise InputError(
            f"{printable(b.folder)}: other patches than {printable(a.folder)}"
            f" ({printable(difference)}); {printable(_remedy(a, b))}"
        )
    order = [place[patch] for patch in a.patches]
    return replace(
        b,
        patches=a.patches,
        rasters=a.rasters,
        true=a.true,
        predicted=[b.predicted[i] for i in order],
        probability=b.probability[order],
        true_probability=b.true_probability[order],
    )


def _difference(a: SavedPredictions, b: SavedPredictions, place: dict[str, int]) -> str | None:
    """Say how b's patches differ from a's; None if they are the same. place: of b's patches."""
    names_of_a = set(a.patches)
    lacking = [patch for patch in a.patches if patch not in place]
    more = [patch for patch in b.patches if patch not in names_of_a]
    faults = []
    if lacking:
        faults.append(f"it lacks {len(lacking)} of {len(a.patches)}, such as {lacking[0]}")
    if more:
        faults.append(f"it has {len(more)} others, such as {more[0]}")
    if faults:
        return " and ".join(faults)
    if _differ(a.made.patch_size, b.made.patch_size) or _differ(a.made.stride, b.made.stride):
        sizes = [f"{test.made.patch_size} pixels every {test.made.stride}" for test in (b, a)]
        return f"they are {sizes[0]}, there {sizes[1]}"
    for i, patch in enumerate(a.patches):
        k = place[patch]
        for noun, of_a, of_b in (("city", a.true, b.true), ("raster", a.rasters, b.rasters)):
            if of_a[i] != of_b[k]:
                return f"{patch} is of the {noun} {of_b[k]}, there of {of_a[i]}"
    return None


def _differ(one: int | None, other: int | None) -> bool:
    """Whether two sizes differ as far as both are known."""
    return None not in (one, other) and one != other


def _remedy(a: SavedPredictions, b: SavedPredictions) -> str:
    """Say which command gives b the patches of a."""
    if not all((a.made.data, a.made.split, a.made.checkpoint, b.made.checkpoint)):
        return "measure both on the same with test_classification.py"
    if (a.made.data, a.made.split) != (b.made.data, b.made.split):
        return f"measure it on the same: {_test_command(a, b)}"
    again = [f"{_test_command(a, test)} --out {shlex.quote(str(test.folder))}" for test in (a, b)]
    return f"the patch set has changed between them; measure both again: {' && '.join(again)}"


def _test_command(patches: SavedPredictions, model: SavedPredictions) -> str:
    """Give the command that measures one's model on the other's patches."""
    words = ["python", "test_classification.py", "--checkpoint", model.made.checkpoint]
    words += ["--data", patches.made.data, "--split", patches.made.split]
    return shlex.join([*words, "--tta"] if model.made.tta else words)


# What was found


def summarise(
    a: SavedPredictions,
    b: SavedPredictions,
    names: Sequence[str],
    interval: Interval | None,
) -> dict:
    """Give what comparison.json says. interval: of the difference; shares lie in 0 .. 1."""
    rasters = len(group_by_raster(a.labels, a.rasters)[1])
    # The test also knows in which folders rasters are uncertain.
    words = printable(a.made.interval) or describe_interval(a.labels, a.rasters)
    return {
        "a": _describe(a, names[0]),
        "b": _describe(b, names[1]),
        "n": len(a.patches),
        "n_rasters": rasters,
        "difference": float(a.right.mean()) - float(b.right.mean()),
        "difference_ci95": interval,
        "interval": f"{words}; the same draws for both" if interval else words,
        "few_rasters": paired_intervals.describe_coverage(rasters) if interval else None,
        "mcnemar": mcnemar(a.right, b.right),
    }


def _describe(test: SavedPredictions, name: str) -> dict:
    return {
        "name": name,
        "results": str(test.folder),
        "checkpoint": test.made.checkpoint,
        "arch": test.made.arch,
        "data": test.made.data,
        "split": test.made.split,
        "tta": test.made.tta,
        "accuracy": float(test.right.mean()),
    }


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> dict:
    """McNemar's table of patches, and the exact p value of as many that one alone recognises.

    right_a, right_b: (N,) bool. McNemar, Psychometrika 12, 1947.
    """
    only_a = int((right_a & ~right_b).sum())
    only_b = int((right_b & ~right_a).sum())
    differing = only_a + only_b
    p_value = stats.binomtest(only_a, differing).pvalue if differing else 1.0
    return {
        "both_right": int((right_a & right_b).sum()),
        "only_a_right": only_a,
        "only_b_right": only_b,
        "both_wrong": int((~right_a & ~right_b).sum()),
        "p_value": float(p_value),
        "remark": TOO_SURE,
    }


def city_rows(
    a: SavedPredictions, b: SavedPredictions, by_city: Sequence[Interval | None]
) -> list[dict]:
    """Give the rows of per_city.csv, one a city: its columns are the keys of the dict below.

    by_city: the interval of each city's difference.
    """
    cities = len(a.cities)
    patches = np.bincount(a.labels, minlength=cities)
    rasters = np.bincount(group_by_raster(a.labels, a.rasters)[1], minlength=cities)
    right_a = np.bincount(a.labels, a.right, cities)
    right_b = np.bincount(a.labels, b.right, cities)
    only_a = np.bincount(a.labels, a.right & ~b.right, cities)
    only_b = np.bincount(a.labels, b.right & ~a.right, cities)
    codes = labels(a.cities)
    rows = []
    for k, city in enumerate(a.cities):
        low, high = by_city[k] or (None, None)
        row = {
            "city": city,
            "code": codes[k],
            "n": int(patches[k]),
            "rasters": int(rasters[k]),
            "accuracy_a": float(right_a[k] / patches[k]),
            "accuracy_b": float(right_b[k] / patches[k]),
            "difference": float((right_a[k] - right_b[k]) / patches[k]),
            "ci95_low": low,
            "ci95_high": high,
            "only_a_right": int(only_a[k]),
            "only_b_right": int(only_b[k]),
        }
        rows.append(row)
    return rows


def patch_rows(comparison: Comparison) -> list[dict]:
    """Give the rows of patches.csv, one for each patch that one model alone recognises.

    recognised_by is "a" or "b"; probability_a that of predicted_a.
    """
    a = comparison.a
    b = comparison.b
    rows = []
    for i in np.flatnonzero(a.right != b.right).tolist():
        row = {
            "patch": a.patches[i],
            "raster": a.rasters[i],
            "true": a.true[i],
            "recognised_by": "a" if a.right[i] else "b",
            "predicted_a": a.predicted[i],
            "predicted_b": b.predicted[i],
            "probability_a": f"{a.probability[i]:.6f}",
            "probability_b": f"{b.probability[i]:.6f}",
            "true_probability_a": f"{a.true_probability[i]:.6f}",
            "true_probability_b": f"{b.true_probability[i]:.6f}",
        }
        rows.append(row)
    return rows


def write_tables(out: Path, comparison: Comparison) -> None:
    """Write comparison.json, per_city.csv and patches.csv into a folder."""
    text = json.dumps(comparison.found, indent=1, ensure_ascii=False, allow_nan=False)
    path = out / "comparison.json"
    with atomic(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    cities = comparison.cities
    write_rows(out / "per_city.csv", list(cities[0]), (row.values() for row in cities))
    patches = patch_rows(comparison)
    columns = list(patches[0]) if patches else []  # nothing differs
    write_rows(out / "patches.csv", columns, (row.values() for row in patches))


# On the terminal


def print_comparison(comparison: Comparison) -> None:
    """Print a line a city, and below what is said of all."""
    found = comparison.found
    for letter in ("a", "b"):
        test = found[letter]
        share = f"{100 * test['accuracy']:.2f} %"
        print(f"{letter.upper()}  {printable(test['name'])}: {share}  {printable(test['results'])}")
    print(
        f"\n{'city':<28}{'patches':>8}{'rasters':>8}{'A %':>8}{'B %':>8}{'A - B':>8}"
        f"{'95 %':>16}{'only A':>8}{'only B':>8}"
    )
    for row in comparison.cities:
        print(_city_line(row))
    print(f"\n{describe_difference(found)}\ninterval: {found['interval']}")
    if found["few_rasters"]:
        print(found["few_rasters"])
    print(f"\n{describe_mcnemar(found['mcnemar'])}")


def _city_line(row: dict) -> str:
    interval = ""
    if row["ci95_low"] is not None:
        interval = f"{_points(row['ci95_low'])} to {_points(row['ci95_high'])}"
    return (
        f"{printable(row['city']):<28}{row['n']:>8}{row['rasters']:>8}"
        f"{100 * row['accuracy_a']:>8.1f}{100 * row['accuracy_b']:>8.1f}"
        f"{_points(row['difference']):>8}{interval:>16}"
        f"{row['only_a_right']:>8}{row['only_b_right']:>8}"
    )


def describe_difference(found: dict) -> str:
    """Say by how much A is better than B, in one line. found: as in comparison.json."""
    text = f"A - B: {_points(found['difference'], 2)} points"
    if found["difference_ci95"] is None:
        return text
    low, high = found["difference_ci95"]
    text += f" (95 %: {_points(low, 2)} to {_points(high, 2)})"
    if low <= 0 <= high:
        return f"{text}: which of them is better cannot be told from these rasters"
    return f"{text}: {'A' if low > 0 else 'B'} is better on rasters like these"


def describe_mcnemar(table: dict) -> str:
    """Set McNemar's table in lines, with its p value and what that is worth."""
    return (
        f"McNemar's table, patches:{'B right':>15}{'B wrong':>10}\n"
        f"{'A right':>30}{table['both_right']:>10}{table['only_a_right']:>10}\n"
        f"{'A wrong':>30}{table['only_b_right']:>10}{table['both_wrong']:>10}\n"
        f"exact p {table['p_value']:.2g}: {table['remark']}"
    )


def _points(share: float, digits: int = 1) -> str:
    """A difference of shares in points of per cent, with its sign."""
    return f"{100 * share:+.{digits}f}"
