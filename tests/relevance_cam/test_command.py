"""The command line of relevance_cam: figures, tables, whole rasters, and wrong input."""

import csv

import numpy as np
import pytest
import torch
from conftest import files
from PIL import Image

from dl_slicer import cities
from dl_slicer.cli import InputError
from dl_slicer.patch_sets import reading
from dl_slicer.results import panels, saliency
from relevance_cam import __main__, rasters


def arguments(data, finished, out, *more):
    return [
        "--checkpoint",
        str(finished / "best.pth"),
        "--data",
        str(data),
        "--out",
        str(out),
        "--per-city",
        "2",
        *more,
    ]


def read_table(file):
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def test_figures_of_every_city(data, finished, tmp_path):
    __main__.main(arguments(data, finished, tmp_path, "--save-maps"))
    rows = read_table(tmp_path / "patches.csv")
    assert len(rows) == 6
    assert len({row["patch"] for row in rows}) == 6
    for row in rows:
        assert row["explained"] == row["predicted"]
        assert 0 < float(row["probability"]) <= 1
        with Image.open(tmp_path / row["figure"]) as figure:
            assert figure.width > 1200
        assert (tmp_path / row["figure"]).stat().st_size < 1e6
        assert (tmp_path / f"{row['true']}.jpg").is_file()
    maps = np.load(tmp_path / "maps.npz")
    assert maps["patch"].tolist() == [row["patch"] for row in rows]
    assert maps["logits"].shape == (6, 3)
    assert [maps[f"relevance-cam/layer{i}"].shape for i in (1, 2, 3, 4)] == [
        (6, 8, 8),
        (6, 4, 4),
        (6, 2, 2),
        (6, 1, 1),
    ]
    assert not list(tmp_path.rglob("*.tmp"))


def test_draw_is_seeded(data, finished):
    patch_set = reading.open_split(data, "test_b")
    chosen = saliency.pick_patches(patch_set, 5, 0)
    assert np.array_equal(chosen, saliency.pick_patches(patch_set, 5, 0))
    assert not np.array_equal(chosen, saliency.pick_patches(patch_set, 5, 1))
    assert np.bincount(patch_set.labels[chosen]).tolist() == [5, 5, 5]


def test_fewer_patches_than_asked(data, finished, tmp_path, capsys):
    __main__.main(arguments(data, finished, tmp_path, "--per-city", "1000", "--layers", "layer4"))
    assert "only 20 patches" in capsys.readouterr().out
    assert len(read_table(tmp_path / "patches.csv")) == 60


def test_methods_side_by_side_and_their_quality(data, finished, tmp_path):
    methods = ("relevance-cam", "grad-cam", "grad-cam++", "score-cam")
    flags = ("--per-city", "1", "--layers", "layer1", "--quality", "--methods", *methods)
    __main__.main(arguments(data, finished, tmp_path, *flags))
    assert len(list(tmp_path.rglob("*_methods.jpg"))) == 3
    rows = read_table(tmp_path / "quality.csv")
    assert [(row["method"], row["layer"]) for row in rows] == [
        (method, "layer1") for method in methods
    ]
    for row in rows:
        for key in ("average_drop", "increase", "deletion", "insertion"):
            assert 0 <= float(row[key]) <= 1


def test_target(data, finished, tmp_path):
    __main__.main(arguments(data, finished, tmp_path, "--target", "bbb"))
    assert {row["explained"] for row in read_table(tmp_path / "patches.csv")} == {"Bb (BBB)"}
    classes = ["Almaty (ALA)", "Hong Kong (HKG)", "Nowhere"]
    names = ("ALA", "almaty", "Hong Kong (HKG)", "nowhere")
    assert [cities.find(name, classes) for name in names] == [0, 0, 1, 2]
    with pytest.raises(InputError, match="did you mean Almaty"):
        cities.find("Almatty", classes)


def test_patches_are_drawn_from_the_raster_at_full_size(data, finished, tmp_path):
    patch_set = reading.open_split(data, "test_b")
    assert patch_set.original(0).size == (48, 48)
    assert patch_set.original(0, raw=tmp_path).size == (32, 32)  # the rasters are gone


def test_one_colour_and_constant_maps_have_a_picture(tmp_path):
    picture = Image.new("RGB", (48, 48), "grey")
    maps = {"layer1": torch.zeros(8, 8), "layer2": torch.ones(4, 4)}
    page = panels.patch_figure(picture, maps, "x" * 300, False)
    assert page.width > 800
    values = panels.on_picture(torch.ones(4, 4), picture)
    assert np.asarray(panels.masked(picture, values)).max() == 0


def test_whole_raster(data, finished, tmp_path):
    raster = data.parent / "raw" / "Cc (CCC)" / "site2" / "2020.png"
    __main__.main(arguments(data, finished, tmp_path, "--raster", str(raster), "--save-maps"))
    assert Image.open(tmp_path / "2020_relevance-cam.jpg").width > 2000
    saved = np.load(tmp_path / "2020_relevance-cam.npz")
    assert saved["layer2"].shape == (160, 160)
    assert saved["probability"].shape == (10, 10, 3)
    np.testing.assert_allclose(saved["probability"].sum(-1), 1, atol=1e-5)


