"""The temperature, against the slow way: the exact minimum by scipy of all logits at once."""

import numpy as np
import pytest
import torch
from scipy import optimize

from dl_slicer.model import temperature


def draw(spread: float, seed: int = 0, patches: int = 700, classes: int = 6):
    """Logits and labels that have the probabilities of logits / spread."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.6, (patches, classes))
    shares = np.exp(truth) / np.exp(truth).sum(1, keepdims=True)
    labels = np.array([rng.choice(classes, p=share) for share in shares])
    return (truth * spread).astype(np.float32), labels


def likelihood(logits: np.ndarray, labels: np.ndarray, found: float) -> float:
    scaled = logits.astype(float) / found
    top = scaled.max(1)
    sums = np.log(np.exp(scaled - top[:, None]).sum(1)) + top
    return float((sums - scaled[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("spread", [0.12, 0.7, 1.0, 2.6, 9.0])
def test_the_minimum_is_found_without_keeping_the_patches(spread):
    logits, labels = draw(spread)
    exact = optimize.minimize_scalar(
        lambda log: likelihood(logits, labels, np.exp(log)),
        bounds=(-3, 3),
        method="bounded",
        options={"xatol": 1e-9},
    )
    found = temperature.fit_temperature(logits, labels)
    assert found == pytest.approx(np.exp(exact.x), rel=2e-4)
    assert found == pytest.approx(spread, rel=0.15)
    # In parts, whatever parts they are, it is the same number.
    evidence = temperature.Evidence()
    for rows in np.array_split(np.arange(len(labels)), 9):
        evidence.add(torch.from_numpy(logits[rows]), torch.from_numpy(labels[rows]))
    assert evidence.temperature() == pytest.approx(found, rel=2e-4)


def test_it_stays_within_its_bounds():
    logits, labels = draw(60.0)
    assert temperature.fit_temperature(logits, labels) == temperature.HIGHEST
    # Each second class: worse than guessing, so that no statement is the best one.
    assert temperature.fit_temperature(logits, (logits.argmax(1) + 1) % 6) == temperature.HIGHEST
    logits, labels = draw(0.02)
    assert temperature.fit_temperature(logits, labels) == 1 / temperature.HIGHEST


def test_it_is_1_where_it_cannot_be_told():
    logits, _ = draw(1.0)
    assert temperature.fit_temperature(logits, logits.argmax(1)) == 1
    assert temperature.fit_temperature(logits[:0], np.zeros(0, int)) == 1
    assert temperature.fit_temperature(logits[:, :1], np.zeros(len(logits), int)) == 1
    broken = logits.copy()
    broken[3, 2] = np.nan
    assert temperature.fit_temperature(broken, logits.argmin(1)) == 1
    assert temperature.Evidence().temperature() == 1


@pytest.mark.parametrize("sites", [1, 8, 45, 2000])
def test_few_sites_are_drawn_towards_1(sites):
    """Recomputed by scipy; the more sites, the nearer to what the patches alone say."""
    logits, labels = draw(2.6)
    exact = optimize.minimize_scalar(
        lambda log: (
            sites * likelihood(logits, labels, np.exp(log)) + log**2 / 2 / temperature.SPREAD**2
        ),
        bounds=(-3, 3),
        method="bounded",
        options={"xatol": 1e-9},
    )
    found = temperature.fit_temperature(logits, labels, sites)
    assert found == pytest.approx(np.exp(exact.x), rel=2e-4)
    alone = temperature.fit_temperature(logits, labels)
    assert 1 < found < alone
    assert temperature.fit_temperature(logits, labels, 2 * sites) > found


def test_with_sites_all_right_is_told_within_reason():
    """Where nothing is wrong the temperature falls, but not without end."""
    logits, _ = draw(1.0)
    found = [temperature.fit_temperature(logits, logits.argmax(1), n) for n in (4, 40, 400)]
    assert 1 > found[0] > found[1] > found[2] >= 1 / temperature.HIGHEST


def test_no_class_changes():
    logits = torch.tensor([[1.0, 2.0, 0.5], [3.0, 3.0, 1.0]])
    close = torch.tensor([[5.0, np.nextafter(np.float32(5), np.float32(6)), 1.0]])
    for rows in (logits, close):
        for found in (0.05, 1.0, 3.3, 20.0):
            shares = temperature.probabilities(rows, found)
            assert (shares.argmax(1) == rows.argmax(1)).all()
            assert torch.allclose(shares.double(), (rows.double() / found).softmax(1), atol=1e-6)
    assert torch.equal(temperature.probabilities(logits, 1.0), logits.softmax(1))
