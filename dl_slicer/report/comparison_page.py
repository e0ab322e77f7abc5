"""One self-contained page about two models on the same patches, made from the files beside it."""

import time
from pathlib import Path

from dl_slicer.files import atomic
from dl_slicer.report import rendering
from dl_slicer.report.comparison_files import Compared, Sheet, read_comparison

# All sheets together, in bytes: as text in the page they are a third more.
SHEET_BUDGET = 7_000_000


def write_comparison_page(out: str | Path) -> Path:
    """Write <out>/report.html from the files in <out> and give its path.

    InputError names the file that is missing or damaged.
    """
    out = Path(out)
    text = render(read_comparison(out))
    with atomic(out / "report.html", "w", encoding="utf-8") as file:
        file.write(text)
    return out / "report.html"


def render(compared: Compared) -> str:
    """Give the page as HTML."""
    low, high = compared.interval or (0, 0)
    sheets = _fitting_sheets(compared)
    clear = [city for city in compared.cities if city.interval and not _holds_zero(city.interval)]
    return rendering.render(
        "comparison.html.j2",
        found=compared,
        is_clear=low > 0 or high < 0,
        ahead=compared.a if compared.difference >= 0 else compared.b,
        behind=compared.b if compared.difference >= 0 else compared.a,
        clear=len(clear),
        sheets=sheets,
        left_out=len(compared.sheets) - len(sheets),
        date=time.strftime("%Y-%m-%d", time.localtime(compared.measured_at)),
        style=rendering.own_file("base.css") + rendering.own_file("style.css"),
        script=rendering.own_file("script.js"),
    )


def _holds_zero(interval: tuple[float, float]) -> bool:
    return interval[0] <= 0 <= interval[1]


def _fitting_sheets(compared: Compared) -> list[Sheet]:
    """Give the sheets that fit into a page, of the cities with the most differing patches first."""
    differing = {city.city: city.only_a + city.only_b for city in compared.cities}
    fitting = []
    room = SHEET_BUDGET
    for sheet in sorted(compared.sheets, key=lambda sheet: -differing[sheet.city]):
        room -= len(sheet.content)
        if room < 0:
            break
        fitting.append(sheet)
    return fitting
