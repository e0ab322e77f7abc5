"""Does a network know what it does not know, and how sure it should be?

    python -m benchmarks.familiarity --out familiarity

Draws the hard sample (twelve cities in three groups of four much alike, other light and season at
each of four sites). One group after the other is left out: eight cities are trained on, from
scratch, with each of three seeds. Two sites of a city are train, the last is val and test, and the
third is in none of them. What is finished is kept in <out> and not done again; 9 runs of 10 epochs
take a quarter of an hour on two idle cores.

Printed, by group, and the mean over all runs:

auroc     how well patches (and places: the median of up to four patches over a place) of the sites
          in no split are told from those of the cities left out, and from crops of what is no city:
          a face, a flower, a temple (pictures that matplotlib and scikit-learn ship), text, noise,
          a forest without houses. By familiarity, beside the maximum softmax probability and the
          energy score (Liu et al., NeurIPS 2020).
alarms    the share of patches of known cities that are less familiar than 95 % of val: test, and
          sites in no split; and of their places that are called unlike any city.
nll, ece  on the sites in no split, with the temperature and without, and the difference of nll with
          its 95 % interval over rasters.
"""

import json
import os
import random
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import sklearn
import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn.metrics import roc_auc_score
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from benchmarks import in_a_line, script
from dl_slicer.cli import Parser, number, run
from dl_slicer.files import atomic
from dl_slicer.model import checkpoints, devices, evaluation, temperature
from dl_slicer.model.familiarity import UNLIKE, Known
from dl_slicer.patch_sets import transforms
from dl_slicer.results import accuracy, raster_windows
from dl_slicer.results.places import Network
from relevance_cam.rasters import median_by_place

GROUP = 4  # cities much alike
GROUPS = 3
SITES = 4
TRAIN_SITES = (0, 1)
NO_SPLIT = 2  # the site that neither training nor val nor test uses
HELD_OUT = 3
RASTERS = 3  # of each site; of train sites the first one alone is used
SIZE = 64  # of a patch that the network sees
SCORES = ("familiarity", "softmax", "energy")
CROPS = 200  # of each kind of what is no city
WORDS = ("the", "city", "seen", "from", "above", "patch", "raster", "house", "street", "roof")


def arguments(argv: list[str] | None) -> Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--out", required=True, help="folder of the sample, the sets and the runs")
    parser.add_argument("--seeds", type=number(least=1), default=3)
    parser.add_argument("--epochs", type=number(least=1), default=10)
    parser.add_argument("--json", help="also write the results here")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Train what is not trained, measure what is not measured, print the means."""
    args = arguments(argv)
    out = Path(args.out)
    sample = out / "sample"
    if not (out / "drawn").exists():
        hard = ("--cities", GROUPS * GROUP, "--alike", GROUP, "--light", 1.5, "--seed", 0)
        script(
            "data/make_sample.py", "--out", sample, *hard, "--sites", SITES, "--rasters", RASTERS
        )
        (out / "drawn").touch()
    cities = sorted(path.name for path in sample.iterdir())
    rows = []
    for seed in range(args.seeds):
        for group in range(GROUPS):
            left_out = cities[GROUP * group : GROUP * (group + 1)]
            file = out / f"group{group}" / f"measured{seed}.json"
            if not file.exists():
                folder = train(out, sample, group, left_out, seed, args.epochs)
                found = measure(folder / "last.pth", sample, left_out)
                with atomic(file, "w") as opened:
                    json.dump({"group": group, "seed": seed} | found, opened, indent=1)
            rows.append(json.loads(file.read_text()))
            print(in_a_line(rows[-1]), flush=True)
    keys = [key for key in rows[0] if key not in ("group", "seed")]
    means = {key: float(np.mean([row[key] for row in rows])) for key in keys}
    print(f"\nmean of {len(rows)} runs:")
    for key, value in means.items():
        print(f"{key:<44}{value:8.4f}")
    if args.json:
        Path(args.json).write_text(json.dumps({"rows": rows, "means": means}, indent=1))


def train(out: Path, sample: Path, group: int, left_out: list[str], seed: int, epochs: int) -> Path:
    """Train on all cities but those left out. Give the run's folder."""
    folder = out / f"group{group}"
    raw = folder / "raw"
    for city in sorted(set(os.listdir(sample)) - set(left_out)):
        sites = sorted((sample / city).iterdir())
        for site in (*TRAIN_SITES, HELD_OUT):
            files = sorted(sites[site].iterdir())
            for file in files if site == HELD_OUT else files[:1]:
                link = raw / city / sites[site].name / file.name
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.exists():
                    os.link(file, link)
    patches = folder / "patches"
    if not (patches / "dataset.json").exists():
        script("preprocessing.py", "--raw", raw, "--out", patches, "--image-size", SIZE)
    recipe = ("--arch", "resnet18", "--weights", "none", "--recipe", "robust", "--batch-size", 32)
    how = (*recipe, "--epochs", epochs, "--seed", seed, "--resume")
    script("train_classification.py", "--data", patches, "--out", folder / f"seed{seed}", *how)
    return folder / f"seed{seed}"


