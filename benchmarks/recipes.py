"""Do recipes keep what they learn? Trains each several times and compares the end of the runs, their swing and their time.

    python -m benchmarks.recipes --out recipes/hard --rows published robust --test
    python -m benchmarks.recipes --out recipes/ablation --seeds 1 --epochs 12
    python -m benchmarks.recipes --raw data/raw --stride 120 --image-size 80 --epochs 12 --out recipes/own --rows published robust --test

Without --raw a hard sample is drawn: twelve cities in three groups of four much alike, with other light and season at each site.
Every row trains from scratch (or from --weights) at equal epochs and takes the last epoch, never a chosen one. The val accuracies decide
what a recipe is made of; --test also measures the last epoch on test. What is finished is kept in <out>/runs.csv and not run again.
"""

import csv
import json
import statistics
from pathlib import Path

import torch
from scipy.stats import t as student

from benchmarks import script
from dl_slicer.cli import InputError, Parser, number, printable, run
from dl_slicer.files import atomic, write_rows
from dl_slicer.model import architectures, checkpoints, devices, evaluation
from dl_slicer.patch_sets import reading

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
COLUMNS = ("row", "seed", "val", "best_val", "swing", "test", "seconds", "cpu_seconds")


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument(
        "--raw", default=None, help="folder of rasters; default: draw the hard sample"
    )
    parser.add_argument(
        "--out", required=True, help="folder of the patch set, the runs and runs.csv"
    )
    parser.add_argument("--stride", type=number(least=1), default=240)
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
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument(
        "--test", action="store_true", help="also measure the last epoch on test, once a run"
    )
    args = parser.parse_args(argv)
    out = Path(args.out)
    raw = Path(args.raw) if args.raw else out / "raw"
    if not args.raw and not raw.is_dir():
        script(
            "data/make_sample.py",
            "--out",
            raw,
            "--cities",
            12,
            "--alike",
            4,
            "--light",
            1.5,
            "--sites",
            3,
            "--seed",
            3,
        )
    script(
        "preprocessing.py",
        "--raw",
        raw,
        "--out",
        out / "patches",
        "--stride",
        args.stride,
        "--image-size",
        args.image_size,
    )

    settings = {
        key: getattr(args, key)
        for key in ("raw", "stride", "image_size", "arch", "weights", "epochs", "batch_size")
    }
    results = kept(out, settings)
    for seed in range(
        args.seeds
    ):  # seed by seed, so that what disturbs the machine for a while disturbs all rows
        for row in args.rows:
            done = next(
                (result for result in results if result["row"] == row and result["seed"] == seed),
                None,
            )
            if done is None or args.test and done["test"] is None:
                result = train(out, args, row, seed, done)
                results = [other for other in results if other is not done] + [result]
                keep(out, settings, results)
                print(
                    "  ".join(
                        f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}"
                        for key, value in result.items()
                    ),
                    flush=True,
                )
    print_table(
        [
            result
            for result in results
            if result["row"] in args.rows and result["seed"] < args.seeds
        ],
        args.rows,
    )


def train(out, args, row, seed, done):
    """One run from its beginning, or from where it was interrupted: its figures as a dict of COLUMNS."""
    folder = out / "runs" / f"{list(ROWS).index(row)}-{seed}"
    flags = [
        "--data",
        out / "patches",
        "--run",
        folder,
        "--arch",
        args.arch,
        "--weights",
        args.weights,
        "--epochs",
        args.epochs,
        "--batch-size",
        args.batch_size,
        "--seed",
        seed,
        *ROWS[row],
        "--resume",
    ]
    spent = dict(zip(("seconds", "cpu_seconds"), script("train_classification.py", *flags)))
    with open(folder / "log.csv", newline="") as file:
        val = [float(line["val_accuracy"]) for line in csv.DictReader(file)]
    result = {
        "row": row,
        "seed": seed,
        "val": val[-1],
        "best_val": max(val),
        "swing": statistics.stdev(val[-5:]),
        "test": None,
        **(spent if done is None else {key: done[key] for key in spent}),
    }
    if args.test:
        device = devices.pick_device("auto")
        model, checkpoint = checkpoints.load_checkpoint(folder / "last.pth")
        test = reading.open_split(out / "patches", "test")
        scores = evaluation.score(
            model.to(device, memory_format=torch.channels_last),
            test,
            evaluation.Setup(device, devices.pick_dtype("auto", device)),
        )
        result["test"] = scores[:, 1].double().mean().item()
    return result


def kept(out, settings):
    """The results of earlier calls. InputError if they were made with other settings."""
    if not (out / "runs.json").is_file():
        return []
    content = json.loads((out / "runs.json").read_text())
    if content["settings"] != settings:
        raise InputError(
            f"{printable(out)}: holds runs with other settings, {content['settings']}; choose another --out"
        )
    return content["runs"]


def keep(out, settings, results):
    with atomic(out / "runs.json", "w") as file:
        json.dump({"settings": settings, "runs": results}, file, indent=1)
    write_rows(
        out / "runs.csv", COLUMNS, ([result[column] for column in COLUMNS] for result in results)
    )


def interval(values):
    """Mean and half the width of its 95 % interval (Student) over the seeds, as text."""
    if len(values) < 2:
        return f"{100 * values[0]:.1f}"
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{100 * statistics.mean(values):.1f} ± {100 * half:.1f}"


def print_table(results, rows):
    print(
        "\n| recipe | seeds | val, last epoch, % | test, last epoch, % | swing of val over the last five epochs | seconds | CPU seconds |\n|---|---|---|---|---|---|---|"
    )
    for row in rows:
        runs = [result for result in results if result["row"] == row]
        test = [result["test"] for result in runs if result["test"] is not None]
        print(
            f"| {row} | {len(runs)} | {interval([result['val'] for result in runs])} | {interval(test) if test else ''} | "
            f"{100 * statistics.mean(result['swing'] for result in runs):.1f} | {statistics.median(result['seconds'] for result in runs):.0f} | "
            f"{statistics.median(result['cpu_seconds'] for result in runs):.0f} |"
        )


if __name__ == "__main__":
    run(main)
