"""The rules of Relevance-CAM, for the non-negative inputs that every layer of a ResNet above its first convolution has.

Every rule hands an input its share of relevance in proportion to the input itself. So the relevance R of an activation
x >= 0 is written R = x c, and the rules pass on c, the relevance *per unit of activation*:

    average pooling   x c = R x / sum x, with R = c' sum x / n        c = c' / n, with n inputs to a mean
    residual sum      a c = R a / (a + b), with R = c' relu(a + b)    c = c' for both summands where a + b > 0, else 0
    linear, conv      x c = x w+ transposed (R / (w+ x))              c = w+ transposed (R / (w+ x))
    ReLU, batch norm  R stays: of the ReLU's output x, c' x           R = c' x goes to the convolution below

which leaves a single division for each convolution, and none that could go wrong elsewhere. On inputs >= 0 the half of the
z+ rule with the negative weights has nothing to share. Biases get no share. A division by 0 gives 0.

Rules: z+ of Montavon et al., Pattern Recognition 65 (2017); start and residual sum of Lee et al., CVPR 2021, 14944-14953.
"""

import torch
import torch.nn.functional as F


def start(logits, target):
    """Relevance (N, K) of the logits (N, K): 1 at target (N,), -1 / K at every other class."""
    relevance = torch.full_like(logits, -1 / logits.shape[1])
    return relevance.scatter_(1, target[:, None], 1)


def positive(weight):
    """w+: the weights, the negative ones at 0."""
    return weight.clamp(min=0)


def safe_divide(y, z):
    """y / z for z >= 0, and 0 where z is 0. Uses the memory of z."""
    return torch.div(y, F.threshold_(z, 0, float("inf")), out=z)


def linear(x, weight, relevance):
    """c (N, C) of the input x >= 0 (N, C) of a linear layer (K, C) whose output has this relevance (N, K)."""
    weight = positive(weight)
    return safe_divide(relevance, F.linear(x, weight)) @ weight


def conv(x, weight, conv):
    """(w+ x): what the non-negative weights of a convolution make of its input."""
    return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def conv_transposed(s, weight, conv, size):
    """(w+ transposed s), with the spatial size of the convolution's input."""
    rest = [
        size[i]
        - (
            (s.shape[2 + i] - 1) * conv.stride[i]
            - 2 * conv.padding[i]
            + conv.dilation[i] * (conv.kernel_size[i] - 1)
            + 1
        )
        for i in range(2)
    ]
    return F.conv_transpose2d(
        s, weight, None, conv.stride, conv.padding, rest, conv.groups, conv.dilation
    )


def residual(c, out):
    """c of both summands, from c of the block's output out = relu(a + b). All three have one shape."""
    return torch.ops.aten.threshold_backward.grad_input(c, out, 0, grad_input=c)
