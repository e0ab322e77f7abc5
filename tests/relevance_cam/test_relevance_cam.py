"""Relevance-CAM: the published numbers, and every rule against the slow way.

And that a model is left as it was.

golden.npz holds what the published code gives in float64 for ResNets with weights and images made
by `golden_net` and `golden_images`: keys <net>/<argmax|class7>/<layer> (2, 1, h, w) and
<net>/logits (2, 45).
"""

import copy
import functools
import gc
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from relevance_cam import GradCAM, GradCAMPlusPlus, RelevanceCAM, ScoreCAM, rules
from relevance_cam import relevance_cam as implementation

LAYERS = ("layer1", "layer2", "layer3", "layer4")
GOLDEN = np.load(Path(__file__).parent / "golden.npz")
METHODS = [RelevanceCAM, GradCAM, GradCAMPlusPlus, ScoreCAM]


def draw_weights(model, seed):
    """Give the model weights that need no file: the recipe of the golden maps."""
    rng, state = np.random.default_rng(seed), model.state_dict()
    for key in sorted(state):
        shape = tuple(state[key].shape)
        if key.endswith("num_batches_tracked"):
            value = np.zeros(shape)
        elif key.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        elif key.endswith("running_mean"):
            value = rng.normal(0, 0.1, shape)
        elif len(shape) == 4:
            value = rng.normal(0, np.sqrt(2 / (shape[1] * shape[2] * shape[3])), shape)
        elif key in ("fc.weight", "fc.bias"):
            value = rng.normal(0, 0.05, shape)
        elif key.endswith("weight"):
            value = rng.uniform(0.4, 0.9, shape)
        else:
            value = rng.normal(0, 0.1, shape)
        state[key] = torch.from_numpy(np.asarray(value, np.float32)).to(state[key].dtype)
    model.load_state_dict(state)
    return model.eval()


def deep_net(arch, classes, seed):
    with torch.device("meta"):  # no time for an initialisation that is overwritten
        model = getattr(torchvision.models, arch)(num_classes=classes)
    return draw_weights(model.to_empty(device="cpu"), seed)


@functools.cache
def golden_net(arch):
    return deep_net(arch, 45, seed=int(arch[6:]))


@functools.cache
def golden_images():
    return torch.from_numpy(np.random.default_rng(7).normal(0, 1, (2, 3, 224, 224)))


def small_net(block=BasicBlock, classes=5, seed=0, **options):
    return draw_weights(ResNet(block, [1, 2, 1, 1], num_classes=classes, **options), seed)


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def error(ours, reference):
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape
    return np.linalg.norm(ours - reference) / np.linalg.norm(reference)


# The published numbers


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-5), (torch.float32, 1e-3)])
@pytest.mark.parametrize(
    "arch, name", [("resnet18", "argmax"), ("resnet50", "argmax"), ("resnet50", "class7")]
)
def test_golden_maps(arch, name, dtype, tolerance):
    model = copy.deepcopy(golden_net(arch)).to(dtype)
    maps, logits = RelevanceCAM(model)(golden_images().to(dtype), None if name == "argmax" else 7)
    assert tuple(maps) == LAYERS and logits.dtype == dtype
    assert error(logits, GOLDEN[f"{arch}/logits"]) < tolerance
    for layer in LAYERS:
        assert maps[layer].dtype == dtype
        assert error(maps[layer], GOLDEN[f"{arch}/{name}/{layer}"][:, 0]) < tolerance, layer
    assert len(GOLDEN) == 14  # no golden map is left out: 3 x 4 maps and 2 logits


@pytest.mark.parametrize("autocast", [False, True])
def test_golden_maps_in_bfloat16(autocast):
    model, images = copy.deepcopy(golden_net("resnet18")), golden_images().float()
    if not autocast:
        model, images = model.bfloat16(), images.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        maps, logits = RelevanceCAM(model)(images)
    assert logits.dtype == torch.bfloat16
    for layer in LAYERS:
        assert maps[layer].dtype == torch.float32
        assert error(maps[layer], GOLDEN[f"resnet18/argmax/{layer}"][:, 0]) < 0.03, layer


# The slow way: relevance itself, every rule as the paper has it, convolutions by autograd, both
# halves of z+.


def divide(a, b):
    return torch.where(b == 0, torch.zeros_like(a), a / torch.where(b == 0, torch.ones_like(b), b))


