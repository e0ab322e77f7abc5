"""The moving average of weights."""

import math

import pytest
import torch

from dl_slicer.training import averages


def test_the_average_is_the_moving_one_of_weights_and_statistics():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = averages.moving_average(model, horizon=4.0)
    expected = None
    for step in range(60):
        with torch.no_grad():
            model[0].weight.fill_(step)
            model[1].running_mean.fill_(-step)
        average.update_parameters(model)
        decay = min(math.exp(-1 / 4), (1 + step) / (10 + step))
        expected = step if expected is None else decay * expected + (1 - decay) * step
    assert average.module[0].weight[0, 0].item() == pytest.approx(expected, rel=1e-5)
    assert average.module[1].running_mean[0].item() == pytest.approx(-expected, rel=1e-5)
    assert 59 - 1.2 * 4 < expected < 59
