"""Chance that respects the split: the same predictions, with the names of test sites exchanged.

Patches of one site are right or wrong together, so that a network which knows nothing of cities,
but takes each site for one thing, is by chance far above or below 1 / K.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

MOST_WAYS = 10_000
BLOCK = 1000  # ways computed at a time


class Exchanged(NamedTuple):
    """The accuracies, 0 .. 1, that exchanged names give."""

    median: float
    p95: float  # the 95th percentile
    ways: int  # that were computed
    is_all: bool  # whether there are no more
    at_least: float  # share of the ways with at least the accuracy that was found
    sites: int
    chance: float  # 1 / K


def exchange_sites(
    true: np.ndarray,
    predicted: np.ndarray,
    sites: Sequence[str],
    cities: int,
    most_ways: int = MOST_WAYS,
    seed: int = 0,
) -> Exchanged:
    """Give the accuracy of the same predictions with the names of whole test sites exchanged.

    true, predicted (N,) int < cities; sites: the name of each patch's site, within its city.
    All patches of a site keep their predictions and get together the true city of another site:
    the true cities of the S sites are permuted among them. So each city keeps as many test sites as
    it has, and with one site a city the cities' names are permuted. All S! ways (the true one
    among them) where these are at most most_ways, else so many random ones; ways that only exchange
    sites of one city change nothing and count as they come.
    """
    numbers: dict[tuple[int, str], int] = {}
    keys = zip(true.tolist(), sites, strict=True)
    site = np.array([numbers.setdefault(key, len(numbers)) for key in keys])
    city = np.array([label for label, _ in numbers])
    counts = np.zeros((len(city), cities), np.int64)
    np.add.at(counts, (site, predicted), 1)

    is_all = len(city) <= 20 and math.factorial(len(city)) <= most_ways
    orders = _all_orders(len(city)) if is_all else _drawn_orders(len(city), most_ways, seed)
    right = np.concatenate(
        [counts[np.arange(len(city)), city[block]].sum(1) for block in _blocks(orders)]
    )
    found = counts[np.arange(len(city)), city].sum()
    reached = (right >= found).sum()
    extra = 0 if is_all else 1  # the true way, which is among the random ones by chance alone
    return Exchanged(
        median=float(np.median(right)) / len(true),
        # No way between two of them: with few sites it would be one that is not there.
        p95=float(np.percentile(right, 95, method="higher")) / len(true),
        ways=len(right),
        is_all=is_all,
        at_least=float((reached + extra) / (len(right) + extra)),
        sites=len(city),
        chance=1 / cities,
    )


def _all_orders(count: int) -> Iterator[Sequence[int]]:
    return itertools.permutations(range(count))


def _drawn_orders(count: int, ways: int, seed: int) -> Iterator[Sequence[int]]:
    rng = np.random.default_rng([seed, count])
    for _ in range(ways):
        yield rng.permutation(count)


def _blocks(orders: Iterator[Sequence[int]]) -> Iterator[np.ndarray]:
    while block := list(itertools.islice(orders, BLOCK)):
        yield np.array(block)
