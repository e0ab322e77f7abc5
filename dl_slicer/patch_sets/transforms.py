"""Patches seen from above, at another moment: what changes between two photographs of a place and does not make another city of it.

Everything works on whole batches on the device, after loader.normalise; what is drawn is a pure function of seed, epoch and step.
"""

import numpy as np
import torch

from dl_slicer.patch_sets import batching as loader


def draw(batch_size, seed, epoch, step):
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
    mean, std = loader.constants(images.device, tuple(mean), tuple(std))
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
