"""The rules of Relevance-CAM, for the non-negative inputs of a ResNet's layers.

Every layer of a ResNet above its first convolution has inputs >= 0, and every rule hands an input
its share of relevance in proportion to the input itself. So the relevance R of an activation x >= 0
is written R = x c, and the rules pass on c, the relevance *per unit of activation*, which the code
calls the quotient (R / x). With c' the quotient of a layer's output and c that of its input:

    average pooling   x c = R x / sum x, with R = c' sum x / n
                      c = c' / n, with n inputs to a mean
    residual sum      a c = R a / (a + b), with R = c' relu(a + b)
                      c = c' for both summands where a + b > 0, else 0
    linear, conv      x c = x w+ transposed (R / (w+ x))
                      c = w+ transposed (R / (w+ x))
    ReLU, batch norm  R stays: of the ReLU's output x, c' x
                      R = c' x goes to the convolution below

which leaves a single division for each convolution, and none that could go wrong elsewhere. On
inputs >= 0 the half of the z+ rule with the negative weights has nothing to share. Biases get no
share. A division by 0 gives 0.

Rules: z+ of Montavon et al., Pattern Recognition 65 (2017); start and residual sum of Lee et al.,
CVPR 2021, 14944-14953.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


def start(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Relevance (N, K) of the logits (N, K): 1 at target (N,), -1 / K at every other class."""
    relevance = torch.full_like(logits, -1 / logits.shape[1])
    return relevance.scatter_(1, target[:, None], 1)


def positive(weight: torch.Tensor) -> torch.Tensor:
    """w+: the weights, the negative ones at 0."""
    return weight.clamp(min=0)


def safe_divide(y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Give y / z for z >= 0, and 0 where z is 0. The result takes the memory of z."""
    return torch.div(y, F.threshold_(z, 0, float("inf")), out=z)


def linear(x: torch.Tensor, weight: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    """Quotient (N, C) of the input x >= 0 (N, C) of a linear layer with this weight (K, C).

    relevance: of the layer's output (N, K).
    """
    weight = positive(weight)
    return safe_divide(relevance, F.linear(x, weight)) @ weight


def conv(x: torch.Tensor, weight: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """(w+ x): what the non-negative weights of a convolution make of its input."""
    return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def conv_transposed(
    s: torch.Tensor, weight: torch.Tensor, conv: nn.Conv2d, size: Sequence[int]
) -> torch.Tensor:
    """(w+ transposed s), with the spatial size (h, w) of the convolution's input."""
    # Rows and columns at the lower right that the stride did not reach.
    rest = []
    for i in range(2):
        window = conv.dilation[i] * (conv.kernel_size[i] - 1) + 1
        reached = (s.shape[2 + i] - 1) * conv.stride[i] - 2 * conv.padding[i] + window
        rest.append(size[i] - reached)
    return F.conv_transpose2d(
        s, weight, None, conv.stride, conv.padding, rest, conv.groups, conv.dilation
    )


def residual(quotient: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Quotient of both summands, from that of the block's output out = relu(a + b).

    All three have one shape. The result takes the memory of the quotient that is given.
    """
    return torch.ops.aten.threshold_backward.grad_input(quotient, out, 0, grad_input=quotient)
