"""What draws of the rasters leave of a resemblance: recomputed the slow way, and where it is known.

Cities alike on purpose are told apart from the others, cities equally far are not.
"""

from collections import Counter

import numpy as np
import pytest
from scipy.cluster import hierarchy
from test_resemblance import made_up, without

from dl_slicer.results import dendrogram, plots, resemblance, tables
from dl_slicer.results import raster_sums as sums_of
from dl_slicer.results import resemblance_stability as stable_views
from dl_slicer.results.raster_sums import RasterSums

CLASSES = [f"City {i} (C{i})" for i in range(6)]


def sums_of_features(features, city, cities=None, right=1.0):
    """RasterSums of rasters of ten patches each: features (M, D) are their means."""
    k = cities or int(city.max()) + 1
    m = len(city)
    confusion = np.zeros((m, k), np.int64)
    confusion[np.arange(m), city] = round(10 * right)
    confusion[np.arange(m), (city + 1) % k] += 10 - round(10 * right)
    return RasterSums(
        classes=[f"City {i}" for i in range(k)],
        rasters=[f"{i}" for i in range(m)],
        city=city,
        patches=np.full(m, 10),
        confusion=confusion,
        probabilities=confusion.astype(float),
        features=(10 * features).astype(np.float32),
    )


def scattered(centres, rasters, noise, seed):
    """Rasters' features about the cities' centres (K, D): their means, and their cities."""
    rng = np.random.default_rng(seed)
    city = np.repeat(np.arange(len(centres)), rasters)
    spread = noise / np.sqrt(centres.shape[1])
    return centres[city] + spread * rng.normal(size=(len(city), centres.shape[1])), city


def orthogonal(cities, dimensions, seed):
    """Centres (cities, dimensions) that are equally far from each other."""
    rng = np.random.default_rng(seed)
    return np.linalg.qr(rng.normal(size=(dimensions, cities)))[0].T


def test_views_of_all_rasters_are_those_of_all_patches():
    predictions = without(made_up(CLASSES, 90), [2])
    stable = stable_views.stability([sums_of.collect(predictions)], draws=5)
    matrix = predictions.confusion_matrix()
    by_features = resemblance.by_features(predictions.features, predictions.true, 6)
    np.testing.assert_allclose(stable.views.confusion, resemblance.by_confusion(matrix), 1e-12)
    np.testing.assert_allclose(stable.views.features, by_features, atol=1e-6)


def slow_draws(sums, draws, seed):
    """The draws of stability() one by one, from its weights alone: views and branches of each."""
    rng = np.random.default_rng(seed)
    weights = stable_views._draw_rasters(sums, draws, rng)
    cities = len(sums.classes)
    for weight in weights:
        confusion = np.zeros((cities, cities))
        probability = np.zeros((cities, cities))
        means = np.full((cities, sums.features.shape[1]), np.nan)
        for city in set(sums.city.tolist()):
            own = np.flatnonzero(sums.city == city)
            drawn = [m for m in own for _ in range(int(weight[m]))]
            assert len(drawn) == max(len(own) - 1, 1)
            patches = sum(sums.patches[m] for m in drawn)
            confusion[city] = sum(sums.confusion[m] for m in drawn)
            probability[city] = sum(sums.probabilities[m] for m in drawn)
            means[city] = sum(sums.features[m].astype(float) for m in drawn) / patches
        features = np.full((cities, cities), np.nan)
        centred = means - np.nanmean(means, axis=0)
        for a in range(cities):
            for b in range(cities):
                if a != b:
                    norm = np.linalg.norm(centred[a]) * np.linalg.norm(centred[b])
                    features[a, b] = centred[a] @ centred[b] / norm
        by_confusion = resemblance.by_confusion(confusion)
        yield by_confusion, resemblance.by_confusion(probability), features


def leaves_below(links, count):
    """The sets of leaves of all links, by scipy's own tree."""
    root, nodes = hierarchy.to_tree(links, rd=True)
    return [frozenset(node.pre_order()) for node in nodes[count:]]


