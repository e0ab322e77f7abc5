"""How familiar features are, against the slow way: one patch, one city at a time."""

import numpy as np
import pytest
import torch

from dl_slicer.model import familiarity
from dl_slicer.model.familiarity import SHRINKAGE, Inside, Known, Moments

CLASSES = 3
WIDTH = 6


def features_of(labels, seed, spread=1.0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(0, 6, (CLASSES, WIDTH))
    mixed = np.random.default_rng(1).normal(0, 1, (WIDTH, WIDTH))
    return (centres[labels] + spread * rng.normal(0, 1, (len(labels), WIDTH)) @ mixed).astype("f4")


def inside(layer3, strength=10.0):
    """What a network computes: these channels, some of them, and features of this length."""
    layer3 = torch.as_tensor(layer3)
    features = torch.zeros(len(layer3), 2 * WIDTH)
    features[:, 0] = torch.as_tensor(strength, dtype=torch.float32)
    return Inside(layer3[:, : WIDTH // 2] ** 2, layer3, features)


def strengths(count, seed):
    return np.random.default_rng(seed).normal(10, 1, count).astype("f4")


@pytest.fixture(scope="module")
def known():
    train = np.arange(600) % CLASSES
    seen = inside(features_of(train, 2))
    spaces = {}
    for name, shrinkage in SHRINKAGE.items():
        view = seen.view(name)
        moments = Moments.none(CLASSES, view.shape[1], torch.device("cpu"))
        for rows in torch.arange(600).split(70):
            moments.add(view[rows], torch.from_numpy(train)[rows])
        spaces[name] = moments.space(shrinkage)
    val = np.arange(3 * 150) % CLASSES
    found = Known(**spaces, patches=600, labels=torch.from_numpy(val))
    found.distances = found.far(inside(features_of(val, 3), strengths(450, 4)))
    return found


@pytest.mark.parametrize(("name", "number"), [("texture", 0), ("kind", 1)])
def test_distances_are_those_of_the_formula(known, name, number):
    labels = np.arange(600) % CLASSES
    train = inside(features_of(labels, 2)).view(name).double().numpy()
    means = np.stack([train[labels == k].mean(0) for k in range(CLASSES)])
    rest = train - means[labels]
    deviations = np.sqrt((rest**2).mean(0))
    deviations = np.maximum(deviations, deviations.mean() / 100)
    correlations = (rest.T @ rest / len(rest)) / np.outer(deviations, deviations)
    share = SHRINKAGE[name]
    shrunk = (1 - share) * correlations + share * np.eye(len(correlations))
    inverse = np.linalg.inv(shrunk * np.outer(deviations, deviations))
    others = inside(features_of(np.array([0, 1, 2, 2, 0]), 7, spread=2.0), 7.5)
    distances = known.far(others)
    assert distances[:, 2].tolist() == pytest.approx([-7.5] * 5)
    for row, distance in zip(others.view(name).double().numpy(), distances, strict=True):
        squares = [(row - mean) @ inverse @ (row - mean) for mean in means]
        assert float(distance[number]) == pytest.approx(min(squares), rel=2e-3)


def test_kind_is_the_logarithm_of_layer3_and_texture_has_both_layers():
    seen = inside(features_of(np.array([0, 1]), 7))
    assert torch.allclose(seen.view("kind"), torch.log(seen.layer3.clamp(min=0) + 0.01))
    assert torch.equal(seen.view("texture"), torch.cat([seen.layer2, seen.layer3], 1))


def test_familiarity_counts_val_patches(known):
    others = inside(features_of(np.array([0, 1, 2, 2, 0]), 7, spread=1.3), strengths(5, 9))

    def smallest_share(distance):
        return min(float((known.distances[:, k] >= distance[k]).double().mean()) for k in range(3))

    usual = np.array([smallest_share(each) for each in known.distances])
    for familiar, distance in zip(known.familiarity(others), known.far(others), strict=True):
        farther = (usual <= smallest_share(distance) + 1e-12).sum()
        assert familiar == pytest.approx((1 + farther) / (1 + len(usual)))


def test_patches_like_val_are_evenly_familiar_and_others_are_not(known):
    middle = features_of(np.arange(3000) % 3, 11)
    alike = known.familiarity(inside(middle, strengths(3000, 12)))
    assert np.mean(alike <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.median(alike) == pytest.approx(0.5, abs=0.1)
    assert (known.familiarity(inside(middle + 100)) <= familiarity.UNLIKE).all()  # of other kind
    assert (known.familiarity(inside(middle, 4.0)) <= familiarity.UNLIKE).all()  # too weak


def test_below_99_val_patches_of_a_city_it_cannot_be_told(known):
    def with_patches(count):
        keep = torch.arange(3 * 99)
        keep = keep[(known.labels[keep] != 1) | (keep < 3 * count)]
        return Known(known.texture, known.kind, 600, known.distances[keep], known.labels[keep])

    far = inside(features_of(np.arange(9) % 3, 11) + 100)
    assert np.isnan(with_patches(98).familiarity(far)).all()
    assert with_patches(98).few() == [1]
    enough = with_patches(99)
    assert enough.few() == []
    assert enough.familiarity(far) == pytest.approx(np.full(9, 1 / 298))


def test_precision_does_not_depend_on_autocast(known):
    others = inside(features_of(np.arange(9) % 3, 11))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distances = known.far(others)
    assert torch.allclose(distances, known.far(others))


def test_as_many_patches_of_each_city_are_chosen(monkeypatch):
    monkeypatch.setattr(familiarity, "TRAIN_PATCHES", 30)
    labels = np.repeat([0, 1, 2], [100, 4, 50])
    chosen = familiarity.choose_patches(labels, 3, seed=5)
    assert (np.diff(chosen) > 0).all()
    assert np.bincount(labels[chosen]).tolist() == [10, 4, 10]
    assert (familiarity.choose_patches(labels, 3, seed=5) == chosen).all()
    assert (familiarity.choose_patches(labels, 3, seed=6) != chosen).any()


def test_channels_that_never_vary_are_no_trouble():
    moments = Moments.none(2, 4, torch.device("cpu"))
    view = torch.zeros(10, 4)
    view[:, 0] = torch.arange(10.0)
    moments.add(view, torch.arange(10) % 2)
    space = moments.space(0.1)
    assert space.axes.isfinite().all()
    near, far = space.nearest(torch.tensor([[4.0, 0, 0, 0], [4.0, 50, 0, 0]]))
    assert far > 100 * near


def test_what_a_checkpoint_holds_is_checked(known):
    model = {"fc.weight": torch.zeros(CLASSES, 2 * WIDTH)}
    right = known.as_dict()
    assert familiarity.is_right(right, model, CLASSES)
    kind = right["kind"]
    wrong = [
        None,
        {},
        right | {"more": 1},
        right | {"patches": -1},
        right | {"patches": 1.0},
        right | {"kind": None},
        right | {"kind": kind | {"more": 1}},
        right | {"kind": kind | {"means": kind["means"][:2]}},
        right | {"kind": kind | {"means": kind["means"].double()}},
        right | {"kind": kind | {"means": kind["means"] * torch.nan}},
        right | {"kind": kind | {"axes": kind["axes"][:, :3]}},
        right | {"texture": kind},
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
