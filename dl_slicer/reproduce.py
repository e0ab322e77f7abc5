"""Train and test the paper's networks one after the other, and put them into one table.

    python -m dl_slicer.reproduce --data data/patches --out checkpoints/paper
    python -m dl_slicer.reproduce --data data/patches --out checkpoints/mine --archs resnet50
                                  --recipes robust --epochs 20 --seeds 0 1 2 -- --batch-size 256

Each architecture by each recipe and seed, under torchrun where there are several GPUs; --models
also measures the authors' networks. First it says what disk and what hours that will take, by the
first 20 steps of each architecture. It can be stopped at any moment: the same command goes on
there, and what is done is not done again. Flags after -- go to train_classification.py.
Writes a folder a run with its results in test_b/, and of all of them table.md, table.csv,
differences.csv, agreement.csv and report.html.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dl_slicer import cli, files
from dl_slicer.cli import InputError, printable
from dl_slicer.hub.downloads import size_text
from dl_slicer.model import architectures, flags
from dl_slicer.training import chain_flags, recipes

if TYPE_CHECKING:  # torch is imported when the flags have been read
    from dl_slicer.results.runs_table import Measured
    from dl_slicer.training.ledger import Ledger
    from dl_slicer.training.planned_runs import PlannedRun

PAPER_ARCHS = ("resnet18", "resnet34", "resnet50", "resnet101")
TEST = "test_classification.py"
# Results are whole where these are there: the last ones that the test writes, and what is read.
RESULT_FILES = ("metrics.json", "report.html", "predictions.csv")
RESULTS_BYTES = 60e6  # of the results of a test: tables, figures, sheets, the report
# What each run is given, and how the user chooses it instead.
OWN_FLAGS = {
    "--data": "give --data before --",
    "--out": "give --out before --",
    "--arch": "give --archs before --",
    "--recipe": "give --recipes before --",
    "--seed": "give --seeds before --",
    "--epochs": "give --epochs before --",
    "--resume": None,
    "--rehearse": None,
    "--help": None,
}


def read_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the flags; `more` are those after --. InputError if one is wrong."""
    argv = list(sys.argv[1:] if argv is None else argv)
    end = argv.index("--") if "--" in argv else len(argv)
    parser = cli.Parser(__doc__)
    flags.add_data(parser)
    parser.add_argument(
        "--out", default="checkpoints/paper", help="folder of the runs and of the table"
    )
    parser.add_argument(
        "--archs", nargs="+", default=list(PAPER_ARCHS), choices=architectures.ARCHITECTURES
    )
    parser.add_argument(
        "--recipes", nargs="+", default=list(recipes.RECIPES), choices=recipes.RECIPES
    )
    parser.add_argument("--epochs", type=cli.number(least=1), default=100, help="of each run")
    parser.add_argument("--seeds", nargs="+", type=cli.number(least=0), default=[0])
    parser.add_argument("--models", type=Path, help="folder of the authors' networks")
    parser.add_argument(
        "--processed",
        type=Path,
        help="the authors' patches, on which their networks are measured where the folder is there",
    )
    args = parser.parse_args(argv[:end])
    args.given = argv
    args.more = argv[end + 1 :]
    chain_flags.refuse_own_flags(args.more, OWN_FLAGS, "after --")
    args.changed = chain_flags.read_changes(args.more)
    if args.models is not None and not args.models.is_dir():
        raise InputError(
            f"--models {printable(args.models)}: no such folder; get them with"
            f" python data/fetch.py --what models --out {printable(args.models)}"
        )
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Train and test in a folder that no other process writes into meanwhile."""
    args = read_flags(argv)
    with files.hold(args.out):
        reproduce(args)


def reproduce(args: argparse.Namespace) -> None:
    """Say what it will take; train and test one model after the other; put them into a table."""
    # Here, since torch takes seconds to import, and a mistyped flag is told before.
    from dl_slicer.patch_sets import identity, reading
    from dl_slicer.training import ledger, planned_runs, preparing

    train, val = preparing.open_data(args.data)
    test = reading.open_split(args.data, "test_b", train.image_size)
    out = Path(args.out)
    book = ledger.open_ledger(out, args.data, identity.identify(train, val, test))
    runs = planned_runs.plan_runs(args)
    processes = planned_runs.count_processes(args.changed.device)

    say_disk(out, runs, len(train.classes), args.changed)
    say_hours(runs, processes, len(train))
    measured = []
    for model in models_in_turn(args, runs, book, processes):
        is_new = measure(model, args, book, processes)
        measured.append(replace(model, hours=book.hours(model.name)))
        if is_new:  # else the tables of before have more
            write_tables(args, measured)
    write_tables(args, measured)
    cli.say(f"\n{(out / 'table.md').read_text(encoding='utf-8')}")
    cli.say(f"on one page, to be opened in a browser:\n{out / 'report.html'}")


def say_disk(
    out: Path, runs: Sequence[PlannedRun], classes: int, changed: argparse.Namespace
) -> None:
    """Say what disk the runs will take; InputError if there is not so much."""
    from dl_slicer.training import planned_runs

    sizes = {run: planned_runs.checkpoint_bytes(run, classes, changed) for run in runs}
    for arch in dict.fromkeys(run.arch for run in runs):
        of_arch = {run.recipe: sizes[run] for run in runs if run.arch == arch}
        texts = [f"{size_text(size)} ({recipe})" for recipe, size in of_arch.items()]
        cli.say(f"{arch}: best.pth and last.pth take {', '.join(texts)} each")
    left = [run for run in runs if not run.is_finished]
    needed = sum(planned_runs.missing_bytes(run, sizes[run]) + RESULTS_BYTES for run in left)
    # A file is written beside the one that it replaces.
    needed += max((sizes[run] for run in left), default=0)
    free = shutil.disk_usage(out).free
    cli.say(f"disk: {size_text(needed)} more in {printable(out)}, which has {size_text(free)} left")
    if needed > free:
        raise InputError(
            f"{printable(out)}: all this takes about {size_text(needed)} more, the disk has"
            f" {size_text(free)} left; make room, or choose another --out or fewer models"
        )


def say_hours(runs: Sequence[PlannedRun], count: int, patches: int) -> None:
    """Say what hours the training will take that is not done, by timing its first steps.

    count: of processes. patches: of train. What the training would refuse ends the command here.
    """
    from dl_slicer.training import planned_runs

    times = {}
    for run in planned_runs.runs_to_rehearse(runs):
        cli.say(f"{run.name}: timing {planned_runs.STEPS} steps")
        found = planned_runs.rehearse(run, count)
        times.setdefault(run.arch, found)
        rate = patches / (found.steps * found.seconds_a_step)
        cli.say(
            f"{run.arch}: {found.seconds_a_step:.3f} s a step, {rate:.0f} patches a second;"
            f" an epoch is {found.steps} steps and {found.seconds_of_validation:.3g} s of"
            f" validation; a run of {run.epochs} epochs {in_hours(found.of_epochs(run.epochs))}"
        )
    finished = sum(run.is_finished for run in runs)
    left = sum(times[run.arch].of_epochs(run.epochs_left) for run in runs if not run.is_finished)
    cli.say(f"training: {finished} of {len(runs)} runs are done, the others take {in_hours(left)}")


def in_hours(seconds: float) -> str:
    """Give a time in words."""
    if seconds >= 3600:
        return f"about {seconds / 3600:.1f} hours"
    return f"about {seconds / 60:.1f} minutes"


def models_in_turn(
    args: argparse.Namespace, runs: Sequence[PlannedRun], book: Ledger, count: int
) -> Iterator[Measured]:
    """Give the authors' networks and then each run, once it has been trained to its end.

    count: of processes.
    """
    from dl_slicer.patch_sets import reading
    from dl_slicer.training import planned_runs

    yield from find_authors_models(args)
    classes = len(reading.open_split(args.data, "test_b").classes)
    for run in runs:
        if not run.is_finished:
            cli.say(f"\n{run.name}: training")
            planned_runs.train(run, count, book.counter(run.name))
        yield trained_here(run, args.data, classes)


def find_authors_models(args: argparse.Namespace) -> list[Measured]:
    """Give the authors' networks in --models, with what they are measured on."""
    from dl_slicer.patch_sets import reading
    from dl_slicer.results import authors_models
    from dl_slicer.results.runs_table import Measured

    if args.models is None:
        return []
    patches = authors_models.choose_test_patches(args.processed, args.data)
    classes = len(reading.open_split(patches.data, patches.split).classes)
    return [
        Measured(
            name=f"authors-{arch}",
            arch=arch,
            trained_by="the authors",
            checkpoint=checkpoint,
            data=str(patches.data),
            test_patches=patches.words,
            classes=classes,
            chosen_epoch="as published",
        )
        for arch, checkpoint in authors_models.list_authors_models(args.models, classes)
    ]


