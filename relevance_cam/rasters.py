"""The saliency of a whole raster: the maps of its overlapping windows blended.

A raster is given as strips of rows, one after the other, and answered in rows: of the largest no
more is in memory than a row of windows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from .maps import place

Corner = tuple[int, int]  # y, x of a window's upper left pixel

# Of windows, uint8 (n, size, size, 3), with their corners.
Batch = tuple[list[Corner], np.ndarray]


class Grid(NamedTuple):
    """Windows that cover a raster, and the places on it, in pixels of the network."""

    height: int  # of the raster
    width: int
    size: int  # of a window
    step: int  # from one window to the next; a place is as wide

    def corners(self) -> list[Corner]:
        """Upper left corners of the windows, row by row."""
        rows = window_starts(self.height, self.size, self.step)
        columns = window_starts(self.width, self.size, self.step)
        return [(y, x) for y in rows for x in columns]


def window_starts(length: int, size: int, step: int) -> list[int]:
    """Starts of windows that cover a length.

    Every step, and one more at the end if something would be left over.
    """
    starts = list(range(0, length - size + 1, step))
    if starts[-1] + size < length:
        starts.append(length - size)
    return starts


def cut_windows(
    strips: Iterable[np.ndarray], corners: Sequence[Corner], size: int, batch_size: int
) -> Iterator[Batch]:
    """Cut windows from a raster, uint8 (h, W, 3) in strips from above, batch by batch.

    corners: row by row.
    """
    strips = iter(strips)
    pixels = next(strips)
    top = 0  # row of the raster with which pixels begin
    batch = []
    for number, (y, x) in enumerate(corners, 1):
        if y + size > top + len(pixels):
            parts = [pixels[y - top :]]
            end = top + len(pixels)
            while end < y + size:
                strip = next(strips)
                parts.append(strip[max(0, y - end) :])
                end += len(strip)
            pixels = np.concatenate(parts)
            top = y
        batch.append(pixels[y - top : y - top + size, x : x + size])
        if len(batch) == batch_size or number == len(corners):
            yield list(corners[number - len(batch) : number]), np.stack(batch)
            batch = []
    for _ in strips:  # the rest, which no window needs: whoever makes the strips sees all of them
        pass


def mean_by_place(corners: Sequence[Corner], probabilities: np.ndarray, grid: Grid) -> np.ndarray:
    """Mean probabilities (rows, cols, K) of the windows over each place, on a grid a step wide.

    corners, probabilities (n, K): of the windows. A place without a window is NaN.
    """
    rows = _cells(grid.height, grid.step)
    columns = _cells(grid.width, grid.step)
    sums = np.zeros((rows, columns, probabilities.shape[1]))
    counts = np.zeros((rows, columns))
    for corner, probability in zip(corners, probabilities, strict=True):
        spot = _spot(corner, grid)
        sums[spot] += probability
        counts[spot] += 1
    counts[counts == 0] = np.nan
    sums /= counts[..., None]
    return sums


def median_by_place(corners: Sequence[Corner], values: np.ndarray, grid: Grid) -> np.ndarray:
    """Median (rows, cols) of the values of the windows over each place, on a grid a step wide.

    corners, values (n,): of the windows. NaN is no value; a place without one is NaN.
    """
    shape = (_cells(grid.height, grid.step), _cells(grid.width, grid.step))
    told = [(_spot(each, grid), value) for each, value in zip(corners, values, strict=True)]
    told = [(spot, value) for spot, value in told if not np.isnan(value)]
    counts = np.zeros(shape, int)
    for spot, _ in told:
        counts[spot] += 1
    known = np.full((counts.max(initial=0) + 1, *shape), np.inf)  # which stands after all values
    rows, columns = np.indices(shape)
    used = np.zeros(shape, int)
    for spot, value in told:
        known[used[spot], rows[spot], columns[spot]] = value
        used[spot] += 1
    known.sort(0)
    lower, upper = (known[half, rows, columns] for half in ((counts - 1) // 2, counts // 2))
    return np.where(counts > 0, (lower + upper) / 2, np.nan)


def _spot(corner: Corner, grid: Grid) -> tuple[slice, slice]:
    """The places that the window at a corner lies over."""
    y, x = corner
    return (
        slice(y // grid.step, _cells(y + grid.size, grid.step)),
        slice(x // grid.step, _cells(x + grid.size, grid.step)),
    )


def _cells(length: int, step: int) -> int:
    """How many cells a step wide cover a length."""
    return -(-length // step)


class Explained(NamedTuple):
    """What a batch of windows has added."""

    corners: list[Corner]
    probabilities: np.ndarray  # float64 (n, K)
    rows: dict[str, np.ndarray]  # {layer: float32 (m, W)}: the next rows that are finished


def blend(
    method: Callable[[torch.Tensor, int], tuple[dict[str, torch.Tensor], torch.Tensor]],
    batches: Iterable[Batch],
    grid: Grid,
    prepare: Callable[[np.ndarray], torch.Tensor],
    target: int,
    plain: bool = False,
) -> Iterator[Explained]:
    """Explain every window of a raster and put the maps together.

    method: RelevanceCAM(model, layers) or another with its interface.
    batches: of the windows, row by row. prepare: windows as uint8 (n, size, size, 3) to the
    network's input on its device. target: class index. plain: see maps.place.

    All rows together are maps (H, W) for each layer. Each window counts most at its centre, where
    the network sees the surroundings, so no seams are left; raw maps are summed, so strong windows
    stay strong. Where no window lies the maps are NaN.
    """
    # Zero just outside the window, one at its centre.
    hann = torch.hann_window(grid.size + 2, periodic=False)[1:-1]
    emphasis = hann[:, None] * hann
    sums: dict[str, _RollingSum] = {}
    weight = _RollingSum(grid)
    for corners, windows in batches:
        images = prepare(windows)
        maps, logits = method(images, target)
        finished: dict[str, list[np.ndarray]] = {layer: [] for layer in maps}
        placed = {}
        for layer, values in maps.items():
            sums.setdefault(layer, _RollingSum(grid))
            size = (grid.size, grid.size)
            placed[layer] = place(values.float(), size, plain, seen=size).cpu() * emphasis
        for number, (y, x) in enumerate(corners):
            if y > weight.top:
                for layer, rows in _advance(sums, weight, y).items():
                    finished[layer].append(rows)
            weight.add(x, emphasis)
            for layer, values in placed.items():
                sums[layer].add(x, values[number])
        rows = {layer: _stack(parts, grid.width) for layer, parts in finished.items()}
        yield Explained(corners, logits.cpu().double().softmax(1).numpy(), rows)
    yield Explained([], logits.cpu().double().numpy()[:0], _advance(sums, weight, grid.height))


class _RollingSum:
    """Sums (size, W) of windows whose rows begin at top."""

    def __init__(self, grid: Grid):
        self.values = torch.zeros(grid.size, grid.width)
        self.top = 0

    def add(self, x: int, values: torch.Tensor) -> None:
        self.values[:, x : x + values.shape[1]] += values

    def advance(self, top: int) -> torch.Tensor:
        """Give the rows above a new top, and begin there."""
        size, width = self.values.shape
        count = top - self.top
        done = self.values[:count].clone()
        if count > size:
            done = torch.cat([done, torch.zeros(count - size, width)])
        # In place: new arrays for each row of windows would scatter over the memory.
        left = max(0, size - count)
        values = self.values.numpy()
        values[:left] = values[size - left :]
        values[left:] = 0
        self.top = top
        return done


def _advance(sums: dict[str, _RollingSum], weight: _RollingSum, top: int) -> dict[str, np.ndarray]:
    """The maps' rows above a new top, which no further window changes."""
    weights = weight.advance(top)
    return {layer: (total.advance(top) / weights).numpy() for layer, total in sums.items()}


def _stack(parts: list[np.ndarray], width: int) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty((0, width), np.float32)


def most_probable_class(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    prepare: Callable[[np.ndarray], torch.Tensor],
) -> int:
    """The class with the highest mean probability over all windows."""
    with torch.inference_mode():
        totals = sum(
            model(prepare(windows)).softmax(1).cpu().double().sum(0) for _, windows in batches
        )
    return int(totals.argmax())
