"""One self-contained page about a test, for people who do not read CSV.

The way of the data: result_files reads and checks the files, sections picks what to tell, the
templates tell it. Python makes plain data and no HTML, the templates all HTML.
"""

import functools
import time
from pathlib import Path

import jinja2
from markupsafe import Markup

from dl_slicer.files import atomic
from dl_slicer.report import words
from dl_slicer.report.records import Results
from dl_slicer.report.result_files import read_results
from dl_slicer.report.sections import sections

TEMPLATES = Path(__file__).parent / "templates"


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
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            results=results,
            metrics=results.metrics,
            date=time.strftime("%Y-%m-%d", time.localtime(results.measured_at)),
            sections=sections(results),
            style=_own_file("style.css"),
            script=_own_file("script.js"),
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": words.count,
        "data_uri": words.data_uri,
        "interval": words.interval,
        "network_name": words.network_name,
        "percent": words.percent,
    }
    return environment


def _finalize(value: object) -> object:
    """What becomes of a value before it is escaped: names may hold what HTML has no place for."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return words.replace_unprintable(value)
    return value


def _own_file(name: str) -> Markup:
    """A file of ours that needs no escaping."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))
