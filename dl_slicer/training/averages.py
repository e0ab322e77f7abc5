"""Moving averages of weights."""

import math

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def moving_average(model: nn.Module, horizon: float) -> AveragedModel:
    """Give the exponential moving average of a model's weights and batch norm's statistics.

    horizon: over about how many steps. At the start it is over fewer, since the untrained weights
    would otherwise be in it for long.
    """

    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        # The same as count, but on the CPU, so that nothing waits for a GPU.
        updates_done = int(average.n_averaged)
        decay = min(math.exp(-1 / horizon), (1 + updates_done) / (10 + updates_done))
        get_ema_multi_avg_fn(decay)(averaged, current, count)

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    return average
