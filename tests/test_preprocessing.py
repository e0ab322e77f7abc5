"""The command: flags, output, faults, processes, shards, and being killed."""

import errno
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, Inline, files, make_raw, picture
from preprocessing_runs import (
    alive,
    changed_by,
    finish,
    read_until,
    refused,
    start,
    tiled,
    wait_until_none_is_alive,
)

import preprocessing
from dl_slicer.cli import InputError, run
from dl_slicer.files import atomic
from dl_slicer.patch_sets import completing, progress, reading, records, tiling


def test_the_command_line(tmp_path):
    raw = make_raw(tmp_path / "raw")
    code, output, errors = finish(start(raw=raw, out=tmp_path / "out"))
    assert code == 0
    assert errors == ""
    last = output.rstrip().splitlines()[-1]
    assert last.startswith(f"patch set: {tmp_path / 'out'}; 6 rasters in ")
    code, output, errors = finish(start(raw=tmp_path / "no\nwhere", out=tmp_path / "out"))
    assert code == 2
    assert output == ""
    assert errors.count("\n") == 1
    assert errors.startswith("preprocessing.py: ")
    assert "no such folder" in errors
    process = subprocess.run(
        [sys.executable, "preprocessing.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0
    assert "--shard I/N" in process.stdout
    assert len(list(tmp_path.rglob("*.npy"))) == 8


def test_flags_that_are_refused(tmp_path, capsys):
    for flags, message in (
        ("--stride 0", "argument --stride: '0': must be a whole number at least 1"),
        (f"--stride {2**31 + 1}", "must be a whole number at least 1 and at most 2147483648"),
        (f"--patch-size {2**31 + 1}", "--patch-size"),
        ("--image-size 4097", "must be a whole number at least 1 and at most 4096"),
        ("--stride 25", "the nearest that works: --stride 15 or 30"),
        ("--patch-size -5", "--patch-size"),
        ("--image-size 1.5", "--image-size"),
        ("--workers 0", "--workers"),
        ("--test-b 0", "--test-b"),
        ("--seed -1", "--seed"),
        ("--seed nan", "--seed"),
        ("--shard 0/2", "'0/2': must be I/N"),
        ("--shard 3/2", "I/N"),
        ("--shard 1", "I/N"),
        ("--shard 1/0", "I/N"),
        ("--shard -1/2", "--shard"),
        ("--bogus", "unrecognized arguments: --bogus"),
    ):
        folders = ["--raw", str(tmp_path), "--out", str(tmp_path / "out")]
        with pytest.raises(SystemExit) as caught:
            run(partial(preprocessing.main, [*flags.split(), *folders]))
        errors = capsys.readouterr().err
        assert caught.value.code == 2, (flags, errors)
        assert message in errors, (flags, errors)
        assert errors.count("\n") == 1, (flags, errors)
    assert not any(tmp_path.iterdir())


def test_summary(preprocess, tmp_path, capsys):
    make_raw(tmp_path / "raw")
    preprocess("--test-b", 6)
    output = capsys.readouterr().out
    assert "6 rasters to do, 0.00 GB needed in" in output
    assert "fewer than" not in output
    assert "Aa (AAA)                           30        6        6        6" in output
    assert "all                                60       12       12       12" in output
    # 2 of 3 rasters: 144 x 96 of 150 x 110 are used; the third: twice 72 x 96.
    assert output.count(f"{100 * (1 - 144 * 96 / 150 / 110):.1f} %") == 3
    assert "6 rasters in " in output
    assert " a second" in output
    preprocess("--test-b", 7)
    output = capsys.readouterr().out
    assert "test_b: fewer than 7 test patches, so all of them, in 2 cities: AAA, BBB" in output
    assert "nothing was left to tile" in output


def test_cities_of_one_code_are_told_apart_in_the_summary(preprocess, tmp_path, capsys):
    make_raw(tmp_path / "raw", cities=["San Jose (SJC)", "San José (SJC)", "Aa (AAA)"])
    preprocess("--test-b", 7)
    assert "in 3 cities: AAA, San Jose (SJC), San José (SJC)\n" in capsys.readouterr().out


def test_bad_rasters_are_all_named_and_the_good_ones_kept(preprocess, tmp_path, capsys):
    raw = make_raw(tmp_path / "raw")
    before = files(preprocess(out=tmp_path / "expected"))
    good = {path: (path.read_bytes(), path.stat()) for path in raw.rglob("*.png")}
    bad = {
        "Aa (AAA)/site1/2020.png": "pixels, smaller than a patch of 48 x 48; replace",
        "Aa (AAA)/site3/2020.png": "in each half (its site is held out)",
        "Bb (BBB)/site1/2020.png": "no JPEG, PNG or TIFF image",
        "Bb (BBB)/site2/2020.png": "truncated",
    }
    picture(150, 47).save(raw / "Aa (AAA)/site1/2020.png")
    picture(95, 110).save(raw / "Aa (AAA)/site3/2020.png")
    (raw / "Bb (BBB)/site1/2020.png").write_text("text")
    os.truncate(raw / "Bb (BBB)/site2/2020.png", 15000)
    lines = refused(preprocess, *(f"{name}: " for name in bad), *bad.values())
    assert len(lines) == 5
    last = "2 of 6 rasters are done and kept; mend the above and run the same command again"
    assert lines[-1] == last
    with pytest.raises(InputError, match="has not finished"):
        reading.open_split(tmp_path / "out", "train")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.npy")}
    assert len(kept) == 3
    for path, (content, status) in good.items():
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    capsys.readouterr()
    out = preprocess()
    assert "6 rasters; 2 done before" in capsys.readouterr().out
    assert files(out) == before
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_mutated_images_through_the_command_line(tmp_path):
    seed = random.Random(0)
    raw = make_raw(tmp_path / "raw")
    data = io.BytesIO()
    picture(120, 100).save(data, "JPEG")
    for n in range(30):
        broken = bytearray(data.getvalue())
        broken[seed.randrange(200)] ^= 1 << seed.randrange(8)
        end = seed.choice([None, -500])
        (raw / "Aa (AAA)" / "site1" / f"{n:02d}.jpg").write_bytes(broken[:end])
    code, _, errors = finish(start(raw=raw, out=tmp_path / "out"))
    lines = errors.splitlines()
    assert code == 2, errors
    assert 8 < len(lines) < 30, errors
    assert all(line.startswith("preprocessing.py: ") for line in lines)
    named = [line.split(": ")[1] for line in lines[:-1]]
    assert len(set(named)) == len(named)
    assert all(name.endswith(".jpg") for name in named)
    good = 36 - len(named)
    assert lines[-1].startswith(f"preprocessing.py: {good} of 36 rasters are done and kept")


@pytest.mark.parametrize("at", ["array", "jpeg", "record", "regions"])
def test_a_disk_that_fills_up_leaves_nothing_half_written(
    preprocess, tmp_path, monkeypatch, capsys, at
):
    make_raw(tmp_path / "raw")
    expected = files(preprocess("--jpegs", out=tmp_path / "expected"))
    calls = Counter()

    def full(path, *arguments, **options):
        kind = {".npy": "array", ".jpg": "jpeg", ".json": "record", ".csv": "regions"}[
            Path(path).suffix
        ]
        calls[kind] += 1
        if kind == at and calls[kind] == (1 if at == "regions" else 4):

            class File:
                def __getattr__(self, name):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            def opened():
                with atomic(path, *arguments, **options):
                    yield File()

            return contextmanager(opened)()
        return atomic(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(tiling, "atomic", full)
        patch.setattr(completing, "atomic", full)
        patch.setattr(records, "atomic", full)
        with pytest.raises(SystemExit) as caught:
            run(lambda: preprocess("--jpegs"))
    errors = capsys.readouterr().err
    assert caught.value.code == 2
    assert errors.count("\n") == 1
    assert "No space left on device; make room and run the same command again" in errors
    assert str(tmp_path / "out") in errors
    assert ".tmp" not in errors
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert files(preprocess("--jpegs")) == expected


def test_a_file_in_the_way_of_a_folder(preprocess, tmp_path, capsys):
    make_raw(tmp_path / "raw")
    preprocess()
    shutil.rmtree(tmp_path / "out" / "arrays" / "Aa (AAA)")
    (tmp_path / "out" / "arrays" / "Aa (AAA)").write_text("")
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "out", tmp_path / "file" / "out"):
        with pytest.raises(SystemExit) as caught:
            run(partial(preprocess, out=out))
        errors = capsys.readouterr().err
        assert caught.value.code == 2
        assert errors.count("\n") == 1
        assert "a file is in the way" in errors
        assert str(out.parent) in errors


def test_an_output_folder_that_is_a_link_to_itself(preprocess, tmp_path, capsys):
    make_raw(tmp_path / "raw")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for out in (tmp_path / "loop", tmp_path / "loop" / "out"):
        with pytest.raises(SystemExit) as caught:
            run(partial(preprocess, out=out))
        errors = capsys.readouterr().err
        assert caught.value.code == 2
        assert errors.count("\n") == 1
        assert "a symbolic link leads back to itself" in errors


def test_two_with_other_sizes_at_one_instant(tmp_path, preprocess, monkeypatch):
    """Both find an empty folder; the second to begin is refused, and the first is undisturbed."""
    make_raw(tmp_path / "raw")
    expected = files(preprocess(out=tmp_path / "expected"))
    check_space = tiling.check_space

    def begin_another(*arguments):
        monkeypatch.setattr(tiling, "check_space", check_space)
        preprocess()
        check_space(*arguments)

    monkeypatch.setattr(tiling, "check_space", begin_another)
    refused(lambda: preprocess("--stride", 12), "made with --stride 24; choose another --out")
    assert files(tmp_path / "out") == expected


def test_two_processes_with_other_sizes(tmp_path):
    raw = make_raw(tmp_path / "raw", size=(400, 300))
    strides = {24: 14, 12: 7}
    running = [start("--stride", stride, raw=raw, out=tmp_path / "out") for stride in strides]
    ends = [finish(process) for process in running]
    assert sorted(code for code, _, _ in ends) == [0, 2], ends
    stride = json.loads((tmp_path / "out" / "dataset.json").read_text())["stride"]
    refusal = "".join(errors for _, _, errors in ends)
    assert refusal.count("\n") == 1
    assert f"made with --stride {stride}" in refusal
    for split in ("train", "val", "test"):
        assert reading.open_split(tmp_path / "out", split).step == strides[stride]


def once(call, before, after):
    """`call`, with something done before and after it, the first time that it is called."""
    waiting = [True]

    def wrapped(*arguments, **options):
        first = bool(waiting)
        waiting.clear()
        if first:
            before()
        result = call(*arguments, **options)
        if first:
            after()
        return result

    return wrapped


def nothing():
    pass


def test_two_equal_ones_at_one_instant(tmp_path, preprocess, monkeypatch):
    """One works between the other's reading of the records and its look for files."""
    make_raw(tmp_path / "raw")
    expected = files(preprocess("--jpegs", out=tmp_path / "expected"))

    def other():
        preprocess("--jpegs")
        (tmp_path / "out" / "arrays" / "Bb (BBB)" / "site3" / "2020.val.npy").unlink()  # to come

    monkeypatch.setattr(progress, "Listing", once(progress.Listing, nothing, other))
    preprocess("--jpegs")
    assert files(tmp_path / "out") == expected


def test_one_with_jpegs_and_one_without_at_one_instant(tmp_path, preprocess, monkeypatch):
    """Half of the JPEGs are no result, nor are those of another draw in test_b."""
    make_raw(tmp_path / "raw")
    expected = files(preprocess("--jpegs", "--test-b", 6, out=tmp_path / "expected"))
    for other in (["--shard", "1/2"], []):
        with_jpegs = partial(preprocess, "--jpegs", *other)
        monkeypatch.setattr(tiling, "tile", once(tiling.tile, with_jpegs, nothing))
        refused(partial(preprocess, "--test-b", 6), "has begun to write JPEGs meanwhile; run the")
        assert not (tmp_path / "out" / "dataset.json").exists()
        preprocess("--test-b", 6)
        assert files(tmp_path / "out") == expected
        shutil.rmtree(tmp_path / "out")


def test_a_raster_that_shrinks_before_it_is_tiled(tmp_path, preprocess, monkeypatch):
    """Beyond its edges, as they were when it was planned, patches would be black."""
    raw = make_raw(tmp_path / "raw")
    raster = raw / "Aa (AAA)" / "site1" / "2020.png"
    shrink = partial(picture(100, 60).save, raster)
    monkeypatch.setattr(tiling, "tile", once(tiling.tile, shrink, nothing))
    lines = refused(preprocess, f"{raster}: has changed since it was found; wait until it is whole")
    assert lines[-1].startswith("5 of 6 rasters are done and kept")
    assert files(preprocess()) == files(preprocess(out=tmp_path / "expected"))


def test_a_write_that_fails_in_a_worker(tmp_path):
    raw = make_raw(tmp_path / "raw")
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (8000, most))
    process = start("--workers", 2, raw=raw, out=tmp_path / "out", preexec_fn=limit)
    code, _, errors = finish(process)
    assert code == 2, errors
    assert errors.count("\n") == 1, errors
    assert ".npy: File too large; raise the limit" in errors, errors
    assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """(raw, all files of its patch set with JPEGs) of 24 rasters of 63 patches each.

    What is to equal that must lie beside raw.
    """
    root = tmp_path_factory.mktemp("many")
    make_raw(root / "raw", cities=["Aa (AAA)", "Bb (BBB)", "Cc (CCC)"], sites=8, size=(240, 200))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "ProcessPoolExecutor", Inline)
        preprocessing.main(
            ["--raw", str(root / "raw"), "--out", str(root / "expected"), *SMALL, "--jpegs"]
        )
    return root / "raw", files(root / "expected")