def test_shares_and_branches_are_those_of_draws_one_by_one():
    predictions = without(made_up(CLASSES, 60, rasters=4, spread=0.9), [5])
    sums = sums_of.collect(predictions)
    stable = stable_views.stability([sums], draws=40, seed=3)
    confusion_first = np.zeros((6, 6))
    features_first = np.zeros((6, 6))
    branches = Counter()
    # Tests are drawn first, which with one test takes no random numbers.
    for confusion, probability, features in slow_draws(sums, 40, seed=3):
        for city in range(5):
            ranked = resemblance.rank_others(confusion, city, probability, above=0)
            if ranked:
                confusion_first[city, ranked[0]] += 1
            features_first[city, resemblance.rank_others(features, city)[0]] += 1
        distance = 1 - features[:5, :5]
        condensed = distance[np.triu_indices(5, 1)]
        branches.update(leaves_below(hierarchy.linkage(condensed, "average"), 5))
    np.testing.assert_allclose(stable.by_confusion.shares, confusion_first / 40)
    np.testing.assert_allclose(stable.by_features.shares, features_first / 40)
    tree = dendrogram.group_by_features(stable.views.features)
    expected = [branches[leaves] / 40 for leaves in leaves_below(tree.links, 5)]
    np.testing.assert_allclose(stable.support(tree), expected)
    assert 0 < min(expected) < max(expected) == 1  # the root is in every draw


def test_told_apart_follows_the_interval_of_the_lead():
    """The lead of a first neighbour, its standard error over draws, and Student's t, by hand."""
    features, city = scattered(orthogonal(4, 16, 0), 4, 1.2, 1)
    sums = sums_of_features(features, city)
    stable = stable_views.stability([sums], draws=200, seed=0)
    drawn = np.array([view for _, _, view in slow_draws(sums, 200, seed=0)])
    told = []
    for a in range(4):
        first = int(np.nanargmax(stable.views.features[a]))
        assert stable.by_features.first[a] == first
        rivals = [b for b in range(4) if b not in (a, first)]
        leads = [stable.views.features[a, first] - stable.views.features[a, b] for b in rivals]
        errors = [np.std(drawn[:, a, first] - drawn[:, a, b]) for b in rivals]
        t = 2.2621571628  # of 9 degrees of freedom: 3 cities of 4 rasters
        clear = all(lead > t * error for lead, error in zip(leads, errors, strict=True))
        told.append("yes" if clear else "no")
    assert stable.by_features.told == told


def test_twins_are_told_apart_and_cities_equally_far_are_not():
    wrong = 0
    for seed in range(20):
        centres = orthogonal(6, 32, seed)
        centres[1] = centres[0] + 0.3 * centres[5]
        features, city = scattered(centres[:5], 4, 0.3, seed)
        stable = stable_views.stability([sums_of_features(features, city)], draws=200)
        assert stable.by_features.first[:2].tolist() == [1, 0]
        assert stable.by_features.told[:2] == ["yes", "yes"]
        assert stable.by_features.shares[0, 1] > 0.99
        features, city = scattered(orthogonal(3, 32, seed), 4, 0.3, seed)
        equal = stable_views.stability([sums_of_features(features, city)], draws=200)
        wrong += equal.by_features.told.count("yes")
    assert wrong <= 9  # of 60, of which 3 are to be expected


def test_several_tests_have_features_of_their_own():
    """Folds and seeds: the views are averaged, each made in its own space, whatever its size."""
    centres = orthogonal(6, 32, 0)
    centres[1] = centres[0] + 0.2 * centres[5]
    tests = []
    for seed, dimensions in enumerate((32, 48, 40)):
        features, city = scattered(centres[:5], 1, 0.2, seed)
        turned = features @ orthogonal(32, dimensions, seed)
        tests.append(sums_of_features(turned, city))
    stable = stable_views.stability(tests, draws=100)
    alone = [stable_views.stability([test], draws=10) for test in tests]
    mean = np.mean([one.views.features for one in alone], axis=0)
    np.testing.assert_allclose(stable.views.features, mean, atol=1e-9)
    assert stable.tests == 3
    assert stable.by_features.told[:2] == ["yes", "yes"]
    # One raster a city in one test tells nothing, of three tests the differences do.
    assert alone[0].draws == 0
    assert alone[0].by_features.told == ["one raster"] * 5
    assert alone[0].support(dendrogram.group_by_features(mean)) is None
    again = stable_views.stability(tests, draws=100)
    np.testing.assert_array_equal(again.by_features.shares, stable.by_features.shares)
    other = sums_of_features(*scattered(centres[:4], 1, 0.2, 0))
    with pytest.raises(ValueError, match="different cities"):
        stable_views.stability([tests[0], other])


def test_a_city_that_one_test_lacks_counts_where_it_is():
    centres = orthogonal(4, 16, 0)
    features, city = scattered(centres, 2, 0.1, 0)
    whole = sums_of_features(features, city)
    part = sums_of_features(features[:6], city[:6], cities=4)
    stable = stable_views.stability([whole, part], draws=50)
    only_whole = stable_views.stability([whole], draws=1).views.features
    np.testing.assert_allclose(stable.views.features[3], only_whole[3])
    assert np.isfinite(stable.by_features.shares).all()
    assert stable.by_features.shares[3].sum() <= 1


