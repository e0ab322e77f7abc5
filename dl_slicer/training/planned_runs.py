"""Runs that are planned: where each lies, how far it is, what it takes of disk and of time."""

import json
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from dl_slicer.model import networks
from dl_slicer.training import processes, recipes

TRAIN = "train_classification.py"
STEPS = 20  # that are timed of each architecture
# Numbers that an optimiser remembers of each weight.
REMEMBERED = {"adam": 2, "adamw": 2, "sgd": 1}
BYTES = 4  # of a float32
SPARE = 1.02  # of a checkpoint's file: names, zip, batch norm's statistics


@dataclass(frozen=True)
class PlannedRun:
    """A training run that was asked for."""

    folder: Path
    arch: str
    recipe: str
    seed: int
    epochs: int
    flags: tuple[str, ...]  # of train_classification.py, all but --resume

    @property
    def name(self) -> str:
        """What the run is called: its folder."""
        return self.folder.name

    @property
    def has_begun(self) -> bool:
        """Whether there is something to go on with."""
        return (self.folder / "last.pth").is_file()

    @property
    def is_as_asked(self) -> bool:
        """Whether the run was trained so far by the same flags, as typed."""
        with suppress(OSError, ValueError, RecursionError):  # none, or it is damaged
            config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
            return isinstance(config, dict) and config.get("given") == list(self.flags)
        return False

    @property
    def epochs_done(self) -> int:
        """How many epochs log.csv has, which is written after the checkpoints."""
        if not self.has_begun:
            return 0
        with suppress(OSError, ValueError):  # none, or it is damaged
            lines = (self.folder / "log.csv").read_text(encoding="utf-8").splitlines()
            return max(0, len(lines) - 1)
        return 0

    @property
    def epochs_left(self) -> int:
        """How many epochs are still to be trained."""
        return max(0, self.epochs - self.epochs_done)

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to be trained, and nothing to be asked about its flags."""
        has_best = (self.folder / "best.pth").is_file()
        return has_best and self.is_as_asked and self.epochs_done == self.epochs

    @property
    def takes_best(self) -> bool:
        """Whether the epoch that is best on val is measured; else it is the last one."""
        return self.recipe == "published"

    @property
    def checkpoint(self) -> Path:
        """The file that is measured.

        At the published recipe's constant rate the last epoch is one of many that differ, so the
        one that is best on val is taken, as published. A recipe whose rate falls ends with the
        epoch to take, and nothing is chosen.
        """
        return self.folder / ("best.pth" if self.takes_best else "last.pth")


def plan_runs(args: Namespace) -> list[PlannedRun]:
    """Give the runs that the flags of the command ask for, those of one architecture together.

    args: data, out, archs, recipes, seeds, epochs, and more: further flags of the training.
    """
    runs = []
    for arch in dict.fromkeys(args.archs):
        for recipe in dict.fromkeys(args.recipes):
            for seed in dict.fromkeys(args.seeds):
                folder = Path(args.out, f"{arch}-{recipe}-seed{seed}")
                own = {
                    "--data": args.data,
                    "--out": folder,
                    "--arch": arch,
                    "--recipe": recipe,
                    "--seed": seed,
                    "--epochs": args.epochs,
                }
                typed = [str(part) for flag in own.items() for part in flag]
                flags = (*typed, *args.more)
                runs.append(PlannedRun(folder, arch, recipe, seed, args.epochs, flags))
    return runs


def train(run: PlannedRun, count: int, passed: processes.Passed) -> None:
    """Train a run to its end, or go on with it. See processes.run_script for how it may end.

    count: of processes. passed: is given the seconds that this call has taken so far.
    """
    processes.run_script(TRAIN, [*run.flags, "--resume"], count, passed)
    if run.epochs_left:
        raise RuntimeError(f"{run.name}: its training has ended well, but not at its end")


@dataclass(frozen=True)
class Times:
    """What the runs of an architecture take, in the words of rehearsal.print_times."""

    seconds_a_step: float
    steps: int  # of an epoch
    seconds_of_validation: float
    processes: int

    def of_epochs(self, epochs: int) -> float:
        """Seconds that so many epochs take, with their validation."""
        return epochs * (self.steps * self.seconds_a_step + self.seconds_of_validation)


def rehearse(run: PlannedRun, count: int) -> Times:
    """Time the first steps of a run, which must be one that the training accepts.

    What it refuses, it says itself: SystemExit with its exit code. count: of processes.
    """
    flags = [*run.flags, "--resume", "--rehearse", str(STEPS)]
    printed = processes.output_of_script(TRAIN, flags, count)
    return Times(**json.loads(printed.splitlines()[-1]))


def runs_to_rehearse(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Give the first unfinished run of each architecture, and all that go on by other flags.

    These may be refused, which is to be known before hours of training, not between them.
    """
    chosen = []
    archs = set()
    for run in runs:
        is_other = run.has_begun and not run.is_as_asked
        if not run.is_finished and (run.arch not in archs or is_other):
            chosen.append(run)
            archs.add(run.arch)
    return chosen


def checkpoint_bytes(run: PlannedRun, classes: int, changed: Namespace) -> int:
    """Give about how large a checkpoint of a run is: the weights, their average, the optimiser.

    changed: optimizer and average, where the user has set them, else None.
    """
    recipe = recipes.RECIPES[run.recipe]
    optimizer = changed.optimizer or recipe["optimizer"]
    average = recipe["average"] if changed.average is None else changed.average
    copies = 1 + bool(average) + REMEMBERED[optimizer]
    return int(SPARE * BYTES * copies * networks.count_parameters(run.arch, classes))


def missing_bytes(run: PlannedRun, size: int) -> int:
    """Give what disk a run still takes. size: of one of its two checkpoints."""
    files = [run.folder / name for name in ("best.pth", "last.pth")]
    there = sum(file.stat().st_size for file in files if file.is_file())
    return max(0, 2 * size - there)


def count_processes(device: str | None) -> int:
    """Give how many processes a script is started in: one a GPU. device: as the user set it."""
    if device not in (None, "auto", "cuda"):
        return 1
    return max(1, torch.cuda.device_count())