def test_the_number_of_workers_changes_nothing(many):
    raw, expected = many
    out = raw.parent / "workers"
    code, _, errors = finish(start("--jpegs", "--workers", 3, raw=raw, out=out))
    assert code == 0
    assert errors == ""
    assert files(out) == expected


def test_shards_make_one_set(many, preprocess):
    raw, expected = many
    out = raw.parent / "shards"
    running = [start("--jpegs", "--shard", f"{i}/3", raw=raw, out=out) for i in (1, 2)]
    missing = []
    for process in running:
        code, output, errors = finish(process)
        missing.append(output.splitlines()[-1].split("are done, ")[1])
        assert code == 0
        assert errors == ""
        assert "24 rasters, 8 of them in shard" in output
        assert f"{out}: the 8 rasters of this shard are done" in output
        assert "are missing, the first is Aa (AAA)/site" in output
    # The one that ended last has seen what the other one did.
    assert any(
        line.startswith("8 of other shards are missing, the first is Aa (AAA)/site3/2020.png; ")
        for line in missing
    )
    assert not (out / "dataset.json").exists()
    with pytest.raises(InputError, match="has not finished"):
        reading.open_split(out, "train")
    # What others have half-written is not touched by a shard that is not the last.
    temporary = f".1-{zlib.crc32(b'2020.train.npy'):08x}.tmp"
    (out / "arrays" / "Aa (AAA)" / "site1" / temporary).write_text("half")
    assert changed_by(out, lambda: preprocess("--shard", "2/3", raw=raw, out=out)) == set()
    preprocess("--jpegs", "--shard", "3/3", raw=raw, out=out)
    assert files(out) == expected
    assert changed_by(out, lambda: preprocess("--shard", "1/3", raw=raw, out=out)) == set()


