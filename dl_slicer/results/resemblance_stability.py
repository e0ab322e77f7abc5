"""How sure it is which cities resemble each other: the views over rasters drawn anew.

The nearest city and the dendrogram are made from a few rasters of each city, by one network. Other
rasters, sites or seeds could have given others. So rasters are drawn anew within each city, and
the whole tests (folds, seeds) where there are several, and what is said of resemblance is looked
at in every draw: which neighbour comes first, and which branches the dendrogram has
(the bootstrap of trees: Felsenstein, Evolution 39, 1985).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from dl_slicer.results import dendrogram, resemblance
from dl_slicer.results.raster_sums import RasterSums
from dl_slicer.results.resemblance import ONE_RASTER

DRAWS = 1000  # a share of draws is then known to 1.6 % or better
LEVEL = 0.95
VALUES_AT_A_TIME = 4_000_000  # of the drawn cities' mean features: 32 MB

YES = "yes"
NO = "no"
COLUMNS = ("city", "neighbour", "confusion_share", "features_share")
NOTHING = ""  # no neighbour, or no second one to tell the first from


class Views(NamedTuple):
    """Both views of resemblance.py, (..., K, K) each, and what decides between equal confusions."""

    confusion: np.ndarray
    features: np.ndarray
    tie_breaker: np.ndarray


@dataclass(frozen=True)
class FirstNeighbours:
    """By one view: which city comes first for each, and how surely."""

    first: np.ndarray  # (K,) int: the nearest city in the view itself; -1 where there is none
    shares: np.ndarray  # (K, K): the share of draws in which the column's city comes first
    told: list[str]  # K of YES, NO, ONE_RASTER, NOTHING: is the first told apart from all others?


@dataclass(frozen=True)
class Stability:
    """What draws of the rasters, and of the tests where there are several, leave of the views."""

    classes: list[str]
    tests: int
    draws: int  # 0 where nothing could be drawn: one test, and no city with two rasters
    single: np.ndarray  # (K,) bool: cities with one raster, in one test; their draws are all alike
    views: Views  # as all rasters and tests give them
    by_confusion: FirstNeighbours
    by_features: FirstNeighbours
    branch_shares: dict[int, float]  # of branches(), the share of draws that have them

    def support(self, tree: dendrogram.Tree) -> np.ndarray | None:
        """Give the share of draws in which each branch of a dendrogram of the features occurs.

        (n - 1,), in the order of the tree's links; None where it has none or nothing was drawn.
        """
        if tree.links is None or self.draws == 0:
            return None
        return np.array([self.branch_shares.get(s, 0.0) for s in dendrogram.branches(tree)])


def stability(sums: Sequence[RasterSums], draws: int = DRAWS, seed: int = 0) -> Stability:
    """Draw rasters, and tests where there are several, and see what the views hold in each draw.

    sums: of one or several tests of the same cities: folds, or networks of other seeds. Each has
    features of its own, so the views are made within each test, and then averaged. ValueError if
    the cities are not the same.

    Of a city's m rasters m - 1 are drawn, without which the bootstrap of few is too narrow (Rao
    and Wu, JASA 83, 1988); a single one always stays. Of T tests T - 1 are drawn in the same way,
    each with rasters of its own: rather too wide, since the tests' differences have the rasters'
    in them. The same seed gives the same draws.

    The first neighbour of a city is told apart where the 95 % interval of its lead over each other
    city lies above 0: by the draws' standard error and Student's t, with as many degrees of
    freedom as the three cities have rasters less three, or as there are tests less one. Of cities
    equally far, with 2 to 8 rasters each, that says so wrongly in 2 to 7 of 100 cases where there
    are three, in at most 2 where there are five; a share of draws of 95 % would, in up to 12.
    """
    classes = sums[0].classes
    if any(test.classes != classes for test in sums):
        raise ValueError("tests of different cities")
    rasters = np.array([test.rasters_of_cities() for test in sums])
    if (rasters.max(0) < 2).all() and len(sums) == 1:
        draws = 0
    views = _average([_views_of_all(test) for test in sums], np.ones((1, len(sums))))
    views = Views(*(view[0] for view in views))
    confusions = _Tally(views.confusion, views.tie_breaker, above=0)
    features = _Tally(views.features, views.features, above=-np.inf)
    found = Counter()
    for drawn in _drawn_views(sums, draws, np.random.default_rng(seed)):
        confusions.add(drawn.confusion, drawn.tie_breaker)
        features.add(drawn.features, drawn.features)
        for view in drawn.features:
            found.update(dendrogram.branches_of_view(view))
    single = (rasters[0] == 1) if len(sums) == 1 else np.zeros(len(classes), bool)
    freedom = rasters[0] - 1 if len(sums) == 1 else None
    return Stability(
        classes=classes,
        tests=len(sums),
        draws=draws,
        single=single,
        views=views,
        by_confusion=confusions.neighbours(single, freedom, len(sums)),
        by_features=features.neighbours(single, freedom, len(sums)),
        branch_shares={branch: count / draws for branch, count in found.items()},
    )


def share_rows(stable: Stability) -> Iterator[tuple[str, str, float, float]]:
    """Rows of nearest_shares.csv, by COLUMNS: how often a city's neighbour came first, by view.

    Neighbours that never did are left out, and cities whose draws are all alike.
    """
    by_confusion = stable.by_confusion.shares
    by_features = stable.by_features.shares
    for city, neighbour in np.argwhere((by_confusion > 0) | (by_features > 0)):
        if not stable.single[city]:
            yield (
                stable.classes[city],
                stable.classes[neighbour],
                float(by_confusion[city, neighbour]),
                float(by_features[city, neighbour]),
            )


def first_neighbours(view: np.ndarray, tie_breaker: np.ndarray, above: float) -> np.ndarray:
    """Give the nearest city of each in views (..., K, K): (..., K) int, -1 where there is none.

    As rank_others() of resemblance.py ranks them: above a bound, equals by the tie breaker.
    """
    known = np.where(view > above, view, -np.inf)
    highest = known.max(-1, keepdims=True)
    among_highest = np.isfinite(known) & (known == highest)
    decider = np.where(among_highest, np.nan_to_num(tie_breaker), -np.inf)
    return np.where(among_highest.any(-1), decider.argmax(-1), -1)


class _Tally:
    """Counts which neighbour comes first in the draws of a view, and how its lead varies."""

    def __init__(self, view: np.ndarray, tie_breaker: np.ndarray, above: float):
        """view, tie_breaker (K, K), as all rasters give them."""
        self.view = view
        self.above = above
        self.first = first_neighbours(view, tie_breaker, above)
        self.lead = self._leads(view)  # of the first neighbour over each other city
        self.counts = np.zeros(view.shape)
        self.sums = np.zeros(view.shape)  # of the draws' leads, less that of all rasters
        self.squares = np.zeros(view.shape)
        self.draws = 0

    def add(self, views: np.ndarray, tie_breakers: np.ndarray) -> None:
        """Count some draws: views and tie_breakers (n, K, K)."""
        first = first_neighbours(views, tie_breakers, self.above)
        for city in range(len(self.view)):
            neighbours = first[:, city][first[:, city] >= 0]
            self.counts[city] += np.bincount(neighbours, minlength=len(self.view))
        moved = self._leads(views) - self.lead
        self.sums += moved.sum(0)
        self.squares += (moved * moved).sum(0)
        self.draws += len(views)

    def _leads(self, views: np.ndarray) -> np.ndarray:
        """By how much the first neighbour of each city leads before each other, (..., K, K)."""
        first = np.broadcast_to(self.first[:, None], (*views.shape[:-1], 1))
        return np.take_along_axis(views, first, -1) - views

    def neighbours(
        self, single: np.ndarray, freedom: np.ndarray | None, tests: int
    ) -> FirstNeighbours:
        """Sum up. single (K,) bool; freedom (K,): rasters less one, None with several tests."""
        draws = max(self.draws, 1)
        variance = self.squares / draws - (self.sums / draws) ** 2
        error = np.sqrt(np.maximum(variance, 0))
        told = []
        for city, first in enumerate(self.first):
            others = np.isfinite(self.view[city])
            others[first] = False
            if first < 0 or not others.any():
                told.append(NOTHING)
            elif single[city] or single[first] or single[others].all() or self.draws == 0:
                told.append(ONE_RASTER)
            else:
                rivals = np.flatnonzero(others)
                errors = _with_the_largest(error[city, rivals], single[rivals])
                degrees = np.full(len(rivals), tests - 1)
                if freedom is not None:
                    degrees = freedom[city] + freedom[first] + freedom[rivals]
                needed = stats.t.ppf((1 + LEVEL) / 2, degrees) * errors
                told.append(YES if (self.lead[city, rivals] > needed).all() else NO)
        return FirstNeighbours(self.first, self.counts / draws, told)


def _with_the_largest(errors: np.ndarray, single: np.ndarray) -> np.ndarray:
    """Give rivals with a single raster, whose draws are all alike, the others' largest error."""
    return np.where(single, errors[~single].max(), errors)


