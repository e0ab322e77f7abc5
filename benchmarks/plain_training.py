"""Training as such scripts are usually written: torchvision's parts, float32, contiguous.

    python -m benchmarks.plain_training --data DIR --out runs/plain-0.csv --epochs 20
                                        --test-after 1 2 3 4 6 8 12 16 20

One side of `python -m benchmarks.time_to_accuracy`, in a process of its own, so that its seconds
are its own. `ImageFolder` reads the JPEG patches (`preprocessing.py --jpegs`) with as many workers
as there are cores, `Resize` scales them, `loss.item()` is asked for at each step, and validation
follows each epoch. Writes a row for each epoch: what was reached, and what it had cost up to then.
What measuring on test takes is left out of the cost.
"""

import csv
import resource
import time
from argparse import Namespace
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from torchvision import transforms

from dl_slicer import machine
from dl_slicer.cli import Parser, number, run
from dl_slicer.files import atomic, write_rows
from dl_slicer.model import architectures, networks
from dl_slicer.patch_sets import transforms as patch_transforms
from dl_slicer.training import averages, recipes, schedules

COLUMNS = ("epoch", "val", "test", "seconds", "cpu_seconds")


def arguments() -> Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--data", required=True, type=Path, help="patch set with JPEGs")
    parser.add_argument("--out", required=True, type=Path, help="the CSV to write")
    parser.add_argument("--arch", default="resnet18", choices=architectures.ARCHITECTURES)
    parser.add_argument("--weights", help="a checkpoint to begin with; default: from scratch")
    parser.add_argument("--recipe", default="published", choices=recipes.RECIPES)
    parser.add_argument("--schedule", choices=schedules.SCHEDULES)
    parser.add_argument("--lr", type=number(float, above=0))
    parser.add_argument("--image-size", type=number(least=1), default=64)
    parser.add_argument("--batch-size", type=number(least=1), default=32)
    parser.add_argument("--epochs", type=number(least=1), required=True)
    parser.add_argument("--seed", type=number(least=0), default=0)
    parser.add_argument("--test-after", type=number(least=1), nargs="+", default=[])
    parser.add_argument("--started", type=float, help="time.time() when this process was started")
    return parser.parse_args()


def main() -> None:
    """Train so many epochs, and say after each what was reached and what it had cost."""
    args = arguments()
    recipes.set_defaults(settings_of(args))
    train = loader(args, "train")
    val = loader(args, "val")
    torch.manual_seed(args.seed)
    model = network(args, len(train.dataset.classes))
    optimizer = make_optimizer(args, model)
    average = None
    if args.average:
        average = averages.moving_average(model, args.average * len(train))
    rows = resume(args, model, optimizer)
    clock = Clock(args.started or time.time(), rows)
    if not rows:
        rows.append((0, None, None, *clock.spent()))
    for epoch in range(len(rows) - 1, args.epochs):
        torch.manual_seed(1000 * args.seed + epoch)  # a run that goes on comes to the same numbers
        train_epoch(args, model, optimizer, average, train, epoch)
        result = average.module if average else model
        accuracy_on_val = accuracy(result, val)
        spent = clock.spent()
        accuracy_on_test = None
        if epoch + 1 in args.test_after:
            accuracy_on_test = accuracy(result, loader(args, "test"))
            clock.go_on_from(spent)
        rows.append((epoch + 1, accuracy_on_val, accuracy_on_test, *spent))
        write_rows(args.out, COLUMNS, rows)
    with atomic(state_file(args)) as file:
        torch.save([model.state_dict(), optimizer.state_dict()], file)


def state_file(args: Namespace) -> Path:
    """Give where a run leaves what a longer one goes on with."""
    return args.out.with_suffix(".pth")


