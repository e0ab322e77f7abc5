"""What is kept of each raster: the sums, written and read back, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dl_slicer.cli import InputError
from dl_slicer.results import raster_sums, tables

PATCHES = 40
NAMES = ["north.jpg", "south.jpg", "odd\udcff name.jpg"]


def predictions(rasters=None, seed=0):
    """Predictions of 40 patches of three cities, of which the last has none."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(PATCHES, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return tables.Predictions(
        classes=["Aa (A)", "Bb (B)", "Cc (C)"],
        names=[f"{i}" for i in range(PATCHES)],
        rasters=rasters or [NAMES[i % 3] for i in range(PATCHES)],
        true=np.arange(PATCHES) // 25,
        probabilities=probabilities.astype(np.float32),
        features=rng.normal(5, 1, (PATCHES, 7)).astype(np.float32),
    )


def test_sums_are_those_of_the_patches_of_each_raster():
    given = predictions()
    sums = raster_sums.collect(given)
    assert sums.rasters_of_cities().tolist() == [3, 3, 0]
    for m, raster in enumerate(sums.rasters):
        own = [
            i
            for i in range(PATCHES)
            if given.rasters[i] == raster and given.true[i] == sums.city[m]
        ]
        assert sums.patches[m] == len(own) > 0
        for city in range(3):
            taken_for_it = sum(given.probabilities[i].argmax() == city for i in own)
            assert sums.confusion[m, city] == taken_for_it
        expected = sum(given.features[i].astype(float) for i in own)
        np.testing.assert_allclose(sums.features[m], expected, rtol=1e-6)
        expected = sum(given.probabilities[i].astype(float) for i in own)
        np.testing.assert_allclose(sums.probabilities[m], expected, rtol=1e-12)
    np.testing.assert_array_equal(sums.of_cities(sums.confusion), given.confusion_matrix())


def test_what_is_written_is_read_back_and_the_bytes_are_the_same_each_time(tmp_path):
    sums = raster_sums.collect(predictions())
    sums.save(tmp_path / "one.npz")
    sums.save(tmp_path / "two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    back = raster_sums.load(tmp_path / "one.npz")
    assert (back.classes, back.rasters) == (sums.classes, sums.rasters)
    for name in ("city", "patches", "confusion", "probabilities", "features"):
        np.testing.assert_array_equal(getattr(back, name), getattr(sums, name))


def test_patches_of_unknown_rasters_are_kept_in_groups():
    given = predictions(rasters=[f"{i}" for i in range(PATCHES)])
    one_by_one = raster_sums.collect(given)
    assert one_by_one.rasters_of_cities().tolist() == [25, 15, 0]
    merged = raster_sums.merge_many(one_by_one, most=10)
    assert merged.rasters_of_cities().tolist() == [10, 10, 0]
    assert merged.patches.sum() == PATCHES
    assert set(merged.patches.tolist()) == {1, 2, 3}
    for name in ("confusion", "probabilities", "features"):
        whole = one_by_one.of_cities(getattr(one_by_one, name))
        np.testing.assert_allclose(merged.of_cities(getattr(merged, name)), whole, rtol=1e-5)


def write_parts(path, sums, names=None, save=np.savez, **changed):
    """raster_sums.npz, with some of its parts replaced; None leaves one out."""
    names = names or {"classes": sums.classes, "rasters": sums.rasters}
    parts = {
        "names": np.frombuffer(json.dumps(names).encode(), np.uint8),
        **{name: getattr(sums, name) for name in ("city", "patches", "confusion")},
        **{name: getattr(sums, name) for name in ("probabilities", "features")},
        **changed,
    }
    save(path, **{name: part for name, part in parts.items() if part is not None})


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"features": None}, "it has no features"),
        ({"features": np.full((6, 7), np.nan)}, "features: no finite numbers"),
        ({"features": np.zeros((5, 7))}, r"features: shape \(5, 7\)"),
        ({"city": np.full(6, 3)}, "out of range"),
        ({"city": np.zeros(6)}, "city: no whole numbers"),
        ({"patches": np.zeros(6, int)}, "out of range"),
        ({"confusion": np.zeros((6, 3), int)}, "does not sum up"),
        ({"probabilities": np.array([{}] * 6)}, "pickle"),
        ({"names": {"classes": [1, 2, 3], "rasters": list("abcdef")}}, "no texts"),
        ({"names": {"classes": ["A"]}}, "it has no rasters"),
        ({"save": np.savez_compressed}, "compressed"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, changes, reason):
    path = tmp_path / "raster_sums.npz"
    write_parts(path, raster_sums.collect(predictions()), **changes)
    with pytest.raises(InputError, match=reason) as refused:
        raster_sums.load(path)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(str(path))


def test_a_cut_or_missing_file_is_refused(tmp_path):
    path = tmp_path / "raster_sums.npz"
    with pytest.raises(InputError, match="not there"):
        raster_sums.load(path)
    raster_sums.collect(predictions()).save(path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match="run it again"):
        raster_sums.load(path)


def test_no_patches_at_all():
    given = predictions()
    nothing = replace(
        given, names=[], rasters=[], true=given.true[:0], probabilities=given.probabilities[:0]
    )
    nothing.features = given.features[:0]
    assert raster_sums.collect(nothing).rasters_of_cities().tolist() == [0, 0, 0]
