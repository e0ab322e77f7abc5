"""Checkpoints in and out, and the weights that a run begins with."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import ResNet

from dl_slicer import cities
from dl_slicer.cli import InputError, printable, say
from dl_slicer.distributed import RANK
from dl_slicer.files import atomic
from dl_slicer.model import (
    architectures,
    familiarity,
    foreign_checkpoints,
    networks,
    own_files,
    pickles,
    temperature,
)
from dl_slicer.patch_sets import on_disk
from dl_slicer.patch_sets.rasters import View
from dl_slicer.patch_sets.reading import ArrayPatches, JpegPatches

FIRST_BANDS = [1, 2, 3]  # which are read where none are chosen
SAME_SIDE = 0.05  # by which the sides of patches in metres may differ


@dataclass
class Checkpoint:
    """What a file of weights holds, by the keys of its dict: tensors and plain types only.

    The defaults are what a file of other people's is taken to mean.
    """

    model: dict[str, Tensor]  # the state dict that is evaluated
    arch: str | None  # None: none of our networks
    classes: list[str] | None = None  # names of cities; None: the file does not name them
    mean: list[float] = field(default_factory=lambda: list(networks.MEAN))
    std: list[float] = field(default_factory=lambda: list(networks.STD))
    image_size: int = on_disk.IMAGE_SIZE  # side of a patch that the network sees
    patch_size: int | None = None  # the same in pixels of the raster
    stride: int | None = None
    epoch: int | None = None  # epochs done
    # What only a run of ours has: what --resume goes on with.
    weights: dict[str, Tensor] | None = None  # being trained, where model is their average
    step: int | None = None  # steps done in the epoch that has begun
    metrics: dict | None = None
    optimizer: dict | None = None
    rng: Tensor | None = None  # the state of torch's random numbers
    args: dict | None = None
    versions: dict | None = None
    # How rasters were seen: as dataset.json says it. Older files have none of this: metres unknown,
    # bands and values as they are.
    ground_resolution: float | None = None  # metres a pixel they were resampled to
    metres_a_pixel: float | None = None  # of the rasters as they were seen, where that is known
    bands: list[int] | None = None
    stretch: list[float] | str | None = None  # a range of values, "auto", None
    max_nodata: float = on_disk.MAX_NODATA
    # What training ends with: how sure the network is, and what it knows. Older files: not known.
    temperature: float | None = None  # by which logits are divided before they are probabilities
    familiarity: dict | None = None  # as familiarity.Known.as_dict gives it

    @property
    def divisor(self) -> float:
        """What logits are divided by: the temperature, 1 where it is not known."""
        return temperature.NEUTRAL if self.temperature is None else self.temperature

    @property
    def view(self) -> View:
        """How a raster must be seen to be seen as in training."""
        return on_disk.view_of(self.__dict__)


FIELDS = [each.name for each in fields(Checkpoint)]
OWN = FIELDS[: FIELDS.index("weights")]  # what every checkpoint of ours has


def initial_network(arch: str, classes: int, weights: str = "none") -> ResNet:
    """Give a torchvision ResNet as a run begins with it; its last layer has `classes` outputs.

    weights: "imagenet" (IMAGENET1K_V1), "imagenet-v2", "none" (random ones), or a file of this
    architecture in any form that read_file takes. A last layer with another number of classes is
    left out. InputError if the weights are not to be had or do not fit.
    """
    model = networks.new_network(arch, classes)
    if weights == "none":
        return model
    state = _weights_for(arch, weights)
    outputs = state["fc.weight"].shape[0]
    if outputs != classes:
        if RANK == 0:
            say(
                f"--weights {printable(weights)}: its last layer has {outputs} classes,"
                f" a new one with {classes} takes its place"
            )
        state = _with_last_layer_of(model, state)
    networks.load_state(model, state, f"--weights {printable(weights)}")
    return model


def _weights_for(arch: str, weights: str) -> dict[str, Tensor]:
    if weights == "imagenet":
        return networks.imagenet_weights(arch, "IMAGENET1K_V1")
    if weights == "imagenet-v2":
        return networks.imagenet_weights(arch, "IMAGENET1K_V2")
    state = read_file(weights).model
    found = networks.arch_of(state)
    if found != arch:
        raise InputError(
            f"--weights {printable(weights)}: weights of {found or architectures.NO_NETWORK},"
            f" not of --arch {arch}"
        )
    return state


def _with_last_layer_of(model: ResNet, state: dict[str, Tensor]) -> dict[str, Tensor]:
    others = {key: value for key, value in state.items() if not key.startswith("fc.")}
    last = {key: value for key, value in model.state_dict().items() if key.startswith("fc.")}
    return others | last


def read_file(path: str | Path) -> Checkpoint:
    """Give what a file of weights holds.

    What it is, its content tells: a checkpoint of ours, a whole ResNet pickled from any device,
    alone or in DataParallel, a state dict with or without module. before its keys, or a dictionary
    with one of these in it. Nothing is unpickled freely, see own_files and pickles. InputError if
    it is none of these, damaged, or asks for anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{printable(path)}: {_why_no_file(path)}")
    content = own_files.read(path, keys=OWN)
    if content is None:
        content = pickles.read(path)
    state = _state_in(content, path)
    is_own = isinstance(content, dict) and set(OWN) <= content.keys()
    if is_own:
        checkpoint = _own_checkpoint(content, state)
    else:
        arch = networks.arch_of(state)
        classes = foreign_checkpoints.find_classes(content) if arch else None
        checkpoint = Checkpoint(state, arch, classes)
    check_fields(checkpoint, content if is_own else {}, path)
    return checkpoint


