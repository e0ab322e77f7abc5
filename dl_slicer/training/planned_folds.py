"""Folds that are planned: which sites each holds out, where it lies, and how it is made.

A fold is preprocessed, trained and tested by the scripts; its folder has patches/, run/ and
results/. This module needs no torch.
"""

import hashlib
import shutil
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dl_slicer.cli import InputError, printable
from dl_slicer.files import atomic
from dl_slicer.patch_sets import fewer_sites, finding, on_disk
from dl_slicer.training import chain_flags, processes
from dl_slicer.training.ledger import Ledger, checksum

PREPROCESS = "preprocessing.py"
TRAIN = "train_classification.py"
TEST = "test_classification.py"
# Results are whole where these are there.
RESULT_FILES = ("metrics.json", "predictions.csv", "logits.npy", "raster_sums.npz")
BEGUN_WITH = "rasters.txt"  # the checksum of the rasters that a fold is made of
REMOVED = "removed"  # a patch set that is being deleted


@dataclass(frozen=True)
class PlannedFold:
    """A fold that was asked for."""

    out: Path  # folder of all of them
    number: int  # N of preprocessing.py --held-out N
    training_sites: int | None = None  # of each city, at most; None: all

    @property
    def name(self) -> str:
        """What it is called: its folder within out."""
        curve = "" if self.training_sites is None else f"curve_{self.training_sites}/"
        return f"{curve}fold_{self.number}"

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.out / self.name

    @property
    def patches(self) -> Path:
        """Its patch set."""
        return self.folder / "patches"

    @property
    def run(self) -> Path:
        """Its training run."""
        return self.folder / "run"

    @property
    def results(self) -> Path:
        """What its test found."""
        return self.folder / "results"

    @property
    def has_patches(self) -> bool:
        """Whether its patch set is there, whole."""
        return on_disk.is_finished(self.patches)

    @property
    def checkpoint(self) -> Path:
        """The network that is measured: the last one, which nothing has chosen."""
        return self.run / "last.pth"


# ------------------------------------------------------------------------------- the plan


class Rasters:
    """The rasters of a raw folder: which sites each city has, and what tells them from others."""

    def __init__(self, raw: Path, out: Path, sites: int | None):
        """Look at the names in a raw folder; InputError if they are not laid out as expected.

        sites: of --sites, for cities whose rasters lie directly in their folders.
        """

        def name_sites(flat: Mapping[str, Sequence[tuple[str, list[int]]]]) -> dict[str, str]:
            # Which raster is in which is not known before it has been looked at; how many are is.
            return {
                raster: f"site {i % sites}"
                for rasters in flat.values()
                for i, (raster, _) in enumerate(rasters)
            }

        jobs = finding.find_rasters(raw, out, None if sites is None else name_sites)
        self.sites: dict[str, set[str]] = {}  # by city
        stamps = hashlib.sha256()
        for job in jobs:
            self.sites.setdefault(job.city, set()).add(job.site)
            stamps.update(f"{job.raster!r} {job.stamp}\n".encode(errors="backslashreplace"))
        self.checksum = stamps.hexdigest()

    @property
    def folds(self) -> int:
        """How many folds hold out every site once: the sites of the city that has most."""
        return max(len(sites) for sites in self.sites.values())

    def train_sites(self, number: int, val: str) -> int:
        """How many train sites the city that has most of them has in a fold."""
        return max(
            list(finding.splits_of_sites(sites, number, val).values()).count(["train"])
            for sites in self.sites.values()
        )


def plan_folds(args: Namespace, rasters: Rasters) -> list[PlannedFold]:
    """Give the folds that the flags ask for, in the order in which they are made.

    Those of --curve with fewer train sites follow the one of which they are a part.
    args: out, folds (a number; None: all), val and curve.
    """
    out = Path(args.out)
    folds = []
    for number in range(1, (args.folds or rasters.folds) + 1):
        folds.append(PlannedFold(out, number))
        if args.curve:
            most = rasters.train_sites(number, args.val)
            folds += [PlannedFold(out, number, sites) for sites in range(1, most)]
    return folds