def zplus(layer, x, weight, relevance):
    """x+ w+ and x- w-, each input its share of the outputs' relevance.

    layer(x, weight) is the layer without its bias.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        z = layer(x.clamp(min=0), weight.clamp(min=0)) + layer(x.clamp(max=0), weight.clamp(max=0))
        return x.detach() * torch.autograd.grad(z, x, divide(relevance, z.detach()))[0]


def slow_relevance(model, images, target):
    """{layer: relevance (N, C, h, w)}, {layer: activation}."""

    def convolution(conv):
        return lambda x, weight: F.conv2d(
            x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups
        )

    def chain(block):
        return [
            (getattr(block, f"conv{k}"), getattr(block, f"bn{k}"))
            for k in (1, 2, 3)
            if hasattr(block, f"conv{k}")
        ]

    with torch.no_grad():
        x = model.maxpool(model.bn1(model.conv1(images)).relu())
        tape, activations = [], {}
        for name in LAYERS:
            for block in getattr(model, name):
                inputs, y = [], x
                for conv, bn in chain(block):
                    inputs.append(y)
                    y = bn(conv(y))
                    if conv is not chain(block)[-1][0]:
                        y = y.relu()
                shortcut = x if block.downsample is None else block.downsample(x)
                tape.append((name, block, x, inputs, y, shortcut))
                x = (y + shortcut).relu()
            activations[name] = x
        pooled = x.mean((2, 3))
        logits = model.fc(pooled)
        relevance = torch.full_like(logits, -1 / logits.shape[1])
        relevance[range(len(images)), target] = 1
        relevance = zplus(F.linear, pooled, model.fc.weight, relevance)
        relevance = x * divide(relevance, x.sum((2, 3)))[:, :, None, None]
        found = {}
        for name, block, x, inputs, y, shortcut in reversed(tape):
            found.setdefault(name, relevance)
            main, side = (
                y * divide(relevance, y + shortcut),
                shortcut * divide(relevance, y + shortcut),
            )
            steps = zip(chain(block), inputs, strict=True)
            for (conv, _), given in reversed(list(steps)):
                main = zplus(convolution(conv), given, conv.weight, main)
            if block.downsample is not None:
                side = zplus(convolution(block.downsample[0]), x, block.downsample[0].weight, side)
            relevance = main + side
    return found, activations


def check_against_slow(model, images, target, tolerance=1e-9):
    relevance, activations = slow_relevance(model, images, target)
    maps, _ = RelevanceCAM(model)(images, target)
    for layer in LAYERS:
        expected = (relevance[layer].mean((2, 3), keepdim=True) * activations[layer]).sum(1)
        assert error(maps[layer], expected.detach()) < tolerance, layer


@pytest.mark.parametrize("arch", ["resnet34", "resnet101", "resnet152"])
def test_deeper_nets_against_the_slow_way(arch):
    model = deep_net(arch, 7, seed=1).double()
    check_against_slow(model, noise(2, 3, 64, 64, dtype=torch.float64), [3, 5])


@pytest.mark.parametrize("size", [(160, 224), (97, 131), (33, 32)])
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_any_input_size(block, size):
    check_against_slow(small_net(block).double(), noise(2, 3, *size, dtype=torch.float64), [0, 4])


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 4, "width_per_group": 16},
        {"width_per_group": 128},
        {"replace_stride_with_dilation": [False, True, True]},
        {"norm_layer": torchvision.ops.FrozenBatchNorm2d},
    ],
    ids=["resnext", "wide", "dilated", "frozen"],
)
def test_other_residual_nets_against_the_slow_way(options):
    check_against_slow(
        small_net(Bottleneck, **options).double(), noise(2, 3, 33, 40, dtype=torch.float64), [0, 1]
    )


def test_biases_get_no_relevance_and_dead_channels_none():
    model = small_net().double()
    block = model.layer3[0]
    block.conv1.bias = nn.Parameter(noise(256, seed=3, dtype=torch.float64))
    block.bn1 = nn.BatchNorm2d(256, affine=False).double().eval()
    block.conv2.weight.data[:100] = -1e-3
    block.bn2.bias.data[:100] = 1  # z = 0, although y > 0
    check_against_slow(model, noise(2, 3, 64, 64, dtype=torch.float64), [0, 1])


# One rule at a time, by loops


@pytest.mark.parametrize(
    "kernel, stride, padding, dilation, groups",
    [
        (1, 1, 0, 1, 1),
        (1, 2, 0, 1, 1),
        (3, 1, 1, 1, 1),
        (3, 2, 1, 1, 1),
        (3, 2, 1, 1, 2),
        (3, 1, 2, 2, 1),
        (3, (2, 1), (0, 1), 1, 1),
    ],
)
@pytest.mark.parametrize("size", [(5, 6), (6, 7)])
def test_convolution_rule_by_loops(kernel, stride, padding, dilation, groups, size):
    conv = nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups, bias=False).double()
    weight = conv.weight.detach()
    weight[1] = -weight[1].abs()  # an output that nothing reaches: its relevance is lost
    x = noise(1, 4, *size, seed=1, dtype=torch.float64).relu()
    relevance = noise(1, 6, *conv(x).shape[2:], seed=2, dtype=torch.float64)
    z = rules.conv(x, rules.positive(weight), conv)
    ours = x * rules.conv_transposed(
        rules.safe_divide(relevance, z), rules.positive(weight), conv, size
    )

    x, relevance, expected = x[0].numpy(), relevance[0].numpy(), np.zeros((4, *size))
    lost = 0
    for k, i, j in np.ndindex(relevance.shape):
        shares = {}
        for c, a, b in np.ndindex(4 // groups, *conv.kernel_size):
            row = i * conv.stride[0] - conv.padding[0] + a * conv.dilation[0]
            col = j * conv.stride[1] - conv.padding[1] + b * conv.dilation[1]
            channel = k // (6 // groups) * (4 // groups) + c
            if 0 <= row < size[0] and 0 <= col < size[1]:
                shares[channel, row, col] = x[channel, row, col] * max(weight[k, c, a, b].item(), 0)
        total = sum(shares.values())
        lost += 0 if total else relevance[k, i, j]
        for place, value in shares.items():
            expected[place] += value / total * relevance[k, i, j] if total else 0
    np.testing.assert_allclose(ours[0].numpy(), expected, rtol=1e-10, atol=1e-12)
    assert np.isclose(
        expected.sum(), relevance.sum() - lost
    )  # conserved, but for outputs whose z is 0


def test_linear_rule_by_loops():
    x, weight, relevance = (
        noise(*shape, seed=i, dtype=torch.float64)
        for i, shape in enumerate([(2, 9), (4, 9), (2, 4)])
    )
    x, weight[3] = x.relu(), -1  # the last output gets nothing from any input
    ours = x * rules.linear(x, weight, relevance)
    expected, lost = np.zeros((2, 9)), np.zeros(2)
    for n, k in np.ndindex(2, 4):
        shares = np.array([x[n, c].item() * max(weight[k, c].item(), 0) for c in range(9)])
        if shares.sum():
            expected[n] += shares / shares.sum() * relevance[n, k].item()
        else:
            lost[n] += relevance[n, k].item()
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    np.testing.assert_allclose(
        ours.sum(1).numpy() + lost, relevance.sum(1)
    )  # conserved, but for outputs whose z is 0


def test_residual_rule():
    a, b, c = (noise(2, 3, 4, 4, seed=i, dtype=torch.float64) for i in range(3))
    b[0, 0] = -a[0, 0]  # sums of 0
    out = (a + b).relu()
    relevance = out * c
    passed = rules.residual(c.clone(), out)
    torch.testing.assert_close(a * passed, a * divide(relevance, a + b))
    torch.testing.assert_close(b * passed, b * divide(relevance, a + b))
    torch.testing.assert_close((a + b) * passed, relevance)  # conserved


def test_start():
    expected = [[-0.25, -0.25, 1, -0.25], [1, -0.25, -0.25, -0.25]]
    assert rules.start(torch.zeros(2, 4), torch.tensor([2, 0])).tolist() == expected
    assert rules.start(torch.zeros(2, 1), torch.tensor([0, 0])).tolist() == [[1], [1]]


def test_layer4_is_head_and_pooling_rule_only():
    """Pooling shares in proportion to the inputs.

    So the mean relevance of a channel is what the linear rule gives its mean / (h w).
    """
    model, images = small_net().double(), noise(2, 3, 96, 64, dtype=torch.float64)
    x = model.layer4(
        model.layer3(
            model.layer2(model.layer1(model.maxpool(model.bn1(model.conv1(images)).relu())))
        )
    ).detach()
    pooled, weight = x.mean((2, 3)), model.fc.weight.detach().clamp(min=0)
    start = torch.tensor([[1, -0.2, -0.2, -0.2, -0.2]] * 2, dtype=torch.float64)
    relevance = pooled * ((start / (pooled @ weight.T)) @ weight)
    maps, _ = RelevanceCAM(model, "layer4")(images, 0)
    assert tuple(maps) == ("layer4",)
    assert error(maps["layer4"], torch.einsum("nc,nchw->nhw", relevance / 6, x)) < 1e-12


def test_relevance_is_conserved(monkeypatch):
    """Every rule conserves relevance, but an output whose z is 0 has nobody to give it to.

    Logits hold 1 - (K - 1) / K = 1 / K.
    """
    totals = []
    weigh = implementation.weigh
    monkeypatch.setattr(
        implementation,
        "weigh",
        lambda x, c: (totals.append((x * c).sum((1, 2, 3))), weigh(x, c))[1],
    )
    for block in BasicBlock, Bottleneck:
        model = small_net(block).double()
        RelevanceCAM(model)(noise(2, 3, 65, 80, dtype=torch.float64), [1, 2])
    assert len(totals) == 8
    np.testing.assert_allclose(torch.stack(totals), 1 / 5, rtol=1e-9)
    totals.clear()
    model.layer3[0].conv2.weight.data[:8] = -1e-3
    model.layer3[0].bn2.bias.data[:8] = 1
    RelevanceCAM(model)(noise(2, 3, 65, 80, dtype=torch.float64), [1, 2])
    layer4, layer3, layer2, layer1 = totals
    np.testing.assert_allclose(torch.stack([layer4, layer3]), 1 / 5, rtol=1e-9)
    assert ((layer2 - 1 / 5).abs() > 1e-4).all()  # lost below layer3's outputs
    np.testing.assert_allclose(layer1, layer2, rtol=1e-9)


# One pass, independent images


@pytest.mark.parametrize(
    "method, layers", [*((method, LAYERS) for method in METHODS[:3]), (ScoreCAM, ("layer1",))]
)
def test_batch_equals_one_by_one(method, layers):
    model, images = small_net().double(), noise(2, 3, 32, 40, dtype=torch.float64)
    maps, logits = method(model, layers)(images)
    chosen, _ = method(model, layers)(images, logits.argmax(1).tolist())
    for i in range(len(images)):
        alone, logit = method(model, layers)(images[i : i + 1])
        torch.testing.assert_close(logit, logits[i : i + 1], rtol=1e-12, atol=1e-12)
        for layer in layers:
            torch.testing.assert_close(alone[layer], maps[layer][i : i + 1], rtol=1e-9, atol=1e-15)
            torch.testing.assert_close(chosen[layer], maps[layer], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("method", METHODS[:3])
def test_any_choice_of_layers_gives_the_same_maps(method):
    model, images = small_net().double(), noise(2, 3, 32, 48, dtype=torch.float64)
    together, _ = method(model)(images)
    for layers in [
        ("layer1",),
        ("layer2",),
        ("layer3",),
        ("layer4",),
        ("layer4", "layer2"),
        ("layer3", "layer1", "layer3"),
    ]:
        maps, _ = method(model, layers)(images)
        assert set(maps) == set(layers)
        for layer in layers:
            torch.testing.assert_close(maps[layer], together[layer], rtol=1e-10, atol=1e-15)


def test_no_more_work_than_the_shallowest_layer_needs(monkeypatch):
    calls = []
    transposed = rules.conv_transposed
    monkeypatch.setattr(
        rules, "conv_transposed", lambda *args: (calls.append(1), transposed(*args))[1]
    )
    model = small_net()
    for layers, count in [("layer4", 0), (("layer3", "layer4"), 3), (("layer2",), 6), (LAYERS, 11)]:
        RelevanceCAM(model, layers)(noise(1, 3, 64, 64))
        assert len(calls) == count
        calls.clear()


@pytest.mark.parametrize(
    "target", [2, [0, 4, 2], torch.tensor([0, 4, 2]), np.array([0, 4, 2]), np.int64(1)], ids=repr
)
def test_kinds_of_target(target):
    model, images = small_net().double(), noise(3, 3, 64, 64, dtype=torch.float64)
    maps, _ = RelevanceCAM(model)(images, target)
    for i, k in enumerate(np.broadcast_to(np.asarray(target), 3).tolist()):
        alone, _ = RelevanceCAM(model)(images[i : i + 1], k)
        assert error(maps["layer1"][i], alone["layer1"][0]) < 1e-9
    others, _ = RelevanceCAM(model)(images, 3)
    assert error(others["layer1"], maps["layer1"]) > 1e-3


@pytest.mark.parametrize("method", METHODS[:3])
def test_channels_last_inference_mode_and_autograd_change_nothing(method):
    model, images = small_net(Bottleneck), noise(2, 3, 64, 64)
    expected, logits = method(model)(images)
    assert not logits.requires_grad and not any(m.requires_grad for m in expected.values())
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    frozen = copy.deepcopy(model).requires_grad_(False)
    for net, mode, image in [
        (last, torch.no_grad, images.contiguous(memory_format=torch.channels_last)),
        (last, torch.enable_grad, images),
        (frozen, torch.inference_mode, images),
        (frozen, torch.enable_grad, images.clone().requires_grad_()),
        (model, torch.inference_mode, images),
    ]:
        with mode():
            maps, _ = method(net)(image + 0)  # + 0: a tensor made in this mode
        for layer in LAYERS:
            assert error(maps[layer].numpy(), expected[layer]) < 1e-5, layer


def test_score_cam_under_inference_mode():
    model, images = small_net(), noise(1, 3, 32, 32)
    expected, _ = ScoreCAM(model, "layer1")(images)
    with torch.inference_mode():
        maps, _ = ScoreCAM(model, "layer1")(images + 0)
    assert error(maps["layer1"].numpy(), expected["layer1"]) < 1e-5


@pytest.mark.parametrize(
    "method, layers", [*((method, LAYERS) for method in METHODS[:3]), (ScoreCAM, "layer1")]
)
def test_a_plain_image_and_a_single_class_give_finite_maps(method, layers):
    model = small_net(classes=1)
    for images in torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), 2.5), noise(1, 3, 1, 1):
        maps, logits = method(model, layers)(images)
        assert logits.shape == (1, 1) and all(m.isfinite().all() for m in maps.values())


# The model is left as it was


def snapshot(model):
    """Everything a method could leave behind in a model."""
    hooks = [name for name in vars(model) if "hook" in name]
    return [
        {
            "name": name,
            "attributes": list(vars(module)),
            "plain": {
                key: value
                for key, value in vars(module).items()
                if isinstance(value, (int, float, str, bool, tuple, type(None)))
            },
            "forward": module.forward.__func__,
            "hooks": [
                len(vars(module)[hook]) for hook in hooks if isinstance(vars(module)[hook], dict)
            ],
            "tensors": {
                key: (
                    id(tensor),
                    tensor._version,
                    tensor.requires_grad,
                    tensor.grad is None,
                    tensor.stride(),
                    tensor.detach().numpy().tobytes(),
                )
                for key, tensor in itertools.chain(
                    module.named_parameters(recurse=False), module.named_buffers(recurse=False)
                )
            },
        }
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("method", METHODS)
def test_model_is_left_as_it_was(method):
    model = small_net()
    model.layer2.requires_grad_(False)
    before = snapshot(model)
    images = noise(2, 3, 32, 32)
    kept = images.clone()
    method(model, ("layer1", "layer2"))(images, [0, 1])
    assert snapshot(model) == before and torch.equal(images, kept)


@pytest.mark.parametrize(
    "method, owner, name",
    [
        (RelevanceCAM, rules, "conv_transposed"),
        (GradCAM, torch.autograd, "grad"),
        (ScoreCAM, F, "interpolate"),
    ],
)
def test_model_is_left_as_it_was_after_a_failure_in_the_middle(method, owner, name, monkeypatch):
    model, function, calls = small_net(Bottleneck), getattr(owner, name), itertools.count()

    def broken(*args, **options):
        if owner is torch.autograd or next(calls) == 3:
            raise MemoryError("in the middle")
        return function(*args, **options)

    before = snapshot(model)
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(MemoryError, match="in the middle"):
        method(model)(noise(1, 3, 32, 32))
    assert snapshot(model) == before


def test_hooks_of_the_user_stay_and_do_not_fire():
    model, fired = small_net(), []
    for module in model.modules():
        module.register_forward_hook(lambda *_: fired.append(1))
    before = snapshot(model)
    RelevanceCAM(model)(noise(1, 3, 32, 32))
    assert not fired and snapshot(model) == before


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
@pytest.mark.parametrize("method", METHODS[:2])
def test_memory_does_not_grow(method):
    def megabytes():
        gc.collect()
        return (
            int(Path("/proc/self/statm").read_text().split()[1])
            * os.sysconf("SC_PAGE_SIZE")
            / 2**20
        )

    def tensors():
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    model, images = small_net(), noise(2, 3, 32, 32)  # the weights are 20 MB, and 20 MB as w+
    cam = method(model)
    for _ in range(10):
        cam(images)
    before, count = megabytes(), tensors()
    for _ in range(60):
        cam(images)
    assert megabytes() - before < 60
    assert tensors() <= count


# What is refused


def change(path, module):
    def edit(model):
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, name, module)
        return model

    return edit


@pytest.mark.parametrize(
    "edit, named",
    [
        (change("fc", nn.Identity()), "fc"),
        (change("fc", nn.Sequential(nn.Dropout(), nn.Linear(512, 5))), "fc"),
        (change("layer2.1.conv2", nn.ConvTranspose2d(128, 128, 3)), "layer2.1.conv2"),
        (
            change("layer2.1.conv2", nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect")),
            "layer2.1.conv2",
        ),
        (change("layer3.0.bn1", nn.GroupNorm(8, 256)), "layer3.0.bn1"),
        (change("layer3.0.bn1", nn.BatchNorm2d(256, track_running_stats=False)), "layer3.0.bn1"),
        (change("layer3.0.relu", nn.GELU()), "layer3.0.relu"),
        (change("layer4.0", nn.Identity()), "layer4.0"),
        (change("layer4", nn.Identity()), "layer4"),
        (change("layer4.0.downsample", nn.Identity()), "layer4.0.downsample"),
        (change("layer4.0.downsample.0", nn.AvgPool2d(2)), "layer4.0.downsample.0"),
        (change("avgpool", nn.AdaptiveMaxPool2d(1)), "avgpool"),
        (change("avgpool", nn.AdaptiveAvgPool2d(2)), "avgpool"),
        (change("relu", nn.Sigmoid()), "relu"),
        (change("conv1", nn.Identity()), "conv1"),
        (lambda model: torchvision.models.mobilenet_v3_small(), "MobileNetV3"),
        (lambda model: nn.DataParallel(model), "model.module"),
        (
            lambda model: type("Changed", (ResNet,), {"forward": lambda self, x: x})(
                BasicBlock, [1, 1, 1, 1]
            ),
            "Changed",
        ),
    ],
)
def test_models_it_cannot_explain(edit, named):
    model = edit(small_net())
    for method in METHODS:
        with pytest.raises(TypeError, match=named.replace(".", r"\.")):
            method(model)


def test_a_model_changed_after_construction_is_refused_too():
    model = small_net()
    cam = RelevanceCAM(model)
    model.fc = nn.Identity()
    with pytest.raises(TypeError, match="fc"):
        cam(noise(1, 3, 32, 32))


@pytest.mark.parametrize("method", METHODS)
def test_wrong_arguments(method):
    model, images = small_net(), noise(2, 3, 32, 32)
    for layers, message in [
        ("layer5", "layer5.*layer1, layer2, layer3, layer4"),
        (("layer1", "fc"), "fc"),
        ((), "layer1"),
    ]:
        with pytest.raises(ValueError, match=message):
            method(model, layers)
    for target in (5, -1, [0, 5], [0], [0, 1, 2], 1.0, [[0, 1]], [True, False], "ALA"):
        with pytest.raises(ValueError, match="target|class"):
            method(model)(images, target)
    for wrong in (images[0], images.long(), images[:0], images.numpy()):
        with pytest.raises(ValueError, match="images"):
            method(model)(wrong)
    model.layer3[0].bn2.train()
    with pytest.raises(ValueError, match=r"layer3\.0\.bn2.*eval"):
        method(model)(images)
    assert model.layer3[0].bn2.training


def test_half_precision_is_refused():
    with pytest.raises(TypeError, match="float16"):
        RelevanceCAM(small_net().half())(noise(1, 3, 32, 32).half())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_golden_maps_on_cuda(memory_format):
    for dtype, tolerance in [(torch.float64, 1e-5), (torch.float32, 1e-3), (torch.bfloat16, 0.05)]:
        model = copy.deepcopy(golden_net("resnet50")).to("cuda", dtype, memory_format=memory_format)
        with torch.backends.cudnn.flags(allow_tf32=False):
            maps, logits = RelevanceCAM(model)(golden_images().to("cuda", dtype), 7)
        assert logits.device.type == "cuda"
        for layer in LAYERS:
            assert error(maps[layer].cpu(), GOLDEN[f"resnet50/class7/{layer}"][:, 0]) < tolerance, (
                dtype,
                layer,
            )
