"""The page of a cross-validation: what it says, that it is whole, and what it refuses."""

import json

import browser
import pytest
from conftest import picture
from made_up_folds import CITIES, cross_validation, fold_results, shares
from page_checks import CONTRAST, SMUGGLED, WIDE, check, needs_browser

from dl_slicer.cli import InputError
from dl_slicer.report import __main__ as report
from dl_slicer.report import folds_page, sites_chart
from dl_slicer.report.folds_files import CurvePoint, Site, Split
from dl_slicer.results import folds

ODD = "<img src=x onerror=alert(1)> & 東京"


def write(out, monkeypatch, measured=None, **more):
    """The files of a cross-validation, whose pictures are plain; give the page."""
    for name in ("draw_confusion", "draw_resemblance"):
        monkeypatch.setattr(f"dl_slicer.results.plots.{name}", lambda *args, **more: None)
    monkeypatch.setattr(
        "dl_slicer.results.plots.draw_reliability",
        lambda path, *args: picture(75, 90).resize((750, 900), 0).save(f"{path}.png"),
    )
    folds.write(out, measured or cross_validation(out, **more))
    (out / "command.txt").write_text("python -m dl_slicer.cross_validation --raw <x> --out y\n")
    return folds_page.write_folds_page(out)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("folds")
    with pytest.MonkeyPatch.context() as patch:
        return write(out, patch)


@pytest.fixture
def metrics(written):
    """Change what metrics.json says, and give the words of the page that is made of it."""
    path = written.parent / "metrics.json"
    before = path.read_text()

    def change(**changes):
        path.write_text(json.dumps(json.loads(before) | changes))
        return words_of(folds_page.write_folds_page(written.parent))

    yield change
    path.write_text(before)
    folds_page.write_folds_page(written.parent)


def words_of(file):
    page = check(file)
    assert page.faults == []
    assert len(page.ids) == len(set(page.ids))
    return page.words().replace(" .", ".").replace(" )", ")").replace(" ,", ",")


def test_page_says_what_was_found_and_is_whole(written):
    words = words_of(written)
    assert "3 folds · 11 sites of 4 cities" in words
    assert "1 site stands out from the others of its city" in words
    assert "site02 : worse than its city's other sites" in words
    assert "Bengio and Grandvalet" in words
    assert "says nothing of cities that are not among these" in words
    assert "tests only the left half of each raster of one site of each city" in words
    assert "The networks are better than colour alone by" in words
    assert "In simulations 95 to 98 of 100 such intervals held the truth" in words
    assert "1 result of a site tested before does not count" in words
    assert "cannot be told beside that" in words
    assert "--raw <x> --out y" in words
    assert words.count("tested before: does not count") == 1
    page = check(written)
    links = {tag["href"] for tag in page.attributes_of("a")}
    assert links <= {f"#{name}" for name in page.ids}  # there are no pages of the folds alone


def test_folds_are_linked_to_their_own_pages(written):
    own = written.parent / "fold_2" / "results" / "report.html"
    own.write_text("")
    links = {
        tag["href"] for tag in check(folds_page.write_folds_page(written.parent)).attributes_of("a")
    }
    assert "fold_2/results/report.html" in links
    own.unlink()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"colour_alone": {"accuracy": 0.8, "difference": 0.01, "difference_ci95": [-0.1, 0.1]}},
         "The networks are not better than colour alone"),
        ({"colour_alone": {"accuracy": 0.9, "difference": -0.2, "difference_ci95": [-0.3, -0.1]}},
         "Colour alone is better than the networks by 20.0 points"),
        ({"colour_alone": {"accuracy": 0.9, "difference": -0.2, "difference_ci95": None}},
         "Colour alone, without any shape, gets 90.0 %"),
        ({"accuracy_ci95": None}, "with one site a city there is no interval"),
        ({"published_split": {"accuracy": 0.99, "accuracy_ci95": None, "n": 9, "halves": False}},
         "it would have said 99.0 %, which lies above the interval of all sites"),
        ({"spread": {"sites": 0.05, "cities": 0.2, "rasters": None, "p_value": 0.001}},
         "some are truly easier than others (F test, p = 0.001)"),
        ({"temperatures": {}}, "probabilities of each fold are tempered"),
    ],
)  # fmt: skip
def test_what_is_said_of_what_was_found(metrics, changes, said):
    assert said in metrics(**changes)


def test_one_fold_without_anything_else(tmp_path, monkeypatch):
    measured = [fold_results(tmp_path / "one", 1, shares()[0], colour=False)]
    words = words_of(write(tmp_path, monkeypatch, measured))
    assert "With one fold there are no others to learn a temperature from" in words
    assert "Colour alone" not in words.replace("Colour alone ↕", "").split("All folds")[0]
    assert "Had it too few sites?" not in words
    assert "With one site a city it cannot be told which is an odd one out" in words
    assert "Each of these sites was left out" in words
    assert "In simulations" not in words
    assert "What the interval means" not in words


def site(city, name, share, interval=(0.2, 0.8)):
    return Site(city, city[:3], name, 1, True, 2, 80, share, interval, "", None, None)


