"""How good is a map? Numbers that a paper can quote.

Maps are raw, (N, h, w), as the methods give them; a score is the softmax probability of the target
class. Every measure gives one number an image, as a float64 numpy array (N,), so that means, their
errors and paired tests can be taken from them.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from .maps import place, scale
from .names import LAYERS
from .resnet import Target, check_eval, check_images, check_target

# RelevanceCAM or another class with its interface: method(model, layers)(images, target).
Method = Callable[[nn.Module, Sequence[str]], Callable]


def drop_and_increase(
    model: nn.Module, images: torch.Tensor, maps: torch.Tensor, target: Target
) -> tuple[np.ndarray, np.ndarray]:
    """Drop and increase in confidence when the model sees only what the map shows: (N,) each.

    With Y the target's score for the image and O its score for the image times the scaled,
    placed map (0 ... 1; images are normalised, so a hidden pixel has the mean colour):
    drop = max(0, Y - O) / Y, from 0 to 1; increase = 1 if O > Y, else 0.
    The papers' *average drop %* and *increase in confidence %* are 100 times the means over all N
    images: both have N for denominator, also where an image contributes 0. A good map has a low
    drop and a high increase.
    Chattopadhay et al., Grad-CAM++, WACV 2018, section 4.1.
    """
    target = _check(model, images, maps, target)
    before = _score(model, images, target)
    visible = place(scale(maps), images.shape[2:], seen=images.shape[2:])
    after = _score(model, images * visible[:, None].to(images.dtype), target)
    drop = (before - after).clip(min=0) / np.where(before > 0, before, 1)
    return drop, (after > before).astype(np.float64)


def deletion(
    model: nn.Module,
    images: torch.Tensor,
    maps: torch.Tensor,
    target: Target,
    steps: int = 32,
    baseline: float = 0.0,
) -> np.ndarray:
    """Area under the target's score (N,) while pixels are deleted, the highest saliency first.

    The score is taken at steps + 1 points, with 0, 1/steps, ... , all of the H x W pixels set to
    baseline (a value in normalised images: 0 is the mean colour); the area is the trapezoid rule
    over the fraction deleted, so it lies in 0 ... 1, and a good map has a low one. Maps are
    placed on the pixels; equal pixels go row by row from the upper left.
    Petsiuk et al., RISE, BMVC 2018, section 4.3, who delete 224 pixels a step (steps=224 at
    224 x 224).
    """
    target = _check(model, images, maps, target)
    return _area(model, images, torch.full_like(images, baseline), maps, target, steps)


def insertion(
    model: nn.Module,
    images: torch.Tensor,
    maps: torch.Tensor,
    target: Target,
    steps: int = 32,
) -> np.ndarray:
    """Area under the target's score (N,) while pixels are put back into a blurred image.

    Those with the highest saliency come first. As `deletion`, but from the image blurred by an
    11 x 11 Gaussian of standard deviation 5 pixels to the image itself; a good map has a high
    area. Petsiuk et al., RISE, BMVC 2018, section 4.3.
    """
    target = _check(model, images, maps, target)
    blurred = gaussian_blur(images, [11, 11], [5.0, 5.0])
    return _area(model, blurred, images, maps, target, steps)


def randomisation(
    model: nn.Module,
    method: Method,
    images: torch.Tensor,
    target: Target = None,
    layers: Sequence[str] = LAYERS,
    seed: int = 0,
    batch_size: int = 8,
) -> dict[str, dict[str, np.ndarray]]:
    """Do the maps change when the weights do?

    {"fc": {"layer1": (N,), ...}, "layer4": ..., ..., "layer1": ..., "conv1": ...}

    From the top down, the weights of one part after the other are shuffled within each parameter
    tensor, in a copy of the model, and what is shuffled stays so: entry "layer3" has fc, layer4 and
    layer3 shuffled, entry "conv1" everything. Each number is Spearman's rank correlation, over the
    h x w values of a map, between the map of the model and that of the shuffled copy, for the same
    target (None: the model's own prediction): 1 the same order, 0 unrelated; nan where one of the
    two maps is constant. A method that explains the model gets near 0.
    Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018, section 3: cascading
    randomisation, signed maps.
    """
    before, target = _explain(model, method, layers, images, target, batch_size)
    shuffled = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    correlations = {}
    for part in ("fc", *reversed(LAYERS), "conv1"):
        _shuffle(getattr(shuffled, part), generator)
        if part == "conv1":
            _shuffle(shuffled.bn1, generator)
        after, _ = _explain(shuffled, method, layers, images, target, batch_size)
        correlations[part] = {
            name: np.array([spearman(a, b) for a, b in zip(before[name], after[name], strict=True)])
            for name in before
        }
    return correlations


def _shuffle(module: nn.Module, generator: torch.Generator) -> None:
    """Shuffle the values within each parameter, in place."""
    for parameter in module.parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.data = parameter.data.flatten()[order].view(parameter.shape)


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    """Spearman's rank correlation of two tensors of one shape.

    Equal values take their mean rank; nan if one of the tensors is constant.
    """
    a = _ranks(a)
    b = _ranks(b)
    a = a - a.mean()
    b = b - b.mean()
    norm = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / norm) if norm else float("nan")


@dataclass(frozen=True)
class Settings:
    """How `table` measures."""

    steps: int = 32  # of deletion and insertion
    randomise: bool = True  # whether randomisation is measured, too
    seed: int = 0  # of the shuffled weights
    batch_size: int = 8


DEFAULTS = Settings()


def table(
    model: nn.Module,
    methods: dict[str, Method],
    images: torch.Tensor,
    target: Target = None,
    layers: Sequence[str] = LAYERS,
    settings: Settings = DEFAULTS,
) -> list[dict[str, str | int | float]]:
    """Rows for csv.DictWriter, one a method and layer: means over all images of every measure.

    methods: {"relevance-cam": RelevanceCAM, ...}. target: None (the model's own prediction), one
    class, or N.
    Columns: method, layer, images (N, the denominator of every mean) · average_drop and increase
    (fractions, not %) · deletion and insertion · with randomise, rank_fc, rank_layer4, ...,
    rank_conv1: mean rank correlation after shuffling from the top down to that part, over the
    images whose maps are not constant (nan if there are none).
    """
    rows = []
    for name, method in methods.items():
        maps, classes = _explain(model, method, layers, images, target, settings.batch_size)
        correlations = {}
        if settings.randomise:
            correlations = randomisation(
                model, method, images, classes, layers, settings.seed, settings.batch_size
            )
        for layer in layers:
            row = {"method": name, "layer": layer, "images": len(images)}
            row |= _mean_measures(model, images, maps[layer], classes, settings)
            for part, by_layer in correlations.items():
                row[f"rank_{part}"] = _mean(by_layer[layer])
            rows.append(row)
    return rows


def _mean_measures(
    model: nn.Module,
    images: torch.Tensor,
    maps: torch.Tensor,
    classes: torch.Tensor,
    settings: Settings,
) -> dict[str, float]:
    values = {"average_drop": [], "increase": [], "deletion": [], "insertion": []}
    for part in _parts(len(images), settings.batch_size):
        given = (model, images[part], maps[part], classes[part])
        drop, increase = drop_and_increase(*given)
        values["average_drop"].extend(drop)
        values["increase"].extend(increase)
        values["deletion"].extend(deletion(*given, settings.steps))
        values["insertion"].extend(insertion(*given, settings.steps))
    return {measure: _mean(of) for measure, of in values.items()}


def _explain(
    model: nn.Module,
    method: Method,
    layers: Sequence[str],
    images: torch.Tensor,
    target: Target,
    batch_size: int,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Maps {layer: (N, h, w)} and classes (N,) of all images, batch_size at a time."""
    if target is not None:
        target = check_target(target, images.new_empty(len(images), model.fc.out_features))
    cam = method(model, layers)
    maps = {}
    classes = []
    for part in _parts(len(images), batch_size):
        wanted = None if target is None else target[part]
        by_layer, logits = cam(images[part], wanted)
        classes.append(check_target(wanted, logits))
        for layer, values in by_layer.items():
            maps.setdefault(layer, []).append(values)
    return {layer: torch.cat(values) for layer, values in maps.items()}, torch.cat(classes)


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(i, i + size) for i in range(0, count, size))


def _check(
    model: nn.Module, images: torch.Tensor, maps: torch.Tensor, target: Target
) -> torch.Tensor:
    check_eval(model)
    check_images(images)
    if maps.ndim != 3 or len(maps) != len(images):
        raise ValueError(f"maps must be (N, h, w) with N = {len(images)}, not {tuple(maps.shape)}")
    with torch.no_grad():
        return check_target(target, model(images))


@torch.no_grad()
def _score(model: nn.Module, images: torch.Tensor, target: torch.Tensor) -> np.ndarray:
    # On the CPU, since not every device has float64.
    probabilities = model(images).cpu().double().softmax(1)
    return probabilities.gather(1, target.cpu()[:, None])[:, 0].numpy()


def _area(
    model: nn.Module,
    start: torch.Tensor,
    end: torch.Tensor,
    maps: torch.Tensor,
    target: torch.Tensor,
    steps: int,
) -> np.ndarray:
    """Area under the score from start to end, the pixels with the highest saliency first."""
    # Placed in float64 and then rounded, so that pixels between equal values come out equal,
    # whatever the rounding; on the CPU, since not every device has float64.
    size = start.shape[2:]
    saliency = place(maps.cpu().double(), size, seen=size).float()
    order = saliency.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(1).view(len(start), 1, *start.shape[2:]).to(start.device)
    pixels = rank[0].numel()
    scores = []
    for i in range(steps + 1):
        changed = rank < round(pixels * i / steps)
        scores.append(_score(model, torch.where(changed, end, start), target))
    return (np.sum(scores, axis=0) - (scores[0] + scores[-1]) / 2) / steps


def _ranks(values: torch.Tensor) -> np.ndarray:
    """Ranks (n,) of all values, counted from 1; equal values take their mean rank."""
    _, inverse, counts = np.unique(
        values.detach().cpu().numpy(), return_inverse=True, return_counts=True
    )
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2
    return mean_ranks[inverse.ravel()]


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """Mean of the values that are numbers; nan if there are none."""
    values = [value for value in values if not np.isnan(value)]
    return float(np.mean(values)) if values else float("nan")
