"""report.html: what it says, that it is whole, and that it works in a real browser."""

import csv
import json
import re

import browser
import numpy as np
import pytest
from made_up_results import made_up
from page_checks import CONTRAST, WIDE, Checker, check, needs_browser

from dl_slicer.cli import InputError
from dl_slicer.files import write_rows
from dl_slicer.report.page import write_report

ODD = [
    "Almaty (ALA)",
    "<script>alert(1)</script> & Söhne (XSS)",
    "Say \"hello\" 'there' (QQQ)",
    "Санкт-Петербург (LED)",
    "القاهرة (CAI)",
    "東京 (HND)",
    "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch",
    "Ærø & Ø <b> (ÆRØ)",
    "{braces} %s \\n (BRC)",
]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """45 cities, some with odd names."""
    return made_up(
        tmp_path_factory.mktemp("large") / "test_b",
        sorted(ODD + [f"City number {i} (C{i:02d})" for i in range(45 - len(ODD))]),
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two cities, and nothing that a run may lack."""
    return made_up(
        tmp_path_factory.mktemp("small") / "test_b",
        ["Aa (AAA)", "Bb"],
        intervals=False,
        log=False,
        pictures=False,
        rasters=1,
    )


@pytest.mark.parametrize("which", ["large", "small"])
def test_page_is_whole_and_alone(which, request):
    text = request.getfixturevalue(which).read_text(encoding="utf-8")
    checked = Checker(text)
    assert checked.faults == []
    assert len(checked.ids) == len(set(checked.ids))
    assert all(attributes.get("alt") for attributes in checked.attributes_of("img"))
    assert all(
        attributes.get("aria-label") or attributes.get("aria-hidden")
        for attributes in checked.attributes_of("svg")
    )
    inner = {
        attributes["href"].removeprefix("#")
        for attributes in checked.attributes_of("a")
        if attributes["href"].startswith("#")
    }
    assert inner <= set(checked.ids)
    links = [
        attributes[key]
        for tag, attributes in checked.tags
        for key in ("src", "href", "srcset", "data", "action")
        if key in attributes
    ]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"https?://|url\(|@import", re.sub(r'"data:[^"]*"', "", text))
    # also where a city is called <script>
    assert [tag for tag, _ in checked.tags].count("script") == 1
    plain = [text for text in checked.text if "braces" not in text and '"' not in text]
    assert not re.search(r"\bNone\b(?! of)|nan\b|\{|\}", " ".join(plain))


def test_at_most_10_mb_with_all_portraits(large):
    assert large.stat().st_size < 10e6
    assert large.read_text(encoding="utf-8").count("data:image/jpeg") == 45 * 8


def test_names_are_shown_as_they_are(large):
    text = " ".join(check(large).text)
    assert all(city in text for city in ODD)


def test_sentences_and_figures(large, small):
    words = check(large).words()
    assert re.search(
        r"Of 900 patches of places never seen in training, \d\d\.\d % were given their true city"
        r" \(95 % interval 70\.0 to 90\.0 %\)",
        words.replace(" ,", ","),
    )
    assert "--no-flips" in words
    assert "--recipe robust" in words
    assert "--compile" in words
    assert "--deterministic" not in words
    assert "No log.csv" not in words
    words = check(small).words()
    assert "No interval." in words
    assert "No log.csv" in words
    assert "not known: no config.json" in words
    assert "95 % interval 70" not in words


def test_what_the_temperature_does_is_said(tmp_path):
    def text_with(**changes):
        out = tmp_path / "-".join(["run", *changes])
        made_up(out, ["Aa (AAA)", "Bb (BBB)"])
        found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        (out / "metrics.json").write_text(json.dumps(found | changes), encoding="utf-8")
        write_report(out)
        return " ".join((out / "report.html").read_text(encoding="utf-8").split())

    assert "the checkpoint has no temperature" in text_with()
    tempered = text_with(temperature=1.8, ece_untempered=0.12, raster_accuracy_untempered=0.875)
    for words in ("here 1.8, so that the network says less", "by 12.0 %", "87.5 %"):
        assert words in tempered
    assert "says more" in text_with(temperature=0.6)


def test_results_that_are_not_whole(tmp_path):
    with pytest.raises(InputError, match="no whole results"):
        write_report(tmp_path)
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match="no whole results"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_cities_of_one_code_are_told_apart(tmp_path):
    same = ["San Jose del Cabo (SJ)", "San Jose de Maipo (SJ)"]
    text = made_up(tmp_path / "test", [*same, "Cc (CCC)"], log=False).read_text("utf-8")
    labels = re.findall(r'class="end">([^<]*[(A-Z][^<]*)</text>', text)
    assert labels == [*same, "CCC"]
    assert f"<figcaption>{same[0]} 98.8" in text
    assert "<figcaption>SJ " not in text


def test_a_matrix_of_very_many_cells_shows_the_largest(tmp_path):
    cities = [f"City number {i} (C{i:03d})" for i in range(120)]
    file = made_up(tmp_path / "test", cities, pictures=False)
    counts = np.ones((120, 120), int)
    counts[0, 1:] = 2
    write_rows(
        file.with_name("confusion_matrix.csv"),
        ("true", *cities),
        ((city, *row) for city, row in zip(cities, counts.tolist(), strict=True)),
    )
    checked = check(write_report(file.parent))
    assert "14 161 cells of the smallest shares are left out" in checked.words()
    titles = [text for text in checked.text if " taken for City" in text]
    assert len(titles) == 119
    assert all(title.startswith(cities[0]) for title in titles)


def test_a_city_without_patches(tmp_path):
    file = made_up(tmp_path / "test", ["Aa", "Bb", "Cc"])
    for name in ("per_city.csv", "nearest.csv", "portraits/portraits.csv", "confusion_matrix.csv"):
        with open(file.parent / name, newline="") as lines:
            header, *rows = csv.reader(lines)
        empty = {
            "per_city.csv": ["Bb", "Bb", 0, 0, "", "", "", "none: no patches", "", "", "", ""],
            "nearest.csv": ["Bb", "Bb", *[""] * 7, "no patches", *[""] * 4],
            "confusion_matrix.csv": ["Bb", 0, 0, 0],
        }.get(name)
        write_rows(
            file.parent / name,
            header,
            [row if row[0] != "Bb" else empty for row in rows if empty or row[0] != "Bb"],
        )
    text = write_report(file.parent).read_text(encoding="utf-8")
    assert Checker(text).faults == []
    assert "Without patches here: <bdi>Bb</bdi>" in text
    assert 'id="city-2"' in text
    assert 'id="city-1"' not in text


def test_how_sure_a_nearest_city_is(tmp_path):
    """Of seven cities the first, fourth and seventh are not told apart, see made_up_results.py."""
    file = made_up(tmp_path / "test", [f"C{i}" for i in range(7)], pictures=False)
    words = check(file).words()
    assert "How sure this is." in words
    assert "2 cities have a nearest city, by features, that is told apart" in words
    assert "Of 3 cities the nearest is not told apart" in words
    assert "Of 2 cities it cannot be known" in words
    assert words.count("first in 61.0 % of draws, not told apart") == 3
    assert words.count("first in 90.0 % of draws") == 7


def test_results_of_before_say_nothing_of_how_sure_a_nearest_city_is(tmp_path):
    file = made_up(tmp_path / "test", ["Aa", "Bb", "Cc"], pictures=False)
    table = file.with_name("nearest.csv")
    lines = table.read_text(encoding="utf-8").splitlines()
    table.write_text("".join(line.rsplit(",", 4)[0] + "\n" for line in lines), encoding="utf-8")
    words = check(write_report(file.parent)).words()
    assert "Which cities resemble each other" in words
    assert "How sure this is" not in words
    assert "of draws" not in words


def test_training_figures_are_told_from_test_figures(tmp_path):
    file = made_up(tmp_path / "val", ["Aa", "Bb"], pictures=False)
    metrics = json.loads((tmp_path / "val" / "metrics.json").read_text())
    (tmp_path / "val" / "metrics.json").write_text(json.dumps({**metrics, "split": "val"}))
    assert "Not a test" not in file.read_text(encoding="utf-8")
    assert "Not a test" in write_report(tmp_path / "val").read_text(encoding="utf-8")


# In a real browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser.Page(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("which", ["large", "small"])
def test_nothing_overflows_and_nothing_is_complained_of(page, which, width, dark, request):
    file = request.getfixturevalue(which)
    page.open(file.as_uri(), width, dark)
    page.run("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    assert page.run("innerWidth") == width
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run(WIDE) == []
    broken = "[...document.images].filter(e => e.loading != 'lazy' && !e.naturalWidth)"
    assert page.run(f"{broken}.length") == 0
    assert page.run(CONTRAST) >= 4.5
    colour = page.run("getComputedStyle(document.body).backgroundColor")
    background = sum(map(int, re.findall(r"\d+", colour)))
    assert background < 150 if dark else background > 600
    assert [url for url in page.requests() if not url.startswith("data:")] == [file.as_uri()]
    assert page.complaints() == []


@needs_browser
def test_browser_notes_errors_requests_and_overflow(page, tmp_path):
    (tmp_path / "bad.html").write_text(
        "<body><p style='width:3000px'>wide<script>console.log(1);"
        " fetch('http://127.0.0.1:9/x').catch(() => 0); undefined_thing()</script>"
    )
    page.open((tmp_path / "bad.html").as_uri(), 390)
    assert len(page.complaints()) >= 2
    assert any("127.0.0.1" in url for url in page.requests())
    assert page.run(WIDE)


CELLS = "[...document.querySelector('#cities tbody').rows].map(row => row.cells[{}].dataset.v)"
SORTED = (
    "[...document.querySelectorAll('#cities thead th')].map(head => head.getAttribute('aria-sort'))"
)


@needs_browser
def test_cities_are_sorted_by_click_and_by_key(page, large):
    page.open(large.as_uri(), 1440)
    with open(large.with_name("per_city.csv"), newline="", encoding="utf-8") as lines:
        cities = list(csv.DictReader(lines))
    accuracy = sorted(float(row["accuracy"]) for row in cities)
    assert page.run(CELLS.format(0)) == [row["city"] for row in cities]
    assert page.run(SORTED) == ["ascending"] + [None] * 8
    page.click("#cities th:nth-child(2) button")
    assert [float(value) for value in page.run(CELLS.format(1))] == accuracy[::-1]
    assert page.run(SORTED) == [None, "descending"] + [None] * 7
    page.click("#cities th:nth-child(2) button")
    assert [float(value) for value in page.run(CELLS.format(1))] == accuracy
    assert page.run(SORTED) == [None, "ascending"] + [None] * 7
    said = page.run("document.getElementById('said').textContent")
    assert said == "Sorted by Accuracy, ascending"
    # The rows go along as wholes, and what is empty comes last in either direction.
    names = page.run(CELLS.format(0))
    found = dict(zip(names, map(float, page.run(CELLS.format(1))), strict=True))
    assert found == {row["city"]: float(row["accuracy"]) for row in cities}
    for _ in range(2):
        page.click("#cities th:nth-child(9) button")
        values = page.run(CELLS.format(8))
        assert values == [value for value in values if value] + [""] * values.count("")
        assert 0 < values.count("") < 45
    page.run("document.querySelector('#cities th:nth-child(1) button').focus()")
    page.press("Enter", 13)
    names = page.run(CELLS.format(0))
    assert page.run(SORTED)[0] == "ascending"
    assert sorted(names) == sorted(row["city"] for row in cities)
    assert names == page.run(f"{CELLS.format(0)}.sort((a, b) => a.localeCompare(b))")
    page.press("Tab", 9)
    page.press("Enter", 13)
    assert page.run(SORTED)[1] == "descending"


@needs_browser
def test_a_city_leads_to_its_portrait(page, large):
    opened = "document.querySelectorAll('details.portrait[open]').length"
    page.open(large.as_uri(), 390)
    assert page.run(opened) == 1
    page.run("document.querySelector('#cities tbody tr:nth-child(30) a').click()")
    page.run("new Promise(done => setTimeout(done, 300))")
    assert page.run(f"document.querySelector(location.hash).open && {opened}") == 2
    page.run("document.querySelector('[data-details=open]').click()")
    assert page.run(opened) == 45
