"""Which order a run has: decided once, said, kept, and the same bits wherever it is stopped."""

import json
import shutil
from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import flags
from training_runs import assert_same, load

import train_classification
from dl_slicer import machine
from dl_slicer.cli import InputError
from dl_slicer.patch_sets import reading
from dl_slicer.training import orders, signals

CPU = torch.device("cpu")
BUFFER = 0.0002  # GB: six places of 30,720 bytes
GROUPED = ("--epochs", "1", "--order", "grouped", "--buffer", str(BUFFER))


@pytest.fixture
def train(data):
    return reading.open_split(data, "train")


@pytest.fixture(scope="module")
def grouped(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("grouped") / "whole"
    train_classification.main(flags(data, out, *GROUPED))
    return out


def settled(train, previous=None, **chosen):
    args = Namespace(**{"order": "auto", "buffer": None, "balanced": True, **chosen})
    orders.settle(args, previous, train, CPU)
    return args.order, args.buffer


def test_auto_is_grouped_where_the_arrays_exceed_half_of_the_free_memory(train, monkeypatch):
    for free, order in [(2 * train.nbytes, "random"), (2 * train.nbytes - 1, "grouped")]:
        monkeypatch.setattr(machine, "free_memory", lambda free=free: free)
        assert settled(train)[0] == order
    monkeypatch.setattr(machine, "free_memory", lambda: None)
    assert settled(train) == ("random", None)


def test_auto_is_random_where_a_device_holds_the_arrays(train, monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda: 1)
    assert settled(train)[0] == "grouped"
    monkeypatch.setattr(orders.batching, "remembered_storage", lambda *_: "device")
    assert settled(train) == ("random", None)


def test_the_buffer_is_an_eighth_of_the_free_memory_and_no_smaller_than_works(train, monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda: 80 * 10**9)
    assert settled(train, order="grouped") == ("grouped", 10.0)
    monkeypatch.setattr(orders.distributed, "ON_THIS_MACHINE", 4)
    assert settled(train, order="grouped") == ("grouped", 2.5)
    monkeypatch.setattr(machine, "free_memory", lambda: 1)
    order, least = settled(train, order="grouped")
    assert least == pytest.approx(4 * 30_720 / 1e9, abs=1e-6)
    assert settled(train, order="grouped", buffer=least) == (order, least)
    with pytest.raises(InputError, match="--buffer 0.0001: too small"):
        settled(train, order="grouped", buffer=0.0001)


def test_a_run_keeps_its_order(train, monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda: 1)
    assert settled(train, {"seed": 0}) == ("random", None)  # of before there was a choice
    monkeypatch.setattr(machine, "free_memory", lambda: 10**12)
    assert settled(train, {"order": "grouped", "buffer": 0.5}) == ("grouped", 0.5)


def test_free_memory_is_that_of_the_machine_or_of_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CONTROL_GROUP", str(tmp_path))
    free = machine.free_memory()
    assert 10**7 < free < 10**14
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_memory() > 10**7
    for name, text in {
        "memory.max": "3000000\n",
        "memory.current": "2500000\n",
        "memory.stat": "anon 5\ninactive_file 500000\nactive_file 7\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert machine.free_memory() == 1_000_000


def test_a_folder_of_jpegs_has_a_random_order_and_says_so(capsys):
    jpegs = object()
    assert settled(jpegs) == ("random", None)
    assert capsys.readouterr().out == ""
    assert settled(jpegs, order="grouped", buffer=1.0) == ("random", None)
    assert "--order grouped: means nothing for a folder of JPEGs" in capsys.readouterr().out


def test_a_run_stopped_within_an_epoch_goes_on_to_the_same_bits(
    data, grouped, tmp_path, monkeypatch, capsys
):
    asked = []

    def stop():
        asked.append(None)
        return len(asked) == 6

    with monkeypatch.context() as patch:
        patch.setattr(signals, "catch_signals", lambda: stop)
        with pytest.raises(SystemExit):
            train_classification.main(flags(data, tmp_path / "run", *GROUPED))
    assert load(tmp_path / "run" / "last.pth")["step"] == 6
    said = capsys.readouterr().out
    assert "groups of 1 slabs of each city (0.4 of a raster each)" in said
    # Without the flags: the run knows.
    train_classification.main(flags(data, tmp_path / "run", "--epochs", "1", "--resume"))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["order"], config["buffer"]) == ("grouped", BUFFER)
    assert_same(grouped, tmp_path / "run")


@pytest.mark.parametrize(
    "more, said",
    [
        (["--order", "random"], "order was grouped, is random"),
        (["--buffer", "0.0003"], "buffer was 0.0002, is 0.0003"),
    ],
)
def test_a_run_does_not_change_its_order(data, grouped, more, said):
    with pytest.raises(InputError, match=said):
        train_classification.main(flags(data, grouped, "--resume", *more))


def test_a_run_of_before_goes_on_at_random(data, finished, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    checkpoint = load(run / "last.pth")
    del checkpoint["args"]["order"], checkpoint["args"]["buffer"]
    torch.save(checkpoint, run / "last.pth")
    monkeypatch.setattr(machine, "free_memory", lambda: 1)
    with pytest.raises(InputError, match="order was random, is grouped"):
        train_classification.main(flags(data, run, "--resume", "--order", "grouped"))
    train_classification.main(flags(data, run, "--resume"))
    assert json.loads((run / "config.json").read_text())["order"] == "random"


def test_a_buffer_of_a_random_order_is_refused():
    with pytest.raises(InputError, match="--buffer: is that of --order grouped"):
        train_classification.read_flags(["--order", "random", "--buffer", "1"])
    with pytest.raises(InputError, match="--order would change nothing"):
        train_classification.read_flags(["--probe", "--order", "grouped"])


def test_an_epoch_of_either_order_has_the_same_steps(train):
    args = Namespace(order="grouped", buffer=BUFFER, balanced=True, seed=1, batch_size=32)
    found = orders.of_epoch(args, train, 3)
    args.order = "random"
    assert found.shape == orders.of_epoch(args, train, 3).shape == (15, 32)
    assert np.bincount(train.labels[found.patches.ravel()]).tolist() == [160] * 3
