"""Sites by place: cities whose rasters lie directly in their folder, and how far sites lie."""

import csv
import json
import shutil

import numpy as np
import pytest
from conftest import METRES, files, make_geotiffs, picture, write_geotiff
from preprocessing_runs import changed_by, refused

from dl_slicer.patch_sets import on_disk, reading, sites

CITY = "Cc (CCC)"


def place(raw, name, right, down, size=(150, 110), **options):
    """A raster of CITY so many metres east and south of a corner."""
    options.setdefault("corner", (400_000 + right, 4_100_000 - down))
    seed = sum(map(ord, name))
    return write_geotiff(raw / CITY / f"{name}.tif", picture(*size, seed=seed), **options)


@pytest.fixture
def raw(tmp_path):
    """Two cities with site folders, and CITY with three clusters of two and of three rasters."""
    raw = make_geotiffs(tmp_path / "raw")
    for name, right, down in (
        ("a", 0, 0),
        ("b", 1500, 200),
        ("c", 20_000, 300),
        ("d", 21_500, 0),
        ("e", 10_000, 15_000),
        ("f", 11_000, 16_000),
    ):
        place(raw, name, right, down)
    return raw


def sites_of(out):
    with open(out / "sites.csv", newline="", encoding="utf-8") as file:
        return {row["raster"][len(CITY) + 1 : -4]: row["site"] for row in csv.DictReader(file)}


def test_a_city_gets_its_sites_by_place(raw, preprocess, capsys):
    out = preprocess("--sites", 3, "--jpegs")
    found = sites_of(out)
    assert found["a"] == found["b"]
    assert found["c"] == found["d"]
    assert found["e"] == found["f"]
    assert sorted(set(found.values())) == ["site_1", "site_2", "site_3"]
    regions = [region for region in on_disk.load_regions(out) if region.city == CITY]
    for region in regions:
        assert region.site == found[region.raster[len(CITY) + 1 : -4]]
        assert (region.split == "train") is (region.site != "site_3")
        assert region.region == f"{region.raster[:-4]}.{region.split}"
    assert len(regions) == 8
    assert "in 2 cities, such as Aa (AAA), and stay as they are" in capsys.readouterr().out
    assert (out / "train" / CITY / "a_r00_c00.jpg").is_file()
    patches = reading.open_split(out, "train")
    number = next(i for i in range(len(patches)) if CITY in patches.name(i))
    assert patches.raster(number) == f"{CITY}/a.tif"
    assert patches.original(number).size == (48, 48)
    assert changed_by(out, lambda: preprocess("--sites", 3)) == set()


def test_without_sites_the_layout_is_refused_and_the_flag_is_named(raw, preprocess):
    lines = refused(preprocess, f"{CITY}/a.tif: a raster must lie in a site's folder", "--sites 3")
    assert len(lines) == 7


def test_rasters_that_overlap_or_touch_stay_together(raw, preprocess):
    """A chain of five tiles, through all that lies between."""
    for i, right in enumerate((625, 1200)):
        place(raw, f"chain{i}", right, 100)
    place(raw, "year_2", 30, 30)
    found = sites_of(preprocess("--sites", 4))
    assert len({found[name] for name in ("a", "chain0", "chain1", "b", "year_2")}) == 1


def test_fewer_groups_than_sites_are_refused(raw, preprocess):
    refused(lambda: preprocess("--sites", 7), "make only 6 groups")
    shutil.rmtree(raw / CITY)
    place(raw, "a", 0, 0)
    place(raw, "b", 600, 0)
    refused(lambda: preprocess("--sites", 2), "make only a single group")


def test_what_has_no_georeference_is_refused_by_name(raw, preprocess):
    picture(150, 110).save(raw / CITY / "scan.png")
    (raw / CITY / "torn.tif").write_bytes((raw / CITY / "a.tif").read_bytes()[:90])
    refused(lambda: preprocess("--sites", 3), "scan.png: has no georeference", "torn.tif: ")


def test_a_raster_that_names_no_system_is_told_the_flag(raw, preprocess):
    place(raw, "unnamed", 3000, 3000, crs=None)
    refused(lambda: preprocess("--sites", 3), "unnamed.tif: has a georeference, but names no")


def test_shards_find_the_same_sites(raw, preprocess, tmp_path):
    out = preprocess("--sites", 3, "--shard", "1/2")
    first = (out / "sites.csv").read_bytes()
    preprocess("--sites", 3, "--shard", "2/2")
    assert (out / "sites.csv").read_bytes() == first
    assert (out / "dataset.json").is_file()
    whole = preprocess("--sites", 3, out=tmp_path / "whole")
    assert files(whole) == files(out)


def test_rasters_beside_site_folders_are_refused(raw, preprocess):
    place(raw, "site/z", 0, 9000)
    lines = refused(lambda: preprocess("--sites", 3), f"{CITY}/a.tif: a raster must lie")
    assert len(lines) == 6 + 1  # and one site is too few


