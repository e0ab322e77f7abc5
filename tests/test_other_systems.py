"""Other systems than Linux: what they lack is hidden, and the whole job is done without it.

This cannot show that all works on macOS or Windows, but that nothing is missed which they lack.
"""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, SIZES, as_flags, files, flags

import preprocessing

HIDDEN = """
import ctypes, mmap, os, signal, sys
assert not hasattr(os, "sched_getaffinity")
assert not hasattr(os, "fork")
try:
    ctypes.CDLL(None).mallopt
except (AttributeError, TypeError):
    pass
else:
    raise AssertionError("mallopt is there")
if sys.argv[1] == "macos":
    import fcntl, resource
    assert not hasattr(resource, "RUSAGE_THREAD")
else:
    assert sys.modules["fcntl"] is sys.modules["resource"] is None
    assert not hasattr(mmap, "MADV_WILLNEED")
    assert not hasattr(os, "sync")
    assert not hasattr(signal, "pthread_sigmask")
"""


def run_on(system, *command):
    """The output of a Python command on Linux, or on something like another system."""
    environment = dict(os.environ)
    if system != "linux":
        environment["WITHOUT_LINUX"] = system
        environment["PYTHONPATH"] = str(ROOT / "tests" / "without_linux")
    process = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize("system", ["macos", "windows"])
def test_the_calls_are_hidden(system):
    run_on(system, "-c", HIDDEN, system)


@pytest.mark.parametrize("system", ["macos", "windows"])
def test_preprocessing(data, system):
    out = data.parent / system
    folders = {"--raw": data.parent / "raw", "--out": out}
    sizes = {**SIZES, "--image-size": 32, "--test-b": 20, "--workers": 2}
    command = ["preprocessing.py", *as_flags({**folders, **sizes})]
    output = run_on(system, *command)
    assert "9 rasters in " in output
    assert files(out) == files(data)
    assert "nothing was left to tile" in run_on(system, *command)


@pytest.fixture(scope="module")
def small(data):
    """A patch set of few patches."""
    folders = {"--raw": data.parent / "raw", "--out": data.parent / "small"}
    preprocessing.main(as_flags({**folders, **SIZES, "--stride": 48}))
    return data.parent / "small"


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    """A run of one epoch on something like Windows."""
    folder = tmp_path_factory.mktemp("other_systems") / "run"
    run_on("windows", "train_classification.py", *flags(small, folder, "--epochs", "1"))
    return folder


def test_training(run, small, tmp_path):
    run_on("linux", "train_classification.py", *flags(small, tmp_path, "--epochs", "1"))
    assert (run / "last.pth").is_file()
    assert (run / "log.csv").read_bytes() == (tmp_path / "log.csv").read_bytes()


def test_testing(run, small, tmp_path):
    where = {"--checkpoint": run / "best.pth", "--data": small, "--out": tmp_path}
    output = run_on("windows", "test_classification.py", *as_flags(where))
    assert "15 patches of test_b" in output
    assert (tmp_path / "report.html").is_file()


def test_saliency(run, small, tmp_path):
    where = {"--checkpoint": run / "best.pth", "--data": small, "--out": tmp_path}
    how = {"--per-city": 1, "--layers": "layer2"}
    run_on("windows", "-m", "relevance_cam", *as_flags({**where, **how}))
    assert len(list(tmp_path.glob("*.jpg"))) == 3
