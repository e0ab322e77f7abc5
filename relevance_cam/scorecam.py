"""Score-CAM: each channel of a stage is weighed by the logit of the image seen through that channel."""

import torch
import torch.nn.functional as F
from tqdm import tqdm

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


class ScoreCAM:
    """Score-CAM maps, with the interface of RelevanceCAM.

        H_k = min-max scaled, upsampled A_k        S_k = target's logit of (image x H_k) - target's logit of a baseline
        weight = softmax over k of S_k             map = ReLU(sum over k of weight_k A_k)

    with A_k channel k of a stage's output, upsampled bilinearly to the image. The baseline's logit is the same for all
    channels and drops out of the softmax. A constant channel has no scale: its H_k is 0. Maps are >= 0.
    Wang et al., Score-CAM, CVPR 2020 workshops, algorithm 1.

    Slow by nature: one forward pass of an image for each channel, 3840 for the four layers of a ResNet-50.
    batch_size: channels to a forward pass. progress: draw a bar that counts them on stderr.
    """

    def __init__(self, model, layers=LAYERS, batch_size=32, progress=True):
        check_model(model)
        self.model, self.layers, self.batch_size, self.progress = (
            model,
            check_layers(layers),
            batch_size,
            progress,
        )

    @torch.no_grad()
    def __call__(self, images, target=None):
        """maps {"layer1": (N, h, w), ...} and logits (N, K) of images (N, 3, H, W). See RelevanceCAM for target and errors."""
        model = self.model
        check_model(model)
        check_eval(model)
        check_images(images)
        activations, x = {}, stem(model, images)
        for name in LAYERS:
            x = getattr(model, name)(x)
            if name in self.layers:
                activations[name] = x
        logits = head(model, x)
        target = check_target(target, logits)

        total = len(images) * sum(activations[name].shape[1] for name in self.layers)
        maps = {}
        with tqdm(
            total=total, desc="Score-CAM", unit="channel", leave=False, disable=not self.progress
        ) as bar:
            for name in self.layers:
                maps[name] = torch.stack(
                    [self.map(*args, bar) for args in zip(images, target, activations[name])]
                )
        return maps, logits

    def map(self, image, target, channels, bar):
        """Map (h, w) of one image (3, H, W) from the channels (C, h, w) of a layer."""
        scores = []
        for part in channels.split(self.batch_size):
            mask = F.interpolate(
                part[:, None], image.shape[1:], mode="bilinear", align_corners=False
            )
            low, high = mask.amin((2, 3), keepdim=True), mask.amax((2, 3), keepdim=True)
            mask = (mask - low) / (high - low).where(high > low, 1)
            scores.append(self.model(image * mask)[:, target])
            bar.update(len(part))
        channels = channels.to(torch.promote_types(channels.dtype, torch.float32))
        weight = torch.cat(scores).to(channels.dtype).softmax(0)
        return torch.einsum("c,chw->hw", weight, channels).relu_()
