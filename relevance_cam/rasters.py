"""The saliency of a whole raster: the maps of its overlapping patches blended, beside the predicted city of each place."""

import numpy as np
import torch
from tqdm import tqdm

from .maps import upsample


def window_starts(length, size, step):
    """Starts of windows that cover a length: every step, and one more at the end if something would be left over."""
    starts = list(range(0, length - size + 1, step))
    return starts + [length - size] * (starts[-1] + size < length)


def blend(method, pixels, size, step, normalise, target, device, batch_size=8):
    """Explain every window of a raster and put the maps together.

    pixels: uint8 (H, W, 3) at the network's scale; size, step: of the windows in those pixels; normalise: uint8 (n, size, size, 3)
    tensor to the network's input; target: class index, or None for the class with the highest mean probability.
    Returns ({layer: float32 (H, W)}, probabilities (H, W, K) on a grid a step wide, target). Each window counts most at its
    centre, where the network sees the surroundings, so no seams are left; raw maps are summed, so strong windows stay strong.
    """
    height, width = pixels.shape[:2]
    places = [
        (y, x) for y in window_starts(height, size, step) for x in window_starts(width, size, step)
    ]
    bump = torch.hann_window(size + 2, periodic=False)[1:-1]
    bump = bump[:, None] * bump
    cells = (-(-height // step), -(-width // step))

    def windows(desc):
        for i in tqdm(
            range(0, len(places), batch_size), desc=desc, unit=" batches", disable=None, leave=False
        ):
            part = places[i : i + batch_size]
            batch = np.stack([pixels[y : y + size, x : x + size] for y, x in part])
            yield part, normalise(torch.from_numpy(batch).to(device))

    if target is None:
        with torch.inference_mode():
            target = int(
                sum(
                    method.model(images).softmax(1).double().sum(0)
                    for _, images in windows("which city")
                ).argmax()
            )
    sums, weight, probability, counts = {}, torch.zeros(height, width), None, np.zeros(cells)
    for part, images in windows("explaining"):
        maps, logits = method(images, target)
        shares = logits.double().softmax(1).cpu().numpy()
        if probability is None:
            probability = np.zeros((*cells, shares.shape[1]))
        for layer, values in maps.items():
            values = upsample(values.float(), (size, size)).cpu() * bump
            total = sums.setdefault(layer, torch.zeros(height, width))
            for (y, x), value in zip(part, values):
                total[y : y + size, x : x + size] += value
        for (y, x), share in zip(part, shares):
            weight[y : y + size, x : x + size] += bump
            cell = (
                slice(y // step, -(-(y + size) // step)),
                slice(x // step, -(-(x + size) // step)),
            )
            probability[cell] += share
            counts[cell] += 1
    return (
        {layer: (total / weight).numpy() for layer, total in sums.items()},
        probability / counts[..., None],
        target,
    )
