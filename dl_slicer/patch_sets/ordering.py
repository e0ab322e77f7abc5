"""Which patches in which order, and which of them flipped: pure functions of their arguments."""

import numpy as np


def epoch_order(
    labels: np.ndarray, batch_size: int, seed: int, epoch: int, balanced: bool = True
) -> np.ndarray:
    """The patches of one epoch as an array of whole numbers (steps, batch_size).

    balanced: every class is drawn equally often (to within one), each class without replacement
    until it is used up and then from the start; else every patch is drawn once. What does not fill
    a last batch is left out of this epoch. A pure function of its arguments.
    """
    rng = np.random.default_rng([seed, epoch])
    # Of tens of millions of patches half the memory.
    index_type = np.int32 if len(labels) < 2**31 else np.int64
    if balanced:
        order = _balanced(labels, rng, index_type)
    else:
        order = np.arange(len(labels), dtype=index_type)
    rng.shuffle(order)
    batch_size = min(batch_size, len(order))
    steps = len(order) // batch_size
    return order[: steps * batch_size].reshape(steps, batch_size)


def _balanced(labels: np.ndarray, rng: np.random.Generator, index_type: type) -> np.ndarray:
    """As many patches as there are, of each class equally many (to within one), class by class."""
    classes = np.unique(labels)
    counts = np.full(len(classes), len(labels) // len(classes))
    one_more = rng.permutation(len(classes))[: len(labels) % len(classes)]
    counts[one_more] += 1
    order = np.empty(len(labels), index_type)
    filled = 0
    for label, count in zip(classes, counts, strict=True):
        order[filled : filled + count] = _cycle(np.flatnonzero(labels == label), count, rng)
        filled += count
    return order


def _cycle(indices: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw so many without replacement; start again whenever all have been drawn."""
    rounds = -(-count // len(indices))
    if rounds == 0:
        return indices[:0]
    return np.concatenate([rng.permutation(indices) for _ in range(rounds)])[:count]


def draw_flips(batch_size: int, seed: int, epoch: int, step: int) -> np.ndarray:
    """Which patches of a step are flipped left-right and up-down: bool (2, batch_size).

    A pure function of its arguments.
    """
    rng = np.random.default_rng([seed, epoch, step, 1])
    return rng.integers(0, 2, (2, batch_size)).astype(bool)
