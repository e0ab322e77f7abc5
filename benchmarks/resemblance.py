"""Is it said truly how sure a resemblance is? On drawn cities of which the truth is known.

    python -m benchmarks.resemblance --out DIR [--seeds 20]    about a minute a seed and core
    python -m benchmarks.resemblance --simulated               two minutes

A set a seed: three cities drawn by one style, so equally far from each other; two twins; and two
of styles of their own. A ResNet-18 learns them from scratch and is measured on the held-out sites.
Asked is if the twins are each other's nearest, and if the three are said not to be told apart.
What is finished is kept in <out>/seeds.csv and not run again.

With --simulated features are made up instead, as a raster's mean of a city that is equally far
from all others: how often is a first neighbour told apart that is none?
"""

import csv
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import in_a_line, script
from dl_slicer.cli import InputError, Parser, number, run
from dl_slicer.files import write_rows
from dl_slicer.results import raster_sums
from dl_slicer.results.raster_sums import RasterSums
from dl_slicer.results.resemblance_stability import YES, Stability, stability

THREE = (0, 1, 2)  # class numbers; the drawn names are in alphabetical order
TWINS = (3, 4)
SAMPLE = ("--cities", 7, "--twins", 3, 2, "--sites", 2, "--rasters", 5, "--size", 720)
SAMPLE += ("--light", 0.5, "--workers", 1)
PATCHES = ("--patch-size", 240, "--stride", 120, "--image-size", 64, "--workers", 1)
TRAINING = ("--arch", "resnet18", "--weights", "none", "--recipe", "robust", "--batch-size", 32)
# Of made-up cities: three or five that are equally far from each other, three of five in one place,
# two of five near each other.
KINDS = ("three equally far", "five equally far", "one and the same", "twins")
COLUMNS = (
    "seed",
    "accuracy",
    "twins_first",  # of the two twins, the share whose nearest by features is the other
    "twins_share",  # the mean share of draws in which it is
    "twins_told",  # of the two, the share that is told apart from all others
    "three_told",  # of the three, the share of which that is said, too: wrongly
    "twins_told_by_confusion",
    "three_told_by_confusion",
)


def main(argv: list[str] | None = None) -> None:
    """Draw and measure what is not finished, and print what was found."""
    parser = Parser(__doc__)
    parser.add_argument("--out", help="folder of the sets, the runs and seeds.csv")
    parser.add_argument("--seeds", type=number(least=1), default=20)
    parser.add_argument("--epochs", type=number(least=1), default=8)
    parser.add_argument("--simulated", action="store_true", help="made-up features alone")
    parser.add_argument("--repeats", type=number(least=1), default=300, help="of --simulated")
    args = parser.parse_args(argv)
    if args.simulated:
        for row in simulate(args.repeats):
            print(in_a_line(row), flush=True)
        return
    if not args.out:
        raise InputError("--out: name a folder for the sets and runs, or give --simulated")
    measure_seeds(Path(args.out), args)


def measure_seeds(out: Path, args: Namespace) -> None:
    """Add to seeds.csv the seeds that it lacks, and print the means of all."""
    rows = read_rows(out / "seeds.csv")
    for seed in range(args.seeds):
        if seed not in {int(row["seed"]) for row in rows}:
            rows.append(measure(out / f"{seed}", seed, args.epochs))
            lines = ([row[column] for column in COLUMNS] for row in rows)
            write_rows(out / "seeds.csv", COLUMNS, lines)
            print(in_a_line(rows[-1]), flush=True)
    means = {column: float(np.mean([float(row[column]) for row in rows])) for column in COLUMNS[1:]}
    print(in_a_line({"seeds": len(rows)} | means))


