"""The network's answers for every patch of a set."""

import math
from contextlib import nullcontext

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from dl_slicer.distributed import RANK, WORLD, total
from dl_slicer.model import devices, networks
from dl_slicer.patch_sets import batching, transforms


def evaluate(
    model,
    patch_set,
    device,
    dtype,
    mean=networks.MEAN,
    std=networks.STD,
    workers=0,
    desc="evaluating",
    stop=lambda: False,
    features=False,
    tta=False,
    score=False,
):
    """Logits of every patch, once, in the set's order: float32 tensor (N, classes) on the CPU. The model is left in eval mode.

    score: keep of each patch its loss and whether it is right (1 or 0) in place of the logits, which are large: (N, 2).
    features: give (logits, features) instead, the latter what the last layer is given, float32 (N, D) on the CPU.
    tta: of the eight symmetries of each patch the mean probabilities (as their logarithms) and the mean features.

    With several processes each computes every WORLD-th batch and all get the whole result; the batches, and so the figures, are
    those of one process. stop: asked after each batch; when it says True the evaluation ends and None is returned.
    """
    model.eval()
    batch_size = 512 if device.type == "cuda" else 64
    order = [
        range(first, min(first + batch_size, len(patch_set)))
        for first in range(0, len(patch_set), batch_size)
    ]
    batches = batching.batches(patch_set, order[RANK::WORLD], device, workers)
    kept = torch.zeros(len(patch_set), 2 if score else len(patch_set.classes), device=device)
    seen = torch.zeros(len(patch_set), model.fc.in_features if features else 0, device=device)

    def keep(layer, inputs):
        seen[batch.start : batch.stop] += inputs[0].float() / len(views)

    with (
        torch.inference_mode(),
        devices.autocast(device, dtype),
        model.fc.register_forward_pre_hook(keep) if features else nullcontext(),
        tqdm(
            total=len(patch_set),
            desc=desc,
            unit=" patches",
            disable=None if RANK == 0 else True,
            leave=False,
        ) as bar,
    ):
        for i in range(0, len(order), WORLD):
            if i + RANK < len(order):  # else the others still have one
                batch = order[i + RANK]
                images, labels = next(batches)
                views = [transforms.normalise(images, mean, std)]
                if tta:
                    views = list(transforms.symmetries(views[0]))
                logits = [model(view).float() for view in views]
                logits = (
                    torch.stack(logits).log_softmax(2).logsumexp(0) - math.log(len(views))
                    if tta
                    else logits[0]
                )
                kept[batch.start : batch.stop] = (
                    logits
                    if not score
                    else torch.stack(
                        [
                            cross_entropy(logits, labels, reduction="none"),
                            (logits.argmax(1) == labels).float(),
                        ],
                        1,
                    )
                )
            bar.update(sum(map(len, order[i : i + WORLD])))
            if stop():
                return None
        return (total(kept).cpu(), total(seen).cpu()) if features else total(kept).cpu()
