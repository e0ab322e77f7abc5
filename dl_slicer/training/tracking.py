"""Where a run can be watched while it trains: in TensorBoard, or at Weights & Biases.

Nothing here stops a run: what fails is said in a line, and the run goes on unwatched. This module
needs no torch until a run is watched, since flags are read before torch is imported.

To add a place, write a function like those at the end, and name it in _PLACES under the name of the
package that it needs.
"""

import os
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dl_slicer import cities
from dl_slicer.cli import InputError, printable, warn
from dl_slicer.files import atomic

SECONDS_BETWEEN_POINTS = 30  # within an epoch
SECONDS_TO_CONNECT = 30
SECONDS_TO_SEND = 60  # at the end of a run; what is left lies in its folder
MOST_NAMED_CITIES = 60  # of more, the names on the picture would cover each other


class Place(NamedTuple):
    """What a place offers. Steps are those of the whole run, and never go down."""

    write: Callable[[dict[str, float], int], None]  # values by name, and the step
    show: Callable[[str, np.ndarray, int], None]  # a name, a picture (h, w, 3) uint8, the step
    close: Callable[[bool], None]  # whether all went well
    is_new: bool  # nothing of this run is there yet


class Point(NamedTuple):
    """How far an epoch was at some time."""

    epoch: int  # epochs finished before it
    time: float  # seconds
    loss: float  # sum over the patches of this process
    correct: float  # the same
    patches: int  # of this process


@dataclass
class Tracker:
    """Tells a place how a run goes; without a place it does nothing."""

    name: str = ""
    place: Place | None = None
    steps: int = 0  # of an epoch
    processes: int = 1
    last: Point | None = None  # the newest one that was written, or the first of an epoch

    def note_epoch(self, row: dict[str, float], patches_a_second: float | None) -> None:
        """Write a finished epoch. row: of the history. patches_a_second: None if not known."""
        values = {
            "train/loss": row["train_loss"],
            "train/accuracy": row["train_accuracy"],
            "val/loss": row["val_loss"],
            "val/accuracy": row["val_accuracy"],
            "learning_rate": row["lr"],
            "epoch": row["epoch"],
        }
        if patches_a_second is not None:
            values["epoch/patches_a_second"] = patches_a_second
        self._tell(lambda place: place.write(values, int(row["epoch"]) * self.steps))

    def note_progress(self, point: Point, step: int, rate: float) -> None:
        """Write, now and then, how it went since the last point of the same epoch.

        step: steps of the epoch that are done. rate: the learning rate.
        """
        if self.place is None:
            return
        last = self.last
        if last is None or last.epoch != point.epoch:
            self.last = point
            return
        patches = point.patches - last.patches
        seconds = point.time - last.time
        if seconds < SECONDS_BETWEEN_POINTS or not patches:
            return
        self.last = point
        values = {
            "interval/loss": (point.loss - last.loss) / patches,
            "interval/accuracy": (point.correct - last.correct) / patches,
            "interval/patches_a_second": self.processes * patches / seconds,
            "learning_rate": rate,
        }
        self._tell(lambda place: place.write(values, point.epoch * self.steps + step))

    def show_confusion(self, matrix: np.ndarray, classes: Sequence[str], epoch: int) -> None:
        """Show which cities are taken for which at the end of an epoch.

        matrix: patches (K, K), rows are true cities. epoch: with it, so many are finished.
        """

        def show(place: Place) -> None:
            picture = draw_confusion(matrix, classes)
            place.show("val/confusion", picture, epoch * self.steps)

        self._tell(show)

    def close(self, is_well: bool) -> None:
        """Have what was told be written or sent. is_well: whether the run came to its end."""
        self._tell(lambda place: place.close(is_well))
        self.place = None

    def _tell(self, action: Callable[[Place], None]) -> None:
        if self.place is None:
            return
        try:
            action(self.place)
        except Exception as error:  # whatever others' code raises: it is no reason to stop
            self.place = None
            warn(f"--track {self.name}: {_reason(error)}; the run goes on unwatched")


def check_installed(tracker: str | None) -> None:
    """InputError if the package that --track needs is not installed."""
    if tracker is None:
        return
    found = find_spec(tracker)
    # A folder of that name, as wandb itself makes them, is no package: it has no origin.
    if found is None or found.origin is None:
        raise InputError(
            f"--track {tracker}: needs the package {tracker}, which is not installed;"
            f" pip install {tracker}, or leave --track out"
        )