def read_rows(path: Path) -> list[dict]:
    """The rows of seeds.csv; none where it is not there."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def measure(folder: Path, seed: int, epochs: int) -> dict[str, float]:
    """Draw a set, train on it and test: a row by COLUMNS."""
    patches = folder / "patches"
    results = folder / "results"
    script("data/make_sample.py", "--out", folder / "raw", "--seed", seed, *SAMPLE)
    script("preprocessing.py", "--raw", folder / "raw", "--out", patches, *PATCHES)
    flags = ("--data", patches, "--out", folder / "run", "--epochs", epochs, "--seed", seed)
    script("train_classification.py", *flags, "--resume", *TRAINING)
    checkpoint = folder / "run" / "last.pth"
    flags = ("--checkpoint", checkpoint, "--data", patches, "--split", "test", "--out", results)
    script("test_classification.py", *flags)
    sums = raster_sums.load(results / raster_sums.FILE)
    right = sums.confusion[np.arange(len(sums.city)), sums.city].sum() / sums.patches.sum()
    return {"seed": seed, "accuracy": right} | judge(stability([sums]))


def judge(stable: Stability) -> dict[str, float]:
    """Say what is told of the twins and of the three: COLUMNS from the third on."""
    other = dict(zip(TWINS, reversed(TWINS), strict=True))
    features = stable.by_features
    confusion = stable.by_confusion
    return {
        "twins_first": np.mean([features.first[twin] == other[twin] for twin in TWINS]),
        "twins_share": np.mean([features.shares[twin, other[twin]] for twin in TWINS]),
        "twins_told": np.mean([features.told[twin] == YES for twin in TWINS]),
        "three_told": np.mean([features.told[city] == YES for city in THREE]),
        "twins_told_by_confusion": np.mean([confusion.told[twin] == YES for twin in TWINS]),
        "three_told_by_confusion": np.mean([confusion.told[city] == YES for city in THREE]),
    }


def simulate(repeats: int) -> Iterator[dict]:
    """Say how often made-up cities are told apart, by their rasters and by tests."""
    rng = np.random.default_rng(0)
    for kind in KINDS:
        for rasters, tests in ((2, 1), (3, 1), (5, 1), (8, 1), (1, 3), (2, 3), (3, 5)):
            told = []
            right = []
            for _ in range(repeats):
                found = stability(made_up(kind, rasters, tests, rng), draws=300).by_features
                told.append(found.told[0] == YES)
                right.append(found.first[0] == 1)
            yield {
                "cities": kind,
                "rasters": rasters,
                "tests": tests,
                "told": float(np.mean(told)),
                "first is city 2": float(np.mean(right)),
            }


def made_up(kind: str, rasters: int, tests: int, rng: np.random.Generator) -> list[RasterSums]:
    """Make up tests of cities of one of KINDS, whose rasters' features scatter about the cities'.

    Each of several tests turns the features anew, and moves the cities a little, as another network
    does.
    """
    cities = 3 if kind == "three equally far" else 5
    centres = np.linalg.qr(rng.normal(size=(32, cities)))[0].T
    if kind == "one and the same":
        centres[1:3] = centres[0]
    if kind == "twins":
        centres[1] = centres[0] + 0.3 * np.linalg.qr(rng.normal(size=(32, 1)))[0].T
    city = np.repeat(np.arange(cities), rasters)
    found = []
    for _ in range(tests):
        seen = centres + 0.3 * rng.normal(size=centres.shape) / np.sqrt(32) * (tests > 1)
        features = seen[city] + 0.3 * rng.normal(size=(len(city), 32)) / np.sqrt(32)
        turn = np.linalg.qr(rng.normal(size=(32, 32)))[0]
        confusion = np.eye(cities, dtype=np.int64)[city]
        found.append(
            RasterSums(
                classes=list("ABCDE")[:cities],
                rasters=[f"{number}" for number in range(len(city))],
                city=city,
                patches=np.ones(len(city), np.int64),
                confusion=confusion,
                probabilities=confusion.astype(float),
                features=(features @ turn).astype(np.float32),
            )
        )
    return found


if __name__ == "__main__":
    run(main)
