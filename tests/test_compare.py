"""python -m dl_slicer.compare: what it says and writes, and what it refuses."""

import csv
import json
import shutil

import numpy as np
import pytest
from conftest import SIZES, as_flags, files, picture
from PIL import Image
from scipy import stats

import preprocessing
from dl_slicer import compare
from dl_slicer.cli import InputError
from dl_slicer.files import write_rows
from dl_slicer.patch_sets import reading
from dl_slicer.results import comparison, intervals
from dl_slicer.results.comparison import short_names
from dl_slicer.results.paired_intervals import paired_interval

CITIES = ("Aa (AAA)", "Bb (BBB)", "Cc (CCC)")
COLUMNS = ("patch", "true", "predicted", "probability", "true_probability", "raster")


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(intervals, "DRAWS", 200)


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    """A patch set of three cities, each with three held-out rasters."""
    root = tmp_path_factory.mktemp("compared")
    for number, city in enumerate(CITIES):
        for raster in range(4):
            folder = root / "raw" / city / ("held_out" if raster else "a_site")
            folder.mkdir(parents=True, exist_ok=True)
            picture(150, 110, seed=10 * number + raster).save(folder / f"{raster}.png")
    folders = {"--raw": root / "raw", "--out": root / "patches"}
    preprocessing.main(as_flags({**folders, **SIZES}))
    return root / "patches"


def write_results(folder, data, shares, seed=0, split="test", **more):
    """Results in the formats of test_classification.py, of a model made up by lot.

    shares: which share of its patches is recognised, by city.
    """
    patch_set = reading.open_split(data, split)
    rng = np.random.default_rng(seed)
    rows = []
    for i, label in enumerate(patch_set.labels):
        right = rng.random() < shares[label]
        predicted = label if right else (label + 1) % len(CITIES)
        probability = rng.uniform(0.5, 1)
        true_probability = probability if right else 1 - probability
        numbers = (f"{probability:.6f}", f"{true_probability:.6f}")
        names = (patch_set.name(i), CITIES[label], CITIES[predicted])
        rows.append((*names, *numbers, patch_set.raster(i)))
    folder.mkdir(parents=True)
    write_rows(folder / "predictions.csv", COLUMNS, rows)
    metrics = {
        "n": len(rows),
        "checkpoint": f"{folder.parent}/best.pth",
        "data": str(data),
        "split": split,
        "arch": "resnet18",
        "tta": False,
        "patch_size": patch_set.patch_size,
        "stride": patch_set.stride,
        "image_size": patch_set.image_size,
        **more,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def tested(tmp_path, patches):
    """The results of two models, the first of which is better."""
    a = write_results(tmp_path / "resnet50" / "test", patches, (0.9, 0.8, 1), 1)
    b = write_results(tmp_path / "resnet18" / "test", patches, (0.3, 0.7, 1), 2)
    return a, b


def run(*arguments):
    compare.main([str(argument) for argument in arguments])


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def rewrite(folder, change):
    """Replace the rows of predictions.csv by change(rows)."""
    rows = change(read_rows(folder / "predictions.csv"))
    write_rows(folder / "predictions.csv", list(rows[0]), (row.values() for row in rows))


def set_metrics(folder, **values):
    path = folder / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_is_found_is_what_a_count_by_hand_finds(tested, capsys):
    a, b = tested
    rewrite(b, lambda rows: rows[::-1])  # patches may stand in another order
    run(a, b)
    out = a.parent / "test_against_resnet18"
    found = json.loads((out / "comparison.json").read_text())
    rows_a = read_rows(a / "predictions.csv")
    of_b = {row["patch"]: row for row in read_rows(b / "predictions.csv")}
    right_a = np.array([row["true"] == row["predicted"] for row in rows_a])
    right_b = np.array([row["true"] == of_b[row["patch"]]["predicted"] for row in rows_a], bool)
    true = np.array([CITIES.index(row["true"]) for row in rows_a])
    rasters = [row["raster"] for row in rows_a]
    difference, ends = paired_interval(true, right_a, right_b, rasters, 3)
    assert found["difference"] == difference == pytest.approx(right_a.mean() - right_b.mean())
    assert found["difference_ci95"] == pytest.approx(ends)
    assert (found["n"], found["n_rasters"]) == (len(rows_a), 9)
    table = found["mcnemar"]
    only_a = int((right_a & ~right_b).sum())
    only_b = int((right_b & ~right_a).sum())
    assert (table["only_a_right"], table["only_b_right"]) == (only_a, only_b)
    assert table["both_right"] + table["both_wrong"] == len(rows_a) - only_a - only_b
    exact = 2 * stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)
    assert table["p_value"] == pytest.approx(min(1, exact))

    cities = read_rows(out / "per_city.csv")
    assert [row["city"] for row in cities] == list(CITIES)
    for label, row in enumerate(cities):
        own = true == label
        expected = right_a[own].mean() - right_b[own].mean()
        assert float(row["difference"]) == pytest.approx(expected)
        assert float(row["ci95_low"]) < expected < float(row["ci95_high"])
        assert (int(row["n"]), int(row["rasters"])) == (own.sum(), 3)
    assert int(cities[2]["only_a_right"]) == int(cities[2]["only_b_right"]) == 0

    differing = read_rows(out / "patches.csv")
    assert [row["patch"] for row in differing] == [
        row["patch"]
        for row, one, other in zip(rows_a, right_a, right_b, strict=True)
        if one != other
    ]
    assert sum(row["recognised_by"] == "a" for row in differing) == only_a

    said = capsys.readouterr().out
    assert "A  resnet50: " in said and "B  resnet18: " in said
    assert "A is better on rasters like these" in said
    assert "there are only 9 rasters: in simulations of so few" in said
    assert "it takes patches as independent" in said
    assert "the same draws for both" in said


