"""The learning rate."""

import numpy as np
import pytest

import train_classification
from dl_slicer.training import schedules


def test_learning_rate_warms_up_and_decays_to_nothing():
    args = train_classification.read_flags(["--recipe", "robust", "--epochs", "20", "--lr", "1"])
    rates = [schedules.learning_rate(args, epochs) for epochs in np.linspace(0, 20, 201)]
    assert rates[0] == 0
    assert rates[200] == pytest.approx(0, abs=1e-12)
    assert rates[10] == pytest.approx(0.5)
    assert max(rates) == rates[20] == pytest.approx(1)
    assert rates[110] == pytest.approx(0.5)
    assert schedules.learning_rate(train_classification.read_flags([]), 50) == 1e-3
