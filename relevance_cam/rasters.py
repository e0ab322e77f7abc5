"""The saliency of a whole raster: the maps of its overlapping windows blended."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .maps import place
from .progress import Progress, no_progress

BATCH_SIZE = 8  # windows explained at a time


def window_starts(length: int, size: int, step: int) -> list[int]:
    """Starts of windows that cover a length.

    Every step, and one more at the end if something would be left over.
    """
    starts = list(range(0, length - size + 1, step))
    if starts[-1] + size < length:
        starts.append(length - size)
    return starts


def window_corners(height: int, width: int, size: int, step: int) -> list[tuple[int, int]]:
    """Upper left corners (y, x) of the windows that cover a raster, row by row."""
    rows = window_starts(height, size, step)
    columns = window_starts(width, size, step)
    return [(y, x) for y in rows for x in columns]


def cut_windows(pixels: np.ndarray, corners: Sequence[tuple[int, int]], size: int) -> torch.Tensor:
    """Windows (n, size, size, 3) of pixels (H, W, 3), as a tensor of the same type."""
    return torch.from_numpy(np.stack([pixels[y : y + size, x : x + size] for y, x in corners]))


def mean_by_place(
    corners: Sequence[tuple[int, int]],
    probabilities: np.ndarray,
    shape: Sequence[int],
    size: int,
    step: int,
) -> np.ndarray:
    """Mean probabilities (rows, cols, K) of the windows over each place, on a grid a step wide.

    corners, probabilities (n, K): of the windows; shape: (H, W, ...) of the raster in the same
    pixels as size and step.
    """
    height, width = shape[:2]
    rows = _cells(height, step)
    columns = _cells(width, step)
    sums = np.zeros((rows, columns, probabilities.shape[1]))
    counts = np.zeros((rows, columns))
    for (y, x), probability in zip(corners, probabilities, strict=True):
        place = (
            slice(y // step, _cells(y + size, step)),
            slice(x // step, _cells(x + size, step)),
        )
        sums[place] += probability
        counts[place] += 1
    return sums / counts[..., None]


def _cells(length: int, step: int) -> int:
    """How many cells a step wide cover a length."""
    return -(-length // step)


def blend(
    method: Callable[[torch.Tensor, int], tuple[dict[str, torch.Tensor], torch.Tensor]],
    pixels: np.ndarray,
    sizes: tuple[int, int],
    prepare: Callable[[torch.Tensor], torch.Tensor],
    target: int | None,
    progress: Progress | None = None,
    plain: bool = False,
) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
    """Explain every window of a raster and put the maps together.

    method: RelevanceCAM(model, layers) or another with its interface.
    pixels: uint8 (H, W, 3) at the network's scale; sizes: (size, step) of the windows, in those.
    prepare: windows as uint8 (n, size, size, 3) on the CPU to the network's input on its device.
    target: class index, or None for the class with the highest mean probability.
    progress: wraps the batches, as tqdm.tqdm does; None for no bar.
    plain: maps are resized, not placed, see maps.place.

    Returns ({layer: float32 (H, W)}, probabilities float64 (rows, cols, K) on a grid a step wide,
    target). Each window counts most at its centre, where the network sees the surroundings, so no
    seams are left; raw maps are summed, so strong windows stay strong.
    """
    size, step = sizes
    height, width = pixels.shape[:2]
    corners = window_corners(height, width, size, step)

    def batches(label: str) -> Iterator[tuple[Any, torch.Tensor]]:
        wrap = progress or no_progress
        for i in wrap(range(0, len(corners), BATCH_SIZE), desc=label, unit=" batches"):
            batch = corners[i : i + BATCH_SIZE]
            yield batch, prepare(cut_windows(pixels, batch, size))

    if target is None:
        with torch.inference_mode():
            target = _most_probable_class(method.model, batches("which city"))
    # Zero just outside the window, one at its centre.
    hann = torch.hann_window(size + 2, periodic=False)[1:-1]
    emphasis = hann[:, None] * hann
    sums = {}
    weight = torch.zeros(height, width)
    probabilities = []
    for batch, images in batches("explaining"):
        maps, logits = method(images, target)
        probabilities.append(logits.cpu().double().softmax(1).numpy())
        for layer, values in maps.items():
            placed = place(values.float(), (size, size), plain, seen=(size, size))
            values = placed.cpu() * emphasis
            total = sums.setdefault(layer, torch.zeros(height, width))
            for (y, x), value in zip(batch, values, strict=True):
                total[y : y + size, x : x + size] += value
        for y, x in batch:
            weight[y : y + size, x : x + size] += emphasis
    blended = {layer: (total / weight).numpy() for layer, total in sums.items()}
    by_place = mean_by_place(corners, np.concatenate(probabilities), pixels.shape, size, step)
    return blended, by_place, target


def _most_probable_class(
    model: torch.nn.Module, batches: Iterator[tuple[Any, torch.Tensor]]
) -> int:
    totals = sum(model(images).softmax(1).cpu().double().sum(0) for _, images in batches)
    return int(totals.argmax())