def start(
    name: str, folder: Path, settings: dict, steps: int, done: int, history: Sequence[dict]
) -> Tracker:
    """Give what tells a place how a run goes. For one process alone.

    name: of TRACKERS. folder: of the run. settings: what config.json says. steps: of an epoch.
    done: steps of the whole run so far, of which a place forgets all that it knows beyond.
    history: the epochs so far, which a place is told that does not know them.
    """
    tracker = Tracker(name, steps=steps)
    try:
        tracker.place = _PLACES[name](folder, settings, done)
    except Exception as error:  # as above
        warn(f"--track {name}: {_reason(error)}; the run goes on unwatched")
    if tracker.place and tracker.place.is_new:
        for row in history:
            tracker.note_epoch(row, None)
    return tracker


def draw_confusion(matrix: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Draw a confusion matrix (K, K), coloured by shares of its rows: uint8 (h, w, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side = min(12, max(4.5, 0.2 * len(classes) + 2))  # inches
    figure = Figure(figsize=(side + 0.8, side), dpi=100, layout="constrained")
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes.imshow(100 * share, cmap="Blues", vmin=0, vmax=100)
    if len(classes) <= MOST_NAMED_CITIES:
        # A code is no formula, whatever signs it has.
        style = {"fontsize": 7, "parse_math": False}
        labels = [label[:20] for label in cities.labels(classes)]
        axes.set_xticks(range(len(classes)), labels, rotation=90, **style)
        axes.set_yticks(range(len(classes)), labels, **style)
    accuracy = 100 * matrix.trace() / max(matrix.sum(), 1)
    axes.set(xlabel="predicted", ylabel="true", title=f"val, {accuracy:.1f} % right")
    figure.colorbar(image, ax=axes, shrink=0.6, label="% of the true city's patches")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _reason(error: Exception) -> str:
    return printable(" ".join(str(error).split())[:200].rstrip(".") or type(error).__name__)


def _begin_tensorboard(folder: Path, settings: dict, done: int) -> Place:
    from torch.utils.tensorboard import SummaryWriter

    folder = folder / "tensorboard"
    is_new = not any(folder.glob("events.out.tfevents.*"))
    # What a run that was killed had written beyond the checkpoint comes again.
    writer = SummaryWriter(str(folder), purge_step=None if is_new else done + 1)

    def write(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()  # a run may be killed at any moment

    def show(name: str, picture: np.ndarray, step: int) -> None:
        writer.add_image(name, picture, step, dataformats="HWC")
        writer.flush()

    return Place(write, show, lambda is_well: writer.close(), is_new)


def _begin_wandb(folder: Path, settings: dict, done: int) -> Place:
    import wandb

    # It is read where the package starts its process; releases that do not know it pass it over.
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", str(SECONDS_TO_SEND))
    identity, is_new = _run_id(folder / "wandb" / "run-id.txt")
    options = {
        "dir": str(folder),
        "id": identity,
        "resume": "allow",
        "name": folder.resolve().name,
        "project": os.environ.get("WANDB_PROJECT", "dl-slicer"),
        "config": settings,
        # The terminal's lines are ours, and stay as they are.
        "settings": {"console": "off", "init_timeout": SECONDS_TO_CONNECT},
    }
    with _nobody_to_ask():
        try:
            run = wandb.init(**options)
        except Exception as error:  # no connection, no login: it raises a dozen kinds
            warn(
                f"--track wandb: {_reason(error)}; the run is recorded in"
                f" {printable(folder / 'wandb')}, from where `wandb sync` sends it"
            )
            wandb.teardown()  # else the run's id is still in use
            run = wandb.init(**options, mode="offline")

    # Steps that the run has there already are passed over: they come again with the same values.
    def show(name: str, picture: np.ndarray, step: int) -> None:
        run.log({name: wandb.Image(picture)}, step=step)

    return Place(
        lambda values, step: run.log(values, step=step),
        show,
        lambda is_well: run.finish(exit_code=0 if is_well else 1),
        is_new,
    )


def _run_id(file: Path) -> tuple[str, bool]:
    """Give the run's name at Weights & Biases, and whether it is new. It is kept in a file."""
    if file.is_file():
        return file.read_text(encoding="utf-8").strip(), False
    identity = uuid.uuid4().hex[:8]
    with atomic(file, "w", encoding="utf-8") as opened:
        opened.write(f"{identity}\n")
    return identity, True


@contextmanager
def _nobody_to_ask() -> Iterator[None]:
    """Have no terminal to ask for a login at: a run must not wait for somebody to answer."""
    stdin = sys.stdin
    with open(os.devnull, encoding="utf-8") as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = stdin


_PLACES = {"tensorboard": _begin_tensorboard, "wandb": _begin_wandb}
TRACKERS = tuple(_PLACES)  # the choices of --track, which are the packages' names, too
