"""The tables of several runs that python -m dl_slicer.reproduce wrote, read and checked."""

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from dl_slicer.report.file_reading import (
    if_there,
    number,
    optional,
    read_table,
    refusal,
    refusing_damage,
    whole_number,
)

TABLE = "table.csv"
ONCE_MORE = "no whole table of python -m dl_slicer.reproduce ({}); run the same command again"
MOST = 10**15  # of whole numbers: floats hold them exactly
LONGEST_COMMAND = 20_000  # characters


@dataclass(frozen=True)
class Run:
    """A row of table.csv: a model and how good it is. Shares lie in 0 ... 1; None: not known."""

    model: str
    arch: str
    recipe: str
    seed: str
    trained_by: str
    parameters: int | None
    epochs: int | None
    hours: float | None
    patches: int
    rasters: int | None
    top1: float
    interval: tuple[float, float] | None
    top5: float | None
    macro_f1: float | None
    whole_rasters: float | None
    test_patches: str
    chosen_epoch: str  # in words; empty where that is not known
    link: str | None  # address of its own report; None where that is not there

    @property
    def is_of_authors(self) -> bool:
        """Whether others trained it."""
        return self.trained_by != "here"


@dataclass(frozen=True)
class Difference:
    """A row of differences.csv: the better model first, as shares of the patches."""

    better: str
    other: str
    difference: float  # 0 or more
    interval: tuple[float, float] | None
    patches: int
    rasters: int | None

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out that they are equally good."""
        return self.interval is not None and self.interval[0] > 0


@dataclass(frozen=True)
class Agreement:
    """A row of agreement.csv: whether the same cities are hard for both, -1 ... 1."""

    a: str
    b: str
    rank_correlation: float | None
    cities: int


@dataclass(frozen=True)
class Runs:
    """All that the page of several runs tells."""

    measured_at: float  # seconds since the epoch
    runs: list[Run]
    differences: list[Difference]
    agreements: list[Agreement]
    command: str | None  # that makes all this again


def read_runs(out: Path) -> Runs:
    """Read the tables in the folder of several runs. InputError names what is missing or damaged.

    Without differences.csv, agreement.csv and command.txt the page does.
    """
    table = out / TABLE
    runs = read_table(table, lambda row: _run(row, out), ONCE_MORE)
    if not runs:
        raise refusal(table, ONCE_MORE, "it names no model")
    return Runs(
        measured_at=table.stat().st_mtime,
        runs=runs,
        differences=if_there(out / "differences.csv", read_table, _difference, ONCE_MORE) or [],
        agreements=if_there(out / "agreement.csv", read_table, _agreement, ONCE_MORE) or [],
        command=if_there(out / "command.txt", _read_command),
    )


def _read_command(path: Path) -> str:
    with refusing_damage(path, ONCE_MORE), open(path, encoding="utf-8") as file:
        return file.read(LONGEST_COMMAND).strip()


def _run(row: dict[str, str], out: Path) -> Run:
    return Run(
        model=row["model"],
        arch=row["arch"],
        recipe=row["recipe"],
        seed=row["seed"],
        trained_by=row["trained_by"],
        parameters=optional(_count, row["parameters"]),
        epochs=optional(_count, row["epochs"]),
        hours=optional(_hours, row["hours"]),
        patches=_count(row["patches"]),
        rasters=optional(_count, row["rasters"]),
        top1=_share(row["top1"]),
        interval=_interval(row["top1_low"], row["top1_high"], least=0),
        top5=optional(_share, row["top5"]),
        macro_f1=optional(_share, row["macro_f1"]),
        whole_rasters=optional(_share, row["whole_rasters"]),
        test_patches=row["test_patches"],
        chosen_epoch=row.get("chosen_epoch", ""),
        link=_link(row["report"], out),
    )


def _difference(row: dict[str, str]) -> Difference:
    difference = _share(row["difference"], least=-1)
    ends = _interval(row["low"], row["high"], least=-1)
    a, b = row["a"], row["b"]
    if difference < 0:
        a, b = b, a
        difference = -difference
        ends = None if ends is None else (-ends[1], -ends[0])
    return Difference(
        a, b, difference, ends, _count(row["patches"]), optional(_count, row["rasters"])
    )


def _agreement(row: dict[str, str]) -> Agreement:
    correlation = optional(lambda value: _share(value, least=-1), row["rank_correlation"])
    return Agreement(row["a"], row["b"], correlation, _count(row["cities"]))


def _link(report: str, out: Path) -> str | None:
    """Give the address of a run's report as HTML has it; None where there is none.

    ValueError if it lies outside the folder: a page that is passed on must not lead elsewhere.
    """
    parts = PurePosixPath(report).parts
    if report.startswith("/") or ".." in parts:
        raise ValueError(f"the report {report} lies outside {out}")
    if not parts or "\0" in report or not os.path.isfile(out / report):
        return None
    # ./ and quoted, so that nothing in a name is read as the name of a scheme or as a query.
    return "./" + quote("/".join(parts))


# Values


def _count(value: str) -> int:
    found = whole_number(value)
    if found > MOST:
        raise ValueError(f"{value[:40]}: too large")
    return found


def _hours(value: str) -> float:
    found = number(value)
    if not 0 <= found <= MOST:
        raise ValueError(f"{value}: no number of hours")
    return found


def _share(value: str, least: float = 0) -> float:
    found = number(value)
    if not least <= found <= 1:
        raise ValueError(f"{value}: not from {least} to 1")
    return found


def _interval(low: str, high: str, least: float) -> tuple[float, float] | None:
    if (low, high) == ("", ""):
        return None
    found = (_share(low, least), _share(high, least))
    if found[0] > found[1]:
        raise ValueError(f"{low} to {high}: no interval")
    return found
