"""How far colour alone goes: a control without any network, that knows no shape and no texture.

Each patch becomes 536 numbers about its colours, wherever in it they lie, and a multinomial
logistic regression of scikit-learn tells the cities by them. A network that is not better than
this one may have learned no more than the colours of a sensor or a season.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from dl_slicer.results import refitting
from dl_slicer.results.train_samples import Sample

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 8  # a channel
WIDTH = 3 + 3 + 3 * len(QUANTILES) + 3 + BINS**3
FEWEST_A_CITY = 200  # patches of train, if a city has so many
MOST_PATCHES = 10_000  # of train, all cities together: 21 MB of numbers
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # of the mean loss
STEPS = 200


def describe_colours(images: Tensor) -> Tensor:
    """Give the colours of patches as numbers: uint8 (n, h, w, 3) to float32 (n, 536).

    The means of the channels, their standard deviations, their quantiles at 5, 25, 50, 75 and 95 %
    (the smallest value that so many pixels do not exceed; channel by channel), the correlations of
    red with green, red with blue and green with blue (0 where a channel is constant), and the
    square root of the share of pixels in each of 8 x 8 x 8 boxes of colours, blue running fastest.
    Colours as 0 .. 1.
    """
    count = len(images)
    flat = images.flatten(1, 2)  # (n, pixels, 3)
    pixels = flat.shape[1]
    tones = _count_tones(flat).float() / pixels
    values = torch.arange(256, device=images.device) / 255
    means = (tones * values).sum(2)
    variances = (tones * (values - means[:, :, None]) ** 2).sum(2)
    spreads = variances.sqrt()
    shares = torch.tensor(QUANTILES, device=images.device)
    reached = tones.cumsum(2)[:, :, None] < shares[:, None] - 1e-6
    quantiles = reached.sum(3) / 255
    return torch.cat(
        [
            means,
            spreads,
            quantiles.view(count, -1),
            _correlations(flat, means, spreads),
            _count_boxes(flat).div(pixels).sqrt(),
        ],
        1,
    )


def _count_tones(flat: Tensor) -> Tensor:
    """Count the pixels of each value: uint8 (n, pixels, 3) to int64 (n, 3, 256)."""
    count = len(flat)
    first = 256 * torch.arange(3 * count, dtype=torch.int32, device=flat.device)
    numbers = flat.int() + first.view(count, 1, 3)
    return torch.bincount(numbers.flatten(), minlength=3 * 256 * count).view(count, 3, 256)


def _count_boxes(flat: Tensor) -> Tensor:
    """Count the pixels in each box of colours: uint8 (n, pixels, 3) to int64 (n, 512)."""
    count = len(flat)
    red, green, blue = (flat // (256 // BINS)).int().unbind(2)
    first = BINS**3 * torch.arange(count, dtype=torch.int32, device=flat.device)
    numbers = (red * BINS + green) * BINS + blue + first[:, None]
    return torch.bincount(numbers.flatten(), minlength=BINS**3 * count).view(count, BINS**3)


def _correlations(flat: Tensor, means: Tensor, spreads: Tensor) -> Tensor:
    """Correlate red with green, red with blue and green with blue: (n, 3)."""
    centred = flat.float() / 255 - means[:, None]
    pairs = ((0, 1), (0, 2), (1, 2))
    products = [(centred[:, :, a] * centred[:, :, b]).mean(1) for a, b in pairs]
    scales = torch.stack([spreads[:, a] * spreads[:, b] for a, b in pairs], 1)
    found = torch.stack(products, 1) / scales.clamp(min=1e-12)
    return torch.where(scales > 1e-8, found.clamp(-1, 1), 0.0)


class ColourModel(NamedTuple):
    """A classifier that sees colours alone."""

    mean: np.ndarray  # (536,) of the train patches
    scale: np.ndarray  # (536,)
    regression: LogisticRegression
    penalty: float
    units: str  # what was left out when the penalty was chosen; "" for nothing

    def classify(self, colours: np.ndarray) -> np.ndarray:
        """Give the class number of each patch, int64 (n,), by its colours (n, 536)."""
        standardised = ((colours - self.mean) / self.scale).astype(np.float32)
        return self.regression.predict(standardised)


def fit(colours: np.ndarray, sample: Sample) -> ColourModel:
    """Fit the classifier to a sample of train patches, whose colours (n, 536) are these.

    Numbers are standardised; classes weigh the same; half the penalty times the sum of squared
    weights is added to the mean loss. The penalty is the one of PENALTIES under which patches of
    whole train sites that were left out have the least loss, each city counting the same; 0.1 where
    nothing can be left out.
    """
    mean = colours.mean(0)
    scale = colours.std(0)
    scale = np.where(scale > 1e-6, scale, 1)
    standardised = ((colours - mean) / scale).astype(np.float32)
    classes = int(sample.labels.max()) + 1
    penalty = refitting.choose_penalty(torch.from_numpy(standardised), sample, classes, PENALTIES)
    regression = _regress(standardised, sample.labels, penalty)
    return ColourModel(mean, scale, regression, penalty, sample.units if sample.choices > 1 else "")


def _regress(standardised: np.ndarray, labels: np.ndarray, penalty: float) -> LogisticRegression:
    regression = LogisticRegression(
        C=1 / (penalty * len(labels)), class_weight="balanced", max_iter=STEPS, tol=1e-4
    )
    with warnings.catch_warnings():
        # After so many steps the classes no longer change but for a few patches.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return regression.fit(standardised, labels)