def resume(args: Namespace, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple]:
    """Go on with a run at a constant rate that was shorter. Give its rows; none for a new run."""
    if args.schedule != "constant" or not state_file(args).is_file():
        return []
    of_model, of_optimizer = torch.load(state_file(args), weights_only=True)
    model.load_state_dict(of_model)
    optimizer.load_state_dict(of_optimizer)
    with open(args.out, newline="") as file:
        return [
            tuple(float(value) if value else None for value in row)
            for row in list(csv.reader(file))[1:]
        ]


class Clock:
    """What a run has cost, in seconds and in CPU seconds of all its processes."""

    def __init__(self, started: float, rows: list[tuple]):
        self.before = (started, 0.0)
        if rows:  # the second start-up costs nothing: a run of this length would not have it
            self.go_on_from(rows[-1][3:])

    def spent(self) -> tuple[float, float]:
        """Give both."""
        return time.time() - self.before[0], processor_seconds() - self.before[1]

    def go_on_from(self, spent: tuple[float, float]) -> None:
        """Forget what has been spent since then."""
        self.before = (time.time() - spent[0], processor_seconds() - spent[1])


def settings_of(args: Namespace) -> Namespace:
    """Give the flags with an empty place for each setting of a recipe that has no flag here."""
    for setting in recipes.RECIPES[args.recipe]:
        if setting not in args:
            setattr(args, setting, None)
    return args


def processor_seconds() -> float:
    """Give what this process and its workers that have ended have used of all processors."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def loader(args: Namespace, split: str) -> DataLoader:
    """Give the batches of a split: for training shuffled and changed at random."""
    is_train = split == "train"
    flips = [transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip()]
    steps = [
        transforms.Resize((args.image_size, args.image_size)),
        *(flips if is_train and args.flips else []),
        transforms.ToTensor(),
        transforms.Normalize(networks.MEAN, networks.STD),
    ]
    folder = torchvision.datasets.ImageFolder(args.data / split, transforms.Compose(steps))
    return DataLoader(
        folder,
        args.batch_size,
        shuffle=is_train,
        drop_last=is_train,
        num_workers=machine.available_cores(),
    )


def network(args: Namespace, classes: int) -> nn.Module:
    """Give the network, with the weights of a checkpoint but for its last layer."""
    model = torchvision.models.get_model(args.arch, weights=None, num_classes=classes)
    if args.weights:
        state = torch.load(args.weights, weights_only=True, map_location="cpu")["model"]
        without_last = {name: value for name, value in state.items() if not name.startswith("fc.")}
        model.load_state_dict(without_last, strict=False)
    return model


def make_optimizer(args: Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """Give torch's own optimiser of a recipe, as it is without being asked for more."""
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[args.optimizer](model.parameters(), lr=args.lr, weight_decay=args.weight_decay)


def train_epoch(
    args: Namespace,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    batches: DataLoader,
    epoch: int,
) -> None:
    """Train on each patch once."""
    model.train()
    for step, (images, labels) in enumerate(batches):
        epochs_done = epoch + (step + 0.5) / len(batches)
        optimizer.param_groups[0]["lr"] = schedules.learning_rate(args, epochs_done)
        logits = model(changed(args, images, epoch, step))
        loss = cross_entropy(logits, labels, label_smoothing=args.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if average:
            average.update_parameters(model)
        loss.item()


def changed(args: Namespace, images: Tensor, epoch: int, step: int) -> Tensor:
    """Turn patches and change their light, where the recipe says so, by the project's functions."""
    if not args.turns and not args.light:
        return images
    drawn = patch_transforms.draw_changes(len(images), args.seed, epoch, step)
    drawn = {name: torch.from_numpy(values) for name, values in drawn.items()}
    return patch_transforms.augment(
        images, drawn, networks.MEAN, networks.STD, args.turns, args.light
    )


@torch.no_grad()
def accuracy(model: nn.Module, batches: DataLoader) -> float:
    """Give the share of patches that the model gets right."""
    model.eval()
    right = sum((model(images).argmax(1) == labels).sum().item() for images, labels in batches)
    return right / len(batches.dataset)


if __name__ == "__main__":
    run(main)