def test_a_raster_that_is_added_moves_no_other(raw, preprocess, capsys):
    out = preprocess("--sites", 3)
    before = sites_of(out)
    # A division anew would be another one: half of all now lies in one corner.
    for i in range(6):
        place(raw, f"new{i}", 22_500 + 1000 * i, 3000)
    changed = changed_by(out, preprocess)  # the set remembers the flag
    after = sites_of(out)
    assert {name: after[name] for name in before} == before
    assert {after[f"new{i}"] for i in range(6)} == {before["c"]}
    assert not [name for name in changed if name.startswith(f"arrays/{CITY}/a")]
    refused(lambda: preprocess("--sites", 2), "made with another --sites than 2")


def test_sites_do_not_depend_on_names_and_times(raw, preprocess, tmp_path):
    first = sites_of(preprocess("--sites", 3))
    names = dict(zip("abcdef", "fdbeca", strict=True))
    for name in names:
        (raw / CITY / f"{name}.tif").rename(raw / CITY / f"_{name}.tif")
    for name, other in names.items():
        (raw / CITY / f"_{name}.tif").rename(raw / CITY / f"{other}.tif")
    second = sites_of(preprocess("--sites", 3, out=tmp_path / "other"))
    assert {name: second[names[name]] for name in first} == first


def test_sites_are_compact_and_about_equally_large():
    rng = np.random.default_rng(0)
    middle = np.array([-2_500_000.0, -4_300_000.0, 3_900_000.0])
    up = middle / np.linalg.norm(middle)
    east = np.cross((0, 0, 1), up) / np.linalg.norm(np.cross((0, 0, 1), up))
    north = np.cross(up, east)
    plane = rng.uniform(0, 10_000, (200, 2))
    places = middle + plane[:, :1] * east + plane[:, 1:] * north
    groups = [sites.Group([str(i)], place, 1.0) for i, place in enumerate(places)]
    for number in (2, 3, 5, 8):
        parts = sites.divide(groups, number)
        sizes = [len(part) for part in parts]
        assert sum(sizes) == 200
        assert max(sizes) <= 1.5 * 200 / number
        assert min(sizes) >= 200 / number / 1.5
        boxes = []
        for part in parts:
            own = plane[[int(group.rasters[0]) for group in part]]
            boxes.append((own.min(axis=0), own.max(axis=0)))
        for i, (low, high) in enumerate(boxes):
            for other_low, other_high in boxes[:i]:
                assert (high < other_low).any() or (other_high < low).any()
            assert (high - low).max() / (high - low).min() < 4
        shuffled = [groups[i] for i in rng.permutation(200)]
        again = sites.divide(shuffled, number)
        assert [{g.rasters[0] for g in part} for part in again] == [
            {g.rasters[0] for g in part} for part in parts
        ]


def test_a_damaged_table_of_sites_is_refused(raw, preprocess):
    out = preprocess("--sites", 3)
    (out / "sites.csv").write_text("raster,site\n../x,site_1\n")
    refused(preprocess, "sites.csv")


def test_the_summary_and_the_set_say_how_far_the_held_out_site_lies(raw, preprocess, capsys):
    out = preprocess("--sites", 3)
    description = json.loads((out / "dataset.json").read_text())
    found = sites_of(out)
    corners = {
        "a": (0, 0),
        "b": (1500, 200),
        "c": (20_000, 300),
        "d": (21_500, 0),
        "e": (10_000, 15_000),
        "f": (11_000, 16_000),
    }
    width, height = 150 * METRES, 110 * METRES
    apart = []
    for one in corners:
        for other in corners:
            if found[one] == "site_3" and found[other] != "site_3":
                (x, y), (other_x, other_y) = corners[one], corners[other]
                across = max(0, abs(x - other_x) - width)
                down = max(0, abs(y - other_y) - height)
                apart.append((across**2 + down**2) ** 0.5)
    # A metre of UTM 11N is about 0.9996 m of the ground in the middle of the zone.
    assert (description["sites"], description["mosaic"]) == (3, False)
    distance = description["held_out_distance"][CITY]
    assert distance == pytest.approx(min(apart), rel=1e-3)
    assert f"CCC {distance:,.0f} m" in capsys.readouterr().out


def test_rasters_in_several_systems_are_one_city(raw, preprocess):
    """The neighbour of a raster in the next UTM zone is found."""
    from rasterio import warp

    edge = 2 * [0]
    edge[0], edge[1] = warp.transform("EPSG:4326", "EPSG:32611", [-114.0], [37.0])
    west = (edge[0][0] - 75 * METRES, edge[1][0])
    x, y = warp.transform("EPSG:32611", "EPSG:32612", [west[0] + 140 * METRES], [west[1]])
    place(raw, "west", 0, 0, corner=west)
    place(raw, "east", 0, 0, corner=(x[0], y[0]), crs="EPSG:32612")
    found = sites_of(preprocess("--sites", 3))
    assert found["west"] == found["east"]
