"""Compare two models by what test_classification.py found for each on the same patches.

    python -m dl_slicer.compare checkpoints/resnet50/test_b checkpoints/resnet18/test_b

Says by how much A is better than B, with a 95 % interval over rasters, of all patches and of each
city; McNemar's table; and which patches one recognises and the other does not. Writes, by default
into a folder beside A that is named after both (here checkpoints/resnet50/test_b_against_resnet18):
    comparison.json     the difference, its interval, McNemar's table, and what was compared
    per_city.csv        a row a city
    patches.csv         a row for each patch that one alone recognises
    patches/            these as pictures, a sheet a city, where the patch set is still there
    report.html         all of it on one page, to be opened in a browser
    contents.json       these files, which the next call replaces, and the flags
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dl_slicer.cli import InputError, Parser, run

if TYPE_CHECKING:  # the name of a type alone: what needs seconds is imported after the flags
    from dl_slicer.results.comparison import Comparison

COMMAND = "python -m dl_slicer.compare"


def read_flags(argv: Sequence[str] | None = None) -> Namespace:
    """Read the command line; InputError if it is wrong."""
    parser = Parser(__doc__)
    parser.add_argument("a", metavar="A", help="folder with results of test_classification.py")
    parser.add_argument("b", metavar="B", help="another one, of the same patches")
    parser.add_argument("--out", help="folder of the comparison; default: <A>_against_<B> beside A")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Compare two folders of results as the flags say, and write what was found."""
    args = read_flags(argv)
    # Only now: they import torch and scipy, which takes seconds, and a wrong flag is told at once.
    from dl_slicer.report import comparison_page
    from dl_slicer.results import comparison, result_folder

    compared = comparison.compare(args.a, args.b)
    out = Path(args.out) if args.out else output_folder(compared)
    call = result_folder.Call(out, COMMAND, vars(args), "comparison.json")
    with result_folder.new_results(call) as new:
        comparison.write_tables(new, compared)
        comparison.print_comparison(compared)
        pictures = write_pictures(new, compared)
        comparison_page.write_comparison_page(new)
    print(f"\n{pictures}\nresults: {out}")
    print(f"the report, to be opened in a browser:\n{out / 'report.html'}")


def output_folder(compared: Comparison) -> Path:
    """Give the folder beside A that is named after both."""
    folder = compared.a.folder
    if folder.name in ("", ".."):
        folder = Path(os.path.abspath(folder))
    return folder.with_name(f"{folder.name}_against_{compared.names[1]}")


def write_pictures(new: Path, compared: Comparison) -> str:
    """Draw the sheets of patches. Give a line that says where they are, or why there are none."""
    if not (compared.a.right != compared.b.right).any():
        return "no pictures: both recognise the same patches"
    from dl_slicer.results import comparison_sheets

    try:
        patch_set = comparison_sheets.open_patches(compared)
    except (InputError, OSError) as error:
        return f"no pictures: {error}"
    try:
        sheets = comparison_sheets.write_sheets(new, compared, patch_set)
    except InputError as error:
        return f"not all pictures: {error}"
    return f"pictures of the patches that one alone recognises, of {sheets} cities: patches/"


if __name__ == "__main__":
    run(main, interrupted="nothing is kept, the same command starts anew")
