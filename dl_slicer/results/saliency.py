"""Saliency of patches: maps, figures and tables.

Used by python -m relevance_cam.
"""

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

import relevance_cam
from dl_slicer import cities
from dl_slicer.cli import printable
from dl_slicer.files import atomic, write_rows
from dl_slicer.model import devices, evaluation, temperature
from dl_slicer.model.checkpoints import Checkpoint
from dl_slicer.patch_sets import transforms
from dl_slicer.patch_sets.reading import ArrayPatches, JpegPatches
from dl_slicer.results import panels
from relevance_cam import quality

BATCH_SIZE = 8  # patches explained at a time
MOST_ON_A_SHEET = 300  # rows of a contact sheet: a JPEG has at most 65,500 pixels
LONGEST_NAME = 180  # of a figure's file, in letters, since file systems take 255

Patches = ArrayPatches | JpegPatches
LayerMaps = dict[str, torch.Tensor]

# No bar where stderr is no terminal.
show_progress = partial(tqdm, disable=None, leave=False)


def load_methods(names: Sequence[str]) -> dict[str, Callable]:
    """Give the classes of the methods, each once: {name: method(model, layers)}."""
    methods = {name: relevance_cam.load_method(name) for name in names}
    if "score-cam" in methods:
        # The one method so slow that it needs a bar of its own.
        methods["score-cam"] = partial(methods["score-cam"], progress=show_progress)
    return methods


def pick_patches(patch_set: Patches, per_city: int, seed: int) -> np.ndarray:
    """Indices (n,) of up to so many patches of each city, in the set's order.

    Which ones is a pure function of seed and the city's name.
    """
    chosen = []
    for label, city in enumerate(patch_set.classes):
        of_city = np.flatnonzero(patch_set.labels == label)
        if len(of_city) < per_city:
            print(
                f"{printable(city)}: has only {len(of_city)} patches in {patch_set.split},"
                " all of them are drawn"
            )
        order = np.random.default_rng([seed, zlib.crc32(city.encode())]).permutation(len(of_city))
        chosen += sorted(of_city[order[:per_city]].tolist())
    return np.array(chosen)


@dataclass
class Explanations:
    """Patches, and what several methods say of them."""

    patch_set: Patches
    chosen: np.ndarray  # indices (n,) in the set
    target: int | None  # the class explained; None: of each patch the predicted one
    maps: dict[str, LayerMaps]  # {method: {layer: raw maps (n, h, w) on the CPU}}
    logits: torch.Tensor  # float32 (n, K) on the CPU
    divisor: float = temperature.NEUTRAL  # of the logits, before they are probabilities


def explain(
    methods: dict[str, Callable],
    patch_set: Patches,
    chosen: np.ndarray,
    checkpoint: Checkpoint,
    target: int | None,
    device: torch.device,
) -> Explanations:
    """Explain the chosen patches by each method.

    methods: {name: RelevanceCAM(model, layers), ...}; target: class index, or None for each patch's
    predicted one.
    """
    parts = {name: {} for name in methods}
    logits = []
    starts = range(0, len(chosen), BATCH_SIZE)
    for i in show_progress(starts, desc="explaining", unit=" batches"):
        images = _read(patch_set, chosen[i : i + BATCH_SIZE], checkpoint, device)
        for name, method in methods.items():
            maps, scores = method(images, target)
            evaluation.check_finite(scores, scores.dtype)
            for layer, values in maps.items():
                parts[name].setdefault(layer, []).append(devices.to_cpu(values.float()))
        # All methods give the same logits.
        logits.append(devices.to_cpu(scores.float()))
    maps = {
        name: {layer: torch.cat(values) for layer, values in by_layer.items()}
        for name, by_layer in parts.items()
    }
    return Explanations(patch_set, chosen, target, maps, torch.cat(logits), checkpoint.divisor)


def _read(
    patch_set: Patches, indices: np.ndarray, checkpoint: Checkpoint, device: torch.device
) -> torch.Tensor:
    """Give patches as the network's input (n, 3, h, w)."""
    images = torch.from_numpy(patch_set.read(indices)).to(device)
    return transforms.normalise(images, checkpoint.mean, checkpoint.std)


@dataclass
class ExplainedPatch:
    """What the figures and the table say of one patch."""

    index: int  # in the patch set
    name: str
    true: str  # city
    predicted: str
    explained: str
    predicted_probability: torch.Tensor  # float32 scalar
    explained_probability: torch.Tensor
    maps: dict[str, LayerMaps]  # {method: {layer: (h, w)}}

    @property
    def is_right(self) -> bool:
        """Whether the patch was recognised."""
        return self.predicted == self.true


def explained_patches(explanations: Explanations) -> list[ExplainedPatch]:
    """Give what is said of each patch, one by one."""
    patch_set = explanations.patch_set
    classes = patch_set.classes
    probabilities = temperature.probabilities(explanations.logits, explanations.divisor)
    patches = []
    for k, index in enumerate(explanations.chosen.tolist()):
        predicted = int(explanations.logits[k].argmax())
        explained = predicted if explanations.target is None else explanations.target
        maps = {
            method: {layer: values[k] for layer, values in by_layer.items()}
            for method, by_layer in explanations.maps.items()
        }
        patch = ExplainedPatch(
            index=index,
            name=patch_set.name(index),
            true=classes[patch_set.labels[index]],
            predicted=classes[predicted],
            explained=classes[explained],
            predicted_probability=probabilities[k, predicted],
            explained_probability=probabilities[k, explained],
            maps=maps,
        )
        patches.append(patch)
    return patches


