"""Does speed cost accuracy? Plain torchvision training against train_classification.py.

    python -m benchmarks.accuracy --raw demo/raw
    python -m benchmarks.accuracy --raw data/raw --stride 120 --json accuracy.json

Plain: the JPEG patches through ImageFolder, Resize, ToTensor and Normalize; float32, contiguous
memory. Ours: the arrays, bf16 where the processor is fast at it, channels_last. Both start from
the same weights and see the same patches in the same order with the same flips and rates, so what
differs is what the fast path does to the numbers: JPEG compression left out, and rounding.
"""

import csv
import json
import math
import statistics
import tempfile
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision import transforms

from benchmarks import in_a_line, script
from dl_slicer import versions
from dl_slicer.cli import Parser, number, run
from dl_slicer.model import architectures, devices, networks
from dl_slicer.patch_sets import ordering, reading
from dl_slicer.patch_sets.on_disk import STRIDE
from dl_slicer.training import schedules

SIDES = ("plain", "ours")
LAST_EPOCHS = 3  # their val accuracies are averaged


def arguments() -> Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--raw", required=True, help="folder of rasters")
    parser.add_argument("--stride", type=number(least=1), default=STRIDE)
    parser.add_argument("--image-size", type=number(least=1), default=64)
    parser.add_argument("--epochs", type=number(least=1), default=6)
    parser.add_argument("--seeds", type=number(least=1), default=5)
    parser.add_argument("--batch-size", type=number(least=1), default=32)
    parser.add_argument("--lr", type=number(float, above=0), default=3e-4)
    parser.add_argument(
        "--schedule",
        choices=schedules.SCHEDULES,
        default="cosine",
        help="at a constant rate single epochs swing too much to compare",
    )
    parser.add_argument("--arch", default="resnet18", choices=architectures.ARCHITECTURES)
    parser.add_argument("--json", help="also write the results here")
    return parser.parse_args()


def main() -> None:
    """Train both sides at each seed, and compare them in pairs."""
    args = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary, "patches")
        flags = ("--stride", args.stride, "--image-size", args.image_size, "--jpegs")
        script("preprocessing.py", "--raw", args.raw, "--out", data, *flags)
        plain = Plain(data, args)
        rows = []
        for seed in range(args.seeds):
            for side in SIDES:
                started = time.time()
                if side == "plain":
                    found = plain.train(seed)
                else:
                    found = train_ours(data, Path(temporary, f"run{seed}"), seed, args)
                seconds = round(time.time() - started, 1)
                rows.append({"seed": seed, "side": side, **found, "seconds": seconds})
                print(in_a_line(rows[-1]), flush=True)
    result = {
        **vars(args),
        "rows": rows,
        "threads": torch.get_num_threads(),
        "versions": versions.installed(),
        "dtype": str(devices.pick_dtype("auto", torch.device("cpu"))),
    }
    for score in ("test", "val_last3"):
        result[score] = compare(rows, score)
        print_comparison(score, result[score], args.seeds)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1))


def compare(rows: list[dict], score: str) -> dict[str, float]:
    """The means of both sides, their difference, and its standard error over pairs of one seed."""
    plain, ours = ([row[score] for row in rows if row["side"] == side] for side in SIDES)
    differences = [our - other for other, our in zip(plain, ours, strict=True)]
    error = math.nan
    plain_sd = math.nan
    if len(differences) > 1:
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        plain_sd = statistics.stdev(plain)
    return {
        "plain": statistics.mean(plain),
        "ours": statistics.mean(ours),
        "difference": statistics.mean(differences),
        "standard_error": error,
        "plain_sd": plain_sd,
    }


def print_comparison(score: str, found: dict[str, float], seeds: int) -> None:
    """Print a line of what compare() gives."""
    print(
        f"{score}: plain {found['plain']:.4f}  ours {found['ours']:.4f}"
        f"  difference {found['difference']:+.4f} +- {found['standard_error']:.4f}"
        f" (standard error, {seeds} seeds in pairs);"
        f" plain's own spread over seeds {found['plain_sd']:.4f}"
    )


