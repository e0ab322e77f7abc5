"""Checkpoints in and out."""

from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
import torchvision

from dl_slicer.cli import InputError, printable
from dl_slicer.distributed import RANK
from dl_slicer.files import atomic
from dl_slicer.model import architectures, foreign_checkpoints, networks, pickles


@dataclass
class Checkpoint:
    """What a file of weights holds. The defaults are what a file of other people's is taken to mean."""

    model: dict[str, torch.Tensor]  # the state dict that is evaluated
    arch: str | None  # None: none of our networks
    classes: list[str] | None = None
    mean: list[float] = field(default_factory=lambda: list(networks.MEAN))
    std: list[float] = field(default_factory=lambda: list(networks.STD))
    image_size: int = 224
    patch_size: int | None = None
    stride: int | None = None
    epoch: int | None = None
    # What only a run of ours has: what --resume goes on with.
    weights: dict[str, torch.Tensor] | None = None  # being trained, where model is their average
    step: int | None = None
    metrics: dict | None = None
    optimizer: dict | None = None
    rng: torch.Tensor | None = None
    args: dict | None = None
    versions: dict | None = None


FIELDS = [each.name for each in fields(Checkpoint)]
OWN = FIELDS[: FIELDS.index("weights")]  # what every checkpoint of ours has


def build(arch, classes, weights="none"):
    """A torchvision ResNet whose last layer has `classes` outputs.

    weights: "imagenet" (IMAGENET1K_V1), "imagenet-v2", "none", or a file of this architecture in any form that read_file takes,
    whose last layer is left out if it has another number of classes. InputError if they are not to be had or do not fit.
    """
    model = torchvision.models.get_model(arch, weights=None, num_classes=classes)
    if weights == "none":
        return model
    if weights in ("imagenet", "imagenet-v2"):
        state = networks.imagenet_weights(
            arch, "IMAGENET1K_V1" if weights == "imagenet" else "IMAGENET1K_V2"
        )
    else:
        state = read_file(weights).model
        if networks.arch_of(state) != arch:
            raise InputError(
                f"--weights {printable(weights)}: weights of {networks.arch_of(state) or architectures.NO_NETWORK}, not of --arch {arch}"
            )
    given = state["fc.weight"].shape[0]
    if given != classes:
        if RANK == 0:
            print(
                f"--weights {printable(weights)}: its last layer has {given} classes, a new one with {classes} takes its place"
            )
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
        state |= {key: value for key, value in model.state_dict().items() if key.startswith("fc.")}
    networks.load_state(model, state, f"--weights {printable(weights)}")
    return model


