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
from dl_slicer.results import panels, portraits
from relevance_cam import RelevanceCAM

CHECKPOINT = checkpoints.Checkpoint(
    model={}, arch="resnet18", mean=[0.5] * 3, std=[0.25] * 3, patch_size=48, stride=24
)


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


class Made:
    """A patch set whose patches lie where they are told to: (label, raster, row, col)."""

    image_size = 32
    patch_size = 48
    stride = 24

    def __init__(self, places, classes=("Aa (AAA)", "Bb (BBB)", "Cc (CCC)")):
        self.places = places
        self.classes = list(classes)
        self.labels = np.array([place[0] for place in places])

    def __len__(self):
        return len(self.places)

    def raster(self, i):
        return self.places[i][1]

    def locate(self, i):
        _, raster, row, col = self.places[i]
        return raster, row, col

    def name(self, i):
        return "{}/r{:02d}_c{:02d}".format(*self.places[i][1:])

    def read(self, indices):
        return np.stack([noise(int(i)) for i in indices])

    def original(self, i):
        return Image.fromarray(self.read([i])[0]).resize((48, 48))


def logits_of(patch_set, predicted, sure):
    logits = torch.zeros(len(patch_set), len(patch_set.classes))
    sure = torch.tensor(sure, dtype=torch.float32)
    logits[torch.arange(len(patch_set)), torch.tensor(predicted)] = sure
    return logits


def nearest(patch_set, by_confusion):
    """The rows of nearest.csv; by_confusion: each city's nearest one (class number), or None."""
    return [
        {
            "confusion_1": patch_set.classes[other] if other is not None else "",
            "features_1": patch_set.classes[label - 1],
        }
        for label, other in enumerate(by_confusion)
    ]


