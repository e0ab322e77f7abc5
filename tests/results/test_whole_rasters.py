"""Answers for whole rasters: files that a GIS opens, layers of an explorer, few rows at a time."""

import json
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
import torchvision
from affine import Affine
from conftest import files, picture, write_geotiff
from PIL import Image
from rasterio.crs import CRS
from rasterio.warp import transform as to_system
from tqdm import tqdm

from dl_slicer import cities
from dl_slicer.cli import InputError
from dl_slicer.model import checkpoints
from dl_slicer.patch_sets import rasters as reading
from dl_slicer.results import geotiffs, place_polygons, places, raster_saliency, raster_windows
from dl_slicer.results.familiar_places import Places
from dl_slicer.results.result_folder import Call
from relevance_cam import rasters
from test_classification import write_explorers

CHECKPOINT = checkpoints.Checkpoint(
    model={},
    arch=None,
    classes=["Red (RED)", "Grün & <Blau> (GRN)", "Blue (BLU)"],
    image_size=28,
    patch_size=48,
    stride=24,
    mean=[0.5] * 3,
    std=[0.25] * 3,
)
CPU = torch.device("cpu")
STEP = 14  # of the windows, in the network's pixels

# A raster of 250 x 170 pixels, turned by 20 degrees: 9 x 6 windows of 48 pixels every 24.
TURNED = Affine.translation(500_000, 4_000_000) * Affine.rotation(20) * Affine.scale(4, -4)
COVERED = (240, 168)


class ByColour(torch.nn.Module):
    """Says city 0, 1 or 2 by what is strongest in a patch: red, green or blue."""

    def forward(self, images):
        return images.mean((2, 3)) * 20


class Brightness:
    """A method whose maps are the image: of "fine" each pixel, of "coarse" every fourth."""

    layers = ("fine", "coarse")
    model = ByColour()

    def __call__(self, images, target):
        grey = images.mean(1)
        return {"fine": grey, "coarse": grey[:, ::4, ::4]}, self.model(images)


def halves(width=250, height=170):
    """Left red, right green; without data (black) in the upper left corner."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 200
    pixels[:, width // 2 :, 1] = 200
    pixels[:60, :60] = 0
    return pixels


def compare(out, *paths, checkpoint=CHECKPOINT, finish=write_explorers):
    call = Call(out, "test_classification.py --images", {}, "places.csv", finish=finish)
    classes = checkpoint.classes
    places.compare(paths, ByColour(), checkpoint, classes, CPU, torch.float32, call)


def explain(out, path, checkpoint=CHECKPOINT, methods=("fake",), save_maps=True):
    call = Call(out, "relevance_cam", {}, "patches.csv", finish=write_explorers)
    wanted = raster_saliency.Wanted(target=None, save_maps=save_maps, plain=False)
    methods = {name: Brightness() for name in methods}
    raster_saliency.explain_raster(path, methods, checkpoint, CPU, call, wanted)


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A turned raster with a gap, placed and explained: the folders of the input and results."""
    root = tmp_path_factory.mktemp("answered")
    write_geotiff(root / "in" / "turned.tif", halves(), transform=TURNED, nodata=0)
    compare(root / "out", root / "in" / "turned.tif")
    explain(root / "out", root / "in" / "turned.tif")
    return root


def read(path):
    with rasterio.open(path) as dataset:
        facts = {"names": dataset.descriptions, "layout": dataset.tags(ns="IMAGE_STRUCTURE")}
        return dataset.read(), dataset.profile, facts


def test_geotiffs_lie_on_the_raster_that_the_network_saw(answered):
    grids = {"places": (7, 10), "certainty": (7, 10), "probabilities": (7, 10), "fake": (24, 35)}
    for kind, (rows, cols) in grids.items():
        values, profile, facts = read(answered / "out" / f"turned.{kind}.tif")
        assert values.shape[1:] == (rows, cols)
        assert profile["crs"] == CRS.from_epsg(32611)
        assert facts["layout"]["LAYOUT"] == "COG"
        # Corners in pixels of the raster: of the covered area, and to a tenth.
        cell = 24 if rows == 7 else 4 * 48 / 28
        corner = ~TURNED * (profile["transform"] * (0, 0))
        opposite = ~TURNED * (profile["transform"] * (cols, rows))
        assert np.abs(corner).max() < 1e-6
        np.testing.assert_allclose(opposite, (cols * cell, rows * cell), atol=1e-6)
        assert -1e-6 < COVERED[0] - opposite[0] < cell
        assert -1e-6 < COVERED[1] - opposite[1] < cell


