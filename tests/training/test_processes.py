"""Scripts as processes of their own: how they end, and how signals reach them."""

import os
import signal
import threading
import time

import pytest
from conftest import ROOT

from dl_slicer.training import planned_runs, processes, signals

NEVER_ALONE = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def end(number, frame):
    with open(folder / "ended", "a") as file:
        file.write(f"{number} ")
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
(folder / "ready").touch()
time.sleep(20)
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Write a script that run_script then finds; give its name."""
    monkeypatch.setattr(processes, "ROOT", tmp_path)

    def write(text):
        (tmp_path / "script.py").write_text(text)
        return "script.py"

    return write


def test_a_script_that_fails_says_why_alone_and_its_exit_code_is_ours(script, capfd):
    name = script("import sys\nprint('--data: no such folder', file=sys.stderr)\nsys.exit(2)\n")
    with pytest.raises(SystemExit) as end:
        processes.run_script(name, [])
    assert end.value.code == 2
    assert capfd.readouterr() == ("", "--data: no such folder\n")


READS_FLAGS = """
def read_flags(argv):
    from dl_slicer.cli import InputError
    if argv != ["--right", "flag"]:
        raise InputError(f"{argv[0]}: no such flag")
"""


def test_flags_are_checked_and_nothing_is_done(script, capfd, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    name = script(READS_FLAGS + "\nif __name__ == '__main__':\n    print('done')\n")
    processes.check_flags(name, ["--right", "flag"])
    assert capfd.readouterr() == ("", "")
    with pytest.raises(SystemExit) as end:
        processes.check_flags(name, ["--wrong"])
    assert end.value.code == 2
    assert capfd.readouterr() == ("", "script.py: --wrong: no such flag\n")


def test_a_script_that_was_killed_is_told_in_a_line(script, capfd):
    with pytest.raises(SystemExit) as end:
        processes.run_script(script("import os\nos.kill(os.getpid(), 9)\n"), [])
    assert end.value.code == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "script.py was killed (SIGKILL)" in line
    assert "the same command goes on" in line


def test_what_a_script_prints_is_given_and_its_seconds_are_told(script, capfd):
    assert processes.output_of_script(script("import sys\nprint(sys.argv[1])"), ["é"]) == "é\n"
    seconds = []
    processes.run_script(script("print('said')"), [], passed=seconds.append)
    assert len(seconds) == 1
    assert 0 < seconds[0] < 20
    assert capfd.readouterr().out == "said\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_script_first(script, tmp_path, number):
    def send():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    name = script(NEVER_ALONE)
    before = signal.getsignal(number)
    threading.Thread(target=send).start()
    with pytest.raises(KeyboardInterrupt):
        processes.run_script(name, [str(tmp_path)])
    assert (tmp_path / "ended").read_text() == f"{signal.SIGTERM.value} "
    assert signal.getsignal(number) is before


def test_no_script_goes_on_alone(script, tmp_path, monkeypatch):
    """What fails between two looks at it, as a full disk, ends the script."""
    monkeypatch.setattr(processes, "SECONDS_BETWEEN_CALLS", 0.05)

    def passed(seconds):
        if (tmp_path / "ready").exists():
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        processes.run_script(script(NEVER_ALONE), [str(tmp_path)], passed=passed)
    assert (tmp_path / "ended").exists()


def test_several_gpus_get_a_process_each(monkeypatch):
    commands = []
    monkeypatch.setattr(processes, "_run_to_its_end", lambda *call: commands.append(call[0]) or 0)
    monkeypatch.setattr(planned_runs.torch.cuda, "device_count", lambda: 4)
    assert planned_runs.count_processes("cpu") == planned_runs.count_processes("cuda:1") == 1
    for device in (None, "auto"):
        processes.run_script("train.py", ["--seed", "1"], planned_runs.count_processes(device))
        assert commands[-1][1:5] == [*processes.TORCHRUN, "--nproc_per_node=4"]
        assert commands[-1][-2:] == ["--seed", "1"]
    processes.run_script("train.py", [], 1)
    assert processes.TORCHRUN[1] not in commands[-1]


def test_one_signal_may_come_twice_at_once(monkeypatch):
    """From the terminal and from the process that started this one; a later one ends at once."""
    stop = signals.catch_signals()
    assert not stop()
    for _ in range(2):
        signal.raise_signal(signal.SIGTERM)
        assert stop()
    monkeypatch.setattr(signals, "AT_ONCE", -1)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
