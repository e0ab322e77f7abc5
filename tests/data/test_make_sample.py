"""The sample's cities: the same bytes for the same arguments, and light that hides no city."""

import csv
import importlib.util
import os
import re
import resource
import signal
import subprocess
import sys
import time
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from preprocessing_runs import alive, finish, wait_until_none_is_alive

from dl_slicer import cli
from dl_slicer.patch_sets import image_files

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "data" / "make_sample.py"

spec = importlib.util.spec_from_file_location("make_sample", SCRIPT)
make_sample = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_sample)


def run(out, *flags):
    line = [sys.executable, str(SCRIPT), "--out", str(out), "--size", "480", *flags]
    return subprocess.run(line, capture_output=True, text=True)


def start(out, **options):
    """A process that draws far more than a test waits for; options: of Popen."""
    line = [sys.executable, str(SCRIPT), "--out", str(out), "--size", "480", "--rasters", "99"]
    return subprocess.Popen(
        [*line, "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def wait_for_a_raster(process, out):
    deadline = time.time() + 60
    while not list(out.rglob("2*.jpg")):
        assert process.poll() is None, process.communicate()
        assert time.time() < deadline
        time.sleep(0.01)


def said_in_one_line(done, code, *parts):
    """An exit status and one line on stderr with all the parts in it."""
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    for part in parts:
        assert part in done.stderr


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
        "--size 13378",
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
        "--twins 1",
        "--one-style red",
        "--sensors red",
    ],
)
def test_bad_arguments(flags, tmp_path, capsys):
    out = tmp_path / "raw"
    with pytest.raises(SystemExit) as stop:
        cli.run(partial(make_sample.main, ["--out", str(out), *flags.split()]))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert flags.split()[0] in error
    assert flags.split()[1] in error
    assert not out.exists()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_largest_raster_is_one_that_preprocessing_reads(tmp_path):
    for side, read in ((make_sample.LARGEST, True), (make_sample.LARGEST + 1, False)):
        file = tmp_path / f"{side}.png"
        Image.new("1", (side, side)).save(file)
        if read:
            with image_files.open_image(file) as image:
                assert image.size == (side, side)
            continue
        with pytest.raises(image_files.UnreadableImage), image_files.open_image(file):
            pass


def test_out_is_a_file(tmp_path):
    out = tmp_path / "raw"
    out.write_text("here already")
    said_in_one_line(run(out), 2, str(out), "a file is in the way")
    assert out.read_text() == "here already"


def test_out_cannot_be_made():
    out = "/proc/self/raw"
    said_in_one_line(run(out), 2, out, "choose another")


def test_a_file_or_a_folder_in_the_way_of_a_raster(tmp_path):
    """What was in the way stays, and nobody waits for the other rasters."""
    names = make_sample.city_names(2)
    (tmp_path / names[0]).write_text("here already")
    said_in_one_line(run(tmp_path), 2, names[0], "a file is in the way")
    assert (tmp_path / names[0]).read_text() == "here already"

    (tmp_path / names[0]).unlink()
    folder = tmp_path / names[0] / "site01" / "2020.jpg"
    folder.mkdir(parents=True)
    said_in_one_line(run(tmp_path), 2, str(folder), "a folder is in the way")
    assert not [file for file in contents(tmp_path) if "/." in f"/{file}"]


def test_a_disk_that_takes_no_more(tmp_path):
    """Stood for by the limit on the size of a file: the lock fits, a raster does not."""
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (2000, 2000))
    process = start(tmp_path / "raw", preexec_fn=limit)
    code, _, errors = finish(process)
    assert code == 2
    assert errors.count("\n") == 1
    # Two workers draw at once: either may meet the limit first.
    assert re.search(r"/20\d\d\.jpg: File too large", errors)
    assert not (tmp_path / "raw").exists() or contents(tmp_path) == {}


def test_two_at_once_into_one_folder(tmp_path):
    first = start(tmp_path)
    wait_for_a_raster(first, tmp_path)
    said_in_one_line(run(tmp_path), 2, str(tmp_path), f"process {first.pid} on ")
    assert first.poll() is None
    first.kill()
    finish(first)
    wait_until_none_is_alive(first.pid)
    # A killed one stands in nobody's way, and what it was just writing goes.
    half = tmp_path / make_sample.NAMES[0] / "site01" / f".123-{zlib.crc32(b'2020.jpg'):08x}.tmp"
    strangers = half.with_name(".mine-01234567.tmp")
    for file in (half, strangers):
        file.write_text("half a raster")
    done = run(tmp_path, "--cities", "1", "--sites", "2")
    assert done.returncode == 0, done.stderr
    assert not half.exists()
    assert strangers.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(number, tmp_path):
    process = start(tmp_path)
    wait_for_a_raster(process, tmp_path)
    assert len(alive(process.pid)) == 3
    os.kill(process.pid, number)
    wait_until_none_is_alive(process.pid)
    assert finish(process)[0] == -number


