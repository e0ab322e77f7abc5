"""How good is a map? Pictures' arithmetic (scale, upsample, mask), and numbers that a paper can quote.

Maps are raw, (N, h, w), as the methods give them; a score is the softmax probability of the target class. Every measure
gives one number an image, as a float64 numpy array (N,), so that means, their errors and paired tests can be taken from them.
"""

import copy

import numpy as np
import torch
from torchvision.transforms.functional import gaussian_blur

from .maps import scale, upsample
from .resnet import LAYERS, check_eval, check_images, check_target


def drop_and_increase(model, images, maps, target):
    """Drop and increase in confidence when the model sees only what the map shows: two arrays (N,).

    With Y the target's score for the image and O its score for the image times the scaled, upsampled map (0 ... 1; images
    are normalised, so a hidden pixel has the mean colour): drop = max(0, Y - O) / Y, from 0 to 1; increase = 1 if O > Y, else 0.
    The papers' *average drop %* and *increase in confidence %* are 100 times the means over all N images: both have N for
    denominator, also where an image contributes 0. A good map has a low drop and a high increase.
    Chattopadhay et al., Grad-CAM++, WACV 2018, section 4.1.
    """
    target = _check(model, images, maps, target)
    before = _score(model, images, target)
    shown = upsample(scale(maps), images.shape[2:])
    after = _score(model, images * shown[:, None].to(images.dtype), target)
    drop = (before - after).clip(min=0) / np.where(before > 0, before, 1)
    return drop, (after > before).astype(np.float64)


def deletion(model, images, maps, target, steps=32, baseline=0.0):
    """Area under the target's score (N,) while the pixels of an image are deleted, those with the highest saliency first.

    The score is taken at steps + 1 points, with 0, 1/steps, ... , all of the H x W pixels set to baseline (a value in normalised
    images: 0 is the mean colour); the area is the trapezoid rule over the fraction deleted, so it lies in 0 ... 1, and a good
    map has a low one. Maps are upsampled to the pixels; equal pixels go row by row from the upper left.
    Petsiuk et al., RISE, BMVC 2018, section 4.3, who delete 224 pixels a step (steps=224 at 224 x 224).
    """
    target = _check(model, images, maps, target)
    return _area(model, images, torch.full_like(images, baseline), maps, target, steps)


def insertion(model, images, maps, target, steps=32):
    """Area under the target's score (N,) while pixels are put back into a blurred image, those with the highest saliency first.

    As `deletion`, but from the image blurred by an 11 x 11 Gaussian of standard deviation 5 pixels to the image itself; a good
    map has a high area. Petsiuk et al., RISE, BMVC 2018, section 4.3.
    """
    target = _check(model, images, maps, target)
    return _area(model, gaussian_blur(images, [11, 11], [5.0, 5.0]), images, maps, target, steps)


def randomisation(model, method, images, target=None, layers=LAYERS, seed=0, batch_size=8):
    """Do the maps change when the weights do? {"fc": {"layer1": (N,), ...}, "layer4": ..., ..., "layer1": ..., "conv1": ...}

    method: RelevanceCAM or another with its interface, called as method(model, layers). From the top down, the weights of one
    part after the other are shuffled within each parameter tensor, in a copy of the model, and what is shuffled stays so:
    entry "layer3" has fc, layer4 and layer3 shuffled, entry "conv1" everything. Each number is Spearman's rank correlation, over the
    h x w values of a map, between the map of the model and that of the shuffled copy, for the same target (None: the model's own
    prediction): 1 the same order, 0 unrelated; nan where one of the two maps is constant. A method that explains the model gets near 0.
    Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018, section 3: cascading randomisation, signed maps.
    """
    before, target = _explain(model, method, layers, images, target, batch_size)
    shuffled, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    result = {}
    for part in ("fc", *reversed(LAYERS), "conv1"):
        for module in [getattr(shuffled, part)] + ([shuffled.bn1] if part == "conv1" else []):
            for parameter in module.parameters():
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.data = parameter.data.flatten()[order].view(parameter.shape)
        after, _ = _explain(shuffled, method, layers, images, target, batch_size)
        result[part] = {
            name: np.array([spearman(*pair) for pair in zip(before[name], after[name])])
            for name in before
        }
    return result


