"""A folder as the published scripts write it gives the results of a patch set of its rasters."""

import shutil
from collections import defaultdict

import numpy as np
import pytest
import torch
from conftest import SMALL, Inline, picture
from published_layout import copy_to_test_b, write_published

import preprocessing
from dl_slicer.model import checkpoints, evaluation
from dl_slicer.patch_sets import reading, tiling
from dl_slicer.patch_sets.jpeg_patches import JpegPatches
from dl_slicer.results import accuracy, portraits, resemblance, tables

CITIES = ("Aa (AAA)", "Bb (BBB)", "Cc (CCC)")
# Names that contain each other, and pixels of half a raster that give so many rows and columns.
HELD_OUT = {"a": (6, 8), "a_1": (8, 6), "a_1_2": (6, 8), "a_half1": (8, 6)}
CHECKPOINT = checkpoints.Checkpoint(
    model={}, arch="resnet18", mean=[0.5] * 3, std=[0.25] * 3, patch_size=48, stride=24
)


def length(windows):
    return 48 + 24 * (windows - 1)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(patch set, folder in the published layout, what its patches show) of the same rasters."""
    root = tmp_path_factory.mktemp("published")
    raw = root / "raw"
    for number, city in enumerate(CITIES):
        sites = {"site1": {"a": (4, 7)}, "site2": HELD_OUT}
        for site, rasters in sites.items():
            (raw / city / site).mkdir(parents=True)
            for k, (name, (rows, cols)) in enumerate(rasters.items()):
                size = (2 * length(cols) + 5, length(rows) + 3)
                image = picture(*size, seed=100 * number + 10 * len(rasters) + k)
                image.save(raw / city / site / f"{name}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "ProcessPoolExecutor", Inline)
        flags = ["--raw", str(raw), "--out", str(root / "set"), *SMALL, "--test-b", "60"]
        preprocessing.main(flags)
    folder = root / "folder"
    written = write_published(raw, folder, patch_size=48, stride=24)
    draw_as(reading.open_split(root / "set", "test_b"), folder, written)
    return root / "set", folder, written


def draw_as(sample, folder, written):
    """Make test_b of a folder that of a patch set."""
    drawn = {sample_place(sample, i) for i in range(len(sample))}
    for city in sample.classes:
        test = [path for path in written if path.startswith(f"test/{city}/")]
        names = [path.rpartition("/")[2] for path in test if written[path] in drawn]
        copy_to_test_b(folder, written, city, names)


def sample_place(patch_set, index):
    region, row, col = patch_set.locate(index)
    return region.raster, row, col


def make_up_logits(patch_set):
    """{(raster, row, col): logits} of a network that knows some rasters better than others."""
    rng = np.random.default_rng(len(patch_set))
    liking = defaultdict(lambda: rng.normal(0.5, 1.5, 3))
    logits = {}
    for index in range(len(patch_set)):
        place = sample_place(patch_set, index)
        logits[place] = rng.normal(0, 1, 3) + liking[place[0]]
        logits[place][patch_set.labels[index]] += 1.2
    return logits


def found_on(patch_set, places, logits):
    """(metrics, per_city.csv, patches of the portraits, 40 that do not overlap) of a patch set.

    places: (raster, row, col) of each patch; logits: by these.
    """
    of_patches = torch.tensor(np.array([logits[place] for place in places]), dtype=torch.float32)
    classes = patch_set.classes
    predictions = tables.collect(patch_set, classes, of_patches, of_patches)
    matrix = predictions.confusion_matrix()
    views = tables.Resemblance(
        resemblance.by_confusion(matrix),
        resemblance.by_features(predictions.features, predictions.true, len(classes)),
    )
    metrics = tables.summarise(predictions, matrix, views)
    cities = accuracy.per_city(
        predictions.true, predictions.probabilities, predictions.rasters, classes
    )
    nearest = [
        {"confusion_1": classes[label - 1], "features_1": ""} for label in range(len(classes))
    ]
    sheets = portraits.choose_sheets(patch_set, of_patches, nearest, CHECKPOINT)
    rows = [
        (city, row.role, [places[patch] for patch in row.patches], row.available)
        for city, rows in sheets.items()
        for row in rows
    ]
    surest_first = np.argsort(-of_patches.max(1).values.numpy())
    picked = portraits.pick_non_overlapping(patch_set, surest_first, CHECKPOINT, most=40)
    return metrics, cities, rows, [places[patch] for patch in picked]


def both_found(both, split, folder=None):
    """What is found on the patch set and on the folder, given the same logits."""
    patch_set = reading.open_split(both[0], split)
    jpegs = reading.open_split(folder or both[1], split, 28)
    assert not jpegs.doubts() and not jpegs.describe_unplaced()
    logits = make_up_logits(patch_set)
    set_places = [sample_place(patch_set, i) for i in range(len(patch_set))]
    folder_places = [both[2][jpegs.name(i)] for i in range(len(jpegs))]
    return found_on(patch_set, set_places, logits), found_on(jpegs, folder_places, logits)


@pytest.mark.parametrize("split", ["train", "val", "test", "test_b"])
def test_both_give_the_same_results(both, split):
    of_set, of_folder = both_found(both, split)
    assert of_folder == of_set
    metrics, _, _, picked = of_set
    assert metrics["n_rasters"] == (3 if split == "train" else 12)
    assert len(picked) > metrics["n_rasters"]  # by windows, not by rasters alone


@pytest.mark.parametrize("alone", [True, False])
def test_test_b_without_test(both, tmp_path, alone):
    """By its own pictures, or by those of val."""
    for split in ["test_b"] if alone else ["test_b", "val"]:
        shutil.copytree(both[1] / split, tmp_path / split)
    of_set, of_folder = both_found(both, "test_b", tmp_path)
    assert of_folder == of_set


WRONG_GROUPINGS = {
    "city": lambda name: name.rpartition("/")[0],
    "first _": lambda name: name.partition("_h")[0].partition("_")[0],
    "patch": lambda name: name,
}


@pytest.mark.parametrize("grouping", WRONG_GROUPINGS)
def test_another_grouping_gives_other_results(both, monkeypatch, grouping):
    """The test above would notice."""
    of_set, of_folder = both_found(both, "test")
    assert of_folder == of_set

    def raster(self, index):
        return WRONG_GROUPINGS[grouping](
            self.files[index].relative_to(self.root / "test").as_posix()
        )

    monkeypatch.setattr(JpegPatches, "raster", raster)
    _, (metrics, cities, rows, picked) = both_found(both, "test")
    assert metrics["n_rasters"] != of_set[0]["n_rasters"]
    assert metrics["accuracy_ci95"] != of_set[0]["accuracy_ci95"]
    assert metrics["raster_accuracy"] != of_set[0]["raster_accuracy"]
    assert cities != of_set[1]
    assert rows != of_set[2]
    assert picked != of_set[3]


def test_a_network_says_the_same_of_both(data, finished, tmp_path):
    """But for what JPEG costs: at most three patches in a hundred.

    The pictures are noise, which JPEG changes more than anything, and the network is hardly
    trained: so the least that JPEG can cost.
    """
    rasters = {
        path.relative_to(data.parent / "raw").as_posix() for path in data.parent.rglob("*.png")
    }
    names = {raster: f"{raster.split('/')[1]}_2020" for raster in rasters}
    sizes = {"patch_size": 48, "stride": 24}
    least = {"quality": 100, "subsampling": 0}
    write_published(data.parent / "raw", tmp_path, names=names, **sizes, **least)
    model, checkpoint = checkpoints.load_checkpoint(finished / "best.pth")
    setup = evaluation.Setup(torch.device("cpu"), torch.float32, checkpoint.mean, checkpoint.std, 0)
    differing = []
    for split in ("train", "val", "test"):
        predicted = [
            evaluation.evaluate(model, patch_set, setup)[0].argmax(1)
            for patch_set in (
                reading.open_split(data, split),
                reading.open_split(tmp_path, split, checkpoint.image_size),
            )
        ]
        differing.append(predicted[0] != predicted[1])
    assert torch.cat(differing).float().mean() <= 0.03