def test_shards_that_end_together_and_a_plain_run_afterwards(tmp_path, preprocess):
    raw = make_raw(tmp_path / "raw")
    expected = files(preprocess("--jpegs", out=tmp_path / "expected"))
    running = [
        start("--jpegs", "--shard", f"{i}/3", raw=raw, out=tmp_path / "out") for i in (1, 2, 3)
    ]
    ends = [finish(process) for process in running]
    assert all(code == 0 and errors == "" for code, _, errors in ends)
    assert any("patch set: " in output for _, output, _ in ends)
    assert files(tmp_path / "out") == expected
    for i in range(1, 10):  # more shards than rasters; the last one never runs
        preprocess("--shard", f"{i}/10" if i != 6 else "10/10", out=tmp_path / "later")
    assert not (tmp_path / "later" / "dataset.json").exists()
    preprocess("--jpegs", out=tmp_path / "later")
    assert files(tmp_path / "later") == expected


def test_a_shard_with_a_bad_raster_does_its_others(tmp_path, preprocess):
    raw = make_raw(tmp_path / "raw")
    (raw / "Aa (AAA)" / "site1" / "2020.png").write_text("text")
    lines = refused(lambda: preprocess("--shard", "1/2"), "site1/2020.png: no JPEG")
    assert lines[-1].startswith("2 of 3 rasters are done and kept")
    preprocess("--shard", "2/2")
    refused(lambda: preprocess("--shard", "2/2", "--stride", 12), "made with --stride 24")
    assert len(list((tmp_path / "out").rglob("*.json"))) == 5