def test_the_chart_has_every_site_that_counts():
    sites = [site(f"City {k:02d}", f"s{s}", s / 4) for k in range(30) for s in range(3)]
    charts = sites_chart.lay_out(sites, [], (0.4, 0.6))
    assert [len(chart.rows) for chart in charts] == [10, 10, 10]
    dots = [dot for chart in charts for row in chart.rows for dot in row.dots]
    assert len(dots) == 90
    for chart in charts:
        ys = [dot.y for row in chart.rows for dot in row.dots]
        assert ys == sorted(ys)
        assert min(b - a for a, b in zip(ys, ys[1:], strict=False)) >= sites_chart.SITE_HEIGHT
        assert max(ys) < chart.bottom
    left, right = sites_chart.LEFT, sites_chart.RIGHT
    assert dots[0].x == left
    assert dots[1].x == pytest.approx(left + (right - left) / 4)
    assert dots[2].ends == pytest.approx((left + (right - left) * 0.2, left + (right - left) * 0.8))


def test_the_curve_rises_with_its_accuracy():
    points = [
        CurvePoint("1", 3, 11, 0.4, (0.3, 0.5)),
        CurvePoint("2", 3, 11, 0.6, None),
        CurvePoint("all", 3, 11, 0.7, (0.6, 0.8)),
    ]
    chart = sites_chart.curve_chart(points)
    xs = [dot.x for dot in chart.dots]
    assert xs == sorted(xs)
    ys = [dot.y for dot in chart.dots]
    assert ys == sorted(ys, reverse=True)
    assert chart.top <= chart.dots[2].ends[1] < chart.dots[2].ends[0] <= chart.bottom
    assert chart.dots[1].ends is None
    assert sites_chart.curve_chart(points[:1]) is None
    # All right, and no interval: there is a chart all the same.
    perfect = [CurvePoint(number, 1, 4, 1.0, None) for number in ("1", "all")]
    assert {dot.y for dot in sites_chart.curve_chart(perfect).dots} == {sites_chart.CURVE_TOP}


@pytest.mark.parametrize(
    "share, interval, where",
    [(0.9, (0.5, 0.8), "above"), (0.4, (0.5, 0.8), "below"), (0.6, (0.5, 0.8), "within"),
     (0.6, None, "")],
)  # fmt: skip
def test_where_the_published_figure_lies(share, interval, where):
    assert folds_page._where_the_split_lies(Split(share, None, 9, True), interval) == where


def test_the_report_command_makes_it_again(written, capsys):
    before = written.read_bytes()
    report.main([str(written.parent)])
    assert capsys.readouterr().out.strip() == str(written)
    assert written.read_bytes() == before


@pytest.mark.parametrize(
    "name, old, new, said",
    [
        ("metrics.json", '"n_sites"', '"sites"', "it has no n_sites"),
        ("metrics.json", '"ece": 0', '"ece": 5', "not from 0 to 1"),
        ("folds.csv", "yes,2,80", "yes,2,-80", "line 2: -80: below 0"),
        ("folds.csv", ",yes,", ",no,", "it names no site"),
        ("per_city.csv", "sites,", "", "it has no sites"),
        ("curve.csv", "all,3,", "all,x,", "line 3: invalid literal"),
        ("curve.csv", "all,3,", "each,3,", "line 3: invalid literal"),
        ("reliability.png", None, "no picture", "no whole PNG file"),
    ],
)
def test_damaged_files_are_told(written, name, old, new, said):
    path = written.parent / name
    before = path.read_bytes()
    path.write_text(new if old is None else before.decode().replace(old, new))
    try:
        with pytest.raises(InputError) as refused:
            folds_page.write_folds_page(written.parent)
        assert name in str(refused.value)
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)
    finally:
        path.write_bytes(before)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A page whose cities, sites and remarks try to be elements."""
    out = tmp_path_factory.mktemp("hostile")
    cities = (ODD, "<script>smuggled=1; (B)", "A" * 150, "Dd (D)")
    with pytest.MonkeyPatch.context() as patch:
        write(out, patch, classes=cities)
    text = (out / "folds.csv").read_text(encoding="utf-8")
    text = text.replace("site02", f'"{ODD}"').replace("worse than", ODD)
    (out / "folds.csv").write_text(text, encoding="utf-8")
    (out / "command.txt").write_text(f"{ODD} {'x' * 300}")
    return folds_page.write_folds_page(out)


def test_names_stay_text(hostile):
    page = check(hostile)
    assert page.faults == []
    assert page.words().count(ODD) > 20
    assert not [tag for tag, attributes in page.tags if "onerror" in attributes]


@needs_browser
def test_in_a_browser(written, hostile, tmp_path):
    with browser.Page(tmp_path) as page:
        for file in (written, hostile):
            for width, dark in ((390, False), (1440, True)):
                page.open(file.as_uri(), width, dark)
                assert page.run(WIDE) == []
                assert page.run("document.documentElement.scrollWidth") <= width
                assert page.run(CONTRAST) >= 4.5
                assert page.run(SMUGGLED) == 0
                assert page.run("typeof smuggled") == "undefined"
                assert page.complaints() == []
                kept = [url for url in page.requests() if not url.startswith("data:")]
                assert kept == [file.as_uri()]
    assert CITIES[0] in check(written).words()
