"""The network's answers: features, scores, and the mean over the symmetries of a patch."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import test_classification
from dl_slicer.cli import InputError
from dl_slicer.model import checkpoints, evaluation, networks
from dl_slicer.patch_sets import reading, transforms
from relevance_cam import __main__ as relevance_cam

SETUP = evaluation.Setup(torch.device("cpu"))


def test_features_are_what_the_last_layer_sees(data, finished):
    model, checkpoint = checkpoints.load_checkpoint(finished / "best.pth")
    patch_set = reading.open_split(data, "test")
    logits, features = evaluation.evaluate(model, patch_set, SETUP)
    assert features.shape == (108, 512)
    assert features.dtype == torch.float32
    assert not model.fc._forward_pre_hooks
    assert torch.equal(logits, evaluation.evaluate(model, patch_set, SETUP).logits)
    torch.testing.assert_close(model.fc(features), logits)


def test_scores_are_those_of_the_logits(data, finished):
    model, checkpoint = checkpoints.load_checkpoint(finished / "best.pth")
    patch_set = reading.open_split(data, "test")
    logits = evaluation.evaluate(model, patch_set, SETUP).logits
    truth = torch.from_numpy(patch_set.labels.astype(np.int64))
    confusion = torch.zeros(3, 3, dtype=torch.int64)
    loss, right = evaluation.score(model, patch_set, SETUP, confusion=confusion).T
    torch.testing.assert_close(loss, cross_entropy(logits, truth, reduction="none"))
    assert torch.equal(right.bool(), logits.argmax(1) == truth)
    assert 0 < right.mean() < 1
    for row, column in np.ndindex(3, 3):
        expected = ((truth == row) & (logits.argmax(1) == column)).sum()
        assert confusion[row, column] == expected


def test_tta_is_the_mean_over_the_eight_symmetries(data, finished, tmp_path):
    model, checkpoint = checkpoints.load_checkpoint(finished / "best.pth")
    patch_set = reading.open_split(data, "test_b")
    logits, features = evaluation.evaluate(model, patch_set, SETUP, tta=True)
    pixels = torch.from_numpy(patch_set.read(np.arange(len(patch_set))))
    images = transforms.normalise(pixels, networks.MEAN, networks.STD)
    with torch.inference_mode():
        views = [
            model(torch.rot90(view, k, (2, 3))).softmax(1)
            for view in (images, images.flip(3))
            for k in range(4)
        ]
    torch.testing.assert_close(logits.exp(), torch.stack(views).mean(0), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(logits.exp(), views[0], atol=1e-3)
    assert features.shape == (60, 512)
    out = tmp_path / "tta"
    flags = ["--checkpoint", finished / "best.pth", "--data", data, "--amp", "off", "--tta"]
    test_classification.main([str(flag) for flag in (*flags, "--out", out)])
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["tta"]
    accuracy = (logits.argmax(1).numpy() == patch_set.labels).mean()
    assert metrics["accuracy"] == pytest.approx(accuracy)


def test_a_network_that_overflows_is_refused_before_anything_is_written(data, finished, tmp_path):
    """NaN has a likeliest city, too: 'nan % (100 %)'."""
    content = torch.load(finished / "best.pth", weights_only=True)
    weight = content["model"]["fc.weight"]
    content["model"]["fc.weight"] = torch.full_like(weight, 3e38)
    torch.save(content, tmp_path / "best.pth")
    raster = data.parent / "raw" / "Cc (CCC)" / "site2" / "2020.png"
    out = tmp_path / "out"
    flags = ["--checkpoint", tmp_path / "best.pth", "--data", data, "--out", out]
    calls = [
        (test_classification.main, ["--amp", "off"], "float32; take another checkpoint"),
        (test_classification.main, ["--amp", "bf16"], "bfloat16; try --amp off"),
        (test_classification.main, ["--amp", "off", "--images", raster], "float32"),
        (relevance_cam.main, ["--per-city", 1], "float32"),
        (relevance_cam.main, ["--raster", raster], "float32"),
        (relevance_cam.main, ["--raster", raster, "--target", "AAA"], "float32"),
    ]
    for main, more, said in calls:
        with pytest.raises(InputError, match=f"--checkpoint: .* not finite in {said}"):
            main([str(flag) for flag in (*flags, *more)])
    # But a lock, perhaps.
    assert not [path for path in out.rglob("[!.]*") if path.is_file()]
