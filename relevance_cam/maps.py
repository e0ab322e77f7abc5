"""Maps scaled, resized and cut off."""

import torch.nn.functional as F


def scale(maps):
    """Maps (..., h, w), each brought to 0 ... 1 by its own minimum and maximum. A constant map becomes 0."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).where(high > low, 1)


def upsample(maps, size):
    """Maps (N, h, w) resized bilinearly to size (H, W)."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def mask(maps):
    """True where a map (..., h, w) lies above its mean + one (population) standard deviation. Nowhere in a constant map."""
    above = maps.mean((-2, -1), keepdim=True) + maps.std((-2, -1), keepdim=True, correction=0)
    return (maps > above) & (maps.amax((-2, -1), keepdim=True) > maps.amin((-2, -1), keepdim=True))
