"""The tables of a cross-validation over sites that results/folds.py wrote, read and checked."""

import os
from dataclasses import dataclass
from pathlib import Path

from dl_slicer.report.file_reading import (
    ends,
    if_there,
    mapping,
    number,
    optional,
    read_json,
    read_table,
    refusal,
    refusing_damage,
    whole_number,
)
from dl_slicer.report.records import ConfusedPair, Confusion, Picture
from dl_slicer.report.result_files import read_confusion, read_png

TABLE = "folds.csv"
ALL = "all"  # train sites
METRICS = "metrics.json"
ONCE_MORE = (
    "no whole tables of python -m dl_slicer.cross_validation ({}); run the same command again"
)
MOST = 10**12  # of whole numbers
LONGEST_COMMAND = 20_000  # characters

Interval = tuple[float, float]


@dataclass(frozen=True)
class Site:
    """A row of folds.csv: a site in a fold. Shares lie in 0 ... 1; None: not known."""

    city: str
    code: str
    site: str
    fold: int
    is_first: bool  # whether it counts: the site's first result
    rasters: int
    patches: int
    accuracy: float
    interval: Interval | None  # over its rasters
    odd: str  # why it is an odd one out; empty where it is none
    colour_alone: float | None
    report: str | None  # address of the fold's own report; None where that is not there


@dataclass(frozen=True)
class City:
    """A row of per_city.csv."""

    city: str
    patches: int
    sites: int
    rasters: int
    accuracy: float | None
    interval: Interval | None  # over its sites
    lowest: float | None
    highest: float | None
    most_confused_with: str


@dataclass(frozen=True)
class CurvePoint:
    """A row of curve.csv. training_sites: a number, or "all"."""

    training_sites: str
    folds: int
    sites: int
    accuracy: float
    interval: Interval | None


@dataclass(frozen=True)
class Neighbours:
    """A row of nearest.csv: the nearest city by either view, and in which share of draws it is."""

    city: str
    by_confusion: str
    confusion_share: float | None
    confusion_told: str
    by_features: str
    features_share: float | None
    features_told: str


@dataclass(frozen=True)
class Split:
    """What the published split alone gives. halves: whether it tests left halves."""

    accuracy: float
    interval: Interval | None
    patches: int
    halves: bool


@dataclass(frozen=True)
class Colour:
    """How good colour alone is; difference: the networks less colour alone."""

    accuracy: float
    difference: float
    interval: Interval | None  # of the difference


@dataclass(frozen=True)
class Spread:
    """How far sites and cities lie apart, as standard deviations in shares."""

    sites: float | None
    cities: float | None
    rasters: float | None
    p_value: float | None


@dataclass(frozen=True)
class Whole:
    """What metrics.json says."""

    accuracy: float
    interval: Interval | None
    mean_of_cities: float
    mean_interval: Interval | None
    raster_accuracy: float
    macro_f1: float
    patches: int
    rasters: int
    sites: int
    ece: float
    ece_untempered: float
    loss: float
    loss_untempered: float
    temperatures: dict[str, float]
    spread: Spread
    split: Split | None
    colour: Colour | None
    pairs: list[ConfusedPair]


@dataclass(frozen=True)
class Folds:
    """All that the page tells; an empty list or None for a file that is not there."""

    measured_at: float  # seconds since the epoch
    whole: Whole
    sites: list[Site]
    cities: list[City]
    curve: list[CurvePoint]
    confusion: Confusion | None
    neighbours: list[Neighbours]
    similarity: Picture | None
    reliability: Picture | None
    command: str | None


def read_folds(out: Path) -> Folds:
    """Read the tables of a cross-validation. InputError names what is missing or damaged."""
    whole = read_json(out / METRICS, _whole, ONCE_MORE)
    sites = read_table(out / TABLE, lambda row: _site(row, out), ONCE_MORE)
    if not any(site.is_first for site in sites):
        raise refusal(out / TABLE, ONCE_MORE, "it names no site")
    return Folds(
        measured_at=(out / METRICS).stat().st_mtime,
        whole=whole,
        sites=sites,
        cities=read_table(out / "per_city.csv", _city, ONCE_MORE),
        curve=if_there(out / "curve.csv", read_table, _curve_point, ONCE_MORE) or [],
        confusion=if_there(out / "confusion_matrix.csv", read_confusion),
        neighbours=if_there(out / "nearest.csv", read_table, _neighbours, ONCE_MORE) or [],
        similarity=if_there(out / "similarity.png", read_png),
        reliability=if_there(out / "reliability.png", read_png),
        command=if_there(out / "command.txt", _read_command),
    )


