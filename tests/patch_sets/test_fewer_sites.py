"""Patch sets that have all of another one but some train sites."""

import os

import pytest
from conftest import files, make_raw

from dl_slicer.patch_sets import on_disk, reading
from dl_slicer.patch_sets.fewer_sites import limit_train_sites

CITIES = ("Aa (AAA)", "Bb (BBB)")


def names(root, split):
    patches = reading.open_split(root, split)
    return {patches.name(i) for i in range(len(patches))}


def sites(root):
    """{city: its train sites}."""
    patches = reading.open_split(root, "train")
    found = {city: set() for city in CITIES}
    for i in range(len(patches)):
        found[CITIES[patches.labels[i]]].add(patches.site(i))
    return found


@pytest.fixture
def source(preprocess, tmp_path):
    """Four train sites in the first city, one in the second."""
    raw = make_raw(tmp_path / "raw", sites=5)
    for site in ("site2", "site3", "site4"):
        (raw / CITIES[1] / site / "2020.png").unlink()
    return preprocess()


def test_train_sites_are_fewer_and_all_else_is_the_same(source, tmp_path):
    chosen = {}
    for most in (1, 2, 3):
        out = tmp_path / f"curve_{most}" / "patches"
        limit_train_sites(source, out, most, seed=0)
        chosen[most] = sites(out)
        assert {city: len(of_city) for city, of_city in chosen[most].items()} == {
            CITIES[0]: most,
            CITIES[1]: 1,
        }
        assert names(out, "train") < names(source, "train")
        for split in ("val", "test", "test_b", "held-out"):
            assert names(out, split) == names(source, split)
        assert reading.open_split(out, "test").original(0).size == (48, 48)
    assert chosen[1][CITIES[0]] < chosen[2][CITIES[0]] < chosen[3][CITIES[0]]
    others = []
    for seed in range(1, 9):
        limit_train_sites(source, tmp_path / "other", 1, seed)
        others.append(sites(tmp_path / "other")[CITIES[0]])
    assert any(other != chosen[1][CITIES[0]] for other in others)


def test_what_a_killed_call_left_is_made_anew(source, tmp_path, monkeypatch):
    out = tmp_path / "curve_1" / "patches"
    limit_train_sites(source, out, 1, seed=0)
    before = files(out)
    (region, *_) = on_disk.load_regions(out)
    (out / region.file).unlink()
    (out / region.file).write_bytes(b"half of it")
    (out / "regions.csv").unlink()
    monkeypatch.setattr(os, "link", refuse)  # as a file system without links does
    limit_train_sites(source, out, 1, seed=0)
    assert files(out) == before
    assert not os.path.samefile(out / region.file, source / region.file)


def refuse(*_):
    raise OSError
