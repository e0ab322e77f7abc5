"""What a city is called, and which names are none."""

import pytest

from dl_slicer.cities import check_name, check_path, city_code, find, labels
from dl_slicer.cli import InputError


def test_code():
    codes = {
        "Almaty (ALA)": "ALA",
        "Sao Paulo (x) (GRU)": "GRU",
        "Paris": "Paris",
        "Odd (A) tail": "A",
        "Empty ()": "Empty ()",
        "Space ( B )": "B",
    }
    assert [city_code(city) for city in codes] == list(codes.values())


NOT_NAMES = {
    "": "must be a name",
    ".": "must be a name",
    "..": "must be a name",
    "a/b": "must be a name",
    "/elsewhere": "must be a name",
    "line\nbreak": "control character",
    "nul\0": "control character",
    "\x1b[31m": "control character",
    "line\u2028": "control character",
    "latin-\udce9": "not in UTF-8",
    "\ud800": "not in UTF-8",
    "x" * 201: "201 bytes",
    "é" * 101: "202 bytes",
    "x" * 100_000: "100000 bytes",
}


def test_what_is_a_name():
    for name in ("Almaty (ALA)", "北京", "San José", "...", ".hidden", "a..b", "é" * 100):
        check_name(name, "city")
        check_path(name, "raster")
    for name, fault in NOT_NAMES.items():
        with pytest.raises(InputError, match=fault) as caught:
            check_name(name, "regions.csv: city")
        assert str(caught.value).startswith("regions.csv: city ")
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300


def test_what_is_a_path():
    check_path("Aa (AAA)/site1/deeper/2020.png", "raster")
    for path in ("../../../X", "a/../b", "/a/b", "a//b", "a/./b", "a/", f"a/{'x' * 201}", "a/b\n"):
        with pytest.raises(InputError, match="; rename it"):
            check_path(path, "regions.csv: raster")


def test_labels_are_told_apart():
    assert labels(["San Jose (SJC)", "San Jose (SJO)", "Rome"]) == ["SJC", "SJO", "Rome"]
    same = ["San Jose (SJ)", "Sankt Johann (SJ)"]
    assert labels([*same, "Rome (FCO)"]) == [*same, "FCO"]
    assert labels(["SJ", "San Jose (SJ)"]) == ["SJ", "San Jose (SJ)"]


CITIES = ["San Jose (SJC)", "San Jose (SJO)", "Bonn", "BONN (X)", "Rome (FCO)"]


@pytest.mark.parametrize(
    "name, number",
    [("SJC", 0), ("sjo", 1), ("San Jose (SJO)", 1), ("Bonn", 2), ("x", 3), ("rome", 4)],
)
def test_a_city_is_found_by_what_is_its_own(name, number):
    assert find(name, CITIES) == number


@pytest.mark.parametrize(
    "name, candidates",
    [("San Jose", "San Jose (SJC), San Jose (SJO)"), ("bonn", "Bonn, BONN (X)")],
)
def test_a_name_of_several_cities_is_refused(name, candidates):
    with pytest.raises(InputError) as error:
        find(name, CITIES)
    assert str(error.value) == (
        f"--target {name}: fits several cities; give the full name of one: {candidates}"
    )
