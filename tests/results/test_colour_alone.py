"""Colours as numbers, computed again one patch at a time, and the classifier that sees them."""

import numpy as np
import pytest
import torch

from dl_slicer.results import colour_alone
from dl_slicer.results.train_samples import Sample


def described_slowly(patch):
    """One patch, uint8 (h, w, 3)."""
    pixels = patch.reshape(-1, 3)
    values = pixels / 255
    ordered = np.sort(pixels, 0)
    places = [int(np.ceil(share * len(pixels))) - 1 for share in colour_alone.QUANTILES]
    with np.errstate(invalid="ignore"):
        correlation = np.nan_to_num(np.corrcoef(values.T))
    boxes, _ = np.histogramdd(pixels, bins=[np.arange(0, 257, 32)] * 3)
    return np.concatenate(
        [
            values.mean(0),
            values.std(0),
            (ordered[places] / 255).T.ravel(),
            correlation[[0, 0, 1], [1, 2, 2]],
            np.sqrt(boxes.ravel() / len(pixels)),
        ]
    )


def test_colours_are_those_computed_the_slow_way():
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (4, 20, 20, 3), dtype=np.uint8)
    patches[1] = patches[1] // 3 + 90
    patches[2, ..., 1] = 17  # a constant channel
    patches[3, ..., 2] = patches[3, ..., 0]
    found = colour_alone.describe_colours(torch.from_numpy(patches))
    assert found.shape == (4, colour_alone.WIDTH)
    slow = np.stack([described_slowly(patch) for patch in patches])
    np.testing.assert_allclose(found.numpy(), slow, atol=2e-5)


def test_where_colours_lie_does_not_matter():
    rng = np.random.default_rng(0)
    patch = rng.integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    moved = rng.permutation(patch.reshape(-1, 3)).reshape(patch.shape)
    one, other = (colour_alone.describe_colours(torch.from_numpy(each)) for each in (patch, moved))
    torch.testing.assert_close(one, other)


def colours_of(tints, patches, rng):
    """Patches in the tint of each city, and as many others in the same tints."""
    labels = np.repeat(np.arange(len(tints)), patches)
    noise = rng.integers(-30, 31, (len(labels), 12, 12, 3))
    images = (np.array(tints)[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8)
    return colour_alone.describe_colours(torch.from_numpy(images)).numpy(), labels


@pytest.mark.parametrize(
    "tints, least, most",
    [
        ([(120, 100, 90), (100, 120, 90), (90, 100, 120)], 0.98, 1),
        ([(110, 110, 110)] * 3, 0.15, 0.5),
    ],
    ids=["a tint a city", "one tint"],
)
def test_tints_are_told_and_nothing_else(tints, least, most):
    rng = np.random.default_rng(0)
    colours, labels = colours_of(tints, 40, rng)
    sample = Sample(np.arange(120), labels, np.arange(120) % 3, 3, "sites")
    model = colour_alone.fit(colours, sample)
    assert model.units == "sites"
    assert model.penalty in colour_alone.PENALTIES
    others, their_labels = colours_of(tints, 40, rng)
    accuracy = (model.classify(others) == their_labels).mean()
    assert least <= accuracy <= most
