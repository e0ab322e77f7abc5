"""Do recipes keep what they learn? Trains each several times and compares the ends of the runs.

    python -m benchmarks.recipes --out recipes/hard --rows published robust --test
    python -m benchmarks.recipes --out recipes/ablation --seeds 1 --epochs 12
    python -m benchmarks.recipes --raw data/raw --stride 120 --image-size 80 --epochs 12
                                 --out recipes/own --rows published robust --test
    python -m benchmarks.recipes --out recipes/orders --rasters 4 --seeds 10 --test
                                 --rows robust "robust, grouped"

Without --raw a hard sample is drawn: twelve cities in three groups of four much alike, with other
light and season at each site. Every row trains from scratch (or from --weights) at equal epochs
and takes the last epoch, never a chosen one. The val accuracies decide what a recipe is made of;
--test also measures the last epoch on test. Compared are accuracies, their swing and the time.
What is finished is kept in <out>/runs.csv and not run again.

A row "…, grouped" has --order grouped, and a buffer of an eighth of the train arrays: its
difference to the row without that, seed by seed, is given with its 90 % interval. It takes at least
24 train rasters; the hard sample has that many with --rasters 1, but a buffer of them is too small.
"""

import csv
import json
import statistics
from argparse import Namespace
from pathlib import Path

import torch
from scipy.stats import t as student

from benchmarks import in_a_line, script
from dl_slicer.cli import InputError, Parser, number, printable, run
from dl_slicer.files import atomic, write_rows
from dl_slicer.model import architectures, checkpoints, devices, evaluation
from dl_slicer.patch_sets import reading
from dl_slicer.patch_sets.on_disk import STRIDE

ROBUST = ["--recipe", "robust"]
ROWS = {
    "published": [],
    "robust": ROBUST,
    # One ingredient less each.
    "no decay of the rate": [*ROBUST, "--schedule", "constant"],
    "no averaged weights": [*ROBUST, "--average", "0"],
    "Adam, no weight decay": [*ROBUST, "--optimizer", "adam", "--weight-decay", "0"],
    "no label smoothing": [*ROBUST, "--label-smoothing", "0"],
    "no quarter turns": [*ROBUST, "--no-turns"],
    "no light": [*ROBUST, "--light", "0"],
}
# In the order that reads rasters in groups, beside the same row in random order.
GROUPED = {"published, grouped": "published", "robust, grouped": "robust"}
BUFFER = 1 / 8  # of the train arrays
COLUMNS = ("row", "seed", "val", "best_val", "swing", "test", "seconds", "cpu_seconds")
HARD_SAMPLE = ("--cities", 12, "--alike", 4, "--light", 1.5, "--sites", 3, "--seed", 3)
RASTERS = 1  # of a site of the hard sample
# What all runs in one --out must share.
SETTINGS = ("raw", "rasters", "stride", "image_size", "arch", "weights", "epochs", "batch_size")


