"""Networks and their weights."""

import torch
import torchvision

from dl_slicer.cli import InputError, printable

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as its weights expect


def imagenet_weights(arch, version):
    """torchvision's ImageNet weights as a state dict; downloaded once, then taken from torch's cache."""
    available = torchvision.models.get_model_weights(arch)
    if version not in available.__members__:
        raise InputError(
            f"--weights imagenet-v2: torchvision has none for {arch}; take --weights imagenet"
        )
    weights = available[version]
    try:
        # weights_only: a file that somebody else has put into the cache is not unpickled freely either.
        return dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except Exception as error:  # no connection, no space, a damaged file in the cache: torch and urllib raise a dozen kinds
        reason = printable(" ".join(str(error).split())[:100] or type(error).__name__)
        raise InputError(
            f"ImageNet weights for {arch} cannot be had ({reason}): without a connection, download {weights.url} elsewhere "
            f"and give --weights PATH, or train from scratch with --weights none"
        ) from None


def load_state(model, state, what):
    """Fill a model with a state dict. InputError if it does not fit, or has values that are not finite: every prediction would be NaN."""
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


def arch_of(state):
    """Which of our networks a state dict belongs to, by its blocks and its last layer; None if none."""
    blocks = [
        len({key.split(".")[1] for key in state if key.startswith(f"layer{i}.")})
        for i in (1, 2, 3, 4)
    ]
    bottleneck = "layer1.0.conv3.weight" in state
    depth = {
        (2, 2, 2, 2, False): 18,
        (3, 4, 6, 3, False): 34,
        (3, 4, 6, 3, True): 50,
        (3, 4, 23, 3, True): 101,
        (3, 8, 36, 3, True): 152,
    }.get((*blocks, bottleneck))
    last = state.get("fc.weight", torch.empty(0))
    return (
        f"resnet{depth}"
        if depth and last.ndim == 2 and len(last) and last.shape[1] == (2048 if bottleneck else 512)
        else None
    )
