"""What does a network go by? The same patches, with one cue taken away at a time.

Beside the network as it is stands the same network with its last layer fitted anew on train patches
that were altered alike. The network has never seen grey or shuffled patches, and may fail on them
since they are strange to it; only what it cannot tell either once its last layer knows them was not
to be told from its features without that cue.

And two controls: colour alone (colour_alone.py) and the names of whole sites exchanged
(exchanged_sites.py).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dl_slicer.cli import InputError, printable
from dl_slicer.model import devices, evaluation
from dl_slicer.model.evaluation import Answers, Setup, Watch
from dl_slicer.patch_sets import on_disk, reading, transforms
from dl_slicer.patch_sets.reading import PatchSet
from dl_slicer.results import alterations, colour_alone, refitting, train_samples
from dl_slicer.results.alterations import Alteration
from dl_slicer.results.train_samples import Sample

SEED = 0
USUAL_METRES = 0.417  # of a pixel of the published rasters
FROM_FILES = "files"  # few of the train patches: not all need come onto a GPU
SHARE = 0.4  # train patches for the last layer, beside each measured patch
FEWEST_A_CITY = 30  # train patches for the last layer, if a city has so many
MOST_PATCHES = 20_000  # of all cities together: 160 MB of features of ResNet-50


class Measured(NamedTuple):
    """The class that each of N patches is taken for, when shown in one way: int64 (N,) each."""

    shown: np.ndarray  # by the network as it is
    refitted: np.ndarray  # by the network with its last layer fitted anew for such patches
    penalty: float  # of that fit


@dataclass
class Cues:
    """What was measured, before it is put into tables."""

    unaltered: Measured
    altered: dict[str, Measured]  # by the name of the alteration
    colours: np.ndarray  # float32 (N, 536): of the measured patches, see colour_alone.py
    train_colours: np.ndarray  # float32 (n, 536): of some train patches
    colour_sample: Sample  # which these are
    refit_sample: Sample  # that last layers were fitted to
    sites: list[str]  # of the N patches
    image_size: int  # side of a patch as the network sees it, in pixels
    metres_a_pixel: float  # that the network sees
    is_assumed: bool  # whether that is not known of these rasters


@dataclass
class Measuring:
    """What all measurements share."""

    model: nn.Module
    measured: PatchSet
    train: PatchSet
    setup: Setup
    classes: int


def open_train(data: str | Path, image_size: int, classes: list[str]) -> PatchSet:
    """Give the train split that --cues needs; InputError, in one line, if it is not to be had."""
    try:
        train = reading.open_split(data, "train", image_size)
    except InputError as error:
        raise InputError(
            f"--cues: fits on the train patches of --data, which are not to be had ({error})"
        ) from None
    if list(train.classes) != list(classes):
        raise InputError(
            f"--cues: the train patches of {printable(data)} are of other cities than those"
            " that the checkpoint tells apart"
        )
    if len(np.unique(train.labels)) < 2:
        raise InputError(
            f"--cues: the train patches of {printable(data)} are of one city alone;"
            " there is nothing to tell apart"
        )
    return train


def measure(
    model: nn.Module,
    measured: PatchSet,
    train: PatchSet,
    setup: Setup,
    answers: Answers,
    patch_size: int | None = None,
    metres_a_pixel: float | None = None,
) -> Cues:
    """Measure every alteration. The model is left in eval mode, and as it was.

    answers: of the measured patches as they are. patch_size: a patch's side in pixels of the
    rasters; metres_a_pixel: of the rasters; both where the measured patches do not say it.
    With several processes all must call this; each computes its batches, and all get the whole.
    """
    model.eval()
    work = Measuring(model, measured, train, setup, answers.logits.shape[1])
    colour_sample = train_samples.draw(train, colour_sample_size(measured), SEED)
    train_colours = find_colours(train, setup, colour_sample.rows)
    colours = find_colours(measured, setup)

    sample = train_samples.draw(train, sample_size(measured), SEED)
    features = altered_features(work, sample, None)
    layer = refitting.fit_last_layer(features, sample, work.classes, setup.device)
    refitted = layer.classify(answers.features.to(setup.device))
    unaltered = Measured(_numbers(answers.logits.argmax(1)), _numbers(refitted), layer.penalty)

    mean, spread = (train_colours[:, first : first + 3].mean(0).tolist() for first in (0, 3))
    altered = {}
    for alteration in alterations.all_alterations(mean, spread):
        altered[alteration.name] = measure_altered(work, sample, alteration)
    known = measured.metres_a_pixel or metres_a_pixel
    raster_pixels = measured.patch_size or patch_size or on_disk.PATCH_SIZE
    return Cues(
        unaltered,
        altered,
        colours,
        train_colours,
        colour_sample,
        sample,
        [measured.site(number) for number in range(len(measured))],
        measured.image_size,
        (known or USUAL_METRES) * raster_pixels / measured.image_size,
        known is None,
    )


def sample_size(measured: PatchSet) -> int:
    """Say how many train patches a last layer is fitted to: 0.4 for each that is measured.

    So all of it takes less than 25 evaluations: 12 of the measured patches, 5.2 in 13 passes over
    the sample, and the rest is for altering and fitting. But at least 30 a city (of very few
    patches it takes longer), and at most 20,000.
    """
    return min(max(int(SHARE * len(measured)), FEWEST_A_CITY * len(measured.classes)), MOST_PATCHES)


def colour_sample_size(measured: PatchSet) -> int:
    """Say how many train patches colour alone is fitted to: two for each that is measured.

    But at least 200 a city, and at most 10,000.
    """
    wanted = max(2 * len(measured), colour_alone.FEWEST_A_CITY * len(measured.classes))
    return min(wanted, colour_alone.MOST_PATCHES)


def measure_altered(work: Measuring, sample: Sample, alteration: Alteration) -> Measured:
    """Fit the last layer to a sample of altered patches, then measure the altered patches."""
    features = altered_features(work, sample, alteration)
    layer = refitting.fit_last_layer(features, sample, work.classes, work.setup.device)
    del features
    drawn = draw(alteration, len(work.measured), work.measured.image_size, 0)
    seen: list[Tensor] = []

    def classify(images: Tensor, labels: Tensor, place: slice) -> tuple[Tensor]:
        shown = work.model(prepare(images, alteration, drawn, place, work.setup)).argmax(1)
        with torch.autocast(work.setup.device.type, enabled=False):
            refitted = layer.classify(seen.pop())
        return (torch.stack([shown, refitted], 1).float(),)

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].float())

    with work.model.fc.register_forward_pre_hook(keep):
        (found,) = evaluation.of_batches(
            work.measured, work.setup, classify, (2,), Watch(alteration.name)
        )
    shown, refitted = found.unbind(1)
    return Measured(_numbers(shown), _numbers(refitted), layer.penalty)


def altered_features(work: Measuring, sample: Sample, alteration: Alteration | None) -> Tensor:
    """Give what the last layer is given of train patches, altered or not: float32 (n, D)."""
    drawn = draw(alteration, len(sample.rows), work.train.image_size, 1)
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].float())

    def features(images: Tensor, labels: Tensor, place: slice) -> tuple[Tensor]:
        work.model(prepare(images, alteration, drawn, place, work.setup))
        return (seen.pop(),)

    with work.model.fc.register_forward_pre_hook(keep):
        (found,) = evaluation.of_batches(
            work.train,
            work.setup,
            features,
            (work.model.fc.in_features,),
            Watch(f"{alteration.name if alteration else 'unaltered'}, train"),
            sample.rows,
            FROM_FILES,
        )
    return found


def draw(alteration: Alteration | None, count: int, side: int, which: int) -> np.ndarray | None:
    """Draw what an alteration needs for each patch. which: 0 for measured patches, 1 for train."""
    if alteration is None or alteration.draw is None:
        return None
    letters = list(alteration.name.encode())
    rng = np.random.default_rng([SEED, which, *letters])
    return alteration.draw(rng, count, side)


def prepare(
    images: Tensor,
    alteration: Alteration | None,
    drawn: np.ndarray | None,
    place: slice,
    setup: Setup,
) -> Tensor:
    """Alter a batch uint8 (n, size, size, 3) and give it as the network sees it."""
    if alteration is None:
        return transforms.normalise(images, setup.mean, setup.std)
    colours = (images.float() / 255).permute(0, 3, 1, 2)
    # In float32, whatever the network is computed in.
    with torch.autocast(setup.device.type, enabled=False):
        if drawn is None:
            altered = alteration.alter(colours)
        else:
            altered = alteration.alter(colours, torch.from_numpy(drawn[place]).to(setup.device))
    as_before = (255 * altered).permute(0, 2, 3, 1)
    return transforms.channels_last(transforms.normalise(as_before, setup.mean, setup.std))


def find_colours(
    patch_set: PatchSet,
    setup: Setup,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Describe the colours of patches, see colour_alone: float32 (n, 536)."""

    def describe(images: Tensor, labels: Tensor, place: slice) -> tuple[Tensor]:
        with torch.autocast(setup.device.type, enabled=False):
            return (colour_alone.describe_colours(images),)

    (found,) = evaluation.of_batches(
        patch_set,
        setup,
        describe,
        (colour_alone.WIDTH,),
        Watch("colours"),
        rows,
        None if rows is None else FROM_FILES,
    )
    return found.numpy()


def _numbers(classes: Tensor) -> np.ndarray:
    """Give class numbers as int64, from any device."""
    return devices.to_cpu(classes).numpy().astype(np.int64)
