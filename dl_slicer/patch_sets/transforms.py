"""Patches seen from above, at another moment: what changes between two photographs of a place and does not make another city of it.

Everything works on whole batches on the device, after loader.normalise; what is drawn is a pure function of seed, epoch and step.
"""

from functools import lru_cache

import numpy as np
import torch


def normalise(images, mean, std, flipped=None):
    """uint8 (n, h, w, 3) to the network's float32 (n, 3, h, w), channels last in memory: (x / 255 - mean) / std.

    flipped: bool tensor (2, n), patches to flip left-right and up-down.
    """
    if flipped is not None:
        images = _flip(images, flipped)
    scale, shift = constants(
        images.device, tuple(1 / (255 * s) for s in std), tuple(-m / s for m, s in zip(mean, std))
    )
    images = images.float()
    return torch.addcmul(shift, images, scale, out=images).permute(0, 3, 1, 2)


def _flip(images, flipped):
    if (
        images.device.type != "cpu"
    ):  # two passes over all of them are cheaper than asking, on the CPU, which they are
        horizontal, vertical = flipped[:, :, None, None, None]
        images = torch.where(horizontal, images.flip(2), images)
        return torch.where(vertical, images.flip(1), images)
    result = torch.empty_like(images)
    for image, target, horizontal, vertical in zip(images, result, *flipped.tolist()):
        target.copy_(image.flip([axis for axis, flip in ((1, horizontal), (0, vertical)) if flip]))
    return result


@lru_cache
def constants(device, *values):
    """Tensors on the device of tuples of numbers, made once: copying them would make a GPU wait."""
    with torch.inference_mode(
        False
    ):  # else whoever asks first while evaluating would leave tensors that cannot be trained with
        return [torch.tensor(value, device=device) for value in values]


def draw_changes(batch_size, seed, epoch, step):
    """Uniform random numbers in 0 .. 1, a dict of float32 arrays (batch_size, ...), whatever is made of them: a pure function of the arguments."""
    rng = np.random.default_rng([seed, epoch, step, 2])
    shapes = {
        "turn": (),
        "brightness": (),
        "contrast": (),
        "saturation": (),
        "cast": (3,),
        "haze": (),
    }
    return {
        key: rng.random((batch_size, *shape), dtype=np.float32) for key, shape in shapes.items()
    }


def augment(images, drawn, mean, std, turns=False, light=0.0):
    """Change each image of a normalised batch (n, 3, h, w), float32, in its own way. Returns a batch of the same shape.

    drawn: the rows of draw() for these images, as tensors on their device. turns: half of the images are mirrored at the diagonal, which with flips to both sides
    gives all eight symmetries of the square. light: strength of the changes of brightness, contrast, saturation, colour cast and haze,
    1 for the strongest that occur between sites and dates; 0 leaves them out.
    """
    if turns:
        images = torch.where(
            (drawn["turn"] < 0.5)[:, None, None, None],
            channels_last(images.transpose(2, 3)),
            images,
        )
    if light:
        images = relight(images, drawn, mean, std, light)
    return images


def relight(images, drawn, mean, std, strength):
    """Another light: the colours of an image go through one 3 x 3 matrix and a shift, so that it costs one pass whatever is in it."""
    mean, std = constants(images.device, tuple(mean), tuple(std))
    eye, grey = torch.eye(3, device=images.device), torch.full((3, 3), 1 / 3, device=images.device)
    saturation = torch.exp(spread(drawn["saturation"], 0.35 * strength))[:, None, None]
    matrix = saturation * eye + (1 - saturation) * grey  # (n, 3, 3), of red, green, blue in 0 .. 1
    gain = torch.exp(
        spread(drawn["brightness"], 0.25 * strength)[:, None]
        + spread(drawn["cast"], 0.08 * strength)
    )
    contrast = torch.exp(spread(drawn["contrast"], 0.25 * strength))[:, None]
    haze = 0.15 * strength * drawn["haze"][:, None]
    matrix = ((1 - haze) * contrast * gain)[:, :, None] * matrix
    shift = (1 - haze) * (
        1 - contrast
    ) * gain * mean + haze * 0.7  # contrast about the usual mean; haze is light grey
    # The same in normalised colours.
    shift = (shift + matrix @ mean - mean) / std
    matrix = matrix * std / std[:, None]
    pixels = images.permute(0, 2, 3, 1).flatten(1, 2)
    return (
        torch.baddbmm(shift[:, None], pixels, matrix.transpose(1, 2))
        .view(len(images), *images.shape[2:], 3)
        .permute(0, 3, 1, 2)
    )


def channels_last(images):
    return images.contiguous(memory_format=torch.channels_last)


def spread(uniform, width):
    """From 0 .. 1 to -width .. width."""
    return (2 * uniform - 1) * width


def symmetries(images):
    """The eight symmetries of a square, one batch (n, 3, h, h) after the other."""
    for turned in (images, images.transpose(2, 3)):
        for axes in ((), (2,), (3,), (2, 3)):
            yield turned.flip(axes)
