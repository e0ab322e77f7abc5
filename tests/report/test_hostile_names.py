"""Whatever the files hold, none of it becomes part of the page's HTML."""

import csv
import json

import browser
import pytest
from conftest import picture
from made_up_results import made_up
from page_checks import SMUGGLED, check, needs_browser

from dl_slicer.cli import InputError
from dl_slicer.files import write_rows
from dl_slicer.report.page import write_report
from dl_slicer.report.words import replace_unprintable

IMAGE = "<img src=x onerror=smuggled=1>"
HOSTILE = f"\"'>{IMAGE}"
JSON_FILES = ("test_b/metrics.json", "config.json", f"{HOSTILE}/dataset.json")
TABLES = (
    "log.csv",
    "test_b/per_city.csv",
    "test_b/nearest.csv",
    "test_b/similarity.csv",
    "test_b/confusion_matrix.csv",
    "test_b/portraits/portraits.csv",
)


def places_in(value, path=()):
    """The paths of all values and of all keys of a JSON file."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from places_in(inner, (*path, key))
            if isinstance(value, dict):
                yield (*path, key, "its key")
    else:
        yield path


def poison(value, path):
    """Put the hostile text where a path leads."""
    *way, last = path
    holder = value
    if last == "its key":
        *way, key = way
        for step in way:
            holder = holder[step]
        holder[HOSTILE] = holder.pop(key)
        return
    for step in way:
        holder = holder[step]
    holder[last] = HOSTILE


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """A page for which all values that its reading lets pass are hostile, and their places."""
    run = tmp_path_factory.mktemp("poisoned")
    out = run / "test_b"
    made_up(out, ["Aa (AAA)", "Bb (BBB)", "Cc"])
    for image in (*out.rglob("*.png"), *out.rglob("*.jpg")):
        picture(2, 4).save(image)  # or reading the page again and again would take a minute
    (run / HOSTILE).mkdir()
    patch_set = {"raw": "../raw", "patch_size": 480, "stride": 240, "image_size": 224, "seed": 0}
    patch_set |= {"classes": ["Aa"], "counts": {"train": {"Aa": 4}, "val": {"Aa": 7}}}
    (run / HOSTILE / "dataset.json").write_text(json.dumps(patch_set))
    metrics = json.loads((out / "metrics.json").read_text())
    metrics |= {"data": str(run / HOSTILE), "tta": True}
    (out / "metrics.json").write_text(json.dumps(metrics))
    config = json.loads((run / "config.json").read_text())
    config |= {"versions": {"torch": "2.6"}, "device_name": "cpu"}
    (run / "config.json").write_text(json.dumps(config))

    passed = []
    for name in JSON_FILES:
        passed += poison_json(out, run / name)
    for name in TABLES:
        passed += poison_table(out, run / name)
    return write_report(out, out.parent), passed


def poison_json(out, file):
    passed = []
    for path in list(places_in(json.loads(file.read_text()))):
        if path == ("data",) and file.name == "metrics.json":
            continue  # its folder's name is hostile, and must be found
        before = file.read_text()
        value = json.loads(before)
        poison(value, path)
        file.write_text(json.dumps(value))
        if is_readable(out):
            passed.append((file.name, *path))
        else:
            file.write_text(before)
    return passed


def poison_table(out, file):
    """The header (city names in that of the confusion matrix), and each column in all rows."""
    passed = []
    with open(file, newline="", encoding="utf-8") as lines:
        header, *rows = csv.reader(lines)
    for column, name in enumerate(header):
        new_header = [HOSTILE if i == column else text for i, text in enumerate(header)]
        new_rows = [[*row[:column], HOSTILE, *row[column + 1 :]] for row in rows]
        write_rows(file, new_header, rows)
        if is_readable(out):
            passed.append((file.name, name, "header"))
            header = new_header
        write_rows(file, header, new_rows)
        if is_readable(out):
            passed.append((file.name, name))
            rows = new_rows
        write_rows(file, header, rows)
    return passed


def is_readable(out):
    try:
        page = write_report(out, out.parent)
    except InputError:
        return False
    checked = check(page)
    assert checked.faults == []
    assert not any("onerror" in attributes for _, attributes in checked.tags)
    assert not any("<" in tag for tag, _ in checked.tags)
    return True


def test_the_hostile_text_is_shown_as_text(poisoned):
    page, passed = poisoned
    assert check(page).words().count(IMAGE) > 50
    # The test is none if reading refuses what would be told.
    for place in (
        ("metrics.json", "split"),
        ("metrics.json", "checkpoint"),
        ("metrics.json", "confused_pairs", 0, "a"),
        ("metrics.json", "versions", "torch"),
        ("metrics.json", "versions", "torch", "its key"),
        ("config.json", "weights"),
        ("config.json", "lr"),
        ("config.json", "lr", "its key"),
        ("dataset.json", "raw"),
        ("per_city.csv", "city"),
        ("per_city.csv", "interval"),
        ("per_city.csv", "most_confused_with"),
        ("nearest.csv", "confusion_1"),
        ("nearest.csv", "views"),
        ("similarity.csv", "a"),
        ("portraits.csv", "true"),
        ("portraits.csv", "explained"),
        ("confusion_matrix.csv", "Aa (AAA)", "header"),
    ):
        assert place in passed
    # Numbers are numbers.
    assert ("metrics.json", "confused_pairs", 0, "a_as_b") not in passed
    assert ("portraits.csv", "side") not in passed


@needs_browser
def test_a_browser_makes_no_element_of_it(poisoned, tmp_path):
    file, _ = poisoned
    with browser.Page(tmp_path) as page:
        for width in (390, 1440):
            page.open(file.as_uri(), width)
            page.run("document.querySelectorAll('details').forEach(e => { e.open = true; })")
            assert page.run(SMUGGLED) == 0
            assert page.run("typeof smuggled") == "undefined"
            assert IMAGE in page.run("document.body.innerText")
            assert page.complaints() == []


@needs_browser
def test_the_browser_would_notice(tmp_path):
    (tmp_path / "bad.html").write_text(f"<body><p>{IMAGE}</p>")
    with browser.Page(tmp_path / "profile") as page:
        page.open((tmp_path / "bad.html").as_uri())
        assert page.run(SMUGGLED) == 1


def test_control_characters_and_halves_of_characters_are_replaced():
    assert (
        replace_unprintable("a\x00b\x1bc\x85d\ud800e\nf\tö")
        == "a\ufffdb\ufffdc\ufffdd\ufffde\nf\ufffdö"
    )
