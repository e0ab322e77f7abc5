"""A training run: how far it is, how it begins or goes on, and what it writes."""

import json
import math
import reprlib
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from dl_slicer import cli, distributed, versions
from dl_slicer.cli import InputError, printable
from dl_slicer.distributed import RANK, WORLD
from dl_slicer.files import atomic, clear_leftovers
from dl_slicer.model import checkpoints, devices, networks
from dl_slicer.model.checkpoints import Checkpoint
from dl_slicer.patch_sets import on_disk
from dl_slicer.patch_sets.reading import PatchSet
from dl_slicer.training import averages, optimisers, orders, recipes, saved_progress, tracking
from dl_slicer.training.history import Epoch, write_history
from dl_slicer.training.tracking import Tracker

# Flags that decide a run's result, beside those of its recipe: --resume must not change them.
DECISIVE_FLAGS = ("arch", "weights", "probe", "batch_size", "balanced", "order", "buffer", "seed")
SHORTLY = reprlib.Repr()
SHORTLY.maxlevel = 3
SHORTLY.maxdict = 10

# Flags that say how this call goes, and nothing of what it makes.
PASSING_FLAGS = ("resume", "track")

# How rasters were seen, as dataset.json and checkpoints say it.
VIEW = ("ground_resolution", "bands", "stretch")


@dataclass
class Totals:
    """Sums over the patches of the current epoch so far."""

    loss: float = 0.0  # of this process's patches
    correct: float = 0.0  # of this process's patches
    patches: int = 0  # of all processes

    def of_all_processes(self) -> "Totals":
        """Give the totals over all processes. All must call it."""
        if WORLD == 1:
            return self
        sums = torch.tensor([self.loss, self.correct], dtype=torch.float64)  # on the CPU
        loss, correct = distributed.total(sums).tolist()
        return Totals(loss, correct, self.patches)


