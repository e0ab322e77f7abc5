"""One self-contained page about a test, for people who do not read CSV.

The way of the data: result_files reads and checks the files, sections picks what to tell, the
templates tell it.
"""

import time
from pathlib import Path

from dl_slicer.files import atomic
from dl_slicer.report import rendering
from dl_slicer.report.records import Results
from dl_slicer.report.result_files import read_results
from dl_slicer.report.sections import sections


def write_report(out: str | Path, run_folder: str | Path | None = None) -> Path:
    """Write <out>/report.html from the files in <out> and give its path.

    run_folder: where config.json and log.csv lie; else that of the checkpoint.
    InputError names the file that is missing or damaged; any other error is a fault of ours.
    """
    out = Path(out)
    text = render(read_results(out, run_folder))
    with atomic(out / "report.html", "w", encoding="utf-8") as file:
        file.write(text)
    return out / "report.html"


def render(results: Results) -> str:
    """Give the page about these results as HTML."""
    return rendering.render(
        "page.html.j2",
        results=results,
        metrics=results.metrics,
        date=time.strftime("%Y-%m-%d", time.localtime(results.measured_at)),
        sections=sections(results),
        style=rendering.own_file("base.css") + rendering.own_file("style.css"),
        script=rendering.own_file("script.js"),
    )