def _why_no_file(path: Path) -> str:
    """Say what is wrong with a path that leads to no file, and what to give instead."""
    if not path.is_dir():
        return "no regular file" if path.exists() else "no such file"
    found = [path / name for name in ("best.pth", "last.pth") if (path / name).is_file()]
    instead = found or sorted(path.glob("*.pth"))
    if not instead:
        return "a folder without a checkpoint in it; give the file, as best.pth of a run"
    return f"a folder; give a file in it, as {printable(instead[0])}"


def _state_in(content: object, path: Path) -> dict[str, Tensor]:
    weights = foreign_checkpoints.find_weights(content)
    if weights is None:
        raise InputError(
            f"{printable(path)}: no checkpoint: neither a model, nor a state dict, nor one of these"
            f" under {', '.join(foreign_checkpoints.WRAPPERS)}"
        )
    if isinstance(weights, pickles.Module):
        return foreign_checkpoints.state_of_module(weights, path)
    return foreign_checkpoints.without_prefix(weights)


def _own_checkpoint(content: dict, state: dict[str, Tensor]) -> Checkpoint:
    found = {key: content[key] for key in FIELDS if key in content}
    found["model"] = state
    if isinstance(found.get("weights"), dict):
        # Without the _metadata of torch's state dicts, which load_state_dict would trust.
        found["weights"] = dict(found["weights"])
    return Checkpoint(**found)


def check_fields(checkpoint: Checkpoint, content: dict, path: Path) -> None:
    """InputError if a field is not of the kind that train_classification.py writes there.

    So nothing trips over it later. content: what the file holds if it is one of ours, else empty.
    """
    arch = networks.arch_of(checkpoint.model)
    outputs = len(checkpoint.model["fc.weight"]) if arch else 0
    is_right = {
        "arch": type(checkpoint.arch) in (str, type(None)) and checkpoint.arch == arch,
        "classes": checkpoint.classes is None or _are_names(checkpoint.classes, outputs),
        "mean": _is_a_colour(checkpoint.mean, least=0),
        "std": _is_a_colour(checkpoint.std, least=1e-6),
        "image_size": on_disk.is_whole_number(checkpoint.image_size, most=on_disk.LARGEST_IMAGE),
        "patch_size": checkpoint.patch_size is None
        or on_disk.is_whole_number(checkpoint.patch_size),
        "stride": checkpoint.stride is None or on_disk.is_whole_number(checkpoint.stride),
        "epoch": checkpoint.epoch is None or on_disk.is_whole_number(checkpoint.epoch, least=0),
        "temperature": checkpoint.temperature is None
        or temperature.is_temperature(checkpoint.temperature),
        "familiarity": checkpoint.familiarity is None
        or familiarity.is_right(checkpoint.familiarity, checkpoint.model, outputs),
        **_check_view(checkpoint),
    }
    for key in ("optimizer", "metrics", "args"):
        is_right[key] = key not in content or isinstance(content[key], dict)
    wrong = [key for key, right in is_right.items() if not right]
    if wrong:
        raise InputError(
            f"{printable(path)}: damaged: its {', '.join(wrong)} cannot be right for"
            f" {arch or 'weights of an unknown network'} with {outputs} outputs"
        )
    # Results are written into folders of these names.
    for city in checkpoint.classes or ():
        cities.check_name(city, f"{printable(path)}: class")