def test_two_cities_that_no_test_has_together():
    """One test lacks the first city, another the last: there is a tree of all, nevertheless."""
    features, city = scattered(orthogonal(4, 16, 0), 3, 0.1, 0)
    tests = [
        sums_of_features(features[city != lacking], city[city != lacking], cities=4)
        for lacking in (0, 3)
    ]
    stable = stable_views.stability(tests, draws=20)
    assert np.isnan(stable.views.features[0, 3])
    tree = dendrogram.group_by_features(stable.views.features)
    assert sorted(tree.cities.tolist()) == [0, 1, 2, 3]
    assert len(stable.support(tree)) == 3


def test_single_rasters_are_said():
    features, city = scattered(orthogonal(4, 16, 0), 3, 0.1, 0)
    kept = np.flatnonzero((city != 3) | (np.arange(12) == 11))  # the last city has one raster
    sums = sums_of_features(features[kept], city[kept])
    stable = stable_views.stability([sums], draws=50)
    assert stable.single.tolist() == [False, False, False, True]
    assert stable.by_features.told[3] == "one raster"
    rows = resemblance.nearest(
        stable.views.confusion,
        stable.views.features,
        stable.views.tie_breaker,
        stable.classes,
        list("ABCD"),
        stable,
    )
    assert rows[3]["features_1_share"] is None
    assert rows[0]["features_1_share"] == stable.by_features.shares[0].max()
    assert {row["confusion_told_apart"] for row in rows} == {""}  # nothing was ever confused
    assert "City 3" not in {city for city, *_ in stable_views.share_rows(stable)}


@pytest.mark.parametrize("cities", [1, 2])
def test_one_or_two_cities_have_nothing_to_tell_apart(cities):
    features, city = scattered(orthogonal(2, 8, 0)[:cities], 3, 0.1, 0)
    stable = stable_views.stability([sums_of_features(features, city, cities)], draws=20)
    assert stable.by_features.told == [""] * cities


def test_files_of_a_test_say_how_sure_they_are(tmp_path):
    predictions = made_up(CLASSES, 60, rasters=4)
    tables.write_results(tmp_path, predictions, {})
    sums = sums_of.load(tmp_path / sums_of.FILE)
    stable = stable_views.stability([sums])
    lines = (tmp_path / "nearest.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].endswith(
        ",confusion_1_share,confusion_told_apart,features_1_share,features_told_apart"
    )
    assert float(lines[1].split(",")[-2]) == stable.by_features.shares[0].max()
    shares = (tmp_path / "nearest_shares.csv").read_text(encoding="utf-8").splitlines()
    assert shares[0] == "city,neighbour,confusion_share,features_share"
    assert sum(float(line.split(",")[3]) for line in shares[1:]) == pytest.approx(6)
    pooled = tmp_path / "pooled"
    tables.write_pooled_resemblance(pooled, [sums, sums])
    assert {path.name for path in pooled.iterdir()} == {
        "nearest.csv",
        "nearest_shares.csv",
        "similarity.csv",
        "similarity.pdf",
        "similarity.png",
    }
    assert (pooled / "similarity.csv").read_text().splitlines()[0] == "a,b,confusion,features"


def drawn_branches(monkeypatch, path, support):
    """The colours of a dendrogram's branches as drawn, and what is written below it."""
    import matplotlib.pyplot as plt

    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    predictions = made_up(CLASSES, 60)
    views = (
        resemblance.by_confusion(predictions.confusion_matrix()),
        resemblance.by_features(predictions.features, predictions.true, 6),
    )
    plots.draw_resemblance(path, *views, [f"C{i}" for i in range(6)], support)
    monkeypatch.undo()
    axes = drawn[0].axes[0]
    colours = Counter()
    for lines in axes.collections:
        count = len(lines.get_paths())
        for colour in lines.get_colors():
            colours[tuple(np.round(255 * colour[:3]).astype(int))] += count
    plt.close(drawn[0])
    return colours, axes.get_xlabel()


def test_branches_of_few_draws_are_drawn_pale(tmp_path, monkeypatch):
    path = tmp_path / "similarity"
    colours, label = drawn_branches(monkeypatch, path, np.array([1, 0.69, 0.3, 0.7, 1]))
    assert colours == {(200, 200, 200): 2, (68, 68, 68): 3}
    assert "pale: in less than\n70 % of draws" in label
    for support in (None, np.ones(5)):
        colours, label = drawn_branches(monkeypatch, path, support)
        assert colours == {(68, 68, 68): 5}
        assert "pale" not in label