def spearman(a, b):
    """Spearman's rank correlation of two tensors of one shape, equal values at their mean rank; nan if one of them is constant."""
    a, b = _ranks(a), _ranks(b)
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / norm) if norm else float("nan")


def table(
    model,
    methods,
    images,
    target=None,
    layers=LAYERS,
    steps=32,
    seed=0,
    batch_size=8,
    randomise=True,
):
    """Rows (dicts) for csv.DictWriter, one for each method and layer: means over all images of every measure above.

    methods: {"relevance-cam": RelevanceCAM, ...}. target: None (the model's own prediction), one class, or N.
    method, layer, images (N, the denominator of every mean) · average_drop and increase (fractions, not %) · deletion and
    insertion · with randomise, rank_fc, rank_layer4, ..., rank_conv1: mean rank correlation after shuffling from the top down to
    that part, over the images whose maps are not constant (nan if there are none).
    """
    rows = []
    for name, method in methods.items():
        maps, classes = _explain(model, method, layers, images, target, batch_size)
        ranks = (
            randomisation(model, method, images, classes, layers, seed, batch_size)
            if randomise
            else {}
        )
        for layer in layers:
            found = {"average_drop": [], "increase": [], "deletion": [], "insertion": []}
            for part in _parts(len(images), batch_size):
                given = (model, images[part], maps[layer][part], classes[part])
                numbers = (
                    *drop_and_increase(*given),
                    deletion(*given, steps),
                    insertion(*given, steps),
                )
                for values, new in zip(found.values(), numbers):
                    values.extend(new)
            means = {key: _mean(values) for key, values in found.items()}
            means.update(
                {f"rank_{shuffled}": _mean(values[layer]) for shuffled, values in ranks.items()}
            )
            rows.append({"method": name, "layer": layer, "images": len(images), **means})
    return rows


def _explain(model, method, layers, images, target, batch_size):
    """Maps {layer: (N, h, w)} and classes (N,) of all images, batch_size at a time."""
    if target is not None:
        target = check_target(target, images.new_empty(len(images), model.fc.out_features))
    cam, maps, classes = method(model, layers), {}, []
    for part in _parts(len(images), batch_size):
        wanted = None if target is None else target[part]
        found, logits = cam(images[part], wanted)
        classes.append(check_target(wanted, logits))
        for layer, values in found.items():
            maps.setdefault(layer, []).append(values)
    return {layer: torch.cat(values) for layer, values in maps.items()}, torch.cat(classes)


def _parts(n, size):
    return [slice(i, i + size) for i in range(0, n, size)]


def _check(model, images, maps, target):
    check_eval(model)
    check_images(images)
    if maps.ndim != 3 or len(maps) != len(images):
        raise ValueError(f"maps must be (N, h, w) with N = {len(images)}, not {tuple(maps.shape)}")
    with torch.no_grad():
        return check_target(target, model(images))


@torch.no_grad()
def _score(model, images, target):
    logits = model(images)
    return logits.double().softmax(1).gather(1, target[:, None])[:, 0].cpu().numpy()


def _area(model, start, end, maps, target, steps):
    """Area under the score from start to end, the pixels with the highest saliency first."""
    # from float64 down, so that pixels between equal values come out equal, whatever the rounding
    order = (
        upsample(maps.double(), start.shape[2:])
        .float()
        .flatten(1)
        .argsort(dim=1, descending=True, stable=True)
    )
    rank = order.argsort(1).view(len(start), 1, *start.shape[2:])
    pixels = rank[0].numel()
    scores = [
        _score(model, torch.where(rank < round(pixels * i / steps), end, start), target)
        for i in range(steps + 1)
    ]
    return (np.sum(scores, axis=0) - (scores[0] + scores[-1]) / 2) / steps


def _ranks(values):
    _, inverse, counts = np.unique(
        values.detach().cpu().numpy(), return_inverse=True, return_counts=True
    )
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse.ravel()]


def _mean(values):
    values = [value for value in values if not np.isnan(value)]
    return float(np.mean(values)) if values else float("nan")
