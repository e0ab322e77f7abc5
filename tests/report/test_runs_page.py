"""The page of several runs: what it says, that it is whole, and that it works in a real browser."""

import csv
import re
from itertools import combinations

import browser
import pytest
from page_checks import CONTRAST, SMUGGLED, WIDE, check, needs_browser

from dl_slicer.cli import InputError
from dl_slicer.files import write_rows
from dl_slicer.report.__main__ import main
from dl_slicer.report.runs_page import write_runs_page

DIFFERENCES = ("a", "b", "difference", "low", "high", "patches", "rasters")
AGREEMENT = ("a", "b", "rank_correlation", "cities")
PERHAPS = "test_b of this set; test sites may have been in its training"


def row(model, top1, half=0.02, **changes):
    """A row of table.csv."""
    folder = f"{model}/test_b"
    found = {"model": model, "arch": "resnet50", "recipe": "robust", "seed": 0}
    found |= {"trained_by": "here", "parameters": 23_600_237, "epochs": 100, "hours": 7.25}
    found |= {"patches": 22_500, "rasters": 329, "top1": top1, "top5": 0.97, "macro_f1": top1}
    found |= {"top1_low": top1 - half, "top1_high": top1 + half, "whole_rasters": 0.93}
    found |= {"test_patches": "test_b of this set", "results": folder}
    found |= {"chosen_epoch": "97, by val", "report": f"{folder}/report.html"}
    return {**found, **changes}


def write(out, rows, differences=(), agreement=(), command=None):
    out.mkdir(parents=True, exist_ok=True)
    for name in (found["report"] for found in rows):
        if ".." not in name and not name.startswith("/") and name:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text("<p>its report")
    write_rows(out / "table.csv", rows[0], (found.values() for found in rows))
    write_rows(out / "differences.csv", DIFFERENCES, differences)
    write_rows(out / "agreement.csv", AGREEMENT, agreement)
    if command:
        (out / "command.txt").write_text(command)
    return out


