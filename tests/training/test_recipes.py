"""The recipes: what they set, augmentation against torchvision's, the averaged weights, and runs that go on to the same bits."""

import csv
import math

import numpy as np
import pytest
import torch
from conftest import flags
from test_train_classification import assert_same, load  # noqa: F401: a fixture
from torchvision.transforms import functional

import train_classification
from benchmarks import recipes
from dl_slicer.cli import InputError
from dl_slicer.model import checkpoints, networks
from dl_slicer.patch_sets import transforms
from dl_slicer.training import averages, schedules, signals

MEAN, STD = networks.MEAN, networks.STD


def images(count=4, size=24, seed=0):
    return torch.rand(
        count, 3, size, size, generator=torch.Generator().manual_seed(seed)
    ).contiguous(memory_format=torch.channels_last)


def normalised(pixels):
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def middle(count=1, **changes):
    """Numbers that change nothing, but for those that are given."""
    drawn = {
        key: torch.full(values.shape, 0.5)
        for key, values in transforms.draw_changes(count, 0, 0, 0).items()
    }
    drawn["haze"][:] = 0
    for key, value in changes.items():
        drawn[key][:] = value
    return drawn


# ------------------------------------------------------------------------------------------------------------------ augmentation


def test_draws_are_a_pure_function():
    one, again, other = (transforms.draw_changes(8, 1, 2, step) for step in (3, 3, 4))
    assert all(
        np.array_equal(one[key], again[key]) and not np.array_equal(one[key], other[key])
        for key in one
    )


def test_nothing_drawn_changes_nothing():
    before = normalised(images(1))
    after = transforms.augment(before, middle(), MEAN, STD, turns=True, light=1.0)
    torch.testing.assert_close(after, before, rtol=0, atol=2e-5)
    assert after.is_contiguous(memory_format=torch.channels_last)


def test_turns_mirror_half_of_the_images_at_the_diagonal():
    before, drawn = (
        images(64),
        {
            key: torch.from_numpy(values)
            for key, values in transforms.draw_changes(64, 0, 0, 0).items()
        },
    )
    after = transforms.augment(before, drawn, MEAN, STD, turns=True)
    turned = [torch.equal(a, b.transpose(1, 2)) for a, b in zip(after, before)]
    assert (
        all(turn or torch.equal(a, b) for turn, a, b in zip(turned, after, before))
        and 20 < sum(turned) < 44
    )


def test_the_eight_symmetries_are_eight_and_the_right_ones():
    image = images(1, 8)
    ours = {tuple(view.flatten().tolist()) for view in transforms.symmetries(image)}
    theirs = {
        tuple(torch.rot90(view, k, (2, 3)).flatten().tolist())
        for view in (image, image.flip(2))
        for k in range(4)
    }
    assert len(ours) == 8 and ours == theirs


@pytest.mark.parametrize("uniform", (0.0, 0.8))
@pytest.mark.parametrize(
    "what, width, theirs",
    [("brightness", 0.25, functional.adjust_brightness), ("saturation", 0.35, None)],
)
def test_light_is_what_torchvision_does(what, width, theirs, uniform):
    pixels = (
        images(2) * 0.4 + 0.3
    )  # torchvision clips at 0 and 1, where a photograph does and a normalised tensor need not
    after = transforms.augment(
        normalised(pixels), middle(2, **{what: uniform}), MEAN, STD, light=1.0
    )
    factor = math.exp((2 * uniform - 1) * width)
    expected = (
        theirs(pixels, factor)
        if theirs
        else factor * pixels + (1 - factor) * pixels.mean(1, keepdim=True)
    )
    torch.testing.assert_close(after, normalised(expected), rtol=0, atol=1e-5)


