"""JSON files and tables read and checked: what is missing or damaged is told in one line."""

import csv
import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from dl_slicer.cli import InputError, printable

Row = TypeVar("Row")

LONGEST_REASON = 200  # characters
DAMAGE = (KeyError, ValueError, TypeError, OverflowError, RecursionError, csv.Error)


def if_there(path: Path, read: Callable, *arguments):
    """Give what read(path, *arguments) gives; None where there is no such file."""
    # Not Path.is_file, which fails for a name that is too long.
    return read(path, *arguments) if os.path.isfile(path) else None


def refusal(path: Path, remedy: str, reason: object) -> InputError:
    """Give the line that refuses a file; remedy: what to do, with {} for the reason."""
    text = str(reason)
    if len(text) > LONGEST_REASON:
        text = f"{text[:LONGEST_REASON]} …"
    return InputError(f"{printable(path)}: {remedy.format(printable(text))}")


@contextmanager
def refusing_damage(path: Path, remedy: str) -> Iterator[None]:
    """Turn what reading a damaged file raises into one line that names the file."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError("no file")
        yield
    except FileNotFoundError as error:
        raise refusal(error.filename or path, remedy, "not there") from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise refusal(path, remedy, error.strerror) from None
    except DAMAGE as error:
        missing = isinstance(error, KeyError)
        reason = f"it has no {error.args[0]}" if missing else error
        raise refusal(path, remedy, reason) from None


def read_json(path: Path, convert: Callable[[dict], Row], remedy: str) -> Row:
    """Give what convert makes of the mapping that a JSON file holds."""
    with refusing_damage(path, remedy):
        return convert(mapping(json.loads(path.read_text(encoding="utf-8"))))


def read_table(path: Path, convert: Callable[[dict], Row], remedy: str) -> list[Row]:
    """Each row by `convert`, which gets it as a dict of texts; refuses with the line's number."""
    with refusing_damage(path, remedy), open(path, newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        rows = []
        for row in reader:
            try:
                if None in row or None in row.values():
                    raise ValueError("not as many fields as the header")
                rows.append(convert(row))
            except (ValueError, OverflowError) as error:
                raise ValueError(f"line {reader.line_num}: {error}") from None
        return rows


# Values


def optional(convert: Callable, value: object):
    """None for an empty field or null."""
    return None if value in ("", None) else convert(value)


def number(value: Any) -> float:
    """Give a finite number; ValueError if it is none."""
    found = float(value)
    if not math.isfinite(found):
        raise ValueError(f"{value}: not a finite number")
    return found


def whole_number(value: Any) -> int:
    """Give a whole number from 0 on; ValueError if it is none."""
    found = int(value)
    if found < 0:
        raise ValueError(f"{value}: below 0")
    return found


def ends(values: Any) -> tuple[float, float]:
    """Give both ends of an interval."""
    low, high = values
    return number(low), number(high)


def mapping(value: Any) -> dict:
    """Give a dict; ValueError for anything but a mapping."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{str(value)[:40]!r}: not a mapping of names to values")
    return dict(value)
