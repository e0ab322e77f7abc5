"""One self-contained page about a cross-validation over sites, made from the files beside it."""

from pathlib import Path


def write_folds_page(out: str | Path) -> Path:
    """Write <out>/report.html from what results.folds.write left in <out>; give its path.

    InputError names the file that is missing or damaged.
    """
    raise NotImplementedError
