"""What a run says of its epochs: log.csv, curves.png, and a line on the terminal."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dl_slicer.files import atomic, write_rows

COLUMNS = ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
MOST_MARKED_EPOCHS = 29  # of more, the marks of a curve would cover it

Epoch = dict[str, int | float]  # one row of log.csv, by its columns


def write_history(folder: Path, history: list[Epoch]) -> None:
    """Write log.csv and curves.png: each epoch once, whatever was there."""
    rows = ([epoch[column] for column in COLUMNS] for epoch in history)
    write_rows(folder / "log.csv", COLUMNS, rows)
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    _draw_curves(loss_axes, history, "loss")
    _draw_curves(accuracy_axes, history, "accuracy")
    accuracy_axes.set_ylim(0, 1.02)
    with atomic(folder / "curves.png") as file:
        figure.savefig(file, dpi=120, format="png")


def _draw_curves(axes: Axes, history: list[Epoch], name: str) -> None:
    numbers = [epoch["epoch"] for epoch in history]
    marker = "o" if len(history) <= MOST_MARKED_EPOCHS else None
    for split in ("train", "val"):
        values = [epoch[f"{split}_{name}"] for epoch in history]
        axes.plot(numbers, values, marker=marker, markersize=3, label=split)
    axes.set(xlabel="epoch", title=name)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()


def describe(epoch: Epoch, epochs: int, is_best: bool) -> str:
    """Say in a line how an epoch went. epochs: how many the run has."""
    line = (
        f"epoch {epoch['epoch']:>3}/{epochs}"
        f"  train loss {epoch['train_loss']:.4f} accuracy {epoch['train_accuracy']:.4f}"
        f"  val loss {epoch['val_loss']:.4f} accuracy {epoch['val_accuracy']:.4f}"
    )
    return f"{line}  best" if is_best else line
