"""Patches seen from above, at another moment.

What changes between two photographs of a place and does not make another city of it. All works on
whole batches on the device; what is drawn is a pure function of seed, epoch and step.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

# What is drawn for each image, a number in 0 ... 1 or several, whatever is made of them.
DRAWN_SHAPES = {
    "turn": (),
    "brightness": (),
    "contrast": (),
    "saturation": (),
    "cast": (3,),
    "haze": (),
}

# The strongest changes of light that occur between sites and dates: of logarithms, but haze.
SATURATION = 0.35
BRIGHTNESS = 0.25
CAST = 0.08
CONTRAST = 0.25
HAZE = 0.15
HAZE_COLOUR = 0.7  # light grey


def normalise(
    images: Tensor, mean: Sequence[float], std: Sequence[float], flipped: Tensor | None = None
) -> Tensor:
    """Give (x / 255 - mean) / std of uint8 (n, h, w, 3): the network's float32 (n, 3, h, w).

    The result lies channels last in memory. flipped: bool tensor (2, n), patches to flip
    left-right and up-down.
    """
    if flipped is not None:
        images = _flip(images, flipped)
    scales = tuple(1 / (255 * s) for s in std)
    shifts = tuple(-m / s for m, s in zip(mean, std, strict=True))
    scale, shift = constants(images.device, scales, shifts)
    images = images.float()
    return torch.addcmul(shift, images, scale, out=images).permute(0, 3, 1, 2)


def _flip(images: Tensor, flipped: Tensor) -> Tensor:
    if images.device.type != "cpu":
        # Flipping all of them and choosing takes two passes, but no GPU waits to be asked which.
        horizontal, vertical = flipped[:, :, None, None, None]
        images = torch.where(horizontal, images.flip(2), images)
        return torch.where(vertical, images.flip(1), images)
    # A CPU need not wait for its own numbers: each image is copied once, flipped or not.
    result = torch.empty_like(images)
    for image, target, horizontal, vertical in zip(images, result, *flipped.tolist(), strict=True):
        axes = [axis for axis, flip in ((1, horizontal), (0, vertical)) if flip]
        target.copy_(image.flip(axes))
    return result


@lru_cache
def constants(device: torch.device, *values: tuple[float, ...]) -> list[Tensor]:
    """Tensors on the device of tuples of numbers, made once: copying them would make a GPU wait."""
    # Tensors made in inference mode could not be trained with, whoever asks first.
    with torch.inference_mode(False):
        return [torch.tensor(value, device=device) for value in values]


def draw_changes(batch_size: int, seed: int, epoch: int, step: int) -> dict[str, np.ndarray]:
    """Uniform random numbers in 0 ... 1 for augment: float32 arrays (batch_size, ...) by name.

    A pure function of the arguments.
    """
    rng = np.random.default_rng([seed, epoch, step, 2])
    return {
        name: rng.random((batch_size, *shape), dtype=np.float32)
        for name, shape in DRAWN_SHAPES.items()
    }


def augment(
    images: Tensor,
    drawn: Mapping[str, Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    turns: bool = False,
    light: float = 0.0,
) -> Tensor:
    """Change each image of a normalised batch (n, 3, h, w), float32, in its own way.

    Returns a batch of the same shape. drawn: what draw_changes gives for these images, as tensors
    on their device. turns: half of the images are mirrored at the diagonal, which with flips to
    both sides gives all eight symmetries of the square. light: see relight; 0 leaves it out.
    """
    if turns:
        mirrored = drawn["turn"] < 0.5
        transposed = channels_last(images.transpose(2, 3))
        images = torch.where(mirrored[:, None, None, None], transposed, images)
    if light:
        images = relight(images, drawn, mean, std, light)
    return images


def relight(
    images: Tensor,
    drawn: Mapping[str, Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    strength: float,
) -> Tensor:
    """Another light: brightness, contrast, saturation, colour cast and haze of each image.

    The colours of an image go through one 3 x 3 matrix and a shift, so that it costs one pass
    whatever is in it. images and result: normalised, (n, 3, h, w). drawn: of draw_changes.
    strength: 1 for the strongest changes that occur between sites and dates.
    """
    mean, std = constants(images.device, tuple(mean), tuple(std))
    eye = torch.eye(3, device=images.device)
    grey = torch.full((3, 3), 1 / 3, device=images.device)
    saturation = torch.exp(spread(drawn["saturation"], SATURATION * strength))[:, None, None]
    # (n, 3, 3), of red, green and blue in 0 ... 1.
    matrix = saturation * eye + (1 - saturation) * grey
    brightness = spread(drawn["brightness"], BRIGHTNESS * strength)[:, None]
    gain = torch.exp(brightness + spread(drawn["cast"], CAST * strength))
    contrast = torch.exp(spread(drawn["contrast"], CONTRAST * strength))[:, None]
    haze = HAZE * strength * drawn["haze"][:, None]
    matrix = ((1 - haze) * contrast * gain)[:, :, None] * matrix
    # Contrast is about the usual mean.
    shift = (1 - haze) * (1 - contrast) * gain * mean + haze * HAZE_COLOUR
    # The same in normalised colours.
    shift = (shift + matrix @ mean - mean) / std
    matrix = matrix * std / std[:, None]
    pixels = images.permute(0, 2, 3, 1).flatten(1, 2)
    relit = torch.baddbmm(shift[:, None], pixels, matrix.transpose(1, 2))
    return relit.view(len(images), *images.shape[2:], 3).permute(0, 3, 1, 2)


def channels_last(images: Tensor) -> Tensor:
    """The same batch, laid out channels last in memory."""
    return images.contiguous(memory_format=torch.channels_last)


def spread(uniform: Tensor, width: float) -> Tensor:
    """From 0 ... 1 to -width ... width."""
    return (2 * uniform - 1) * width


def symmetries(images: Tensor) -> Iterator[Tensor]:
    """The eight symmetries of a square, one batch (n, 3, h, h) after the other."""
    for turned in (images, images.transpose(2, 3)):
        for axes in ((), (2,), (3,), (2, 3)):
            yield turned.flip(axes)
