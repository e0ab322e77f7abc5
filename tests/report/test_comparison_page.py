"""The page of two models: what it says, that it is whole, and what it refuses."""

import json

import browser
import pytest
from conftest import picture
from page_checks import CONTRAST, SMUGGLED, WIDE, check, needs_browser

from dl_slicer.cli import InputError
from dl_slicer.files import write_rows
from dl_slicer.report import __main__ as report
from dl_slicer.report import comparison_page
from dl_slicer.report.comparison_page import write_comparison_page

ODD = "<img src=x onerror=alert(1)> & 東京"
COLUMNS = ("city", "code", "n", "rasters", "accuracy_a", "accuracy_b", "difference")
COLUMNS += ("ci95_low", "ci95_high", "only_a_right", "only_b_right")


def write(out, cities=("Aa (AAA)", ODD), pictures=True, **changes):
    """The files of a comparison in which the second city has one raster, and no picture."""
    out.mkdir()
    rows = [(cities[0], "AAA", 90, 3, 0.9, 0.7, 0.2, 0.05, 0.35, 20, 2)]
    rows += [(city, city, 30, 1, 0.5, 0.5, 0.0, None, None, 0, 0) for city in cities[1:]]
    write_rows(out / "per_city.csv", COLUMNS, rows)
    if pictures:
        (out / "patches").mkdir()
        picture(1016, 240).save(out / "patches" / f"{cities[0]}.jpg")
    side = {"arch": "resnet50", "split": "test_b"}
    found = {
        "a": {**side, "name": ODD, "accuracy": 0.8},
        "b": {**side, "name": "resnet18", "accuracy": 0.65},
        "n": 120,
        "n_rasters": 4,
        "difference": 0.15,
        "difference_ci95": [0.02, 0.27],
        "interval": "bootstrap over 4 rasters",
        "few_rasters": "there are only 4 rasters",
        "mcnemar": {"both_right": 76, "only_a_right": 20, "only_b_right": 2, "both_wrong": 22}
        | {"p_value": 0.0001, "remark": "it takes patches as independent"},
    }
    (out / "comparison.json").write_text(json.dumps(found | changes), encoding="utf-8")
    return out


def test_page_says_what_was_found_and_is_whole(tmp_path):
    page = check(write_comparison_page(write(tmp_path / "out")))
    assert page.faults == []
    assert not [tag for tag, attributes in page.tags if "onerror" in attributes]
    words = page.words().replace(" .", ".")
    assert f"{ODD} is better by 15.0 points" in words
    assert "2.0 to 27.0 )" in words or "2.0 to 27.0)" in words
    assert "There are only 4 rasters." in words
    assert "Exact p value 0.0001: it takes patches as independent." in words
    assert "Of 2 cities, the intervals of 1 leave out 0." in words
    (sheet,) = page.attributes_of("img")
    assert (sheet["width"], sheet["height"]) == ("1016", "240")


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"difference_ci95": [-0.1, 0.4]}, "is ahead by 15.0 points"),
        ({"difference": -0.15, "difference_ci95": [-0.3, -0.1]}, "resnet18 is better by 15.0"),
        ({"difference": 0, "difference_ci95": [-0.1, 0.1]}, "Both are right equally often"),
        ({"difference_ci95": None, "few_rasters": None}, "a single raster gives no interval."),
    ],
)
def test_what_is_said_of_the_difference(tmp_path, changes, said):
    out = write(tmp_path / "out", pictures=False, **changes)
    page = check(write_comparison_page(out))
    assert page.faults == []
    assert said in page.words().replace(" .", ".")
    assert not page.attributes_of("img")


def test_the_page_holds_the_sheets_of_what_differs_most(tmp_path, monkeypatch):
    out = write(tmp_path / "out", cities=("Aa", "Bb"))
    second = out / "patches" / "Bb.jpg"
    picture(1016, 240, 1).save(second)

    def titles():
        page = check(write_comparison_page(out))
        return [image["alt"][:13] for image in page.attributes_of("img")]

    assert titles() == ["Patches of Aa", "Patches of Bb"]
    table = out / "per_city.csv"
    table.write_text(table.read_text().replace(",0,0\n", ",0,30\n"))
    assert titles() == ["Patches of Bb", "Patches of Aa"]
    monkeypatch.setattr(comparison_page, "SHEET_BUDGET", second.stat().st_size)
    assert titles() == ["Patches of Bb"]
    assert "1 city more: see the folder" in check(out / "report.html").words()


def test_the_report_command_makes_it_again(tmp_path, capsys):
    out = write(tmp_path / "out")
    report.main([str(out)])
    assert capsys.readouterr().out.strip() == str(out / "report.html")


@pytest.mark.parametrize(
    "name, content, said",
    [
        (
            "comparison.json",
            "{",
            "comparison.json: no whole results of python -m dl_slicer.compare",
        ),
        ("comparison.json", "{}", "it has no mcnemar"),
        ("per_city.csv", "city\nAa\n", "it has no ci95_low"),
        ("per_city.csv", f"{','.join(COLUMNS)}\n../x{',1' * 10}\n", "must be a name"),
        ("per_city.csv", f"{','.join(COLUMNS)}\nx{',nan' * 10}\n", "line 2: "),
        ("patches/Aa (AAA).jpg", "no picture", "no whole JPEG file"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, content, said):
    out = write(tmp_path / "out")
    (out / name).write_text(content)
    with pytest.raises(InputError) as error:
        write_comparison_page(out)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (out / "report.html").exists()


@needs_browser
def test_nothing_overflows_and_nothing_is_complained_of(tmp_path):
    file = write_comparison_page(write(tmp_path / "out", cities=("Aa (AAA)", "a" * 150 + ODD)))
    with browser.Page(tmp_path / "chromium") as page:
        for width, dark in ((390, True), (1440, False)):
            page.open(file.as_uri(), width, dark)
            assert page.run("document.documentElement.scrollWidth") <= width
            assert page.run(WIDE) == []
            assert page.run(CONTRAST) >= 4.5
            assert page.run(SMUGGLED) == 0
            assert page.complaints() == []