# ------------------------------------------------------------------------------- one fold


def check_rasters(fold: PlannedFold, rasters: Rasters) -> None:
    """InputError if a fold was begun with other rasters than there are now.

    A network that has been trained on a site would else be measured on it as held out.
    """
    file = fold.folder / BEGUN_WITH
    has_begun = fold.run.is_dir() and file.is_file()
    if has_begun and file.read_text(encoding="utf-8") != rasters.checksum:
        raise InputError(
            f"{printable(fold.folder)}: was begun with other rasters than --raw has now: some were"
            " added, removed or changed; put them back, or delete this folder"
        )


def note_rasters(fold: PlannedFold, rasters: Rasters) -> None:
    """Note in a fold's folder which rasters it is made of."""
    fold.folder.mkdir(parents=True, exist_ok=True)
    with atomic(fold.folder / BEGUN_WITH, "w", encoding="utf-8") as file:
        file.write(rasters.checksum)


def preprocess(fold: PlannedFold, flags: Sequence[str], seed: int) -> None:
    """Make a fold's patch set, or complete it.

    flags: of preprocessing.py, but for --out and --held-out.
    """
    whole = PlannedFold(fold.out, fold.number)
    own = ["--out", str(whole.patches), "--held-out", str(fold.number)]
    processes.run_script(PREPROCESS, [*flags, *own])
    if fold.training_sites is not None:
        fewer_sites.limit_train_sites(whole.patches, fold.patches, fold.training_sites, seed)


def train(fold: PlannedFold, flags: Sequence[str], count: int, passed: processes.Passed) -> None:
    """Train a fold to its end, or go on with it; one that is finished stays as it is.

    flags: of train_classification.py, but for the fold's own. count: of processes.
    """
    own = ["--data", str(fold.patches), "--out", str(fold.run), "--resume"]
    processes.run_script(TRAIN, [*flags, *own], count, passed)


def test(fold: PlannedFold, changed: Namespace, has_cues: bool, count: int) -> None:
    """Measure all patches of a fold's held-out sites. changed: of chain_flags.read_changes."""
    flags = chain_flags.flags_of_test(
        fold.checkpoint, fold.patches, "held-out", fold.results, changed
    )
    cues = ["--cues"] if has_cues else []
    processes.run_script(TEST, [*flags, "--logits", *cues], count)


def is_measured(fold: PlannedFold, book: Ledger, rasters: Rasters, has_cues: bool) -> bool:
    """Whether a fold's results are there. InputError if they are of other rasters."""
    known = book.measured.get(fold.name)
    if known is None or not all((fold.results / name).is_file() for name in RESULT_FILES):
        return False
    if known.get("rasters") != rasters.checksum:
        raise InputError(
            f"{printable(fold.folder)}: was measured on other rasters than --raw has now: some were"
            " added, removed or changed; put them back, or choose another --out"
        )
    return known.get("cues") == "yes" or not has_cues


def note_measured(fold: PlannedFold, book: Ledger, rasters: Rasters, has_cues: bool) -> None:
    """Note that a fold's results are there, and what of."""
    book.measured[fold.name] = {
        "checkpoint": checksum(fold.checkpoint),
        "rasters": rasters.checksum,
        "cues": "yes" if has_cues else "no",
    }
    book.save()


def remove_patches(folds: Iterable[PlannedFold]) -> None:
    """Remove the patch sets of folds. Killed meanwhile, the next call does the rest."""
    for fold in folds:
        removed = fold.folder / REMOVED
        for folder in (removed, fold.patches):
            if folder.is_dir() and not folder.is_symlink():
                # Under another name, so that no half of a patch set is taken for one.
                folder.rename(removed)
                shutil.rmtree(removed)
