"""SIGTERM and SIGINT, noted instead of obeyed."""

import signal
from collections.abc import Callable
from types import FrameType

from dl_slicer import distributed


def catch_signals() -> Callable[[], bool]:
    """Give a function that says whether SIGTERM or SIGINT has reached any of the processes.

    All processes must call it together. A second signal ends its process at once.
    """
    received = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)
    return lambda: distributed.any_of(bool(received))
