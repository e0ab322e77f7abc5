"""Training, evaluation and what they write, on a tiny patch set with the real networks."""

import csv
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import flags
from PIL import Image
from torchvision.transforms import functional

import test_classification
import train_classification
from dl_slicer.cli import InputError, run
from dl_slicer.model import checkpoints, evaluation, networks
from dl_slicer.patch_sets import ordering, reading, transforms

ROOT = Path(__file__).parent.parent
# Children are forked from a server that has imported torch but computed nothing: they start in milliseconds, and safely.
os.environ["PYTHONPATH"] = str(ROOT)
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["dl_slicer.training.epochs"])


@pytest.fixture(autouse=True)
def default_signals():
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    yield
    for s, handler in zip((signal.SIGTERM, signal.SIGINT), before):
        signal.signal(s, handler)


def load(path):
    return torch.load(path, weights_only=True)


def assert_same(one, other):
    """Two runs: same log, same checkpoints to the bit (but for the flags that say how often to save)."""
    assert (one / "log.csv").read_text() == (other / "log.csv").read_text()
    for name in ("best.pth", "last.pth"):
        a, b = load(one / name), load(other / name)
        a["args"], b["args"] = (
            {k: v for k, v in x["args"].items() if k not in ("out", "save_every", "epochs")}
            for x in (a, b)
        )
        assert bits(a) == bits(b)


def bits(value):
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return [bits(item) for item in value] if isinstance(value, (list, tuple)) else value


# ------------------------------------------------------------------------------------------------------------------ order, flips


def test_order_is_balanced_without_replacement_and_a_pure_function():
    labels = np.repeat([0, 1, 2], [10, 100, 190])
    order = ordering.epoch_order(labels, 20, seed=3, epoch=5)
    assert order.shape == (15, 20)
    assert np.array_equal(order, ordering.epoch_order(labels, 20, 3, 5))
    assert not np.array_equal(order, ordering.epoch_order(labels, 20, 3, 6))
    assert not np.array_equal(order, ordering.epoch_order(labels, 20, 4, 5))
    assert np.bincount(labels[order.ravel()]).tolist() == [100, 100, 100]
    times = np.bincount(order.ravel(), minlength=300)
    assert set(times[:10]) == {10} and set(times[10:110]) == {1} and set(times[110:]) == {0, 1}


def test_unbalanced_order_has_every_patch_once():
    order = ordering.epoch_order(np.zeros(103, int), 10, 0, 0, balanced=False)
    assert order.shape == (10, 10) and len(np.unique(order)) == 100


def test_batch_larger_than_the_set_is_the_set():
    assert ordering.epoch_order(np.array([0, 1, 1]), 128, 0, 0).shape == (1, 3)


def test_flips_are_a_pure_function_and_half_of_all():
    drawn = np.stack([ordering.draw_flips(64, 1, 2, step) for step in range(200)])
    assert np.array_equal(drawn[7], ordering.draw_flips(64, 1, 2, 7)) and not np.array_equal(
        drawn[7], drawn[8]
    )
    assert abs(drawn.mean((0, 2)) - 0.5).max() < 0.02
    assert abs(np.corrcoef(drawn[:, 0].ravel(), drawn[:, 1].ravel())[0, 1]) < 0.03


def test_normalise_equals_torchvision():
    images = np.random.default_rng(0).integers(0, 256, (4, 20, 24, 3), dtype=np.uint8)
    flipped = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 1]], dtype=torch.bool)
    ours = transforms.normalise(torch.from_numpy(images), networks.MEAN, networks.STD, flipped)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    for i, image in enumerate(images):
        image = Image.fromarray(image)
        image = functional.hflip(image) if flipped[0, i] else image
        image = functional.vflip(image) if flipped[1, i] else image
        plain = functional.normalize(functional.to_tensor(image), networks.MEAN, networks.STD)
        torch.testing.assert_close(ours[i], plain, rtol=0, atol=2e-6)


# ------------------------------------------------------------------------------------------------------------------ a whole run


