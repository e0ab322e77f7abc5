"""What the benchmarks share: how they start the project's scripts, and how they time."""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dl_slicer.cli import InputError

ROOT = Path(__file__).parent.parent


class Spent(NamedTuple):
    """What a script took."""

    seconds: float
    cpu_seconds: float  # of all processors, its workers' included


def script(name: str, *flags: object) -> Spent:
    """Run one of the project's scripts in a process of its own, as a user starts it.

    name: its path from the root. InputError with what the script said if it fails.
    """
    return _run_python(name, ROOT / name, *flags)


def module(name: str, *flags: object) -> Spent:
    """Run a module (python -m) in a process of its own. InputError as script gives it."""
    return _run_python(name, "-m", name, *flags)


def _run_python(name: str, *words: object) -> Spent:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise InputError(done.stderr.strip() or f"{name}: ended with {done.returncode}")
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Spent(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def in_turns(rounds: int, **sides: Callable[[], float | None]) -> dict[str, float]:
    """Give the median seconds of functions that are called in turns, {name: seconds}.

    A function that returns a number has timed itself.
    """
    times = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            own_time = side()
            seconds = time.perf_counter() - started if own_time is None else own_time
            times[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def in_a_line(row: dict[str, object]) -> str:
    """A result for the terminal: its keys and values, numbers to four places."""
    return "  ".join(
        f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}"
        for key, value in row.items()
    )
