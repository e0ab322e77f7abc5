"""Maps scaled, resized and cut off."""

import torch
import torch.nn.functional as F


def scale(maps: torch.Tensor) -> torch.Tensor:
    """Maps (..., h, w), each brought to 0 ... 1 by its own minimum and maximum.

    A constant map becomes 0.
    """
    low = maps.amin((-2, -1), keepdim=True)
    high = maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).where(high > low, 1)


def upsample(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Maps (N, h, w) resized bilinearly to size (H, W)."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def mask(maps: torch.Tensor) -> torch.Tensor:
    """True where a map (..., h, w) lies above its mean + one (population) standard deviation.

    Nowhere in a constant map, whatever the rounding of its mean.
    """
    mean = maps.mean((-2, -1), keepdim=True)
    deviation = maps.std((-2, -1), keepdim=True, correction=0)
    low = maps.amin((-2, -1), keepdim=True)
    high = maps.amax((-2, -1), keepdim=True)
    return (maps > mean + deviation) & (high > low)
