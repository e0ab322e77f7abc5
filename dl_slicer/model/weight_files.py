"""What a file of weights holds, whatever it is called; torch is loaded only where there is one."""

from pathlib import Path
from typing import NamedTuple

from dl_slicer.cli import InputError, printable

BEGINNINGS = (b"PK", b"\x80")  # of archives of torch.save, and of pickles


class Model(NamedTuple):
    """What a file of weights holds."""

    arch: str
    parameters: int
    classes: int
    has_names: bool
    is_ours: bool  # written by train_classification.py


def describe(path: Path) -> Model | str | None:
    """Say what a file holds; why it is no network of ours; None if it is no file of weights."""
    with open(path, "rb") as file:
        if not file.read(2).startswith(BEGINNINGS):
            return None
    # torch takes seconds, and rasters need none.
    import torch

    from dl_slicer.model import checkpoints, networks

    try:
        found = checkpoints.read_file(path)
    except InputError as error:
        return str(error).removeprefix(f"{printable(path)}: ")
    if found.arch is None:
        return "weights of no ResNet that torchvision has"
    classes = len(found.model["fc.weight"])
    with torch.device("meta"):  # the layers without their weights
        network = networks.new_network(found.arch, classes)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Model(
        found.arch, parameters, classes, found.classes is not None, found.epoch is not None
    )
