"""Normalisation and augmentation, against torchvision's."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from dl_slicer.model import networks
from dl_slicer.patch_sets import transforms

MEAN = networks.MEAN
STD = networks.STD


def images(count=4, size=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, 3, size, size, generator=generator)
    return pixels.contiguous(memory_format=torch.channels_last)


def normalised(pixels):
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def middle(count=1, **changes):
    """Numbers that change nothing, but for those that are given."""
    drawn = {
        name: torch.full(values.shape, 0.5)
        for name, values in transforms.draw_changes(count, 0, 0, 0).items()
    }
    drawn["haze"][:] = 0
    for name, value in changes.items():
        drawn[name][:] = value
    return drawn


def test_normalise_equals_torchvision():
    patches = np.random.default_rng(0).integers(0, 256, (4, 20, 24, 3), dtype=np.uint8)
    flipped = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 1]], dtype=torch.bool)
    ours = transforms.normalise(torch.from_numpy(patches), MEAN, STD, flipped)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    for i, patch in enumerate(patches):
        image = Image.fromarray(patch)
        image = functional.hflip(image) if flipped[0, i] else image
        image = functional.vflip(image) if flipped[1, i] else image
        plain = functional.normalize(functional.to_tensor(image), MEAN, STD)
        torch.testing.assert_close(ours[i], plain, rtol=0, atol=2e-6)


def test_draws_are_a_pure_function():
    one = transforms.draw_changes(8, 1, 2, 3)
    again = transforms.draw_changes(8, 1, 2, 3)
    other = transforms.draw_changes(8, 1, 2, 4)
    for name in one:
        assert np.array_equal(one[name], again[name])
        assert not np.array_equal(one[name], other[name])


def test_nothing_drawn_changes_nothing():
    before = normalised(images(1))
    after = transforms.augment(before, middle(), MEAN, STD, turns=True, light=1.0)
    torch.testing.assert_close(after, before, rtol=0, atol=2e-5)
    assert after.is_contiguous(memory_format=torch.channels_last)


def test_turns_mirror_half_of_the_images_at_the_diagonal():
    before = images(64)
    changes = transforms.draw_changes(64, 0, 0, 0)
    drawn = {name: torch.from_numpy(values) for name, values in changes.items()}
    after = transforms.augment(before, drawn, MEAN, STD, turns=True)
    pairs = list(zip(after, before, strict=True))
    turned = [torch.equal(a, b.transpose(1, 2)) for a, b in pairs]
    untouched = [torch.equal(a, b) for a, b in pairs]
    assert all(turn or same for turn, same in zip(turned, untouched, strict=True))
    assert 20 < sum(turned) < 44


def test_the_eight_symmetries_are_eight_and_the_right_ones():
    image = images(1, 8)
    ours = {tuple(view.flatten().tolist()) for view in transforms.symmetries(image)}
    theirs = {
        tuple(torch.rot90(view, k, (2, 3)).flatten().tolist())
        for view in (image, image.flip(2))
        for k in range(4)
    }
    assert len(ours) == 8
    assert ours == theirs


@pytest.mark.parametrize("uniform", (0.0, 0.8))
@pytest.mark.parametrize(
    "what, width, theirs",
    [("brightness", 0.25, functional.adjust_brightness), ("saturation", 0.35, None)],
)
def test_light_is_what_torchvision_does(what, width, theirs, uniform):
    # torchvision clips at 0 and 1, where a photograph does and a normalised tensor need not.
    pixels = images(2) * 0.4 + 0.3
    changes = middle(2, **{what: uniform})
    after = transforms.augment(normalised(pixels), changes, MEAN, STD, light=1.0)
    factor = math.exp((2 * uniform - 1) * width)
    if theirs:
        expected = theirs(pixels, factor)
    else:
        expected = factor * pixels + (1 - factor) * pixels.mean(1, keepdim=True)
    torch.testing.assert_close(after, normalised(expected), rtol=0, atol=1e-5)


def test_contrast_keeps_the_usual_mean_and_haze_goes_to_light_grey():
    grey = torch.tensor(MEAN)[None, :, None, None].expand(1, 3, 8, 8)
    after = transforms.augment(normalised(grey), middle(contrast=0.1), MEAN, STD, light=1.0)
    torch.testing.assert_close(after, normalised(grey), rtol=0, atol=1e-5)
    hazy = transforms.augment(normalised(images(1)), middle(haze=1.0), MEAN, STD, light=1.0)
    torch.testing.assert_close(hazy, normalised(0.85 * images(1) + 0.15 * 0.7), rtol=0, atol=1e-5)