def _check_view(checkpoint: Checkpoint) -> dict[str, bool]:
    """{field: whether it can be right}, of how rasters were seen."""
    is_right = {
        "bands": checkpoint.bands is None or on_disk.are_bands(checkpoint.bands),
        "stretch": checkpoint.stretch is None or on_disk.is_stretch(checkpoint.stretch),
        "max_nodata": on_disk.is_share(checkpoint.max_nodata),
    }
    for name in ("ground_resolution", "metres_a_pixel"):
        metres = getattr(checkpoint, name)
        is_right[name] = metres is None or on_disk.is_number(metres, above=0)
    return is_right


def _are_names(value: object, count: int) -> bool:
    return on_disk.are_names(value) and len(value) == count


def _is_a_colour(value: object, least: float) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    return all(type(channel) is float and least <= channel < 1000 for channel in value)


def load_checkpoint(path: str | Path) -> tuple[ResNet, Checkpoint]:
    """Give the network of a file of weights, in eval mode, and the file's checkpoint.

    Its classes are None where the file does not name them: class_names() takes them from a data
    set. InputError if the file is no file of weights, or of no network of ours.
    """
    checkpoint = read_file(path)
    if checkpoint.arch is None:
        raise InputError(f"{printable(path)}: weights of {architectures.NO_NETWORK}")
    model = networks.new_network(checkpoint.arch, len(checkpoint.model["fc.weight"]))
    networks.load_state(model, checkpoint.model, printable(path))
    return model.eval(), checkpoint


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all."""
    content = {key: getattr(checkpoint, key) for key in FIELDS}
    with atomic(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # a full disk, which torch wraps
                raise error.__context__ from None
            raise


def class_names(
    checkpoint: Checkpoint, patch_set: ArrayPatches | JpegPatches, data: str, path: str
) -> list[str]:
    """Give the names of a checkpoint's classes, which must be those of the data set.

    Where the checkpoint has none they are the data set's, in its order: that of the sorted folder
    names, as torchvision's ImageFolder numbered them when the model was trained.
    data, path: what the user calls the data set and the checkpoint. InputError if the data set has
    other classes, or another number.
    """
    if checkpoint.classes is not None:
        check_classes(patch_set, checkpoint.classes, data, path)
        return list(patch_set.classes)
    outputs = len(checkpoint.model["fc.weight"])
    if outputs != len(patch_set.classes):
        raise InputError(
            f"{printable(path)} tells {outputs} classes apart, without their names;"
            f" {printable(data)} has {len(patch_set.classes)}"
        )
    if RANK == 0:
        print(
            f"{printable(path)}: has no class names; taken to be those of {printable(data)}"
            " in sorted order"
        )
    return list(patch_set.classes)


def check_sizes(
    patch_set: ArrayPatches | JpegPatches, checkpoint: Checkpoint, data: str, path: str
) -> None:
    """InputError if a patch set's patches are not as large in the raster as those trained on.

    At another scale a city's houses are those of a toy town. They are compared in metres where both
    are known. Other bands are refused, too. Another stride only says how densely is tested, and
    another stretch may suit other rasters: they are printed. What a file or a set does not say is
    taken to fit. data, path: what the user calls the data set and the checkpoint.
    """
    fault = _fault_of_side(patch_set, checkpoint) or _fault_of_bands(patch_set.view, checkpoint)
    if fault:
        found, trained, flags = fault
        raise InputError(
            f"{printable(data)}: its patches are {found}, {printable(path)} was trained on"
            f" {trained}; make a set with preprocessing.py {flags}"
        )
    _say_stretch(patch_set.view, checkpoint, data)
    strides = (patch_set.stride, checkpoint.stride)
    if None not in strides and patch_set.stride != checkpoint.stride and RANK == 0:
        print(
            f"{printable(data)}: a patch every {patch_set.stride} pixels, in training every"
            f" {checkpoint.stride}"
        )


Fault = tuple[str, str, str]  # what is found, what was trained on, the flags that give that


def _fault_of_side(patch_set: ArrayPatches | JpegPatches, checkpoint: Checkpoint) -> Fault | None:
    """Say how the side of a patch differs from training's; or None."""
    sizes = (patch_set.patch_size, checkpoint.patch_size)
    if None in sizes:
        return None
    flags = f"--patch-size {checkpoint.patch_size}"
    metres_a_pixel = (patch_set.metres_a_pixel, checkpoint.metres_a_pixel)
    if None in metres_a_pixel:
        if sizes[0] == sizes[1]:
            return None
        return f"{sizes[0]} pixels of the raster wide", str(sizes[1]), flags
    found, trained = (size * metres for size, metres in zip(sizes, metres_a_pixel, strict=True))
    if abs(found - trained) <= SAME_SIDE * trained:
        return None
    resolution = checkpoint.ground_resolution or checkpoint.metres_a_pixel
    flags += f" --ground-resolution {resolution:.4g}"
    return f"{found:.4g} m wide", f"{trained:.4g} m", flags


