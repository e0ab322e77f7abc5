"""What all commands do with their flags: a wrong one is told before torch is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Ends as the command would, unless it has imported torch, which takes seconds.
COMMAND = """
import runpy
import sys

sys.path.insert(0, ".")
name, *sys.argv[1:] = sys.argv[1:]
try:
    if name.endswith(".py"):
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__")
finally:
    assert "torch" not in sys.modules
"""

COMMANDS = (
    "preprocessing.py",
    "train_classification.py",
    "test_classification.py",
    "relevance_cam",
    "dl_slicer.compare",
    "dl_slicer.cross_validation",
)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    "flag, code, said",
    [("--help", 0, "show this help"), ("--no-such-flag", 2, "(--help lists the flags)")],
)
def test_flags_are_read_without_torch(name, flag, code, said):
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, name, flag], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


FLAGS_READ = """
import sys

sys.path.insert(0, ".")
import train_classification

train_classification.read_flags(["--recipe", "robust", "--optimizer", "sgd", "--arch", "resnet18"])
assert "torch" not in sys.modules
"""


def test_right_flags_of_training_are_read_without_torch():
    done = subprocess.run(
        [sys.executable, "-c", FLAGS_READ], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
