"""Weights in other people's files: what pickles.read gives of them, made a state dict."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dl_slicer.cli import InputError, printable
from dl_slicer.model import architectures, networks, pickles

# Usual keys of weights in a dictionary.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "weights",
)

# What a layer computes with, besides its weights.
SETTINGS = (
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
    "ceil_mode",
    "output_size",
    "eps",
)


def find_weights(content: object) -> pickles.Module | dict[str, Tensor] | None:
    """Give the whole model or the state dict in what a file holds; None if there is none."""
    candidates = [content]
    if isinstance(content, dict):
        candidates += [content.get(key) for key in WRAPPERS]
    for candidate in candidates:
        if isinstance(candidate, pickles.Module) or is_state(candidate):
            return candidate
    return None


def is_state(content: object) -> bool:
    """Say whether this is a state dict: tensors by their names."""
    if not isinstance(content, dict) or len(content) == 0:
        return False
    return all(type(key) is str and isinstance(value, Tensor) for key, value in content.items())


def find_classes(content: object) -> list | None:
    """Give the class names that a file may have beside the weights; None if there are none.

    Whether they are names at all, checkpoints.check_fields tells.
    """
    if not isinstance(content, dict):
        return None
    for key in ("classes", "class_names"):
        if isinstance(content.get(key), list | tuple):
            return list(content[key])
    numbers = content.get("class_to_idx")  # of torchvision's ImageFolder
    if not isinstance(numbers, dict) or not all(type(number) is int for number in numbers.values()):
        return None
    return sorted(numbers, key=numbers.get)


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a state dict without what wrappers put before all its keys.

    That is module. (DataParallel), _orig_mod. (torch.compile), or both.
    """
    first_layers = [key for key in state if key.endswith("conv1.weight")]
    prefix = min(first_layers, key=len, default="").removesuffix("conv1.weight")
    if not all(key.startswith(prefix) for key in state):
        return dict(state)
    return {key.removeprefix(prefix): value for key, value in state.items()}


def state_of_module(module: pickles.Module, path: Path) -> dict[str, Tensor]:
    """Give the state dict of a whole model.

    InputError if the model would compute anything else than torchvision's with these weights.
    """
    try:
        state = without_prefix(module.state_dict())
        arch = networks.arch_of(state) if is_state(state) else None
        if arch is None:
            raise pickles.Refused(f"a model, but {architectures.NO_NETWORK}")
        theirs = {
            name.removeprefix("module").removeprefix("."): layer
            for name, layer in module.named_modules().items()
        }
        with torch.device("meta"):  # the layers without their weights
            ours = dict(networks.new_network(arch, classes=1000).named_modules())
        for name in sorted(ours.keys() | theirs.keys()):
            check_layer(name, ours.get(name), theirs.get(name))
    except pickles.Refused as error:
        raise InputError(f"{printable(path)}: {error}") from None
    return state


def check_layer(name: str, ours: nn.Module | None, theirs: pickles.Module | None) -> None:
    """Refused if a layer that a file describes is not torchvision's of that name but for weights.

    None: there is no such layer.
    """
    kind = theirs.kind.rpartition(".")[2] if theirs is not None else "missing"
    wanted = "missing"
    if ours is not None:
        wanted = getattr(type(ours), "computes_as", type(ours)).__name__
    if (
        name == "avgpool"
        and kind == "AvgPool2d"
        and _is_seven(theirs.attributes.get("kernel_size"))
    ):
        return  # before torchvision 0.3, and the same at 224 pixels
    if kind != wanted:
        raise pickles.Refused(
            f"no ResNet as torchvision has it: {name or 'the model'} is {kind},"
            f" in torchvision {wanted}"
        )
    for setting in SETTINGS:
        wanted = getattr(ours, setting, None)
        found = theirs.attributes.get(setting, wanted)  # older versions had fewer
        if found is not wanted and not (_is_plain(found) and found == wanted):
            raise pickles.Refused(
                f"no ResNet as torchvision has it: {name} has another {setting} than {wanted}"
            )


def _is_seven(size: object) -> bool:
    return type(size) is int and size == 7


def _is_plain(value: object) -> bool:
    """Say whether a value can be compared at no risk: a nested tuple could take years."""
    if type(value) is tuple:
        return all(type(number) is int for number in value)
    return type(value) in (int, float, bool, str)