def write_figures(
    out: Path, explanations: Explanations, raw: str | Path | None, plain: bool = False
) -> list[dict[str, str]]:
    """Write a figure for each patch and a contact sheet for each city, as JPEGs below out.

    With several methods also a figure for each patch that has them side by side.
    raw: folder of the rasters, None for where the patch set says they are; plain: maps are drawn
    as the published figures are.
    Returns the rows of patches.csv, city by city.
    """
    patch_set = explanations.patch_set
    placing = panels.Placing(patch_set.image_size, plain)
    labels = dict(zip(patch_set.classes, cities.labels(patch_set.classes), strict=True))
    by_city = {city: [] for city in patch_set.classes}
    for patch in explained_patches(explanations):
        by_city[patch.true].append(patch)
    rows = []
    progress = show_progress(total=len(explanations.chosen), desc="drawing", unit=" patches")
    with progress as bar:
        for city, patches in by_city.items():
            pictures = []
            for number, patch in enumerate(patches, 1):
                picture = patch_set.original(patch.index, raw).convert("RGB")
                figure = write_patch(out, number, patch, picture, placing)
                rows.append(as_row(patch, figure.relative_to(out)))
                if number <= MOST_ON_A_SHEET:
                    pictures.append(picture)
                bar.update()
            if patches:
                write_contact_sheet(out / f"{city}.jpg", patches, pictures, labels, placing)
    return rows


def write_patch(
    out: Path,
    number: int,
    patch: ExplainedPatch,
    picture: Image.Image,
    placing: panels.Placing,
) -> Path:
    """Write <out>/<city>/<number>_<patch>.jpg, and <...>_methods.jpg if there are several.

    Returns the path of the first.
    """
    probability = 100 * patch.predicted_probability
    title = f"true {patch.true}, predicted {patch.predicted} {probability:.1f} %"
    if patch.explained != patch.predicted:
        title += f", explained {patch.explained} {100 * patch.explained_probability:.1f} %"
    below_city = patch.name.split("/", 1)[1]
    plain = re.sub(r"[^0-9A-Za-z_.-]+", "_", below_city)
    name = f"{number:02d}_{plain[-LONGEST_NAME:]}"
    figure = out / patch.true / f"{name}.jpg"
    first = next(iter(patch.maps.values()))
    panels.save_jpeg(figure, panels.patch_figure(picture, first, title, patch.is_right, placing))
    if len(patch.maps) > 1:
        page = panels.comparison_figure(picture, patch.maps, title, patch.is_right, placing)
        panels.save_jpeg(figure.with_name(f"{name}_methods.jpg"), page)
    return figure


def write_contact_sheet(
    file: Path,
    patches: Sequence[ExplainedPatch],
    pictures: Sequence[Image.Image],
    labels: dict[str, str],
    placing: panels.Placing,
) -> None:
    """Write the patches of a city with the maps of the first method, a row each.

    pictures: of the first MOST_ON_A_SHEET patches; labels: of all cities.
    """
    method = next(iter(patches[0].maps))
    title = f"{patches[0].true}: {method}"
    if len(pictures) < len(patches):
        title += f", the first {len(pictures)} of {len(patches)} patches"
    patches = patches[: len(pictures)]
    lines = []
    for patch in patches:
        colour = panels.RIGHT if patch.is_right else panels.WRONG
        label = [
            (f"predicted {labels[patch.predicted]}", colour),
            (f"{100 * patch.predicted_probability:.1f} %", colour),
        ]
        if patch.explained != patch.predicted:
            label.append((f"explained {labels[patch.explained]}", panels.INK))
        lines.append(label)
    maps = [patch.maps[method] for patch in patches]
    panels.save_jpeg(file, panels.contact_sheet(pictures, maps, title, lines, placing))


def as_row(patch: ExplainedPatch, figure: Path) -> dict[str, str]:
    """Give the row of patches.csv. figure: path relative to the table."""
    return {
        "patch": patch.name,
        "true": patch.true,
        "predicted": patch.predicted,
        "probability": f"{patch.predicted_probability:.6f}",
        "explained": patch.explained,
        "figure": figure.as_posix(),
    }


def write_maps(path: Path, explanations: Explanations) -> None:
    """Write maps.npz: raw maps (n, h, w) by <method>/<layer>, patch (n,), logits, classes."""
    patch_set = explanations.patch_set
    arrays = {
        f"{name}/{layer}": values.numpy()
        for name, by_layer in explanations.maps.items()
        for layer, values in by_layer.items()
    }
    with atomic(path) as file:
        np.savez_compressed(
            file,
            patch=[patch_set.name(int(index)) for index in explanations.chosen],
            logits=explanations.logits.numpy(),
            classes=patch_set.classes,
            **arrays,
        )


def write_quality(
    path: Path,
    model: nn.Module,
    method_classes: dict[str, Callable],
    explanations: Explanations,
    checkpoint: Checkpoint,
    layers: Sequence[str],
    device: torch.device,
) -> None:
    """Write quality.csv: a row for each method and depth.

    Average drop, increase, deletion, insertion and randomisation, see relevance_cam.quality.
    """
    images = _read(explanations.patch_set, explanations.chosen, checkpoint, device)
    rows = quality.table(model, method_classes, images, explanations.target, layers)
    write_rows(path, rows[0], (row.values() for row in rows))
