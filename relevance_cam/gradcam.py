"""Grad-CAM and Grad-CAM++: gradients of the target's logit weigh the channels of a stage."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from .names import LAYERS
from .resnet import (
    Target,
    check_eval,
    check_images,
    check_layers,
    check_model,
    check_target,
    head,
    stem,
)


class GradCAM:
    """Grad-CAM maps, with the interface of RelevanceCAM.

        weight_k = mean over i, j of dS / dA_k[i, j]
        map = ReLU(sum over k of weight_k A_k)

    with S the target's logit and A_k channel k of a stage's output. The ReLU is applied, so maps
    are >= 0. Selvaraju et al., Grad-CAM, ICCV 2017, equations 1 and 2.
    """

    def __init__(self, model: nn.Module, layers: str | Sequence[str] = LAYERS):
        check_model(model)
        self.model = model
        self.layers = check_layers(layers)

    def __call__(
        self, images: torch.Tensor, target: Target = None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Maps {"layer1": (N, h, w), ...} and logits (N, K) of images (N, 3, H, W).

        See RelevanceCAM for target and errors.
        """
        found = differentiate(self.model, images, target, self.layers)
        maps = {}
        with torch.no_grad():
            for name in self.layers:
                weight = found.gradients[name].mean((2, 3))
                maps[name] = weigh(found.activations[name], weight)
        return maps, found.logits


class GradCAMPlusPlus:
    """Grad-CAM++ maps, with the interface of RelevanceCAM.

        weight_k = sum over i, j of alpha_k[i, j] ReLU(dY / dA_k[i, j])
        map = ReLU(sum over k of weight_k A_k)
        alpha = d2Y / dA2 / (2 d2Y / dA2 + (sum over a, b of A_k[a, b]) d3Y / dA3)

    with Y = exp(S), S the target's logit. S is piecewise linear in A, so with g = dS / dA the
    derivatives of Y are Y g, Y g^2 and Y g^3, and alpha = 1 / (2 + (sum of A_k) g), wanted only
    where g > 0: with A >= 0 that denominator is never 0.
    The ReLU is applied to the maps. S enters exp at most as 80, since float32 ends at 88: this
    scales a map, no more.
    Chattopadhay et al., Grad-CAM++, WACV 2018, equations 5 to 7 and 19.
    """

    def __init__(self, model: nn.Module, layers: str | Sequence[str] = LAYERS):
        check_model(model)
        self.model = model
        self.layers = check_layers(layers)

    def __call__(
        self, images: torch.Tensor, target: Target = None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Maps {"layer1": (N, h, w), ...} and logits (N, K) of images (N, 3, H, W).

        See RelevanceCAM for target and errors.
        """
        found = differentiate(self.model, images, target, self.layers)
        maps = {}
        with torch.no_grad():
            y = found.score.clamp(max=80).exp()[:, None]
            for name in self.layers:
                a = found.activations[name]
                g = found.gradients[name].relu()
                alpha_times_g = g / (2 + a.sum((2, 3), keepdim=True) * g)
                maps[name] = weigh(a, y * alpha_times_g.sum((2, 3)))
        return maps, found.logits


def weigh(activations: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """ReLU of the channels of activations (N, C, h, w) summed with weight (N, C): (N, h, w)."""
    return torch.einsum("nc,nchw->nhw", weight, activations).relu_()


class Derivatives(NamedTuple):
    """What one forward and one backward pass give."""

    activations: dict[str, torch.Tensor]  # A of each layer, (N, C, h, w)
    gradients: dict[str, torch.Tensor]  # dS / dA of each layer, (N, C, h, w)
    logits: torch.Tensor  # (N, K)
    score: torch.Tensor  # S, the targets' logits, (N,)


def differentiate(
    model: nn.Module, images: torch.Tensor, target: Target, layers: tuple[str, ...]
) -> Derivatives:
    """Differentiate the targets' logits by the outputs of layers (sorted from shallow to deep).

    One forward and one backward pass, which ends at the shallowest layer. No parameter is asked for
    its gradient, so it does not matter whether they are frozen, and none is left behind. bfloat16
    comes back as float32.
    """
    check_model(model)
    check_eval(model)
    check_images(images)
    below = LAYERS[: LAYERS.index(layers[0]) + 1]
    above = LAYERS[len(below) :]
    activations = {}
    with torch.inference_mode(False):
        with torch.no_grad():
            # Cloned, since a tensor made under inference_mode could not be differentiated.
            x = stem(model, images.clone())
            for name in below:
                x = getattr(model, name)(x)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            activations[layers[0]] = x
            for name in above:
                x = getattr(model, name)(x)
                if name in layers:
                    activations[name] = x
            logits = head(model, x)
            score = logits.gather(1, check_target(target, logits)[:, None])[:, 0]
            gradients = torch.autograd.grad(score.sum(), [activations[name] for name in layers])
    return Derivatives(
        {name: _detached(x) for name, x in activations.items()},
        {name: _detached(x) for name, x in zip(layers, gradients, strict=True)},
        logits.detach(),
        _detached(score),
    )


def _detached(x: torch.Tensor) -> torch.Tensor:
    """Give a tensor without its graph, in float32 at least."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))