def _read_command(path: Path) -> str:
    with refusing_damage(path, ONCE_MORE), open(path, encoding="utf-8") as file:
        return file.read(LONGEST_COMMAND).strip()


# What the files hold


def _site(row: dict[str, str], out: Path) -> Site:
    fold = _count(row["fold"])
    address = f"fold_{fold}/results/report.html"
    return Site(
        city=row["city"],
        code=row["code"],
        site=row["site"],
        fold=fold,
        is_first=row["first"] == "yes",
        rasters=_count(row["rasters"]),
        patches=_count(row["patches"]),
        accuracy=_share(row["accuracy"]),
        interval=_interval(row["low"], row["high"]),
        odd=row["odd"],
        colour_alone=optional(_share, row["colour_alone"]),
        report=address if os.path.isfile(out / address) else None,
    )


def _city(row: dict[str, str]) -> City:
    return City(
        city=row["city"],
        patches=_count(row["n"]),
        sites=_count(row["sites"]),
        rasters=_count(row["rasters"]),
        accuracy=optional(_share, row["accuracy"]),
        interval=_interval(row["ci95_low"], row["ci95_high"]),
        lowest=optional(_share, row["lowest_site"]),
        highest=optional(_share, row["highest_site"]),
        most_confused_with=row["most_confused_with"],
    )


def _curve_point(row: dict[str, str]) -> CurvePoint:
    return CurvePoint(
        training_sites=_training_sites(row["training_sites"]),
        folds=_count(row["folds"]),
        sites=_count(row["sites"]),
        accuracy=_share(row["accuracy"]),
        interval=_interval(row["low"], row["high"]),
    )


def _training_sites(value: str) -> str:
    return value if value == ALL else str(_count(value))


def _neighbours(row: dict[str, str]) -> Neighbours:
    return Neighbours(
        city=row["city"],
        by_confusion=row["confusion_1"],
        confusion_share=optional(_share, row.get("confusion_1_share")),
        confusion_told=row.get("confusion_told_apart", ""),
        by_features=row["features_1"],
        features_share=optional(_share, row.get("features_1_share")),
        features_told=row.get("features_told_apart", ""),
    )


def _whole(found: dict) -> Whole:
    spread = mapping(found["spread"])
    return Whole(
        accuracy=_share(found["accuracy"]),
        interval=optional(ends, found["accuracy_ci95"]),
        mean_of_cities=_share(found["mean_of_cities"]),
        mean_interval=optional(ends, found["mean_of_cities_ci95"]),
        raster_accuracy=_share(found["raster_accuracy"]),
        macro_f1=_share(found["macro_f1"]),
        patches=_count(found["n"]),
        rasters=_count(found["n_rasters"]),
        sites=_count(found["n_sites"]),
        ece=_share(found["ece"]),
        ece_untempered=_share(found["ece_untempered"]),
        loss=number(found["loss"]),
        loss_untempered=number(found["loss_untempered"]),
        temperatures={
            str(fold): number(value) for fold, value in mapping(found["temperatures"]).items()
        },
        spread=Spread(
            *(optional(_share, spread[key]) for key in ("sites", "cities", "rasters", "p_value"))
        ),
        split=optional(_split, found["published_split"]),
        colour=optional(_colour, found["colour_alone"]),
        pairs=[_pair(mapping(pair)) for pair in found["confused_pairs"]],
    )


def _split(value: object) -> Split:
    found = mapping(value)
    return Split(
        accuracy=_share(found["accuracy"]),
        interval=optional(ends, found["accuracy_ci95"]),
        patches=_count(found["n"]),
        halves=bool(found["halves"]),
    )


def _colour(value: object) -> Colour:
    found = mapping(value)
    return Colour(
        accuracy=_share(found["accuracy"]),
        difference=number(found["difference"]),
        interval=optional(ends, found["difference_ci95"]),
    )


def _pair(found: dict) -> ConfusedPair:
    return ConfusedPair(
        a=str(found["a"]),
        b=str(found["b"]),
        n=_count(found["n"]),
        share=_share(found["share"]),
        a_as_b=_count(found["a_as_b"]),
        b_as_a=_count(found["b_as_a"]),
    )


# Values


def _count(value: object) -> int:
    found = whole_number(value)
    if found > MOST:
        raise ValueError(f"{value}: too large")
    return found


def _share(value: object) -> float:
    found = number(value)
    if not 0 <= found <= 1:
        raise ValueError(f"{value}: not from 0 to 1")
    return found


def _interval(low: str, high: str) -> Interval | None:
    if (low, high) == ("", ""):
        return None
    return _share(low), _share(high)
