"""What test_classification.py --cues left: cues.csv and controls.json, read and checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dl_slicer.report.file_reading import (
    ends,
    mapping,
    number,
    optional,
    read_json,
    read_table,
    refusal,
    whole_number,
)

TEST_AGAIN = "no whole results of test_classification.py --cues ({}); run it again"


@dataclass(frozen=True)
class Answer:
    """How a network does on patches shown in one way; None where there is nothing to compare."""

    accuracy: float
    difference: float | None  # from the patches as they are
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class CueRow:
    """A row of cues.csv."""

    cue: str
    altered: str
    description: str  # how patches are shown: "shown ... it gets"
    shown: Answer  # by the network as it is
    refitted: Answer  # with its last layer fitted anew for such patches


@dataclass(frozen=True)
class ColourAlone:
    """A classifier that sees colours alone; the difference is the network less it."""

    accuracy: float
    interval: tuple[float, float] | None
    difference: float
    difference_interval: tuple[float, float] | None
    penalty: float
    left_out: str
    train_patches: int


@dataclass(frozen=True)
class ExchangedSites:
    """Accuracies with the names of whole test sites exchanged."""

    median: float
    p95: float
    ways: int
    is_all: bool
    at_least: float
    sites: int
    chance: float


@dataclass(frozen=True)
class Cues:
    """Both files. as_it_is: the row of patches that were not altered."""

    as_it_is: CueRow
    rows: list[CueRow]
    colour_alone: ColourAlone
    exchanged: ExchangedSites
    refit_patches: int
    refit_left_out: str
    metres_assumed: bool


def read_cues(path: Path) -> Cues:
    """Read cues.csv at a path, and controls.json beside it; InputError if either is not whole."""
    rows = read_table(path, _row, TEST_AGAIN)
    if len(rows) < 2 or rows[0].altered != "unaltered":
        raise refusal(path, TEST_AGAIN, "it does not begin with the patches as they are")
    if any(None in (row.shown.difference, row.refitted.difference) for row in rows[1:]):
        raise refusal(path, TEST_AGAIN, "a row has no difference")
    return read_json(path.with_name("controls.json"), lambda found: _cues(rows, found), TEST_AGAIN)


def _row(row: dict[str, str]) -> CueRow:
    return CueRow(
        cue=row["cue"],
        altered=row["altered"],
        description=row["description"],
        shown=_answer(row, ""),
        refitted=_answer(row, "refitted_"),
    )


def _answer(row: Mapping[str, str], prefix: str) -> Answer:
    interval = (row[f"{prefix}low"], row[f"{prefix}high"])
    return Answer(
        number(row[f"{prefix}accuracy"]),
        optional(number, row[f"{prefix}difference"]),
        None if "" in interval else ends(interval),
    )


def _cues(rows: list[CueRow], found: dict[str, Any]) -> Cues:
    colour = mapping(found["colour_alone"])
    exchanged = mapping(found["exchanged"])
    refit = mapping(found["refit"])
    return Cues(
        as_it_is=rows[0],
        rows=rows[1:],
        colour_alone=ColourAlone(
            accuracy=number(colour["accuracy"]),
            interval=optional(ends, colour["interval"]),
            difference=number(colour["difference"]),
            difference_interval=optional(ends, colour["difference_interval"]),
            penalty=number(colour["penalty"]),
            left_out=str(colour["left_out"]),
            train_patches=whole_number(colour["train_patches"]),
        ),
        exchanged=ExchangedSites(
            median=number(exchanged["median"]),
            p95=number(exchanged["p95"]),
            ways=whole_number(exchanged["ways"]),
            is_all=bool(exchanged["is_all"]),
            at_least=number(exchanged["at_least"]),
            sites=whole_number(exchanged["sites"]),
            chance=number(exchanged["chance"]),
        ),
        refit_patches=whole_number(refit["train_patches"]),
        refit_left_out=str(refit["left_out"]),
        metres_assumed=bool(found["metres_assumed"]),
    )
