"""Progress of long work: the caller brings the bar."""

from collections.abc import Callable, Iterable

# Wraps an iterable as tqdm.tqdm does: progress(iterable, desc="explaining", unit=" batches").
# The library itself draws nothing.
Progress = Callable[..., Iterable]


def no_progress(iterable: Iterable, **_labels: str) -> Iterable:
    """Give the iterable as it is."""
    return iterable
