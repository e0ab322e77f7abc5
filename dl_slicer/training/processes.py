"""The project's scripts, started as processes of their own, one after the other."""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

from dl_slicer import cli
from dl_slicer.machine import interrupts_blocked

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone")
SECONDS_BETWEEN_CALLS = 10
# In a process of its own: no module of the package imports a script.
READ_FLAGS = """
import importlib
import sys

root, script, *flags = sys.argv[1:]
sys.path.insert(0, root)
sys.argv = [script, *flags]
from dl_slicer import cli

read_flags = importlib.import_module(script.removesuffix(".py")).read_flags
cli.run(lambda: read_flags(flags))
"""

Passed = Callable[[float], None]  # is given seconds


def run_script(
    script: str, flags: Sequence[str], processes: int = 1, passed: Passed | None = None
) -> None:
    """Run a script as a user starts it, to its end; what it prints goes where ours goes.

    script: train_classification.py or test_classification.py. processes: under torchrun where
    there are several. passed: called now and then with the seconds so far, and at the end.
    SystemExit with the script's exit code if it fails; it has said why, or it is said here if it
    was killed. KeyboardInterrupt when it has ended after SIGTERM or Ctrl-C, which are passed on.
    """
    _check_code(script, _run_to_its_end(_command(script, flags, processes), None, passed))


def check_flags(script: str, flags: Sequence[str]) -> None:
    """Have a script read its flags, and do nothing else.

    What it refuses, it says itself: SystemExit with its exit code.
    """
    command = [sys.executable, "-c", READ_FLAGS, str(ROOT), script, *flags]
    _check_code(script, _run_to_its_end(command, None, None))


def output_of_script(script: str, flags: Sequence[str], processes: int = 1) -> str:
    """Run a script as run_script does, and give what it printed; its errors go where ours go."""
    with tempfile.TemporaryFile() as printed:
        _check_code(script, _run_to_its_end(_command(script, flags, processes), printed, None))
        printed.seek(0)
        return printed.read().decode(errors="replace")


def _command(script: str, flags: Sequence[str], processes: int) -> list[str]:
    torchrun = (*TORCHRUN, f"--nproc_per_node={processes}") if processes > 1 else ()
    return [sys.executable, *torchrun, str(ROOT / script), *flags]


def _check_code(script: str, code: int) -> None:
    if code < 0:
        name = signal.Signals(-code).name
        cli.warn(
            f"{script} was killed ({name}); what is finished is kept, the same command goes on"
            " from there"
        )
        raise SystemExit(1)
    if code:
        raise SystemExit(code)


def _run_to_its_end(command: Sequence[str], printed: IO | None, passed: Passed | None) -> int:
    """Give the exit code of a command, which is negative if a signal has ended it."""
    started = time.monotonic()
    with _signals_passed_on() as (children, received):
        # Ctrl-C reaches this process alone, which passes it on: the script hears of it once.
        with interrupts_blocked():
            process = subprocess.Popen(command, stdout=printed)
            children.append(process)
        try:
            if received:  # while it was being started
                process.terminate()
            code = None
            while code is None:
                code = _wait(process)
                if passed is not None:
                    passed(time.monotonic() - started)
        finally:  # no script goes on alone
            if process.poll() is None:
                process.terminate()
                process.wait()
    if received:
        raise KeyboardInterrupt
    return code


def _wait(process: subprocess.Popen) -> int | None:
    try:
        return process.wait(SECONDS_BETWEEN_CALLS)
    except subprocess.TimeoutExpired:
        return None


@contextmanager
def _signals_passed_on() -> Iterator[tuple[list[subprocess.Popen], list[int]]]:
    """Have SIGTERM and Ctrl-C end the children alone. Gives lists of these, and of the signals."""
    children: list[subprocess.Popen] = []
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for child in children:
            child.terminate()

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield children, received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