def test_contrast_keeps_the_usual_mean_and_haze_goes_to_light_grey():
    grey = torch.tensor(MEAN)[None, :, None, None].expand(1, 3, 8, 8)
    after = transforms.augment(normalised(grey), middle(contrast=0.1), MEAN, STD, light=1.0)
    torch.testing.assert_close(after, normalised(grey), rtol=0, atol=1e-5)
    hazy = transforms.augment(normalised(images(1)), middle(haze=1.0), MEAN, STD, light=1.0)
    torch.testing.assert_close(hazy, normalised(0.85 * images(1) + 0.15 * 0.7), rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------------ what a recipe is


def test_published_is_the_default_and_a_flag_of_its_own_wins():
    published = train_classification.arguments([])
    assert (published.optimizer, published.lr, published.weight_decay, published.flips) == (
        "adam",
        1e-3,
        0,
        True,
    )
    assert not any((published.average, published.turns, published.light, published.label_smoothing))
    assert published.schedule == "constant"
    mixed = train_classification.arguments(
        ["--recipe", "robust", "--lr", "5e-4", "--no-turns", "--average", "0"]
    )
    assert (mixed.optimizer, mixed.lr, mixed.turns, mixed.average, mixed.schedule) == (
        "adamw",
        5e-4,
        False,
        0,
        "cosine",
    )


def test_learning_rate_warms_up_and_decays_to_nothing():
    args = train_classification.arguments(["--recipe", "robust", "--epochs", "20", "--lr", "1"])
    rates = [schedules.learning_rate(args, epochs) for epochs in np.linspace(0, 20, 201)]
    assert (
        rates[0] == 0
        and rates[200] == pytest.approx(0, abs=1e-12)
        and rates[10] == pytest.approx(0.5)
    )
    assert max(rates) == rates[20] == pytest.approx(1) and rates[110] == pytest.approx(0.5)
    assert schedules.learning_rate(train_classification.arguments([]), 50) == 1e-3


def test_the_average_is_the_moving_one_of_weights_and_statistics():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = averages.moving_average(model, horizon=4.0)
    expected = None
    for step in range(60):
        with torch.no_grad():
            model[0].weight.fill_(step)
            model[1].running_mean.fill_(-step)
        average.update_parameters(model)
        decay = min(math.exp(-1 / 4), (1 + step) / (10 + step))
        expected = step if expected is None else decay * expected + (1 - decay) * step
    assert average.module[0].weight[0, 0].item() == pytest.approx(expected, rel=1e-5)
    assert average.module[1].running_mean[0].item() == pytest.approx(-expected, rel=1e-5)
    assert 59 - 1.2 * 4 < expected < 59


# ------------------------------------------------------------------------------------------------------------------ whole runs


@pytest.fixture(scope="module")
def robust(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("robust") / "whole"
    train_classification.main(flags(data, run, "--recipe", "robust"))
    return run


def test_stopped_robust_run_goes_on_to_the_same_bits(data, robust, tmp_path, monkeypatch):
    updates = []

    def stop_in_the_second_epoch():
        def came():
            updates.append(None)
            return len(updates) == 20

        return came

    monkeypatch.setattr(signals, "catch_signals", stop_in_the_second_epoch)
    with pytest.raises(SystemExit) as stop:
        train_classification.main(flags(data, tmp_path / "run", "--recipe", "robust"))
    assert stop.value.code == 1 and load(tmp_path / "run" / "last.pth")["step"] > 0
    monkeypatch.setattr(signals, "catch_signals", lambda: lambda: False)
    train_classification.main(flags(data, tmp_path / "run", "--recipe", "robust", "--resume"))
    assert_same(tmp_path / "run", robust)


def test_what_is_saved_is_the_average(data, robust):
    last = load(robust / "last.pth")
    assert last["model"].keys() == last["weights"].keys()
    assert not torch.equal(last["model"]["conv1.weight"], last["weights"]["conv1.weight"])
    model, _ = checkpoints.load_checkpoint(robust / "last.pth")
    assert torch.equal(model.conv1.weight, last["model"]["conv1.weight"])
    rates = [float(row["lr"]) for row in csv.DictReader(open(robust / "log.csv"))]
    assert rates[-1] < 0.01 * rates[0]


def test_a_schedule_cannot_be_made_longer_afterwards(data, robust):
    with pytest.raises(InputError, match="epochs was 2, is 3"):
        train_classification.main(
            [*flags(data, robust, "--recipe", "robust", "--resume"), "--epochs", "3"]
        )


def test_a_run_of_before_there_were_recipes_goes_on(data, finished, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(finished, tmp_path / "run")
    last = load(tmp_path / "run" / "last.pth")
    del last["weights"]
    for key in ("schedule", "average", "turns", "light", "label_smoothing"):
        del last["args"][key]
    torch.save(last, tmp_path / "run" / "last.pth")
    train_classification.main([*flags(data, tmp_path / "run", "--resume"), "--epochs", "3"])
    assert len(open(tmp_path / "run" / "log.csv").readlines()) == 4


@pytest.mark.parametrize(
    "flag",
    ["--average -1", "--label-smoothing 1", "--light 3", "--schedule linear", "--recipe best"],
)
def test_bad_values_are_one_line(flag):
    with pytest.raises(InputError, match=flag.split()[0]) as error:
        train_classification.arguments(flag.split())
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------------------ the benchmark


def test_benchmark_trains_measures_and_keeps_what_is_done(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        recipes,
        "ROWS",
        {"published": ["--amp", "off"], "robust": ["--recipe", "robust", "--amp", "off"]},
    )
    calls = []
    script = recipes.script

    def noted(name, *arguments):
        calls.append(name)
        if name == "preprocessing.py":
            arguments = [*arguments, "--patch-size", "48", "--workers", "1"]
        return script(name, *arguments)

    monkeypatch.setattr(recipes, "script", noted)
    line = [
        "--raw",
        str(data.parent / "raw"),
        "--stride",
        "24",
        "--image-size",
        "32",
        "--out",
        str(tmp_path / "out"),
        "--epochs",
        "5",
        "--seeds",
        "1",
        "--rows",
        "published",
        "robust",
        "--test",
    ]
    recipes.main(line)
    first = capsys.readouterr().out
    recipes.main(line)
    assert calls.count("train_classification.py") == 2
    rows = list(csv.DictReader(open(tmp_path / "out" / "runs.csv")))
    assert [row["row"] for row in rows] == ["published", "robust"] and all(
        0 <= float(row["test"]) <= 1 for row in rows
    )
    assert first.splitlines()[-3:] == capsys.readouterr().out.splitlines()[-3:]
    with pytest.raises(InputError, match="other settings"):
        recipes.main([*line, "--batch-size", "16"])
