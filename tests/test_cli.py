"""What all command lines share: exit codes, and output that can no longer be written."""

import errno
import os
import runpy
import sys

import pytest
from conftest import ROOT

from dl_slicer import cli, files


def fails_with(error):
    def fail(*arguments):
        raise error

    return fail


@pytest.mark.parametrize(
    "error, code, said",
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "last.pth"),
            2,
            "last.pth: No space left on device;"
            " make room and run the same command with --resume again",
        ),
        (KeyboardInterrupt(), 1, "the same command with --resume goes on from there"),
    ],
)
def test_training_that_ends_early_says_that_it_goes_on_with_resume(
    monkeypatch, capsys, error, code, said
):
    monkeypatch.setattr(files, "hold", fails_with(error))
    monkeypatch.setattr(sys, "argv", ["train_classification.py"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "train_classification.py"), run_name="__main__")
    assert end.value.code == code
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert said in errors


def test_a_reader_that_ends_is_one_line(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        cli.run(fails_with(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    assert end.value.code == 2
    assert "what read the output has ended" in capsys.readouterr().err
