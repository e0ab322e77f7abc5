"""Which patches in which order, and which of them flipped."""

import numpy as np

from dl_slicer.patch_sets import ordering


def test_order_is_balanced_without_replacement_and_a_pure_function():
    labels = np.repeat([0, 1, 2], [10, 100, 190])
    order = ordering.epoch_order(labels, 20, seed=3, epoch=5)
    assert order.shape == (15, 20)
    assert np.array_equal(order, ordering.epoch_order(labels, 20, 3, 5))
    assert not np.array_equal(order, ordering.epoch_order(labels, 20, 3, 6))
    assert not np.array_equal(order, ordering.epoch_order(labels, 20, 4, 5))
    assert np.bincount(labels[order.ravel()]).tolist() == [100, 100, 100]
    times = np.bincount(order.ravel(), minlength=300)
    assert set(times[:10]) == {10}
    assert set(times[10:110]) == {1}
    assert set(times[110:]) == {0, 1}


def test_unbalanced_order_has_every_patch_once():
    order = ordering.epoch_order(np.zeros(103, int), 10, 0, 0, balanced=False)
    assert order.shape == (10, 10)
    assert len(np.unique(order)) == 100


def test_batch_larger_than_the_set_is_the_set():
    assert ordering.epoch_order(np.array([0, 1, 1]), 128, 0, 0).shape == (1, 3)


def test_flips_are_a_pure_function_and_half_of_all():
    drawn = np.stack([ordering.draw_flips(64, 1, 2, step) for step in range(200)])
    assert np.array_equal(drawn[7], ordering.draw_flips(64, 1, 2, 7))
    assert not np.array_equal(drawn[7], drawn[8])
    assert abs(drawn.mean((0, 2)) - 0.5).max() < 0.02
    assert abs(np.corrcoef(drawn[:, 0].ravel(), drawn[:, 1].ravel())[0, 1]) < 0.03
