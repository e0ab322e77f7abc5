"""Relevance-CAM: layer-wise relevance, propagated down to any stage, weighs the channels of that stage.

Lee, Kim, Park, Eo, Hwang: Relevance-CAM: Your Model Already Knows Where to Look. CVPR 2021, 14944-14953.
"""

import torch
import torch.nn.functional as F
from torchvision.models.resnet import Bottleneck

from . import rules
from .resnet import LAYERS, check_eval, check_images, check_layers, check_model, check_target


class RelevanceCAM:
    """Relevance-CAM maps of a torchvision ResNet.

        maps, logits = RelevanceCAM(model, layers=("layer2", "layer4"))(images, target=None)

    images: (N, 3, H, W), normalised, on the model's device. target: None (each image's highest logit), one class index, or N.
    maps: {"layer2": (N, h, w), ...}, raw (of any sign, no ReLU), at the resolution of the stage; logits: (N, K).
    One forward and one relevance pass serve all layers; no image depends on its neighbours in the batch.

    float32, float64 and bfloat16 models, and autocast to bfloat16; the maps of the last two are float32. float16 cannot
    hold the relevance: such a model is refused, autocast to float16 is answered in float32.

    The model's modules are only read, never called: it stays as it was, and hooks on it do not fire.
    TypeError: a model with a layer that has no rule. ValueError: an unknown layer, a target out of range, a model in train mode.
    """

    def __init__(self, model, layers=LAYERS):
        check_model(model)
        self.model, self.layers = model, check_layers(layers)

    @torch.no_grad()
    def __call__(self, images, target=None):
        model = self.model
        check_model(model)
        check_eval(model)
        check_images(images)
        device, dtype = images.device.type, model.fc.weight.dtype
        if dtype == torch.float16:
            raise TypeError("float16 cannot hold the relevance: use bfloat16 or float32")
        if torch.is_autocast_enabled(device) and dtype == torch.float32:
            dtype = torch.bfloat16 if torch.get_autocast_dtype(device) == torch.bfloat16 else dtype
            images = images.to(dtype)
        with torch.autocast(device, enabled=False):
            return explain(model, images, target, self.layers, dtype)


def explain(model, images, target, layers, dtype):
    """Maps and logits, computed in dtype. See RelevanceCAM."""
    if images.device.type == "cpu":
        images = images.contiguous(
            memory_format=torch.channels_last
        )  # oneDNN needs no reordering then
    x = F.relu_(convolve(images, model.conv1, model.bn1, dtype))
    x = model.maxpool.forward(x)  # not called, so that no hook fires

    # up: keep what the rules need, for the blocks above the shallowest layer asked for
    outputs, kept = {}, []
    for name in LAYERS:
        for block in getattr(model, name):
            x, memory = forward(block, x, dtype, remember=name > layers[0])
            kept.append(memory)
        if name in layers:
            outputs[name] = x
    fc, wide = model.fc, torch.promote_types(dtype, torch.float32)
    pooled = x.mean((2, 3), dtype=wide)
    logits = F.linear(
        pooled.to(dtype), fc.weight.to(dtype), fc.bias if fc.bias is None else fc.bias.to(dtype)
    )

    # down: c is the relevance per unit of activation; wide for the head, where the classes' shares nearly cancel
    relevance = rules.start(logits.to(wide), check_target(target, logits))
    c = rules.linear(pooled, fc.weight.to(wide), relevance) / (x.shape[2] * x.shape[3])
    c = torch.empty_like(x).copy_(c[:, :, None, None])
    maps = {}
    for name in reversed(LAYERS):
        if name in layers:
            maps[name] = weigh(outputs.pop(name), c)
        if name == layers[0]:
            break
        for _ in getattr(model, name):
            c = backward(kept.pop(), c)
    return {name: maps[name] for name in layers}, logits


def weigh(x, c):
    """Map (N, h, w): the channels of x (N, C, h, w), each weighted by the spatial mean of its relevance x c."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    weight = (x * c).mean((2, 3))
    return torch.einsum("nc,nchw->nhw", weight, x)


def convolve(x, conv, bn, dtype):
    """The convolution and its batch norm in one."""
    wide = torch.promote_types(dtype, torch.float32)
    scale = (bn.running_var.to(wide) + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * bn.weight
    shift = -scale * bn.running_mean if conv.bias is None else scale * (conv.bias - bn.running_mean)
    if bn.bias is not None:
        shift = shift + bn.bias
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(
        x, weight.to(dtype), shift.to(dtype), conv.stride, conv.padding, conv.dilation, conv.groups
    )


def forward(block, x, dtype, remember):
    """The output of a residual block, and what `backward` needs (None unless remember)."""

    def step(x, conv, bn, relu, path):
        y = convolve(x, conv, bn, dtype)
        if relu:
            F.relu_(y)
        if remember:
            weight = rules.positive(conv.weight.to(dtype))
            path.append(
                (conv, weight, x.shape[2:], rules.safe_divide(y, rules.conv(x, weight, conv)))
            )
        return y

    main, shortcut = [], []
    y = step(x, block.conv1, block.bn1, True, main)
    y = step(y, block.conv2, block.bn2, isinstance(block, Bottleneck), main)
    if isinstance(block, Bottleneck):
        y = step(y, block.conv3, block.bn3, False, main)
    if block.downsample is not None:
        x = step(x, *block.downsample, False, shortcut)
    y = F.relu_(y.add_(x))
    return y, (y, main, shortcut) if remember else None


def backward(memory, c):
    """c of a block's input, from c of its output."""
    out, main, shortcut = memory
    c = rules.residual(c, out)

    def down(c, path):
        for conv, weight, size, ratio in reversed(path):
            c = rules.conv_transposed(ratio.mul_(c), weight, conv, size)
        return c

    return down(c, main).add_(down(c, shortcut))