def test_ctrl_c_ends_all_with_one_line(tmp_path):
    # As a terminal starts it; where the tests run in the background of a shell, SIGINT would be
    # ignored. A terminal sends it to all processes.
    unignored = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = start(tmp_path, preexec_fn=unignored)
    wait_for_a_raster(process, tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    code, _, errors = finish(process)
    assert code == 1
    assert errors.count("\n") == 1
    assert "interrupted; every raster in the folder is whole" in errors
    wait_until_none_is_alive(process.pid)
    drawn = contents(tmp_path)
    assert 0 < len(drawn) < 99
    assert all(
        file.endswith(".jpg") and "/." not in file for file in drawn
    )  # no lock, nothing half
    for file in drawn:
        with Image.open(tmp_path / file) as image:
            image.load()


def test_a_worker_that_is_killed_is_said_in_one_line(tmp_path):
    process = start(tmp_path)
    wait_for_a_raster(process, tmp_path)
    workers = set(alive(process.pid)) - {process.pid}
    os.kill(min(workers), signal.SIGKILL)
    code, _, errors = finish(process)
    assert code == 2
    assert errors.count("\n") == 1
    assert "fewer --workers" in errors
    wait_until_none_is_alive(process.pid)


def test_nothing_half_written(tmp_path, monkeypatch):
    """A raster that fails while it is saved leaves what was there before, and no temporary file."""

    class Full:
        def save(self, file, *args, **more):
            file.write(b"half a picture")
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


# Means of nine parts of rasters as they were drawn before there were twins, styles and sensors.
BEFORE = {
    (0, 0, 0, 0): [[99.0, 98.0, 92.0], [105.0, 116.3, 110.0], [103.7, 108.0, 107.3]],
    (3, 4, 1, 1): [[108.3, 114.0, 104.7], [115.0, 120.0, 109.3], [122.3, 122.7, 109.0]],
}
OF_THE_HARD_SAMPLE = [[132.0, 148.0, 130.7], [149.7, 152.7, 141.3], [147.0, 135.3, 142.3]]


def parts(picture):
    """The mean of all channels in each of 3 x 3 parts of a picture."""
    return np.asarray(picture.resize((3, 3), Image.BOX)).mean(2)


def test_without_the_flags_the_same_is_drawn_as_before():
    for numbers, expected in BEFORE.items():
        np.testing.assert_allclose(parts(make_sample.render(*numbers, 480)), expected, atol=0.5)
    hard = make_sample.Differences(alike=4, light=2.0)
    drawn = make_sample.render(0, 5, 1, 0, 480, hard)
    np.testing.assert_allclose(parts(drawn), OF_THE_HARD_SAMPLE, atol=0.5)


def test_twins_have_one_style_and_others_their_own(tmp_path):
    style = make_sample.city_style
    how = make_sample.Differences(twins=(3, 2))
    drawn = [make_sample.drawn_style(0, city, how) for city in range(7)]
    expected = [style(0, city) for city in (0, 0, 0, 3, 3, 5, 6)]
    assert drawn == expected
    done = run(tmp_path, *["--cities", "3", "--sites", "2", "--twins", "--workers", "1"])
    names = make_sample.city_names(3)
    assert f"drawn alike on purpose: {names[0]} and {names[1]}\n" in done.stdout
    assert names[2] not in done.stdout


def test_more_twins_than_cities_and_twins_of_one_style_are_refused(tmp_path):
    done = run(tmp_path, "--cities", "4", "--twins", "3", "2")
    said_in_one_line(done, 2, "--twins", "5 cities", "there are 4")
    done = run(tmp_path, "--one-style", "--twins")
    said_in_one_line(done, 2, "--twins", "--one-style")


def test_one_style_differs_in_nothing_or_in_the_direction_alone():
    same = make_sample.Differences(one_style="same")
    assert len({repr(make_sample.drawn_style(0, city, same)) for city in range(5)}) == 1
    turned = make_sample.Differences(one_style="turned")
    styles = [make_sample.drawn_style(0, city, turned) for city in range(4)]
    angles = sorted(style.angle for style in styles)
    assert angles[0] >= 0
    assert angles[-1] <= 45
    assert min(np.diff(angles)) > 10
    assert len({repr(make_sample.replace(style, angle=0)) for style in styles}) == 1


def without_colour(picture):
    """The luma (H, W) of ITU-R BT.601."""
    return np.asarray(picture, float) @ (0.299, 0.587, 0.114)


def test_sensors_change_colours_and_nothing_else():
    """Without colour a raster is what the usual sensor makes of it, to the rounding of bytes."""
    sensors = make_sample.Differences(sensors="city", one_style="same")
    for city, site in ((0, 0), (1, 2), (3, 1)):
        plain = make_sample.render(5, city, site, 0, 480, make_sample.Differences(one_style="same"))
        drawn = make_sample.render(5, city, site, 0, 480, sensors)
        expected = 0.75 * without_colour(plain) + 32
        difference = np.abs(without_colour(drawn) - expected)
        assert np.quantile(difference, 0.999) < 1.5
        moved = np.asarray(drawn, float).mean((0, 1)) - (
            0.75 * np.asarray(plain, float).mean((0, 1)) + 32
        )
        assert np.abs(moved).max() > 8  # grey levels
    of_two_sites = [make_sample.sensor_of(5, 1, site, sensors) for site in (0, 1)]
    assert of_two_sites[0] == of_two_sites[1] != make_sample.sensor_of(5, 2, 0, sensors)


def test_one_site_of_each_city_has_a_sensor_of_its_own_and_it_is_not_the_last(tmp_path):
    how = make_sample.Differences(sensors="site", sites=3)
    usual = make_sample.sensor_matrix(0, 0, 0)
    for city in range(5):
        odd = [make_sample.sensor_of(0, city, site, how) != usual for site in range(3)]
        assert sum(odd) == 1
        assert not odd[-1]
        assert odd[make_sample.odd_site(city, 3)]
    done = run(tmp_path, *["--cities", "2", "--sites", "3", "--sensors", "site", "--workers", "1"])
    first, second = make_sample.city_names(2)
    assert f"sensor of their own:\n  {first}/site01\n  {second}/site02\n" in done.stdout


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
