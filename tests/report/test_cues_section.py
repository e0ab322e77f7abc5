"""What the report says of cues and controls, of made-up files, and what it refuses."""

import json

import browser
import pytest
from conftest import picture
from made_up_results import made_up
from page_checks import CONTRAST, SMUGGLED, WIDE, check, needs_browser

from dl_slicer.cli import InputError
from dl_slicer.files import write_rows
from dl_slicer.report import cues_section
from dl_slicer.report.page import write_report

COLUMNS = ("cue", "altered", "parameter", "metres", "accuracy", "difference", "low", "high")
COLUMNS += tuple(f"refitted_{name}" for name in ("accuracy", "difference", "low", "high"))
COLUMNS += ("n_rasters", "description", "refitted_penalty")
AS_IT_IS = ("nothing", "unaltered", "", "", 0.9, "", "", "", 0.88, "", "", "", 12, "as they are", 1)
GREY = ("colour", "grey", "", "", 0.61, -0.29, -0.4, -0.1)
GREY += (0.79, -0.09, -0.2, 0.01, 12, "without colour", 0.1)
WAVES = ("fine texture", "low-pass 8", 8, 3.336, 0.2, -0.7, -0.8, -0.5)
WAVES += (0.5, -0.38, -0.5, -0.2, 12, "without what is finer than about 8 pixels (3.34 m)", 0.1)


def controls(difference=0.1, interval=(0.02, 0.2)):
    return {
        "n": 40,
        "n_rasters": 12,
        "accuracy": 0.9,
        "colour_alone": {
            "accuracy": 0.8,
            "interval": [0.7, 0.9],
            "difference": difference,
            "difference_interval": interval,
            "penalty": 0.1,
            "left_out": "sites",
            "train_patches": 400,
        },
        "exchanged": {
            "median": 0.25,
            "p95": 0.55,
            "ways": 24,
            "is_all": True,
            "at_least": 1 / 24,
            "sites": 4,
            "chance": 0.5,
        },
        "refit": {"train_patches": 200, "penalties": [0.1], "left_out": "sites"},
        "metres_a_pixel": 0.417,
        "metres_assumed": True,
        "seed": 0,
    }


def write_cues(out, rows=(AS_IT_IS, GREY, WAVES), found=None):
    """Write the files of --cues into a folder, and give the page's path."""
    write_rows(out / "cues.csv", COLUMNS, rows)
    (out / "controls.json").write_text(json.dumps(found or controls()), encoding="utf-8")
    picture(84, 80).resize((840, 800), 0).save(out / "cues.png")
    return write_report(out)


@pytest.fixture
def out(tmp_path):
    made_up(tmp_path / "test", ["Aa (AAA)", "Bb"], pictures=False)
    return tmp_path / "test"


def test_both_figures_stand_beside_each_other(out):
    checked = check(write_cues(out))
    assert checked.faults == []
    words = checked.words()
    assert "Shown without colour it gets 61.0 %, fitted anew for such patches 79.0 %" in words
    assert "of the patches as they are 90.0 % and 88.0 %" in words
    assert "shown without what is finer than about 8 pixels (3.34 m) it gets 20.0 %" in words
    assert "clearly loses in 1 of these ways" in words
    assert "in 1 the interval holds 0" in words
    assert "\u221229.0 (\u221240.0 to \u221210.0)" in words
    assert "for 0.417 m, which is assumed" in words
    assert "all 24 ways" in words and "at most 55.0 % in 19 of 20 ways" in words


@pytest.mark.parametrize(
    "difference, interval, verdict, said",
    [
        (0.1, (0.02, 0.2), "better", "The network is better by 10.0 points"),
        (0.1, (-0.02, 0.2), "not better", "The network is not better than colour alone"),
        (-0.1, (-0.2, 0.0), "not better", "which holds 0"),
        (-0.1, (-0.2, -0.05), "worse", "The network is worse than colour alone"),
        (0.1, None, "not known", "it is not known whether the network is better"),
    ],
)
def test_the_verdict_is_that_of_the_paired_interval(out, difference, interval, verdict, said):
    assert cues_section.verdict(interval) == verdict
    words = check(write_cues(out, found=controls(difference, interval))).words()
    assert said in words
    doubted = "do not show that it knows more of the cities than their colours" in words
    assert doubted == (verdict in ("not better", "worse"))


def test_one_raster_gives_no_intervals(out):
    bare = [(*row[:6], "", "", *row[8:10], "", "", *row[12:]) for row in (GREY, WAVES)]
    found = controls(interval=None)
    found["colour_alone"]["interval"] = None
    checked = check(write_cues(out, (AS_IT_IS, *bare), found))
    assert "One raster gives no interval" in checked.words()
    assert "(one raster)" in checked.words()
    assert "None" not in checked.words()


def test_without_the_files_there_is_no_section(out):
    assert 'id="cues"' not in write_report(out).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name, text",
    [
        ("controls.json", "{}"),
        ("controls.json", None),
        ("cues.csv", "cue,altered\n"),
        ("cues.csv", f"{','.join(COLUMNS)}\n{','.join(map(str, GREY))}\n"),
    ],
    ids=["empty", "missing", "no rows", "not as they are"],
)
def test_damaged_files_are_refused_in_one_line(out, name, text):
    write_cues(out)
    (out / name).unlink()
    if text is not None:
        (out / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=f"{name}: no whole results.*--cues.*run it again") as told:
        write_report(out)
    assert "\n" not in str(told.value)


HOSTILE = "<img src=x onerror=alert(1)>\" onerror='alert(2)'</td></script><script>alert(3)</script>"


def test_words_in_the_files_stay_words(out):
    hostile = (HOSTILE, HOSTILE, *GREY[2:13], HOSTILE, 0.1)
    checked = check(write_cues(out, (AS_IT_IS, hostile)))
    assert checked.faults == []
    assert [tag for tag, _ in checked.tags].count("script") == 1
    assert not any("onerror" in attributes for _, attributes in checked.tags)
    assert HOSTILE in " ".join(checked.text)


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_overflows(out, tmp_path, width, dark):
    page_file = write_cues(out, (AS_IT_IS, GREY, WAVES, (*WAVES[:13], HOSTILE, 0.1)))
    with browser.Page(tmp_path / "chromium") as page:
        page.open(page_file.as_uri(), width, dark)
        assert page.run("document.documentElement.scrollWidth") <= width
        assert page.run(WIDE) == []
        assert page.run(CONTRAST) >= 4.5
        assert page.run(SMUGGLED) == 0
        assert page.complaints() == []
