"""Columns of tables that commands left, read back and checked."""

import csv
from collections.abc import Sequence
from pathlib import Path

from dl_slicer.cli import InputError, printable

DAMAGE = (OSError, ValueError, csv.Error)


def read_columns(path: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Read some columns of a CSV file as texts, none of them empty.

    InputError, in one line, if the file is missing or damaged.
    """
    columns: dict[str, list[str]] = {name: [] for name in names}
    try:
        with open(path, newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines, strict=True):
                for name in names:
                    if not row.get(name):
                        raise ValueError(f"a row has no {name}")
                    columns[name].append(row[name])
    except FileNotFoundError:
        raise _refusal(path, "not there") from None
    except DAMAGE as error:
        raise _refusal(path, str(error)) from None
    return columns


def _refusal(path: Path, reason: str) -> InputError:
    return InputError(
        f"{printable(path)}: no whole results ({printable(reason)[:200]}); run the test again"
    )