def test_the_patches_that_one_alone_recognises_are_drawn(tested, patches):
    a, b = tested
    run(a, b)
    out = a.parent / "test_against_resnet18"
    # The third city is recognised by both.
    assert sorted(path.name for path in (out / "patches").iterdir()) == [
        "Aa (AAA).jpg",
        "Bb (BBB).jpg",
    ]
    with Image.open(out / "patches" / "Aa (AAA).jpg") as sheet:
        drawn = np.asarray(sheet.convert("RGB"), float)
    (first, *_) = sorted(
        (
            row
            for row in read_rows(out / "patches.csv")
            if row["recognised_by"] == "a" and row["true"] == CITIES[0]
        ),
        key=lambda row: float(row["true_probability_b"]) - float(row["true_probability_a"]),
    )
    patch_set = reading.open_split(patches, "test")
    number = [patch_set.name(i) for i in range(len(patch_set))].index(first["patch"])
    expected = patch_set.original(number).resize((160, 160), Image.Resampling.LANCZOS)
    panel = drawn[72 : 72 + 160, 8 : 8 + 160]
    assert np.abs(panel - np.asarray(expected, float)).mean() < 8


def test_without_the_patch_set_the_tables_are_written(tested, capsys):
    for folder in tested:
        set_metrics(folder, data="gone/patches")
    run(*tested)
    said = capsys.readouterr().out
    assert "no pictures" in said and "gone/patches: no such folder" in said
    out = tested[0].parent / "test_against_resnet18"
    assert {path.name for path in out.iterdir()} == {
        "comparison.json",
        "per_city.csv",
        "patches.csv",
        "report.html",
        "contents.json",
    }


def test_a_patch_set_made_anew_is_not_drawn(tested, capsys):
    def renamed(rows):
        return [{**row, "patch": f"{row['patch']}_x"} for row in rows]

    for folder in tested:
        rewrite(folder, renamed)
    run(*tested)
    assert "made anew since the test" in capsys.readouterr().out
    assert not (tested[0].parent / "test_against_resnet18" / "patches").exists()


