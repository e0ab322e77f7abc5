"""Grad-CAM, Grad-CAM++ and Score-CAM against their papers' formulas, on an untouched model.

And a planted object that all methods must find.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from tqdm import tqdm

from relevance_cam import GradCAM, GradCAMPlusPlus, RelevanceCAM, ScoreCAM
from relevance_cam.maps import place

LAYERS = ("layer1", "layer2", "layer3", "layer4")


def net(block=Bottleneck, classes=5):
    """A small ResNet whose running statistics and logits are those of no fresh network."""
    torch.manual_seed(0)
    model = ResNet(block, [1, 1, 2, 1], num_classes=classes)
    with torch.no_grad():
        model(torch.randn(8, 3, 64, 64))
        model.fc.weight *= 5
    return model.double().eval()


def images(n, *size):
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def hooked(model, x):
    """Logits, and the outputs of the stages, by forward hooks."""
    outputs = {}
    hooks = [
        getattr(model, name).register_forward_hook(
            lambda _, __, out, name=name: outputs.__setitem__(name, out)
        )
        for name in LAYERS
    ]
    logits = model(x)
    for hook in hooks:
        hook.remove()
    return logits, outputs


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_grad_cam_formula(block):
    model, x, target = net(block), images(3, 64, 80), [4, 0, 2]
    logits, outputs = hooked(model, x)
    maps, ours = GradCAM(model)(x, target)
    torch.testing.assert_close(ours, logits.detach(), rtol=1e-12, atol=0)
    # The ReLU leaves something to compare.
    assert sum(bool(m.any()) for name in LAYERS for m in maps[name]) >= 4
    for name in LAYERS:
        for i, k in enumerate(target):
            gradient = torch.autograd.grad(logits[i, k], outputs[name], retain_graph=True)[0][i]
            expected = (
                sum(gradient[c].mean() * outputs[name][i, c] for c in range(len(gradient)))
                .clamp(min=0)
                .detach()
            )
            assert (maps[name][i] - expected).norm() <= 1e-6 * expected.norm(), (name, i)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_grad_cam_plus_plus_formula(block):
    """The first derivative of Y = exp(S) by autograd, the second and third from it.

    They are Y g^2 and Y g^3 with g = dY / dA / Y.
    """
    model, x, target = net(block), images(3, 64, 80), [4, 0, 2]
    logits, outputs = hooked(model, x)
    maps, _ = GradCAMPlusPlus(model)(x, target)
    for name in LAYERS:
        for i, k in enumerate(target):
            a, y = outputs[name][i].detach(), logits[i, k].exp()
            first = torch.autograd.grad(y, outputs[name], retain_graph=True)[0][i]
            y = y.detach()
            second, third = first**2 / y, first**3 / y**2
            bottom = 2 * second + a.sum((1, 2), keepdim=True) * third
            alpha = second / torch.where(bottom == 0, 1, bottom)
            weight = (alpha * first.clamp(min=0)).sum((1, 2))
            expected = (weight[:, None, None] * a).sum(0).clamp(min=0)
            assert expected.any()
            assert (maps[name][i] - expected).norm() <= 1e-6 * expected.norm(), (name, i)


def test_grad_cam_plus_plus_derivatives_by_autograd():
    """The closed forms of the second and third derivative, on a head that autograd can derive."""
    a = torch.rand(3, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, dtype=torch.float64)
    y = (a.mean((1, 2)) @ weight).exp()
    first = torch.autograd.grad(y, a, create_graph=True)[0]
    second = torch.autograd.grad(first[1, 0, 0], a, create_graph=True)[0][1, 0, 0]
    third = torch.autograd.grad(second, a)[0][1, 0, 0]
    g = weight[1] / 4
    torch.testing.assert_close(second, y * g**2)
    torch.testing.assert_close(third, y * g**3)


def test_grad_cam_plus_plus_of_a_huge_logit_is_finite():
    model = net(BasicBlock).float()
    model.fc.bias.data += 500
    maps, _ = GradCAMPlusPlus(model)(images(1, 64, 64).float())
    assert all(m.isfinite().all() and m.any() for m in maps.values())


def test_score_cam_against_a_slow_loop():
    model, x = net(BasicBlock), images(1, 33, 40)
    layers, target = ("layer1", "layer2"), [3]
    maps, logits = ScoreCAM(model, layers, batch_size=37)(x, target)
    with torch.no_grad():
        expected_logits, outputs = hooked(model, x)
        baseline = model(torch.zeros_like(x[:1]))[0]
        torch.testing.assert_close(logits, expected_logits, rtol=1e-12, atol=0)
        for name in layers:
            for i, k in enumerate(target):
                scores = []
                for channel in outputs[name][i]:
                    mask = F.interpolate(
                        channel[None, None], (33, 40), mode="bilinear", align_corners=False
                    )[0]
                    height = mask.max() - mask.min()
                    mask = (mask - mask.min()) / height if height > 0 else 0 * mask
                    scores.append(model((x[i] * mask)[None])[0, k] - baseline[k])
                weight = torch.stack(scores).exp()
                expected = (
                    ((weight / weight.sum())[:, None, None] * outputs[name][i]).sum(0).clamp(min=0)
                )
                torch.testing.assert_close(maps[name][i], expected, rtol=1e-9, atol=1e-12)


def test_score_cam_progress_bar(capsys):
    ScoreCAM(net(BasicBlock), "layer1", progress=tqdm)(images(1, 32, 32))
    assert "Score-CAM" in capsys.readouterr().err
    ScoreCAM(net(BasicBlock), "layer1")(images(1, 32, 32))
    assert capsys.readouterr().err == ""


# A planted object: 3-channel mosaics of cells at random +1 or -1. Class k has +1 everywhere in
# channel k of one square, so the square is no brighter than the rest, and nothing else tells the
# class.

SIZE, SQUARE, CELL, CLASSES = 192, 64, 8, 3


def mosaics(n, seed):
    """Images (n, 3, SIZE, SIZE), classes (n,), and the square's upper left pixel (n, 2)."""
    generator = torch.Generator().manual_seed(seed)
    cells = (
        torch.randint(0, 2, (n, 3, SIZE // CELL, SIZE // CELL), generator=generator).float() * 2 - 1
    )
    target = torch.arange(n) % CLASSES
    corner = torch.randint(0, (SIZE - SQUARE) // CELL + 1, (n, 2), generator=generator)
    for i, (row, col) in enumerate(corner.tolist()):
        cells[i, target[i], row : row + SQUARE // CELL, col : col + SQUARE // CELL] = 1
    return (
        cells.repeat_interleave(CELL, 2)
        .repeat_interleave(CELL, 3)
        .contiguous(memory_format=torch.channels_last),
        target,
        corner * CELL,
    )


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES).to(
        memory_format=torch.channels_last
    )
    x, target, _ = mosaics(256, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for batch in torch.randperm(len(x)).split(16):
        loss = F.cross_entropy(model(x[batch]), target[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def hits(method, model, x, target, corner):
    """{layer: fraction of the images whose map has its peak inside the square}."""
    maps, _ = method(model, LAYERS)(x, target)
    found = {}
    for name in LAYERS:
        peak = place(maps[name], (SIZE, SIZE)).flatten(1).argmax(1)
        spot = torch.stack([peak // SIZE, peak % SIZE], 1)
        found[name] = ((spot >= corner) & (spot < corner + SQUARE)).all(1).float().mean().item()
    return found


@pytest.mark.parametrize("method", [RelevanceCAM, GradCAM, GradCAMPlusPlus])
def test_planted_object_is_found(trained, method):
    x, target, corner = mosaics(60, seed=1)
    with torch.no_grad():
        assert (trained(x).argmax(1) == target).float().mean() >= 0.95
    found = hits(method, trained, x, target, corner)
    assert found["layer3"] >= 0.9 and found["layer4"] >= 0.9, found


def test_planted_object_is_not_found_with_shuffled_weights(trained):
    x, target, corner = mosaics(60, seed=1)
    found = []
    for seed in range(3):
        shuffled, generator = copy.deepcopy(trained), torch.Generator().manual_seed(seed)
        for parameter in shuffled.parameters():
            parameter.data = parameter.data.flatten()[
                torch.randperm(parameter.numel(), generator=generator)
            ].view(parameter.shape)
        found.append(hits(RelevanceCAM, shuffled, x, target, corner))
    chance = (SQUARE / SIZE) ** 2
    for name in "layer3", "layer4":
        assert sum(hit[name] for hit in found) / len(found) <= chance + 0.15, found