def test_run_leaves_what_the_design_says(data, finished):
    rows = list(csv.DictReader(open(finished / "log.csv")))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    best, last = load(finished / "best.pth"), load(finished / "last.pth")
    assert best["epoch"] == 1 + np.argmax([float(row["val_accuracy"]) for row in rows])
    assert last["epoch"] == 2 and last["step"] == 0
    assert set(last) == {
        "model",
        "weights",
        "arch",
        "classes",
        "mean",
        "std",
        "image_size",
        "patch_size",
        "stride",
        "epoch",
        "step",
        "metrics",
        "optimizer",
        "rng",
        "args",
        "versions",
    }
    assert last["classes"] == ["Aa (AAA)", "Bb (BBB)", "Cc (CCC)"] and last["image_size"] == 32
    config = json.loads((finished / "config.json").read_text())
    assert (
        config["lr"] == 1e-3
        and config["seed"] == 0
        and config["versions"]["torch"] == torch.__version__
    )
    assert Image.open(finished / "curves.png").size[0] > 800
    assert not list(finished.glob(".*"))


def test_published_recipe_is_the_default():
    args = train_classification.arguments([])
    assert (
        args.weights,
        args.optimizer,
        args.lr,
        args.batch_size,
        args.epochs,
        args.flips,
        args.balanced,
        args.weight_decay,
    ) == ("imagenet", "adam", 1e-3, 128, 100, True, True, 0)


def test_same_seed_same_bits_and_another_seed_other_bits(data, finished, tmp_path):
    train_classification.main(flags(data, tmp_path / "again"))
    assert_same(finished, tmp_path / "again")
    train_classification.main(flags(data, tmp_path / "other", "--seed", "1", "--epochs", "1"))
    assert not torch.equal(
        load(tmp_path / "other" / "last.pth")["model"]["fc.weight"],
        load(finished / "last.pth")["model"]["fc.weight"],
    )


def test_ties_keep_the_earlier_epoch(data, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "score", lambda model, val, *_, **__: torch.ones(len(val), 2))
    train_classification.main(flags(data, tmp_path / "ties"))
    assert (
        load(tmp_path / "ties" / "best.pth")["epoch"] == 1
        and load(tmp_path / "ties" / "last.pth")["epoch"] == 2
    )


@pytest.mark.parametrize(
    "more",
    [
        ["--optimizer", "sgd", "--lr", "0.01"],
        ["--optimizer", "adamw", "--weight-decay", "0.01", "--no-flips", "--no-balanced"],
    ],
)
def test_other_recipes_run(data, tmp_path, more):
    train_classification.main(flags(data, tmp_path / "run", *more, "--epochs", "1"))
    assert load(tmp_path / "run" / "last.pth")["epoch"] == 1


# ------------------------------------------------------------------------------------------------------------------ going on


def child(argv):
    os.chdir(ROOT)
    sys.stdout = open(os.devnull, "w")
    run(lambda: train_classification.main(argv))


def begin(data, run, *more):
    """Start or go on with a run in a process of its own; returns it when training is about to begin."""
    (run / "config.json").unlink(missing_ok=True)
    process = FORKS.Process(target=child, args=(flags(data, run, "--resume", *more),))
    process.start()
    while process.is_alive() and not (run / "config.json").exists():
        time.sleep(0.01)
    return process


