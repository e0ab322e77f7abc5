"""The order that reads rasters in groups: pure, equal, each patch in its turn, never too much."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import picture, write_geotiff

from dl_slicer.cli import InputError
from dl_slicer.patch_sets import grouping, reading

SIZE = 4  # pixels of a patch
STEP = 2


class MadeUp:
    """What is asked of a patch set, of so many regions of `rows` times `cols` windows."""

    image_size = SIZE
    step = STEP

    def __init__(self, regions, rows, cols):
        self.regions = [SimpleNamespace(rows=rows, cols=cols)] * regions
        self.rows = rows
        self.cols = cols

    def __len__(self):
        return len(self.regions) * self.rows * self.cols

    def patches_before(self, region, row):
        return (region * self.rows + row) * self.cols


def made_up(rasters, rows=9, cols=5):
    """(slabs, labels) of cities with so many rasters each."""
    labels = np.repeat(np.arange(len(rasters), dtype=np.uint8), rows * cols * np.array(rasters))
    return grouping.cut_slabs(MadeUp(sum(rasters), rows, cols)), labels


def order_of(slabs, labels, places, moment=(0, 0), batch_size=8, balanced=True):
    return grouping.grouped_order(slabs, labels, batch_size, moment, balanced, places)


def test_an_order_is_a_pure_function():
    slabs, labels = made_up([4, 4, 4])
    orders = [order_of(slabs, labels, 9, moment) for moment in [(1, 2), (1, 2), (1, 3), (2, 2)]]
    again = [np.array_equal(orders[0].patches, other.patches) for other in orders[1:]]
    assert again == [True, False, False]
    for one, other in zip(orders[0].loads, orders[1].loads, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("places", [4, 9, 30, 1000])
def test_equal_cities_have_each_patch_once(places):
    slabs, labels = made_up([8, 8, 8])
    order = order_of(slabs, labels, places)
    assert order.shape == (len(labels) // 8, 8)
    assert np.array_equal(np.sort(order.patches, axis=None), np.arange(len(labels)))
    # And each part of a raster is read once.
    assert sorted(order.loads.slab.tolist()) == list(range(len(slabs.region)))


def test_without_balance_each_patch_once_whatever_the_cities():
    slabs, labels = made_up([1, 5, 10])
    order = order_of(slabs, labels, 4, balanced=False)
    assert np.array_equal(np.sort(order.patches, axis=None), np.arange(len(labels)))


@pytest.mark.parametrize("places", [5, 40])
def test_cities_of_one_to_ten_rasters_come_equally_often(places):
    slabs, labels = made_up([1, 4, 10])
    order = order_of(slabs, labels, places, batch_size=5)
    drawn = labels[order.patches]
    # Any stretch, and not the multiples of anything: to within two patches, one at each end.
    for first in range(0, len(order) - 20, 7):
        counts = np.bincount(drawn[first : first + 20].ravel(), minlength=3)
        assert abs(counts - 100 / 3).max() < 2
    times = np.bincount(order.patches.ravel(), minlength=len(labels))
    each = len(labels) // 3
    for label, patches in enumerate(np.bincount(labels)):
        own = times[labels == label]
        assert own.sum() == each
        assert set(own) <= {each // patches, each // patches + 1}


def test_what_is_in_memory_at_a_time_is_less_than_its_places_and_all_that_is_needed():
    """Walked through position by position."""
    slabs, labels = made_up([1, 3, 6, 12])
    for places in (5, 6, 16, 50):
        order = order_of(slabs, labels, places, batch_size=7)
        loads = list(zip(*(values.tolist() for values in order.loads), strict=True))
        assert [first for _, first, _ in loads] == sorted(first for _, first, _ in loads)
        for position, patch in enumerate(order.patches.ravel().tolist()):
            needed = [slab for slab, first, last in loads if first <= position <= last]
            assert len(needed) < places
            (own,) = [
                slab
                for slab in range(len(slabs.region))
                if slabs.patch[slab] <= patch < slabs.patch[slab + 1]
            ]
            assert own in needed


def test_patches_of_a_group_are_mixed():
    """Of neighbours in the order few are neighbours in a raster, also with a small buffer."""
    slabs, labels = made_up([8, 8])
    order = order_of(slabs, labels, 9)  # four slabs of each city at a time
    own = order.patches.ravel()[labels[order.patches.ravel()] == 0]
    of_slab = slabs.of_patches(own)
    assert np.mean(of_slab[1:] == of_slab[:-1]) < 0.45
    assert np.mean(np.abs(np.diff(own)) == 1) < 0.1
    in_use = [len(set(of_slab[first : first + 30])) for first in range(20, len(own) - 50, 10)]
    assert Counter(in_use).most_common(1)[0][0] >= 4


def test_a_share_of_an_order_is_that_of_its_array():
    slabs, labels = made_up([2, 6])
    order = order_of(slabs, labels, 5)
    for part in (slice(3, None), (slice(11, None), slice(1, None, 2)), (slice(2, 9), slice(3))):
        found = order[part]
        expected = order.patches[part]
        assert np.array_equal(found.patches, expected)
        assert (found.shape, found.size, len(found)) == (
            expected.shape,
            expected.size,
            len(expected),
        )
        # The positions that it says its patches have.
        flat = order.patches.ravel()
        for step, indices in enumerate(found.patches):
            first = found.begin + step * found.of_batch
            at = first + found.of_patch * np.arange(len(indices))
            assert np.array_equal(flat[at], indices)
    # What is no longer needed is not read again.
    rest = order[len(order) - 1 :]
    assert set(slabs.of_patches(rest.patches.ravel())) <= set(rest.loads.slab.tolist())
    assert len(rest.loads.slab) <= 5


def test_too_small_a_buffer_is_told_with_the_least_that_works():
    slabs, _ = made_up([2] * 12)
    least = grouping.least_buffer(slabs, 12)
    assert grouping.count_places(slabs, 12, least) == 13
    with pytest.raises(InputError, match=f"at least {least / 1e9:.6f}"):
        grouping.count_places(slabs, 12, least - 1)


def test_slabs_hold_the_windows_with_data_and_no_others(preprocess, tmp_path):
    pixels = np.array(picture(150, 400))
    pixels[60:300, :100] = 0
    for site in (1, 2, 3):
        corner = (300_000, 4_000_000 + 5_000 * site)
        write_geotiff(tmp_path / f"raw/Aa (AAA)/{site}/r.tif", pixels, corner=corner, nodata=0)
        write_geotiff(tmp_path / f"raw/Bb (BBB)/{site}/r.tif", pixels[:140], corner=corner)
    patch_set = reading.open_split(preprocess(), "train")
    slabs = grouping.cut_slabs(patch_set)
    assert any(region.without_data for region in patch_set.regions)
    assert slabs.patch[-1] == len(patch_set)
    assert (np.diff(slabs.patch) > 0).all()
    everything = np.arange(len(patch_set))
    region, y, x = patch_set.corners(everything)
    own = slabs.of_patches(everything)
    size = patch_set.image_size
    assert np.array_equal(slabs.region[own], region)
    assert (y >= slabs.line[own]).all()
    assert (y + size <= (slabs.line + slabs.lines)[own]).all()
    assert (x + size <= slabs.width[own]).all()
    shapes = [array.shape for array in patch_set.region_arrays()]
    assert [shapes[i][1] for i in slabs.region] == slabs.width.tolist()
