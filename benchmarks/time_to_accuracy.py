"""What does the published accuracy cost? Plain code and ours, the published recipe and others.

    python -m benchmarks.time_to_accuracy --out time/hard
    python -m benchmarks.time_to_accuracy --out time/own --raw data/raw --stride 120
                                          --image-size 80 --target-epochs 12
    python -m benchmarks.time_to_accuracy --out time/fine --weights other/last.pth

Every side is trained at the lengths of a fixed ladder, with several seeds, on the same patches, and
its last epoch is measured once on test: no run stops where it happens to be good. The target is
what plain code reaches by the published recipe at the first of 10, 20, 40 and 80 epochs after which
twice as many raise the mean over the seeds by less than a point (or at --target-epochs). A side
costs what it takes at its shortest length whose mean is within a point of the target, or above: in
CPU seconds of all processes, with start-up and validation, and in seconds.

At a constant rate the first epochs of a long run are those of a short one, so one run serves all
lengths. Where the rate falls, each length is a run of its own. What is finished is kept in
<out>/costs.csv and not run again.
"""

import csv
import json
import time
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import numpy as np

from benchmarks import module, script
from benchmarks.recipes import HARD_SAMPLE, accuracy_on_test
from dl_slicer import cli
from dl_slicer.cli import Parser, number
from dl_slicer.files import atomic, write_rows
from dl_slicer.model import architectures
from dl_slicer.patch_sets.on_disk import STRIDE

LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80)
TARGETS = (10, 20, 40, 80)  # epochs of plain code by the published recipe
ENOUGH = 0.01  # a gain of accuracy that is none
DRAWS = 2000
MEASURES = ("cpu_seconds", "cpu_seconds_without_start", "seconds")  # of a cost


@dataclass(frozen=True)
class Side:
    """A way to train. Its rate is constant, or else each length is a run of its own."""

    name: str
    is_plain: bool
    is_constant: bool
    flags: tuple[str, ...]


SIDES = (
    Side("plain, published", True, True, ()),
    Side("plain, published, cosine 3e-4", True, False, ("--schedule", "cosine", "--lr", "3e-4")),
    Side("plain, published, cosine 1e-3", True, False, ("--schedule", "cosine", "--lr", "1e-3")),
    Side("ours, published", False, True, ()),
    Side("ours, robust", False, False, ("--recipe", "robust")),
)
BY_NAME = {side.name: side for side in SIDES}
REFERENCE = SIDES[0]


@dataclass(frozen=True)
class Cost:
    """What one run had reached after so many epochs, and what that had cost."""

    side: str
    seed: int
    epochs: int
    val: float
    test: float
    seconds: float
    cpu_seconds: float
    start_seconds: float  # of which what a run takes before its first step
    start_cpu_seconds: float


