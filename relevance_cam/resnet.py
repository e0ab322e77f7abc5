"""What the methods know of a torchvision ResNet: its parts, its stages, and which models are no such thing."""

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

LAYERS = ("layer1", "layer2", "layer3", "layer4")


def check_layers(layers):
    """The asked stages from shallow to deep, each once. ValueError for a name that is no stage, or for no name at all."""
    layers = (layers,) if isinstance(layers, str) else tuple(layers)
    unknown = [name for name in layers if name not in LAYERS]
    if unknown or not layers:
        raise ValueError(
            f"no layer {', '.join(map(repr, unknown)) or 'given'}; the layers are {', '.join(LAYERS)}"
        )
    return tuple(name for name in LAYERS if name in layers)


def check_images(images):
    """ValueError unless images is a floating point tensor (N, channels, height, width) with N >= 1."""
    if not (
        isinstance(images, torch.Tensor)
        and images.ndim == 4
        and images.is_floating_point()
        and len(images)
    ):
        seen = (
            f"{images.dtype} {tuple(images.shape)}"
            if isinstance(images, torch.Tensor)
            else type(images).__name__
        )
        raise ValueError(
            f"images must be a floating point tensor (N, channels, height, width), not {seen}"
        )


def check_target(target, logits):
    """Class indices (N,) on the device of logits (N, K): each image's highest logit for None, else one int or N ints.

    ValueError for another number of targets, or a target outside 0 ... K - 1.
    """
    if target is None:
        return logits.argmax(1)
    try:
        target = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"target must be None, one int or N ints, not {target!r}") from None
    if (
        target.is_floating_point()
        or target.is_complex()
        or target.dtype == torch.bool
        or target.ndim > 1
    ):
        raise ValueError(
            f"target must be None, one int or N ints, not {target.dtype} {tuple(target.shape)}"
        )
    if target.ndim == 1 and len(target) != len(logits):
        raise ValueError(f"{len(target)} targets for {len(logits)} images")
    if ((target < 0) | (target >= logits.shape[1])).any():
        raise ValueError(
            f"target {target.tolist()} is outside the classes 0 ... {logits.shape[1] - 1}"
        )
    return target.to(logits.device, torch.long).expand(len(logits))


def check_eval(model):
    """ValueError when a part of the model is in train mode: batch norm would mix the images of a batch, and change itself."""
    for name, module in model.named_modules():
        if module.training:
            raise ValueError(
                f"{name or type(model).__name__} is in train mode: call model.eval() first"
            )


def check_model(model):
    """TypeError, with the name of the layer, for a model that is not made of a torchvision ResNet's parts.

    ResNet, ResNeXt and Wide ResNet of any depth pass, with any number of classes and input channels.
    """
    if (
        not isinstance(model, ResNet)
        or type(model).forward is not ResNet.forward
        or type(model)._forward_impl is not ResNet._forward_impl
    ):
        inner = [
            name
            for name in ("module", "_orig_mod")
            if isinstance(getattr(model, name, None), ResNet)
        ]
        raise TypeError(
            f"{type(model).__name__} is not a torchvision ResNet"
            + (f": give model.{inner[0]} instead" if inner else "")
        )

    def expect(name, module, *kinds):
        if type(module) not in kinds:
            raise TypeError(
                f"cannot explain {name} ({type(module).__name__}): expected {' or '.join(kind.__name__ for kind in kinds)}"
            )

    def expect_conv(name, conv, bn_name, bn):
        expect(name, conv, nn.Conv2d)
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise TypeError(
                f"cannot explain {name}: its padding is {conv.padding_mode} {conv.padding}, expected zeros, given as numbers"
            )
        expect(bn_name, bn, nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)
        if bn.running_mean is None:
            raise TypeError(
                f"cannot explain {bn_name}: it keeps no running statistics, so the images of a batch depend on each other"
            )

    expect_conv("conv1", model.conv1, "bn1", model.bn1)
    expect("relu", model.relu, nn.ReLU)
    expect("maxpool", model.maxpool, nn.MaxPool2d)
    for stage in LAYERS:
        expect(stage, getattr(model, stage), nn.Sequential)
        for i, block in enumerate(getattr(model, stage)):
            name = f"{stage}.{i}"
            expect(name, block, BasicBlock, Bottleneck)
            for k in range(1, 4 if isinstance(block, Bottleneck) else 3):
                expect_conv(
                    f"{name}.conv{k}",
                    getattr(block, f"conv{k}"),
                    f"{name}.bn{k}",
                    getattr(block, f"bn{k}"),
                )
            expect(f"{name}.relu", block.relu, nn.ReLU)
            if block.downsample is not None:
                expect(f"{name}.downsample", block.downsample, nn.Sequential)
                if len(block.downsample) != 2:
                    raise TypeError(
                        f"cannot explain {name}.downsample: expected a convolution and a batch norm"
                    )
                expect_conv(
                    f"{name}.downsample.0",
                    block.downsample[0],
                    f"{name}.downsample.1",
                    block.downsample[1],
                )
    expect("avgpool", model.avgpool, nn.AdaptiveAvgPool2d)
    if model.avgpool.output_size not in (1, (1, 1)):
        raise TypeError(
            f"cannot explain avgpool: its output is {model.avgpool.output_size}, expected (1, 1)"
        )
    expect("fc", model.fc, nn.Linear)


def stem(model, images):
    """What layer1 sees."""
    return model.maxpool(model.relu(model.bn1(model.conv1(images))))


def head(model, x):
    """Logits (N, K) from the output of layer4."""
    return model.fc(model.avgpool(x).flatten(1))