def _views_of_all(test: RasterSums) -> Views:
    """Give the views (1, K, K) of all rasters of a test."""
    return _views(test, _coordinates(test), np.ones((1, len(test.city))))


def _drawn_views(
    sums: Sequence[RasterSums], draws: int, rng: np.random.Generator
) -> Iterator[Views]:
    """Draw so many times, some draws at a time: views (n, K, K)."""
    coordinates = [_coordinates(test) for test in sums]
    widest = max(of_test.shape[1] for of_test in coordinates)
    at_a_time = max(1, VALUES_AT_A_TIME // max(1, len(sums[0].classes) * widest))
    for start in range(0, draws, at_a_time):
        count = min(at_a_time, draws - start)
        weights = _draw_tests(len(sums), count, rng)
        drawn = [
            _views(test, of_test, _draw_rasters(test, count, rng))
            for test, of_test in zip(sums, coordinates, strict=True)
        ]
        yield _average(drawn, weights)


def _draw_tests(tests: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each test is drawn: (draws, tests)."""
    if tests == 1:
        return np.ones((draws, 1))
    return rng.multinomial(tests - 1, np.full(tests, 1 / tests), draws).astype(float)


def _draw_rasters(test: RasterSums, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each raster is drawn, within each city: (draws, M)."""
    weights = np.ones((draws, len(test.city)))
    for city in range(len(test.classes)):
        own = np.flatnonzero(test.city == city)
        m = len(own)
        if m > 1:
            weights[:, own] = rng.multinomial(m - 1, np.full(m, 1 / m), draws)
    return weights


def _coordinates(test: RasterSums) -> np.ndarray:
    """Give the sums of features (M, D) in as few dimensions as they span: float64 (M, D or M).

    Cosines stay as they are under a rotation, so M rasters need no more than M coordinates.
    """
    features = test.features.astype(np.float64)
    rasters, dimensions = features.shape
    if rasters >= dimensions:
        return features
    return np.linalg.qr(features.T, mode="r").T


def _views(test: RasterSums, coordinates: np.ndarray, weights: np.ndarray) -> Views:
    """Give the views (n, K, K) of n draws of the rasters, weights (n, M)."""
    cities = len(test.classes)
    confusion = np.zeros((len(weights), cities, cities))
    probabilities = np.zeros_like(confusion)
    means = np.full((len(weights), cities, coordinates.shape[1]), np.nan)
    for city in range(cities):
        own = test.city == city
        if own.any():
            weight = weights[:, own]
            confusion[:, city] = weight @ test.confusion[own]
            probabilities[:, city] = weight @ test.probabilities[own]
            patches = weight @ test.patches[own]
            means[:, city] = (weight @ coordinates[own]) / patches[:, None]
    present = np.bincount(test.city, minlength=cities) > 0
    features = np.full_like(confusion, np.nan)
    if present.any():
        inner = resemblance.by_means(means[:, present])
        features[:, present[:, None] & present] = inner.reshape(len(weights), -1)
    return Views(
        resemblance.by_confusion(confusion), features, resemblance.by_confusion(probabilities)
    )


def _average(views: Sequence[Views], weights: np.ndarray) -> Views:
    """Average the tests' views (n, K, K) by weights (n, tests), over those that have a value."""
    averaged = []
    for kind in zip(*views, strict=True):
        total = 0.0
        counted = 0.0
        for view, weight in zip(kind, weights.T[:, :, None, None], strict=True):
            total = total + np.nan_to_num(view) * weight
            counted = counted + np.isfinite(view) * weight
        averaged.append(np.where(counted > 0, total / np.where(counted > 0, counted, 1), np.nan))
    return Views(*averaged)
