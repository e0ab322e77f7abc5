"""Multinomial logistic regression on features that do not fit into memory, several at a time.

The loss is the mean over classes of each class's mean cross-entropy, plus half the penalty times
the sum of squared weights of standardised features; biases go free. In scikit-learn's words:
StandardScaler, then LogisticRegression(class_weight="balanced", C=1 / (penalty * patches)).

All problems share each pass over the features, and each goes its own way by L-BFGS (Nocedal and
Wright, Numerical Optimization, 2006, algorithm 7.5). It works on the principal axes of the
features, where the curvature is known well enough beforehand that a few dozen passes suffice.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

HISTORY = 10  # steps that L-BFGS remembers
ENOUGH_DECREASE = 1e-4  # share of the decrease that the slope promises
NOISE = 1e-7  # relative, of a loss in float32: a smaller increase is none
MOST_HALVINGS = 20
LEAST_VARIANCE = 1e-4  # along an axis; the mean over the axes is 1
BLOCK_ROWS = 2048  # patches that are computed at a time, which bounds the memory

# Features float16 (n, D) and the numbers of these n patches, anew in each pass.
Blocks = Callable[[], Iterable[tuple[Tensor, slice]]]


class Axes(NamedTuple):
    """Where features are measured from, and along which directions."""

    mean: Tensor  # (D,)
    scale: Tensor  # (D,) standard deviations; 1 where a feature is constant
    rotation: Tensor  # (D, D): principal axes of the standardised features, in its columns
    variance: Tensor  # (D,) along the axes


class Targets(NamedTuple):
    """What is fitted: M problems, F choices of patches with P penalties each (M = F * P)."""

    labels: Tensor  # int64 (N,)
    weights: Tensor  # float32 (N, F): of each patch; each column sums to 1
    penalties: Tensor  # float64 (M,), those of the first choice first


def mean_and_scale(blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Give the mean and the standard deviation of each feature, float64 (D,)."""
    count = 0
    total = squares = torch.zeros(())
    for features, _ in _small(blocks()):
        exact = features.double()
        count += len(exact)
        total = total + exact.sum(0)
        squares = squares + (exact * exact).sum(0)
    mean = total / count
    scale = (squares / count - mean * mean).clamp(min=0).sqrt()
    # As float64 rounds, a constant feature may have a tiny deviation.
    is_constant = scale <= 1e-6 * mean.abs()
    return mean, torch.where(is_constant, 1.0, scale)


def find_axes(blocks: Blocks, mean: Tensor, scale: Tensor) -> Axes:
    """Give the axes of features; some of the patches do, since any axes lead to the same fit."""
    width = len(mean)
    covariance = torch.zeros(width, width, dtype=torch.float64)
    count = 0
    for features, _ in _small(blocks()):
        standardised = (features.float() - mean.float()) / scale.float()
        covariance += standardised.T @ standardised
        count += len(features)
    variance, rotation = torch.linalg.eigh(covariance / count)
    return Axes(mean, scale, rotation, variance.clamp(min=0))


def fit(
    blocks: Blocks,
    targets: Targets,
    axes: Axes,
    starts: Tensor,
    tolerance: float,
    stop: Callable[[], bool] = lambda: False,
    most_passes: int = 300,
) -> Tensor | None:
    """Give the weights of each problem along the axes, float64 (M, D + 1, K); the last row: biases.

    starts: such weights to start from. tolerance: how much the loss may still have to fall, about.
    stop: asked after each pass; once it says True the result is None.
    """
    classes = starts.shape[2]
    descents = []
    for start, penalty in zip(starts, targets.penalties, strict=True):
        inverse = 1 / _curvature(axes, float(penalty), classes)[:, None]
        descents.append(Descent(start, inverse, tolerance))
    for _ in range(most_passes):
        going = [number for number, each in enumerate(descents) if not each.is_done]
        if not going:
            break
        trials = torch.stack([descents[number].trial for number in going])
        values, gradients = losses_and_gradients(blocks, targets, axes, trials, going)
        for number, value, gradient in zip(going, values.tolist(), gradients, strict=True):
            descents[number].tell(value, gradient)
        if stop():
            return None
    return torch.stack([each.point for each in descents])


def _curvature(axes: Axes, penalty: float, classes: int) -> Tensor:
    """About how the loss curves along each axis, and along the biases, float64 (D + 1,)."""
    # Along axes on which patches hardly differ a step would be huge, and float32 lost in it.
    variance = axes.variance.clamp(min=LEAST_VARIANCE)
    # That of a softmax which does not know yet which class it sees.
    along_axes = variance / classes + penalty
    return torch.cat([along_axes, torch.full((1,), 1 / classes, dtype=torch.float64)])


