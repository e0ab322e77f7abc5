"""One number that makes stated probabilities true: the temperature.

The logits of a network are divided by it before they become probabilities: above 1 it states less,
below 1 more. Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2. It is
the one that minimises the mean negative log-likelihood of patches that were not trained on. With
the inverse temperature b = 1 / T that mean is convex:

    L(b) = mean of log(sum over k of exp(b z_k)) - b z_y

    dL / d log b = b (mean of E_p[z] - z_y),    p = softmax(b z)

Its slope is summed over the patches, as they come, at 64 temperatures from 1/20 to 20, with the
slope of that; between the two where it changes its sign, the cubic that has these values and slopes
gives its zero. So nothing of a patch is kept. The result is within 1e-4 of the exact minimum, in
parts of itself, and is rounded to five digits.

Patches of a site are sure or unsure together, and it is other sites that are asked about. So where
their number is known, each site counts as one patch, and the temperature is drawn towards 1 by what
is known of any network: that log T is normally distributed with SPREAD about 0. With the S sites

    S L(b) + (log b)^2 / (2 SPREAD^2)

is the smallest. The few sites of a small set move it half way, those of 45 cities nearly all.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dl_slicer.distributed import total
from dl_slicer.model import devices

HIGHEST = 20.0  # temperature; the lowest is its inverse
STEPS = 64  # temperatures at which the slope is summed
BLOCK = 1024  # patches that are added at a time
NEUTRAL = 1.0  # what leaves probabilities as they are
SPREAD = 0.5  # of log T before anything is seen: two thirds of networks within 0.6 ... 1.65


class Sums(NamedTuple):
    """What patches add up to; the middle two are by inverse temperatures: (STEPS,)."""

    patches: Tensor  # (2,): all of them, and those whose true city has not the highest logit
    slopes: Tensor  # of their negative log-likelihood, by the logarithm of the inverse temperature
    bends: Tensor  # slopes of these slopes


@dataclass
class Evidence:
    """What is known so far of the temperature, in a memory that no patch makes larger."""

    sums: Sums | None = None

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take further patches. logits: (n, K) float; labels: (n,) int, on the same device."""
        for start in range(0, len(logits), BLOCK):
            block = slice(start, start + BLOCK)
            found = _sums_of(logits[block], labels[block])
            if self.sums is None:
                self.sums = found
            else:
                self.sums = Sums(*map(torch.add, self.sums, found))

    def of_all_processes(self, classes: int, device: torch.device) -> "Evidence":
        """Give what all processes have seen, on their devices. All must call it.

        classes: K; device: of this process, which may have seen nothing.
        """
        if self.sums is None:
            nothing = torch.zeros(0, classes, device=device)
            self.sums = _sums_of(nothing, torch.zeros(0, dtype=torch.long, device=device))
        return Evidence(Sums(*map(total, self.sums)))

    def temperature(self, sites: int | None = None) -> float:
        """Give the temperature under which the patches are the likeliest.

        sites: how many the patches are from, see above; None: each patch counts, and nothing is
        known beforehand. Then it is 1 where all are right: the lower it is, the likelier they are.
        It is also 1 where there are no patches, or a logit is not finite.
        """
        if self.sums is None:
            return NEUTRAL
        patches, slopes, bends = (devices.to_cpu(each).double().numpy() for each in self.sums)
        count, wrong = patches.tolist()
        if not count or not (np.isfinite(slopes) & np.isfinite(bends)).all():
            return NEUTRAL
        if sites is None and not wrong:
            return NEUTRAL
        if sites is not None:
            slopes = sites / count * slopes + log_inverses() / SPREAD**2
            bends = sites / count * bends + 1 / SPREAD**2
        return float(f"{math.exp(-_zero(slopes, bends)):.5g}")


def fit_temperature(
    logits: Tensor | np.ndarray, labels: Tensor | np.ndarray, sites: int | None = None
) -> float:
    """Give the temperature under which the patches are the likeliest, from 1/20 to 20.

    logits: float (N, K), before any temperature; labels: int (N,), class numbers; sites: as
    Evidence.temperature takes it. 1 where it cannot be told, as that says.
    """
    evidence = Evidence()
    evidence.add(torch.as_tensor(logits), torch.as_tensor(labels).long())
    return evidence.temperature(sites)


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Give softmax(logits / temperature), float32 (n, K); the likeliest class is that of logits.

    Two logits may be closer than float32 tells once they are divided: then the probability of the
    class with the higher one becomes the next larger number.
    """
    found = (logits.float() / temperature).softmax(1)
    if not logits.shape[1]:
        return found
    likeliest = logits.argmax(1, keepdim=True)
    highest, at = found.max(1, keepdim=True)
    raised = torch.nextafter(highest, torch.full_like(highest, 2))
    own = found.gather(1, likeliest)
    return found.scatter(1, likeliest, torch.where(at == likeliest, own, raised))


def is_temperature(value: object) -> bool:
    """Whether a value can be a temperature as it is fitted here."""
    return type(value) is float and 1 / HIGHEST <= value <= HIGHEST


def log_inverses() -> np.ndarray:
    """Give the logarithms of the inverse temperatures, rising: float64 (STEPS,)."""
    return np.linspace(-math.log(HIGHEST), math.log(HIGHEST), STEPS)


def _sums_of(logits: Tensor, labels: Tensor) -> Sums:
    dtype = devices.sum_dtype(logits.device)
    logits = logits.to(dtype)
    # Differences to the highest one: probabilities are the same, and numbers stay small.
    logits = logits - logits.max(1, keepdim=True).values
    true = logits.gather(1, labels[:, None])
    is_wrong = logits.argmax(1, keepdim=True) != labels[:, None]
    inverses = torch.from_numpy(np.exp(log_inverses())).to(dtype).to(logits.device)
    slopes = torch.empty_like(inverses)
    bends = torch.empty_like(inverses)
    for step, inverse in enumerate(inverses):
        shares = (inverse * logits).softmax(1)
        mean = (shares * logits).sum(1, keepdim=True)
        variance = (shares * (logits - mean) ** 2).sum()
        slopes[step] = inverse * (mean - true).sum()
        bends[step] = slopes[step] + inverse**2 * variance
    counts = torch.stack([torch.ones_like(is_wrong).sum(), is_wrong.sum()]).to(dtype)
    return Sums(counts, slopes, bends)


def _zero(slopes: np.ndarray, bends: np.ndarray) -> float:
    """Give the logarithm of the inverse temperature where the slope is 0, or the nearest bound.

    It is negative below that and positive above, since the likelihood is convex.
    """
    at = log_inverses()
    above = np.flatnonzero(slopes >= 0)
    if len(above) == 0:
        return float(at[-1])
    if above[0] == 0:
        return float(at[0])
    after = int(above[0])
    before = after - 1
    width = at[after] - at[before]
    low = 0.0
    high = 1.0
    for _ in range(50):
        middle = (low + high) / 2
        value = _cubic(middle, width, slopes[before : after + 1], bends[before : after + 1])
        if value < 0:
            low = middle
        else:
            high = middle
    return float(at[before] + width * high)


def _cubic(t: float, width: float, values: np.ndarray, slopes: np.ndarray) -> float:
    """Give the value at 0 <= t <= 1 of the cubic with these values and slopes at both ends."""
    first, last = values.tolist()
    first_slope, last_slope = (width * slopes).tolist()
    return (
        (2 * t**3 - 3 * t**2 + 1) * first
        + (t**3 - 2 * t**2 + t) * first_slope
        + (3 * t**2 - 2 * t**3) * last
        + (t**3 - t**2) * last_slope
    )
