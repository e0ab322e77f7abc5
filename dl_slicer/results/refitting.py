"""The last layer of a network fitted anew: a multinomial logistic regression on its features.

The loss is the mean over classes of each class's mean cross-entropy, plus half the penalty times
the sum of squared weights of standardised features; biases go free. In scikit-learn's words:
StandardScaler, then LogisticRegression(class_weight="balanced", C=1 / (penalty * patches)). It is
computed on the network's own device, since there are many fits and a GPU is faster at them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dl_slicer.model import devices
from dl_slicer.results.train_samples import Sample, equal_classes

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # of the mean loss
BLOCK_ROWS = 4096  # patches computed at a time, which bounds the memory
CHOOSING_STEPS = 40
STEPS = 150


class LastLayer(NamedTuple):
    """A last layer for D features and K classes, on the device."""

    weight: Tensor  # float32 (D, K)
    bias: Tensor  # float32 (K,)
    penalty: float

    def classify(self, features: Tensor) -> Tensor:
        """Give the likeliest class of each row of features (n, D): int64 (n,)."""
        return (features @ self.weight + self.bias).argmax(1)


def fit_last_layer(
    features: Tensor,
    sample: Sample,
    classes: int,
    device: torch.device,
    penalties: Sequence[float] = PENALTIES,
) -> LastLayer:
    """Fit a last layer to a sample's features, float32 (n, D) in its order.

    The penalty is the one under which patches of sites that were left out are told with the least
    loss, each city counting the same; the second largest of them where none can be left out.
    """
    features = features.to(device)
    labels = torch.from_numpy(sample.labels).to(device)
    scale, mean = torch.std_mean(features, 0, correction=0)
    scale = torch.where(scale > 1e-6 * (1 + mean.abs()), scale, 1.0)
    features = (features - mean) / scale
    penalty = choose_penalty(features, sample, classes, penalties)
    everything = equal_classes(sample.labels, np.ones(len(sample.labels), bool))
    points = minimise(features, labels, _on(device, everything[:, None]), [penalty], classes, STEPS)
    weight = points[0, :-1] / scale[:, None]
    return LastLayer(weight, points[0, -1] - mean @ weight, penalty)


def _on(device: torch.device, array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32)).to(device)


def choose_penalty(
    features: Tensor, sample: Sample, classes: int, penalties: Sequence[float]
) -> float:
    """Give the penalty under which patches of train sites that are left out are told best.

    features: float32 (n, D), standardised, of the sample's patches. Least loss, the mean over what
    is left out together; each city counts the same. The last but one where nothing can be left out.
    """
    if sample.choices < 2:
        return penalties[-2:][0]
    left_out = [sample.choice == number for number in range(sample.choices)]
    fitted = [equal_classes(sample.labels, ~each) for each in left_out]
    judged = [equal_classes(sample.labels, each) for each in left_out]
    repeated = len(penalties)
    labels = torch.from_numpy(sample.labels).to(features.device)
    weights = _on(features.device, np.repeat(np.stack(fitted, 1), repeated, 1))
    judges = _on(features.device, np.repeat(np.stack(judged, 1), repeated, 1))
    all_penalties = list(penalties) * sample.choices
    points = minimise(features, labels, weights, all_penalties, classes, CHOOSING_STEPS)
    losses, _ = losses_and_gradients(features, labels, judges, points)
    by_penalty = devices.to_cpu(losses).view(sample.choices, repeated).mean(0)
    return penalties[int(by_penalty.argmin())]


def minimise(
    features: Tensor,
    labels: Tensor,
    weights: Tensor,
    penalties: Sequence[float],
    classes: int,
    steps: int,
) -> Tensor:
    """Give the weights of M problems on the same features, float32 (M, D + 1, K); the last: biases.

    features (n, D), labels int64 (n,), weights (n, M): of each patch in each problem, each column
    sums to 1; penalties: M. All go together by L-BFGS, since their sum is least where each is.
    """
    ridge = torch.tensor(penalties, dtype=torch.float32, device=features.device)[:, None, None]
    shape = (len(penalties), features.shape[1] + 1, classes)
    points = torch.zeros(shape, device=features.device)
    search = torch.optim.LBFGS(
        [points],
        max_iter=steps,
        history_size=10,
        tolerance_grad=1e-6,
        tolerance_change=1e-8,
        line_search_fn="strong_wolfe",
    )

    def loss_and_gradient() -> Tensor:
        losses, gradients = losses_and_gradients(features, labels, weights, points)
        gradients[:, :-1] += ridge * points[:, :-1]
        points.grad = gradients
        return (losses + 0.5 * (ridge * points[:, :-1] ** 2).sum((1, 2))).sum()

    search.step(loss_and_gradient)
    return points.detach()


def losses_and_gradients(
    features: Tensor, labels: Tensor, weights: Tensor, points: Tensor
) -> tuple[Tensor, Tensor]:
    """Give the weighted cross-entropy of each problem, (M,), and its gradient (M, D + 1, K).

    Without the penalty. Arguments as of minimise().
    """
    count, width, classes = points.shape
    flat = points[:, :-1].permute(1, 0, 2).reshape(width - 1, count * classes)
    losses = torch.zeros(count, device=points.device)
    of_features = torch.zeros_like(flat)
    of_biases = torch.zeros(count, classes, device=points.device)
    for first in range(0, len(features), BLOCK_ROWS):
        rows = slice(first, first + BLOCK_ROWS)
        block = features[rows]
        row_weights = weights[rows]
        logits = (block @ flat).view(-1, count, classes) + points[:, -1]
        log_likely = logits.log_softmax(2)
        own = labels[rows].view(-1, 1, 1).expand(-1, count, 1)
        losses -= (log_likely.gather(2, own).squeeze(2) * row_weights).sum(0)
        residual = log_likely.exp_()
        residual.scatter_add_(2, own, -torch.ones_like(own, dtype=residual.dtype))
        residual *= row_weights[:, :, None]
        of_features += block.T @ residual.view(len(block), -1)
        of_biases += residual.sum(0)
    by_problem = of_features.view(width - 1, count, classes).permute(1, 0, 2)
    return losses, torch.cat([by_problem, of_biases[:, None]], 1)
