"""Score-CAM: each channel of a stage is weighed by the logit of the image seen through it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .maps import scale
from .names import LAYERS
from .progress import Progress, no_progress
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


class ScoreCAM:
    """Score-CAM maps, with the interface of RelevanceCAM.

        H_k = min-max scaled, upsampled A_k
        S_k = target's logit of (image x H_k) - target's logit of a baseline
        weight = softmax over k of S_k
        map = ReLU(sum over k of weight_k A_k)

    with A_k channel k of a stage's output, upsampled bilinearly to the image. The baseline's logit
    is the same for all channels and drops out of the softmax. A constant channel has no scale: its
    H_k is 0. Maps are >= 0. Wang et al., Score-CAM, CVPR 2020 workshops, algorithm 1.

    Slow by nature: one forward pass of an image for each channel, 3840 for the four layers of a
    ResNet-50. batch_size: channels to a forward pass. progress: wraps the passes, as tqdm.tqdm
    does; None for no bar.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: str | Sequence[str] = LAYERS,
        batch_size: int = 32,
        progress: Progress | None = None,
    ):
        check_model(model)
        self.model = model
        self.layers = check_layers(layers)
        self.batch_size = batch_size
        self.progress = progress or no_progress

    @torch.no_grad()
    def __call__(
        self, images: torch.Tensor, target: Target = None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Maps {"layer1": (N, h, w), ...} and logits (N, K) of images (N, 3, H, W).

        See RelevanceCAM for target and errors.
        """
        model = self.model
        check_model(model)
        check_eval(model)
        check_images(images)
        activations = {}
        x = stem(model, images)
        for name in LAYERS:
            x = getattr(model, name)(x)
            if name in self.layers:
                activations[name] = x
        logits = head(model, x)
        scores = self._score_channels(images, check_target(target, logits), activations)
        maps = {
            name: torch.stack([weigh(*pair) for pair in zip(channels, scores[name], strict=True)])
            for name, channels in activations.items()
        }
        return maps, logits

    def _score_channels(
        self, images: torch.Tensor, target: torch.Tensor, activations: dict[str, torch.Tensor]
    ) -> dict[str, list[torch.Tensor]]:
        """S_k up to the baseline: {layer: a tensor (C,) for each image}."""
        passes = [
            (name, i, channels)
            for name in self.layers
            for i in range(len(images))
            for channels in activations[name][i].split(self.batch_size)
        ]
        scores = {name: [[] for _ in images] for name in self.layers}
        for name, i, channels in self.progress(passes, desc="Score-CAM", unit=" passes"):
            scores[name][i].append(self._score(images[i], channels)[:, target[i]])
        return {name: [torch.cat(parts) for parts in of] for name, of in scores.items()}

    def _score(self, image: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
        """Logits (C, K) of an image (3, H, W) seen through each of the channels (C, h, w)."""
        upsampled = F.interpolate(
            channels[:, None], image.shape[1:], mode="bilinear", align_corners=False
        )
        return self.model(image * scale(upsampled))


def weigh(channels: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Map (h, w) of the channels (C, h, w) of a layer, from their scores (C,)."""
    channels = channels.to(torch.promote_types(channels.dtype, torch.float32))
    weight = scores.to(channels.dtype).softmax(0)
    return torch.einsum("c,chw->hw", weight, channels).relu_()