@dataclass
class Run:
    """A training run: its flags, its network, and how far it is."""

    args: Namespace
    model: nn.Module  # whose weights are trained
    optimizer: Optimizer
    average: AveragedModel | None = None  # of the weights, with --average
    epoch: int = 0  # epochs that are finished
    step: int = 0  # steps of the current epoch that are done
    totals: Totals = field(default_factory=Totals)  # of the current epoch
    history: list[Epoch] = field(default_factory=list)  # of the finished epochs
    best: dict | None = None  # the epoch of best.pth, and its val_accuracy
    is_judged: bool = False  # whether last.pth knows how sure it should be
    # What each checkpoint says besides: its keys arch, classes, ..., args.
    description: dict = field(default_factory=dict)
    patches_a_second: float | None = None  # trained on, of all processes; None: not known
    tracker: Tracker = field(default_factory=Tracker)  # of one process

    @property
    def result(self) -> nn.Module:
        """The network that is evaluated and saved: the average, or else the trained weights."""
        return self.average.module if self.average else self.model

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return Path(self.args.out)

    @property
    def told_history(self) -> list[Epoch]:
        """What log.csv has of the finished epochs: the last one when nothing more is to be done."""
        is_left = len(self.history) == self.args.epochs and not self.is_judged
        return self.history[:-1] if is_left else self.history

    @property
    def is_within_epoch(self) -> bool:
        """Whether each process has batch norm's running averages and sums of its own."""
        return WORLD > 1 and self.step > 0

    def running_averages(self) -> list[Tensor]:
        """Give the tensors of batch norm that each process has of its own within an epoch."""
        models = [self.model, self.average.module] if self.average else [self.model]
        buffers = [buffer for model in models for buffer in model.buffers()]
        return [buffer for buffer in buffers if buffer.is_floating_point()]

    def average_batch_norms(self) -> None:
        """Put together batch norm's running averages, each of its process's share of batches."""
        for buffer in self.running_averages():
            distributed.average(buffer)

    def refuse_overflow(self) -> None:
        """InputError that ends a run whose numbers are no longer finite."""
        raise InputError(
            f"the loss is no longer finite in epoch {self.epoch + 1}, step {self.step}:"
            f" take a smaller --lr than {self.args.lr}"
        )

    def say(self, line: str) -> None:
        """Print a line, by one process for all. If stdout is lost, warnings.txt says so."""
        distributed.print_once(line)
        if RANK == 0 and cli.warnings:
            with open(self.folder / "warnings.txt", "a", encoding="utf-8") as file:
                for warning in cli.warnings:
                    file.write(f"epoch {self.epoch + 1}, step {self.step}: {warning}\n")
            cli.warnings.clear()

    def finish_epoch(self, scores: Tensor) -> bool:
        """Record the epoch whose steps are all done. Give whether it is the best so far.

        scores: the loss of each val patch, and whether it is right, as evaluation.score gives it.
        InputError if a loss is not finite.
        """
        totals = self.totals.of_all_processes()
        val_loss, val_accuracy = scores.numpy().mean(0, dtype=float).tolist()
        if not math.isfinite(totals.loss) or not math.isfinite(val_loss):
            self.refuse_overflow()
        self.epoch += 1
        self.step = 0
        self.is_judged = False
        self.totals = Totals()
        self.history.append(
            {
                "epoch": self.epoch,
                "lr": self.optimizer.param_groups[0]["lr"],
                "train_loss": totals.loss / totals.patches,
                "train_accuracy": totals.correct / totals.patches,
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
            }
        )
        # Before it is saved: what a run that is killed in between has told is told again.
        self.tracker.note_epoch(self.history[-1], self.patches_a_second)
        is_best = self.best is None or val_accuracy > self.best["val_accuracy"]
        if is_best:
            self.best = {"epoch": self.epoch, "val_accuracy": val_accuracy}
        return is_best

    def save(self, *names: str) -> None:
        """Write a checkpoint under each of these names. All processes must call it.

        The run is left as it was, so that saving changes no result. InputError, and nothing is
        written, if the loss or the weights are not finite: nobody could read that again.
        """
        of_each_process = _own_states(self) if self.is_within_epoch else {}
        totals = self.totals.of_all_processes()
        with _averaged_within_epoch(self):
            if not math.isfinite(totals.loss) or not _is_finite({self.model, self.result}):
                self.refuse_overflow()
            if RANK == 0:
                self._write(names, totals, of_each_process)

    def _write(self, names: tuple[str, ...], totals: Totals, of_each_process: dict) -> None:
        checkpoint = Checkpoint(
            model=self.result.state_dict(),
            weights=self.model.state_dict() if self.average else None,
            epoch=self.epoch,
            step=self.step,
            metrics={
                "history": self.history,
                "best": self.best,
                "sums": [totals.loss, totals.correct, totals.patches],
                **of_each_process,
            },
            optimizer=self.optimizer.state_dict(),
            rng=torch.get_rng_state(),
            versions=versions.installed(),
            **self.description,
        )
        for name in names:
            checkpoints.save_checkpoint(self.folder / name, checkpoint)


def _own_states(run: Run) -> dict[str, dict]:
    """Give what each process has of its own within an epoch, as metrics of a checkpoint keep it."""
    on_cpu = [devices.to_cpu(each).flatten() for each in run.running_averages()]
    averages_of_process = torch.cat(on_cpu)
    sums = torch.tensor([run.totals.loss, run.totals.correct], dtype=torch.float64)
    return {
        "of_each_process": {
            "batch_norms": distributed.of_each_process(averages_of_process),
            "sums": distributed.of_each_process(sums).tolist(),
        }
    }


@contextmanager
def _averaged_within_epoch(run: Run) -> Iterator[None]:
    """Put together batch norm's running averages, and give each process its own back."""
    if not run.is_within_epoch:
        yield
        return
    buffers = run.running_averages()
    own = [buffer.clone() for buffer in buffers]
    run.average_batch_norms()
    try:
        yield
    finally:
        for buffer, value in zip(buffers, own, strict=True):
            buffer.copy_(value)


def _is_finite(models: set[nn.Module]) -> bool:
    tensors = [tensor for model in models for tensor in model.state_dict().values()]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def begin_or_resume(
    args: Namespace, train: PatchSet, val: PatchSet, device: torch.device, dtype: torch.dtype
) -> Run:
    """Begin the run that the flags ask for, or go on with it where its folder holds it already.

    InputError if the folder holds a run that must not be mixed with this one.
    """
    previous = read_previous(args)
    orders.settle(args, previous.args if previous else None, train, device)
    decisive = decisive_settings(args, train, val, dtype)
    if previous:
        refuse_changes(args, previous, decisive)
    run = begin(args, train, device, "none" if previous else args.weights)
    run.description["args"] = settings(args, decisive)
    if previous:
        restore(run, previous, train)
        run.say(f"{run.folder}: going on at epoch {run.epoch + 1}, step {run.step + 1}")
    return run


