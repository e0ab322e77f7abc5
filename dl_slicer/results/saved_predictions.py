"""What test_classification.py left in a folder of results, read back and checked.

Needs no torch. What is missing or damaged is told in one line.
"""

import csv
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from dl_slicer.cities import fault_of_name
from dl_slicer.cli import InputError, printable

METRICS = "metrics.json"
PREDICTIONS = "predictions.csv"
TEXTS = ("patch", "true", "predicted", "raster")  # columns of predictions.csv
PROBABILITIES = ("probability", "true_probability")
SITE = "site"  # a column that predictions of before do not have
LONGEST_REASON = 200  # characters

DAMAGE = (KeyError, ValueError, TypeError, OverflowError, RecursionError, csv.Error)

Value = TypeVar("Value", str, int, bool)


@dataclass(frozen=True)
class Circumstances:
    """What metrics.json says of how a test was made; None or "" in results that do not say."""

    n: int  # patches
    checkpoint: str
    data: str
    split: str
    arch: str
    interval: str  # what the interval of the accuracy is over, in words
    tta: bool
    patch_size: int | None
    stride: int | None
    image_size: int | None


@dataclass(frozen=True)
class SavedPredictions:
    """The rows of predictions.csv as columns, of N patches, and how they were made."""

    folder: Path
    made: Circumstances
    patches: list[str]  # names, each once
    rasters: list[str]
    true: list[str]  # cities
    predicted: list[str]
    probability: np.ndarray = field(repr=False)  # (N,) of the predicted city
    true_probability: np.ndarray = field(repr=False)  # (N,)
    sites: list[str] = field(default_factory=list)  # within their cities; "" where not known

    @cached_property
    def right(self) -> np.ndarray:
        """Which patches' cities were recognised: (N,) bool."""
        pairs = zip(self.true, self.predicted, strict=True)
        return np.array([true == predicted for true, predicted in pairs], bool)

    @cached_property
    def cities(self) -> list[str]:
        """The names of the cities that have patches, sorted."""
        return sorted(set(self.true))

    @cached_property
    def labels(self) -> np.ndarray:
        """The number in `cities` of each patch's true city: (N,) int."""
        number = {city: k for k, city in enumerate(self.cities)}
        return np.array([number[city] for city in self.true])


def read_predictions(folder: str | Path) -> SavedPredictions:
    """Read predictions.csv and metrics.json in a folder of results of test_classification.py.

    InputError, in one line that names the file, if either is missing or damaged, or if they are
    not of one test.
    """
    folder = Path(folder)
    _check_folder(folder)
    with _refusing_damage(folder / METRICS):
        made = _circumstances(json.loads((folder / METRICS).read_text(encoding="utf-8")))
    with _refusing_damage(folder / PREDICTIONS):
        saved = _read_rows(folder, made)
        if len(saved.patches) != made.n:
            raise ValueError(f"it has {len(saved.patches)} rows, {METRICS} says {made.n} patches")
    return saved


def _check_folder(folder: Path) -> None:
    """InputError if there are no results, naming those that probably were meant."""
    if (folder / METRICS).is_file() or (folder / PREDICTIONS).is_file():
        return
    what = "no results in it" if folder.is_dir() else "no such folder"
    if folder.is_file():
        what = "a file; give the folder it lies in"
    inner = sorted(folder.glob(f"*/{METRICS}")) if folder.is_dir() else []
    advice = "measure a checkpoint with test_classification.py"
    if inner:
        advice = f"perhaps {printable(inner[0].parent)} was meant"
    raise InputError(f"{printable(folder)}: {what}; {advice}")


@contextmanager
def _refusing_damage(path: Path) -> Iterator[None]:
    """Turn what reading a damaged file raises into one line that names the file."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError("no file")
        yield
    except FileNotFoundError:
        raise _refusal(path, "not there") from None
    except DAMAGE as error:
        missing = isinstance(error, KeyError)
        raise _refusal(path, f"it has no {error.args[0]}" if missing else str(error)) from None


def _refusal(path: Path, reason: str) -> InputError:
    if len(reason) > LONGEST_REASON:
        reason = f"{reason[:LONGEST_REASON]} …"
    return InputError(
        f"{printable(path)}: no whole results of test_classification.py ({printable(reason)});"
        " run it again"
    )


def _circumstances(found: object) -> Circumstances:
    if not isinstance(found, dict):
        raise ValueError("not a mapping of names to values")
    if found.get("n") is None:
        raise KeyError("n")
    return Circumstances(
        n=_value(found, "n", int),
        checkpoint=_value(found, "checkpoint", str) or "",
        data=_value(found, "data", str) or "",
        split=_value(found, "split", str) or "",
        arch=_value(found, "arch", str) or "",
        interval=_value(found, "interval", str) or "",
        tta=_value(found, "tta", bool) or False,
        patch_size=_value(found, "patch_size", int),
        stride=_value(found, "stride", int),
        image_size=_value(found, "image_size", int),
    )


def _value(found: dict, key: str, kind: type[Value]) -> Value | None:
    value = found.get(key)
    if value is None:
        return None
    if type(value) is not kind or (kind is int and value <= 0):
        raise ValueError(f"{key}: {str(value)[:40]}")
    return value


def _read_rows(folder: Path, made: Circumstances) -> SavedPredictions:
    # Names of files may hold bytes that are no text in UTF-8: they are written as escapes.
    with open(folder / PREDICTIONS, newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines, strict=True)
        for column in (*TEXTS, *PROBABILITIES):
            if column not in (reader.fieldnames or ()):
                raise ValueError(f"it has no column {column}")
        texts = {column: [] for column in TEXTS}
        numbers = {column: [] for column in PROBABILITIES}
        sites = []
        line_of = {}
        for row in reader:
            try:
                _check_row(row, line_of)
                for column in PROBABILITIES:
                    numbers[column].append(_probability(row[column]))
            except ValueError as error:
                raise ValueError(f"line {reader.line_num}: {error}") from None
            line_of[row["patch"]] = reader.line_num
            for column in TEXTS:
                texts[column].append(row[column])
            sites.append(row.get(SITE, ""))
    if not line_of:
        raise ValueError("it has no rows")
    return SavedPredictions(
        folder,
        made,
        texts["patch"],
        texts["raster"],
        texts["true"],
        texts["predicted"],
        np.array(numbers["probability"]),
        np.array(numbers["true_probability"]),
        sites,
    )


def _check_row(row: dict[str, str], line_of: dict[str, int]) -> None:
    """ValueError for a row that is not whole. line_of: the patches of the lines before."""
    if None in row or None in row.values():
        raise ValueError("not as many fields as the header")
    for column in TEXTS:
        if not row[column]:
            raise ValueError(f"no {column}")
    for column in ("true", "predicted"):
        fault = fault_of_name(row[column])  # files are named after cities
        if fault:
            raise ValueError(f"{column} {row[column]!r}: {fault}")
    if row["patch"] in line_of:
        raise ValueError(f"patch {row['patch']} stands in line {line_of[row['patch']]}, too")


def _probability(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or not 0 <= value <= 1:
        raise ValueError(f"{text}: no probability")
    return value