class Descent:
    """L-BFGS of one problem, which is told values and gradients where it asks for them: at trial.

    inverse: of the curvature, roughly, (D + 1, 1): what L-BFGS begins with.
    """

    def __init__(self, start: Tensor, inverse: Tensor, tolerance: float):
        self.trial = self.point = start
        self.is_done = False
        self._inverse = inverse
        self._tolerance = tolerance
        self._value = float("inf")
        self._gradient = torch.zeros_like(start)
        self._direction = torch.zeros_like(start)
        self._slope = 0.0
        self._step = 1.0
        self._halvings = 0
        self._history: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=HISTORY)

    def tell(self, value: float, gradient: Tensor) -> None:
        """Take the value and the gradient at trial, and set the next trial."""
        promised = ENOUGH_DECREASE * self._step * self._slope
        if not value <= self._value + promised + NOISE * abs(value):
            self._halvings += 1
            self._step /= 2
            # No step goes down any more: as far as numbers of this precision lead.
            self.is_done = self._halvings >= MOST_HALVINGS
            self.trial = self.point + self._step * self._direction
            return
        self._remember(self.trial - self.point, gradient - self._gradient)
        self.point = self.trial
        self._value = value
        self._gradient = gradient
        self._direction = -self._times_inverse_hessian(gradient)
        self._slope = _dot(self._direction, gradient)
        self._step = 1.0
        self._halvings = 0
        # What a step of Newton's would still gain is half of this.
        self.is_done = -self._slope <= 2 * self._tolerance
        self.trial = self.point + self._direction

    def _remember(self, moved: Tensor, changed: Tensor) -> None:
        product = _dot(moved, changed)
        if product > 1e-12 * _dot(changed, changed):
            self._history.append((moved.float(), changed.float(), product))

    def _times_inverse_hessian(self, gradient: Tensor) -> Tensor:
        result = gradient.clone()
        shares = []
        for moved, changed, product in reversed(self._history):
            share = _dot(moved, result) / product
            result -= share * changed
            shares.append(share)
        result *= self._inverse
        if self._history:
            _, changed, product = self._history[-1]
            result *= product / _dot(changed, changed * self._inverse)
        for (moved, changed, product), share in zip(self._history, reversed(shares), strict=True):
            result += (share - _dot(changed, result) / product) * moved
        return result


def losses_and_gradients(
    blocks: Blocks, targets: Targets, axes: Axes, points: Tensor, problems: list[int]
) -> tuple[Tensor, Tensor]:
    """Give the loss of each problem (m,) and its gradient (m, D + 1, K) in one pass, float64.

    points: weights along the axes, (m, D + 1, K). problems: their numbers among all M.
    """
    count, width, classes = points.shape
    weights, biases = on_features(points, axes)
    penalties = targets.penalties[problems]
    choices = torch.tensor(problems) // (len(targets.penalties) // targets.weights.shape[1])
    flat = weights.permute(1, 0, 2).reshape(width - 1, count * classes).float()
    losses = torch.zeros(count, dtype=torch.float64)
    of_features = torch.zeros(count * classes, width - 1, dtype=torch.float64)
    of_biases = torch.zeros(count, classes, dtype=torch.float64)
    for features, rows in _small(blocks()):
        exact = features.float()
        logits = (exact @ flat).view(-1, count, classes) + biases.float()
        row_weights = targets.weights[rows][:, choices]
        log_likely = logits.log_softmax(2)
        own = targets.labels[rows].view(-1, 1, 1).expand(-1, count, 1)
        losses -= (log_likely.gather(2, own).squeeze(2) * row_weights).sum(0, dtype=torch.float64)
        residual = log_likely.exp_()
        residual.scatter_add_(2, own, torch.full(own.shape, -1.0))
        residual *= row_weights[:, :, None]
        of_features += residual.view(len(exact), -1).T @ exact
        of_biases += residual.sum(0, dtype=torch.float64)
    by_problem = of_features.view(count, classes, width - 1).transpose(1, 2)
    centred = by_problem - axes.mean[:, None] * of_biases[:, None, :]
    along_axes = axes.rotation.T @ (centred / axes.scale[:, None])
    gradients = torch.cat([along_axes, of_biases[:, None, :]], 1)
    gradients[:, :-1] += penalties[:, None, None] * points[:, :-1]
    losses += 0.5 * penalties * points[:, :-1].square().sum((1, 2))
    return losses, gradients


def scores(blocks: Blocks, targets: Targets, axes: Axes, points: Tensor) -> tuple[Tensor, Tensor]:
    """Give the weighted loss without penalty, and the weighted share of right patches, (M,) each.

    targets.weights: here of the patches that are judged. points: weights along the axes.
    """
    weights, biases = on_features(points, axes)
    each_choice = len(points) // targets.weights.shape[1]
    losses = torch.zeros(len(points), dtype=torch.float64)
    rights = torch.zeros(len(points), dtype=torch.float64)
    for features, rows in _small(blocks()):
        logits = features.float() @ weights.float() + biases.float()[:, None, :]
        row_weights = targets.weights[rows].repeat_interleave(each_choice, 1).double()
        labels = targets.labels[rows]
        own = labels.view(1, -1, 1).expand(len(points), -1, 1)
        log_likely = logits.log_softmax(2).gather(2, own).squeeze(2)
        losses -= (log_likely.T * row_weights).sum(0)
        rights += ((logits.argmax(2) == labels).T * row_weights).sum(0)
    return losses, rights


def on_features(points: Tensor, axes: Axes) -> tuple[Tensor, Tensor]:
    """Give what weights along the axes are for features as they come: (m, D, K) and biases (m, K).

    Float64 both. points: (m, D + 1, K).
    """
    weights = axes.rotation @ points[:, :-1] / axes.scale[:, None]
    biases = points[:, -1] - axes.mean @ weights
    return weights, biases


def _small(blocks: Iterable[tuple[Tensor, slice]]) -> Iterator[tuple[Tensor, slice]]:
    for features, rows in blocks:
        for first in range(0, len(features), BLOCK_ROWS):
            part = features[first : first + BLOCK_ROWS]
            yield part, slice(rows.start + first, rows.start + first + len(part))


def _dot(one: Tensor, other: Tensor) -> float:
    return float(torch.dot(one.flatten().double(), other.flatten().double()))
