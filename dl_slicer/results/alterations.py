"""Patches with one cue taken away, or with only one kept: what a network may go by.

An alteration works on a batch of colours, float32 (n, 3, h, w) in 0 .. 1 as red, green and blue,
on any device, and gives such a batch. What is drawn for a patch is drawn on the CPU beforehand, so
that it is the same on every device and in batches of any size.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import ive
from torch import Tensor

from dl_slicer.patch_sets import transforms

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R Recommendation BT.601
WAVELENGTHS = (4, 8, 16, 32)  # pixels of the network
KEPT_WAVELENGTH = 16  # where only the layout is kept
TILES = (2, 4, 8)  # a side
PARTS = {2: "halves", 4: "quarters", 8: "eighths"}


def grey(images: Tensor) -> Tensor:
    """Take colour away: Y = 0.299 R + 0.587 G + 0.114 B in all three channels (BT.601 luma)."""
    red, green, blue = images.unbind(1)
    luma = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return luma[:, None].expand_as(images)


def level_channels(images: Tensor, mean: Sequence[float], spread: Sequence[float]) -> Tensor:
    """Bring each channel of each patch to the training mean and spread.

    x' = (x - m) / s * spread + mean with the patch's own mean m and standard deviation s of the
    channel; a channel that is constant (s = 0) becomes the mean. mean, spread: three each, of the
    colours 0 .. 1. What results may leave 0 .. 1, so that mean and spread are exactly those.
    """
    means, spreads = transforms.constants(images.device, tuple(mean), tuple(spread))
    own_spread, own_mean = torch.std_mean(images, (2, 3), correction=0, keepdim=True)
    gain = torch.where(own_spread > 1e-6, spreads[:, None, None] / own_spread, 0.0)
    return (images - own_mean) * gain + means[:, None, None]


def low_pass(images: Tensor, wavelength: float) -> Tensor:
    """Take fine texture away, by a Gaussian that halves the power of this wavelength (pixels).

    Y = B X B^T for each channel X, with B as low_pass_matrix() gives it.
    """
    rows, columns = images.shape[2:]
    vertical = low_pass_matrix(rows, wavelength).to(images)
    horizontal = low_pass_matrix(columns, wavelength).to(images)
    return vertical @ images @ horizontal.T


@lru_cache
def low_pass_matrix(side: int, wavelength: float) -> Tensor:
    """Give the matrix that blurs a row of so many pixels, float32 (side, side); rows sum to 1.

    The kernel is the Gaussian on whole pixels (Lindeberg, PAMI 12, 1990): T(k) = e^-t I_k(t), with
    I_k the modified Bessel function; its variance is t (sigma = sqrt(t)) and its gain at the
    angular frequency w is exactly exp(-t (1 - cos w)). Half the power of a wavelength L is left
    where that is 1 / sqrt(2) at w = 2 pi / L: t = ln 2 / (2 (1 - cos w)), and sigma is about
    0.13 L. Beyond the border the pixels are those inside, mirrored at the outermost one.
    """
    variance = math.log(2) / (2 * (1 - math.cos(2 * math.pi / wavelength)))
    reach = math.ceil(5 * math.sqrt(variance)) + 1
    offsets = np.arange(-reach, reach + 1)
    kernel = ive(np.abs(offsets), variance)
    kernel /= kernel.sum()
    matrix = np.zeros((side, side))
    period = max(1, 2 * (side - 1))
    for row in range(side):
        place = (row + offsets) % period
        np.add.at(matrix[row], np.minimum(place, period - place), kernel)
    # Made outside of inference mode, so that whoever asks later may do with it as they like.
    with torch.inference_mode(False):
        return torch.from_numpy(matrix.astype(np.float32))


def shuffle_tiles(images: Tensor, orders: Tensor) -> Tensor:
    """Break the layout: put the tiles of each patch into another order.

    orders: int64 (n, t * t): which of the t * t tiles, counted row by row, comes to each place.
    Tiles are h // t pixels high and w // t wide. Where that leaves a rest, the rest, at most t - 1
    pixels at the right and the lower edge, stays as it is.
    """
    count, channels, height, width = images.shape
    tiles = math.isqrt(orders.shape[1])
    high = height // tiles
    wide = width // tiles
    whole = images[:, :, : tiles * high, : tiles * wide]
    cut = whole.reshape(count, channels, tiles, high, tiles, wide).permute(0, 2, 4, 1, 3, 5)
    flat = cut.reshape(count, tiles * tiles, channels, high, wide)
    moved = flat[torch.arange(count, device=images.device)[:, None], orders]
    back = moved.view(count, tiles, tiles, channels, high, wide).permute(0, 3, 1, 4, 2, 5)
    result = images.clone()
    result[:, :, : tiles * high, : tiles * wide] = back.reshape_as(whole)
    return result


def draw_orders(rng: np.random.Generator, count: int, tiles: int) -> np.ndarray:
    """Draw an order of tiles x tiles tiles for each patch, int64 (count, tiles * tiles).

    All orders but the one in which nothing has moved are about equally likely: where that is drawn,
    all tiles move on by one place.
    """
    in_place = np.arange(tiles * tiles)
    orders = rng.permuted(np.tile(in_place, (count, 1)), axis=1)
    unmoved = (orders == in_place).all(1)
    orders[unmoved] = np.roll(in_place, 1)
    return orders


def shuffle_pixels(images: Tensor, starts: Tensor) -> Tensor:
    """Keep the colours alone: put the pixels of each patch into a random order.

    All patches follow one random tour through the h * w pixels, each from a start of its own,
    int64 (n,) < h * w: the place p gets the pixel tour[(p + start) mod h w].
    """
    count, channels, height, width = images.shape
    pixels = height * width
    tour = _random_tour(pixels).to(images.device)
    places = torch.arange(pixels, device=images.device)
    orders = tour[(places + starts[:, None]) % pixels]
    moved = images.flatten(2).gather(2, orders[:, None].expand(count, channels, pixels))
    return moved.view_as(images)


@lru_cache
def _random_tour(pixels: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.from_numpy(np.random.default_rng([pixels, 7]).permutation(pixels))


def quarter_turns(images: Tensor, turns: Tensor) -> Tensor:
    """Take the orientation away: turn each patch by 90, 180 or 270 degrees, as turns says.

    turns: int64 (n,), 1 .. 3 quarter turns to the left.
    """
    result = images.clone()
    for number in (1, 2, 3):
        chosen = turns == number
        result[chosen] = images[chosen].rot90(number, (2, 3))
    return result


def only_layout(images: Tensor) -> Tensor:
    """Keep the layout alone: low_pass(grey(x), 16)."""
    return low_pass(grey(images), KEPT_WAVELENGTH)


class Alteration(NamedTuple):
    """An alteration of patches."""

    name: str  # as cues.csv calls it
    alter: Callable[..., Tensor]  # (images), or (images, drawn) where something is drawn
    draw: Callable[[np.random.Generator, int, int], np.ndarray] | None = None  # (rng, count, side)


def all_alterations(mean: Sequence[float], spread: Sequence[float]) -> list[Alteration]:
    """Give each alteration once. mean, spread: of the train patches' channels, as 0 .. 1."""
    return [
        Alteration("grey", grey),
        Alteration("channels", lambda images: level_channels(images, mean, spread)),
        *(_low_pass_of(wavelength) for wavelength in WAVELENGTHS),
        *(_tiles_of(tiles) for tiles in TILES),
        Alteration("turns", quarter_turns, lambda rng, n, side: rng.integers(1, 4, n)),
        Alteration("pixels", shuffle_pixels, lambda rng, n, side: rng.integers(0, side * side, n)),
        Alteration("low-pass and grey", only_layout),
    ]


