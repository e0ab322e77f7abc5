"""preprocessing.py as a process of its own, and what it did to a folder."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SMALL

from dl_slicer.cli import InputError

# The files that speak of all rasters.
SET = {"dataset.json", "regions.csv", "test_b.csv"}


def start(*flags, raw, out, **options):
    """A process with small patches; options: of Popen."""
    command = [sys.executable, "preprocessing.py", "--raw", str(raw), "--out", str(out)]
    return subprocess.Popen(
        [*command, *SMALL, *map(str, flags)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process):
    """(exit status, stdout, stderr) of a process, once it has ended."""
    try:
        output, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()  # its workers follow
        raise
    return process.returncode, output, errors


def read_until(process, part):
    """The next line of a process's output with this part in it; None if it ends without one."""
    return next((line for line in process.stdout if part in line), None)


def refused(call, *parts):
    """The lines with which call() refuses; each of the parts must be in its own line."""
    with pytest.raises(InputError) as caught:
        call()
    lines = str(caught.value).splitlines()
    for part in parts:
        assert sum(part in line for line in lines) == 1, (part, lines)
    return lines


def changed_by(out, call):
    """Names of files that call() made, changed, or touched, and of those it removed."""
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    time.sleep(0.02)
    call()
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    names = {
        str(path.relative_to(out))
        for path in before.keys() | after.keys()
        if before.get(path) != after.get(path)
    }
    return {name for name in names if Path(name).name != ".lock"}


def array(out, region):
    return np.load(out / region.file)


def tiled(out):
    """How many rasters are done."""
    records = (out / "arrays").rglob("*.json")
    return sum('"unfinished"' not in record.read_text(encoding="utf-8") for record in records)


def alive(group):
    """The processes of a group that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(folder.name))
    return found


def wait_until_none_is_alive(group):
    deadline = time.time() + 10
    while alive(group):
        assert time.time() < deadline, "workers outlive their parent"
        time.sleep(0.01)
