"""What the methods know of a torchvision ResNet: its parts, its stages, and what is none."""

from collections.abc import Sequence

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from .names import LAYERS

# None (each image's highest logit), one class index for all images, or one an image.
Target = int | Sequence[int] | torch.Tensor | None


def check_layers(layers: str | Sequence[str]) -> tuple[str, ...]:
    """Give the asked stages from shallow to deep, each once.

    ValueError for a name that is no stage, or for no name at all.
    """
    layers = (layers,) if isinstance(layers, str) else tuple(layers)
    unknown = [name for name in layers if name not in LAYERS]
    if unknown or not layers:
        given = ", ".join(map(repr, unknown)) or "given"
        raise ValueError(f"no layer {given}; the layers are {', '.join(LAYERS)}")
    return tuple(name for name in LAYERS if name in layers)


def check_images(images: torch.Tensor) -> None:
    """ValueError unless images is a floating point tensor (N, channels, height, width), N >= 1."""
    expected = "images must be a floating point tensor (N, channels, height, width)"
    if not isinstance(images, torch.Tensor):
        raise ValueError(f"{expected}, not {type(images).__name__}")
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise ValueError(f"{expected}, not {images.dtype} {tuple(images.shape)}")


def check_target(target: Target, logits: torch.Tensor) -> torch.Tensor:
    """Class indices (N,) on the device of logits (N, K).

    For None, each image's highest logit. ValueError for another number of targets, or a target
    outside 0 ... K - 1.
    """
    if target is None:
        return logits.argmax(1)
    expected = "target must be None, one int or N ints"
    try:
        target = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{expected}, not {target!r}") from None
    if not _holds_integers(target) or target.ndim > 1:
        raise ValueError(f"{expected}, not {target.dtype} {tuple(target.shape)}")
    if target.ndim == 1 and len(target) != len(logits):
        raise ValueError(f"{len(target)} targets for {len(logits)} images")
    if ((target < 0) | (target >= logits.shape[1])).any():
        last = logits.shape[1] - 1
        raise ValueError(f"target {target.tolist()} is outside the classes 0 ... {last}")
    return target.to(logits.device, torch.long).expand(len(logits))


def _holds_integers(tensor: torch.Tensor) -> bool:
    fractions = tensor.is_floating_point() or tensor.is_complex()
    return not fractions and tensor.dtype != torch.bool


def check_eval(model: nn.Module) -> None:
    """ValueError when a part of the model is in train mode.

    There batch norm would mix the images of a batch, and change itself.
    """
    for name, module in model.named_modules():
        if module.training:
            part = name or type(model).__name__
            raise ValueError(f"{part} is in train mode: call model.eval() first")


def check_model(model: nn.Module) -> None:
    """TypeError, with the name of the layer, for a model not made of a torchvision ResNet's parts.

    ResNet, ResNeXt and Wide ResNet of any depth pass, with any number of classes and input
    channels.
    """
    _check_class(model)
    _check_convolution("conv1", model.conv1, "bn1", model.bn1)
    _check_type("relu", model.relu, nn.ReLU)
    _check_type("maxpool", model.maxpool, nn.MaxPool2d)
    for stage in LAYERS:
        _check_type(stage, getattr(model, stage), nn.Sequential)
        for i, block in enumerate(getattr(model, stage)):
            _check_block(f"{stage}.{i}", block)
    _check_type("avgpool", model.avgpool, nn.AdaptiveAvgPool2d)
    size = model.avgpool.output_size
    if size not in (1, (1, 1)):
        raise TypeError(f"cannot explain avgpool: its output is {size}, expected (1, 1)")
    _check_type("fc", model.fc, nn.Linear)


def _check_class(model: nn.Module) -> None:
    if (
        isinstance(model, ResNet)
        and type(model).forward is ResNet.forward
        and type(model)._forward_impl is ResNet._forward_impl
    ):
        return
    message = f"{type(model).__name__} is not a torchvision ResNet"
    for name in ("module", "_orig_mod"):  # of DataParallel and of torch.compile
        if isinstance(getattr(model, name, None), ResNet):
            raise TypeError(f"{message}: give model.{name} instead")
    raise TypeError(message)


def _check_type(name: str, module: nn.Module, *kinds: type[nn.Module]) -> None:
    # A subclass may compute something else, unless it says what it computes.
    kind = getattr(type(module), "computes_as", type(module))
    if kind not in kinds:
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"cannot explain {name} ({type(module).__name__}): expected {expected}")


def _check_convolution(name: str, conv: nn.Module, bn_name: str, bn: nn.Module) -> None:
    _check_type(name, conv, nn.Conv2d)
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise TypeError(
            f"cannot explain {name}: its padding is {conv.padding_mode} {conv.padding},"
            " expected zeros, given as numbers"
        )
    _check_type(bn_name, bn, nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)
    if bn.running_mean is None:
        raise TypeError(
            f"cannot explain {bn_name}: it keeps no running statistics,"
            " so the images of a batch depend on each other"
        )


def _check_block(name: str, block: nn.Module) -> None:
    _check_type(name, block, BasicBlock, Bottleneck)
    convolutions = 3 if isinstance(block, Bottleneck) else 2
    for k in range(1, convolutions + 1):
        conv = getattr(block, f"conv{k}")
        bn = getattr(block, f"bn{k}")
        _check_convolution(f"{name}.conv{k}", conv, f"{name}.bn{k}", bn)
    _check_type(f"{name}.relu", block.relu, nn.ReLU)
    if block.downsample is None:
        return
    name = f"{name}.downsample"
    _check_type(name, block.downsample, nn.Sequential)
    if len(block.downsample) != 2:
        raise TypeError(f"cannot explain {name}: expected a convolution and a batch norm")
    conv, bn = block.downsample
    _check_convolution(f"{name}.0", conv, f"{name}.1", bn)


def stem(model: ResNet, images: torch.Tensor) -> torch.Tensor:
    """What layer1 sees of images (N, 3, H, W)."""
    return model.maxpool(model.relu(model.bn1(model.conv1(images))))


def head(model: ResNet, x: torch.Tensor) -> torch.Tensor:
    """Logits (N, K) from the output of layer4 (N, C, h, w)."""
    return model.fc(model.avgpool(x).flatten(1))
