"""What the benchmarks share: how they start the project's scripts."""
import subprocess
import sys
from pathlib import Path

from cli import InputError

ROOT = Path(__file__).parent.parent


def script(name, *flags):
    """Run one of the project's scripts in a process of its own, as a user starts it. InputError with what it said if it fails."""
    done = subprocess.run([sys.executable, ROOT / name, *map(str, flags)], capture_output=True, text=True)
    if done.returncode:
        raise InputError(done.stderr.strip() or f"{name}: ended with {done.returncode}")
