"""How familiar features are, against the slow way: one patch, one city at a time."""

import numpy as np
import pytest
import torch

from dl_slicer.model import familiarity
from dl_slicer.model.familiarity import Inside, Known, Moments

CLASSES = 3
WIDTH = 6


def features_of(labels, seed, spread=1.0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(0, 6, (CLASSES, WIDTH))
    mixed = np.random.default_rng(1).normal(0, 1, (WIDTH, WIDTH))
    return (centres[labels] + spread * rng.normal(0, 1, (len(labels), WIDTH)) @ mixed).astype("f4")


def inside(middle, strength=10.0):
    """What a network computes: these channels, and features of this length."""
    middle = torch.as_tensor(middle)
    features = torch.zeros(len(middle), 2 * WIDTH)
    features[:, 0] = torch.as_tensor(strength, dtype=torch.float32)
    return Inside(middle, features)


def strengths(count, seed):
    return np.random.default_rng(seed).normal(10, 1, count).astype("f4")


@pytest.fixture(scope="module")
def known():
    train = np.arange(600) % CLASSES
    moments = Moments.none(CLASSES, WIDTH, torch.device("cpu"))
    features = torch.from_numpy(features_of(train, 2))
    for rows in torch.arange(600).split(70):
        moments.add(features[rows], torch.from_numpy(train)[rows])
    found = moments.known()
    val = np.arange(3 * 150) % CLASSES
    found.distances = found.nearest(inside(features_of(val, 3), strengths(450, 4)))[0]
    found.labels = torch.from_numpy(val)
    return found


def test_distances_are_those_of_the_formula(known):
    labels = np.arange(600) % CLASSES
    features = features_of(labels, 2).astype(float)
    means = np.stack([features[labels == k].mean(0) for k in range(CLASSES)])
    rest = features - means[labels]
    covariance = rest.T @ rest / len(rest)
    share = familiarity.SHRINKAGE
    shrunk = (1 - share) * covariance + share * np.eye(WIDTH) * np.trace(covariance) / WIDTH
    inverse = np.linalg.inv(shrunk)
    others = features_of(np.array([0, 1, 2, 2, 0]), 7, spread=2.0)
    distances, nearest = known.nearest(inside(others, 7.5))
    assert distances[:, 1].tolist() == pytest.approx([-7.5] * 5)
    for row, distance, label in zip(others.astype(float), distances[:, 0], nearest, strict=True):
        squares = [(row - mean) @ inverse @ (row - mean) for mean in means]
        assert float(distance) == pytest.approx(min(squares), rel=1e-3)
        assert int(label) == int(np.argmin(squares))


def test_familiarity_counts_val_patches_of_the_nearest_city(known):
    others = inside(features_of(np.array([0, 1, 2, 2, 0]), 7, spread=1.3), strengths(5, 9))
    distances, nearest = known.nearest(others)

    def smaller_share(of_city, distance):
        return min(float((of_city[:, k] >= distance[k]).double().mean()) for k in (0, 1))

    for familiar, distance, label in zip(
        known.familiarity(others), distances, nearest, strict=True
    ):
        of_city = known.distances[known.labels == label]
        own = smaller_share(of_city, distance)
        farther = sum(smaller_share(of_city, each) <= own for each in of_city)
        assert familiar == pytest.approx((1 + farther) / (1 + len(of_city)))


def test_patches_like_val_are_evenly_familiar_and_others_are_not(known):
    middle = features_of(np.arange(3000) % 3, 11)
    alike = known.familiarity(inside(middle, strengths(3000, 12)))
    assert np.mean(alike <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.median(alike) == pytest.approx(0.5, abs=0.1)
    assert (known.familiarity(inside(middle + 100)) <= familiarity.UNLIKE).all()  # of other kind
    assert (known.familiarity(inside(middle, 4.0)) <= familiarity.UNLIKE).all()  # too weak


def test_below_99_val_patches_a_city_it_cannot_be_told(known):
    def with_patches(count):
        keep = torch.cat([(known.labels == k).nonzero().flatten()[:count] for k in range(CLASSES)])
        return Known(
            known.means, known.axes, known.patches, known.distances[keep], known.labels[keep]
        )

    far = inside(features_of(np.arange(9) % 3, 11) + 100)
    assert np.isnan(with_patches(98).familiarity(far)).all()
    assert with_patches(98).few() == [0, 1, 2]
    enough = with_patches(99)
    assert enough.few() == []
    assert enough.familiarity(far) == pytest.approx(np.full(9, 0.01))
    assert (enough.familiarity(far) <= familiarity.UNLIKE).all()


def test_precision_does_not_depend_on_autocast(known):
    others = inside(features_of(np.arange(9) % 3, 11))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distances, _ = known.nearest(others)
    assert torch.allclose(distances, known.nearest(others)[0])


def test_as_many_patches_of_each_city_are_chosen(monkeypatch):
    monkeypatch.setattr(familiarity, "TRAIN_PATCHES", 30)
    labels = np.repeat([0, 1, 2], [100, 4, 50])
    chosen = familiarity.choose_patches(labels, 3, seed=5)
    assert (np.diff(chosen) > 0).all()
    assert np.bincount(labels[chosen]).tolist() == [10, 4, 10]
    assert (familiarity.choose_patches(labels, 3, seed=5) == chosen).all()
    assert (familiarity.choose_patches(labels, 3, seed=6) != chosen).any()


def test_features_that_never_vary_are_no_trouble():
    moments = Moments.none(2, 4, torch.device("cpu"))
    features = torch.zeros(10, 4)
    features[:, 0] = torch.arange(10.0)
    moments.add(features, torch.arange(10) % 2)
    found = moments.known()
    assert found.axes.isfinite().all()
    distances, _ = found.nearest(inside([[4.0, 0, 0, 0], [4.0, 50, 0, 0]]))
    assert distances[1, 0] > 100 * distances[0, 0]


def test_what_a_checkpoint_holds_is_checked(known):
    model = {"fc.weight": torch.zeros(CLASSES, 2 * WIDTH)}
    right = known.as_dict()
    assert familiarity.is_right(right, model, CLASSES)
    wrong = [
        None,
        {},
        right | {"more": 1},
        right | {"patches": -1},
        right | {"patches": 1.0},
        right | {"means": right["means"][:2]},
        right | {"means": right["means"].double()},
        right | {"means": right["means"] * torch.nan},
        right | {"axes": right["axes"][:, :3]},
        right | {"distances": right["distances"][:-1]},
        right | {"distances": right["distances"][:, :1]},
        right | {"distances": right["distances"].tolist()},
        right | {"labels": right["labels"] + 1},
        right | {"labels": right["labels"] - 1},
        right | {"labels": right["labels"].float()},
    ]
    for each in wrong:
        assert not familiarity.is_right(each, model, CLASSES)
    assert not familiarity.is_right(right, {}, CLASSES)
    assert not familiarity.is_right(right, model, CLASSES + 1)