def _low_pass_of(wavelength: int) -> Alteration:
    return Alteration(f"low-pass {wavelength}", lambda images: low_pass(images, wavelength))


def _tiles_of(tiles: int) -> Alteration:
    return Alteration(PARTS[tiles], shuffle_tiles, lambda rng, n, side: draw_orders(rng, n, tiles))


# What each row of cues.csv is about: the cue that is taken away or kept alone, and the alteration.
LISTED = (
    ("colour", "grey"),
    ("colour", "channels"),
    *(("fine texture", f"low-pass {wavelength}") for wavelength in WAVELENGTHS),
    *(("layout", PARTS[tiles]) for tiles in TILES),
    ("orientation", "turns"),
    ("only colour", "pixels"),
    ("only texture", "eighths"),
    ("only layout", "low-pass and grey"),
)

# The parameter of an alteration by its name: a wavelength in pixels, or tiles a side.
PARAMETERS = {
    **{f"low-pass {wavelength}": wavelength for wavelength in WAVELENGTHS},
    **{name: tiles for tiles, name in PARTS.items()},
    "low-pass and grey": KEPT_WAVELENGTH,
}


def size_in_pixels(name: str, side: int) -> int | None:
    """Give the wavelength, or the side of a tile of patches of this side; None for neither."""
    parameter = PARAMETERS.get(name)
    return side // parameter if name in PARTS.values() else parameter


def round_metres(metres: float) -> str:
    """Give a length in metres as text: two digits, and all digits of a whole number."""
    return f"{metres:.0f}" if metres >= 10 else f"{metres:.2g}"


def describe(cue: str, name: str, pixels: float | None, metres: float | None) -> str:
    """Say in words how patches were shown, so that "shown ... it gets 61 %" is a sentence.

    pixels, metres: the wavelength or the side of a tile, where there is one.
    """
    length = "" if metres is None else round_metres(metres)
    size = "" if pixels is None else f" ({pixels:.3g} pixels, {length} m)"
    wave = "" if pixels is None else f"{pixels:.3g} pixels ({length} m)"
    if cue == "only texture":
        return f"with only its texture, eighths shuffled{size}"
    if name in PARTS.values():
        return f"with its {name} shuffled{size}"
    if cue == "fine texture":
        return f"without what is finer than about {wave}"
    return {
        "grey": "without colour",
        "channels": "with the mean and spread of each channel made the same everywhere",
        "turns": "turned by a quarter, a half or three quarters",
        "pixels": "with only its colours, pixels shuffled",
        "low-pass and grey": f"with only its layout, grey and without what is finer than {wave}",
    }[name]