def pairs(rows):
    names = [found["model"] for found in rows]
    return list(combinations(names, 2))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Eight runs of ours and four models of the authors."""
    out = tmp_path_factory.mktemp("many")
    rows = [
        row(f"resnet{depth}-{recipe}-seed0", 0.76 + i / 100, recipe=recipe)
        for i, (depth, recipe) in enumerate(
            (depth, recipe) for depth in (18, 34, 50, 101) for recipe in ("published", "robust")
        )
    ]
    rows += [
        row(f"authors-resnet{depth}", 0.8, trained_by="the authors", test_patches=PERHAPS)
        for depth in (18, 34, 50, 101)
    ]
    found = [
        (a, b, (i - 20) / 400, (i - 24) / 400, (i - 16) / 400, 22_500, 329)
        for i, (a, b) in enumerate(pairs(rows))
    ]
    agreement = [(a, b, round(0.5 + i / 150, 3), 45) for i, (a, b) in enumerate(pairs(rows))]
    command = "python -m dl_slicer.reproduce --data data/patches --out checkpoints/paper\n"
    return write_runs_page(write(out, rows, found, agreement, command))


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """One run of which little is known."""
    empty = dict.fromkeys(
        ("parameters", "epochs", "hours", "rasters", "top1_low", "top1_high", "report"), ""
    )

    out = tmp_path_factory.mktemp("single")
    return write_runs_page(write(out, [row("resnet18-robust-seed0", 1.0, **empty)]))


@pytest.mark.parametrize("which", ["many", "single"])
def test_page_is_whole_and_alone(which, request):
    file = request.getfixturevalue(which)
    checked = check(file)
    assert checked.faults == []
    assert len(checked.ids) == len(set(checked.ids))
    links = [attributes["href"] for attributes in checked.attributes_of("a")]
    assert {link[1:] for link in links if link.startswith("#")} <= set(checked.ids)
    for link in links:
        assert link.startswith("#") or (file.parent / link).is_file()
    assert not re.search(r"https?://|url\(|@import", file.read_text(encoding="utf-8"))
    assert [tag for tag, _ in checked.tags].count("script") == 1
    assert not re.search(r"\bNone\b|nan\b|\{|\}", checked.words())


def test_sentences_and_figures(many, single):
    words = check(many).words()
    assert "The best model, resnet101-robust-seed0 , gives 83.0 % of 22 500 patches" in words
    assert "(95 % interval 81.0 to 85.0 %). The paper’s ResNet-50 does so with 84 %." in words
    assert "23.6 100 7.25" in words
    assert f"{PERHAPS} 97, by val the authors" in words
    assert "in the training of authors-resnet18 , authors-resnet34 , authors-resnet50 ," in words
    # Pairs number 0 to 15 have a below b, with intervals below 0; from 25 on they lie above it.
    assert "Of 66 pairs of models that were tested on the same patches, 57 differ by more" in words
    assert "one in twenty would be said to differ as well" in words
    assert "python -m dl_slicer.reproduce --data data/patches --out checkpoints/paper" in words
    assert "agree most (0.93)" in words
    words = check(single).words()
    assert "resnet18-robust-seed0 gives 100.0 % of" in words
    assert "no command.txt" in words
    for absent in ("pairs", "Spearman", "Perhaps too good", "Few rasters"):
        assert absent not in words


def test_differences_are_told_with_the_better_first(tmp_path):
    rows = [row("aa", 0.7), row("bb", 0.73), row("cc", 0.726), row("dd", 0.71, rasters=12)]
    found = [
        ("aa", "bb", -0.03, -0.05, -0.01, 100, 12),
        ("cc", "bb", -0.004, -0.018, 0.01, 100, 12),
        ("bb", "dd", 0.02, "", "", 100, 1),
        ("cc", "aa", 0.026, 0.01, 0.04, 100, 12),
    ]
    words = check(write_runs_page(write(tmp_path, rows, found))).words().replace(" .", ".")
    told = (
        "bb beside the others, the closest first:",
        "bb is ahead of cc by 0.4 points (95 % interval \u22121.0 to 1.8): that may be chance.",
        "bb is ahead of dd by 2.0 points; there are too few rasters for an interval.",
        "bb is better than aa by 3.0 points (95 % interval 1.0 to 5.0).",
    )
    places = [words.index(sentence) for sentence in told]
    assert places == sorted(places)
    assert "cc is better than aa" not in words  # the table says it
    assert "4 pairs of models that were tested on the same patches, 2 differ by more" in words
    assert "Few rasters." in words


def test_what_may_know_the_test_is_not_called_the_best(tmp_path):
    rows = [row("aa", 0.7), row("theirs", 0.9, test_patches=PERHAPS)]
    words = check(write_runs_page(write(tmp_path, rows))).words()
    assert "The best model, aa , gives 70.0 %" in words
    (tmp_path / "table.csv").unlink()
    words = check(write_runs_page(write(tmp_path, rows[1:]))).words()
    assert "theirs gives 90.0 %" in words


def test_the_chart_holds_all_intervals_in_order(many):
    text = many.read_text(encoding="utf-8")
    chart = text[text.index('<svg class="chart intervals"') :].split("</svg>")[0]
    names = re.findall(r'class="name">([^<]+)<', chart)
    assert names[0] == "resnet101-robust-seed0"
    assert names[-1] == "resnet18-published-seed0"
    assert len(names) == 12
    points = [float(x) for x in re.findall(r'cx="([\d.]+)"', chart)]
    assert points == sorted(points, reverse=True)
    places = [float(x) for x in re.findall(r"[MH]([\d.]+)", chart)]
    assert min(places) >= 20
    assert max(places) <= 360
    # The axis is reckoned again from two of its labels.
    axis = [
        (float(x), int(share)) for x, share in re.findall(r'<text x="([\d.]+)".*?>(\d+) %<', chart)
    ]
    (x, share), *_, (last_x, last_share) = axis
    assert (share, last_share) == (74, 86)
    (paper,) = re.findall(r'class="chosen" d="M([\d.]+)', chart)
    for value, at in ((84, float(paper)), (83, points[0]), (76, points[-1])):
        assert at == pytest.approx(
            x + (last_x - x) * (value - share) / (last_share - share), abs=0.2
        )


HOSTILE = "\"'><img src=x onerror=smuggled=1><script>alert(1)</script>"


def test_hostile_texts_are_shown_as_text(tmp_path):
    texts = ("model", "arch", "recipe", "seed", "trained_by", "test_patches")
    rows = [
        {**row("x", 0.7), **dict.fromkeys(texts, HOSTILE)},
        row("y", 0.8, report="javascript:alert(1)"),
    ]
    found = [(HOSTILE, "y", -0.1, -0.2, -0.05, 10, 3)]
    out = write(tmp_path, rows, found, [(HOSTILE, HOSTILE, 0.5, 3)], command=HOSTILE)
    checked = check(write_runs_page(out))
    assert checked.faults == []
    assert [tag for tag, _ in checked.tags].count("script") == 1
    assert not any("onerror" in attributes for _, attributes in checked.tags)
    assert checked.words().count(HOSTILE) >= 8
    links = [attributes["href"] for attributes in checked.attributes_of("a")]
    assert "./javascript%3Aalert%281%29" in links
    assert not any(link.lower().startswith("javascript") for link in links)


def poison(out, name, column, value):
    with open(out / name, newline="", encoding="utf-8") as lines:
        header, first, *rows = csv.reader(lines)
    first[header.index(column)] = value
    write_rows(out / name, header, [first, *rows])


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("table.csv", "top1", "1.2"),
        ("table.csv", "top1", "nan"),
        ("table.csv", "top1", ""),
        ("table.csv", "top1_low", ""),
        ("table.csv", "top1_low", "0.99"),
        ("table.csv", "parameters", "9" * 400),
        ("table.csv", "patches", "-1"),
        ("table.csv", "hours", "inf"),
        ("table.csv", "report", "../other/report.html"),
        ("table.csv", "report", "/etc/passwd"),
        ("table.csv", "report", "a/../../report.html"),
        ("differences.csv", "difference", "-3"),
        ("differences.csv", "low", HOSTILE),
        ("agreement.csv", "rank_correlation", "2"),
        ("agreement.csv", "cities", "many"),
    ],
)
def test_damage_is_one_line(tmp_path, name, column, value):
    rows = [row("aa", 0.7), row("bb", 0.8)]
    found = [("aa", "bb", -0.1, -0.2, -0.05, 10, 3)]
    write(tmp_path, rows, found, [("aa", "bb", 0.5, 3)])
    write_runs_page(tmp_path)
    before = (tmp_path / "report.html").read_bytes()
    poison(tmp_path, name, column, value)
    with pytest.raises(InputError, match=rf"{name}: no whole table .*line 2: ") as refusal:
        write_runs_page(tmp_path)
    assert len(str(refusal.value).splitlines()) == 1
    assert (tmp_path / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "it names no model"),
        (b"model\nx\n", "it has no arch"),
        (b"model,arch\nx\n", "line 2: not as many fields"),
        (b"\xff\xfe\x00", "utf-8"),
    ],
)
def test_a_table_that_is_none_is_one_line(tmp_path, content, fault):
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(InputError, match=fault) as refusal:
        write_runs_page(tmp_path)
    assert "run the same command again" in str(refusal.value)
    assert not (tmp_path / "report.html").exists()


def test_without_a_table_there_is_no_page(tmp_path):
    with pytest.raises(InputError, match=r"table\.csv: no whole table .* \(not there\)"):
        write_runs_page(tmp_path)


def test_the_command_makes_the_page_again(tmp_path, capsys):
    write(tmp_path, [row("aa", 0.7)])
    main([str(tmp_path)])
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    assert "aa gives 70.0 %" in check(tmp_path / "report.html").words()


# In a real browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser.Page(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("which", ["many", "single"])
def test_nothing_overflows_and_nothing_is_complained_of(page, which, width, dark, request):
    file = request.getfixturevalue(which)
    page.open(file.as_uri(), width, dark)
    assert page.run("innerWidth") == width
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run(WIDE) == []
    assert page.run(CONTRAST) >= 4.5
    assert page.run(SMUGGLED) == 0
    assert [url for url in page.requests() if not url.startswith("data:")] == [file.as_uri()]
    assert page.complaints() == []


@needs_browser
def test_long_and_hostile_names_stay_within_the_page(page, tmp_path):
    long = "a" * 190 + HOSTILE
    rows = [row("x", 0.7), {**row("y", 0.8), **dict.fromkeys(("model", "test_patches"), long)}]
    out = write(tmp_path, rows, [(long, "x", 0.1, 0.05, 0.15, 10, 3)], [(long, "x", 0.5, 3)], long)
    file = write_runs_page(out)
    for width in (390, 1440):
        page.open(file.as_uri(), width)
        assert page.run("document.documentElement.scrollWidth") <= width
        assert page.run(WIDE) == []
        assert page.run(SMUGGLED) == 0
        assert page.complaints() == []


@needs_browser
def test_a_click_sorts_and_a_name_leads_to_its_report(page, many):
    page.open(many.as_uri(), 1440)
    page.click("#table th:nth-child(2) button")
    names = "[...document.querySelector('#table tbody').rows].map(row => row.cells[0].innerText)"
    assert page.run(names)[:2] == ["The paper: ResNet-50", "resnet101-robust-seed0"]
    page.open(page.run("document.querySelector('#table tbody a').href"))
    assert page.run("document.body.innerText") == "its report"
