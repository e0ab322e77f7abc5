"""The numbers of relevance_cam.quality against examples worked out by hand on a simple model."""

import copy
import csv
import functools
import io
import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from relevance_cam import GradCAM, RelevanceCAM, quality
from relevance_cam.maps import mask, scale


class Corner(nn.Module):
    """Two classes: class 1 has the logarithm of 3 for logit when the upper left pixel is 1.

    That is the pixel of the first channel; class 0 always has the logit 0.
    """

    def forward(self, images):
        return torch.stack([torch.zeros(len(images)), images[:, 0, 0, 0] * math.log(3)], 1).to(
            images
        )


def ones(n, size=4):
    return torch.ones(n, 1, size, size)


def corner_map(*values):
    """Maps (n, 4, 4) with the given value at the upper left, and 0 ... 1 elsewhere."""
    maps = torch.linspace(0, 1, 16).view(1, 4, 4).repeat(len(values), 1, 1)
    maps[:, 0, 1], maps[:, 0, 0] = 0, torch.tensor(values)
    return maps


def test_scale():
    maps = torch.tensor([[[1.0, 2.0], [3.0, 5.0]], [[-4.0, -4.0], [-4.0, -4.0]]])
    assert scale(maps).tolist() == [[[0, 0.25], [0.5, 1]], [[0, 0], [0, 0]]]
    assert scale(maps[0]).tolist() == [[0, 0.25], [0.5, 1]]


def test_mask():
    rows = torch.tensor(
        [
            [[0.0, 0.0, 0.0, 4.0]],
            [[0.1, 0.1, 0.1, 0.1]],
            [[1.0, 3.0, 1.0, 3.0]],
            [[0.0, 0.1, 5.2, 5.7]],
        ]
    )
    # Above 1 + 1.73; constant: nothing; above 2 + 1: nothing; above 2.75 + 2.71 (2.75 + 3.12 with
    # the sample's deviation).
    last = [False, False, False, True]
    assert mask(rows).tolist() == [[last], [[False] * 4], [[False] * 4], [last]]


def test_drop_and_increase():
    # The class has 3 / 4 for the whole image. Seen at half strength the corner gives
    # sqrt(3) / (1 + sqrt(3)), hidden 1 / 2.
    drop, increase = quality.drop_and_increase(
        Corner().eval(), ones(3), corner_map(1.0, 0.5, 0.0), 1
    )
    half = math.sqrt(3) / (1 + math.sqrt(3))
    np.testing.assert_allclose(drop, [0, (0.75 - half) / 0.75, (0.75 - 0.5) / 0.75], atol=1e-6)
    assert increase.tolist() == [0, 0, 0]
    drop, increase = quality.drop_and_increase(
        Corner().eval(), ones(3), corner_map(1.0, 0.5, 0.0), [0, 0, 1]
    )
    np.testing.assert_allclose(drop, [0, 0, 1 / 3], atol=1e-6)
    assert increase.tolist() == [0, 1, 0]


def test_deletion_and_insertion():
    # Corner first: 3/4 at the start, 1/2 from the first of 4 steps on. Corner last: 3/4 until the
    # last.
    model = Corner().eval()
    first = corner_map(2.0)
    last = corner_map(-1.0)
    area = quality.deletion(model, ones(1), first, 1, steps=4)
    assert area == pytest.approx([(0.75 / 2 + 3 * 0.5 + 0.5 / 2) / 4])
    area = quality.deletion(model, ones(1), last, 1, steps=4)
    assert area == pytest.approx([(0.75 / 2 + 3 * 0.75 + 0.5 / 2) / 4])
    area = quality.deletion(model, ones(1), last, 1, steps=4, baseline=1.0)
    assert area == pytest.approx([0.75])
    # Blurred, the corner of one bright pixel in a dark image is almost dark.
    bright = torch.zeros(2, 1, 32, 32)
    bright[:, 0, 0, 0] = 1
    maps = torch.zeros(2, 32, 32)
    maps[0, 0, 0], maps[1, 0, 0] = 1, -1
    area = quality.insertion(Corner().eval(), bright, maps, 1, steps=4)
    np.testing.assert_allclose(
        area, [(0.5 / 2 + 3 * 0.75 + 0.75 / 2) / 4, (0.5 / 2 + 3 * 0.5 + 0.75 / 2) / 4], atol=4e-3
    )


def test_deletion_removes_equal_shares_in_order():
    seen = []

    class Count(nn.Module):
        def forward(self, images):
            seen.append(images[:, 0].clone())
            return torch.zeros(len(images), 2)

    maps = torch.arange(16.0).view(1, 4, 4)
    quality.deletion(Count().eval(), ones(1), maps, 0, steps=8)
    assert [int(16 - x.sum()) for x in seen[1:]] == list(range(0, 17, 2))
    assert seen[2].flatten().tolist() == [1] * 14 + [0] * 2
    seen.clear()
    # Equal pixels row by row.
    quality.deletion(Count().eval(), ones(1), torch.zeros(1, 4, 4), 0, steps=4)
    assert seen[2].flatten().tolist() == [0] * 4 + [1] * 12


def test_spearman_is_scipys():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 6, (2, 5, 7)).astype(float)
        assert quality.spearman(torch.tensor(a), torch.tensor(b)) == pytest.approx(
            spearmanr(a.ravel(), b.ravel()).statistic
        )
    assert quality.spearman(torch.tensor(a), torch.tensor(a) ** 3) == pytest.approx(1)
    assert math.isnan(quality.spearman(torch.tensor(a), torch.ones(5, 7)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4)
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(8, 3, 64, 64))
    return model.eval()


IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_randomisation_goes_from_the_top_down_on_a_copy(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    seen = []

    def method(net, layers):
        seen.append({key: value.clone() for key, value in net.state_dict().items()})
        return RelevanceCAM(net, layers)

    result = quality.randomisation(model, method, IMAGES, layers=("layer2", "layer4"), seed=3)
    assert list(result) == ["fc", "layer4", "layer3", "layer2", "layer1", "conv1"]
    changed = [
        {key.split(".")[0] for key in before if not torch.equal(net[key], before[key])}
        for net in seen
    ]
    parts = list(result)
    assert changed[0] == set()
    for i in range(1, 6):
        assert changed[i] == set(parts[:i])
    assert changed[6] >= set(parts)
    for key in before:  # shuffled, not drawn anew
        assert torch.equal(seen[-1][key].flatten().sort()[0], before[key].flatten().sort()[0])
        assert torch.equal(model.state_dict()[key], before[key])
    for part in result:
        assert set(result[part]) == {"layer2", "layer4"}
        for values in result[part].values():
            assert values.shape == (3,) and (np.abs(values) <= 1).all()
    again = quality.randomisation(model, RelevanceCAM, IMAGES, layers=("layer2", "layer4"), seed=3)
    other = quality.randomisation(model, RelevanceCAM, IMAGES, layers=("layer2", "layer4"), seed=4)
    np.testing.assert_array_equal(again["fc"]["layer2"], result["fc"]["layer2"])
    assert not np.array_equal(other["fc"]["layer2"], result["fc"]["layer2"])


def test_randomisation_tells_a_map_of_the_model_from_one_of_the_image(model):
    """A method that looks at the image only fails: its rank correlation stays 1."""

    def edges(net, layers):
        return lambda images, target=None: (
            {name: images.diff(dim=2).abs().sum(1) for name in layers},
            net(images),
        )

    deaf = quality.randomisation(model, edges, IMAGES, layers=("layer3",))
    ours = quality.randomisation(model, RelevanceCAM, IMAGES, layers=("layer3",))
    assert all((np.abs(values["layer3"] - 1) < 1e-12).all() for values in deaf.values())
    assert np.abs(ours["conv1"]["layer3"]).max() < 0.9


def test_table(model):
    model = copy.deepcopy(model).double()
    images = IMAGES[..., :32, :48].double()
    layers = ("layer3", "layer4")
    settings = quality.Settings(steps=4, batch_size=2)
    row, second = quality.table(
        model, {"relevance-cam": RelevanceCAM}, images, layers=layers, settings=settings
    )
    assert (row["method"], row["layer"], row["images"]) == ("relevance-cam", "layer3", 3)
    assert second["layer"] == "layer4"
    maps, logits = RelevanceCAM(model, "layer3")(images)
    target = logits.argmax(1)
    drop, increase = quality.drop_and_increase(model, images, maps["layer3"], target)
    assert row["average_drop"] == pytest.approx(drop.mean())
    assert row["increase"] == pytest.approx(increase.mean())
    deletion = quality.deletion(model, images, maps["layer3"], target, 4)
    assert row["deletion"] == pytest.approx(deletion.mean())
    insertion = quality.insertion(model, images, maps["layer3"], target, 4)
    assert row["insertion"] == pytest.approx(insertion.mean())
    ranks = quality.randomisation(model, RelevanceCAM, images, target, ("layer3",))
    for part in "fc", "layer4", "layer3", "layer2", "layer1", "conv1":
        assert row[f"rank_{part}"] == pytest.approx(ranks[part]["layer3"].mean())
    csv.DictWriter(io.StringIO(), row).writerows([row, second])

    rows = quality.table(
        model,
        {"grad-cam": GradCAM, "b": RelevanceCAM},
        images,
        [0, 1, 2],
        ("layer4",),
        quality.Settings(steps=2, randomise=False),
    )
    assert [row["method"] for row in rows] == ["grad-cam", "b"]
    assert list(rows[0]) == [
        "method",
        "layer",
        "images",
        "average_drop",
        "increase",
        "deletion",
        "insertion",
    ]
    for wrong in [0, 1], [0, 1, 4]:
        with pytest.raises(ValueError, match="target"):
            quality.table(model, {"grad-cam": GradCAM}, images, wrong, ("layer4",))


@pytest.mark.parametrize(
    "measure", [quality.drop_and_increase, quality.deletion, quality.insertion]
)
def test_wrong_arguments(measure):
    images, maps = ones(2, 16), torch.rand(2, 4, 4)
    for wrong, target in [(maps[0], 0), (maps[:1], 0), (maps, 2), (maps, [0])]:
        with pytest.raises(ValueError):
            measure(Corner().eval(), images, wrong, target)
    with pytest.raises(ValueError, match="eval"):
        measure(Corner().train(), images, maps, 0)


def test_constant_maps_and_frozen_models_give_numbers(model):
    maps = torch.zeros(3, 2, 2)
    drop, increase = quality.drop_and_increase(model.requires_grad_(False), IMAGES, maps, None)
    with torch.inference_mode():
        areas = [
            functools.partial(f, steps=3)(model, IMAGES, maps, None)
            for f in (quality.deletion, quality.insertion)
        ]
    assert all(
        np.isfinite(values).all() and values.shape == (3,) for values in (drop, increase, *areas)
    )
