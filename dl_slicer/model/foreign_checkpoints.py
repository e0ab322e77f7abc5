"""Weights in other people's files."""

import torch
import torchvision

from dl_slicer.cli import InputError, printable
from dl_slicer.model import architectures, networks, pickles

WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "weights",
)  # usual keys of weights in a dictionary


def find_weights(content):
    """The whole model or the state dict in what a file holds; None if there is none."""
    candidates = (
        [content, *(content.get(key) for key in WRAPPERS)]
        if isinstance(content, dict)
        else [content]
    )
    return next(
        (
            candidate
            for candidate in candidates
            if isinstance(candidate, pickles.Module) or is_state(candidate)
        ),
        None,
    )


def is_state(content):
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(
            type(key) is str and isinstance(value, torch.Tensor) for key, value in content.items()
        )
    )


def find_classes(content):
    """The class names that other people's files may have beside the weights; None if there are none."""
    for key in ("classes", "class_names") if isinstance(content, dict) else ():
        if isinstance(content.get(key), (list, tuple)):
            return list(content[key])
    numbers = (
        content.get("class_to_idx") if isinstance(content, dict) else None
    )  # of torchvision's ImageFolder
    if not isinstance(numbers, dict) or not all(type(number) is int for number in numbers.values()):
        return None
    return sorted(numbers, key=numbers.get)


def without_prefix(state):
    """A state dict without what wrappers put before all keys: module. (DataParallel), _orig_mod. (torch.compile), or both."""
    prefix = min(
        (key for key in state if key.endswith("conv1.weight")), key=len, default=""
    ).removesuffix("conv1.weight")
    return (
        {key.removeprefix(prefix): value for key, value in state.items()}
        if all(key.startswith(prefix) for key in state)
        else state
    )


def state_of_module(module, path):
    """The state dict of a whole model. InputError if the model would compute anything else than torchvision's with these weights."""
    try:
        state = without_prefix(module.state_dict())
        theirs = {
            name.removeprefix("module").removeprefix("."): layer
            for name, layer in module.named_modules().items()
        }
        arch = networks.arch_of(state) if is_state(state) else None
        if arch is None:
            raise pickles.Refused(f"a model, but {architectures.NO_NETWORK}")
        with torch.device("meta"):  # the layers without their weights
            ours = dict(torchvision.models.get_model(arch, weights=None).named_modules())
        for name in sorted(ours.keys() | theirs.keys()):
            check_layer(name, ours.get(name), theirs.get(name))
    except pickles.Refused as error:
        raise InputError(f"{printable(path)}: {error}") from None
    return state


def check_layer(name, ours, theirs):
    """Refused if a layer that a file describes differs from torchvision's of that name in more than its weights."""
    kind, wanted = (
        theirs.kind.rpartition(".")[2] if theirs else "missing",
        type(ours).__name__ if ours else "missing",
    )
    size = theirs.attributes.get("kernel_size") if theirs else None
    if name == "avgpool" and kind == "AvgPool2d" and type(size) is int and size == 7:
        return  # before torchvision 0.3, and the same at 224 pixels
    if kind != wanted:
        raise pickles.Refused(
            f"no ResNet as torchvision has it: {name or 'the model'} is {kind}, in torchvision {wanted}"
        )
    for setting in (
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
        "ceil_mode",
        "output_size",
        "eps",
    ):
        wanted = getattr(ours, setting, None)
        found = theirs.attributes.get(setting, wanted)  # older versions had fewer
        plain = (
            type(found) in (int, float, bool, str)
            or type(found) is tuple
            and all(type(number) is int for number in found)
        )
        if found is not wanted and not (plain and found == wanted):
            raise pickles.Refused(
                f"no ResNet as torchvision has it: {name} has another {setting} than {wanted}"
            )
