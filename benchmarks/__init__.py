"""What the benchmarks share: how they start the project's scripts."""

import resource
import subprocess
import sys
import time
from pathlib import Path

from dl_slicer.cli import InputError

ROOT = Path(__file__).parent.parent


def script(name, *flags):
    """Run one of the project's scripts in a process of its own, as a user starts it. InputError with what it said if it fails.

    Gives the seconds that it took, and those of the processors, its workers' included.
    """
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, ROOT / name, *map(str, flags)], capture_output=True, text=True
    )
    if done.returncode:
        raise InputError(done.stderr.strip() or f"{name}: ended with {done.returncode}")
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
