"""Make the pages of results again from their files.

For results of a test: report.html, from the files that test_classification.py left there, and from
config.json and log.csv beside the checkpoint. What a run lacks (a log, intervals, portraits) is
left out or said. For several runs: report.html, from the tables that python -m dl_slicer.reproduce
left there; for two models, from what python -m dl_slicer.compare left; for folds, from what python
-m dl_slicer.cross_validation left. For rasters that were placed
or explained: <name>.html from each <name>.explorer.
A page is one file: no network, no scripts from elsewhere; it opens from disk.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from dl_slicer import files
from dl_slicer.cli import Parser, run
from dl_slicer.report import (
    comparison_files,
    comparison_page,
    explorer,
    folds_files,
    folds_page,
    page,
    runs_files,
    runs_page,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the flags, write the pages and print where they lie."""
    parser = Parser(__doc__)
    parser.add_argument(
        "folder",
        help="where test_classification.py, python -m relevance_cam, dl_slicer.reproduce,"
        " dl_slicer.compare or dl_slicer.cross_validation wrote its results",
    )
    folder = Path(parser.parse_args(argv).folder)
    explorers = explorer.find_explorers(folder)
    results = folder.parent if explorers == [folder] else folder
    # A command that ends meanwhile would have pages of half its results, or of those of before.
    with files.hold(results) if results.is_dir() else nullcontext():
        if (folder / runs_files.TABLE).exists():
            print(runs_page.write_runs_page(folder))
        elif (folder / comparison_files.COMPARISON).exists():
            print(comparison_page.write_comparison_page(folder))
        elif (folder / folds_files.TABLE).exists():
            print(folds_page.write_folds_page(folder))
        elif not explorers or (folder / "metrics.json").exists():
            print(page.write_report(folder))
        for found in explorers:
            print(explorer.write_explorer(found))


if __name__ == "__main__":
    run(main)
