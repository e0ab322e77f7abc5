"""--images: which cities pictures of any place are like."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import picture
from PIL import Image

import test_classification
from dl_slicer import cities
from dl_slicer.cli import InputError, run
from dl_slicer.model import checkpoints, evaluation
from dl_slicer.model.familiarity import FAINT, Known, Space
from dl_slicer.patch_sets import reading
from dl_slicer.results import places, raster_figures
from dl_slicer.results.result_folder import Call


class ByColour(torch.nn.Module):
    """Says city 0, 1 or 2 by what is strongest in a patch: red, green or blue."""

    def forward(self, images):
        return images.mean((2, 3)) * 20


CHECKPOINT = checkpoints.Checkpoint(
    model={}, arch=None, image_size=28, patch_size=48, stride=24, mean=[0.5] * 3, std=[0.25] * 3
)
CITIES = ["Red (RED)", "Green (GRN)", "Blue (BLU)"]
COLOURS = [(200, 20, 20), (20, 200, 20), (20, 20, 200)]


def compare(out, *paths, checkpoint=CHECKPOINT, names=CITIES, model=None):
    call = Call(out, "test_classification.py --images", {}, "places.csv")
    places.compare(
        paths, model or ByColour(), checkpoint, names, torch.device("cpu"), torch.float32, call
    )
    with open(out / "places.csv", newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def plain(file, colour, size=(48, 48)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLOURS[colour]).save(file)
    return file


def halves_of(width, height):
    """Left red, right green."""
    image = Image.new("RGB", (width, height), COLOURS[0])
    image.paste(COLOURS[1], (width // 2, 0, width, height))
    return image


def halves(file, width=240, height=144):
    halves_of(width, height).save(file)
    return file


def test_shares_of_each_file_and_of_all(tmp_path, capsys):
    rows = compare(tmp_path / "out", plain(tmp_path / "one.png", 2), halves(tmp_path / "two.png"))
    first = [rows[0][key] for key in ("file", "patches", "rank", "city", "code")]
    assert first == [str(tmp_path / "one.png"), "1", "1", CITIES[2], "BLU"]
    two = {row["code"]: row for row in rows if row["file"].endswith("two.png")}
    assert two["RED"]["patches"] == "45"  # 9 x 5 windows
    # Windows at 0, 24, ... 192 in a width of 240: four lie left, four right, one on the border.
    assert float(two["RED"]["mean_probability"]) == pytest.approx(0.5, abs=0.01)
    assert float(two["GRN"]["mean_probability"]) == pytest.approx(0.5, abs=0.01)
    shares = [float(two[code]["share_of_patches"]) for code in ("RED", "GRN")]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert min(shares) == pytest.approx(4 / 9, abs=1e-5)
    total = {row["code"]: row for row in rows if row["file"] == "all files"}
    assert total["BLU"]["patches"] == "46"
    assert float(total["BLU"]["share_of_patches"]) == pytest.approx(1 / 46, abs=1e-5)
    one = {row["code"]: row for row in rows if row["file"].endswith("one.png")}
    for code in ("RED", "BLU"):  # each patch counts alike
        mean = float(one[code]["mean_probability"]) + 45 * float(two[code]["mean_probability"])
        assert float(total[code]["mean_probability"]) == pytest.approx(mean / 46, abs=1e-5)
    assert [int(row["rank"]) for row in rows] == [1, 2, 3] * 3
    printed = capsys.readouterr().out
    for words in ("mean probability", "share of patches", "all files", "each patch", "two.png"):
        assert words in printed


def test_figure_colours_each_place_by_its_city(tmp_path):
    rows = compare(tmp_path / "out", halves(tmp_path / "two.png", 480, 480))
    assert {row["figure"] for row in rows if row["file"] != "all files"} == {"two.jpg"}
    figure = Image.open(tmp_path / "out" / "two.jpg").convert("RGB")
    # The second panel is as large as the first and lies right of it: 12 + 1000 + 12.
    left, right = (np.array(figure.getpixel((1024 + x, 600)), int) for x in (200, 800))
    # Half of the raster, half of the city's colour: that of its class number.
    for pixel, city, colour in ((left, 0, (31, 119, 180)), (right, 1, (255, 127, 14))):
        mixed = (np.array(COLOURS[city]) + np.array(colour)) / 2
        assert np.abs(pixel - mixed).max() < 12, (city, pixel)


class Knows(ByColour):
    """ByColour with the layers of a ResNet that matter: all have the three colours."""

    def __init__(self):
        super().__init__()
        self.layer2 = torch.nn.Identity()
        self.layer3 = torch.nn.Identity()
        self.fc = torch.nn.Linear(3, 3, bias=False)
        self.fc.weight.data = 20 * torch.eye(3)

    def forward(self, images):
        return self.fc(self.layer3(self.layer2(images)).mean((2, 3)))


def knowing(val_patches):
    """A checkpoint that knows the three colours, and how far its val patches were from them."""
    colours = (np.array(COLOURS) / 255 - 0.5) / 0.25
    texture = torch.tensor(np.tile(colours, 2), dtype=torch.float32)
    known = Known(
        texture=Space(texture, torch.eye(6)),
        kind=Space((texture[:, :3].clamp(min=0) + FAINT).log(), torch.eye(3)),
        patches=3,
        distances=torch.stack([torch.linspace(0, 0.1, 3 * val_patches)] * 3, 1),
        labels=torch.arange(3 * val_patches) % 3,
    )
    return dataclasses.replace(CHECKPOINT, familiarity=known.as_dict(), temperature=4.0)


def half_strange(file):
    """Left red, right grey, which is none of the three."""
    image = Image.new("RGB", (480, 240), COLOURS[0])
    image.paste((128, 128, 128), (240, 0, 480, 240))
    image.save(file)
    return file


def test_what_is_like_none_of_the_cities_is_said_so(tmp_path, capsys):
    grey = tmp_path / "grey.png"
    Image.new("RGB", (48, 48), (128, 128, 128)).save(grey)
    files = [plain(tmp_path / "one.png", 2), grey, half_strange(tmp_path / "half.png")]
    rows = compare(tmp_path / "out", *files, checkpoint=knowing(200), model=Knows())
    found = {Path(row["file"]).name: row for row in rows}
    assert found["one.png"]["verdict"] == "not unlike the cities it knows"
    assert float(found["one.png"]["familiarity"]) > 0.9
    assert found["grey.png"]["verdict"] == "unlike any city the network knows"
    assert float(found["grey.png"]["familiarity"]) == pytest.approx(1 / 601, abs=1e-6)
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if "grey.png" in line)
    assert line.endswith("familiarity 0.2 %: unlike any city the network knows")
    explored = json.loads((tmp_path / "out" / "half.explorer" / "explorer.json").read_text())
    # Places 24 pixels wide: right of the middle, and one left of it where the medians meet.
    columns = {number % explored["cols"] for number in explored["unlike"]}
    assert columns == set(range(10, 20))
    figure = Image.open(tmp_path / "out" / "half.jpg").convert("RGB")
    # The second panel lies below the first: 60 + 540 + 30.
    left, right = (
        np.asarray(figure.crop((x, 700, x + 200, 1000)), int).std(axis=(0, 1)).max()
        for x in (112, 712)
    )
    assert left < 5
    assert right > 60  # black beside white


def test_too_few_val_patches_and_older_files_are_said_so(tmp_path, capsys):
    rows = compare(
        tmp_path, half_strange(tmp_path / "a.png"), checkpoint=knowing(98), model=Knows()
    )
    assert {(row["verdict"], row["familiarity"]) for row in rows} == {("too few to tell", "")}
    assert "too few to tell" in capsys.readouterr().out
    rows = compare(tmp_path, half_strange(tmp_path / "a.png"), model=Knows())
    assert {(row["verdict"], row["familiarity"]) for row in rows} == {("not known", "")}
    assert "not known" in capsys.readouterr().out


def test_probabilities_are_tempered_and_the_likeliest_city_stays(tmp_path):
    file = halves(tmp_path / "two.png")
    plainly = compare(tmp_path / "a", file, model=Knows())
    tempered = compare(tmp_path / "b", file, checkpoint=knowing(9), model=Knows())
    for column in ("city", "share_of_patches"):
        assert [row[column] for row in plainly][:2] == [row[column] for row in tempered][:2]
    # Means of two colours' halves: only the third one's share tells.
    third = [float(rows[2]["mean_probability"]) for rows in (plainly, tempered)]
    assert third[1] > third[0] + 1e-5


def test_maps_are_drawn_beside_the_same_two_panels():
    raster = halves_of(240, 240)
    probability = np.zeros((4, 4, 3))
    probability[:, :2, 0] = probability[:, 2:, 2] = 1
    codes = ["RED", "GRN", "BLU"]
    plain = raster_figures.raster_figure(raster, probability, codes, "title")
    maps = {"layer2": np.linspace(0, 1, 240 * 240).reshape(240, 240), "layer4": np.ones((240, 240))}
    explained = raster_figures.raster_figure(raster, probability, codes, "title", maps)
    panels = (0, 60, 2 * 1012, 60 + 30 + 1000)
    assert plain.crop(panels).tobytes() == explained.crop(panels).tobytes()
    assert explained.width == plain.width + 1012
    assert explained.height > plain.height + 1000


def test_colours_of_45_cities_are_told_apart():
    colours = [cities.colour(number) for number in range(45)]
    assert len(set(colours)) == 45
    # In RGB a rough measure; cities.py says how they were chosen.
    for i, colour in enumerate([*colours, cities.OTHERS]):
        for other in colours[:i]:
            assert np.abs(np.subtract(colour, other)).sum() >= 40, (i, colour, other)
    assert len({cities.colour(number) for number in range(60)}) == 60


def test_many_cities_wide_and_high_rasters_and_long_names_stay_in_the_figure():
    rng = np.random.default_rng(0)
    for size in ((2000, 300), (300, 2000), (600, 600)):
        for k in (1, 2, 45):
            codes = [f"A very long name of a city without code, number {i}" for i in range(k)]
            probability = rng.dirichlet(np.full(k, 0.1), (30, 30))
            raster = Image.new("RGB", size)
            page = raster_figures.raster_figure(raster, probability, codes, "t" * 300)
            assert page.width <= 2100
            assert page.height <= 2900
            # Nothing reaches the right or lower edge.
            assert (np.asarray(page)[:, -10:] == 255).all()
            assert (np.asarray(page)[-6:] == 255).all()


def test_patches_are_those_of_a_patch_set(data, finished, tmp_path):
    """A raster of the training data gives what is measured on its patches in the patch set."""
    model, checkpoint = checkpoints.load_checkpoint(finished / "best.pth")
    patch_set = reading.open_split(data, "train")
    setup = evaluation.Setup(torch.device("cpu"), mean=checkpoint.mean, std=checkpoint.std)
    logits = evaluation.evaluate(model, patch_set, setup).logits
    raster = patch_set.raster(0)
    own = [i for i in range(len(patch_set)) if patch_set.raster(i) == raster]
    rows = compare(
        tmp_path,
        data.parent / "raw" / raster,
        checkpoint=checkpoint,
        names=patch_set.classes,
        model=model,
    )
    found = {
        row["city"]: float(row["mean_probability"]) for row in rows if row["file"] != "all files"
    }
    expected = (logits[own] / checkpoint.divisor).softmax(1).mean(0).tolist()
    assert found == pytest.approx(dict(zip(patch_set.classes, expected, strict=True)), abs=1e-4)
    assert rows[0]["patches"] == str(len(own)) == "81"


def test_folders_and_files_of_one_name(tmp_path):
    for folder in "ab":
        halves(plain(tmp_path / folder / "2020.png", 0))
    (tmp_path / "a" / "notes.txt").write_text("no image, passed over")
    plain(tmp_path / "a" / ".hidden.png", 0, (3, 3))
    # One of them twice.
    rows = compare(tmp_path / "out", tmp_path / "a", tmp_path / "b", tmp_path / "a" / "2020.png")
    assert [(row["file"], row["figure"]) for row in rows if row["rank"] == "1"] == [
        (str(tmp_path / "a" / "2020.png"), "2020.jpg"),
        (str(tmp_path / "b" / "2020.png"), "b_2020.jpg"),
        ("all files", ""),
    ]


def test_figures_of_the_call_before_go_and_other_peoples_stay(tmp_path):
    out = tmp_path / "out"
    compare(out, halves(tmp_path / "one.png"), halves(tmp_path / "two.png"))
    (out / "three.jpg").write_text("mine")
    three = halves(tmp_path / "three.png")
    named = f"{tmp_path.name}_three"
    rows = compare(out, halves(tmp_path / "two.png"), three)
    assert {row["figure"] for row in rows} == {"two.jpg", f"{named}.jpg", ""}
    pictures = ["three.jpg", "two.explorer", "two.jpg", f"{named}.explorer", f"{named}.jpg"]
    found = sorted(path.name for path in out.iterdir())
    assert found == sorted(["contents.json", "places.csv", *pictures])
    assert (out / "three.jpg").read_text() == "mine"


def test_pictures_are_not_replaced_by_their_figures(tmp_path):
    halves(tmp_path / "two.jpg")
    before = (tmp_path / "two.jpg").read_bytes()
    rows = compare(tmp_path, tmp_path / "two.jpg")
    assert rows[0]["figure"] == f"{tmp_path.name}_two.jpg"
    assert (tmp_path / "two.jpg").read_bytes() == before


def test_no_file_that_can_be_read_leaves_the_results_of_before(tmp_path):
    out = tmp_path / "out"
    rows = compare(out, plain(tmp_path / "a.png", 0))
    picture(200, 200).save(tmp_path / "b.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:3000])
    with pytest.raises(InputError, match=r"b\.jpg: cannot be read"):
        compare(out, tmp_path / "b.jpg")
    with open(out / "places.csv", newline="") as lines:
        assert list(csv.DictReader(lines)) == rows


def test_cities_of_one_code_are_told_apart(tmp_path, capsys):
    names = ["San Jose (SJ)", "Sankt Johann (SJ)", "Blue (BLU)"]
    rows = compare(tmp_path / "out", halves(tmp_path / "two.png"), names=names)
    assert {row["code"] for row in rows} == {*names[:2], "BLU"}
    assert "San Jose (SJ) " in capsys.readouterr().out


def test_what_the_windows_leave_over_is_covered_as_well(tmp_path):
    image = Image.new("RGB", (100, 60), COLOURS[0])
    image.paste(COLOURS[1], (96, 0, 100, 60))
    image.save(tmp_path / "edge.png")
    rows = compare(tmp_path / "out", tmp_path / "edge.png")
    assert rows[0]["patches"] == "8"  # at 0, 24, 48 and 52 of 100, and at 0 and 12 of 60


def test_any_kind_of_pixels(tmp_path):
    Image.fromarray(np.full((60, 60), 40000, np.uint16)).save(tmp_path / "grey16.tif")
    picture(60, 60).convert("P").save(tmp_path / "palette.png")
    picture(60, 60).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert len(compare(tmp_path / "out", tmp_path)) == 4 * 3


@pytest.mark.parametrize(
    "bad, line",
    [
        ("small", "47 x 60 pixels, smaller than a patch of 48 x 48"),
        ("text", "no JPEG, PNG or TIFF image"),
        ("absent", "no such file"),
        ("empty", "no images in this folder"),
    ],
)
def test_a_bad_file_is_one_line_before_any_work(tmp_path, capsys, bad, line):
    good, file = plain(tmp_path / "good.png", 0), tmp_path / "bad.png"
    if bad == "small":
        plain(file, 0, (47, 60))
    elif bad == "text":
        file.write_text("no image")
    elif bad == "empty":
        file.mkdir()
    with pytest.raises(SystemExit) as ended:
        run(lambda: compare(tmp_path / "out", good, file))
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert len(error.splitlines()) == 1
    assert line in error
    assert "bad.png" in error
    assert not (tmp_path / "out").exists()


def test_a_file_that_breaks_off_is_named_at_the_end_and_the_others_are_written(tmp_path):
    picture(200, 200).save(tmp_path / "b.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:3000])
    plain(tmp_path / "a.png", 0), plain(tmp_path / "c.png", 1)
    with pytest.raises(InputError, match=r"b\.jpg: cannot be read") as error:
        compare(tmp_path / "out", tmp_path)
    assert len(str(error.value).splitlines()) == 1
    with open(tmp_path / "out" / "places.csv", newline="") as lines:
        assert [row["file"][-5:] for row in csv.DictReader(lines) if row["rank"] == "1"] == [
            "a.png",
            "c.png",
            "files",
        ]


def test_command_line(data, finished, tmp_path, capsys):
    raster = next((data.parent / "raw" / "Bb (BBB)").rglob("*.png"))
    test_classification.main(
        [
            "--checkpoint",
            str(finished / "best.pth"),
            "--images",
            str(raster),
            "--out",
            str(tmp_path / "out"),
        ]
    )  # no patch set is needed
    assert (tmp_path / "out" / "places.csv").is_file()
    assert (tmp_path / "out" / "2020.jpg").is_file()
    assert "BBB" in capsys.readouterr().out


def test_a_checkpoint_without_class_names_takes_them_from_the_data(data, finished, tmp_path):
    content = torch.load(finished / "best.pth", weights_only=True)
    torch.save(content["model"], tmp_path / "bare.pth")
    raster = tmp_path / "large.png"
    picture(500, 490).save(raster)
    flags = [
        "--checkpoint",
        str(tmp_path / "bare.pth"),
        "--images",
        str(raster),
        "--out",
        str(tmp_path / "out"),
    ]
    with pytest.raises(
        InputError, match="has no class names; give the data set it was trained on as --data"
    ):
        test_classification.main([*flags, "--data", str(tmp_path / "none")])
    assert not (tmp_path / "out").exists()


def test_class_names_from_a_folder_of_patches(data, finished, tmp_path, capsys):
    content = torch.load(finished / "best.pth", weights_only=True)
    torch.save(content["model"], tmp_path / "bare.pth")
    for city in content["classes"]:
        (tmp_path / "jpegs" / "test_b" / city).mkdir(parents=True)
        picture(48, 48).save(tmp_path / "jpegs" / "test_b" / city / "a.jpg")
    picture(500, 490).save(tmp_path / "large.png")
    test_classification.main(
        [
            "--checkpoint",
            str(tmp_path / "bare.pth"),
            "--images",
            str(tmp_path / "large.png"),
            "--data",
            str(tmp_path / "jpegs"),
            "--out",
            str(tmp_path / "out"),
        ]
    )
    said = capsys.readouterr().out
    assert "has no class names" in said
    assert "AAA" in said
    assert (tmp_path / "out" / "large.jpg").is_file()