def measure(path: Path, sample: Path, left_out: list[str]) -> dict[str, float]:
    """Give all figures of one run."""
    network = load(path)
    classes = network.checkpoint.classes
    known = [look(network, file) for file in rasters(sample, classes, (NO_SPLIT,))]
    tested = [look(network, file) for file in rasters(sample, classes, (HELD_OUT,))]
    others = [look(network, file) for file in rasters(sample, left_out, (NO_SPLIT, HELD_OUT))]
    found = {}
    for score in SCORES:
        for what in ("patches", "places"):
            inside, outside = (
                np.concatenate([getattr(seen, what)[score] for seen in each])
                for each in (known, others)
            )
            found[f"auroc of {what} left out, {score}"] = auroc(inside, outside)
    for kind, crops in no_cities().items():
        answers = answer(network, [crops])
        for score in SCORES:
            inside = np.concatenate([seen.patches[score] for seen in known])
            found[f"auroc of {kind}, {score}"] = auroc(inside, answers[score])
    for name, each in (("test site", tested), ("no split", known), ("left out", others)):
        strange = np.concatenate([seen.patches["familiarity"] for seen in each])
        places = np.concatenate([seen.places["familiarity"] for seen in each])
        found[f"patches below 5 %, {name}"] = float((-strange <= 0.05).mean())
        found[f"places called unlike, {name}"] = float((-places <= UNLIKE).mean())
    labels = [classes.index(file.parts[-3]) for file in rasters(sample, classes, (NO_SPLIT,))]
    return found | truth_of_probabilities(known, labels, network.checkpoint.divisor)


class Seen(NamedTuple):
    """What a network says of a raster: scores of strangeness, and logits."""

    patches: dict[str, np.ndarray]  # {score: (n,)}
    places: dict[str, np.ndarray]  # {score: (places,)}
    logits: np.ndarray  # (n, K)


def load(path: Path) -> Network:
    """Give the network of a checkpoint."""
    device = devices.pick_device("auto")
    model, checkpoint = checkpoints.load_checkpoint(path)
    model = model.to(device, memory_format=torch.channels_last)
    return Network(model, checkpoint, device, devices.pick_dtype("auto", device))


def rasters(sample: Path, cities: list[str], sites: tuple[int, ...]) -> Iterator[Path]:
    """Give the rasters of some sites of some cities."""
    for city in cities:
        folders = sorted((sample / city).iterdir())
        for site in sites:
            yield from sorted(folders[site].iterdir())


def look(network: Network, file: Path) -> Seen:
    """Look at a raster through the windows that --images looks through."""
    with raster_windows.open_raster(file, network.checkpoint) as seen:
        found = answer(network, (windows for _, windows in seen.batches(64, tqdm(disable=True))))
        logits = found.pop("logits")
        places = {
            score: median_by_place(seen.corners, values, seen.grid).ravel()
            for score, values in found.items()
        }
    return Seen(found, places, logits)