def test_fewer_patches_than_before_leave_no_figure_of_before(data, finished, tmp_path):
    __main__.main(arguments(data, finished, tmp_path, "--save-maps"))
    (tmp_path / "Aa (AAA)" / "mine.jpg").write_text("mine")
    __main__.main(arguments(data, finished, tmp_path, "--per-city", "1"))
    figures = {row["figure"] for row in read_table(tmp_path / "patches.csv")}
    sheets = {f"{city}.jpg" for city in ("Aa (AAA)", "Bb (BBB)", "Cc (CCC)")}
    expected = figures | sheets | {"patches.csv", "contents.json", "Aa (AAA)/mine.jpg"}
    assert set(files(tmp_path)) == expected


def test_rasters_of_one_name_have_figures_of_their_own(data, finished, tmp_path):
    flags = ("--layers", "layer4", "--raster")
    rasters = {
        "Aa (AAA)/site0": "2020",
        "Bb (BBB)/site0": "site0_2020",
        "Cc (CCC)/site0": "Cc (CCC)_site0_2020",
    }
    for folder in rasters:
        raster = data.parent / "raw" / folder / "2020.png"
        __main__.main(arguments(data, finished, tmp_path, *flags, str(raster)))
    names = {f"{stem}_relevance-cam.jpg" for stem in rasters.values()}
    raster = data.parent / "raw" / "Bb (BBB)" / "site0" / "2020.png"
    __main__.main(arguments(data, finished, tmp_path, *flags, str(raster), "--target", "AAA"))
    before = files(tmp_path)
    pictures = {path for path in before if ".explorer/" not in path}
    pages = {f"{stem}.html" for stem in rasters.values()}
    assert pictures == {*names, *pages, "contents.json"}
    # The same raster again, explained as another city, replaces its own.
    __main__.main(arguments(data, finished, tmp_path, *flags, str(raster), "--target", "BBB"))
    after = files(tmp_path)
    assert set(after) == set(before)
    changed = {name for name in names if after[name] != before[name]}
    assert changed == {"site0_2020_relevance-cam.jpg"}


def test_more_patches_than_a_sheet_has_room_for(data, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(saliency, "MOST_ON_A_SHEET", 1)
    __main__.main(arguments(data, finished, tmp_path, "--layers", "layer4"))
    assert len(read_table(tmp_path / "patches.csv")) == 6
    with Image.open(tmp_path / "Aa (AAA).jpg") as sheet:
        assert sheet.height < 2 * 180


def blend(method, pixels, prepare):
    """Maps and probabilities by place of a raster, in windows of 32 pixels every 16."""
    grid = rasters.Grid(*pixels.shape[:2], 32, 16)
    strips = (pixels[y : y + 7] for y in range(0, len(pixels), 7))
    batches = rasters.cut_windows(strips, grid.corners(), 32, 8)
    parts = list(rasters.blend(method, batches, grid, prepare, 1))
    maps = {layer: np.concatenate([part.rows[layer] for part in parts]) for layer in parts[0].rows}
    probabilities = np.concatenate([part.probabilities for part in parts])
    return maps, rasters.mean_by_place(grid.corners(), probabilities, grid)


def test_blend_of_one_window_is_its_map():
    def method(images, target):
        return {"layer1": images.mean(1)}, torch.tensor([[0.0, 1.0]]).expand(len(images), 2)

    def prepare(windows):
        return torch.from_numpy(windows).permute(0, 3, 1, 2).float()

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    maps, probability = blend(method, pixels, prepare)
    np.testing.assert_allclose(maps["layer1"], pixels.mean(2), rtol=1e-4)
    # Overlapping windows that agree give the same map again, without seams, also at an edge that
    # is off the step.
    pixels = np.random.default_rng(0).integers(0, 256, (75, 90, 3), dtype=np.uint8)
    maps, probability = blend(method, pixels, prepare)
    np.testing.assert_allclose(maps["layer1"], pixels.mean(2), rtol=1e-4)
    assert probability.shape == (5, 6, 2)


@pytest.mark.parametrize(
    "more, said",
    [
        (["--target", "Atlantis"], "knows no such city"),
        (["--layers", "layer5"], "layer5"),
        (["--methods", "lime"], "invalid choice"),
        (["--per-city", "0"], "at least 1"),
        (["--data", "nowhere"], "no such folder"),
        (["--checkpoint", "nowhere.pth"], "no such file"),
        (["--raster", "nowhere.jpg"], "nowhere.jpg"),
        (["--raster", "nowhere.jpg", "--quality"], "--quality: .* not on a --raster"),
    ],
)
def test_wrong_input(data, finished, tmp_path, more, said):
    with pytest.raises(InputError, match=said) as error:
        __main__.main([*arguments(data, finished, tmp_path / "out"), *more])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_raster_too_small(data, finished, tmp_path):
    Image.new("RGB", (40, 100)).save(tmp_path / "small.png")
    with pytest.raises(InputError, match="smaller than a patch of 48"):
        __main__.main(
            [*arguments(data, finished, tmp_path / "out"), "--raster", str(tmp_path / "small.png")]
        )