def decisive_settings(
    args: Namespace, train: PatchSet, val: PatchSet, dtype: torch.dtype
) -> dict[str, object]:
    """Give what a resumed run must share with the one it goes on with.

    If it differed, the result would be that of neither.
    """
    names = [*DECISIVE_FLAGS, *recipes.RECIPES["published"]]
    if args.schedule != "constant":  # another number of epochs is another schedule
        names.append("epochs")
    return {name: getattr(args, name) for name in names} | {
        "dtype": str(dtype).removeprefix("torch."),
        "processes": WORLD,  # each has batch norm's statistics of its own share of a batch
        "data_set": {
            "classes": list(train.classes),
            "patch_size": train.patch_size,
            "stride": train.stride,
            "image_size": train.image_size,
            "train": len(train),
            "val": len(val),
            **chosen_view(train),
        },
    }


def chosen_view(train: PatchSet) -> dict[str, object]:
    """Give how the rasters of a set were seen, by the keys of dataset.json.

    Only what was chosen: runs of before know none of it.
    """
    if train.view is None:
        return {}
    settings = on_disk.settings_of_view(train.view, on_disk.MAX_NODATA)
    return {key: settings[key] for key in VIEW if settings[key] is not None}


def settings(args: Namespace, decisive: dict[str, object]) -> dict[str, object]:
    """Give what checkpoints and config.json keep: the flags, the precision and the data."""
    flags = {name: value for name, value in vars(args).items() if name not in PASSING_FLAGS}
    return flags | decisive


def find_previous(args: Namespace, decisive: dict[str, object]) -> Checkpoint | None:
    """Give the checkpoint to go on with, or None for a new run.

    InputError if the folder holds a run and --resume is not given, or if that run had other
    decisive settings.
    """
    previous = read_previous(args)
    if previous:
        refuse_changes(args, previous, decisive)
    return previous


def read_previous(args: Namespace) -> Checkpoint | None:
    """Give the checkpoint to go on with, or None for a new run.

    InputError if the folder holds a run and --resume is not given, or if it cannot be gone on with.
    """
    folder = Path(args.out)
    file = folder / "last.pth"
    if not file.is_file():
        return None
    if not args.resume:
        raise InputError(
            f"{printable(folder)}: holds a run already; go on with it with --resume,"
            " or choose another --out"
        )
    previous = checkpoints.read_file(file)
    needed = ("args", "optimizer", "metrics", "rng", "epoch", "step")
    if any(getattr(previous, name) is None for name in needed):
        raise InputError(
            f"{printable(file)}: no checkpoint of train_classification.py that can be gone on with"
        )
    return previous


def refuse_changes(args: Namespace, previous: Checkpoint, decisive: dict[str, object]) -> None:
    """InputError if the flags would not give the result of the run that is gone on with."""
    folder = Path(args.out)
    # Before there were recipes, all runs were trained by the published one, and none was a probe.
    unsaid = {"probe": False, "processes": processes_of(folder), **orders.BEFORE}
    before = recipes.RECIPES["published"] | unsaid | previous.args
    if before["processes"] is None:
        distributed.print_once(
            f"{printable(folder)}: how many processes have trained it so far is not known;"
            f" going on with {WORLD}"
        )
        before["processes"] = WORLD
    changes = [
        f"{name} was {_shortly(before.get(name))}, is {_shortly(value)}"
        for name, value in decisive.items()
        if _differ(before.get(name), value)
    ]
    if changes:
        raise InputError(
            f"--resume {printable(folder)}: would not give that run's result: {'; '.join(changes)}"
        )
    if previous.epoch > args.epochs:
        raise InputError(
            f"--resume {printable(folder)}: has {previous.epoch} epochs already,"
            f" --epochs {args.epochs} is fewer"
        )


def _differ(before: object, now: object) -> bool:
    try:
        return bool(before != now)
    except (RuntimeError, RecursionError):  # no setting, but a tensor, or far too deep
        return True


def _shortly(value: object) -> str:
    """A setting in a part of a line, whatever a file made of it, and however deep that is."""
    return printable(value if isinstance(value, str) else SHORTLY.repr(value))[:400]