def arguments(argv: Sequence[str] | None = None) -> Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder of the patch set and runs")
    parser.add_argument("--raw", help="folder of rasters; default: draw the hard sample")
    parser.add_argument("--sample-seed", type=number(least=0), default=3, help="of what is drawn")
    parser.add_argument(
        "--rasters", type=number(least=1), default=1, help="of each site that is drawn"
    )
    parser.add_argument("--held-out", type=number(least=1), help="see preprocessing.py")
    parser.add_argument("--stride", type=number(least=1), default=STRIDE)
    parser.add_argument("--image-size", type=number(least=1), default=64)
    parser.add_argument("--arch", default="resnet18", choices=architectures.ARCHITECTURES)
    parser.add_argument("--weights", help="a checkpoint to begin with; default: from scratch")
    parser.add_argument("--batch-size", type=number(least=1), default=32)
    parser.add_argument("--seeds", type=number(least=1), default=5)
    parser.add_argument("--sides", nargs="+", default=list(BY_NAME), choices=BY_NAME)
    parser.add_argument("--target-epochs", type=number(least=1), help="default: found, see above")
    parser.add_argument("--longest", type=number(least=1), default=LADDER[-1])
    parser.add_argument("--json", help="also write the results here")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, and print the table."""
    args = arguments(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    matplotlib.use("Agg")
    make_patches(args)
    costs = Costs(args)
    target_epochs = find_target_epochs(args, costs)
    target = costs.mean(REFERENCE, target_epochs)
    print(f"target: {100 * target:.1f} % on test, {REFERENCE.name}, {target_epochs} epochs")
    for name in args.sides:
        climb(BY_NAME[name], costs, target, args)
    found = compare(costs.rows, target_epochs, args.sides)
    print_table(found)
    draw(costs.rows, args.out / "time_to_accuracy.png")
    if args.json:
        with atomic(args.json, "w") as file:
            json.dump({"time_to_accuracy": found | {"sample": sample_flags(args)}}, file, indent=1)


def make_patches(args: Namespace) -> None:
    """Make the patch set with its JPEGs, and before it the rasters where none are given."""
    raw = args.raw or args.out / "raw"
    if not args.raw and not raw.is_dir():
        script("data/make_sample.py", "--out", raw, *sample_flags(args))
    flags = ["--stride", args.stride, "--image-size", args.image_size, "--jpegs"]
    if args.held_out:
        flags += ["--held-out", args.held_out]
    script("preprocessing.py", "--raw", raw, "--out", args.out / "patches", *flags)


def sample_flags(args: Namespace) -> list[str]:
    """Give the flags of data/make_sample.py that draw the hard sample of these flags."""
    without_seed = [str(part) for part in HARD_SAMPLE[: HARD_SAMPLE.index("--seed")]]
    return [*without_seed, "--seed", str(args.sample_seed), "--rasters", str(args.rasters)]


class Costs:
    """What runs have reached and cost; those that are missing are trained when asked for."""

    def __init__(self, args: Namespace):
        self.args = args
        self.file = args.out / "costs.csv"
        self.rows: list[Cost] = []
        if self.file.is_file():
            with open(self.file, newline="") as lines:
                self.rows = [read_cost(row) for row in csv.DictReader(lines)]

    def mean(self, side: Side, epochs: int) -> float:
        """Give the accuracy on test after so many epochs, averaged over the seeds."""
        self.train(side, [epochs])
        return float(np.mean([row.test for row in of_length(self.rows, side.name, epochs)]))

    def train(self, side: Side, lengths: Iterable[int]) -> None:
        """Train to these lengths what is not known yet, seed by seed."""
        for seed in range(self.args.seeds):
            known = {row.epochs for row in self.rows if row.side == side.name and row.seed == seed}
            missing = sorted(set(lengths) - known)
            if missing:
                way = plain_costs if side.is_plain else our_costs
                self.rows += way(side, seed, missing, self.args)
                columns = list(Cost.__annotations__)
                write_rows(self.file, columns, (asdict(row).values() for row in self.rows))


def read_cost(row: dict[str, str]) -> Cost:
    """Give a row of costs.csv."""
    kinds = Cost.__annotations__
    return Cost(**{name: kinds[name](value) for name, value in row.items()})


def of_length(rows: Iterable[Cost], side: str, epochs: int) -> list[Cost]:
    """Give the runs of a side of this length, a seed each."""
    return [row for row in rows if row.side == side and row.epochs == epochs]


def plain_costs(side: Side, seed: int, lengths: Sequence[int], args: Namespace) -> list[Cost]:
    """Train by plain code; of a constant rate one run serves all lengths."""
    runs = [[*lengths]] if side.is_constant else [[length] for length in lengths]
    found = []
    for of_run in runs:
        name = side.name.replace(",", "").replace(" ", "-")
        length = "" if side.is_constant else f"-{of_run[0]}"
        file = args.out / f"{name}-{seed}{length}.csv"
        flags = ["--data", args.out / "patches", "--out", file, "--arch", args.arch]
        flags += ["--image-size", args.image_size, "--batch-size", args.batch_size]
        flags += ["--epochs", max(of_run), "--seed", seed, "--test-after", *of_run, *side.flags]
        flags += ["--weights", args.weights] if args.weights else []
        module("benchmarks.plain_training", *flags, "--started", time.time())
        with open(file, newline="") as lines:
            rows = {int(float(row["epoch"])): row for row in csv.DictReader(lines)}
        start = [float(rows[0][key]) for key in ("seconds", "cpu_seconds")]
        for epochs in of_run:
            reached = [float(rows[epochs][key]) for key in ("val", "test")]
            spent = [float(rows[epochs][key]) for key in ("seconds", "cpu_seconds")]
            found.append(Cost(side.name, seed, epochs, *reached, *spent, *start))
    return found


def our_costs(side: Side, seed: int, lengths: Sequence[int], args: Namespace) -> list[Cost]:
    """Train by train_classification.py; at a constant rate a longer run goes on with a shorter."""
    found = []
    seconds = cpu_seconds = 0.0
    for epochs in lengths:
        name = side.name.replace(",", "").replace(" ", "-")
        length = "" if side.is_constant else f"-{epochs}"
        folder = args.out / f"{name}-{seed}{length}"
        flags = ["--data", args.out / "patches", "--out", folder, "--arch", args.arch]
        flags += ["--weights", args.weights or "none", "--batch-size", args.batch_size]
        flags += ["--epochs", epochs, "--seed", seed, "--resume", *side.flags]
        spent = script("train_classification.py", *flags)
        start = script("train_classification.py", *flags)  # there is nothing left to be done
        if not side.is_constant:
            seconds = cpu_seconds = 0.0
        is_first = seconds == 0
        seconds += spent.seconds - (0 if is_first else start.seconds)
        cpu_seconds += spent.cpu_seconds - (0 if is_first else start.cpu_seconds)
        with open(folder / "log.csv", newline="") as file:
            val = [float(line["val_accuracy"]) for line in csv.DictReader(file)]
        test = accuracy_on_test(folder / "last.pth", args.out / "patches")
        cost = Cost(side.name, seed, epochs, val[-1], test, seconds, cpu_seconds, *start)
        found.append(cost)
    return found


def find_target_epochs(args: Namespace, costs: Costs) -> int:
    """Give the length whose accuracy is the target."""
    if args.target_epochs:
        return args.target_epochs
    for epochs in TARGETS[:-1]:
        costs.train(REFERENCE, [length for length in LADDER if length <= epochs] + [epochs])
        if costs.mean(REFERENCE, 2 * epochs) - costs.mean(REFERENCE, epochs) < ENOUGH:
            return epochs
    return TARGETS[-1]


def climb(side: Side, costs: Costs, target: float, args: Namespace) -> None:
    """Train to one length of the ladder after the other, up to the first that is good enough."""
    for epochs in LADDER:
        if epochs > args.longest:
            return
        if costs.mean(side, epochs) >= target - ENOUGH:
            return


def shortest(rows: Sequence[Cost], side: str, target: float, seeds: np.ndarray) -> int | None:
    """Give the least epochs of which the mean over these seeds is good enough; None: none is.

    seeds: their numbers, as often as each was drawn.
    """
    for epochs in sorted({row.epochs for row in rows if row.side == side}):
        test = {row.seed: row.test for row in of_length(rows, side, epochs)}
        if np.mean([test[seed] for seed in seeds.tolist()]) >= target - ENOUGH:
            return epochs
    return None


def cost_of(
    rows: Sequence[Cost], side: str, target: float, seeds: np.ndarray
) -> dict[str, float] | None:
    """Give what a side costs, as means over these seeds; None where it never gets there."""
    epochs = shortest(rows, side, target, seeds)
    if epochs is None:
        return None
    of_seed = {row.seed: row for row in of_length(rows, side, epochs)}
    drawn = [of_seed[seed] for seed in seeds.tolist()]

    def mean(measure: str) -> float:
        return float(np.mean([getattr(row, measure) for row in drawn]))

    cpu_seconds = mean("cpu_seconds")
    return {
        "epochs": epochs,
        "test": mean("test"),
        "seconds": mean("seconds"),
        "cpu_seconds": cpu_seconds,
        "cpu_seconds_without_start": cpu_seconds - mean("start_cpu_seconds"),
    }


def compare(rows: Sequence[Cost], target_epochs: int, sides: Sequence[str]) -> dict:
    """Give the target, what each side costs, and the ratios against the reference.

    Intervals are of 95 %, by bootstrap over the seeds: those of a side are drawn anew, the target
    and the shortest length are found anew. A draw in which a side never gets there counts as no
    gain at all, in which the reference does not as none that could be told.
    """
    by_side = {name: sorted({row.seed for row in rows if row.side == name}) for name in BY_NAME}
    by_side = {name: np.array(seeds) for name, seeds in by_side.items() if seeds}
    target = float(np.mean([row.test for row in of_length(rows, REFERENCE.name, target_epochs)]))
    measured = [name for name in sides if name in by_side]
    costs = {name: cost_of(rows, name, target, by_side[name]) for name in measured}
    rng = np.random.default_rng(0)
    ratios = {name: {key: [] for key in MEASURES} for name in measured}
    for _ in range(DRAWS):
        drawn = {name: rng.choice(seeds, len(seeds)) for name, seeds in by_side.items()}
        reached = {row.seed: row.test for row in of_length(rows, REFERENCE.name, target_epochs)}
        target_drawn = np.mean([reached[seed] for seed in drawn[REFERENCE.name].tolist()])
        reference = cost_of(rows, REFERENCE.name, target_drawn, drawn[REFERENCE.name])
        for name in measured:
            cost = cost_of(rows, name, target_drawn, drawn[name])
            for key in MEASURES:
                ratios[name][key].append(reference[key] / cost[key] if cost else 0.0)
    reference = cost_of(rows, REFERENCE.name, target, by_side[REFERENCE.name])
    return {
        "target": {"test": target, "epochs": target_epochs, "side": REFERENCE.name},
        "sides": costs,
        "ratio": {
            name: {
                key: {
                    "ratio": reference[key] / costs[name][key] if costs[name] else None,
                    "ci95": np.quantile(ratios[name][key], (0.025, 0.975)).tolist(),
                }
                for key in MEASURES
            }
            for name in measured
        },
        "seeds": {name: len(by_side[name]) for name in measured},
    }


def print_table(found: dict) -> None:
    """Print the sides in Markdown, a line each."""
    print(
        "\n| side | seeds | epochs | test, % | CPU seconds | ratio | 95 % | without start-up"
        " | seconds |\n|---|---|---|---|---|---|---|---|---|"
    )
    for name, cost in found["sides"].items():
        if cost is None:
            print(f"| {name} | {found['seeds'][name]} | never gets there ||||||| ")
            continue
        whole, without_start, wall = (found["ratio"][name][key] for key in MEASURES)
        low, high = whole["ci95"]
        cells = (
            name,
            found["seeds"][name],
            cost["epochs"],
            f"{100 * cost['test']:.1f}",
            f"{cost['cpu_seconds']:.0f}",
            f"{whole['ratio']:.1f}",
            f"{low:.1f} to {high:.1f}",
            f"{without_start['ratio']:.1f}",
            f"{wall['ratio']:.1f}",
        )
        print(f"| {' | '.join(map(str, cells))} |")


def draw(rows: Sequence[Cost], path: Path) -> None:
    """Draw the accuracy on val over the cost, a line a side."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name in dict.fromkeys(row.side for row in rows):
        lengths = sorted({row.epochs for row in rows if row.side == name})
        means = [
            np.mean([(row.cpu_seconds, 100 * row.val) for row in of_length(rows, name, epochs)], 0)
            for epochs in lengths
        ]
        axes.plot(*np.transpose(means), marker="o", label=name)
    axes.set_xscale("log")
    axes.set_xlabel("CPU seconds, with start-up and validation")
    axes.set_ylabel("val accuracy at the last epoch, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    cli.run(main)
