"""One self-contained page about a cross-validation over sites, made from the files beside it.

The way of the data: folds_files reads and checks the tables, sites_chart lays out the charts, the
template tells the rest.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from dl_slicer.files import atomic
from dl_slicer.report import confusion, rendering, sites_chart
from dl_slicer.report.folds_files import Folds, Site, Split, read_folds

# How many of 100 intervals of one city held the truth: benchmarks/site_intervals.py.
CITY_COVERAGE = "95 to 98"
FEW_SITES = 3  # up to which one city's interval says little
LARGE_PICTURE = 12  # cities
CHANCE = 0.05


@dataclass(frozen=True)
class FoldRow:
    """What a fold's own sites gave together, those tested before, too."""

    number: int
    sites: int
    again: int  # of these, were tested by a fold before
    patches: int
    accuracy: float
    temperature: float | None
    report: str | None


def write_folds_page(out: str | Path) -> Path:
    """Write <out>/report.html from what results.folds.write left in <out>; give its path.

    InputError names the file that is missing or damaged.
    """
    out = Path(out)
    text = render(read_folds(out))
    with atomic(out / "report.html", "w", encoding="utf-8") as file:
        file.write(text)
    return out / "report.html"


def render(found: Folds) -> str:
    """Give the page as HTML."""
    whole = found.whole
    counted = [site for site in found.sites if site.is_first]
    return rendering.render(
        "folds.html.j2",
        found=found,
        whole=whole,
        counted=counted,
        odd=[site for site in counted if site.odd],
        twice=len(found.sites) - len(counted),
        all_sites=whole.interval is not None,
        folds=_fold_rows(found),
        charts=sites_chart.lay_out(found.sites, found.cities, whole.interval),
        curve=sites_chart.curve_chart(found.curve),
        matrix=confusion.lay_out(found.confusion) if found.confusion else None,
        split=_where_the_split_lies(whole.split, whole.interval),
        cities_differ=whole.spread.p_value is not None and whole.spread.p_value < CHANCE,
        has_rasters=any(site.rasters > 1 for site in counted),
        few_sites=any(city.sites <= FEW_SITES for city in found.cities),
        coverage=CITY_COVERAGE,
        wide_picture=len(found.cities) > LARGE_PICTURE,
        date=time.strftime("%Y-%m-%d", time.localtime(found.measured_at)),
        style=rendering.own_file("base.css") + rendering.own_file("style.css"),
        script=rendering.own_file("script.js"),
    )


def _fold_rows(found: Folds) -> list[FoldRow]:
    by_fold: dict[int, list[Site]] = {}
    for site in found.sites:
        by_fold.setdefault(site.fold, []).append(site)
    rows = []
    for number, sites in sorted(by_fold.items()):
        patches = sum(site.patches for site in sites)
        right = sum(site.accuracy * site.patches for site in sites)
        rows.append(
            FoldRow(
                number=number,
                sites=len(sites),
                again=sum(not site.is_first for site in sites),
                patches=patches,
                accuracy=right / max(1, patches),
                temperature=found.whole.temperatures.get(str(number)),
                report=sites[0].report,
            )
        )
    return rows


def _where_the_split_lies(split: Split | None, interval: tuple[float, float] | None) -> str:
    """Say where the published split's figure lies: above, below or within; empty if not known."""
    if split is None or interval is None:
        return ""
    if split.accuracy > interval[1]:
        return "above"
    return "below" if split.accuracy < interval[0] else "within"
