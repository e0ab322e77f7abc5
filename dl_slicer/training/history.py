"""What a run writes of its epochs."""

import matplotlib
import matplotlib.pyplot as plt

matplotlib.use("Agg")
from dl_slicer.files import atomic, write_rows

COLUMNS = ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy")


def write_history(folder, history):
    """log.csv and curves.png, each epoch once, whatever was there."""
    write_rows(
        folder / "log.csv", COLUMNS, ([row[column] for column in COLUMNS] for row in history)
    )
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axis, name in zip(axes, ("loss", "accuracy")):
        for split in ("train", "val"):
            axis.plot(
                epochs,
                [row[f"{split}_{name}"] for row in history],
                marker="o" if len(history) < 30 else None,
                markersize=3,
                label=split,
            )
        axis.set(xlabel="epoch", title=name)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend()
    axes[1].set_ylim(0, 1.02)
    with atomic(folder / "curves.png") as file:
        figure.savefig(file, dpi=120, format="png")
    plt.close(figure)
