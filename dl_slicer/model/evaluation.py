"""The network's answers for every patch of a set."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from dl_slicer.cli import InputError
from dl_slicer.distributed import RANK, WORLD, total
from dl_slicer.model import devices, networks
from dl_slicer.model.familiarity import Inside
from dl_slicer.patch_sets import batching, transforms
from dl_slicer.patch_sets.reading import PatchSet


@dataclass(frozen=True)
class Setup:
    """How answers are computed, whatever the network and the patches."""

    device: torch.device
    dtype: torch.dtype = torch.float32  # as devices.pick_dtype gives it
    mean: Sequence[float] = networks.MEAN  # of the images that the network was trained on
    std: Sequence[float] = networks.STD
    workers: int = 0  # processes that read patches; 0: this one does


class Answers(NamedTuple):
    """What the network says of N patches, float32 on the CPU, in the set's order."""

    logits: Tensor  # (N, classes)
    features: Tensor  # (N, D): what the last layer is given


@contextmanager
def seen_inside(model: nn.Module | None) -> Iterator[list[Inside]]:
    """Give a list to which each pass of the network adds what it has computed on its way.

    None: nothing is added.
    """
    passes: list[Inside] = []
    layers: list[Tensor] = []

    def keep_means(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        layers.append(output.float().mean((2, 3)))

    def keep_features(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        passes.append(Inside(*layers, inputs[0].float()))
        layers.clear()

    if model is None:
        yield passes
        return
    with (
        model.layer2.register_forward_hook(keep_means),
        model.layer3.register_forward_hook(keep_means),
        model.fc.register_forward_pre_hook(keep_features),
    ):
        yield passes


class Watch(NamedTuple):
    """How a pass over patches is seen from outside."""

    desc: str = "evaluating"  # what its progress bar is called
    stop: Callable[[], bool] = lambda: False  # asked after each batch; True ends the work


def evaluate(model: nn.Module, patch_set: PatchSet, setup: Setup, tta: bool = False) -> Answers:
    """Give the logits and the features of every patch, once. The model is left in eval mode.

    tta (test-time augmentation): of the eight symmetries of each patch the mean probabilities, as
    their logarithms, and the mean features.

    With several processes each computes every WORLD-th batch and all get the whole result; the
    batches are those of one process, so the results are, too.
    """
    seen_by_last_layer = []

    def keep_features(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen_by_last_layer.append(inputs[0].float())

    def logits_and_features(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        seen_by_last_layer.clear()
        views = list(transforms.symmetries(images)) if tta else [images]
        logits = [model(view).float() for view in views]
        features = sum(each / len(views) for each in seen_by_last_layer)
        if not tta:
            return logits[0], features
        log_probabilities = torch.stack(logits).log_softmax(2)
        return log_probabilities.logsumexp(0) - math.log(len(views)), features

    widths = (len(patch_set.classes), model.fc.in_features)
    with model.fc.register_forward_pre_hook(keep_features):
        answers = _of_all_batches(model, patch_set, setup, logits_and_features, widths, Watch())
    return Answers(*answers)


def score(
    model: nn.Module,
    patch_set: PatchSet,
    setup: Setup,
    desc: str = "evaluating",
    stop: Callable[[], bool] = lambda: False,
    confusion: Tensor | None = None,
) -> Tensor | None:
    """Give each patch's loss and whether it is right (1 or 0), as evaluate() would find them.

    Float32 (N, 2) on the CPU: far smaller than the logits of a whole split.
    desc: what the progress bar is called. stop: asked after each batch; once it says True the
    work ends and the result is None. confusion: int64 (classes, classes) on the device, in which
    the patches of this process are counted: rows are true cities, columns predicted ones.
    """

    def loss_and_is_right(images: Tensor, labels: Tensor) -> tuple[Tensor]:
        logits = model(images).float()
        loss = cross_entropy(logits, labels, reduction="none")
        predicted = logits.argmax(1)
        if confusion is not None:
            confusion.index_put_((labels, predicted), torch.ones_like(labels), accumulate=True)
        return (torch.stack([loss, (predicted == labels).float()], 1),)

    answers = _of_all_batches(model, patch_set, setup, loss_and_is_right, (2,), Watch(desc, stop))
    return None if answers is None else answers[0]


# What is to be made of a batch: of logits (n, classes), what was computed before them, and labels.
Take = Callable[[Tensor, Inside, Tensor], Tensor]


def visit(
    model: nn.Module,
    patch_set: PatchSet,
    setup: Setup,
    take: Take,
    width: int,
    watch: Watch,
    chosen: np.ndarray | None = None,
) -> Tensor | None:
    """Have each patch's answers seen, and keep nothing but what take() makes of them: (n, width).

    chosen: numbers of the patches, rising; None for all of them. None if watch.stop() said True.
    With several processes each one's take() sees its batches alone, on its device.
    """

    def answer(images: Tensor, labels: Tensor) -> tuple[Tensor]:
        logits = model(images).float()
        return (take(logits, passes.pop(), labels),)

    with seen_inside(model) as passes:
        answers = _of_all_batches(model, patch_set, setup, answer, (width,), watch, chosen)
    return None if answers is None else answers[0]


def features_of_parts(
    model: nn.Module, patch_set: PatchSet, parts: Sequence[range], setup: Setup
) -> Iterator[Tensor]:
    """Yield the features of each part's patches, float32 (n, D) on the CPU.

    A part's batches hold patches of this part alone, so that its features are the same bits
    whatever other parts there are. The model is left in eval mode.
    """
    model.eval()
    size = batch_size(setup.device)
    order = [
        range(start, min(start + size, part.stop))
        for part in parts
        for start in range(part.start, part.stop, size)
    ]
    batches = batching.batches(patch_set, order, setup.device, setup.workers)
    seen_by_last_layer = []

    def keep_features(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen_by_last_layer.append(devices.to_cpu(inputs[0].float()))

    for part in parts:
        seen_by_last_layer.clear()
        with (
            model.fc.register_forward_pre_hook(keep_features),
            torch.inference_mode(),
            devices.autocast(setup.device, setup.dtype),
            devices.explain_out_of_memory(size),
        ):
            for _ in range(part.start, part.stop, size):
                images, _ = next(batches)
                model(transforms.normalise(images, setup.mean, setup.std))
            features = torch.cat(seen_by_last_layer)
        yield features


def check_finite(answers: Tensor, dtype: torch.dtype) -> None:
    """InputError if a checkpoint's network gave a value that is not finite.

    answers: its logits, or probabilities, on any device, computed in dtype. Whoever reads the
    network's answers calls this before it writes any: NaN has a likeliest city, too.
    """
    if answers.isfinite().all():
        return
    name = str(dtype).removeprefix("torch.")
    advice = "try --amp off" if dtype == torch.bfloat16 else "take another checkpoint of the run"
    raise InputError(
        f"--checkpoint: its network computes values that are not finite in {name}; {advice}"
    )


def batch_size(device: torch.device) -> int:
    """Give how many patches are computed at a time where no gradients are needed."""
    return 512 if device.type == "cuda" else 64


def _of_all_batches(
    model: nn.Module,
    patch_set: PatchSet,
    setup: Setup,
    answer: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    widths: Sequence[int],
    watch: Watch,
    chosen: np.ndarray | None = None,
) -> list[Tensor] | None:
    """Put what answer(images, labels) gives for each batch into one tensor (N, width) a result.

    chosen: numbers of the patches that are meant; None for all. None if watch.stop() said True.
    """

    def answer_normalised(images: Tensor, labels: Tensor, place: slice) -> tuple[Tensor, ...]:
        return answer(transforms.normalise(images, setup.mean, setup.std), labels)

    model.eval()
    return of_batches(patch_set, setup, answer_normalised, widths, watch, chosen)


def of_batches(
    patch_set: PatchSet,
    setup: Setup,
    answer: Callable[[Tensor, Tensor, slice], tuple[Tensor, ...]],
    widths: Sequence[int],
    watch: Watch,
    chosen: np.ndarray | None = None,
    storage: str | None = None,
) -> list[Tensor] | None:
    """Put what answer(images, labels, place) gives of patches into one tensor (N, width) a result.

    images: uint8 (n, size, size, 3), labels: int64 (n,), both on the device; place: where these
    patches stand among the N. chosen: the numbers of the N patches; None: all. storage: as of
    batching.batches; "files" where a few of very many need not bring all onto a GPU. Float32 on the
    CPU; None if watch.stop() said True.
    With several processes each computes every WORLD-th batch and all get the whole.
    """
    numbers = range(len(patch_set)) if chosen is None else chosen
    count = len(numbers)
    device = setup.device
    size = batch_size(device)
    places = [slice(first, min(first + size, count)) for first in range(0, count, size)]
    read = [numbers[place] for place in places[RANK::WORLD]]
    batches = batching.batches(patch_set, read, device, setup.workers, storage)
    results = [torch.zeros(count, width, device=device) for width in widths]
    with (
        torch.inference_mode(),
        devices.autocast(device, setup.dtype),
        devices.explain_out_of_memory(size),
        tqdm(
            total=count,
            desc=watch.desc,
            unit=" patches",
            disable=None if RANK == 0 else True,
            leave=False,
        ) as bar,
    ):
        for turn in range(0, len(places), WORLD):
            has_a_batch = turn + RANK < len(places)  # in the last turn only some processes do
            if has_a_batch:
                place = places[turn + RANK]
                images, labels = next(batches)
                for result, rows in zip(results, answer(images, labels, place), strict=True):
                    result[place] = rows
            bar.update(sum(place.stop - place.start for place in places[turn : turn + WORLD]))
            if watch.stop():
                return None
    # A patch's rows are 0 in all processes but one.
    return [devices.to_cpu(total(result)) for result in results]