def test_places_have_the_colours_and_names_of_cities(answered):
    values, profile, _ = read(answered / "out" / "turned.places.tif")
    assert (profile["dtype"], profile["nodata"]) == ("uint8", 255)
    best = values[0]
    assert (best[3:, :4] == 0).all()
    assert (best[:, 6:] == 1).all()
    # The gap is 60 pixels wide: a window at 48 and 48 lacks a sixteenth of its pixels.
    assert (best[:3, :3] == 255).all()
    assert (best != 255).sum() == best.size - 9
    with rasterio.open(answered / "out" / "turned.places.tif") as dataset:
        colours = dataset.colormap(1)
    assert [colours[number][:3] for number in range(3)] == [cities.colour(k) for k in range(3)]
    aside = (answered / "out" / "turned.places.tif.aux.xml").read_text(encoding="utf-8")
    assert "<Category>Red (RED)</Category><Category>Grün &amp; &lt;Blau&gt; (GRN)<" in aside


def test_probabilities_and_certainty_say_the_same(answered):
    shares, profile, facts = read(answered / "out" / "turned.probabilities.tif")
    assert facts["names"] == tuple(CHECKPOINT.classes)
    best = read(answered / "out" / "turned.places.tif")[0][0]
    certainty = read(answered / "out" / "turned.certainty.tif")[0][0]
    has_data = best != 255
    assert np.isnan(profile["nodata"])
    assert (np.isnan(shares).all(0) == ~has_data).all()
    np.testing.assert_allclose(shares[:, has_data].sum(0), 1, atol=1e-6)
    assert (shares.argmax(0)[has_data] == best[has_data]).all()
    np.testing.assert_allclose(certainty[has_data], 100 * shares.max(0)[has_data], atol=0.5)
    assert (certainty[~has_data] == 255).all()


def test_polygons_say_in_degrees_what_the_places_say(answered):
    content = json.loads((answered / "out" / "turned.places.geojson").read_text())
    best = read(answered / "out" / "turned.places.tif")[0][0]
    shares, profile, _ = read(answered / "out" / "turned.probabilities.tif")
    assert len(content["features"]) == (best != 255).sum()
    for feature in content["features"]:
        facts = feature["properties"]
        row, col = facts["row"], facts["col"]
        assert facts["city_1"] == CHECKPOINT.classes[best[row, col]]
        assert facts["share_1"] == pytest.approx(shares[:, row, col].max(), abs=1e-6)
        assert facts["code_3"] in ("RED", "GRN", "BLU")
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        longitudes, latitudes = np.transpose(ring)
        turns = longitudes[:-1] * latitudes[1:] - longitudes[1:] * latitudes[:-1]
        assert turns.sum() > 0  # counter-clockwise
        xs, ys = to_system("EPSG:4326", "EPSG:32611", longitudes[:4], latitudes[:4])
        middle = ~profile["transform"] * (np.mean(xs), np.mean(ys))
        np.testing.assert_allclose(middle, (col + 0.5, row + 0.5), atol=0.01)


