"""Published test patches found again among the windows of a patch set."""

import numpy as np
import pytest
from conftest import as_flags, picture
from PIL import Image

import preprocessing
from dl_slicer.patch_sets.reading import open_split
from dl_slicer.results import authors_models, known_patches

PATCH = 192
STRIDE = 96
SIZE = (1280, 560)  # of a raster: the left half of it has 5 x 4 windows, the whole 12 x 4
CITIES = ("Aa (AAA)", "Bb (BBB)")
FLAGS = {"--patch-size": PATCH, "--stride": STRIDE, "--image-size": 112, "--workers": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A patch set of three sites a city, and the folder of its rasters."""
    root = tmp_path_factory.mktemp("known")
    for i, city in enumerate(CITIES):
        for j in range(3):
            folder = root / "raw" / city / f"site{j}"
            folder.mkdir(parents=True)
            picture(*SIZE, seed=10 * i + j).save(folder / "2020.jpg", quality=92)
    folders = {"--raw": root / "raw", "--out": root / "set", "--test-b": 20}
    preprocessing.main(as_flags({**folders, **FLAGS}))
    return root / "raw", root / "set"


def publish(raw, out, site="site2", shift=0, most=20):
    """Windows of a site's left half, compressed again as the published script does."""
    for city in CITIES:
        (out / "test_b" / city).mkdir(parents=True, exist_ok=True)
        with Image.open(raw / city / site / "2020.jpg") as raster:
            for number in range(most):
                row, col = divmod(number, 5)
                x, y = col * STRIDE + shift, row * STRIDE + shift
                patch = raster.convert("RGB").crop((x, y, x + PATCH, y + PATCH))
                name = f"{site}_half1_{number}.jpg"
                patch.save(out / "test_b" / city / name, quality=75 + number)
    return out


def find(processed, data):
    train, test = open_split(data, "train"), open_split(data, "test")
    return known_patches.find_published(processed, train, test)


def test_patches_of_test_are_found_there_and_nowhere_else(made, tmp_path, capsys):
    raw, data = made
    processed = publish(raw, tmp_path)
    found = find(processed, data)
    assert found.looked_for == dict.fromkeys(CITIES, 20)
    assert found.in_test == dict.fromkeys(CITIES, 20)
    assert found.in_train == {}
    assert found.is_held_out
    assert authors_models.words_of_set(processed, data) == "test_b of this set"
    said = capsys.readouterr().out
    assert "of 40 published test patches 40 are among the test windows (at least 20 a city)" in said


def test_fewer_than_twenty_of_a_city_are_not_enough(made, tmp_path):
    raw, data = made
    processed = publish(raw, tmp_path)
    (processed / "test_b" / CITIES[1] / "site2_half1_7.jpg").unlink()
    assert find(processed, data).in_test == {CITIES[0]: 20, CITIES[1]: 19}
    words = authors_models.words_of_set(processed, data)
    assert words == "test_b of this set; test sites may have been in its training"


def test_one_patch_among_train_is_enough_to_warn(made, tmp_path):
    raw, data = made
    processed = publish(raw, tmp_path)
    publish(raw, processed, site="site0", most=1)
    found = find(processed, data)
    assert found.in_test == dict.fromkeys(CITIES, 20)
    assert found.in_train == dict.fromkeys(CITIES, 1)
    assert not found.is_held_out


@pytest.mark.parametrize("shift", [1, STRIDE // 2])
def test_what_lies_between_the_windows_is_not_found(made, tmp_path, shift):
    raw, data = made
    found = find(publish(raw, tmp_path, shift=shift), data)
    assert sum(found.looked_for.values()) == 40
    assert found.in_test == dict.fromkeys(CITIES, 0)
    assert found.in_train == {}


def test_water_is_not_looked_for(made, tmp_path):
    raw, data = made
    processed = publish(raw, tmp_path)
    rng = np.random.default_rng(0)
    for number in range(60):
        pixels = (40, 60, 80) + rng.integers(-3, 4, (PATCH, PATCH, 1))
        pixels[:, : number % 2 * PATCH // 3] = 200  # and a straight shore is no detail
        water = Image.fromarray(pixels.astype(np.uint8))
        water.save(processed / "test_b" / CITIES[0] / f"a_{number}.jpg")
    assert find(processed, data).looked_for == dict.fromkeys(CITIES, 20)


def test_without_detail_nothing_is_found(made, tmp_path):
    _, data = made
    for city in CITIES:
        (tmp_path / "test_b" / city).mkdir(parents=True)
        Image.new("RGB", (PATCH, PATCH)).save(tmp_path / "test_b" / city / "a_half1_0.jpg")
    found = find(tmp_path, data)
    assert found.looked_for == dict.fromkeys(CITIES, 0)
    assert not found.is_held_out


@pytest.mark.parametrize(("side", "cells", "cell"), [(224, 16, 14), (28, 14, 2), (9, 9, 1)])
def test_a_fingerprint_is_the_means_of_cells(side, cells, cell):
    images = np.random.default_rng(side).integers(0, 256, (2, side, side, 3), np.uint8)
    found = known_patches.fingerprints(images)
    assert found.shape == (2, cells, cells, 3)
    for row, col in ((0, 0), (2, 5), (cells - 1, cells - 1)):
        part = images[1, row * cell : (row + 1) * cell, col * cell : (col + 1) * cell]
        np.testing.assert_allclose(found[1, row, col], part.mean((0, 1)), rtol=1e-5)


def test_blocks_do_not_change_what_is_found(made, tmp_path, monkeypatch):
    raw, data = made
    processed = publish(raw, tmp_path)
    monkeypatch.setattr(known_patches, "BLOCK", 7)
    assert find(processed, data).in_test == dict.fromkeys(CITIES, 20)


def test_published_patches_are_measured_where_there_are_some_of_every_city(made, tmp_path):
    raw, data = made
    processed = publish(raw, tmp_path / "processed", most=1)
    choose = authors_models.choose_test_patches
    assert choose(processed, data) == (processed, "test_b", "published test_b")
    (processed / "train" / "Cc (CCC)").mkdir(parents=True)
    warned = (data, "test_b", "test_b of this set; test sites may have been in its training")
    assert choose(processed, data) == warned
    assert choose(None, data) == warned
    assert choose(tmp_path / "nowhere", data) == warned