def answer(network: Network, batches: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Give how strange patches are by each score (n,), the higher the stranger; and the logits."""
    checkpoint = network.checkpoint
    known = Known.of(checkpoint.familiarity, network.device)
    found = {score: [] for score in (*SCORES, "logits")}
    with (
        torch.inference_mode(),
        devices.autocast(network.device, network.dtype),
        evaluation.seen_inside(network.model) as seen,
    ):
        for windows in batches:
            images = torch.from_numpy(np.ascontiguousarray(windows)).to(network.device)
            images = transforms.normalise(images, checkpoint.mean, checkpoint.std)
            logits = devices.to_cpu(network.model(images).float())
            found["familiarity"].append(-known.familiarity(seen.pop()))
            found["softmax"].append(-logits.softmax(1).amax(1).numpy())
            found["energy"].append(-logits.logsumexp(1).numpy())
            found["logits"].append(logits.numpy())
    return {score: np.concatenate(values) for score, values in found.items()}


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Give how often what is outside is stranger than what is inside; 0.5 is by chance."""
    is_outside = np.repeat([0, 1], [len(inside), len(outside)])
    return float(roc_auc_score(is_outside, np.concatenate([inside, outside])))


def truth_of_probabilities(
    known: list[Seen], labels: list[int], divisor: float
) -> dict[str, float]:
    """Give negative log-likelihood and calibration error, with the temperature and without.

    The interval is of 2,000 draws of rasters.
    """
    true = np.repeat(labels, [len(seen.logits) for seen in known])
    logits = torch.from_numpy(np.concatenate([seen.logits for seen in known]))
    targets = torch.from_numpy(true)
    losses = [
        cross_entropy(logits / each, targets, reduction="none").double().numpy()
        for each in (divisor, 1.0)
    ]
    index = np.repeat(np.arange(len(known)), [len(seen.logits) for seen in known])
    differences = np.bincount(index, losses[0] - losses[1]) / np.bincount(index)
    drawn = np.random.default_rng(0).integers(0, len(known), (2000, len(known)))
    low, high = np.quantile(differences[drawn].mean(1), (0.025, 0.975))
    tempered, plain = (temperature.probabilities(logits, each).numpy() for each in (divisor, 1.0))
    return {
        "temperature": divisor,
        "accuracy, no split": float((plain.argmax(1) == true).mean()),
        "nll, untempered": float(losses[1].mean()),
        "nll, tempered": float(losses[0].mean()),
        "nll, difference, low": float(low),
        "nll, difference, high": float(high),
        "ece, untempered": accuracy.calibration(true, plain).error,
        "ece, tempered": accuracy.calibration(true, tempered).error,
        "patches whose class changed": float((plain.argmax(1) != tempered.argmax(1)).sum()),
    }


# What is no city


def no_cities() -> dict[str, np.ndarray]:
    """Give crops of what is no city from above: {kind: uint8 (CROPS, SIZE, SIZE, 3)}."""
    pictures = {
        "face": Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg"),
        "flower": Path(sklearn.__file__).parent / "datasets" / "images" / "flower.jpg",
        "temple": Path(sklearn.__file__).parent / "datasets" / "images" / "china.jpg",
    }
    found = {kind: crop(Image.open(file).convert("RGB")) for kind, file in pictures.items()}
    noise = np.random.default_rng(0).integers(0, 256, (CROPS, SIZE, SIZE, 3), np.uint8)
    return found | {"text": draw_text(), "noise": noise, "forest": draw_forest()}


def crop(picture: Image.Image) -> np.ndarray:
    """Cut squares of a quarter to two thirds of the shorter side."""
    rnd = random.Random(0)
    crops = []
    for _ in range(CROPS):
        side = rnd.randint(min(picture.size) // 4, min(picture.size) * 2 // 3)
        x = rnd.randint(0, picture.width - side)
        y = rnd.randint(0, picture.height - side)
        square = picture.crop((x, y, x + side, y + side))
        crops.append(np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BICUBIC)))
    return np.stack(crops)


def draw_text() -> np.ndarray:
    """Write words, black on white, in letters of several sizes."""
    rnd = random.Random(0)
    pages = []
    for _ in range(CROPS):
        page = Image.new("RGB", (480, 480), "white")
        pen = ImageDraw.Draw(page)
        size = rnd.randint(14, 40)
        font = ImageFont.load_default(size)
        for top in range(0, 480, round(1.3 * size)):
            line = " ".join(rnd.choice(WORDS) for _ in range(14))
            pen.text((rnd.randint(-20, 10), top), line, "black", font)
        pages.append(np.asarray(page.resize((SIZE, SIZE), Image.Resampling.BOX)))
    return np.stack(pages)


def draw_forest() -> np.ndarray:
    """Draw crowns of trees with their shadows, and nothing else, at the sample's scale."""
    rnd = random.Random(0)
    forest = Image.new("RGB", (2400, 2400), (60, 80, 45))
    pen = ImageDraw.Draw(forest)
    for _ in range(16_000):
        x = rnd.uniform(0, 2400)
        y = rnd.uniform(0, 2400)
        radius = rnd.uniform(8, 26)
        light = rnd.uniform(0.7, 1.2)
        crown = tuple(round(light * value) for value in (62, 96, 44))
        sunny = tuple(round(1.15 * value) for value in crown)
        for shift, size, colour in ((5, 1, (25, 38, 22)), (0, 1, crown), (-3, 0.5, sunny)):
            half = size * radius
            box = (x + shift - half, y + shift - half, x + shift + half, y + shift + half)
            pen.ellipse(box, fill=colour)
    side = 2400 * SIZE // 480
    pixels = np.asarray(forest.resize((side, side), Image.Resampling.BOX))
    corners = [(rnd.randint(0, side - SIZE), rnd.randint(0, side - SIZE)) for _ in range(CROPS)]
    return np.stack([pixels[y : y + SIZE, x : x + SIZE] for y, x in corners])


if __name__ == "__main__":
    run(main)
