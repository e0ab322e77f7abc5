"""One self-contained page about several runs, made from the tables beside it alone.

The way of the data: runs_files reads and checks the tables, interval_chart lays out the chart, the
template tells the rest.
"""

import time
from pathlib import Path

from dl_slicer.files import atomic
from dl_slicer.report import interval_chart, rendering
from dl_slicer.report.runs_files import Run, Runs, read_runs

PAPER = 0.84  # top-1 accuracy of ResNet-50 on 500 test patches of each of 45 cities
PAPER_PATCHES = 22_500
PAPER_EPOCHS = 100
MOST_SENTENCES = 8  # about the best model; the table has all pairs
MANY_PAIRS = 5  # from which on one is likely to differ by chance
FEW_RASTERS = 30


def write_runs_page(out: str | Path) -> Path:
    """Write <out>/report.html from the tables in <out> and give its path.

    InputError names the file that is missing or damaged.
    """
    out = Path(out)
    text = render(read_runs(out))
    with atomic(out / "report.html", "w", encoding="utf-8") as file:
        file.write(text)
    return out / "report.html"


def render(runs: Runs) -> str:
    """Give the page as HTML."""
    suspected = [run for run in runs.runs if _may_know_the_test(run)]
    trusted = [run for run in runs.runs if run not in suspected]
    best = max(trusted or suspected, key=lambda run: run.top1)
    closest_first = sorted(runs.differences, key=lambda found: found.difference)
    of_best = [found for found in closest_first if best.model in (found.better, found.other)]
    rasters = [run.rasters for run in runs.runs if run.rasters is not None]
    known = [found for found in runs.agreements if found.rank_correlation is not None]
    known.sort(key=lambda found: found.rank_correlation)
    return rendering.render(
        "runs.html.j2",
        runs=runs.runs,
        best=best,
        chart=interval_chart.lay_out(runs.runs, PAPER),
        differences=closest_first,
        sentences=of_best[:MOST_SENTENCES],
        clear=sum(found.is_clear for found in runs.differences),
        many_pairs=len(runs.differences) >= MANY_PAIRS,
        few_rasters=bool(rasters) and min(rasters) < FEW_RASTERS,
        suspected=suspected,
        agreements=runs.agreements,
        known_agreements=known,
        command=runs.command,
        paper={"top1": PAPER, "patches": PAPER_PATCHES, "epochs": PAPER_EPOCHS},
        date=time.strftime("%Y-%m-%d", time.localtime(runs.measured_at)),
        style=rendering.own_file("base.css") + rendering.own_file("style.css"),
        script=rendering.own_file("script.js"),
    )


def _may_know_the_test(run: Run) -> bool:
    return "may have been in its training" in run.test_patches
