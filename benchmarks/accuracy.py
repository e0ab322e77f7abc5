"""Does speed cost accuracy? Plain torchvision training against train_classification.py, at the same seeds, patches and epochs.

    python -m benchmarks.accuracy --raw demo/raw
    python -m benchmarks.accuracy --raw data/raw --stride 120 --json accuracy.json

Plain: the JPEG patches through ImageFolder, Resize, ToTensor and Normalize; float32, contiguous memory. Ours: the arrays, bf16 where the
processor is fast at it, channels_last. Both start from the same weights and see the same patches in the same order with the same
flips and rates, so what differs is what the fast path does to the numbers: JPEG compression left out, and rounding.
"""

import csv
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch.nn.functional import cross_entropy
from torchvision import transforms

from benchmarks import script
from dl_slicer import versions
from dl_slicer.cli import Parser, number, run
from dl_slicer.model import architectures, devices, networks
from dl_slicer.patch_sets import ordering, reading
from dl_slicer.training import optimisers


def main():
    parser = Parser(__doc__)
    parser.add_argument("--raw", required=True, help="folder of rasters")
    parser.add_argument("--stride", type=number(least=1), default=240)
    parser.add_argument("--image-size", type=number(least=1), default=64)
    parser.add_argument("--epochs", type=number(least=1), default=6)
    parser.add_argument("--seeds", type=number(least=1), default=5)
    parser.add_argument("--batch-size", type=number(least=1), default=32)
    parser.add_argument("--lr", type=number(float, above=0), default=3e-4)
    parser.add_argument(
        "--schedule",
        choices=("constant", "cosine"),
        default="cosine",
        help="at a constant rate single epochs swing too much to compare",
    )
    parser.add_argument("--arch", default="resnet18", choices=architectures.ARCHITECTURES)
    parser.add_argument("--json", help="also write the figures here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary, "patches")
        script(
            "preprocessing.py",
            "--raw",
            args.raw,
            "--out",
            data,
            "--stride",
            args.stride,
            "--image-size",
            args.image_size,
            "--jpegs",
        )
        sides = {"plain": Plain(data, args), "ours": None}
        rows = []
        for seed in range(args.seeds):
            for side in sides:
                started = time.time()
                found = (
                    sides[side].train(seed)
                    if side == "plain"
                    else ours(data, Path(temporary, f"run{seed}"), seed, args)
                )
                rows.append(
                    {
                        "seed": seed,
                        "side": side,
                        **found,
                        "seconds": round(time.time() - started, 1),
                    }
                )
                print(
                    "  ".join(
                        f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}"
                        for key, value in rows[-1].items()
                    ),
                    flush=True,
                )
    result = {
        **vars(args),
        "rows": rows,
        "threads": torch.get_num_threads(),
        "versions": versions.installed(),
        "dtype": str(devices.pick_dtype("auto", torch.device("cpu"))),
    }
    for figure in ("test", "val_last3"):
        plain, fast = ([row[figure] for row in rows if row["side"] == side] for side in sides)
        difference = [b - a for a, b in zip(plain, fast)]
        error = (
            statistics.stdev(difference) / math.sqrt(len(difference))
            if len(difference) > 1
            else math.nan
        )
        result[figure] = {
            "plain": statistics.mean(plain),
            "ours": statistics.mean(fast),
            "difference": statistics.mean(difference),
            "standard_error": error,
            "plain_sd": statistics.stdev(plain) if len(plain) > 1 else math.nan,
        }
        print(
            f"{figure}: plain {statistics.mean(plain):.4f}  ours {statistics.mean(fast):.4f}  difference {statistics.mean(difference):+.4f} "
            f"+- {error:.4f} (standard error, {len(difference)} seeds in pairs); plain's own spread over seeds {result[figure]['plain_sd']:.4f}"
        )
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1))


class Plain:
    """Training and evaluation as such scripts are usually written."""

    def __init__(self, data, args):
        self.args = args
        resize = transforms.Resize((args.image_size, args.image_size))
        # Every epoch would read the same pixels from the JPEGs: once is enough where it is not timed.
        self.images, self.labels = {}, {}
        for split in ("train", "val", "test"):
            folder = torchvision.datasets.ImageFolder(
                data / split, transforms.Compose([resize, transforms.PILToTensor()])
            )
            self.images[split] = torch.stack([image for image, _ in folder])
            self.labels[split] = torch.tensor(folder.targets)
            self.check(reading.open_split(data, split), split)
        self.classes = len(folder.classes)
        self.normalise = transforms.Normalize(networks.MEAN, networks.STD)

    def check(self, patch_set, split):
        """Both sides have the same patches in the same order, but for the JPEGs' compression."""
        assert np.array_equal(patch_set.labels, self.labels[split].numpy())
        for i in range(0, len(patch_set), max(1, len(patch_set) // 50)):
            difference = (
                self.images[split][i].permute(1, 2, 0).numpy().astype(int) - patch_set.read([i])[0]
            )
            assert abs(difference).mean() < 4, (split, i, abs(difference).mean())

    def train(self, seed):
        args = self.args
        torch.manual_seed(seed)
        model = torchvision.models.get_model(args.arch, weights=None, num_classes=self.classes)
        optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
        val = []
        for epoch in range(args.epochs):
            model.train()
            order = ordering.epoch_order(self.labels["train"].numpy(), args.batch_size, seed, epoch)
            for step, batch in enumerate(order):
                optimizer.param_groups[0]["lr"] = optimisers.learning_rate(
                    args, epoch + (step + 0.5) / len(order)
                )
                flipped = ordering.draw_flips(len(batch), seed, epoch, step)
                images = torch.stack(
                    [self.tensor("train", i, *flips) for i, flips in zip(batch, flipped.T)]
                )
                loss = cross_entropy(model(images), self.labels["train"][batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if epoch >= args.epochs - 3:
                val.append(self.accuracy(model, "val"))
        return {"test": self.accuracy(model, "test"), "val_last3": statistics.mean(val)}

    def tensor(self, split, i, horizontal=False, vertical=False):
        image = self.images[split][i]
        if horizontal:
            image = transforms.functional.hflip(image)
        if vertical:
            image = transforms.functional.vflip(image)
        return self.normalise(image.float() / 255)

    @torch.no_grad()
    def accuracy(self, model, split):
        model.eval()
        right = 0
        for some in torch.arange(len(self.labels[split])).split(64):
            right += (
                (
                    model(torch.stack([self.tensor(split, i) for i in some])).argmax(1)
                    == self.labels[split][some]
                )
                .sum()
                .item()
            )
        return right / len(self.labels[split])


def ours(data, run, seed, args):
    script(
        "train_classification.py",
        "--data",
        data,
        "--run",
        run,
        "--arch",
        args.arch,
        "--weights",
        "none",
        "--epochs",
        args.epochs,
        "--batch-size",
        args.batch_size,
        "--lr",
        args.lr,
        "--schedule",
        args.schedule,
        "--seed",
        seed,
    )
    script(
        "test_classification.py",
        "--checkpoint",
        run / "last.pth",
        "--data",
        data,
        "--split",
        "test",
    )
    with open(run / "log.csv") as log:
        val = [float(row["val_accuracy"]) for row in csv.DictReader(log)][-3:]
    return {
        "test": json.loads((run / "test" / "metrics.json").read_text())["accuracy"],
        "val_last3": statistics.mean(val),
    }


if __name__ == "__main__":
    run(main)
