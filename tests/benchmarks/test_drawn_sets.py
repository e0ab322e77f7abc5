"""What the benchmarks on drawn sets say of figures whose truth is known."""

import numpy as np
import pytest

from benchmarks import leaks, resemblance


def test_twins_are_judged_by_what_is_told_of_them():
    """Of made-up cities: the twins are each other's nearest and told apart."""
    rng = np.random.default_rng(0)
    found = resemblance.stability(resemblance.made_up("twins", 4, 1, rng), draws=100)
    assert found.by_features.first[:2].tolist() == [1, 0]
    assert found.by_features.told[:2] == ["yes", "yes"]
    equal = resemblance.stability(resemblance.made_up("one and the same", 4, 3, rng), draws=100)
    assert equal.tests == 3
    assert equal.by_features.told[:3] == ["no", "no", "no"]


LEAK = {"split": 0.97, "folds": 0.95, "low": 0.92, "high": 0.98, "colour alone": 0.96}
LEAK |= {"at least": -0.02, "fitted anew": 0.3, "odd": []}


@pytest.mark.parametrize(
    ("name", "changes", "wrong"),
    [
        ("sensors", {}, []),
        ("sensors", {"at least": 0.01}, ["the network is not better than colour alone"]),
        ("sensors", {"fitted anew": 0.8}, ["fitted anew without colour it is at chance"]),
        ("clean", {"colour alone": 0.3}, []),
        ("clean", {"split": 0.99, "colour alone": 0.3}, ["the folds agree with it"]),
        ("clean", {}, ["colour alone is at chance"]),
        ("odd", {"high": 0.9, "odd": ["A/site01", "B/site02"]}, []),
        ("odd", {"high": 0.9, "odd": ["A/site01"]}, ["the odd sites are named"]),
    ],
)
def test_leaks_are_judged_by_what_was_drawn(name, changes, wrong, tmp_path):
    for city in "BA":
        (tmp_path / city).mkdir()
    assert leaks.odd_sites(tmp_path) == ["A/site01", "B/site02"]
    assert leaks.judge(name, LEAK | changes, leaks.odd_sites(tmp_path)) == wrong