def moment(out):
    """Where preprocessing of `many` stood when it was killed."""
    if (out / "dataset.json").exists():
        return "finished"
    if tiled(out) == 24:
        return "completing"
    return "tiling" if tiled(out) else "starting"


def test_killed_at_20_moments_and_run_again(many):
    """SIGKILL to all processes, or to the parent alone: its workers must end by themselves."""
    raw, expected = many
    out = raw.parent / "killed"
    draw = random.Random(0)
    moments = Counter()
    for kill in range(20):
        if (out / "dataset.json").exists():
            shutil.rmtree(out)
        until = min(24, tiled(out) + draw.choice([0, 1, 2, 5, 10]))
        with start("--jpegs", raw=raw, out=out, start_new_session=True) as process:
            read_until(process, "rasters to do")  # or its end: all may have been done before
            while tiled(out) < until and process.poll() is None:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.03))
            (os.kill if kill % 2 else os.killpg)(process.pid, signal.SIGKILL)
            wait_until_none_is_alive(process.pid)
        moments[moment(out)] += 1
    assert moments["tiling"] >= 8, moments
    code, _, errors = finish(start("--jpegs", raw=raw, out=out))
    assert code == 0
    assert errors == ""
    assert files(out) == expected


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """Twelve rasters of 1,248 patches each.

    Some seconds of work with --jpegs, so that it cannot end before it is disturbed.
    """
    return make_raw(tmp_path_factory.mktemp("slow") / "raw", sites=6, size=(960, 800))