def test_killed_twenty_times(data, finished, tmp_path):
    """SIGKILL at random moments, gone on with each time: the end is that of the undisturbed run, to the bit."""
    run, rng, kills, reached = tmp_path / "killed", random.Random(0), 0, set()
    while kills < 20:
        saved = (run / "last.pth").stat().st_mtime_ns if (run / "last.pth").exists() else 0
        process = begin(data, run, "--save-every", "1")
        # Every third kill falls anywhere after the start, the others after a step at least, so that a slow machine gets on, too.
        while (
            kills % 3
            and process.is_alive()
            and not ((run / "last.pth").exists() and (run / "last.pth").stat().st_mtime_ns > saved)
        ):
            time.sleep(0.01)
        process.join(rng.uniform(0, 0.5))
        if (
            process.exitcode is not None
        ):  # ended before the twentieth kill: once more from the start
            assert process.exitcode == 0
            shutil.rmtree(run)
            continue
        process.kill()
        process.join()
        kills += 1
        if (run / "last.pth").exists():
            state = load(run / "last.pth")  # never half a file
            reached.add((state["epoch"], state["step"]))
    assert len(reached) > 4  # the kills fell into the work
    process = begin(data, run)
    process.join()
    assert process.exitcode == 0
    assert_same(finished, run)
    assert {path.name for path in run.iterdir()} == {
        path.name for path in finished.iterdir() if path.is_file()
    }


def test_terminated(data, finished, tmp_path):
    """SIGTERM and SIGINT save at the step they fall into."""
    run, stopped_at = tmp_path / "terminated", []
    for number in (signal.SIGTERM, signal.SIGINT):
        process = begin(data, run)
        time.sleep(0.5)
        os.kill(process.pid, number)
        process.join(30)
        assert process.exitcode == 1
        state = load(run / "last.pth")
        stopped_at.append((state["epoch"], state["step"]))
    assert (0, 0) < stopped_at[0] < stopped_at[1] < (2, 0)
    train_classification.main(flags(data, run, "--resume"))
    assert_same(finished, run)


def test_more_epochs_equal_a_longer_run(data, finished, tmp_path):
    train_classification.main(flags(data, tmp_path / "long", "--epochs", "1"))
    train_classification.main(flags(data, tmp_path / "long", "--resume"))
    assert_same(finished, tmp_path / "long")


@pytest.mark.parametrize(
    "more, said",
    [
        ([], "--resume"),
        (["--resume", "--lr", "0.01"], "lr was 0.001, is 0.01"),
        (["--resume", "--seed", "4"], "seed was 0, is 4"),
        (["--resume", "--no-flips"], "flips was True, is False"),
        (["--resume", "--epochs", "1"], "has 2 epochs already"),
    ],
)
def test_a_run_is_not_mixed_with_another(data, finished, more, said):
    before = (finished / "last.pth").stat().st_mtime_ns
    with pytest.raises(InputError, match=said):
        train_classification.main(flags(data, finished, *more))
    assert (finished / "last.pth").stat().st_mtime_ns == before


# ------------------------------------------------------------------------------------------------------------------ several processes


def torchrun(*command):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            "--",
            *map(str, command),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_test_like_one(data, finished, tmp_path):
    flags = ["--checkpoint", finished / "best.pth", "--data", data, "--split", "train"]
    torchrun("test_classification.py", *flags, "--out", tmp_path / "two")
    test_classification.main([str(flag) for flag in (*flags, "--out", tmp_path / "one")])
    for name in (
        "metrics.json",
        "predictions.csv",
        "per_city.csv",
        "confusion_matrix.csv",
        "similarity.csv",
        "nearest.csv",
    ):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("average", [[], ["--average", "1"]])