def arguments(argv: list[str] | None) -> Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--raw", default=None, help="folder of rasters; default: draw the hard sample"
    )
    parser.add_argument(
        "--out", required=True, help="folder of the patch set, the runs and runs.csv"
    )
    parser.add_argument(
        "--rasters", type=number(least=1), default=RASTERS, help="of a site of the hard sample"
    )
    parser.add_argument("--stride", type=number(least=1), default=STRIDE)
    parser.add_argument(
        "--image-size",
        type=number(least=1),
        default=64,
        help="small, so that many runs are affordable",
    )
    parser.add_argument("--arch", default="resnet18", choices=architectures.ARCHITECTURES)
    parser.add_argument("--weights", default="none", help="none, or a file")
    parser.add_argument("--epochs", type=number(least=5), default=20)
    parser.add_argument("--batch-size", type=number(least=1), default=32)
    parser.add_argument("--seeds", type=number(least=1), default=5)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=[*ROWS, *GROUPED])
    parser.add_argument(
        "--test", action="store_true", help="also measure the last epoch on test, once a run"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Train what is not finished, and print the table."""
    args = arguments(argv)
    out = Path(args.out)
    make_patches(out, args)
    settings = {key: getattr(args, key) for key in SETTINGS}
    results = load_results(out, settings)
    # Seed by seed, so that what disturbs the machine for a while disturbs all rows.
    for seed in range(args.seeds):
        for row in args.rows:
            previous = find_result(results, row, seed)
            if previous is None or (args.test and previous["test"] is None):
                result = train(out, args, row, seed, previous)
                results = [other for other in results if other is not previous] + [result]
                save_results(out, settings, results)
                print(in_a_line(result), flush=True)
    asked_for = [
        result for result in results if result["row"] in args.rows and result["seed"] < args.seeds
    ]
    print_table(asked_for, args.rows)
    print_differences(asked_for)


def make_patches(out: Path, args: Namespace) -> None:
    """Make the patch set, and before it the hard sample where no rasters are given."""
    raw = Path(args.raw) if args.raw else out / "raw"
    if not args.raw and not raw.is_dir():
        script("data/make_sample.py", "--out", raw, *HARD_SAMPLE, "--rasters", args.rasters)
    flags = ("--stride", args.stride, "--image-size", args.image_size)
    script("preprocessing.py", "--raw", raw, "--out", out / "patches", *flags)


def find_result(results: list[dict], row: str, seed: int) -> dict | None:
    """The result of this row and seed; None if there is none yet."""
    for result in results:
        if result["row"] == row and result["seed"] == seed:
            return result
    return None


def train(
    out: Path, args: Namespace, row: str, seed: int, previous: dict | None
) -> dict[str, object]:
    """One run from its beginning, or from where it was interrupted: its result, by COLUMNS.

    previous: the result of a run that is finished, but not measured on test: its times are kept.
    """
    folder = out / "runs" / f"{[*ROWS, *GROUPED].index(row)}-{seed}"
    settings = {
        "--arch": args.arch,
        "--weights": args.weights,
        "--epochs": args.epochs,
        "--batch-size": args.batch_size,
        "--seed": seed,
    }
    flags = [part for flag in settings.items() for part in flag] + ["--resume"]
    flags += flags_of_row(row, out / "patches")
    spent = script("train_classification.py", "--data", out / "patches", "--out", folder, *flags)
    times = spent._asdict()
    if previous is not None:
        times = {key: previous[key] for key in times}
    with open(folder / "log.csv", newline="") as file:
        val = [float(line["val_accuracy"]) for line in csv.DictReader(file)]
    return {
        "row": row,
        "seed": seed,
        "val": val[-1],
        "best_val": max(val),
        "swing": statistics.stdev(val[-5:]),
        "test": accuracy_on_test(folder / "last.pth", out / "patches") if args.test else None,
        **times,
    }


def flags_of_row(row: str, patches: Path) -> list[str]:
    """What a row adds to the flags of train_classification.py."""
    if row in ROWS:
        return ROWS[row]
    buffer = BUFFER * reading.open_split(patches, "train").nbytes / 1e9
    return [*ROWS[GROUPED[row]], "--order", "grouped", "--buffer", f"{buffer:.9f}"]


def accuracy_on_test(checkpoint: Path, patches: Path) -> float:
    """The share of test patches that a checkpoint gets right."""
    device = devices.pick_device("auto")
    model, _ = checkpoints.load_checkpoint(checkpoint)
    model = model.to(device, memory_format=torch.channels_last)
    setup = evaluation.Setup(device, devices.pick_dtype("auto", device))
    scores = evaluation.score(model, reading.open_split(patches, "test"), setup)
    return scores[:, 1].double().mean().item()


def load_results(out: Path, settings: dict[str, object]) -> list[dict]:
    """The results of earlier calls. InputError if they were made with other settings."""
    if not (out / "runs.json").is_file():
        return []
    content = json.loads((out / "runs.json").read_text())
    if {"rasters": RASTERS} | content["settings"] != settings:
        raise InputError(
            f"{printable(out)}: holds runs with other settings, {content['settings']};"
            " choose another --out"
        )
    return content["runs"]


def save_results(out: Path, settings: dict[str, object], results: list[dict]) -> None:
    """Write runs.json, from which the next call goes on, and runs.csv."""
    with atomic(out / "runs.json", "w") as file:
        json.dump({"settings": settings, "runs": results}, file, indent=1)
    rows = ([result[column] for column in COLUMNS] for result in results)
    write_rows(out / "runs.csv", COLUMNS, rows)


def interval(values: list[float], level: float = 0.95) -> str:
    """Mean and half the width of its interval (Student) over the seeds, in percent, as text."""
    if len(values) < 2:
        return f"{100 * values[0]:.1f}"
    quantile = student.ppf((1 + level) / 2, len(values) - 1)
    half = quantile * statistics.stdev(values) / len(values) ** 0.5
    return f"{100 * statistics.mean(values):.1f} ± {100 * half:.1f}"


def print_table(results: list[dict], rows: list[str]) -> None:
    """Print the means over seeds in Markdown, a line a recipe."""
    print(
        "\n| recipe | seeds | val, last epoch, % | test, last epoch, %"
        " | swing of val over the last five epochs | seconds | CPU seconds |"
        "\n|---|---|---|---|---|---|---|"
    )
    for row in rows:
        runs = [result for result in results if result["row"] == row]
        test = [result["test"] for result in runs if result["test"] is not None]
        cells = (
            row,
            len(runs),
            interval([result["val"] for result in runs]),
            interval(test) if test else "",
            f"{100 * statistics.mean(result['swing'] for result in runs):.1f}",
            f"{statistics.median(result['seconds'] for result in runs):.0f}",
            f"{statistics.median(result['cpu_seconds'] for result in runs):.0f}",
        )
        print(f"| {' | '.join(str(cell) for cell in cells)} |")


def print_differences(results: list[dict]) -> None:
    """Print how much better the grouped order is than the random one, seed by seed, in points."""
    for grouped, random in GROUPED.items():
        for measure in ("val", "test"):
            of_row = {
                row: {result["seed"]: result[measure] for result in results if result["row"] == row}
                for row in (grouped, random)
            }
            differences = [
                value - of_row[random][seed]
                for seed, value in of_row[grouped].items()
                if value is not None and of_row[random].get(seed) is not None
            ]
            if differences:
                print(
                    f"{grouped} against random, {measure}, {len(differences)} seeds:"
                    f" {interval(differences, 0.9)} points (90 % interval)"
                )


if __name__ == "__main__":
    run(main)