def test_ctrl_c_ends_with_one_line_and_keeps_what_is_done(slow):
    raw = slow
    for until in (0, 3):
        out = raw.parent / f"interrupted{until}"
        # As a terminal starts it; where the tests run in the background of a shell, SIGINT would
        # be ignored.
        unignored = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        options = {"start_new_session": True, "preexec_fn": unignored}
        with start("--jpegs", "--workers", 2, raw=raw, out=out, **options) as process:
            read_until(process, "rasters to do")
            while tiled(out) < until and process.poll() is None:
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGINT)
            code, _, errors = finish(process)
        assert (code, errors) == (
            1,
            "interrupted; what was finished is kept, the same command goes on from there\n",
        )
        wait_until_none_is_alive(process.pid)
        assert until <= tiled(out) < 12
        assert not (out / "dataset.json").exists()
        assert not list(out.rglob("*.tmp"))


def test_a_worker_that_is_killed(slow):
    raw = slow
    out = raw.parent / "worker"
    with start("--jpegs", raw=raw, out=out, start_new_session=True) as process:
        while not tiled(out) and process.poll() is None:
            time.sleep(0.01)
        (worker,) = set(alive(process.pid)) - {process.pid}
        os.kill(worker, signal.SIGKILL)
        code, _, errors = finish(process)
    assert code == 2, errors
    assert errors.count("\n") == 1, errors
    reason = "a worker process was killed, most likely for want of memory, at Aa (AAA)/site"
    assert reason in errors, errors
    assert tiled(out) >= 1