def test_two_processes_train_like_one(data, tmp_path, average):
    """The same losses from the same global batches. Batch norm is frozen: its statistics are each process's own."""
    script = tmp_path / "frozen.py"
    script.write_text(
        "import sys; sys.path.insert(0, '.')\nimport torchvision, train_classification as t\nfrom dl_slicer.cli import run\nplain = torchvision.models.get_model\n"
        "torchvision.models.get_model = lambda *a, **k: plain(*a, **k, norm_layer=torchvision.ops.FrozenBatchNorm2d, zero_init_residual=True)\n"
        "run(t.main)\n"
    )
    more = ["--amp", "off", "--optimizer", "sgd", "--lr", "0.001", *average]
    torchrun(script, *flags(data, tmp_path / "two", *more))
    subprocess.run(
        [sys.executable, script, *flags(data, tmp_path / "one", *more)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    one, two = (list(csv.DictReader(open(tmp_path / run / "log.csv"))) for run in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        for key in ("train_loss", "val_loss"):
            assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-4)
    assert float(one[1]["train_loss"]) != float(one[0]["train_loss"])


# ------------------------------------------------------------------------------------------------------------------ testing


def test_results_of_a_test(data, finished):
    test_classification.main(
        ["--checkpoint", str(finished / "best.pth"), "--data", str(data), "--split", "test"]
    )
    out = finished / "test"
    rows = list(csv.DictReader(open(out / "predictions.csv")))
    figures = json.loads((out / "metrics.json").read_text())
    assert len(rows) == figures["n"] == 108 and len({row["patch"] for row in rows}) == 108
    assert figures["accuracy"] == pytest.approx(
        np.mean([row["true"] == row["predicted"] for row in rows])
    )
    assert figures["top5_accuracy"] == 1  # of three cities
    matrix = np.array(
        [row[1:] for row in list(csv.reader(open(out / "confusion_matrix.csv")))[1:]], int
    )
    assert matrix.sum(1).tolist() == [36, 36, 36] and np.trace(matrix) == round(
        figures["accuracy"] * 108
    )
    cities = list(csv.DictReader(open(out / "per_city.csv")))
    assert [float(row["recall"]) for row in cities] == pytest.approx(
        (np.diag(matrix) / 36).tolist()
    )
    for name in ("confusion_matrix", "confusion_matrix_percent"):
        assert (
            Image.open(out / f"{name}.png").size[0] > 400
            and (out / f"{name}.pdf").read_bytes()[:4] == b"%PDF"
        )


def test_features_are_what_the_last_layer_sees(data, finished):
    model, checkpoint = checkpoints.load_checkpoint(finished / "best.pth")
    patch_set, cpu = reading.open_split(data, "test"), torch.device("cpu")
    logits, features = evaluation.evaluate(model, patch_set, evaluation.Setup(cpu))
    assert (
        features.shape == (108, 512)
        and features.dtype == torch.float32
        and not model.fc._forward_pre_hooks
    )
    assert torch.equal(logits, evaluation.evaluate(model, patch_set, evaluation.Setup(cpu)).logits)
    torch.testing.assert_close(model.fc(features), logits)


def test_scores_are_those_of_the_logits(data, finished):
    model, checkpoint = checkpoints.load_checkpoint(finished / "best.pth")
    patch_set, cpu = reading.open_split(data, "test"), torch.device("cpu")
    logits, truth = (
        evaluation.evaluate(model, patch_set, evaluation.Setup(cpu)).logits,
        torch.from_numpy(patch_set.labels.astype(np.int64)),
    )
    loss, right = evaluation.score(model, patch_set, evaluation.Setup(cpu)).T
    torch.testing.assert_close(
        loss, torch.nn.functional.cross_entropy(logits, truth, reduction="none")
    )
    assert torch.equal(right.bool(), logits.argmax(1) == truth) and 0 < right.mean() < 1


def test_tta_is_the_mean_over_the_eight_symmetries(data, finished, tmp_path):
    model, checkpoint = checkpoints.load_checkpoint(finished / "best.pth")
    patch_set, cpu = reading.open_split(data, "test_b"), torch.device("cpu")
    logits, features = evaluation.evaluate(model, patch_set, evaluation.Setup(cpu), tta=True)
    images = transforms.normalise(
        torch.from_numpy(patch_set.read(np.arange(len(patch_set)))), networks.MEAN, networks.STD
    )
    with torch.inference_mode():
        views = [
            model(torch.rot90(view, k, (2, 3))).softmax(1)
            for view in (images, images.flip(3))
            for k in range(4)
        ]
    torch.testing.assert_close(logits.exp(), torch.stack(views).mean(0), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(logits.exp(), views[0], atol=1e-3) and features.shape == (60, 512)
    test_classification.main(
        [
            "--checkpoint",
            str(finished / "best.pth"),
            "--data",
            str(data),
            "--amp",
            "off",
            "--tta",
            "--out",
            str(tmp_path / "tta"),
        ]
    )
    figures = json.loads((tmp_path / "tta" / "metrics.json").read_text())
    assert figures["tta"] and figures["accuracy"] == pytest.approx(
        (logits.argmax(1).numpy() == patch_set.labels).mean()
    )


def test_probabilities_are_those_of_the_plain_model(data, finished, tmp_path):
    test_classification.main(
        [
            "--checkpoint",
            str(finished / "best.pth"),
            "--data",
            str(data),
            "--split",
            "test_b",
            "--amp",
            "off",
            "--out",
            str(tmp_path),
        ]
    )
    checkpoint = load(finished / "best.pth")
    model = torchvision.models.resnet18(num_classes=3)
    model.load_state_dict(checkpoint["model"])
    patch_set = reading.open_split(data, "test_b")
    plain = torch.stack(
        [
            functional.normalize(
                functional.to_tensor(Image.fromarray(p)), checkpoint["mean"], checkpoint["std"]
            )
            for p in patch_set.read(np.arange(len(patch_set)))
        ]
    )
    probabilities = model.eval()(plain).softmax(1).detach()
    rows = list(csv.DictReader(open(tmp_path / "predictions.csv")))
    assert [checkpoint["classes"][i] for i in probabilities.argmax(1)] == [
        row["predicted"] for row in rows
    ]
    np.testing.assert_allclose(
        probabilities.amax(1), [float(row["probability"]) for row in rows], atol=1e-5
    )


# ------------------------------------------------------------------------------------------------------------------ wrong input


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--batch-size", "0"], "at least 1"),
        (["--epochs", "x"], "whole number"),
        (["--lr", "-1"], "above 0"),
        (["--arch", "vgg16"], "invalid choice"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--data", "no/such"], "no such folder"),
        (["--data", "tests"], "no patch set"),
        (["--weights", "no/such.pth"], "no such file"),
    ],
)
def test_wrong_flags_of_training(data, tmp_path, argv, said):
    with pytest.raises(InputError, match=said) as error:
        train_classification.main([*flags(data, tmp_path / "run"), *argv])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_wrong_input_of_testing(data, finished, tmp_path):
    for argv, said in [
        (["--checkpoint", "no.pth"], "no such file"),
        (["--checkpoint", str(data / "dataset.json")], "no checkpoint"),
        (["--checkpoint", str(finished / "best.pth"), "--data", "tests"], "no patch set"),
        (["--split", "all"], "invalid choice"),
    ]:
        with pytest.raises(InputError, match=said):
            test_classification.main(
                [
                    "--checkpoint",
                    str(finished / "best.pth"),
                    "--data",
                    str(data),
                    *argv,
                    "--out",
                    str(tmp_path / "out"),
                ]
            )
    assert not (tmp_path / "out").exists()


def test_other_classes_are_refused_by_name(data, finished, tmp_path):
    folder = tmp_path / "jpegs" / "test"
    for city in ("Aa (AAA)", "Xx (XXX)"):
        (folder / city).mkdir(parents=True)
        Image.new("RGB", (48, 48)).save(folder / city / "a.jpg")
    with pytest.raises(
        InputError,
        match=r"only in the data: Xx \(XXX\); only in the checkpoint: Bb \(BBB\), Cc \(CCC\)",
    ):
        test_classification.main(
            [
                "--checkpoint",
                str(finished / "best.pth"),
                "--data",
                str(tmp_path / "jpegs"),
                "--split",
                "test",
            ]
        )


def test_one_line_and_exit_code_2():
    done = subprocess.run(
        [sys.executable, "train_classification.py", "--data", "no\nsuch"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no\\nsuch" in done.stderr


def test_loss_that_is_not_finite_ends_the_run(data, tmp_path):
    with pytest.raises(InputError, match="--lr"):
        train_classification.main(
            flags(data, tmp_path / "run", "--optimizer", "sgd", "--lr", "100", "--epochs", "9")
        )
