"""What the folds of a cross-validation over sites say together.

Each fold has one site of each city held out and a network that has never seen it. Here the patches
of all held-out sites are pooled: every site is tested once, by the first fold that holds it out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Fold:
    """A fold that has been measured.

    number: N of `preprocessing.py --held-out N`, from 1 on. results: the folder that
    `test_classification.py --split held-out --logits` wrote. training_sites: to how many sites of
    each city training was limited, in the folds of --curve; None where it had all.
    """

    number: int
    results: Path
    training_sites: int | None = None


def write(out: Path, folds: Sequence[Fold]) -> None:
    """Write the tables of all folds into a folder: folds.csv, metrics.json and what goes with them.

    out: the folder of the cross-validation, which the caller holds. folds: those measured so far,
    at least one with all training sites; those with fewer make curve.csv. Tables of before are
    replaced; metrics.json comes last. InputError names the results that are missing, damaged, or
    not of the same cities as those of the other folds.
    """
    raise NotImplementedError