def read_file(path):
    """What a file of weights holds: "model" (a state dict), "arch" (None if it is none of ours), the keys of DEFAULTS, and more if it is a checkpoint of ours.

    By its content: a checkpoint of ours, a whole ResNet pickled from any device, alone or in DataParallel, a state dict with or
    without module. before its keys, or a dictionary with one of these in it. Nothing is unpickled, see torch_file. InputError if it
    is none of these, damaged, or asks for anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{printable(path)}: {'no regular file' if path.exists() else 'no such file'}"
        )
    content = pickles.read(path)
    weights = foreign_checkpoints.find_weights(content)
    if weights is None:
        raise InputError(
            f"{printable(path)}: no checkpoint: neither a model, nor a state dict, nor one of these under {', '.join(foreign_checkpoints.WRAPPERS)}"
        )
    state = (
        foreign_checkpoints.state_of_module(weights, path)
        if isinstance(weights, pickles.Module)
        else foreign_checkpoints.without_prefix(weights)
    )
    is_own = isinstance(content, dict) and set(OWN) <= content.keys()
    if is_own:
        checkpoint = Checkpoint(
            **{**{key: content[key] for key in FIELDS if key in content}, "model": state}
        )
    else:
        arch = networks.arch_of(state)
        checkpoint = Checkpoint(
            state, arch, foreign_checkpoints.find_classes(content) if arch else None
        )
    check_fields(checkpoint, content if is_own else {}, path)
    return checkpoint


def check_fields(checkpoint, content, path):
    """InputError if a field is not of the kind that train_classification.py writes there: nothing shall trip over it later."""
    arch = networks.arch_of(checkpoint.model)
    outputs = len(checkpoint.model["fc.weight"]) if arch else 0

    def three(values, least):
        return (
            isinstance(values, list)
            and len(values) == 3
            and all(type(value) is float and least <= value < 1000 for value in values)
        )

    def whole(value, least=1, most=2**31):
        return type(value) is int and least <= value <= most

    def names(values):
        return (
            isinstance(values, list)
            and all(type(value) is str for value in values)
            and len(set(values)) == len(values) == outputs
        )

    is_right = {
        "arch": lambda value: type(value) in (str, type(None)) and value == arch,
        "classes": lambda value: value is None or names(value),
        "mean": lambda value: three(value, least=0),
        "std": lambda value: three(value, least=1e-6),
        "image_size": lambda value: whole(value, most=4096),
        "patch_size": lambda value: value is None or whole(value),
        "stride": lambda value: value is None or whole(value),
        "epoch": lambda value: value is None or whole(value, least=0),
    }
    wrong = [key for key, right in is_right.items() if not right(getattr(checkpoint, key))]
    wrong += [
        key
        for key in ("optimizer", "metrics", "args")
        if not isinstance(content.get(key, {}), dict)
    ]
    if wrong:
        raise InputError(
            f"{printable(path)}: damaged: its {', '.join(wrong)} cannot be right for {arch or 'weights of an unknown network'} with {outputs} outputs"
        )


def load_checkpoint(path):
    """(model in eval mode, checkpoint as read_file gives it) of a file of weights. InputError if it is none, or of no network of ours.

    The checkpoint's "classes" are None where the file does not name them: class_names() takes them from a data set.
    """
    checkpoint = read_file(path)
    if checkpoint.arch is None:
        raise InputError(f"{printable(path)}: weights of {architectures.NO_NETWORK}")
    model = build(checkpoint.arch, len(checkpoint.model["fc.weight"]))
    networks.load_state(model, checkpoint.model, printable(path))
    return model.eval(), checkpoint


def save_checkpoint(path, checkpoint):
    """Write tensors and plain types, whole or not at all."""
    with atomic(path) as file:
        try:
            torch.save({key: getattr(checkpoint, key) for key in FIELDS}, file)
        except RuntimeError as error:  # in which torch wraps a full disk
            raise error.__context__ if isinstance(error.__context__, OSError) else error


def class_names(checkpoint, patch_set, data, path):
    """The names of a checkpoint's classes, which must be those of the data set. InputError if that has others, or another number.

    Where the file has none they are the data set's, in its order: that of the sorted folder names, as torchvision's ImageFolder
    numbered them when the model was trained.
    """
    if checkpoint.classes is not None:
        check_classes(patch_set, checkpoint.classes, data, path)
    elif len(checkpoint.model["fc.weight"]) != len(patch_set.classes):
        raise InputError(
            f"{printable(path)} tells {len(checkpoint['model']['fc.weight'])} classes apart, without their names; "
            f"{printable(data)} has {len(patch_set.classes)}"
        )
    elif RANK == 0:
        print(
            f"{printable(path)}: has no class names; taken to be those of {printable(data)} in sorted order"
        )
    return list(patch_set.classes)


def check_classes(patch_set, classes, data, checkpoint):
    """InputError if a patch set has other classes than a checkpoint, naming them."""
    if list(patch_set.classes) != list(classes):
        surplus = sorted(set(patch_set.classes) - set(classes)) or ["none"]
        lacking = sorted(set(classes) - set(patch_set.classes)) or ["none"]
        few = [
            printable(
                ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            )
            for names in (surplus, lacking)
        ]
        raise InputError(
            f"{printable(data)} has other classes than {printable(checkpoint)}: only in the data: {few[0]}; only in the checkpoint: {few[1]}"
        )
