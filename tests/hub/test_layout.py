"""Which folders are cities, whatever lies above them and however they are spelt."""

import unicodedata
from pathlib import Path, PurePosixPath

import pytest

from dl_slicer.hub import layout
from dl_slicer.patch_sets.image_files import is_image_name

CITIES = layout.read_cities(Path(__file__).parent.parent.parent / "data" / "cities.csv")


@pytest.mark.parametrize(
    ("folder", "city"),
    [
        ("Almaty (ALA)", "Almaty (ALA)"),
        ("almaty(ala)", "Almaty (ALA)"),
        ("Almaty", "Almaty (ALA)"),
        ("ALA", "Almaty (ALA)"),
        (unicodedata.normalize("NFC", "São Paulo (GRU)"), "Sao Paulo (GRU)"),
        (unicodedata.normalize("NFD", "São Paulo"), "Sao Paulo (GRU)"),
        ("San_Francisco", "San Francisco (SFO)"),
        ("Nur-Sultan (NQZ)", "Astana (NQZ)"),
        ("Washington DC", "Washington (IAD)"),
        ("Istambul", "Istanbul (IST)"),
        ("Milano (LIN)", "Milan (MIL)"),
        ("Avelmar (AVM)", "None"),
        ("site1", "None"),
    ],
)
def test_a_city_is_found_by_other_spellings(folder, city):
    assert str(CITIES.similar(folder)) == city


def test_the_45_cities_are_told_apart():
    assert len(CITIES.known) == 45
    for city in CITIES.known:
        assert (
            CITIES.similar(city.name) == CITIES.named(city.code) == CITIES.named(str(city)) == city
        )


def test_only_what_is_surely_a_city_is_taken_for_one_without_others():
    for name in ("Almaty", "ALA", "Avelmar (AVM)"):
        assert CITIES.looks_like_one(name)
    for name in ("site1", "paris1", "2020", "New folder (2)", "raw (old)", "test_b", "USA"):
        assert not CITIES.looks_like_one(name)


def found(tmp_path, *files):
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    folders = layout.find_cities(tmp_path, CITIES, is_image_name)
    return [path.relative_to(tmp_path).as_posix() for path in folders]


def test_cities_are_found_below_any_folders(tmp_path):
    files = [f"x/DL-SLICER (NEW)/raw/{city}/site1/2020.jpg" for city in ("Almaty (ALA)", "Oslo")]
    above = "x/DL-SLICER (NEW)/raw"
    assert found(tmp_path, *files, "x/notes.txt") == [f"{above}/Almaty (ALA)", f"{above}/Oslo"]


def test_what_lies_beside_cities_is_one_and_what_lies_elsewhere_is_none(tmp_path):
    files = [f"raw/{city}/site1/2020.jpg" for city in ("Almaty (ALA)", "Oslo (OSL)", "Nowhere")]
    more = ["figures/one.png", "raw/notes/read.txt", "raw/.ipynb_checkpoints/a.jpg"]
    assert found(tmp_path, *files, *more) == ["raw/Almaty (ALA)", "raw/Nowhere", "raw/Oslo (OSL)"]


def test_a_city_in_a_folder_of_its_name_is_the_inner_one(tmp_path):
    files = ["Almaty (ALA)/raw/Almaty (ALA)/s1/1.jpg", "Oslo (OSL)/s1/1.jpg", "X/X/X/s1/1.jpg"]
    assert found(tmp_path, *files) == ["Almaty (ALA)/raw/Almaty (ALA)", "Oslo (OSL)", "X/X/X"]


def test_a_site_that_is_called_like_a_city_is_none(tmp_path):
    files = ["Paris (PAR)/Paris (PAR)/1.jpg", "Paris (PAR)/s2/1.jpg", "Oslo (OSL)/Milan/1.jpg"]
    assert found(tmp_path, *files) == ["Oslo (OSL)", "Paris (PAR)"]


def test_folders_without_images_are_no_cities(tmp_path):
    assert found(tmp_path, "Oslo (OSL)/read.txt", "Milan (MIL)/site1/.hidden.jpg") == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("raw/Almaty (ALA)/site1/2020.jpg", "raw"),
        ("DL-SLICER_raw.zip", "raw"),
        ("data/Raw/a.zip", "raw"),
        ("processed.tar.gz", "processed"),
        ("preprocessed_v9/a.zip", "processed"),
        ("test_b.zip", "processed"),
        ("train/Almaty (ALA)/1.jpg", "processed"),
        ("raw_and_processed.zip", None),
        ("Almaty (ALA)/raw/1.jpg", None),
        ("drawings/1.jpg", None),
        ("README.md", None),
    ],
)
def test_a_path_says_raw_or_processed(path, kind):
    assert layout.kind_of(PurePosixPath(path), CITIES) == kind


def chosen(kind, *names):
    paths = [PurePosixPath(name) for name in names]
    picked = layout.choose(paths, kind, CITIES, lambda path: path.suffix in (".jpg", ".zip"))
    return [str(path) for path in picked]


def test_only_the_kind_that_is_asked_for_is_downloaded():
    names = ("raw/a.jpg", "raw/notes.csv", "processed.zip", "models.zip", "README.md", ".git/x.jpg")
    assert chosen("raw", *names) == ["raw/a.jpg", "raw/notes.csv"]
    assert chosen("processed", *names) == ["processed.zip"]
    assert chosen("raw", "data.zip", "README.md", "processed.zip") == ["data.zip"]
    assert chosen("raw", "processed.zip", "raw_readme.md") == []


def test_a_tree_shows_three_levels():
    paths = [PurePosixPath(f"a/b{i}/c/d/{j}.jpg") for i in range(2) for j in range(3)]
    lines = layout.tree([*paths, PurePosixPath("read.txt")])
    assert lines == [
        "    a/   6 files",
        "        b0/   3 files",
        "            c/   3 files",
        "        b1/   3 files",
        "            c/   3 files",
        "    read.txt",
    ]
    many = layout.tree(PurePosixPath(f"{number:03d}.jpg") for number in range(100))
    assert len(many) == layout.MOST_LINES + 1 and many[-1] == "    ... and 40 more"
