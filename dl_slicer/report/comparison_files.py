"""The files that python -m dl_slicer.compare wrote, read and checked."""

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dl_slicer.cities import fault_of_name
from dl_slicer.report.file_reading import (
    ends,
    if_there,
    mapping,
    number,
    optional,
    read_json,
    read_table,
    refusing_damage,
    whole_number,
)

COMPARISON = "comparison.json"
ONCE_MORE = "no whole results of python -m dl_slicer.compare ({}); run it again"


@dataclass(frozen=True)
class Side:
    """One of the two tests that were compared."""

    name: str
    arch: str
    split: str
    accuracy: float


@dataclass(frozen=True)
class ComparedCity:
    """A row of per_city.csv; shares lie in 0 ... 1, differences in -1 ... 1."""

    city: str
    patches: int
    rasters: int
    accuracy_a: float
    accuracy_b: float
    difference: float
    interval: tuple[float, float] | None
    only_a: int
    only_b: int


@dataclass(frozen=True)
class Sheet:
    """The picture of the patches of a city that one alone recognised: a JPEG as it is."""

    city: str
    content: bytes
    width: int  # pixels
    height: int


@dataclass(frozen=True)
class Compared:
    """All that the page of a comparison tells."""

    measured_at: float  # seconds since the epoch
    a: Side
    b: Side
    patches: int
    rasters: int
    difference: float
    interval: tuple[float, float] | None
    words: str  # what the interval is over
    few_rasters: str | None
    mcnemar: dict[str, int]
    p_value: float
    remark: str
    cities: list[ComparedCity]
    sheets: list[Sheet]


def read_comparison(folder: Path) -> Compared:
    """Read what was found. InputError names the file that is missing or damaged."""
    cities = read_table(folder / "per_city.csv", _city, ONCE_MORE)
    files = ((city.city, folder / "patches" / f"{city.city}.jpg") for city in cities)
    sheets = [if_there(path, _read_sheet, name) for name, path in files]
    found = read_json(folder / COMPARISON, mapping, ONCE_MORE)
    with refusing_damage(folder / COMPARISON, ONCE_MORE):
        table = mapping(found["mcnemar"])
        counts = ("both_right", "only_a_right", "only_b_right", "both_wrong")
        return Compared(
            measured_at=(folder / COMPARISON).stat().st_mtime,
            a=_side(found["a"]),
            b=_side(found["b"]),
            patches=whole_number(found["n"]),
            rasters=whole_number(found["n_rasters"]),
            difference=number(found["difference"]),
            interval=optional(ends, found["difference_ci95"]),
            words=str(found["interval"]),
            few_rasters=optional(str, found["few_rasters"]),
            mcnemar={key: whole_number(table[key]) for key in counts},
            p_value=number(table["p_value"]),
            remark=str(table["remark"]),
            cities=cities,
            sheets=[sheet for sheet in sheets if sheet],
        )


def _side(found: object) -> Side:
    side = mapping(found)
    return Side(str(side["name"]), str(side["arch"]), str(side["split"]), number(side["accuracy"]))


def _city(row: dict[str, str]) -> ComparedCity:
    fault = fault_of_name(row["city"])
    if fault:  # a sheet is looked for by this name
        raise ValueError(f"{row['city']!r}: {fault}")
    sides = (row["ci95_low"], row["ci95_high"])
    return ComparedCity(
        city=row["city"],
        patches=whole_number(row["n"]),
        rasters=whole_number(row["rasters"]),
        accuracy_a=number(row["accuracy_a"]),
        accuracy_b=number(row["accuracy_b"]),
        difference=number(row["difference"]),
        interval=None if sides == ("", "") else ends(sides),
        only_a=whole_number(row["only_a_right"]),
        only_b=whole_number(row["only_b_right"]),
    )


def _read_sheet(path: Path, city: str) -> Sheet:
    with refusing_damage(path, ONCE_MORE):
        content = path.read_bytes()
        if not content.startswith(b"\xff\xd8\xff") or not content.endswith(b"\xff\xd9"):
            raise ValueError("no whole JPEG file")
        with Image.open(io.BytesIO(content)) as picture:
            return Sheet(city, content, *picture.size)
