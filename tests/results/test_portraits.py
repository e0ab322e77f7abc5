"""Portraits: which patches are chosen, and that sheets, masks and table belong together."""

import csv
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

import test_classification
from dl_slicer.cli import run
from dl_slicer.model import checkpoints
from dl_slicer.patch_sets import reading
from dl_slicer.results import panels as figures
from dl_slicer.results import portraits
from relevance_cam import RelevanceCAM

CHECKPOINT = {"mean": [0.5] * 3, "std": [0.25] * 3, "patch_size": 48, "stride": 24}


class Made:
    """A patch set whose patches lie where they are told to: (label, raster, row, col)."""

    image_size, patch_size, stride = 32, 48, 24

    def __init__(self, places, classes=("Aa (AAA)", "Bb (BBB)", "Cc (CCC)")):
        self.places, self.classes = places, list(classes)
        self.labels = np.array([place[0] for place in places])

    def __len__(self):
        return len(self.places)

    def raster(self, i):
        return self.places[i][1]

    def name(self, i):
        return "{}/r{:02d}_c{:02d}".format(*self.places[i][1:])

    def read(self, indices):
        return np.stack(
            [
                np.random.default_rng(int(i)).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                for i in indices
            ]
        )

    def original(self, i):
        return Image.fromarray(self.read([i])[0]).resize((48, 48))


def logits_of(patch_set, predicted, sure):
    logits = torch.zeros(len(patch_set), len(patch_set.classes))
    logits[torch.arange(len(patch_set)), torch.tensor(predicted)] = torch.tensor(
        sure, dtype=torch.float32
    )
    return logits


def near(patch_set, confusion):
    return [
        {
            "confusion_1": patch_set.classes[other] if other is not None else "",
            "features_1": patch_set.classes[i - 1],
        }
        for i, other in enumerate(confusion)
    ]


def test_typical_patches_are_the_surest_of_different_rasters():
    patch_set = Made(
        [
            (0, "x", 0, 0),
            (0, "x", 9, 9),
            (0, "y", 0, 0),
            (0, "z", 0, 0),
            (0, "w", 0, 0),
            (0, "v", 0, 0),
            (0, "u", 0, 0),
        ]
    )
    logits = logits_of(
        patch_set, [0, 0, 0, 0, 0, 0, 1], [90, 80, 70, 60, 50, 40, 99]
    )  # the last is surest, but wrong
    (role, explained, indices, available), *_ = portraits.choose(
        patch_set, logits, 0, 1, CHECKPOINT
    )
    assert (role, explained, indices, available) == ("typical", 0, [0, 2, 3, 4], 6)


