"""The flags of test_classification.py; its results are tested with the rooms that make them."""

import subprocess
import sys

import pytest
from conftest import ROOT

import test_classification
from dl_slicer.cli import InputError


def test_flags_are_read_before_torch_is_imported():
    program = """
import sys
import test_classification
from dl_slicer.cli import InputError
try:
    test_classification.main(["--checkpoint", "best.pth", "--split", "tset"])
except InputError as error:
    print(error)
print("torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    said, has_torch = done.stdout.splitlines()
    assert "--split: invalid choice: 'tset'" in said
    assert has_torch == "False"


@pytest.mark.parametrize(
    "flags, said",
    [
        ([], "--checkpoint"),
        (["--checkpoint", "x", "--workers", "-1"], "'-1': must be a whole number at least 0"),
        (["--checkpoint", "x", "--amp", "fp8"], "--amp: invalid choice: 'fp8'"),
    ],
)
def test_a_wrong_flag_is_named(flags, said):
    with pytest.raises(InputError, match=said):
        test_classification.read_flags(flags)


def test_help_has_groups(capsys):
    with pytest.raises(SystemExit):
        test_classification.read_flags(["--help"])
    said = capsys.readouterr().out
    headings = [line for line in said.splitlines() if line in HEADINGS]
    assert headings == HEADINGS


HEADINGS = ["model:", "data:", "machine:", "results:"]


@pytest.mark.parametrize(
    "flags, folder",
    [
        ([], "runs/one/test_b"),
        (["--split", "val"], "runs/one/val"),
        (["--tta"], "runs/one/test_b_tta"),
        (["--images", "a.jpg"], "runs/one/places"),
        (["--out", "elsewhere", "--tta"], "elsewhere"),
    ],
)
def test_where_results_go(flags, folder):
    args = test_classification.read_flags(["--checkpoint", "runs/one/best.pth", *flags])
    assert test_classification.output_folder(args).as_posix() == folder
