"""Files that are whole or not there, and folders that one process at a time writes into."""

import errno
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dl_slicer import cli, files
from dl_slicer.cli import InputError

ROOT = Path(__file__).parent.parent


def test_who_comes_second_is_told_who_holds_the_folder(tmp_path):
    with files.hold(tmp_path), pytest.raises(InputError) as error, files.hold(tmp_path):
        pass
    assert "\n" not in str(error.value)
    assert f"process {os.getpid()} on {platform.node()}" in str(error.value)
    assert str(tmp_path) in str(error.value)
    with files.hold(tmp_path):  # it is free again
        pass


def test_a_folder_that_was_held_is_as_it_was(tmp_path):
    with files.hold(tmp_path / "there" / "new"):
        (tmp_path / "there" / "file").write_text("ours")
    with files.hold(tmp_path / "there"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "file"]


def test_the_other_processes_of_a_job_share_what_the_first_holds(tmp_path, monkeypatch):
    with files.hold(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with files.hold(tmp_path):
            pass
        assert (tmp_path / ".lock").exists()


def test_who_waits_for_a_folder_gets_it_alone(tmp_path):
    """Also where the holder has removed the lock file that the waiting process had opened."""
    go_on = threading.Event()
    is_held = threading.Event()

    def wait_and_hold():
        with files.locked(tmp_path, shared=False):
            is_held.set()
            go_on.wait(30)

    with files.hold(tmp_path):
        waiting = threading.Thread(target=wait_and_hold)
        waiting.start()
        assert not is_held.wait(0.3)
    assert is_held.wait(30)
    with pytest.raises(InputError, match="another process"), files.hold(tmp_path):
        pass
    go_on.set()
    waiting.join()


HOLDER = """
import os, signal, sys, time
from dl_slicer import files
with files.hold(sys.argv[1]):
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def hold_within(folder, seconds):
    """On a busy machine the child lets go of the lock a while after its parent has gone."""
    end = time.monotonic() + seconds
    while True:
        try:
            with files.hold(folder):
                return
        except InputError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def test_a_killed_holder_holds_no_more_even_if_its_children_live(tmp_path):
    done = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    child = int(done.stdout.readline())
    assert done.wait(30) == -signal.SIGKILL
    try:
        assert (tmp_path / ".lock").exists()
        hold_within(tmp_path, seconds=20)
    finally:
        os.kill(child, signal.SIGKILL)
        done.stdout.close()


def no_flock(*arguments):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize("is_system", [True, False])
def test_where_there_are_no_locks_that_is_said_once(tmp_path, monkeypatch, capsys, is_system):
    if is_system:
        monkeypatch.setattr(files, "fcntl", None)
    else:
        monkeypatch.setattr(files.fcntl, "flock", no_flock)
    files._warn_once.cache_clear()
    monkeypatch.setattr(cli, "warnings", [])
    for _ in range(2):
        with files.hold(tmp_path), files.locked(tmp_path, shared=True):
            pass
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no locks" in said
    assert "start no second command" in said


def test_leftovers_that_another_process_takes_away_are_no_error(tmp_path, monkeypatch):
    leftovers = [tmp_path / ".1-00000000.tmp", tmp_path / ".2-00000000.tmp"]
    for path in leftovers:
        path.touch()
    unlink = Path.unlink

    def both(path, **options):
        for other in leftovers:
            other.exists() and unlink(other)
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", both)
    files.clear_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())
