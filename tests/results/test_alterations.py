"""Each alteration, computed again the slow way, and what it must leave as it was."""

import math

import numpy as np
import pytest
import torch

from dl_slicer.results import alterations


@pytest.fixture
def images():
    return torch.from_numpy(np.random.default_rng(0).random((3, 3, 24, 24), dtype=np.float32))


def test_grey_by_hand(images):
    found = alterations.grey(images)
    expected = 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]
    for channel in range(3):
        torch.testing.assert_close(found[:, channel], expected)


def test_channels_get_the_mean_and_the_spread(images):
    images[1, 2] = 0.25  # a constant channel
    found = alterations.level_channels(images, (0.3, 0.4, 0.5), (0.1, 0.2, 0.3)).double()
    for k in range(3):
        for channel in range(3):
            values = found[k, channel].numpy()
            assert values.mean() == pytest.approx(0.3 + 0.1 * channel, abs=1e-5)
            is_constant = (k, channel) == (1, 2)
            spread = 0 if is_constant else 0.1 + 0.1 * channel
            assert values.std() == pytest.approx(spread, abs=1e-5)
    one = images[0, 0].flatten()
    other = found[0, 0].flatten()
    assert np.corrcoef(one, other)[0, 1] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("wavelength", alterations.WAVELENGTHS)
def test_low_pass_halves_the_power_of_its_wavelength(wavelength):
    """Measured on a wave far from the borders; and longer ones are kept, shorter ones are not."""
    side = 512
    kept = {}
    for factor in (0.5, 1, 4):
        places = torch.arange(side) * 2 * math.pi / (wavelength * factor)
        wave = torch.cos(places).expand(side, side)[None, None]
        blurred = alterations.low_pass(wave, wavelength)
        middle = slice(side // 4, 3 * side // 4)
        one = wave[0, 0, middle, middle].double()
        other = blurred[0, 0, middle, middle].double()
        gain = float((one * other).sum() / (one * one).sum())
        kept[factor] = gain**2
    assert kept[1] == pytest.approx(0.5, abs=1e-3)
    assert kept[4] > 0.93
    assert kept[0.5] < 0.27


def test_low_pass_is_a_convolution_with_mirrored_borders(images):
    wavelength = 8
    matrix = alterations.low_pass_matrix(24, wavelength).double().numpy()
    reach = 23
    row = images[0, 0, 5].double().numpy()
    mirrored = np.pad(row, reach, mode="reflect")
    kernel = np.array(
        [
            alterations.low_pass_matrix(201, wavelength)[100, 100 + k]
            for k in range(-reach, reach + 1)
        ],
        float,
    )
    slow = [(mirrored[x : x + 2 * reach + 1] * kernel).sum() for x in range(24)]
    np.testing.assert_allclose(matrix @ row, slow, atol=1e-6)
    deviation = math.sqrt((kernel * np.arange(-reach, reach + 1) ** 2).sum())
    assert deviation == pytest.approx(0.1325 * wavelength, rel=0.04)
    flat = torch.full((1, 3, 24, 24), 0.7)
    torch.testing.assert_close(alterations.low_pass(flat, 32), flat)


@pytest.mark.parametrize("tiles, side", [(2, 24), (4, 24), (8, 24), (8, 30)])
def test_tiles_are_moved_whole(tiles, side):
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.random((5, 3, side, side), dtype=np.float32))
    orders = alterations.draw_orders(rng, 5, tiles)
    found = alterations.shuffle_tiles(images, torch.from_numpy(orders))
    edge = side // tiles
    expected = images.clone()  # the rest of the last case stays
    for k, order in enumerate(orders):
        for place, tile in enumerate(order):
            y, x = edge * (place // tiles), edge * (place % tiles)
            v, u = edge * (tile // tiles), edge * (tile % tiles)
            cut = images[k, :, v : v + edge, u : u + edge]
            expected[k, :, y : y + edge, x : x + edge] = cut
    assert torch.equal(found, expected)
    rest = side - tiles * edge
    assert rest == 0 or torch.equal(found[:, :, -rest:], images[:, :, -rest:])


def test_no_order_leaves_everything_in_place_and_all_others_are_drawn():
    orders = alterations.draw_orders(np.random.default_rng(0), 4000, 2)
    different = {tuple(order) for order in orders.tolist()}
    assert (0, 1, 2, 3) not in different
    assert len(different) == 23


def test_shuffled_pixels_keep_the_colours_and_nothing_else(images):
    starts = torch.tensor([0, 5, 500])
    found = alterations.shuffle_pixels(images, starts)
    for one, other in zip(images, found, strict=True):
        pixels = sorted(map(tuple, one.flatten(1).T.tolist()))
        assert sorted(map(tuple, other.flatten(1).T.tolist())) == pixels
        moved = (one != other).any(0).float().mean()
        assert moved > 0.95
    ramp = torch.arange(24 * 24).view(1, 1, 24, 24).expand(1, 3, 24, 24)
    order = alterations.shuffle_pixels(ramp, torch.tensor([7]))[0, 0].flatten().double()
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.15


def test_quarter_turns_by_hand(images):
    found = alterations.quarter_turns(images, torch.tensor([1, 2, 3]))
    for k in range(3):
        expected = np.rot90(images[k].numpy(), k + 1, (1, 2))
        np.testing.assert_array_equal(found[k].numpy(), expected)


def test_each_listed_row_has_an_alteration_and_words():
    known = {each.name: each for each in alterations.all_alterations((0, 0, 0), (1, 1, 1))}
    assert {name for _, name in alterations.LISTED} == set(known)
    words = [alterations.describe(cue, name, 8.0, 20.0) for cue, name in alterations.LISTED]
    assert len(set(words)) == len(words) - len(alterations.WAVELENGTHS) + 1
    assert alterations.describe("colour", "grey", None, None) == "without colour"


def test_altered_patches_do_not_depend_on_the_batch():
    """What is drawn for a patch goes with the patch."""
    rng = np.random.default_rng(3)
    images = torch.from_numpy(rng.random((6, 3, 16, 16), dtype=np.float32))
    for each in alterations.all_alterations((0.4,) * 3, (0.2,) * 3):
        if each.draw is None:
            whole = each.alter(images)
            parts = [each.alter(images[:2]), each.alter(images[2:])]
        else:
            drawn = torch.from_numpy(each.draw(np.random.default_rng(0), 6, 16))
            whole = each.alter(images, drawn)
            parts = [each.alter(images[:2], drawn[:2]), each.alter(images[2:], drawn[2:])]
        assert whole.shape == images.shape
        torch.testing.assert_close(whole, torch.cat(parts), msg=each.name)


def test_sizes_of_tiles_and_waves():
    assert alterations.size_in_pixels("eighths", 30) == 3
    assert alterations.size_in_pixels("low-pass 16", 30) == 16
    assert alterations.size_in_pixels("turns", 30) is None
