"""How a run ends: the temperature and what the network knows, in both of its checkpoints."""

import shutil

import numpy as np
import pytest
import torch
from conftest import flags
from training_runs import assert_same, load

import train_classification
from dl_slicer.model import checkpoints, evaluation, familiarity, temperature
from dl_slicer.model.familiarity import Inside, Known
from dl_slicer.patch_sets import reading
from dl_slicer.training import certainty


@pytest.fixture(scope="module")
def answers(data, finished):
    """What the network of last.pth says of val, and of train, kept as a whole."""
    model, checkpoint = checkpoints.load_checkpoint(finished / "last.pth")
    setup = evaluation.Setup(torch.device("cpu"), evaluation_dtype(finished))
    sets = [reading.open_split(data, split) for split in ("train", "val")]
    with evaluation.seen_inside(model) as passes:
        found = [evaluation.evaluate(model, patches, setup) for patches in sets]
    everything = Inside(*(torch.cat(each) for each in zip(*passes, strict=True)))
    sizes = [len(each) for each in sets]
    inside = [
        Inside(*each) for each in zip(*(each.split(sizes) for each in everything), strict=True)
    ]
    return checkpoint, sets, inside, found


def evaluation_dtype(run):
    return getattr(torch, load(run / "last.pth")["args"]["dtype"])


def test_the_temperature_is_that_of_all_val_logits_at_once(answers):
    checkpoint, (_, val), _, (_, of_val) = answers
    # Of each city one site is held out.
    expected = temperature.fit_temperature(of_val.logits, val.labels, len(val.classes))
    assert checkpoint.temperature == pytest.approx(expected, rel=1e-3)


def test_what_is_known_is_that_of_all_features_at_once(answers):
    checkpoint, (train, val), (of_train, of_val), _ = answers
    known = Known.of(checkpoint.familiarity, torch.device("cpu"))
    labels = torch.from_numpy(train.labels.astype(np.int64))
    assert known.patches == len(train)
    for label in range(len(train.classes)):
        mean = of_train.view("kind")[labels == label].double().mean(0)
        assert torch.allclose(known.kind.means[label].double(), mean, rtol=1e-3, atol=1e-4)
    assert torch.allclose(known.distances, known.far(of_val), rtol=1e-3, atol=1e-2)
    assert known.labels.tolist() == val.labels.tolist()


def test_a_run_without_them_gets_them_and_is_the_same_again(data, finished, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    for names in (["best.pth", "last.pth"], ["last.pth"]):
        for name in names:
            content = load(out / name)
            torch.save(content | {"temperature": None, "familiarity": None}, out / name)
        train_classification.main(flags(data, out, "--resume"))
        assert "temperature" in capsys.readouterr().out
        assert_same(finished, out)
    train_classification.main(flags(data, out, "--resume"))
    assert "temperature" not in capsys.readouterr().out


def test_a_stopped_run_tells_its_last_epoch_when_all_is_done(data, finished, tmp_path, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    content = load(out / "last.pth")
    torch.save(content | {"temperature": None, "familiarity": None}, out / "last.pth")
    monkeypatch.setattr(certainty, "find", lambda *arguments: None)
    with pytest.raises(SystemExit) as ended:
        train_classification.main(flags(data, out, "--resume"))
    assert ended.value.code == 1
    # So that whoever waits for a whole log does not take the run for done.
    assert len((out / "log.csv").read_text().splitlines()) == 2
    monkeypatch.undo()
    train_classification.main(flags(data, out, "--resume"))
    assert_same(finished, out)


def test_memory_of_features_does_not_grow_with_the_patches(data, finished, monkeypatch):
    monkeypatch.setattr(familiarity, "TRAIN_PATCHES", 60)
    model, _ = checkpoints.load_checkpoint(finished / "last.pth")
    train, val = (reading.open_split(data, split) for split in ("train", "val"))
    seen = []
    setup = evaluation.Setup(torch.device("cpu"))
    whole = certainty.visits_of(train, val, setup, lambda: False)

    def counted(visit):
        def passed(model, take, width, chosen=None):
            seen.append(len(chosen) if chosen is not None else None)
            return visit(model, take, width, chosen)

        return passed

    visits = certainty.Visits(counted(whole.train), counted(whole.val))
    found = certainty.find(model, train, val, visits, seed=0)
    assert seen == [60, None]  # one pass over some of train, one over val
    assert found.familiarity["patches"] == 60
