"""Which patches in which order, and which of them flipped: pure functions of seed, epoch and step."""

import numpy as np


def epoch_order(labels, batch_size, seed, epoch, balanced=True):
    """The patches of one epoch as an array of whole numbers (steps, batch_size): a pure function of its arguments.

    balanced: every class is drawn equally often (to within one), each class without replacement until it is used up and then
    from the start; else every patch is drawn once. What does not fill a last batch is left out of this epoch.
    """
    rng = np.random.default_rng([seed, epoch])
    whole = (
        np.int32 if len(labels) < 2**31 else np.int64
    )  # of tens of millions of patches half the memory
    if balanced:
        classes = np.unique(labels)
        shares = np.full(len(classes), len(labels) // len(classes))
        shares[rng.permutation(len(classes))[: len(labels) % len(classes)]] += 1
        order, filled = np.empty(len(labels), whole), 0
        for label, share in zip(classes, shares):
            order[filled : filled + share] = _cycled(np.flatnonzero(labels == label), share, rng)
            filled += share
        rng.shuffle(order)
    else:
        order = np.arange(len(labels), dtype=whole)
        rng.shuffle(order)
    batch_size = min(batch_size, len(order))
    steps = len(order) // batch_size
    return order[: steps * batch_size].reshape(steps, batch_size)


def _cycled(indices, count, rng):
    rounds = [rng.permutation(indices) for _ in range(-(-count // len(indices)))]
    return np.concatenate(rounds)[:count] if rounds else indices[:0]


def draw_flips(batch_size, seed, epoch, step):
    """Bool array (2, batch_size): which patches of a step are flipped left-right and up-down, a pure function of the arguments."""
    return (
        np.random.default_rng([seed, epoch, step, 1]).integers(0, 2, (2, batch_size)).astype(bool)
    )
