"""The dendrogram of cities: who joins whom, the nearest first."""

from typing import NamedTuple

import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform


class Tree(NamedTuple):
    """Cities in the order of a dendrogram."""

    order: np.ndarray  # (n,) class numbers, from top to bottom
    links: np.ndarray | None  # (n - 1, 4) as scipy gives them; None for less than two cities
    cities: np.ndarray  # (n,) class numbers, in the order in which `links` numbers them


def group_by_features(feature_view: np.ndarray) -> Tree:
    """Group cities by average linkage of 1 - cosine, feature_view (K, K) of resemblance.py.

    Those without a value are left out; of less than two others there is no tree.
    """
    present = np.flatnonzero(~np.isnan(feature_view).all(1))
    if len(present) < 2:  # nothing to compare: empty maps of all cities
        everyone = np.arange(len(feature_view))
        return Tree(everyone, None, everyone)
    links = hierarchy.linkage(_distances(feature_view, present), "average", optimal_ordering=True)
    return Tree(present[hierarchy.leaves_list(links)], links, present)


def branches(tree: Tree) -> list[int]:
    """Give the set of cities below each link, in the order of `links`.

    A set is a whole number whose bit k says if class k is in it.
    """
    if tree.links is None:
        return []
    sets = [1 << int(city) for city in tree.cities]
    for one, other in tree.links[:, :2].astype(int).tolist():
        sets.append(sets[one] | sets[other])
    return sets[len(tree.cities) :]


def branches_of_view(feature_view: np.ndarray) -> list[int]:
    """Give branches() of the tree of a view; faster, since nothing is put in order for a figure."""
    present = np.flatnonzero(~np.isnan(feature_view).all(1))
    if len(present) < 2:
        return []
    links = hierarchy.linkage(_distances(feature_view, present), "average")
    return branches(Tree(present, links, present))


def _distances(feature_view: np.ndarray, present: np.ndarray) -> np.ndarray:
    """1 - cosine of every two cities that are present, as scipy wants them."""
    # Two cities that no test has together are neither alike nor unlike.
    distance = 1 - np.nan_to_num(feature_view[np.ix_(present, present)], nan=0.0)
    np.fill_diagonal(distance, 0)
    return squareform(distance, checks=False)
