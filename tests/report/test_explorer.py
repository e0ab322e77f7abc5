"""The page to look around in a raster: what it says, that it is whole, and in a real browser."""

import json
import math
import os
import time

import browser
import numpy as np
import pytest
from made_up_explorer import (
    CELL,
    CITIES,
    COLS,
    GROUND,
    HEIGHT,
    ROWS,
    WIDTH,
    made_up_explorer,
    shares_of_places,
)
from made_up_results import made_up
from page_checks import CONTRAST, SMUGGLED, WIDE, check, needs_browser
from PIL import Image

from dl_slicer import files
from dl_slicer.cities import colour
from dl_slicer.cli import InputError
from dl_slicer.report.__main__ import main
from dl_slicer.report.explorer import RAMPS, write_explorer

IMAGE = "<img src=x onerror=smuggled=1>"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages of a whole explorer, of one without saliency, and of one of saliency alone."""
    folder = tmp_path_factory.mktemp("explorers")
    return {
        "whole": write_explorer(made_up_explorer(folder / "whole.explorer")),
        "places": write_explorer(
            made_up_explorer(folder / "places.explorer", saliency=False, metres_a_pixel=None)
        ),
        "saliency": write_explorer(made_up_explorer(folder / "saliency.explorer", shares=False)),
    }


@pytest.mark.parametrize("which", ["whole", "places", "saliency"])
def test_page_is_whole_and_alone(pages, which):
    checked = check(pages[which])
    assert checked.faults == []
    assert len(checked.ids) == len(set(checked.ids))
    links = [
        attributes[key]
        for _, attributes in checked.tags
        for key in ("src", "href", "srcset", "action")
        if key in attributes
    ]
    assert all(link.startswith("data:") for link in links)
    for tag in ("input", "select", "canvas"):
        for attributes in checked.attributes_of(tag):
            assert attributes.get("aria-label") or attributes["type"] == "checkbox"
    with_shares = which != "saliency"
    assert ("Most similar city" in checked.words()) == with_shares
    assert ("share" in checked.ids) is False
    assert ("similar" in checked.ids) == with_shares
    assert ("depth" in checked.ids) == (which != "places")
    assert ("scale" in checked.ids) == (which != "places")
    assert ("A place is 33 m wide" in checked.words()) == (which == "whole")


def test_the_page_lies_beside_its_folder(tmp_path):
    folder = made_up_explorer(tmp_path / "a b.c.explorer")
    assert write_explorer(folder) == tmp_path / "a b.c.html"
    with pytest.raises(InputError, match=r"ends with \.explorer"):
        write_explorer(tmp_path)


def test_the_legend_counts_places_with_data(pages):
    best = np.delete(shares_of_places().argmax(2).ravel(), 5)
    words = check(pages["whole"]).words()
    assert "of 23 places" in words
    assert f"Aa (AAA) {100 * (best == 0).mean():.1f} %" in words
    places = np.bincount(best)
    order = np.argsort(-places, kind="stable")
    found = [words.index(f"{CITIES[city]} {100 * places[city] / 23:.1f} %") for city in order]
    assert found == sorted(found)


def test_cities_beyond_the_most_common_are_folded(tmp_path):
    cities = [f"City {i} (C{i})" for i in range(14)]
    page = write_explorer(made_up_explorer(tmp_path / "a.explorer", cities))
    assert check(page).attributes_of("details")
    assert "4 others" in check(page).words()


def test_a_large_raster_of_45_cities_fits_into_12_mb(tmp_path):
    """Pictures of noise, which JPEG and PNG cannot shrink, of four depths."""
    folder = tmp_path / "large.explorer"
    folder.mkdir()
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (1000, 1000, 3), np.uint8))
    noise.save(folder / "raster.jpg", quality=90)
    layers = {f"layer{i}": "map.png" for i in (1, 2, 3, 4)}
    Image.fromarray(rng.integers(0, 256, (1600, 1600), np.uint8)).save(folder / "map.png")
    rng.integers(0, 6, (166, 166, 45), np.uint8).tofile(folder / "shares.u8")
    found = {
        "title": "large",
        "width": 39840,
        "height": 39840,
        "cell": 240,
        "rows": 166,
        "cols": 166,
        "classes": [f"City {i}" for i in range(45)],
        "colours": ["#1f77b4"] * 45,
        "picture": "raster.jpg",
        "shares": "shares.u8",
        "saliency": {"relevance-cam": {"target": "City 1", "layers": layers}},
    }
    (folder / "explorer.json").write_text(json.dumps(found))
    size = write_explorer(folder).stat().st_size
    assert 4e6 < size < 12e6


def test_the_command_makes_all_pages_of_a_folder_again(tmp_path, capsys):
    for name in ("b", "a"):
        made_up_explorer(tmp_path / "places" / f"{name}.explorer", saliency=False)
    main([str(tmp_path / "places")])
    paths = [tmp_path / "places" / name for name in ("a.html", "b.html")]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    assert all(path.exists() for path in paths)
    paths[1].unlink()
    with files.hold(tmp_path / "places"), pytest.raises(InputError, match="writes into this"):
        main([str(tmp_path / "places" / "b.explorer")])
    assert not paths[1].exists()
    main([str(tmp_path / "places" / "b.explorer")])
    assert paths[1].exists()
    made_up(tmp_path / "test_b", ["Aa", "Bb"], pictures=False).unlink()
    made_up_explorer(tmp_path / "test_b" / "a.explorer", saliency=False)
    main([str(tmp_path / "test_b")])
    assert (tmp_path / "test_b" / "report.html").exists()
    assert (tmp_path / "test_b" / "a.html").exists()


# What is refused


def changed(**changes):
    return lambda folder: rewrite(folder, changes)


def rewrite(folder, changes):
    found = json.loads((folder / "explorer.json").read_text()) | changes
    found = {key: value for key, value in found.items() if value != "LEFT OUT"}
    (folder / "explorer.json").write_text(json.dumps(found))


def cut_in_half(name):
    def cut(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return cut


def as_picture(name, size, mode="RGB"):
    return lambda folder: Image.new(mode, size).save(folder / name)


def link_outside(folder):
    (folder.parent / "outside.jpg").write_bytes((folder / "raster.jpg").read_bytes())
    (folder / "raster.jpg").unlink()
    (folder / "raster.jpg").symlink_to("../outside.jpg")


def link_to_itself(folder):
    (folder / "shares.u8").unlink()
    (folder / "shares.u8").symlink_to("shares.u8")


def pipe(name):
    def make(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return make


FAULTS = {
    "no_json": (lambda folder: (folder / "explorer.json").unlink(), "explorer.json is not there"),
    "half_a_json": (cut_in_half("explorer.json"), "no whole explorer"),
    "a_list": (lambda folder: (folder / "explorer.json").write_text("[]"), "no mapping"),
    "no_width": (changed(width="LEFT OUT"), "explorer.json has no width"),
    "text_for_width": (changed(width="480"), "width is no whole number"),
    "true_for_rows": (changed(rows=True), "rows is no whole number"),
    "too_few_rows": (changed(rows=2), "2 rows of 80 pixels do not cover 320"),
    "too_many_cols": (changed(cols=9), "9 cols of 80 pixels do not cover 480"),
    "cell_of_nothing": (changed(cell=0), "cell is no length"),
    "metres_no_number": (changed(metres_a_pixel=math.nan), "metres_a_pixel is no length"),
    "title_no_text": (changed(title=3), "title is no text"),
    "too_few_colours": (changed(colours=["#000000"]), "not as many colours as classes"),
    "code_for_a_colour": (changed(colours=["red;x:url(//a)"] * 7), "is not as #1f77b4"),
    "no_classes": (changed(classes=[], colours=[]), "not as many colours"),
    "no_data_far_away": (changed(no_data=[24]), "no list of places from 0 to 23"),
    "unlike_far_away": (changed(unlike=[-1]), "unlike is no list of places from 0 to 23"),
    "absolute_path": (changed(picture="/etc/passwd"), "outside the folder"),
    "path_upwards": (changed(shares="../shares.u8"), "outside the folder"),
    "link_outside": (link_outside, "outside the folder"),
    "link_to_itself": (link_to_itself, "symbolic links"),
    "pipe": (pipe("raster.jpg"), "raster.jpg is no file"),
    "pipe_for_the_json": (pipe("explorer.json"), "explorer.json is no file"),
    "json_too_deep": (lambda f: (f / "explorer.json").write_text("[" * 100_000), "recursion"),
    "name_too_long": (changed(picture="a" * 5000), "aaa …"),
    "name_with_a_zero": (changed(picture="a\0b"), "no whole explorer"),
    "no_picture": (changed(picture="no.jpg"), "no.jpg is not there"),
    "half_a_picture": (cut_in_half("raster.jpg"), "no whole JPEG or PNG"),
    "shares_for_a_picture": (changed(picture="shares.u8"), "no whole JPEG or PNG"),
    "picture_of_another_shape": (as_picture("raster.jpg", (480, 300)), "480 x 300 pixels"),
    "picture_too_large": (as_picture("raster.jpg", (4800, 3200)), "4800 x 3200 pixels"),
    "coloured_saliency": (as_picture("relevance-cam.layer4.png", (120, 80)), "RGB"),
    "half_the_shares": (cut_in_half("shares.u8"), "shares.u8 has 84 bytes instead of 168"),
    "saliency_no_mapping": (changed(saliency=[1]), "saliency is no mapping"),
    "no_target": (changed(saliency={"a": {"layers": {}}}), "has no target"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_folder_is_refused_in_one_line(tmp_path, fault):
    damage, words = FAULTS[fault]
    folder = made_up_explorer(tmp_path / "a.explorer")
    damage(folder)
    with pytest.raises(InputError) as refusal:
        write_explorer(folder)
    line = str(refusal.value)
    assert words in line
    assert str(folder) in line
    assert "\n" not in line
    assert len(line) < 500
    assert not (tmp_path / "a.html").exists()


# In a real browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser.Page(tmp_path_factory.mktemp("chromium")) as page:
        yield page


READY = """new Promise(done => {
  const look = () => document.getElementById('map').getAttribute('aria-busy') === 'false'
    ? requestAnimationFrame(() => requestAnimationFrame(() => done(true))) : setTimeout(look, 10);
  look();
})"""
SIMILAR = "[...document.querySelectorAll('#similar li')].map(e => e.innerText.split('\\n'))"
WHERE = "document.getElementById('where').textContent"
BOX = """(() => {
  const box = document.getElementById('map').getBoundingClientRect();
  return [box.x, box.y, box.width, box.height];
})()"""


def opened(page, file, width=1440, dark=False):
    page.open(file.as_uri(), width, dark)
    assert page.run(READY)
    return Map(page)


class Map:
    """Where things are on the map when it shows the whole raster."""

    def __init__(self, page):
        self.page = page
        self.x, self.y, self.width, self.height = page.run(BOX)
        self.scale = min(self.width / WIDTH, self.height / HEIGHT)

    def point(self, row, column):
        """The middle of a place, in pixels of the window."""
        x = self.width / 2 + ((column + 0.5) * CELL - WIDTH / 2) * self.scale
        y = self.height / 2 + ((row + 0.5) * CELL - HEIGHT / 2) * self.scale
        return self.x + x, self.y + y

    def colour(self, row, column):
        """Red, green, blue and opacity that are drawn there."""
        x, y = self.point(row, column)
        at = f"{round(x - self.x)}, {round(y - self.y)}"
        context = "document.getElementById('map').getContext('2d')"
        return tuple(self.page.run(f"[...{context}.getImageData({at}, 1, 1).data]"))

    def set(self, layer, shown, opacity=None):
        """Turn a layer on or off, and give it an opacity, as a user does."""
        script = f"""(() => {{
          const [shown, opacity] = document.querySelectorAll('[data-layer={layer}] input');
          if (shown.checked !== {json.dumps(shown)}) shown.click();
          if ({json.dumps(opacity)} === null) return;
          opacity.value = {json.dumps(opacity)};
          opacity.dispatchEvent(new Event('input'));
        }})()"""
        self.page.run(script)
        self.page.run(READY)


def choose(page, selector, value):
    page.run(f"""(() => {{
      const select = document.querySelector('{selector}');
      select.value = '{value}';
      select.dispatchEvent(new Event('input'));
    }})()""")
    page.run(READY)


def shown_at(page):
    """The place that is named, as row and column from 0, and its cities with their per cent."""
    words = page.run(WHERE).replace(",", "").replace(":", "").split()
    return (int(words[1]) - 1, int(words[5]) - 1), page.run(SIMILAR)


def expected(row, column):
    shares = shares_of_places()[row, column].astype(int)
    order = sorted(range(len(CITIES)), key=lambda city: -shares[city])[:5]
    return [[CITIES[city], f"{round(shares[city] / 2.55)} %"] for city in order]


@needs_browser
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("which", ["whole", "saliency"])
def test_nothing_overflows_and_nothing_is_complained_of(page, pages, which, width):
    for dark in (False, True):
        opened(page, pages[which], width, dark)
        assert page.run("document.documentElement.scrollWidth") <= width
        assert page.run(WIDE) == []
        assert page.run(CONTRAST) >= 4.5
        requests = [url for url in page.requests() if not url.startswith("data:")]
        assert requests == [pages[which].as_uri()]
        assert page.complaints() == []


@needs_browser
@pytest.mark.parametrize("width", [390, 1440])
def test_each_layer_shows_its_colours(page, pages, width):
    shown = opened(page, pages["whole"], width)
    row, column = 1, 4  # the 10th place: the city of number 3, and the right half
    shown.set("cities", False)
    assert np.abs(np.array(shown.colour(row, column)) - (*GROUND, 255)).max() <= 3
    shown.set("raster", False)
    assert shown.colour(row, column)[3] == 0
    shown.set("cities", True, 100)
    assert shown.colour(row, column) == (*colour(3), 255)
    assert shown.colour(2, 2) == (*colour(0), 255)
    assert shown.colour(row - 0.45, column) == (*colour(3), 255)  # up to the rim of the place
    assert shown.colour(0, 5)[3] == 0  # no data
    shown.set("cities", True, 50)
    assert abs(shown.colour(row, column)[3] - 128) <= 1
    shown.set("cities", False)
    shown.set("saliency", True, 100)
    assert shown.colour(row, column) == (*RAMPS["saliency"][-1], 255)
    assert shown.colour(row, 1)[3] < 60
    choose(page, "#depth", 1)
    until = time.time() + 10
    while shown.colour(row, 1) != (*RAMPS["saliency"][-1], 255):  # its picture is being decoded
        assert time.time() < until
    shown.set("saliency", False)
    shown.set("share", True, 100)
    choose(page, "#city", 3)
    assert shown.colour(row, column) == (*RAMPS["share"][-1], 255)  # nowhere is it higher
    assert shown.colour(0, 5)[3] == 0
    assert page.run("document.getElementById('share-most').textContent") == "60 %"
    page.run("document.querySelector('[data-city=\"5\"]').click()")
    page.run(READY)
    assert page.run("document.getElementById('city').value") == "5"
    assert shown.colour(row, column) != (*RAMPS["share"][-1], 255)


@needs_browser
def test_places_unlike_any_city_are_hatched_and_named_so(page, pages, tmp_path):
    file = write_explorer(made_up_explorer(tmp_path / "a.explorer", unlike=[0, 10]))
    text = file.read_text()
    assert "Hatched: unlike any city" in text
    assert "2\u00a0places" in text
    assert "Hatched" not in pages["whole"].read_text()
    shown = opened(page, file)
    for layer in ("raster", "cities"):
        shown.set(layer, False)

    def is_painted(row, column):
        return {
            shown.colour(row, column + shift)[3] > 0 for shift in (-0.2, -0.1, -0.05, 0, 0.07, 0.13)
        }

    assert True in is_painted(1, 4)  # the 10th place
    assert True in is_painted(0, 0)
    assert is_painted(1, 3) == {False}
    page.mouse("mouseMoved", *shown.point(1, 4))
    assert page.run(WHERE).endswith("unlike any city the network knows")
    page.mouse("mouseMoved", *shown.point(1, 3))
    assert "unlike" not in page.run(WHERE)
    shown.set("unlike", False)
    assert is_painted(1, 4) == {False}


@needs_browser
def test_the_place_under_the_pointer_is_named(page, pages):
    shown = opened(page, pages["whole"])
    for place in ((1, 4), (3, 0), (0, 1)):
        page.mouse("mouseMoved", *shown.point(*place))
        assert shown_at(page) == (place, expected(*place))
    page.mouse("mouseMoved", *shown.point(0, 5))
    assert page.run(WHERE).endswith("no data")
    assert page.run("getComputedStyle(document.getElementById('similar')).visibility") == "hidden"
    page.mouse("mouseMoved", *shown.point(0, 4))
    page.mouse("mouseMoved", *shown.point(-0.7, 4))  # beside the raster the last one stays
    assert shown_at(page)[0] == (0, 4)


@needs_browser
def test_keys_go_from_place_to_place(page, pages):
    shown = opened(page, pages["whole"], 390)
    place, similar = shown_at(page)
    assert place == (ROWS // 2, COLS // 2)
    assert similar == expected(*place)
    white = (255, 255, 255, 255)
    assert shown.colour(place[0] - 0.5, place[1]) == white
    page.run("document.getElementById('map').focus()")
    page.press("ArrowLeft", 37)
    page.press("ArrowUp", 38)
    assert shown_at(page) == ((1, 2), expected(1, 2))
    assert page.run(READY) and shown.colour(0.5, 2) == white
    said = page.run("document.getElementById('said').textContent")
    assert "Row 2 of 4, column 3 of 6" in said
    assert f"{expected(1, 2)[0][0]}\n{expected(1, 2)[0][1]}" in said
    for _ in range(ROWS):
        page.press("ArrowUp", 38)
    assert shown_at(page)[0] == (0, 2)
    lengths = []
    for key, code in (("+", 187), ("0", 48)):
        page.press(key, code)
        page.run(READY)
        lengths.append(page.run("document.getElementById('scale').textContent"))
    assert lengths == ["20 m", "50 m"]


@needs_browser
def test_wheel_drag_and_pinch_move_the_map(page, pages):
    shown = opened(page, pages["whole"])
    x, y = shown.point(1, 4)
    page.mouse("mouseWheel", x, y, deltaX=0, deltaY=-500)  # e times as large, about the pointer
    page.mouse("mouseMoved", x, y)
    assert shown_at(page)[0] == (1, 4)
    page.mouse("mouseMoved", x - math.e * CELL * shown.scale, y)
    assert shown_at(page)[0] == (1, 3)
    page.mouse("mousePressed", x, y, button="left", buttons=1)
    page.mouse("mouseMoved", x - math.e * CELL * shown.scale, y, button="left", buttons=1)
    page.mouse("mouseReleased", x - math.e * CELL * shown.scale, y, button="left")
    page.mouse("mouseMoved", x, y)
    assert shown_at(page)[0] == (1, 5)
    page.run("document.querySelector('[data-zoom=\"0\"]').click()")
    page.mouse("mouseMoved", *shown.point(2, 2))
    assert shown_at(page)[0] == (2, 2)
    x, y = shown.x + shown.width / 2, shown.y + shown.height / 2
    page.touch("touchStart", (x - 50, y), (x + 50, y))
    page.touch("touchMove", (x - 150, y), (x + 150, y))
    page.touch("touchEnd")
    page.mouse("mouseMoved", x + 2.5 * CELL * shown.scale, y)
    assert shown_at(page)[0] == (2, 3)
    assert page.complaints() == []


@needs_browser
def test_a_browser_makes_no_element_of_names(page, tmp_path):
    cities = [f"{IMAGE}\"'></script> {i} (C{i})" for i in range(3)]
    folder = made_up_explorer(tmp_path / "a.explorer", cities, title=IMAGE, name=IMAGE)
    found = json.loads((folder / "explorer.json").read_text())
    found["saliency"] = {
        IMAGE: {"target": IMAGE, "layers": {IMAGE: "relevance-cam.layer1.png"}},
    }
    (folder / "explorer.json").write_text(json.dumps(found))
    file = write_explorer(folder)
    assert check(file).faults == []
    opened(page, file)
    page.run("document.getElementById('map').focus()")
    page.press("ArrowLeft", 37)
    assert page.run(SMUGGLED) == 0
    assert page.run("typeof smuggled") == "undefined"
    assert shown_at(page)[1][0][0] in cities
    assert page.run("document.body.innerText").count(IMAGE) >= 6
    assert page.run("document.getElementById('depth').innerText").count(IMAGE) == 2
    assert page.complaints() == []
