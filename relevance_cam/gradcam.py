"""Grad-CAM and Grad-CAM++: gradients of the target's logit weigh the channels of a stage."""

import torch

from .resnet import (
    LAYERS,
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

        weight_k = mean over i, j of dS / dA_k[i, j]        map = ReLU(sum over k of weight_k A_k)

    with S the target's logit and A_k channel k of a stage's output. The ReLU is applied, so maps are >= 0.
    Selvaraju et al., Grad-CAM, ICCV 2017, equations 1 and 2.
    """

    def __init__(self, model, layers=LAYERS):
        check_model(model)
        self.model, self.layers = model, check_layers(layers)

    def __call__(self, images, target=None):
        """maps {"layer1": (N, h, w), ...} and logits (N, K) of images (N, 3, H, W). See RelevanceCAM for target and errors."""
        activations, gradients, logits, _ = differentiate(self.model, images, target, self.layers)
        with torch.no_grad():
            maps = {
                name: weigh(activations[name], gradients[name].mean((2, 3))) for name in self.layers
            }
        return maps, logits


class GradCAMPlusPlus:
    """Grad-CAM++ maps, with the interface of RelevanceCAM.

        weight_k = sum over i, j of alpha_k[i, j] ReLU(dY / dA_k[i, j])        map = ReLU(sum over k of weight_k A_k)
        alpha = d2Y / dA2 / (2 d2Y / dA2 + (sum over a, b of A_k[a, b]) d3Y / dA3)

    with Y = exp(S), S the target's logit. S is piecewise linear in A, so with g = dS / dA the derivatives of Y are Y g, Y g^2
    and Y g^3, and alpha = 1 / (2 + (sum of A_k) g), wanted only where g > 0: with A >= 0 that denominator is never 0.
    The ReLU is applied to the maps. S enters exp at most as 80, since float32 ends at 88: this scales a map, no more.
    Chattopadhay et al., Grad-CAM++, WACV 2018, equations 5 to 7 and 19.
    """

    def __init__(self, model, layers=LAYERS):
        check_model(model)
        self.model, self.layers = model, check_layers(layers)

    def __call__(self, images, target=None):
        """maps {"layer1": (N, h, w), ...} and logits (N, K) of images (N, 3, H, W). See RelevanceCAM for target and errors."""
        activations, gradients, logits, score = differentiate(
            self.model, images, target, self.layers
        )
        with torch.no_grad():
            y = score.clamp(max=80).exp()[:, None]
            maps = {}
            for name in self.layers:
                a, g = activations[name], gradients[name].relu()
                weight = (g / (2 + a.sum((2, 3), keepdim=True) * g)).sum((2, 3))
                maps[name] = weigh(a, y * weight)
        return maps, logits


def weigh(activations, weight):
    """ReLU of the channels of activations (N, C, h, w) summed with weight (N, C): (N, h, w)."""
    return torch.einsum("nc,nchw->nhw", weight, activations).relu_()


def differentiate(model, images, target, layers):
    """Activations A and gradients dS / dA {layer: (N, C, h, w)}, logits (N, K) and the targets' logits S (N,).

    One forward and one backward pass, which ends at the shallowest layer. No parameter is asked for its gradient, so it
    does not matter whether they are frozen, and none is left behind. bfloat16 comes back as float32.
    """
    check_model(model)
    check_eval(model)
    check_images(images)
    activations = {}
    with torch.inference_mode(False):
        with torch.no_grad():
            x = stem(
                model, images.clone()
            )  # a tensor made under inference_mode could not be differentiated
            for name in LAYERS[: LAYERS.index(layers[0]) + 1]:
                x = getattr(model, name)(x)
        with torch.enable_grad():
            x = activations[layers[0]] = x.detach().requires_grad_()
            for name in LAYERS[LAYERS.index(layers[0]) + 1 :]:
                x = getattr(model, name)(x)
                if name in layers:
                    activations[name] = x
            logits = head(model, x)
            score = logits.gather(1, check_target(target, logits)[:, None])[:, 0]
            gradients = torch.autograd.grad(score.sum(), [activations[name] for name in layers])

    def plain(x):
        return x.detach().to(torch.promote_types(x.dtype, torch.float32))

    activations = {name: plain(x) for name, x in activations.items()}
    return activations, dict(zip(layers, map(plain, gradients))), logits.detach(), plain(score)
