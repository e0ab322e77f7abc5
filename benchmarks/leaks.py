"""Do the controls tell when a network goes by something else than the city? On three drawn sets.

    python -m benchmarks.leaks --out DIR [--sets sensors odd clean]    a quarter of an hour a set

sensors: a sensor a city, the same at all its sites, and no other difference. The split and the
    folds find nothing wrong; colour alone is as good, and without colour nothing is left.
odd: one site of each city, not the last, has a sensor of its own. The split's figure is high, the
    folds name those sites.
clean: the cities differ by the direction of their streets alone, in any light. Split and folds
    agree, colour alone is at chance.
On each `python -m dl_slicer.cross_validation --cues` is run; printed are its figures, in per cent,
and what is not as it should be. It goes on where it was stopped.
"""

import csv
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np

from benchmarks import ROOT, in_a_line, script
from dl_slicer.cli import InputError, Parser, number, run

CITIES = 4
SITES = 3
SETS = {
    "sensors": ("--one-style", "--sensors", "city"),
    # Hardly another light at each site, so that all other sites of a city are alike.
    "odd": ("--sensors", "site", "--light", 0.2),
    "clean": ("--one-style", "turned"),
}
PATCHES = ("--patch-size", 240, "--stride", 120, "--image-size", 64, "--workers", 1)
TRAINING = ("--arch", "resnet18", "--weights", "none", "--recipe", "robust", "--batch-size", 32)
TRAINING += ("--light", 0)  # no random light, which would hide a sensor's colours
HIGH = 0.85
AT_CHANCE = 1 / CITIES + 0.1  # what twelve rasters a fold may give by chance
GREY = "grey"  # in cues.csv: without colour


def main(argv: list[str] | None = None) -> None:
    """Draw the sets, cross-validate, and print a line a set and what is wrong with it."""
    parser = Parser(__doc__)
    parser.add_argument("--out", required=True, help="folder of the sets and folds")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--rasters", type=number(least=1), default=4, help="of each site")
    parser.add_argument("--size", type=number(least=480), default=720, help="pixels of a raster")
    parser.add_argument("--epochs", type=number(least=1), default=10)
    parser.add_argument("--seed", type=number(least=0), default=0)
    args = parser.parse_args(argv)
    for name in args.sets:
        folder = Path(args.out) / name
        cross_validate(folder, SETS[name], args)
        row = read_figures(folder / "folds")
        print(in_a_line({"set": name} | row), flush=True)
        for wrong in judge(name, row, odd_sites(folder / "raw")):
            print(f"  not as it should be: {wrong}", flush=True)


def cross_validate(folder: Path, differences: tuple, args: Namespace) -> None:
    """Draw a set where it is not drawn, and hold out each of its sites once."""
    raw = folder / "raw"
    if not raw.is_dir():
        sizes = ("--cities", CITIES, "--sites", SITES, "--rasters", args.rasters)
        sizes += ("--size", args.size, "--seed", args.seed)
        script("data/make_sample.py", "--out", raw, *sizes, "--workers", 1, *differences)
    flags = ("--raw", raw, "--out", folder / "folds", "--cues", "--seed", args.seed, *PATCHES)
    command = [sys.executable, "-m", "dl_slicer.cross_validation", *flags]
    command += ["--", "--epochs", args.epochs, *TRAINING]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise InputError(done.stderr.strip() or f"cross_validation: ended with {done.returncode}")


def read_figures(out: Path) -> dict:
    """Read what was found: shares, and the names of the sites that are called odd."""
    found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    by_fold = [(cues_of(fold), controls_of(fold)) for fold in sorted(out.glob("fold_*/results"))]
    patches = [controls["n"] for _, controls in by_fold]
    # What the networks get in one of twenty ways of exchanging the names of whole test sites.
    chance = [controls["exchanged"]["p95"] for _, controls in by_fold]
    low, high = found["accuracy_ci95"]
    return {
        "split": found["published_split"]["accuracy"],
        "folds": found["accuracy"],
        "low": low,
        "high": high,
        "by fold": [round(cues["unaltered"]["shown"], 3) for cues, _ in by_fold],
        "odd": sorted(f"{site['city']}/{site['site']}" for site in found["odd_sites"]),
        "colour alone": found["colour_alone"]["accuracy"],
        "better than it by": found["colour_alone"]["difference"],
        "at least": found["colour_alone"]["difference_ci95"][0],
        "without colour": weighted([cues[GREY]["shown"] for cues, _ in by_fold], patches),
        "fitted anew": weighted([cues[GREY]["refitted"] for cues, _ in by_fold], patches),
        "chance": 1 / CITIES,
        "chance of exchanged sites, 95 %": weighted(chance, patches),
    }


def weighted(values: list[float], weights: list[int]) -> float:
    """Average shares of folds by how many patches they have."""
    return float(np.average(values, weights=weights))


def cues_of(results: Path) -> dict[str, dict[str, float]]:
    """Read cues.csv: by alteration, the accuracy as it is and with the last layer fitted anew."""
    with open(results / "cues.csv", newline="", encoding="utf-8") as lines:
        return {
            row["altered"]: {
                "shown": float(row["accuracy"]),
                "refitted": float(row["refitted_accuracy"]),
            }
            for row in csv.DictReader(lines)
        }


def controls_of(results: Path) -> dict:
    """Read controls.json."""
    return json.loads((results / "controls.json").read_text(encoding="utf-8"))


def judge(name: str, row: dict, odd: list[str]) -> list[str]:
    """Say what is not as the truth of the set would have it. odd: the sites that are, if any is."""
    if name == "sensors":
        expected = {
            "the split is high": row["split"] >= HIGH,
            "the folds are high": row["folds"] >= HIGH,
            "the network is not better than colour alone": row["at least"] <= 0,
            "fitted anew without colour it is at chance": row["fitted anew"] <= AT_CHANCE,
        }
    elif name == "odd":
        expected = {
            "the split is high": row["split"] >= HIGH,
            "the split lies above the folds' interval": row["split"] > row["high"],
            "the odd sites are named": row["odd"] == odd,
        }
    else:
        expected = {
            "the split is high": row["split"] >= HIGH,
            "the folds agree with it": row["low"] <= row["split"] <= row["high"],
            "no site is odd": not row["odd"],
            "colour alone is at chance": row["colour alone"] <= AT_CHANCE,
        }
    return [statement for statement, holds in expected.items() if not holds]


def odd_sites(raw: Path) -> list[str]:
    """Give the sites that `data/make_sample.py --sensors site` draws with a sensor of their own.

    Of the city of number k it is the site of number k % (sites - 1), both counted from 0.
    """
    cities = sorted(path.name for path in raw.iterdir() if path.is_dir())
    return [f"{name}/site{city % (SITES - 1) + 1:02d}" for city, name in enumerate(cities)]


if __name__ == "__main__":
    run(main)