def processes_of(folder: Path) -> int | None:
    """Give how many processes trained a run, by its config.json; None if that does not say.

    Checkpoints before version 2 do not know it.
    """
    with suppress(OSError, ValueError, RecursionError):  # there is none, or it is damaged
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if isinstance(config, dict) and type(config.get("processes")) is int:
            return config["processes"]
    return None


def begin(args: Namespace, train: PatchSet, device: torch.device, weights: str) -> Run:
    """Give a new run, on its device.

    weights: to start from, as checkpoints.initial_network takes them.
    """
    torch.manual_seed(args.seed)
    model = checkpoints.initial_network(args.arch, len(train.classes), weights)
    model = model.to(device, memory_format=torch.channels_last)
    average = None
    if args.average:
        average = averages.moving_average(model, args.average * steps_of_an_epoch(args, train))
    return Run(
        args=args,
        model=model,
        optimizer=optimisers.make_optimizer(args, model),
        average=average,
        description={
            "arch": args.arch,
            "classes": list(train.classes),
            "mean": list(networks.MEAN),
            "std": list(networks.STD),
            "image_size": train.image_size,
            "patch_size": train.patch_size,
            "stride": train.stride,
            "metres_a_pixel": train.metres_a_pixel,
            "max_nodata": train.max_nodata,
            **chosen_view(train),
        },
    )


def steps_of_an_epoch(args: Namespace, train: PatchSet) -> int:
    """Give how many whole batches the train patches make."""
    return len(train) // min(args.batch_size, len(train))


def restore(run: Run, previous: Checkpoint, train: PatchSet) -> None:
    """Bring a run that has just begun to where a checkpoint was saved."""
    file = printable(run.folder / "last.pth")
    steps = steps_of_an_epoch(run.args, train)
    saved_progress.check_progress(previous, run.args, steps, file)
    networks.load_state(run.model, previous.weights or previous.model, file)
    if run.average:
        networks.load_state(run.average.module, previous.model, file)
        run.average.n_averaged.fill_(previous.epoch * steps + previous.step)
    saved_progress.load_optimizer(run.optimizer, previous.optimizer, run.args, file)
    torch.set_rng_state(previous.rng)
    run.epoch = previous.epoch
    run.step = previous.step
    run.history = previous.metrics["history"]
    run.best = previous.metrics["best"]
    run.is_judged = previous.temperature is not None
    loss, correct, patches = previous.metrics["sums"]
    # They are of all processes, so that one of them takes them over.
    run.totals = Totals(loss, correct, patches) if RANK == 0 else Totals(patches=patches)
    if "of_each_process" in previous.metrics:
        try:
            _restore_own_state(run, previous.metrics["of_each_process"], patches)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError):
            raise saved_progress.damaged(file, "its of_each_process cannot be right") from None


def _restore_own_state(run: Run, of_each_process: dict, patches: int) -> None:
    own = of_each_process["batch_norms"][RANK]
    buffers = run.running_averages()
    parts = own.split([buffer.numel() for buffer in buffers])
    for buffer, part in zip(buffers, parts, strict=True):
        buffer.copy_(part.view(buffer.shape))
    run.totals = Totals(*of_each_process["sums"][RANK], patches)


def start_writing(run: Run, given: list[str], device: torch.device) -> None:
    """Make the run's folder, with config.json and the history so far. One process does it.

    given: the flags as they were typed, from which the command can be told again.
    """
    if RANK != 0:
        return
    clear_leftovers(run.folder)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    config = {
        **run.description["args"],
        "given": given,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "versions": versions.installed(),
    }
    with atomic(run.folder / "config.json", "w", encoding="utf-8") as file:
        json.dump(config, file, indent=1, ensure_ascii=False)
    write_history(run.folder, run.told_history)


@contextmanager
def watched(run: Run, train: PatchSet) -> Iterator[None]:
    """Have the run told to what --track names for as long as the block runs. One process does it.

    The run's folder must be there.
    """
    if RANK == 0 and run.args.track:
        steps = steps_of_an_epoch(run.args, train)
        done = run.epoch * steps + run.step
        settings = run.description["args"]
        run.tracker = tracking.start(run.args.track, run.folder, settings, steps, done, run.history)
        run.tracker.processes = WORLD
    is_well = False
    try:
        yield
        is_well = run.epoch == run.args.epochs
    finally:
        run.tracker.close(is_well)