def read_table(out):
    with open(out / "portraits" / "portraits.csv", newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_typical_patches_are_the_surest_of_different_rasters():
    places = [(0, "x", 0, 0), (0, "x", 9, 9)] + [(0, raster, 0, 0) for raster in "yzwvu"]
    patch_set = Made(places)
    # the last is surest, but wrong
    logits = logits_of(patch_set, [0, 0, 0, 0, 0, 0, 1], [90, 80, 70, 60, 50, 40, 99])
    (role, explained, indices, available), *_ = portraits.choose(
        patch_set, logits, 0, 1, CHECKPOINT
    )
    assert (role, explained, indices, available) == ("typical", 0, [0, 2, 3, 4], 6)


def test_patches_of_one_raster_do_not_overlap():
    patch_set = Made([(0, "x", row, col) for row in range(5) for col in range(5)])
    logits = logits_of(patch_set, [0] * 25, np.random.default_rng(0).permutation(25) + 1.0)
    indices = portraits.choose(patch_set, logits, 0, 1, CHECKPOINT)[0].patches
    assert indices[0] == int(logits[:, 0].argmax())
    assert len(indices) >= 3
    for i, one in enumerate(indices):
        for other in indices[:i]:
            # 2 strides are a patch
            assert max(abs(one // 5 - other // 5), abs(one % 5 - other % 5)) >= 2


def test_certainty_is_told_apart_where_probabilities_round_to_one():
    logits = torch.tensor([[40.0, 0, 0], [60.0, 0, 0], [50.0, 0, 0]])
    assert (logits.softmax(1)[:, 0] == 1).all()
    assert np.argsort(-portraits.margin(logits, 0)).tolist() == [1, 2, 0]
    logits = torch.tensor([[2.0, 1.0, -1.0]])
    p = logits.double().softmax(1)[0]
    assert portraits.margin(logits, 1) == pytest.approx(float(torch.log(p[1] / (1 - p[1]))))


def test_no_errors_no_hits_and_no_patches():
    places = [(0, f"r{i}", 0, 0) for i in range(5)] + [(1, f"r{i}", 0, 0) for i in range(3)]
    patch_set = Made(places)
    logits = logits_of(patch_set, [0] * 5 + [0, 0, 2], [5, 4, 3, 2, 1, 1, 2, 3])
    rows = portraits.choose(patch_set, logits, 0, 1, CHECKPOINT)
    assert [(row.role, row.explained, row.available) for row in rows] == [
        ("typical", 0, 5),
        ("closest to neighbour", 1, 5),
    ]
    assert rows[1].patches[0] == 4  # the least sure of Aa is nearest to Bb
    rows = portraits.choose(patch_set, logits, 1, 0, CHECKPOINT)
    assert rows == [
        ("least unlike", 1, [5, 6, 7], 3),
        ("taken for neighbour", 0, [6, 5], 2),
    ]
    assert portraits.choose(patch_set, logits, 2, 0, CHECKPOINT) == []
    without_neighbour = portraits.choose(patch_set, logits, 0, None, CHECKPOINT)
    assert [row.role for row in without_neighbour] == ["typical"]


def mean_difference(one, other):
    """Mean over pixels and channels of the absolute difference of two pictures of one size."""
    assert one.size == other.size
    return np.abs(np.asarray(one, int) - np.asarray(other, int)).mean()


def test_sheets_hold_the_patches_and_their_masks(tmp_path):
    patch_set = Made([(label, f"r{i}", 0, 0) for label in (0, 1) for i in range(3)])
    torch.manual_seed(0)
    model = resnet18(num_classes=3).eval()
    logits = logits_of(patch_set, [0, 1, 0, 1, 1, 1], [5, 4, 3, 2, 1, 1])
    rows_of_nearest = nearest(patch_set, [1, None, 0])
    sheets = portraits.write_portraits(
        tmp_path, model, CHECKPOINT, patch_set, logits, rows_of_nearest, batch_size=2
    )
    assert sheets == 2
    folder = tmp_path / "portraits"
    assert {path.name for path in folder.iterdir()} == {
        "Aa (AAA).jpg",
        "Bb (BBB).jpg",
        "portraits.csv",
        "tiles",
    }
    rows = read_table(tmp_path)
    assert [(row["city"][:2], row["role"], row["explained"][:2]) for row in rows] == [
        ("Aa", "typical", "Aa")
    ] * 2 + [("Aa", "taken for neighbour", "Bb")] + [("Bb", "typical", "Bb")] * 3 + [
        ("Bb", "closest to neighbour", "Aa")
    ] * 3
    numbered = [f"tiles/Aa (AAA)_{k}.jpg" for k in range(3)]
    numbered += [f"tiles/Bb (BBB)_{k}.jpg" for k in range(6)]
    assert [row["tile"] for row in rows] == numbered
    assert sorted(f"tiles/{path.name}" for path in (folder / "tiles").iterdir()) == numbered

    placing = panels.Placing(patch_set.image_size)
    cam = RelevanceCAM(model, layers=("layer3",))
    names = [patch_set.name(i) for i in range(len(patch_set))]
    places = sheet_places(rows)
    for row, (x, y) in zip(rows, places, strict=True):
        # rasters have the same names in both cities
        index = names.index(row["patch"]) + (3 if row["city"] == "Bb (BBB)" else 0)
        target = patch_set.classes.index(row["explained"])
        images = (torch.from_numpy(patch_set.read([index])).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
        saliency = cam(images, target)[0]["layer3"][0]
        picture = patch_set.original(index)
        masked = panels.masked(picture, panels.on_picture(saliency, picture, placing))
        sheet = Image.open(folder / f"{row['city']}.jpg").convert("RGB")
        tile = Image.open(folder / row["tile"]).convert("RGB")
        side = int(row["side"])
        assert side == portraits.PANEL
        assert tile.size == (side, 2 * side)
        below = portraits.PANEL + panels.GAP
        for wanted, sheet_top, tile_top in ((picture, y, 0), (masked, y + below, side)):
            wanted = wanted.resize((side, side), Image.Resampling.LANCZOS)
            on_sheet = sheet.crop((x, sheet_top, x + side, sheet_top + side))
            on_tile = tile.crop((0, tile_top, side, tile_top + side))
            assert mean_difference(on_sheet, wanted) < 8  # JPEG
            assert mean_difference(on_tile, wanted) < 8


def sheet_places(rows):
    """Where each patch of portraits.csv lies on its city's sheet: upper-left corners (x, y)."""
    across = portraits.PANEL + panels.GAP
    height = panels.TOP + 2 * across
    places = []
    for i, row in enumerate(rows):
        before = [other for other in rows[:i] if other["city"] == row["city"]]
        column = sum(other["role"] == row["role"] for other in before)
        part = len({other["role"] for other in before} - {row["role"]})
        places.append((panels.GAP + column * across, part * height + panels.TOP))
    return places


def photographs(count):
    """As many portraits of noise, which JPEG compresses badly, and their patch set."""
    patch_set = Made([(0, f"r{i}", 0, 0) for i in range(count)])
    maps = {portraits.Portrait(i, 0): torch.rand(2, 2) for i in range(count)}
    return patch_set, maps


def test_tiles_are_smaller_where_there_are_more_of_them(monkeypatch):
    sides = []
    for count in (1, 20, 200):
        patch_set, maps = photographs(count)
        drawn = portraits.draw_panels(patch_set, 0, torch.rand(2, 2))
        monkeypatch.setattr(
            portraits,
            "TILE_BUDGET",
            20 * len(portraits.encode_tile(drawn, portraits.TILE_FORMATS[2])),
        )
        tile_format = portraits.pick_tile_format(patch_set, maps)
        assert tile_format in portraits.TILE_FORMATS
        sides.append(tile_format.side)
    assert sides[0] == portraits.TILE_FORMATS[0].side
    assert sides[0] > sides[1] > sides[2]
    assert sides[2] == portraits.TILE_FORMATS[-1].side


def test_tiles_of_forty_five_cities_keep_to_the_budget(tmp_path):
    patch_set, maps = photographs(45 * 8)
    tile_format = portraits.pick_tile_format(patch_set, maps)
    drawn = [portraits.draw_panels(patch_set, i, maps[i, 0]) for i in range(len(patch_set))]
    tiles = portraits.write_tiles(tmp_path, "City", drawn, tile_format)
    written = sum((tmp_path / tile).stat().st_size for tile in tiles)
    assert written <= 1.1 * portraits.TILE_BUDGET
    assert all(Image.open(tmp_path / tile).size[0] == tile_format.side for tile in tiles[:3])


def test_a_run_ends_with_portraits_and_the_report(data, finished, tmp_path, capsys):
    test_classification.main(
        ["--checkpoint", str(finished / "best.pth"), "--data", str(data), "--out", str(tmp_path)]
    )
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") >= 3
    assert "How it was trained" in page
    assert "polyline" in page
    rows = read_table(tmp_path)
    with open(tmp_path / "predictions.csv", newline="") as lines:
        known = {row["patch"]: row for row in csv.DictReader(lines)}
    assert {row["city"] for row in rows} == {"Aa (AAA)", "Bb (BBB)", "Cc (CCC)"}
    for row in rows:
        assert row["true"] == row["city"] == known[row["patch"]]["true"]
        assert row["predicted"] == known[row["patch"]]["predicted"]
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
    sheets = portraits.write_portraits(
        tmp_path, model, checkpoint, jpegs, logits, nearest(jpegs, [1, 2, 0])
    )
    assert sheets == 3
    typical = [
        row
        for row in read_table(tmp_path)
        if row["city"] == "Aa (AAA)" and row["role"] == "typical"
    ]
    spots = [tuple(map(int, re.findall(r"_r(\d+)_c(\d+)", row["patch"])[0])) for row in typical]
    assert len(spots) > 1
    for i, (row, col) in enumerate(spots):
        for other_row, other_col in spots[:i]:
            assert max(abs(row - other_row), abs(col - other_col)) >= 2


def test_a_file_in_the_way_is_one_line(tmp_path, capsys):
    (tmp_path / "portraits").write_text("in the way")
    patch_set = Made([(0, "x", 0, 0), (1, "y", 0, 0), (2, "z", 0, 0)])
    model = resnet18(num_classes=3).eval()
    rows = nearest(patch_set, [1, 2, 0])
    with pytest.raises(SystemExit) as ended:
        run(
            lambda: portraits.write_portraits(
                tmp_path, model, CHECKPOINT, patch_set, torch.eye(3), rows
            )
        )
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