def _fault_of_bands(view: View | None, checkpoint: Checkpoint) -> Fault | None:
    """Say how bands differ from training's; or None."""
    if view is None:
        return None
    found = list(view.bands or FIRST_BANDS)
    trained = checkpoint.bands or FIRST_BANDS
    if found == trained:
        return None
    as_text = " ".join(map(str, trained))
    return f"made of bands {' '.join(map(str, found))}", as_text, f"--bands {as_text}"


def _say_stretch(view: View | None, checkpoint: Checkpoint, data: str) -> None:
    """Say that values became grey levels in another way than in training."""
    if view is None or view.stretch == checkpoint.view.stretch or RANK != 0:
        return
    found, trained = (
        "as they are" if stretch is None else f"by --stretch {_as_words(stretch)}"
        for stretch in (view.stretch, checkpoint.view.stretch)
    )
    print(f"{printable(data)}: its values became grey levels {found}, in training {trained}")


def _as_words(stretch: tuple[float, float] | str) -> str:
    return stretch if isinstance(stretch, str) else f"{stretch[0]:g} {stretch[1]:g}"


def check_classes(
    patch_set: ArrayPatches | JpegPatches, classes: Sequence[str], data: str, checkpoint: str
) -> None:
    """InputError, naming them, if a patch set has other classes than a checkpoint.

    data, checkpoint: what the user calls the two.
    """
    if list(patch_set.classes) == list(classes):
        return
    pairs = enumerate(zip(patch_set.classes, classes, strict=False))
    if sorted(patch_set.classes) == sorted(classes):
        number, (ours, theirs) = next(each for each in pairs if each[1][0] != each[1][1])
        raise InputError(
            f"{printable(data)} has the classes of {printable(checkpoint)} in another order: number"
            f" {number} is {printable(ours)} in the data, {printable(theirs)} in the checkpoint;"
            " give the data it was trained on"
        )
    only_in_data = set(patch_set.classes) - set(classes)
    only_in_checkpoint = set(classes) - set(patch_set.classes)
    raise InputError(
        f"{printable(data)} has other classes than {printable(checkpoint)}:"
        f" only in the data: {_first_names(only_in_data)};"
        f" only in the checkpoint: {_first_names(only_in_checkpoint)}"
    )


def _first_names(names: set[str]) -> str:
    ordered = sorted(names) or ["none"]
    more = f" and {len(ordered) - 5} more" if len(ordered) > 5 else ""
    return printable(", ".join(ordered[:5]) + more)
