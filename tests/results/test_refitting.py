"""The last layer fitted anew: as scikit-learn fits it; and which train patches it is fitted to."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dl_slicer.results import refitting, train_samples
from dl_slicer.results.train_samples import Sample

CPU = torch.device("cpu")


def made_up(patches=400, width=20, classes=4, seed=0):
    """Features of four classes that overlap, one of them rare, from two sites each."""
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.choice(classes, patches, p=(0.4, 0.3, 0.2, 0.1)))
    centres = rng.normal(size=(classes, width))
    features = 3 + 2 * rng.normal(size=(patches, width)) + centres[labels]
    features[:, 3] = 7  # constant
    choice = rng.integers(0, 2, patches)
    sample = Sample(np.arange(patches), labels, choice, 2, "sites")
    return torch.from_numpy(features.astype(np.float32)), sample


@pytest.mark.parametrize("penalty", refitting.PENALTIES)
def test_a_fit_is_that_of_scikit_learn(penalty):
    features, sample = made_up()
    layer = refitting.fit_last_layer(features, sample, 4, CPU, (penalty, penalty))
    scaled = StandardScaler().fit_transform(features.double().numpy())
    slow = LogisticRegression(
        class_weight="balanced", C=1 / (penalty * len(features)), tol=1e-9, max_iter=5000
    ).fit(scaled, sample.labels)
    found = (features @ layer.weight + layer.bias).softmax(1).numpy()
    np.testing.assert_allclose(found, slow.predict_proba(scaled), atol=5e-3)
    assert (layer.classify(features).numpy() == slow.predict(scaled)).mean() > 0.99


def test_the_penalty_is_the_one_that_left_out_sites_want():
    """A feature that tells the city at one site and lies at the other one: trust it little."""
    features, sample = made_up()
    rng = np.random.default_rng(1)
    scaled = torch.from_numpy(StandardScaler().fit_transform(features.numpy()))
    losses = []
    for penalty in refitting.PENALTIES:
        each = []
        for number in (0, 1):
            out = sample.choice == number
            slow = LogisticRegression(
                class_weight="balanced", C=1 / (penalty * (~out).sum()), tol=1e-8, max_iter=5000
            ).fit(scaled[~out], sample.labels[~out])
            likely = slow.predict_log_proba(scaled[out])[range(out.sum()), sample.labels[out]]
            each.append(np.mean([-likely[sample.labels[out] == k].mean() for k in range(4)]))
        losses.append(np.mean(each))
    chosen = refitting.choose_penalty(scaled, sample, 4, refitting.PENALTIES)
    assert chosen == refitting.PENALTIES[int(np.argmin(losses))]
    noise = torch.from_numpy(rng.normal(size=(400, 60)).astype(np.float32))
    assert refitting.choose_penalty(noise, sample, 4, refitting.PENALTIES) == 1


def test_without_sites_to_leave_out_a_penalty_in_the_middle_is_taken():
    features, sample = made_up()
    layer = refitting.fit_last_layer(features, sample._replace(choices=0), 4, CPU)
    assert layer.penalty == 0.1


class Patches:
    """A train split of three cities: two sites, one site with two rasters, one raster."""

    labels = np.repeat([0, 1, 2], [8, 6, 4])

    def site(self, index):
        return f"site{index % 2}" if index < 8 else "site"

    def raster(self, index):
        return f"{index % 2}.png" if index < 14 else "only.png"

    def __len__(self):
        return len(self.labels)


def test_a_sample_is_balanced_seeded_and_leaves_out_whole_sites():
    one = train_samples.draw(Patches(), 12, seed=0)
    assert np.bincount(one.labels).tolist() == [4, 4, 4]
    assert (np.diff(one.rows) > 0).all()
    assert np.array_equal(one.rows, train_samples.draw(Patches(), 12, seed=0).rows)
    assert not np.array_equal(one.rows, train_samples.draw(Patches(), 12, seed=1).rows)
    everything = train_samples.draw(Patches(), 10**6)
    assert everything.rows.tolist() == list(range(18))
    assert everything.units == "sites and rasters"
    assert everything.choices == 2
    assert everything.choice.tolist() == [0, 1] * 7 + [-1] * 4


def test_classes_weigh_the_same():
    labels = np.array([0, 0, 0, 2, 2, 1])
    taken = np.array([True, True, False, True, True, False])
    assert train_samples.equal_classes(labels, taken).tolist() == [0.25, 0.25, 0, 0.25, 0.25, 0]
