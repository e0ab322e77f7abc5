"""A run does not go on with a checkpoint that was edited or damaged: one line, nothing lost."""

import sys
import threading

import pytest
import torch
from conftest import files, flags
from training_runs import load

import train_classification
from dl_slicer.cli import InputError
from dl_slicer.model.checkpoints import Checkpoint
from dl_slicer.training import preparing, runs


@pytest.fixture(scope="module")
def last(finished):
    return load(finished / "last.pth")


@pytest.fixture(scope="module")
def begun(data, tmp_path_factory):
    """A run that has just begun, and its patches."""
    out = tmp_path_factory.mktemp("begun")
    args = train_classification.read_flags(flags(data, out, "--epochs", "3"))
    train, _ = preparing.open_data(args.data)
    return runs.begin(args, train, torch.device("cpu"), "none"), train


def copied(value):
    """A copy that shares the tensors alone."""
    if isinstance(value, dict):
        return {key: copied(each) for key, each in value.items()}
    return [copied(each) for each in value] if isinstance(value, list) else value


def refusal(data, run):
    """What is said of going on with a run, after which all is as it was."""
    before = files(run)
    with pytest.raises(InputError) as error:
        train_classification.main(flags(data, run, "--epochs", "3", "--resume"))
    assert files(run) == before
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000
    return str(error.value)


SMALLER = torch.zeros(3)
CHANGES = {
    "no best": ("metrics", lambda c: c["metrics"].pop("best")),
    "best of nothing": ("metrics", lambda c: c["metrics"]["best"].pop("val_accuracy")),
    "text in the history": ("metrics", lambda c: c["metrics"]["history"][0].update(lr="x")),
    "a column gone": ("metrics", lambda c: c["metrics"]["history"][1].pop("val_loss")),
    "an epoch gone": ("metrics", lambda c: c["metrics"]["history"].pop()),
    "two sums": ("metrics", lambda c: c["metrics"]["sums"].pop()),
    "half a step": ("step", lambda c: c.update(step=0.5)),
    "a step of no epoch": ("step", lambda c: c.update(step=10**6)),
    "weights of no average": ("weights", lambda c: c.update(weights=c["model"])),
    "other random numbers": ("rng", lambda c: c.update(rng=torch.ones(5, dtype=torch.uint8))),
    "a smaller state": ("optimizer", lambda c: c["optimizer"]["state"][0].update(exp_avg=SMALLER)),
    "a state gone": ("optimizer", lambda c: c["optimizer"]["state"].pop(5)),
    "half a state": ("optimizer", lambda c: c["optimizer"]["state"][5].pop("exp_avg_sq")),
    "no state": ("optimizer", lambda c: c["optimizer"].pop("state")),
    "a state of text": ("optimizer", lambda c: c["optimizer"]["state"].update({3: "x"})),
    "no rate": ("optimizer", lambda c: c["optimizer"]["param_groups"][0].update(lr=[])),
    "no group": ("optimizer", lambda c: c["optimizer"]["param_groups"].clear()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_edited_checkpoint_is_refused(begun, last, name):
    field, change = CHANGES[name]
    edited = copied(last)
    change(edited)
    run, train = begun
    with pytest.raises(InputError, match=rf"last\.pth: damaged: its {field} ") as error:
        runs.restore(run, Checkpoint(**edited), train)
    assert "\n" not in str(error.value)


def test_the_checkpoint_that_was_edited_is_gone_on_with(begun, last):
    run, train = begun
    runs.restore(run, Checkpoint(**last), train)
    assert (run.epoch, run.step) == (2, 0)


def test_an_edited_checkpoint_is_one_line_and_stays(data, last, tmp_path):
    edited = copied(last)
    edited["metrics"]["best"] = {}
    torch.save(edited, tmp_path / "last.pth")
    assert "last.pth: damaged: its metrics" in refusal(data, tmp_path)


def test_settings_in_the_optimizer_are_not_taken_over(begun, last):
    """They are those of the flags; a checkpoint that says otherwise would train otherwise."""
    edited = copied(last)
    edited["optimizer"]["param_groups"][0].update(weight_decay=9.0, betas=[0.0, 0.0], lr=0.5)
    run, train = begun
    runs.restore(run, Checkpoint(**edited), train)
    (group,) = run.optimizer.param_groups
    assert (group["weight_decay"], group["betas"], group["lr"]) == (0, (0.9, 0.999), 0.5)


def test_settings_too_deep_to_be_printed(data, last, tmp_path):
    deep = [last["args"]["lr"]]
    for _ in range(20_000):
        deep = [deep]
    edited = {**last, "args": {**last["args"], "lr": deep}}
    # Writing such a file takes a deep stack, reading it does not.
    limit, size = sys.getrecursionlimit(), threading.stack_size(2**29)
    try:
        sys.setrecursionlimit(10**6)
        thread = threading.Thread(target=torch.save, args=(edited, tmp_path / "last.pth"))
        thread.start()
        thread.join()
    finally:
        sys.setrecursionlimit(limit)
        threading.stack_size(size)
    assert "lr was [[[[...]]]], is 0.001" in refusal(data, tmp_path)


def test_a_setting_that_is_a_tensor(data, last, tmp_path):
    edited = copied(last)
    edited["args"].update(lr=torch.ones(5), seed="0\x1b[31m" * 1000)
    torch.save(edited, tmp_path / "last.pth")
    said = refusal(data, tmp_path)
    assert "lr was tensor(" in said
    assert "seed was " in said