def test_a_folder_of_jpegs_is_drawn_as_far_as_it_can_be_read(tmp_path, capsys):
    for number, city in enumerate(CITIES):
        folder = tmp_path / "data" / "test" / city
        folder.mkdir(parents=True)
        for raster in range(4):
            picture(60, 60, 10 * number + raster).save(folder / f"{raster}_r00_c00.jpg")
    a = write_results(tmp_path / "a" / "test", tmp_path / "data", (1, 1, 1))
    b = write_results(tmp_path / "b" / "test", tmp_path / "data", (0, 0, 1))
    run(a, b, "--out", tmp_path / "whole")
    assert "of 2 cities" in capsys.readouterr().out
    (tmp_path / "data" / "test" / CITIES[1] / "2_r00_c00.jpg").write_bytes(b"no picture")
    run(a, b, "--out", tmp_path / "part")
    said = capsys.readouterr().out
    assert "not all pictures: " in said and "2_r00_c00.jpg" in said
    assert [path.name for path in (tmp_path / "part" / "patches").iterdir()] == ["Aa (AAA).jpg"]
    assert (tmp_path / "part" / "comparison.json").exists()


def test_models_that_recognise_the_same(tested, tmp_path, capsys):
    shutil.copytree(tested[0], tmp_path / "copy")
    run(tested[0], tmp_path / "copy", "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["difference"] == 0
    assert found["difference_ci95"][0] < 0 < found["difference_ci95"][1]
    assert found["mcnemar"]["p_value"] == 1
    said = capsys.readouterr().out
    assert "no pictures: both recognise the same patches" in said
    assert "cannot be told" in said


def test_a_second_comparison_takes_the_place_of_the_first(tested, tmp_path):
    out = tmp_path / "out"
    run(*tested, "--out", out)
    (out / "notes.txt").write_text("mine")
    rewrite(tested[0], lambda rows: [{**row, "predicted": row["true"]} for row in rows])
    shutil.copy(tested[0] / "predictions.csv", tested[1] / "predictions.csv")
    run(*tested, "--out", out)
    assert not (out / "patches").exists()
    assert (out / "notes.txt").read_text() == "mine"


def test_a_city_called_otherwise_by_number_is_the_same_city(tested):
    """Models may have their cities in another order: names count, not numbers."""
    a, b = tested
    rewrite(b, lambda rows: sorted(rows, key=lambda row: (row["true"][::-1], row["patch"][::-1])))
    before = comparison.compare(a, b)
    assert before.found["difference"] == pytest.approx(
        before.a.right.mean() - before.b.right.mean()
    )
    assert before.a.patches == before.b.patches


@pytest.mark.parametrize(
    "a, b, names",
    [
        ("runs/resnet50/test_b", "runs/resnet18/test_b", ("resnet50", "resnet18")),
        ("run/test_b", "run/test_b_tta", ("test_b", "test_b_tta")),
        ("runs", "runs/test_b", ("runs", "test_b")),
        ("one/run/test", "other/run/test", ("one", "other")),
    ],
)
def test_folders_are_named_by_what_differs(tmp_path, a, b, names):
    assert short_names(tmp_path / a, tmp_path / b) == names


# Refused


def refused(capsys, *arguments):
    """The line with which arguments are refused, before anything is written or said."""
    with pytest.raises(InputError) as error:
        run(*arguments)
    assert capsys.readouterr().out == ""
    assert "\n" not in str(error.value)
    return str(error.value)


def test_other_patches_are_refused_with_the_command_that_helps(tested, patches, tmp_path, capsys):
    a, b = tested
    before = files(a.parent)
    other = write_results(tmp_path / "x y" / "val", patches, (1, 1, 1), split="val", tta=True)
    said = refused(capsys, a, other)
    assert "it lacks 54 of 54, such as " in said and "and it has 54 others" in said
    checkpoint = f"'{tmp_path}/x y/best.pth'"
    assert said.endswith(
        "measure it on the same: python test_classification.py --checkpoint"
        f" {checkpoint} --data {patches} --split test --tta"
    )
    rewrite(b, lambda rows: rows[5:])
    set_metrics(b, n=49)
    said = refused(capsys, a, b)
    assert "it lacks 5 of 54" in said and "measure both again: python test_class" in said
    assert files(a.parent) == before


@pytest.mark.parametrize(
    "change, said",
    [
        ({"raster": "else.png"}, "is of the raster else.png, there of Aa (AAA)/held_out/1.png"),
        ({"true": CITIES[2]}, "is of the city Cc (CCC), there of Aa (AAA)"),
    ],
)
def test_a_patch_of_another_city_or_raster_is_refused(tested, capsys, change, said):
    rewrite(tested[1], lambda rows: [{**rows[0], **change}, *rows[1:]])
    found = refused(capsys, *tested)
    assert said in found and "measure both again" in found


def test_patches_of_another_size_are_refused(tested, capsys):
    set_metrics(tested[1], stride=48)
    assert "they are 48 pixels every 48, there 48 pixels every 24" in refused(capsys, *tested)


def test_results_that_do_not_say_their_checkpoint(tested, capsys):
    rewrite(tested[1], lambda rows: rows[1:])
    set_metrics(tested[1], n=53, checkpoint=None)
    assert refused(capsys, *tested).endswith("measure both on the same with test_classification.py")


def test_wrong_folders_are_refused(tested, tmp_path, capsys):
    a, b = tested
    assert "given twice" in refused(capsys, a, a.parent / "test")
    said = refused(capsys, a, b.parent)
    assert said == f"{b.parent}: no results in it; perhaps {b} was meant"
    assert "no such folder" in refused(capsys, a, tmp_path / "nowhere")
    assert "a file; give the folder" in refused(capsys, a / "metrics.json", b)
    (b / "metrics.json").unlink()
    assert "metrics.json: no whole results" in refused(capsys, a, b)


def damage(name, old, new):
    return name, lambda text: text.replace(old, new, 1)


@pytest.mark.parametrize(
    "name, change, said",
    [
        (*damage("predictions.csv", "probability", "chance"), "it has no column probability"),
        (*damage("predictions.csv", ",raster", ""), "it has no column raster"),
        (*damage("predictions.csv", ",0.", ",nan0."), "line 2: "),
        ("predictions.csv", lambda text: text.replace("0.", "7.", 1), "7."),
        ("predictions.csv", lambda text: text[: len(text) // 2], "not as many fields"),
        ("predictions.csv", lambda text: "".join(text.splitlines(True)[:-3]), "has 51 rows"),
        ("predictions.csv", lambda text: text.splitlines(True)[0], "it has no rows"),
        ("predictions.csv", lambda text: "", "it has no column patch"),
        ("predictions.csv", lambda text: text + text.splitlines(True)[3], "in line 4, too"),
        ("predictions.csv", lambda text: text + '"', "no whole results"),
        ("predictions.csv", lambda text: text.replace(",Aa (AAA),", ",../x,", 1), "must be a name"),
        ("predictions.csv", lambda text: text.replace(",Aa (AAA),", ",,", 1), "no true"),
        ("predictions.csv", lambda text: text + "x" * 200_000, "field larger than"),
        ("metrics.json", lambda text: text[:-1], "no whole results"),
        ("metrics.json", lambda text: "[1]", "not a mapping"),
        ("metrics.json", lambda text: "{}", "it has no n"),
        ("metrics.json", lambda text: text.replace('"n": 54', '"n": "54"'), "n: 54"),
        ("metrics.json", lambda text: text.replace('"n": 54', '"n": NaN'), "n: nan"),
        ("metrics.json", lambda text: text.replace('"test"', '["test"]'), "split: ['test']"),
        ("metrics.json", lambda text: "[" * 100_000, "metrics.json: no whole results"),
    ],
)
def test_damaged_results_are_refused(tested, capsys, name, change, said):
    path = tested[1] / name
    path.write_text(change(path.read_text()))
    found = refused(capsys, *tested)
    assert found.startswith(f"{path}: ")
    assert said in found
    assert len(found) < 600


@pytest.mark.parametrize("content", [b"\xff\xfe", b"patch,true\0", None])
def test_files_that_are_no_text_are_refused(tested, capsys, content):
    path = tested[1] / "predictions.csv"
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    assert refused(capsys, *tested).startswith(f"{path}: no whole results")
