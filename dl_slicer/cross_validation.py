"""Hold out every site of every city once: how would a network do at places it has never seen?

    python -m dl_slicer.cross_validation --raw data/raw --out checkpoints/folds
    python -m dl_slicer.cross_validation --raw data/raw --out checkpoints/folds --tidy --cues
                                         --stride 480 -- --arch resnet18 --recipe robust --epochs 20

Fold after fold another site of each city is held out, a network is trained on the others, and its
last epoch measured on all patches of the held-out sites: nothing is chosen on them. It can be
stopped at any moment: the same command goes on there, and what is done is not done again.
Other flags before -- go to preprocessing.py, those after it to train_classification.py; under
torchrun where there are several GPUs.
Writes a folder a fold with patches/, run/ and results/, and of all of them folds.csv, metrics.json,
per_city.csv, the confusion matrix, the resemblance of cities, and report.html.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dl_slicer import cli, files
from dl_slicer.cli import InputError, printable
from dl_slicer.patch_sets import on_disk
from dl_slicer.training import chain_flags, ledger, planned_folds, processes
from dl_slicer.training.planned_folds import PlannedFold

if TYPE_CHECKING:
    from dl_slicer.training.ledger import Ledger
    from dl_slicer.training.planned_folds import Rasters

LEDGER = "cross_validation.json"
# What each script is given, and how the user chooses it instead.
OWN_FLAGS = {
    flag: f"write {flag} in full"
    for flag in ("--raw", "--out", "--folds", "--val", "--seed", "--tidy", "--cues", "--curve")
}
OF_FOLDS = {
    "--held-out": "each fold holds out another site, --folds says how many",
    "--shard": "leave it out",
    "--jpegs": "leave it out",
}
OF_TRAINING = {
    "--data": "each fold has a patch set of its own",
    "--out": "give --out before --",
    "--seed": "give --seed before --",
    "--resume": None,
    "--rehearse": None,
    "--help": None,
}
# Flags that change no result; a chain may go on with others.
OF_THE_MACHINE = ("--workers", "--save-every", "--track")


def read_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the flags; InputError if one of this command's own is wrong.

    for_preprocessing and for_training are what the scripts are given.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    end = argv.index("--") if "--" in argv else len(argv)
    parser = cli.Parser(__doc__)
    parser.allow_abbrev = False  # what is shortened may be another script's
    parser.add_argument("--raw", default="data/raw", help="folder of <City (CODE)>/<site>/<raster>")
    parser.add_argument("--out", required=True, help="folder of the folds and of their tables")
    parser.add_argument(
        "--folds",
        type=number_or_all,
        default="all",
        metavar="all|N",
        help="how many; all: as many as the city with most sites has, so that each is held out",
    )
    parser.add_argument(
        "--val",
        choices=on_disk.VALS,
        default="half",
        help="of preprocessing.py: where val comes from; the last epoch is measured either way",
    )
    parser.add_argument(
        "--seed", type=cli.number(least=0), default=0, help="of preprocessing and of training"
    )
    parser.add_argument(
        "--tidy", action="store_true", help="remove the patch set of each fold that is measured"
    )
    parser.add_argument(
        "--cues", action="store_true", help="test_classification.py --cues in each fold"
    )
    parser.add_argument(
        "--curve",
        action="store_true",
        help="the same again with 1, 2, ... train sites a city: had it too few?",
    )
    args, args.more_of_preprocessing = parser.parse_known_args(argv[:end])
    args.more_of_training = argv[end + 1 :]
    args.given = argv
    chain_flags.refuse_own_flags(args.more_of_preprocessing, OF_FOLDS, "before --")
    chain_flags.refuse_own_flags(args.more_of_preprocessing, OWN_FLAGS, "before --")
    chain_flags.refuse_own_flags(args.more_of_training, OF_TRAINING, "after --")
    args.changed = chain_flags.read_changes(args.more_of_training)
    args.for_preprocessing = flags_of_preprocessing(args)
    args.for_training = flags_of_training(args)
    return args


def number_or_all(text: str) -> int | None:
    """How many folds, None for all: an argparse type."""
    return None if text == "all" else cli.number(least=1)(text)


def flags_of_preprocessing(args: argparse.Namespace) -> list[str]:
    """Give the flags of preprocessing.py, but for those that differ from fold to fold."""
    own = {"--raw": args.raw, "--val": args.val, "--seed": args.seed}
    return [str(part) for flag in own.items() for part in flag] + args.more_of_preprocessing


def flags_of_training(args: argparse.Namespace) -> list[str]:
    """Give the flags of train_classification.py, but for those that differ from fold to fold."""
    words = ["--seed", str(args.seed), *args.more_of_training]
    if is_given("--probe", words) and not is_given("--features", words):
        # Patches of a raster have the same features, whatever fold it is in.
        words += ["--features", str(Path(args.out, "features"))]
    return words


def is_given(flag: str, words: Iterable[str]) -> bool:
    """Whether a flag is among words, perhaps shortened."""
    names = (word.partition("=")[0] for word in words)
    return any(len(name) > len("--") and flag.startswith(name) for name in names)


def main(argv: Sequence[str] | None = None) -> None:
    """Make all folds in a folder that no other process writes into meanwhile."""
    args = read_flags(argv)
    processes.check_flags(planned_folds.PREPROCESS, args.for_preprocessing)
    processes.check_flags(planned_folds.TRAIN, args.for_training)
    rasters = planned_folds.Rasters(Path(args.raw), Path(args.out), sites_asked_for(args))
    with files.hold(args.out):
        cross_validate(args, rasters)


def sites_asked_for(args: argparse.Namespace) -> int | None:
    """Give the value of --sites, a flag of preprocessing.py that has been checked; None if none."""
    parser = cli.Parser(None)
    parser.add_argument("--sites", type=int)
    return parser.parse_known_args(args.more_of_preprocessing)[0].sites


def cross_validate(args: argparse.Namespace, rasters: Rasters) -> None:
    """Make one fold after the other; put them into tables and on a page."""
    # Here, since torch takes seconds to import, and a mistyped flag is told before.
    from dl_slicer.report import folds_page
    from dl_slicer.results import folds as tables
    from dl_slicer.training import planned_runs

    book = open_book(args)
    plan = planned_folds.plan_folds(args, rasters)
    say_plan(args, plan, rasters)
    check_folds(plan, args, book, rasters)
    count = planned_runs.count_processes(args.changed.device)
    for number in dict.fromkeys(fold.number for fold in plan):
        of_number = [fold for fold in plan if fold.number == number]
        for fold in of_number:
            make_fold(fold, args, book, rasters, count)
        if args.tidy:
            planned_folds.remove_patches(of_number)
    out = Path(args.out)
    with files.atomic(out / "command.txt", "w", encoding="utf-8") as file:
        file.write(shlex.join(["python", "-m", "dl_slicer.cross_validation", *args.given]) + "\n")
    measured = [tables.Fold(fold.number, fold.results, fold.training_sites) for fold in plan]
    tables.write(out, measured)
    page = folds_page.write_folds_page(out)
    say_results(out)
    cli.say(f"on one page, to be opened in a browser:\n{page}")


def open_book(args: argparse.Namespace) -> Ledger:
    """Give the ledger of the folds; InputError if they were made with other flags."""
    book = ledger.read_ledger(Path(args.out), LEDGER)
    asked = shlex.join(
        [
            *chain_flags.without(args.for_preprocessing, ("--raw", *OF_THE_MACHINE)),
            "--",
            *chain_flags.without(args.for_training, ("--features", *OF_THE_MACHINE)),
        ]
    )
    if book.measured and book.data != asked:
        raise InputError(
            f"{printable(args.out)}: holds folds made with other flags: {printable(book.data)};"
            " give these, or choose another --out"
        )
    book.data = asked
    return book


def say_plan(args: argparse.Namespace, plan: Sequence[PlannedFold], rasters: Rasters) -> None:
    """Say what is made, and which cities come round again."""
    whole = [fold for fold in plan if fold.training_sites is None]
    others = len(plan) - len(whole)
    more = f", and {others} with fewer train sites" if others else ""
    cli.say(
        f"{printable(args.raw)}: {len(rasters.sites)} cities of up to {rasters.folds} sites;"
        f" {len(whole)} folds{more}"
    )
    if len(whole) > rasters.folds:
        cli.say(f"no city has more than {rasters.folds} sites: later folds hold them out again")
    if args.curve and not others:
        cli.say("--curve: no city has more than one train site, so there is nothing to add")


def check_folds(
    plan: Sequence[PlannedFold], args: argparse.Namespace, book: Ledger, rasters: Rasters
) -> None:
    """InputError if a fold cannot be made: before any is, since hours of work would end with it.

    Another fold may refuse what the first one takes: a raster that is too narrow for halves, or
    that overlaps one of another site. So each fold's patch set is made first, or completed.
    """
    missing = []
    for fold in plan:
        is_measured = planned_folds.is_measured(fold, book, rasters, wants_cues(args, fold))
        planned_folds.check_rasters(fold, rasters)
        # What --tidy would remove again is made only to see whether it can be.
        if not is_measured and not (args.tidy and fold.run.is_dir()):
            missing.append(fold.number)
    for number in dict.fromkeys(missing):
        whole = PlannedFold(Path(args.out), number)
        cli.say(f"\n{whole.name}: preprocessing")
        planned_folds.preprocess(whole, args.for_preprocessing, args.seed)
        if args.tidy:
            planned_folds.remove_patches([whole])


def wants_cues(args: argparse.Namespace, fold: PlannedFold) -> bool:
    """Whether a fold is to be tested with --cues: those with fewer train sites are not."""
    return args.cues and fold.training_sites is None


def make_fold(
    fold: PlannedFold, args: argparse.Namespace, book: Ledger, rasters: Rasters, count: int
) -> None:
    """Preprocess, train and test a fold, unless its results are there. count: of processes."""
    has_cues = wants_cues(args, fold)
    if planned_folds.is_measured(fold, book, rasters, has_cues):
        cli.say(f"{fold.name}: done before")
        return
    planned_folds.note_rasters(fold, rasters)
    if not fold.has_patches:
        cli.say(f"\n{fold.name}: preprocessing")
        planned_folds.preprocess(fold, args.for_preprocessing, args.seed)
    cli.say(f"\n{fold.name}: training")
    of_training = 1 if is_given("--probe", args.for_training) else count
    planned_folds.train(fold, args.for_training, of_training, book.counter(fold.name))
    cli.say(f"\n{fold.name}: testing {printable(fold.checkpoint)}")
    planned_folds.test(fold, args.changed, has_cues, count)
    planned_folds.note_measured(fold, book, rasters, has_cues)


def say_results(out: Path) -> None:
    """Say what folds.csv and metrics.json say: each site's first result, and all together."""
    with open(out / "folds.csv", newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["first"] == "yes"]
    cli.say(f"\n{'city':<28}{'site':<20}{'fold':>5}{'patches':>9}{'accuracy %':>12}")
    for row in rows:
        odd = f"  odd: {printable(row['odd'])}" if row["odd"] else ""
        cli.say(
            f"{printable(row['city']):<28}{printable(row['site']):<20}{row['fold']:>5}"
            f"{row['patches']:>9}{100 * float(row['accuracy']):>12.1f}{odd}"
        )
    found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    ends = found["accuracy_ci95"]
    interval = f" (95 %: {ends[0]:.4f} to {ends[1]:.4f})" if ends else ""
    cli.say(f"\ntop-1 {found['accuracy']:.4f}{interval}\ninterval: {found['interval']}")


if __name__ == "__main__":
    cli.run(main)
