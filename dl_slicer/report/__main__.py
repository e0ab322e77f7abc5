"""Make the page of a test again from its files.

Writes report.html into the folder from the files that test_classification.py left there, and from
config.json and log.csv beside the checkpoint. It is one file: no network, no scripts from
elsewhere; it opens from disk. What a run lacks (a log, intervals, portraits) is left out or said.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from dl_slicer import files
from dl_slicer.cli import Parser, run
from dl_slicer.report import page


def main(argv: Sequence[str] | None = None) -> None:
    """Read the flags, write the page and print where it lies."""
    parser = Parser(__doc__)
    parser.add_argument("folder", help="where test_classification.py wrote its results")
    arguments = parser.parse_args(argv)
    folder = Path(arguments.folder)
    # A test that ends meanwhile would have the page of half its results, or of those of before.
    with files.hold(folder) if folder.is_dir() else nullcontext():
        print(page.write_report(folder))


if __name__ == "__main__":
    run(main)
