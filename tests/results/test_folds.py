"""The folds of a cross-validation put together: what counts, and what is refused."""

import csv
import json

import made_up_folds
import numpy as np
import pytest
import torch
from made_up_folds import CITIES, PATCHES, cross_validation, fold_results, shares

from dl_slicer.cli import InputError
from dl_slicer.model.temperature import fit_temperature
from dl_slicer.results import folds, intervals, pooled_folds, site_intervals


def read(path):
    with open(path, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a cross-validation with its tables."""
    out = tmp_path_factory.mktemp("folds")
    measured = cross_validation(out)
    folds.write(out, measured)
    return out, measured


def right_by_site(fold):
    """{(city, site): (right, patches)} by predictions.csv."""
    found = {}
    for row in read(fold.results / "predictions.csv"):
        right, patches = found.get((row["true"], row["site"]), (0, 0))
        is_right = row["true"] == row["predicted"]
        found[row["true"], row["site"]] = (right + is_right, patches + 1)
    return found


def test_a_row_a_site_and_fold(written):
    out, measured = written
    rows = read(out / "folds.csv")
    assert len(rows) == 12
    columns = "city,code,site,fold,first,rasters,patches,right,accuracy,low,high,odd,colour_alone"
    assert ",".join(rows[0]) == columns
    by_fold = {fold.number: right_by_site(fold) for fold in measured if fold.training_sites is None}
    for row in rows:
        right, patches = by_fold[int(row["fold"])][row["city"], row["site"]]
        assert (int(row["right"]), int(row["patches"])) == (right, patches)
        assert float(row["accuracy"]) == pytest.approx(right / patches)
        assert float(row["low"]) < float(row["accuracy"]) < float(row["high"])
        assert int(row["rasters"]) == 2
    again = [(row["code"], row["site"], row["fold"]) for row in rows if row["first"] == "no"]
    assert again == [("AAA", "site02", "3")]
    (odd,) = [row for row in rows if row["odd"]]
    assert (odd["code"], odd["site"]) == ("BBB", "site02")
    assert odd["odd"].startswith("worse than its city's other sites: ")


def test_a_sites_first_result_alone_counts(written):
    out, measured = written
    rows = [row for row in read(out / "folds.csv") if row["first"] == "yes"]
    metrics = json.loads((out / "metrics.json").read_text())
    right = sum(int(row["right"]) for row in rows)
    patches = sum(int(row["patches"]) for row in rows)
    assert (metrics["n"], metrics["n_sites"], metrics["n_rasters"]) == (patches, 11, 22)
    assert metrics["accuracy"] == pytest.approx(right / patches)
    counts = intervals.RasterCounts(
        np.array([CITIES.index(row["city"]) for row in rows]),
        np.array([float(row["patches"]) for row in rows]),
        np.array([float(row["right"]) for row in rows]),
    )
    _, ends = site_intervals.overall_interval(counts, 4)
    assert metrics["accuracy_ci95"] == pytest.approx(ends)
    with open(out / "confusion_matrix.csv", newline="", encoding="utf-8") as lines:
        matrix = np.array([row[1:] for row in list(csv.reader(lines))[1:]], int)
    assert matrix.sum() == patches
    assert np.trace(matrix) == right


def test_cities(written):
    out, _ = written
    rows = {row["code"]: row for row in read(out / "per_city.csv")}
    assert {code: row["sites"] for code, row in rows.items()} == {
        "AAA": "2",
        "BBB": "3",
        "CCC": "3",
        "DDD": "3",
    }
    assert float(rows["BBB"]["lowest_site"]) < 0.25 < float(rows["BBB"]["highest_site"])
    assert all(row["interval"] == "sites" for row in rows.values())
    assert float(rows["BBB"]["ci95_low"]) < float(rows["CCC"]["ci95_low"])


def test_a_folds_temperature_comes_from_the_others(written):
    out, measured = written
    metrics = json.loads((out / "metrics.json").read_text())
    whole = [fold for fold in measured if fold.training_sites is None]
    logits = []
    true = []
    sites = set()
    for fold in whole[:2]:  # the third fold's; its own site that was tested before is the first's
        rows = read(fold.results / "predictions.csv")
        logits.append(np.load(fold.results / "logits.npy"))
        true += [CITIES.index(row["true"]) for row in rows]
        sites |= {(row["true"], row["site"]) for row in rows}
    assert metrics["temperatures"]["3"] == pytest.approx(
        fit_temperature(np.concatenate(logits), np.array(true), len(sites))
    )
    assert metrics["loss"] < metrics["loss_untempered"]
    assert metrics["ece"] < metrics["ece_untempered"]


def test_the_published_split_is_the_first_folds_left_halves(written):
    out, measured = written
    split = json.loads((out / "metrics.json").read_text())["published_split"]
    rows = read(measured[0].results / "predictions.csv")
    left = [row for row in rows if ".test/" in row["patch"]]
    assert len(left) == len(rows) / 2
    assert split["n"] == len(left)
    assert split["halves"] is True
    assert split["accuracy"] == pytest.approx(
        np.mean([row["true"] == row["predicted"] for row in left])
    )


def test_colour_alone(written):
    out, measured = written
    found = json.loads((out / "metrics.json").read_text())["colour_alone"]
    rows = [row for row in read(out / "folds.csv") if row["first"] == "yes"]
    share = np.mean([float(row["colour_alone"]) for row in rows])
    assert found["accuracy"] == pytest.approx(share)
    low, high = found["difference_ci95"]
    assert 0.2 < low < found["difference"] < high < 0.9


def test_the_curve_has_the_same_sites(written):
    out, _ = written
    one, every = read(out / "curve.csv")
    assert (one["training_sites"], every["training_sites"]) == ("1", "all")
    assert one["sites"] == every["sites"] == "11"
    assert one["patches"] == every["patches"]
    assert float(one["accuracy"]) < float(every["accuracy"]) - 0.1
    metrics = json.loads((out / "metrics.json").read_text())
    assert float(every["accuracy"]) == metrics["accuracy"]


@pytest.fixture
def no_plots(monkeypatch):
    for name in ("draw_confusion", "draw_reliability", "draw_resemblance"):
        monkeypatch.setattr(f"dl_slicer.results.plots.{name}", lambda *args, **more: None)


def test_one_fold_alone(tmp_path, no_plots):
    measured = [fold_results(tmp_path / "one", 2, shares()[1], colour=False)]
    folds.write(tmp_path, measured)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["temperatures"] == {"2": 1.0}
    assert metrics["temperature_from"] == "none: one fold only"
    assert metrics["accuracy_ci95"] is metrics["colour_alone"] is None
    assert metrics["published_split"] is None
    assert metrics["loss"] == metrics["loss_untempered"]
    rows = read(tmp_path / "folds.csv")
    assert [row["odd"] for row in rows] == [""] * 4
    assert not (tmp_path / "curve.csv").exists()


def test_one_raster_a_site_says_so(tmp_path, no_plots, monkeypatch):
    monkeypatch.setattr(made_up_folds, "PATCHES", 200)
    measured = cross_validation(tmp_path, curve=False, rasters=1)
    folds.write(tmp_path, measured)
    rows = read(tmp_path / "folds.csv")
    assert {row["low"] for row in rows} == {""}
    (odd,) = [row["odd"] for row in rows if row["odd"]]
    assert odd.endswith("; with one raster a site it may be this picture alone")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["spread"]["rasters"] is None
    assert metrics["spread"]["sites"] > 0.1


def test_the_same_folds_give_the_same_bytes(written, tmp_path, no_plots):
    out, _ = written
    measured = cross_validation(tmp_path)
    folds.write(tmp_path, measured[::-1])
    for name in ("folds.csv", "curve.csv", "per_city.csv", "metrics.json", "nearest.csv"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_probabilities_keep_the_predicted_class(written):
    _, measured = written
    patches = pooled_folds.read([fold for fold in measured if fold.training_sites is None])
    stated = pooled_folds.probabilities(patches, {1: 3.0, 2: 0.2, 3: 1.0})
    assert (stated.argmax(1) == patches.predicted).all()
    own = patches.fold == 1
    slow = (torch.from_numpy(patches.logits[own]) / 3).softmax(1).numpy()
    np.testing.assert_allclose(stated[own], slow, rtol=1e-5, atol=1e-7)


def damage(fold, name, content):
    path = fold.results / name
    if content is None:
        path.unlink()
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        path.write_text(content)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("predictions.csv", "patch\n", "predictions.csv: no whole results"),
        ("metrics.json", "{", "metrics.json: no whole results"),
        ("per_city.csv", "city\nZz\n", "per_city.csv: no whole results of a fold (it has no Aa"),
        ("per_city.csv", None, "per_city.csv: no whole results (not there)"),
        ("logits.npy", None, "logits.npy: no whole results of a fold (not there; test_class"),
        ("logits.npy", "no array", "logits.npy: no whole results of a fold"),
        ("logits.npy", np.zeros((3, 4), np.float32), "not float32 (320, 4)"),
        ("logits.npy", np.full((320, 4), np.nan, np.float32), "numbers that are not finite"),
        ("logits.npy", np.zeros((320, 4), np.float32), "not of the test of predictions.csv"),
        ("raster_sums.npz", None, "raster_sums.npz"),
        ("colour_alone.csv", "patch,predicted\n", "colour_alone.csv: no whole results of a fold"),
    ],
)
def test_what_is_missing_or_damaged_is_told(tmp_path, name, content, said):
    assert PATCHES == 40  # 320 patches of 4 cities with 2 rasters each
    measured = cross_validation(tmp_path, curve=False)
    damage(measured[1], name, content)
    with pytest.raises(InputError) as refused:
        folds.write(tmp_path, measured)
    assert "fold_2" in str(refused.value)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "metrics.json").exists()


def test_folds_of_other_cities_are_refused(tmp_path):
    one = fold_results(tmp_path / "fold_1", 1, shares()[0])
    others = CITIES[:3]
    two = fold_results(tmp_path / "fold_2", 2, shares(others)[1], classes=others)
    with pytest.raises(InputError, match="fold_2: of other cities than .*fold_1"):
        folds.write(tmp_path, [one, two])


def test_predictions_without_sites_are_refused(tmp_path):
    fold = fold_results(tmp_path / "fold_1", 1, shares()[0])
    rows = read(fold.results / "predictions.csv")
    columns = [column for column in rows[0] if column != "site"]
    lines = [",".join(row[column] for column in columns) for row in rows]
    text = "\n".join([",".join(columns), *lines])
    (fold.results / "predictions.csv").write_text(text)
    with pytest.raises(InputError, match="it does not say the sites"):
        folds.write(tmp_path, [fold])