def test_maps_lie_where_the_pixels_are(tmp_path):
    """Cells are means of the network's pixels, and a coarse map lies on the fine one."""
    ramp = np.repeat(np.linspace(0, 255, 240).astype(np.uint8)[None], 168, 0)
    pixels = np.stack([ramp, ramp, ramp], 2)
    path = write_geotiff(tmp_path / "ramp.tif", pixels)
    explain(tmp_path / "out", path)
    cells, _, facts = read(tmp_path / "out" / "ramp.fake.tif")
    assert facts["names"] == ("fine", "coarse")
    maps = np.load(tmp_path / "out" / "ramp_fake.npz")
    assert maps["fine"].shape == (98, 140)
    means = maps["fine"][:96].reshape(24, 4, 35, 4).mean((1, 3))
    np.testing.assert_allclose(cells[0], means, rtol=1e-5, atol=1e-5)
    # 140 of the network's pixels are 240 of the raster.
    seen = np.asarray(Image.fromarray(pixels).resize((140, 98), Image.Resampling.BILINEAR))
    expected = (seen.mean(2) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(maps["fine"], expected, atol=1e-4)
    # Beyond its last pixel a window's coarse map is constant, where it counts little; a plain
    # resize is off by a pixel and a half.
    pixel = expected[0, 70] - expected[0, 69]
    inner = np.abs(maps["coarse"] - expected)[:, 14:-14]
    assert inner.max() < 0.6 * pixel


def test_where_there_is_no_data_there_is_no_map(answered):
    cells = read(answered / "out" / "turned.fake.tif")[0]
    without = np.isnan(cells).all(0)
    assert without[:9, :9].all()
    assert without.sum() < 12**2
    assert (np.isnan(cells).any(0) == without).all()


def test_the_explorer_has_the_layers_of_both_commands(answered):
    out = answered / "out"
    explorer = json.loads((out / "turned.explorer" / "explorer.json").read_text())
    assert (explorer["width"], explorer["height"]) == COVERED
    assert (explorer["rows"], explorer["cols"], explorer["cell"]) == (7, 10, 24)
    assert explorer["metres_a_pixel"] == pytest.approx(4, rel=1e-3)
    assert explorer["colours"][0] == "#1f77b4"
    assert explorer["no_data"] == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    shares = np.fromfile(out / "turned.explorer" / "shares.u8", np.uint8).reshape(7, 10, 3)
    probabilities = np.nan_to_num(read(out / "turned.probabilities.tif")[0])
    np.testing.assert_allclose(shares / 255, probabilities.transpose(1, 2, 0), atol=0.003)
    with Image.open(out / "turned.explorer" / "raster.jpg") as drawn:
        assert drawn.size == COVERED
    layers = explorer["saliency"]["fake"]["layers"]
    assert list(layers) == ["fine", "coarse"]
    with Image.open(out / "turned.explorer" / layers["coarse"]) as grey:
        assert (grey.mode, grey.size) == ("L", (140, 98))
    assert "turned.tif" in (out / "turned.html").read_text()


def contents(out):
    return json.loads((out / "contents.json").read_text())["commands"]


def test_two_commands_share_an_explorer_and_lose_nothing(tmp_path):
    """Each keeps the other's layers; what another lists stays when one makes it no more."""
    out = tmp_path / "out"
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    for seed, path in enumerate((first, second)):
        picture(120, 100, seed).save(path)
    compare(out, first)
    explain(out, first, save_maps=False)
    compare(out, first, second)
    layers = json.loads((out / "first.explorer" / "explorer.json").read_text())
    assert list(layers["saliency"]) == ["fake"]
    assert (out / "first.explorer" / "fake.fine.png").is_file()
    compare(out, second)
    left = files(out)
    assert {"first.html", "second.html", "first_fake.jpg", "second.jpg"} <= set(left)
    assert "first.jpg" not in left
    layers = json.loads((out / "first.explorer" / "explorer.json").read_text())
    named = {layers["picture"], layers["shares"], *layers["saliency"]["fake"]["layers"].values()}
    assert {f"first.explorer/{name}" for name in named} <= set(left)
    listed = {name for entry in contents(out).values() for name in entry["files"]}
    assert listed == set(left) - {"contents.json"}
    # Other methods replace those of before.
    explain(out, first, methods=("other",), save_maps=False)
    layers = json.loads((out / "first.explorer" / "explorer.json").read_text())
    assert list(layers["saliency"]) == ["other"]
    assert "first.explorer/fake.fine.png" not in files(out)


def test_an_explorer_of_another_raster_or_of_other_people_is_left_alone(tmp_path):
    out = tmp_path / "out"
    for folder in "ab":
        (tmp_path / folder).mkdir()
        picture(120, 100).save(tmp_path / folder / "2020.png")
    (out / "b_2020.explorer").mkdir(parents=True)
    (out / "b_2020.explorer" / "notes.txt").write_text("mine")
    compare(out, tmp_path / "a" / "2020.png")
    explain(out, tmp_path / "b" / "2020.png", save_maps=False)
    name = f"{tmp_path.name}_b_2020"
    explorer = json.loads((out / f"{name}.explorer" / "explorer.json").read_text())
    assert explorer["raster"] == str(tmp_path / "b" / "2020.png")
    assert (out / "2020.html").is_file()
    compare(out, tmp_path / "b" / "2020.png")  # finds it by the raster, whatever is free
    assert files(out / "b_2020.explorer") == {"notes.txt": b"mine"}
    explorer = json.loads((out / f"{name}.explorer" / "explorer.json").read_text())
    assert list(explorer["saliency"]) == ["fake"]


def test_a_killed_call_harms_no_explorer(tmp_path):
    out = tmp_path / "out"
    picture(120, 100).save(tmp_path / "one.png")
    explain(out, tmp_path / "one.png", save_maps=False)
    before = files(out)

    def killed(new):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(out, tmp_path / "one.png", finish=killed)
    assert files(out) == before


def test_a_raster_without_georeference_has_a_figure_and_a_page_but_no_files_for_a_gis(tmp_path):
    picture(120, 100).save(tmp_path / "one.png")
    compare(tmp_path / "out", tmp_path / "one.png")
    made = {name for name in files(tmp_path / "out") if ".explorer/" not in name}
    assert made == {"contents.json", "one.html", "one.jpg", "places.csv"}


def test_more_cities_than_a_byte_counts(tmp_path):
    cells = geotiffs.Cells(2, 3, Affine.scale(10, -10), "EPSG:32611")
    by_place = np.full((2, 3, 300), np.nan)
    by_place[0] = 0
    by_place[0, :, 299] = 1
    names = [f"City {number}" for number in range(300)]
    geotiffs.write_places(tmp_path, "many", cells, Places(by_place), names)
    values, profile, _ = read(tmp_path / "many.places.tif")
    assert (profile["dtype"], profile["nodata"]) == ("uint16", 65535)
    assert values[0].tolist() == [[299] * 3, [65535] * 3]
    assert "City 299" in (tmp_path / "many.places.tif.aux.xml").read_text()
    assert not list(tmp_path.glob("*.plain"))


def test_a_polygon_across_the_date_line_is_cut():
    ring = [(179.9, 10.0), (-179.9, 10.0), (-179.9, 10.2), (179.9, 10.2)]
    cut = place_polygons.geometry(ring)
    assert cut["type"] == "MultiPolygon"
    (east,), (west,) = cut["coordinates"]
    assert {tuple(point) for point in east} == {(179.9, 10), (180, 10), (180, 10.2), (179.9, 10.2)}
    assert {tuple(point) for point in west} == {
        (-180, 10),
        (-179.9, 10),
        (-179.9, 10.2),
        (-180, 10.2),
    }


def look(path, checkpoint=CHECKPOINT):
    return raster_windows.open_raster(path, checkpoint)


def test_windows_are_those_of_the_raster_resized_whole(tmp_path):
    """Read in strips, batch by batch, with a bar that counts megapixels of the raster."""
    picture(251, 172).save(tmp_path / "one.png")
    with look(tmp_path / "one.png") as seen, tqdm(disable=True) as bar:
        counted = []
        bar.update = counted.append
        batches = list(seen.batches(7, bar))
        whole = Image.open(tmp_path / "one.png").resize((146, 100), Image.Resampling.BILINEAR)
    assert seen.grid == rasters.Grid(100, 146, 28, STEP)
    corners = [corner for corners, _ in batches for corner in corners]
    assert corners == seen.grid.corners()
    pixels = np.asarray(whole)
    for (y, x), window in zip(corners, np.concatenate([w for _, w in batches]), strict=True):
        np.testing.assert_array_equal(window, pixels[y : y + 28, x : x + 28])
    assert sum(counted) == pytest.approx(251 * 172 / 1e6)


def test_no_more_rows_are_read_than_a_row_of_windows_needs():
    taken = []

    def strips():
        for number in range(1000):
            taken.append(number)
            yield np.full((10, 100, 3), number % 256, np.uint8)

    grid = rasters.Grid(10_000, 100, 28, STEP)
    batches = rasters.cut_windows(strips(), grid.corners(), grid.size, 4)

    def prepare(windows):
        return torch.from_numpy(windows).permute(0, 3, 1, 2).float()

    finished = 0
    for part in rasters.blend(Brightness(), batches, grid, prepare, 0):
        finished += len(part.rows["fine"])
        if part.corners:
            lowest = part.corners[-1][0]
            assert 10 * len(taken) < lowest + grid.size + 10
            assert finished == lowest
    assert finished == 10_000


def test_the_picture_of_a_large_raster_is_made_of_what_the_network_saw(tmp_path, monkeypatch):
    picture(250, 170).save(tmp_path / "one.png")
    with look(tmp_path / "one.png") as seen:
        expected = np.asarray(seen.picture, float)
    monkeypatch.setattr(raster_windows, "THUMBNAIL", 50)
    with look(tmp_path / "one.png") as seen, tqdm(disable=True) as bar:
        list(seen.batches(7, bar))
        monkeypatch.setattr(seen.raster, "thumbnail", None)
        found = seen.picture
    assert found.size == (49, 33)
    whole = Image.fromarray(expected.astype(np.uint8)).resize(found.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(found, float) - np.asarray(whole, float)).mean() < 8


def test_large_rasters_end_with_the_last_whole_window(tmp_path, monkeypatch):
    """Else their heights could have no common divisor with ours, and strips would be the whole."""
    picture(251, 172).save(tmp_path / "one.png")
    with look(tmp_path / "one.png") as seen:
        assert (seen.width, seen.height) == (251, 172)
    monkeypatch.setattr(reading, "WHOLE", 40_000)
    with look(tmp_path / "one.png") as seen:
        assert (seen.width, seen.height) == (240, 168)


def test_a_raster_is_seen_at_the_ground_resolution_of_training(tmp_path, capsys):
    trained = replace(CHECKPOINT, ground_resolution=4.0)
    path = write_geotiff(tmp_path / "fine.tif", picture(400, 300), metres=2.0)
    with look(path, trained) as seen:
        assert seen.raster.metres_a_pixel == 4
        assert (seen.width, seen.height) == (192, 144)  # of 200 x 150
    picture(120, 100).save(tmp_path / "plain.png")
    compare(tmp_path / "out", tmp_path / "plain.png", checkpoint=trained)
    said = capsys.readouterr().out
    assert "plain.png: has no georeference: taken to have 4 m a pixel, as in training" in said
    with pytest.raises(
        InputError, match=r"plain\.png: has no georeference, and the checkpoint was"
    ):
        explain(tmp_path / "out", tmp_path / "plain.png", trained)


def test_a_raster_of_another_ground_resolution_is_said(tmp_path, capsys):
    path = write_geotiff(tmp_path / "fine.tif", picture(120, 100), metres=2.0)
    compare(tmp_path / "out", path)
    assert "fine.tif: its patches are 95.99 m wide, published ones 200 m" in capsys.readouterr().out
    compare(tmp_path / "out", path, checkpoint=replace(CHECKPOINT, metres_a_pixel=2.0))
    assert "wide" not in capsys.readouterr().out


def test_auto_stretch_is_the_range_of_what_is_covered(tmp_path):
    values = np.zeros((100, 130, 3), np.uint16)
    values[:96, :120] = np.linspace(1000, 2000, 120)[None, :, None]
    values[:, 120:] = 60_000
    path = write_geotiff(tmp_path / "deep.tif", values)
    with look(path, replace(CHECKPOINT, stretch="auto")) as seen:
        assert (seen.width, seen.height) == (120, 96)
        pixels = seen.raster.read(0, 0, 120, 96)
    assert pixels.min() == 0
    assert pixels.max() == 255
    assert 100 < np.median(pixels) < 155


def test_a_raster_without_any_data_is_one_line(tmp_path):
    path = write_geotiff(tmp_path / "empty.tif", np.zeros((100, 120, 3), np.uint8), nodata=0)
    with pytest.raises(InputError, match=r"empty\.tif: no patch of it has data"):
        compare(tmp_path / "out", path)
    assert not (tmp_path / "out").exists()


class Difference:
    """What a square planted in a raster changes in layer4 of a ResNet, window by window."""

    layers = ("layer4",)

    def __init__(self, model, windows):
        self.stages = torch.nn.Sequential(*list(model.children())[:-2])
        self.windows = iter(windows)  # without the square

    @torch.inference_mode()
    def __call__(self, images, target):
        maps = torch.zeros(len(images), 7, 7)
        for number, image in enumerate(images):
            before = next(self.windows)
            if not torch.equal(image, before):
                pair = self.stages(torch.stack([image, before]))
                maps[number] = (pair[0] - pair[1]).abs().sum(0)
        return {"layer4": maps}, torch.zeros(len(images), 2)


def test_a_planted_square_is_found_where_it_lies(tmp_path):
    """Within a quarter of a pixel of layer4, wherever among the windows it lies."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    trained = replace(CHECKPOINT, image_size=224, patch_size=224, stride=112)
    plain = np.asarray(picture(672, 672))
    rng = np.random.default_rng(0)

    def prepare(windows):
        return (torch.from_numpy(windows).permute(0, 3, 1, 2).float() - 128) / 64

    def open_windows(pixels):
        Image.fromarray(pixels).save(tmp_path / "one.png")
        with look(tmp_path / "one.png", trained) as seen, tqdm(disable=True) as bar:
            seen = seen.denser()
            return seen.grid, list(seen.batches(8, bar))

    _, before = open_windows(plain)
    windows = [image for _, pixels in before for image in prepare(pixels)]
    for x, y in rng.integers(236, 436, (3, 2)):
        planted = plain.copy()
        planted[y - 12 : y + 12, x - 12 : x + 12] = 255
        grid, batches = open_windows(planted)
        parts = rasters.blend(Difference(model, windows), batches, grid, prepare, 0)
        found = np.concatenate([part.rows["layer4"] for part in parts])
        rows, columns = np.indices(found.shape)
        at = np.array([(found * columns).sum(), (found * rows).sum()]) / found.sum()
        assert np.abs(at - (x - 0.5, y - 0.5)).max() < 8
