"""The geometry of the charts of a cross-validation: every site by city, and the curve.

All lengths are in units of a chart's own width and height.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dl_slicer.report.folds_files import City, CurvePoint, Site

WIDTH = 380
LEFT = 110  # beside it the sites' names
RIGHT = WIDTH - 56  # beside it their accuracies
CITY_HEIGHT = 24
SITE_HEIGHT = 15
TOP = 6
BELOW = 26  # for the labels of the axis
LONGEST_CITY = 40  # characters
LONGEST_SITE = 15
CITIES_A_CHART = 12
MARKS = (0, 0.25, 0.5, 0.75, 1)

CURVE_HEIGHT = 230
CURVE_LEFT = 44
CURVE_TOP = 30


@dataclass(frozen=True)
class Mark:
    """A line across a chart, and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Dot:
    """A site: its point and its interval."""

    site: Site
    name: str
    x: float
    y: float
    ends: tuple[float, float] | None


@dataclass(frozen=True)
class Row:
    """A city with its sites. mean_x: of its accuracy over all patches, None where there is none."""

    name: str
    text_y: float
    mean_x: float | None
    mean_ends: tuple[float, float]  # y of the line at its mean
    dots: list[Dot]


@dataclass(frozen=True)
class Chart:
    """Some cities with their sites; band: x of both ends of the overall interval."""

    description: str
    grid: list[Mark]
    band: tuple[float, float] | None
    rows: list[Row]
    height: float

    width: int = WIDTH
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP

    @property
    def bottom(self) -> float:
        """Where the axis lies."""
        return self.height - BELOW


@dataclass(frozen=True)
class CurveDot:
    """An accuracy by the number of train sites, with y of both ends of its interval."""

    x: float
    y: float
    ends: tuple[float, float] | None
    label: str
    percent: str


@dataclass(frozen=True)
class CurveChart:
    """Accuracy by the number of train sites."""

    description: str
    grid: list[Mark]
    dots: list[CurveDot]

    width: int = WIDTH
    height: int = CURVE_HEIGHT
    left: int = CURVE_LEFT
    right: int = WIDTH - 14
    top: int = CURVE_TOP
    bottom: int = CURVE_HEIGHT - 40


def lay_out(
    sites: Sequence[Site], cities: Sequence[City], overall: tuple[float, float] | None
) -> list[Chart]:
    """Lay out every site that counts, a dozen cities a chart. overall: the overall interval."""
    by_city: dict[str, list[Site]] = {}
    for site in sites:
        if site.is_first:
            by_city.setdefault(site.city, []).append(site)
    accuracy = {city.city: city.accuracy for city in cities}
    names = list(by_city)
    charts = -(-len(names) // CITIES_A_CHART)  # rounded up
    size = -(-len(names) // charts) if charts else 1
    return [
        _chart({name: by_city[name] for name in names[k : k + size]}, accuracy, overall)
        for k in range(0, len(names), size)
    ]


def _x(share: float) -> float:
    return LEFT + (RIGHT - LEFT) * share


def _chart(
    by_city: dict[str, list[Site]],
    accuracy: dict[str, float | None],
    overall: tuple[float, float] | None,
) -> Chart:
    rows = []
    y = float(TOP)
    for city, sites in by_city.items():
        first = y + CITY_HEIGHT
        mean = accuracy.get(city)
        rows.append(
            Row(
                name=_shorten(city, LONGEST_CITY),
                text_y=y + CITY_HEIGHT - 10,
                mean_x=None if mean is None else _x(mean),
                mean_ends=(first - 3, first + SITE_HEIGHT * len(sites) - 4),
                dots=[_dot(site, first + SITE_HEIGHT * (k + 0.5)) for k, site in enumerate(sites)],
            )
        )
        y = first + SITE_HEIGHT * len(sites)
    shares = [site.accuracy for sites in by_city.values() for site in sites]
    return Chart(
        description=f"Accuracy at {len(shares)} sites of {len(by_city)} cities, from"
        f" {100 * min(shares):.1f} to {100 * max(shares):.1f} %",
        grid=[Mark(_x(mark), f"{100 * mark:.0f} %") for mark in MARKS],
        band=overall and (_x(overall[0]), _x(overall[1])),
        rows=rows,
        height=y + 6 + BELOW,
    )


def _dot(site: Site, y: float) -> Dot:
    return Dot(
        site=site,
        name=_shorten(site.site, LONGEST_SITE),
        x=_x(site.accuracy),
        y=y,
        ends=site.interval and (_x(site.interval[0]), _x(site.interval[1])),
    )


def _shorten(name: str, longest: int) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def curve_chart(points: Sequence[CurvePoint]) -> CurveChart | None:
    """Lay out the accuracy by the number of train sites; None for less than two points."""
    if len(points) < 2:
        return None
    values = [point.accuracy for point in points]
    values += [end for point in points for end in point.interval or ()]
    low = min(0.9, math.floor(10 * min(values)) / 10)
    high = min(1, max(low + 0.1, math.ceil(10 * max(values)) / 10))
    step = 0.1 if high - low <= 0.55 else 0.2
    top = CURVE_TOP
    bottom = CURVE_HEIGHT - 40
    left = CURVE_LEFT + 26
    gap = (WIDTH - 14 - 26 - left) / (len(points) - 1)

    def y(share: float) -> float:
        return bottom - (bottom - top) * (share - low) / (high - low)

    marks = [low + k * step for k in range(int((high - low) / step + 1e-6) + 1)]
    return CurveChart(
        description="Accuracy at new sites by the number of train sites a city: from"
        f" {100 * points[0].accuracy:.1f} to {100 * points[-1].accuracy:.1f} %",
        grid=[Mark(y(mark), f"{100 * mark:.0f} %") for mark in marks],
        dots=[
            CurveDot(
                x=left + gap * k,
                y=y(point.accuracy),
                ends=point.interval and (y(point.interval[0]), y(point.interval[1])),
                label=point.training_sites,
                percent=f"{100 * point.accuracy:.1f} %",
            )
            for k, point in enumerate(points)
        ],
    )
