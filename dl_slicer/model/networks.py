"""Networks and the weights that torchvision has for them."""

from collections.abc import Mapping

import torch
import torchvision
from torch import Tensor
from torchvision.models import ResNet

from dl_slicer.cli import InputError, printable
from dl_slicer.model import convolutions

# Of ImageNet, as its weights expect images to be normalised.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# Each network by its blocks in each of the four stages, and whether they are bottlenecks.
DEPTHS = {
    (2, 2, 2, 2, False): 18,
    (3, 4, 6, 3, False): 34,
    (3, 4, 6, 3, True): 50,
    (3, 4, 23, 3, True): 101,
    (3, 8, 36, 3, True): 152,
}


def new_network(arch: str, classes: int) -> ResNet:
    """Give a torchvision ResNet with random weights, whose last layer has `classes` outputs."""
    network = torchvision.models.get_model(arch, weights=None, num_classes=classes)
    convolutions.use_matrices(network)
    return network


def count_parameters(arch: str, classes: int) -> int:
    """Count the numbers that training sets in such a network."""
    with torch.device("meta"):  # without memory
        network = new_network(arch, classes)
    return sum(weight.numel() for weight in network.parameters())


def imagenet_weights(arch: str, version: str) -> dict[str, Tensor]:
    """Give torchvision's ImageNet weights of a version ("IMAGENET1K_V1") as a state dict.

    They are downloaded once, then taken from torch's cache. InputError if there are none.
    """
    available = torchvision.models.get_model_weights(arch)
    if version not in available.__members__:
        raise InputError(
            f"--weights imagenet-v2: torchvision has none for {arch}; take --weights imagenet"
        )
    weights = available[version]
    try:
        # weights_only: not even a file that somebody else has put into the cache is unpickled
        # freely.
        return dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))
    # No connection, no space, a damaged file in the cache: torch and urllib raise a dozen kinds.
    except Exception as error:
        reason = printable(" ".join(str(error).split())[:100] or type(error).__name__)
        raise InputError(
            f"ImageNet weights for {arch} cannot be had ({reason}): without a connection, download"
            f" {weights.url} elsewhere and give --weights PATH, or train from scratch with"
            " --weights none"
        ) from None


def load_state(model: torch.nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Fill a model with a state dict.

    what: the file or flag it comes from, for messages. InputError if it does not fit, or has values
    that are not finite, since every prediction would be NaN.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        detail = str(error).splitlines()[1:2] or [str(error)]
        raise InputError(
            f"{what}: does not fit the network ({printable(detail[0].strip()[:200])})"
        ) from None
    for key, tensor in state.items():
        if not tensor.isfinite().all():
            raise InputError(f"{what}: damaged, {key} has values that are not finite")


def arch_of(state: Mapping[str, Tensor]) -> str | None:
    """Say which of our networks a state dict belongs to, by its blocks and its last layer.

    None if to none.
    """
    blocks = []
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        numbers = {key.split(".")[1] for key in state if key.startswith(f"{stage}.")}
        blocks.append(len(numbers))
    has_bottlenecks = "layer1.0.conv3.weight" in state
    depth = DEPTHS.get((*blocks, has_bottlenecks))
    last_layer = state.get("fc.weight", torch.empty(0))
    features = 2048 if has_bottlenecks else 512
    if depth is None or last_layer.ndim != 2 or len(last_layer) == 0:
        return None
    return f"resnet{depth}" if last_layer.shape[1] == features else None