class Plain:
    """Training and evaluation as such scripts are usually written."""

    def __init__(self, data: Path, args: Namespace):
        self.args = args
        resize = transforms.Resize((args.image_size, args.image_size))
        # Every epoch would read the same pixels from the JPEGs: once is enough where it is not
        # timed.
        self.images = {}
        self.labels = {}
        for split in ("train", "val", "test"):
            folder = torchvision.datasets.ImageFolder(
                data / split, transforms.Compose([resize, transforms.PILToTensor()])
            )
            self.images[split] = torch.stack([image for image, _ in folder])
            self.labels[split] = torch.tensor(folder.targets)
            self.check(reading.open_split(data, split), split)
        self.classes = len(folder.classes)
        self.normalise = transforms.Normalize(networks.MEAN, networks.STD)

    def check(self, patch_set: reading.ArrayPatches, split: str) -> None:
        """Both sides have the same patches in the same order, but for the JPEGs' compression.

        AssertionError if not.
        """
        assert np.array_equal(patch_set.labels, self.labels[split].numpy())
        for i in range(0, len(patch_set), max(1, len(patch_set) // 50)):
            plain = self.images[split][i].permute(1, 2, 0).numpy().astype(int)
            difference = abs(plain - patch_set.read([i])[0]).mean()
            assert difference < 4, (split, i, difference)

    def train(self, seed: int) -> dict[str, float]:
        """Train from scratch; give the accuracies that are compared."""
        args = self.args
        torch.manual_seed(seed)
        model = torchvision.models.get_model(args.arch, weights=None, num_classes=self.classes)
        optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
        val = []
        for epoch in range(args.epochs):
            self.train_epoch(model, optimizer, seed, epoch)
            if epoch >= args.epochs - LAST_EPOCHS:
                val.append(self.accuracy(model, "val"))
        return {"test": self.accuracy(model, "test"), "val_last3": statistics.mean(val)}

    def train_epoch(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, epoch: int
    ) -> None:
        """Train on the patches that train_classification.py takes, flipped as it flips them."""
        args = self.args
        model.train()
        order = ordering.epoch_order(self.labels["train"].numpy(), args.batch_size, seed, epoch)
        for step, batch in enumerate(order):
            epochs_done = epoch + (step + 0.5) / len(order)
            optimizer.param_groups[0]["lr"] = schedules.learning_rate(args, epochs_done)
            flipped = ordering.draw_flips(len(batch), seed, epoch, step)
            images = torch.stack(
                [self.tensor("train", i, *flips) for i, flips in zip(batch, flipped.T, strict=True)]
            )
            loss = cross_entropy(model(images), self.labels["train"][batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def tensor(
        self, split: str, i: int, horizontal: bool = False, vertical: bool = False
    ) -> Tensor:
        """A patch as the network sees it, flipped or not: float32 (3, size, size)."""
        image = self.images[split][i]
        if horizontal:
            image = transforms.functional.hflip(image)
        if vertical:
            image = transforms.functional.vflip(image)
        return self.normalise(image.float() / 255)

    @torch.no_grad()
    def accuracy(self, model: nn.Module, split: str) -> float:
        """The share of a split's patches that the model gets right."""
        model.eval()
        right = 0
        for indices in torch.arange(len(self.labels[split])).split(64):
            images = torch.stack([self.tensor(split, i) for i in indices])
            right += (model(images).argmax(1) == self.labels[split][indices]).sum().item()
        return right / len(self.labels[split])


def train_ours(data: Path, out: Path, seed: int, args: Namespace) -> dict[str, float]:
    """Train and test by the project's scripts; give the accuracies that are compared."""
    recipe = {
        "--arch": args.arch,
        "--weights": "none",
        "--epochs": args.epochs,
        "--batch-size": args.batch_size,
        "--lr": args.lr,
        "--schedule": args.schedule,
        "--seed": seed,
    }
    flags = [part for flag in recipe.items() for part in flag]
    script("train_classification.py", "--data", data, "--out", out, *flags)
    last = out / "last.pth"
    script("test_classification.py", "--checkpoint", last, "--data", data, "--split", "test")
    with open(out / "log.csv") as log:
        val = [float(row["val_accuracy"]) for row in csv.DictReader(log)]
    return {
        "test": json.loads((out / "test" / "metrics.json").read_text())["accuracy"],
        "val_last3": statistics.mean(val[-LAST_EPOCHS:]),
    }


if __name__ == "__main__":
    run(main)
