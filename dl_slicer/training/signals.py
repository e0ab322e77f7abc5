"""SIGTERM and SIGINT, noted instead of obeyed."""

import signal
import time
from collections.abc import Callable
from types import FrameType

from dl_slicer import distributed

# One signal may come twice: to all of a terminal's processes, and from the one that started this.
AT_ONCE = 1  # seconds


def catch_signals() -> Callable[[], bool]:
    """Give a function that says whether SIGTERM or SIGINT has reached any of the processes.

    All processes must call it together. A second signal, a second later, ends its process at once.
    """
    received: list[float] = []  # when

    def note(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if received and now - received[0] > AT_ONCE:
            raise KeyboardInterrupt
        received.append(now)

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)
    return lambda: distributed.any_of(bool(received))
