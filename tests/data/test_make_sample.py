"""The sample's cities: the same bytes for the same arguments, and light that hides no city."""

import csv
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "data" / "make_sample.py"

spec = importlib.util.spec_from_file_location("make_sample", SCRIPT)
make_sample = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_sample)


def run(out, *flags):
    line = [sys.executable, str(SCRIPT), "--out", str(out), "--size", "480", *flags]
    return subprocess.run(line, capture_output=True, text=True)


def contents(folder):
    """Every file below a folder, hidden ones too, with its bytes."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """Three cities with two sites each, drawn by two processes."""
    out = tmp_path_factory.mktemp("sample")
    done = run(out, "--cities", "3", "--sites", "2", "--workers", "2")
    assert done.returncode == 0, done.stderr
    return out


def test_layout_and_size(sample):
    files = contents(sample)
    names = make_sample.city_names(3)
    expected = [f"{name}/site0{site}/2020.jpg" for name in names for site in (1, 2)]
    assert sorted(files) == sorted(expected)  # and nothing hidden
    assert len(set(files.values())) == 6
    for file in files:
        with Image.open(sample / file) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (480, 480))


def test_same_bytes_whatever_else_is_asked_for(sample, tmp_path):
    """With fewer cities, more sites and another number of processes the common files are equal."""
    done = run(tmp_path, "--cities", "2", "--sites", "3", "--workers", "1")
    assert done.returncode == 0, done.stderr
    first = contents(sample)
    second = contents(tmp_path)
    common = first.keys() & second.keys()
    assert len(second) == 6
    assert len(common) == 4
    assert [f for f in common if first[f] != second[f]] == []


def test_seed_and_raster_change_the_picture():
    pictures = [
        make_sample.render(*what, 480).tobytes()
        for what in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 0))
    ]
    assert len(set(pictures)) == 3
    assert pictures[0] == pictures[3]


def test_style_and_light_depend_on_their_numbers_only():
    style = make_sample.city_style
    assert style(0, 4) == style(0, 4)
    assert style(0, 4) != style(0, 5)
    assert style(0, 4) != style(1, 4)
    light = make_sample.site_light
    assert light(0, 4, 1) == light(0, 4, 1)
    assert light(0, 4, 1) != light(0, 4, 2)
    assert light(0, 4, 1) != light(0, 5, 1)


def test_cities_made_alike_share_what_a_group_shares_and_nothing_else_changes():
    style = make_sample.city_style
    groups = [[style(0, city, 3) for city in range(first, first + 3)] for first in (0, 3)]
    for group in groups:
        assert len({(city.kind, city.pattern, city.bend, city.every) for city in group}) == 1
        assert len({city.angle for city in group}) == 3
        assert len({city.street for city in group}) == 3
    assert groups[0][0].kind != groups[1][0].kind
    assert style(0, 4, 1) == style(0, 4)


def test_strength_of_the_light():
    light = make_sample.site_light
    exposure = {
        strength: [light(0, 0, site, strength).exposure for site in range(2)]
        for strength in (0, 1, 2)
    }
    assert light(0, 4, 1, 1.0) == light(0, 4, 1)
    assert np.ptp(exposure[0]) == 0
    assert abs(np.ptp(exposure[2]) - 2 * np.ptp(exposure[1])) < 1e-9
    assert min(light(0, city, site, 3).haze for city in range(4) for site in range(4)) >= 0


def test_a_larger_sample_made_before_is_mentioned(sample):
    before = contents(sample)
    done = run(sample, "--cities", "1", "--sites", "2", "--workers", "1")
    assert done.returncode == 0
    assert "4 more rasters" in done.stdout
    assert contents(sample) == before


@pytest.mark.parametrize(
    "flags",
    [
        "--size 479",
        "--size 31000",
        "--size big",
        "--cities 0",
        "--cities 101",
        "--sites 1",
        "--rasters 0",
        "--seed -1",
        "--workers 0",
        "--alike 0",
        "--light 4",
        "--colour red",
    ],
)
def test_bad_arguments(flags, tmp_path, capsys):
    out = tmp_path / "raw"
    with pytest.raises(SystemExit) as stop:
        make_sample.main(["--out", str(out), *flags.split()])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert flags.split()[0] in error
    assert flags.split()[1] in error
    assert not out.exists()


def test_out_is_a_file(tmp_path):
    out = tmp_path / "raw"
    out.write_text("here already")
    done = run(out)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(out) in done.stderr
    assert out.read_text() == "here already"


def test_nothing_half_written(tmp_path, monkeypatch):
    """A raster that fails while it is saved leaves what was there before, and no temporary file."""

    class Full:
        def save(self, path, *args, **more):
            Path(path).write_bytes(b"half a picture")
            raise OSError("no space left on device")

    target = tmp_path / "city" / "2020.jpg"
    target.parent.mkdir()
    target.write_bytes(b"before")
    monkeypatch.setattr(make_sample, "render", lambda *what: Full())
    with pytest.raises(OSError, match="no space"):
        make_sample.write(target, 0, 0, 0, 0, 480)
    assert contents(tmp_path) == {"city/2020.jpg": b"before"}


def test_light_differs_more_between_sites_than_colour_between_cities():
    """One-way analysis of variance of the rasters' mean colours.

    Were a city known by its colour, its sites would be alike and the F ratio large (5 to 12 when
    all sites get the same light); below 1 the cities differ less than chance among sites makes
    them.
    """
    cities = 6
    sites = 3
    mean = np.empty((cities, sites, 3))
    for city in range(cities):
        for site in range(sites):
            raster = np.asarray(make_sample.render(0, city, site, 0, 480))
            mean[city, site] = raster.mean(axis=(0, 1))
    within = mean.var(axis=1, ddof=1).mean(axis=0)
    between = mean.mean(axis=1).var(axis=0, ddof=1)
    assert (sites * between / within < 1).all(), (within, between)
    assert (np.sqrt(within) > 5).all()  # grey levels: the light does differ


def test_neighbouring_cities_are_built_differently():
    styles = [make_sample.city_style(0, c) for c in range(24)]
    for one, next_one in zip(styles, styles[1:], strict=False):
        assert one.kind != next_one.kind
        assert one.roofs != next_one.roofs
        assert min((one.angle - next_one.angle) % 90, (next_one.angle - one.angle) % 90) > 15
    assert {s.pattern for s in styles[:6]} == {"grid", "radial", "organic"}


def test_shadow_sweeps_from_foot_to_tip():
    """A square of side 2 moved by 3 along an edge sweeps 2 x 5, along both edges 4 + 2 x 2 x 3.

    Turning its corners round changes nothing.
    """
    square = np.array([[0, 2, 2 + 2j, 2j]])

    def area(outline):
        return abs((outline.conj() * np.roll(outline, -1, axis=1)).imag.sum() / 2)

    for corners in (square, square[:, ::-1]):
        assert area(make_sample.cast_shadow(corners, np.array([3 + 0j]))) == pytest.approx(10)
        assert area(make_sample.cast_shadow(corners, np.array([-3 - 3j]))) == pytest.approx(16)


def real_cities():
    with open(ROOT / "data" / "cities.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_cities_csv():
    rows = real_cities()
    assert list(rows[0]) == ["name", "code", "country"]
    assert len(rows) == 45
    assert len({r["name"] for r in rows}) == len({r["code"] for r in rows}) == 45
    assert [r["name"] for r in rows] == sorted(r["name"] for r in rows)
    for row in rows:
        assert re.fullmatch("[A-Z]{3}", row["code"])
        assert row["country"].strip() == row["country"] != ""
    codes = {r["name"]: r["code"] for r in rows}
    assert (codes["Almaty"], codes["Sao Paulo"], codes["Washington"]) == ("ALA", "GRU", "IAD")


def test_made_up_names():
    names = make_sample.city_names(100)
    assert make_sample.city_names(7) == names[:7]
    parts = [re.fullmatch(r"([A-Z][a-z]+) \(([A-Z]{3})\)", name).groups() for name in names]
    made_up_names = {name for name, _ in parts}
    made_up_codes = {code for _, code in parts}
    assert len(made_up_names) == len(made_up_codes) == 100
    real = real_cities()
    assert not made_up_codes & {city["code"] for city in real}
    assert not made_up_names & {city["name"] for city in real}
