"""Relevance-CAM: layer-wise relevance, propagated to any stage, weighs the channels of that stage.

Lee, Kim, Park, Eo, Hwang: Relevance-CAM: Your Model Already Knows Where to Look. CVPR 2021,
14944-14953.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from . import rules
from .names import LAYERS
from .resnet import Target, check_eval, check_images, check_layers, check_model, check_target


class RelevanceCAM:
    """Relevance-CAM maps of a torchvision ResNet.

        maps, logits = RelevanceCAM(model, layers=("layer2", "layer4"))(images, target=None)

    images: (N, 3, H, W), normalised, on the model's device.
    target: None (each image's highest logit), one class index, or N.
    maps: {"layer2": (N, h, w), ...}, raw (of any sign, no ReLU), at the resolution of the stage.
    logits: (N, K).
    One forward and one relevance pass serve all layers; no image depends on its neighbours in the
    batch.

    float32, float64 and bfloat16 models, and autocast to bfloat16; the maps of the last two are
    float32. float16 cannot hold the relevance: such a model is refused, autocast to float16 is
    answered in float32.

    The model's modules are only read, never called: it stays as it was, and hooks on it do not
    fire. TypeError: a model with a layer that has no rule. ValueError: an unknown layer, a target
    out of range, a model in train mode.
    """

    def __init__(self, model: nn.Module, layers: str | Sequence[str] = LAYERS):
        check_model(model)
        self.model = model
        self.layers = check_layers(layers)

    @torch.no_grad()
    def __call__(
        self, images: torch.Tensor, target: Target = None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Maps {"layer1": (N, h, w), ...} and logits (N, K) of images (N, 3, H, W)."""
        model = self.model
        check_model(model)
        check_eval(model)
        check_images(images)
        device = images.device.type
        dtype = model.fc.weight.dtype
        if dtype == torch.float16:
            raise TypeError("float16 cannot hold the relevance: use bfloat16 or float32")
        if torch.is_autocast_enabled(device) and dtype == torch.float32:
            if torch.get_autocast_dtype(device) == torch.bfloat16:
                dtype = torch.bfloat16
            images = images.to(dtype)
        with torch.autocast(device, enabled=False):
            return explain(model, images, target, self.layers, dtype)


class ConvMemory(NamedTuple):
    """What the rule of a convolution needs from the forward pass."""

    conv: nn.Conv2d
    weight: torch.Tensor  # w+
    size: Sequence[int]  # (h, w) of the input
    ratio: torch.Tensor  # output / (w+ x): times the output's quotient it is R / (w+ x)


class BlockMemory(NamedTuple):
    """What the rules of a residual block need from the forward pass."""

    out: torch.Tensor
    main: list[ConvMemory]
    shortcut: list[ConvMemory]


def explain(
    model: nn.Module,
    images: torch.Tensor,
    target: Target,
    layers: tuple[str, ...],
    dtype: torch.dtype,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Maps and logits, computed in dtype. See RelevanceCAM."""
    if images.device.type == "cpu":
        # oneDNN needs no reordering then.
        images = images.contiguous(memory_format=torch.channels_last)
    x = F.relu_(convolve(images, model.conv1, model.bn1, dtype))
    x = model.maxpool.forward(x)  # not called, so that no hook fires

    # Up: remember what the rules need, for the blocks above the shallowest layer asked for.
    outputs = {}
    memories = []
    for name in LAYERS:
        for block in getattr(model, name):
            x, memory = forward(block, x, dtype, remember=name > layers[0])
            memories.append(memory)
        if name in layers:
            outputs[name] = x
    quotient, logits = classify(model.fc, x, target, dtype)

    # Down: the quotient is the relevance per unit of activation, see rules.py.
    maps = {}
    for name in reversed(LAYERS):
        if name in layers:
            maps[name] = weigh(outputs.pop(name), quotient)
        if name == layers[0]:
            break
        for _ in getattr(model, name):
            quotient = backward(memories.pop(), quotient)
    return {name: maps[name] for name in layers}, logits


def classify(
    fc: nn.Linear, x: torch.Tensor, target: Target, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quotient (N, C, h, w) of the last stage's output x (N, C, h, w), and logits (N, K).

    The head is computed in float32 at least, since there the classes' shares nearly cancel.
    """
    wide = torch.promote_types(dtype, torch.float32)
    pooled = x.mean((2, 3), dtype=wide)
    bias = None if fc.bias is None else fc.bias.to(dtype)
    logits = F.linear(pooled.to(dtype), fc.weight.to(dtype), bias)
    relevance = rules.start(logits.to(wide), check_target(target, logits))
    pixels = x.shape[2] * x.shape[3]
    quotient = rules.linear(pooled, fc.weight.to(wide), relevance) / pixels
    return torch.empty_like(x).copy_(quotient[:, :, None, None]), logits


def weigh(x: torch.Tensor, quotient: torch.Tensor) -> torch.Tensor:
    """Map (N, h, w) of the output x (N, C, h, w) of a stage.

    Each channel is weighted by the spatial mean of its relevance x * quotient.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    weight = (x * quotient).mean((2, 3))
    return torch.einsum("nc,nchw->nhw", weight, x)


def convolve(x: torch.Tensor, conv: nn.Conv2d, bn: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """The convolution and its batch norm in one."""
    wide = torch.promote_types(dtype, torch.float32)
    scale = (bn.running_var.to(wide) + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * bn.weight
    mean = bn.running_mean
    shift = -scale * mean if conv.bias is None else scale * (conv.bias - mean)
    if bn.bias is not None:
        shift = shift + bn.bias
    weight = (conv.weight * scale[:, None, None, None]).to(dtype)
    return F.conv2d(
        x, weight, shift.to(dtype), conv.stride, conv.padding, conv.dilation, conv.groups
    )


def forward(
    block: BasicBlock | Bottleneck, x: torch.Tensor, dtype: torch.dtype, remember: bool
) -> tuple[torch.Tensor, BlockMemory | None]:
    """The output of a residual block, and what `backward` needs (None unless remember)."""
    main = []
    shortcut = []

    def step(
        x: torch.Tensor, conv: nn.Conv2d, bn: nn.Module, relu: bool, path: list[ConvMemory]
    ) -> torch.Tensor:
        y = convolve(x, conv, bn, dtype)
        if relu:
            F.relu_(y)
        if remember:
            weight = rules.positive(conv.weight.to(dtype))
            ratio = rules.safe_divide(y, rules.conv(x, weight, conv))
            path.append(ConvMemory(conv, weight, x.shape[2:], ratio))
        return y

    three_convolutions = isinstance(block, Bottleneck)
    y = step(x, block.conv1, block.bn1, True, main)
    y = step(y, block.conv2, block.bn2, three_convolutions, main)
    if three_convolutions:
        y = step(y, block.conv3, block.bn3, False, main)
    if block.downsample is not None:
        conv, bn = block.downsample
        x = step(x, conv, bn, False, shortcut)
    out = F.relu_(y.add_(x))
    return out, BlockMemory(out, main, shortcut) if remember else None


def backward(memory: BlockMemory, quotient: torch.Tensor) -> torch.Tensor:
    """Quotient of a block's input, from that of its output."""
    quotient = rules.residual(quotient, memory.out)
    main = descend(memory.main, quotient)
    return main.add_(descend(memory.shortcut, quotient))


def descend(path: list[ConvMemory], quotient: torch.Tensor) -> torch.Tensor:
    """Quotient of the input of a path of convolutions, from that of its output."""
    for conv, weight, size, ratio in reversed(path):
        quotient = rules.conv_transposed(ratio.mul_(quotient), weight, conv, size)
    return quotient
