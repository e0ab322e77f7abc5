"""Maps scaled, placed on the image and cut off."""

import torch
import torch.nn.functional as F


def scale(maps: torch.Tensor) -> torch.Tensor:
    """Maps (..., h, w), each brought to 0 ... 1 by its own minimum and maximum.

    A constant map becomes 0.
    """
    low = maps.amin((-2, -1), keepdim=True)
    high = maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).where(high > low, 1)


def place(
    maps: torch.Tensor,
    size: tuple[int, int],
    plain: bool = False,
    seen: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Put maps (N, h, w) of a stage where they belong on a picture of size (H, W).

    The convolutions of a ResNet are padded by half their width, so pixel i of a stage looks at the
    image about pixel stride * i, at the rims too. Values are linear between these centres and
    constant beyond the last. plain: resized bilinearly instead, as if pixel i were the i-th tile of
    the image, half a stride lower and further to the right: 15.5 of 224 pixels for layer4.
    seen: (H, W) of what the network saw, where the picture has another size; a stage whose pixels
    do not divide it evenly has its true stride only then, else H / h and W / w.
    """
    if plain:
        return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    for axis, length in ((-2, size[0]), (-1, size[1])):
        maps = _place_along(axis, maps, length, None if seen is None else seen[axis])
    return maps


def _place_along(axis: int, maps: torch.Tensor, length: int, seen: int | None) -> torch.Tensor:
    """Place maps along one axis, where the picture has so many pixels and the network saw some."""
    count = maps.shape[axis]
    if seen is None:
        seen = length
        stride = length / count
    else:
        stride = _stride(count, seen)
    pixels = maps.new_ones(length).cumsum(0) - 1  # of the maps' type, where they are
    # A pixel's centre lies half a pixel from its edge, in the picture and in what was seen.
    at = ((pixels + 0.5) * (seen / length) - 0.5) / stride
    at = at.clamp(0, count - 1)
    before = at.long()
    after = (before + 1).clamp(max=count - 1)
    shape = [1, 1, 1]
    shape[axis] = length
    weight = (at - before).view(shape)
    return torch.lerp(maps.index_select(axis, before), maps.index_select(axis, after), weight)


def _stride(count: int, seen: int) -> float:
    """Pixels of an image from one of count pixels of a stage to the next: a power of two."""
    stride = 1
    while -(-seen // stride) > count:
        stride *= 2
    return stride if -(-seen // stride) == count else seen / count


def mask(maps: torch.Tensor) -> torch.Tensor:
    """True where a map (..., h, w) lies above its mean + one (population) standard deviation.

    Nowhere in a constant map, whatever the rounding of its mean.
    """
    mean = maps.mean((-2, -1), keepdim=True)
    deviation = maps.std((-2, -1), keepdim=True, correction=0)
    low = maps.amin((-2, -1), keepdim=True)
    high = maps.amax((-2, -1), keepdim=True)
    return (maps > mean + deviation) & (high > low)