def trained_here(run: PlannedRun, data: str, classes: int) -> Measured:
    """Give a run that is finished as what is measured."""
    from dl_slicer.results import authors_models
    from dl_slicer.results.runs_table import Measured

    return Measured(
        name=run.name,
        arch=run.arch,
        trained_by="here",
        checkpoint=run.checkpoint,
        data=data,
        test_patches=authors_models.OF_THIS_SET,
        classes=classes,
        recipe=run.recipe,
        seed=run.seed,
        epochs=run.epochs,
        chosen_epoch="the best on val" if run.takes_best else "the last",
    )


def measure(model: Measured, args: argparse.Namespace, book: Ledger, count: int) -> bool:
    """Test a model, unless its results on these patches lie there. Give whether it was tested now.

    count: of processes.
    """
    from dl_slicer.patch_sets import identity, reading
    from dl_slicer.training import ledger, processes

    folder = Path(args.out, model.results)
    made_of = {
        "checkpoint": ledger.checksum(model.checkpoint),
        "patches": identity.identify(reading.open_split(model.data, model.split)),
    }
    is_whole = all((folder / name).is_file() for name in RESULT_FILES)
    if is_whole and book.measured.get(model.name) == made_of:
        return False
    cli.say(f"\n{model.name}: testing {printable(model.checkpoint)}")
    flags_of_test = chain_flags.flags_of_test(
        model.checkpoint, model.data, model.split, folder, args.changed
    )
    processes.run_script(TEST, flags_of_test, count)
    book.measured[model.name] = made_of
    book.save()
    return True


def write_tables(args: argparse.Namespace, measured: Sequence[Measured]) -> None:
    """Write the tables and the page of what has been measured so far."""
    from dl_slicer.report import runs_page
    from dl_slicer.results import runs_table

    out = Path(args.out)
    with files.atomic(out / "command.txt", "w", encoding="utf-8") as file:
        file.write(shlex.join(["python", "-m", "dl_slicer.reproduce", *args.given]) + "\n")
    runs_table.write_tables(out, measured)
    runs_page.write_runs_page(out)


if __name__ == "__main__":
    cli.run(main)
