"""How familiar pictures and places are to a network, in numbers and in words.

Used by test_classification.py --images. What is familiar, dl_slicer/model/familiarity.py says.
"""

import warnings
from typing import NamedTuple

import numpy as np

from dl_slicer.model.familiarity import LEAST_VAL_PATCHES, UNLIKE

UNLIKE_ANY = "unlike any city the network knows"
LIKE = "not unlike the cities it knows"
TOO_FEW = "too few to tell"
NOT_KNOWN = "not known"


class Places(NamedTuple):
    """What a network says of the places of a raster."""

    shares: np.ndarray  # (rows, cols, K), NaN where there is no data
    familiarity: np.ndarray | None = (
        None  # (rows, cols), NaN where it cannot be told; None: nowhere
    )

    @property
    def unlike(self) -> np.ndarray:
        """Which places are unlike any city the network knows: bool (rows, cols)."""
        if self.familiarity is None:
            return np.zeros(self.shares.shape[:2], bool)
        return np.nan_to_num(self.familiarity, nan=1) <= UNLIKE


def median(familiarity: np.ndarray) -> float:
    """Give the median (of those that are not NaN) of patches; NaN where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nothing but NaN
        return float(np.nanmedian(familiarity)) if len(familiarity) else float("nan")


def verdict(familiarity: np.ndarray | None) -> str:
    """Say in words what the familiarity of patches (n,) means; None: the network does not know."""
    if familiarity is None:
        return NOT_KNOWN
    found = median(familiarity)
    if np.isnan(found):
        return TOO_FEW
    return UNLIKE_ANY if found <= UNLIKE else LIKE


def as_text(familiarity: np.ndarray | None) -> str:
    """Give the median of patches as a table has it; empty where it cannot be told."""
    found = float("nan") if familiarity is None else median(familiarity)
    return "" if np.isnan(found) else f"{found:.6f}"


def at_the_end_of_a_line(familiarity: np.ndarray | None) -> str:
    """Say it after the cities that a picture is like; nothing where it cannot be told."""
    text = as_text(familiarity)
    if not text:
        return ""
    said = f"   familiarity {100 * float(text):.1f} %"
    return f"{said}: {UNLIKE_ANY}" if verdict(familiarity) == UNLIKE_ANY else said


def closing_words(familiarity: np.ndarray | None) -> str:
    """Say what familiarity is, or why it cannot be told."""
    said = verdict(familiarity)
    if said == NOT_KNOWN:
        return (
            "whether a picture is like none of the cities is not known: the checkpoint does not say"
            " what is usual; train_classification.py --resume adds it to a run"
        )
    if said == TOO_FEW:
        return (
            "whether a picture is like none of the cities: too few to tell (below"
            f" {LEAST_VAL_PATCHES} val patches of some city)"
        )
    return (
        "familiarity: the share of val patches that are as far from what the network knows, or"
        f" farther; the median of the patches; at most {100 * UNLIKE:g} %: {UNLIKE_ANY}"
    )