def test_patches_of_one_raster_do_not_overlap():
    patch_set = Made([(0, "x", row, col) for row in range(5) for col in range(5)])
    logits = logits_of(patch_set, [0] * 25, np.random.default_rng(0).permutation(25) + 1.0)
    indices = portraits.choose(patch_set, logits, 0, 1, CHECKPOINT)[0][2]
    assert indices[0] == int(logits[:, 0].argmax()) and len(indices) >= 3
    for i, one in enumerate(indices):
        for other in indices[:i]:
            assert (
                max(abs(one // 5 - other // 5), abs(one % 5 - other % 5)) >= 2
            )  # 2 strides are a patch


def test_certainty_is_told_apart_where_probabilities_round_to_one():
    logits = torch.tensor([[40.0, 0, 0], [60.0, 0, 0], [50.0, 0, 0]])
    assert (logits.softmax(1)[:, 0] == 1).all()
    assert np.argsort(-portraits.margin(logits, 0)).tolist() == [1, 2, 0]
    p = torch.tensor([[2.0, 1.0, -1.0]]).double().softmax(1)[0]
    assert portraits.margin(torch.tensor([[2.0, 1.0, -1.0]]), 1) == pytest.approx(
        float(torch.log(p[1] / (1 - p[1])))
    )


def test_no_errors_no_hits_and_no_patches():
    patch_set = Made(
        [(0, f"r{i}", 0, 0) for i in range(5)] + [(1, f"r{i}", 0, 0) for i in range(3)]
    )
    logits = logits_of(patch_set, [0] * 5 + [0, 0, 2], [5, 4, 3, 2, 1, 1, 2, 3])
    rows = portraits.choose(patch_set, logits, 0, 1, CHECKPOINT)
    assert [(row[0], row[1], row[3]) for row in rows] == [
        ("typical", 0, 5),
        ("closest to neighbour", 1, 5),
    ]
    assert rows[1][2][0] == 4  # the least sure of Aa is nearest to Bb
    rows = portraits.choose(patch_set, logits, 1, 0, CHECKPOINT)
    assert [(row[0], row[1], row[2], row[3]) for row in rows] == [
        ("least unlike", 1, [5, 6, 7], 3),
        ("taken for neighbour", 0, [6, 5], 2),
    ]
    assert portraits.choose(patch_set, logits, 2, 0, CHECKPOINT) == []
    assert [row[0] for row in portraits.choose(patch_set, logits, 0, None, CHECKPOINT)] == [
        "typical"
    ]


def test_sheets_hold_the_patches_and_their_masks(tmp_path):
    patch_set = Made([(label, f"r{i}", 0, 0) for label in (0, 1) for i in range(3)])
    torch.manual_seed(0)
    model = resnet18(num_classes=3).eval()
    logits = logits_of(patch_set, [0, 1, 0, 1, 1, 1], [5, 4, 3, 2, 1, 1])
    assert (
        portraits.write(
            tmp_path,
            model,
            CHECKPOINT,
            patch_set,
            logits,
            near(patch_set, [1, None, 0]),
            torch.device("cpu"),
            batch_size=2,
        )
        == 2
    )
    assert {path.name for path in (tmp_path / "portraits").iterdir()} == {
        "Aa (AAA).jpg",
        "Bb (BBB).jpg",
        "portraits.csv",
    }
    with open(tmp_path / "portraits" / "portraits.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["city"][:2], row["role"], row["explained"][:2]) for row in rows] == [
        ("Aa", "typical", "Aa")
    ] * 2 + [("Aa", "taken for neighbour", "Bb")] + [("Bb", "typical", "Bb")] * 3 + [
        ("Bb", "closest to neighbour", "Aa")
    ] * 3
    names = [patch_set.name(i) for i in range(len(patch_set))]
    for row in rows:
        index = names.index(row["patch"]) + (
            3 if row["city"] == "Bb (BBB)" else 0
        )  # rasters are named alike in both
        target = patch_set.classes.index(row["explained"])
        images = (torch.from_numpy(patch_set.read([index])).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
        saliency = RelevanceCAM(model, layers=("layer3",))(images, target)[0]["layer3"][0]
        picture = patch_set.original(index)
        sheet = Image.open(tmp_path / "portraits" / row["file"]).convert("RGB")
        for wanted, y in (
            (picture, row["y"]),
            (figures.masked(picture, figures.on_picture(saliency, picture)), row["mask_y"]),
        ):
            x, y, side = int(row["x"]), int(y), int(row["side"])
            found = np.asarray(sheet.crop((x, y, x + side, y + side)), int)
            assert (
                np.abs(
                    found - np.asarray(wanted.resize((side, side), Image.Resampling.LANCZOS), int)
                ).mean()
                < 8
            )  # JPEG


def test_a_run_ends_with_portraits_and_the_report(data, finished, tmp_path, capsys):
    test_classification.main(
        ["--checkpoint", str(finished / "best.pth"), "--data", str(data), "--out", str(tmp_path)]
    )
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (
        page.count("data:image/jpeg") >= 3 and "How it was trained" in page and "polyline" in page
    )
    with open(tmp_path / "portraits" / "portraits.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    with open(tmp_path / "predictions.csv", newline="") as lines:
        known = {row["patch"]: row for row in csv.DictReader(lines)}
    assert {row["city"] for row in rows} == {"Aa (AAA)", "Bb (BBB)", "Cc (CCC)"}
    assert all(
        row["true"] == row["city"] == known[row["patch"]]["true"]
        and row["predicted"] == known[row["patch"]]["predicted"]
        for row in rows
    )
    for role, column in (("typical", "city"), ("taken for neighbour", "explained")):
        assert all(row["predicted"] == row[column] for row in rows if row["role"] == role)


def test_published_layout(data, finished, tmp_path):
    patch_set = reading.open_split(data, "test_b")
    for i in range(len(patch_set)):
        folder = tmp_path / "jpegs" / "test_b" / patch_set.classes[patch_set.labels[i]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(patch_set.read([i])[0]).resize((48, 48)).save(
            folder / f"site_2020_{patch_set.name(i)[-7:]}.jpg"
        )
    model, checkpoint = checkpoints.load_checkpoint(finished / "best.pth")
    jpegs = reading.open_split(tmp_path / "jpegs", "test_b", 32)
    logits = torch.eye(3)[jpegs.labels.tolist()] * torch.arange(1, len(jpegs) + 1)[:, None]
    assert (
        portraits.write(
            tmp_path, model, checkpoint, jpegs, logits, near(jpegs, [1, 2, 0]), torch.device("cpu")
        )
        == 3
    )
    with open(tmp_path / "portraits" / "portraits.csv", newline="") as lines:
        rows = [
            row
            for row in csv.DictReader(lines)
            if row["city"] == "Aa (AAA)" and row["role"] == "typical"
        ]
    spots = [tuple(map(int, re.findall(r"_r(\d+)_c(\d+)", row["patch"])[0])) for row in rows]
    assert len(spots) > 1 and all(
        max(abs(a - c), abs(b - d)) >= 2 for i, (a, b) in enumerate(spots) for c, d in spots[:i]
    )


def test_a_file_in_the_way_is_one_line(tmp_path, capsys):
    (tmp_path / "portraits").write_text("in the way")
    patch_set = Made([(0, "x", 0, 0), (1, "y", 0, 0), (2, "z", 0, 0)])
    with pytest.raises(SystemExit) as ended:
        run(
            lambda: portraits.write(
                tmp_path,
                resnet18(num_classes=3).eval(),
                CHECKPOINT,
                patch_set,
                torch.eye(3),
                near(patch_set, [1, 2, 0]),
                torch.device("cpu"),
            )
        )
    assert ended.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
