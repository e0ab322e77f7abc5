"""A probe: the network stays as its weights file has it, and only its last layer is fitted."""

import re
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dl_slicer.cli import InputError, printable
from dl_slicer.distributed import WORLD
from dl_slicer.model import devices, networks
from dl_slicer.model.evaluation import Setup
from dl_slicer.patch_sets.reading import PatchSet
from dl_slicer.training import certainty, features, logistic, runs, saved_progress
from dl_slicer.training.features import Source
from dl_slicer.training.logistic import Axes, Blocks, Targets
from dl_slicer.training.runs import Run, Totals

PENALTIES = tuple(10.0**power for power in range(-6, 1))  # of the mean loss
MOST_CHOICES = 3  # of sites to leave out
PATCHES_TO_BEGIN = 50_000  # that the fits are begun with
CHOOSING_TOLERANCE = 1e-4  # of the loss
CHOOSING_PASSES = 60  # only the smallest penalties need more, and they are close to each other
TOLERANCE = 1e-9  # so that probabilities are right to 1e-3
FULL_PASSES = 300


class LeftOut(NamedTuple):
    """Which patches are left out together when the penalty is chosen."""

    choice: Tensor  # int64 (N,): the number of the choice that leaves a patch out; -1: none does
    choices: int
    units: str  # "sites", "rasters", or both


@dataclass
class Penalties:
    """How the penalty was chosen, as config.json and the checkpoint's args say it."""

    penalty: float
    penalties: list[float]
    left_out: str  # "sites", "rasters", both; nothing where a penalty could not be chosen
    losses: list[float]  # of the patches left out, by penalties; each city counts the same
    accuracies: list[float]
    patches: int  # that it was chosen with


def leave_out(train: PatchSet) -> LeftOut:
    """Deal the train sites of each city to a few choices; rasters where a city has one site."""
    units = _sites_and_rasters(train)
    kinds = set()
    choice = torch.full((len(train),), -1)
    dealt = {}
    for label in set(train.labels.tolist()):
        of_city = units[train.labels == label]
        kind = 0 if len(set(of_city[:, 0].tolist())) > 1 else 1
        names, number = np.unique(of_city[:, kind], return_inverse=True)
        if len(names) > 1:
            kinds.add(("sites", "rasters")[kind])
            dealt[label] = number.reshape(-1)
    choices = min(MOST_CHOICES, max((int(each.max()) + 1 for each in dealt.values()), default=0))
    for label, number in dealt.items():
        choice[torch.from_numpy(train.labels == label)] = torch.from_numpy(number % choices)
    return LeftOut(choice, choices, " and ".join(sorted(kinds, reverse=True)))


def _sites_and_rasters(train: PatchSet) -> np.ndarray:
    """The numbers of each patch's site and raster, int64 (N, 2)."""
    numbers: dict[str, int] = {}
    result = np.empty((len(train), 2), np.int64)
    for part in train.parts():
        # All patches of one array are of one raster; each JPEG may be of another.
        step = len(part.patches) if len(part.files) == 1 else 1
        for index in part.patches[::step]:
            raster = train.raster(index)
            if raster == Path(train.name(index)).with_suffix("").as_posix():
                # The published scripts' names end with the number of the patch alone.
                raster = re.sub(r"_\d+$", "", raster)
            for column, name in enumerate((f"site {train.site(index)}", f"raster {raster}")):
                result[index : index + step, column] = numbers.setdefault(name, len(numbers))
    return result


def equal_classes(labels: Tensor, is_taken: Tensor) -> Tensor:
    """Give each patch the weight that makes classes count the same, float32 (N,); the sum is 1.

    is_taken: bool (N,); the others weigh 0.
    """
    counts = torch.bincount(labels[is_taken])
    weight = 1 / (int((counts > 0).sum()) * counts.double())
    weights = torch.zeros(len(labels))
    weights[is_taken] = weight[labels[is_taken]].float()
    return weights


def choose_rows(labels: Tensor, most: int) -> Tensor:
    """Give the numbers of the patches to begin with, rising.

    Of each class about as many, evenly over its rasters.
    """
    classes = labels.unique().tolist()
    rows = []
    for label in classes:
        of_class = (labels == label).nonzero().flatten()
        count = min(len(of_class), max(1, most // len(classes)))
        rows.append(of_class[torch.arange(count) * len(of_class) // count])
    return torch.cat(rows).sort().values


def in_memory(blocks: Blocks, rows: Tensor) -> Blocks:
    """Give some of the patches as blocks of their own, which are numbered from 0."""
    chosen = []
    for part, numbers in blocks():
        within = rows[(rows >= numbers.start) & (rows < numbers.stop)] - numbers.start
        chosen.append(part[within])
    together = torch.cat(chosen)
    return lambda: [(together, slice(0, len(together)))]


def choose_penalty(
    blocks: Blocks,
    labels: Tensor,
    left_out: LeftOut,
    axes: Axes,
    starts: Tensor,
    stop: Callable[[], bool],
) -> tuple[Penalties, Tensor] | None:
    """Choose the penalty under which patches of sites that were left out are told best.

    Give it, and the weights of each choice and penalty, which are begun from starts: float64
    (choices, penalties, D + 1, K). None if stop() said so.
    """
    is_left_out = [left_out.choice == number for number in range(left_out.choices)]
    penalties = torch.tensor(PENALTIES, dtype=torch.float64).repeat(left_out.choices)
    fitted, judged = (
        Targets(labels, torch.stack([equal_classes(labels, each) for each in taken], 1), penalties)
        for taken in ([~each for each in is_left_out], is_left_out)
    )
    points = logistic.fit(
        blocks, fitted, axes, starts.flatten(0, 1), CHOOSING_TOLERANCE, stop, CHOOSING_PASSES
    )
    if points is None:
        return None
    losses, accuracies = (
        each.view(left_out.choices, -1).mean(0)
        for each in logistic.scores(blocks, judged, axes, points)
    )
    best = int(losses.argmin())
    found = Penalties(
        PENALTIES[best],
        list(PENALTIES),
        left_out.units,
        losses.tolist(),
        accuracies.tolist(),
        len(labels),
    )
    return found, points.view_as(starts)


def fit_last_layer(
    run: Run, train: PatchSet, sources: Sequence[Source], stop: Callable[[], bool]
) -> Penalties | None:
    """Give the run's network the last layer that tells the train patches best, by their features.

    run.totals becomes its loss, without the penalty, and its right patches, classes counted
    equally. None, and nothing is done, if stop() said so.
    """

    def blocks() -> Iterator[tuple[Tensor, slice]]:
        return features.blocks(sources)

    classes = len(train.classes)
    labels = torch.from_numpy(train.labels.astype(np.int64))
    rows = choose_rows(labels, PATCHES_TO_BEGIN)
    some = in_memory(blocks, rows)
    axes = logistic.find_axes(some, *logistic.mean_and_scale(blocks))
    left_out = leave_out(train)
    shape = (left_out.choices, len(PENALTIES), len(axes.mean) + 1, classes)
    points = torch.zeros(shape, dtype=torch.float64)
    found = Penalties(PENALTIES[len(PENALTIES) // 2], list(PENALTIES), "", [], [], 0)
    start = torch.zeros(1, *shape[2:], dtype=torch.float64)
    if left_out.choices > 1:
        # First with some of them, since few passes over all are needed from there.
        of_some = left_out._replace(choice=left_out.choice[rows])
        chosen = choose_penalty(some, labels[rows], of_some, axes, points, stop)
        if chosen is not None and len(rows) < len(labels):
            chosen = choose_penalty(blocks, labels, left_out, axes, chosen[1], stop)
        if chosen is None:
            return None
        found, points = chosen
        start = points[:, PENALTIES.index(found.penalty)].mean(0, keepdim=True)
    everything = torch.ones(len(labels), dtype=torch.bool)
    targets = Targets(
        labels,
        equal_classes(labels, everything)[:, None],
        torch.tensor([found.penalty], dtype=torch.float64),
    )
    points = logistic.fit(blocks, targets, axes, start, TOLERANCE, stop, FULL_PASSES)
    if points is None:
        return None
    loss, accuracy = logistic.scores(blocks, targets, axes, points)
    weights, biases = logistic.on_features(points, axes)
    with torch.no_grad():
        run.model.fc.weight.copy_(weights[0].T)
        run.model.fc.bias.copy_(biases[0])
    run.totals = Totals(float(loss) * len(train), float(accuracy) * len(train), len(train))
    return found


def score(run: Run, patches: PatchSet, sources: Sequence[Source], setup: Setup) -> Tensor:
    """Give each patch's loss and whether it is right, as evaluation.score does, by its features."""
    labels = torch.from_numpy(patches.labels.astype(np.int64)).to(setup.device)
    results = torch.zeros(len(patches), 2)
    run.model.eval()
    with torch.inference_mode(), devices.autocast(setup.device, setup.dtype):
        for part, rows in features.blocks(sources):
            logits = run.model.fc(part.to(setup.device).float()).float()
            loss = cross_entropy(logits, labels[rows], reduction="none")
            is_right = (logits.argmax(1) == labels[rows]).float()
            results[rows] = devices.to_cpu(torch.stack([loss, is_right], 1))
    return results


def begin_or_find(
    args: Namespace, train: PatchSet, val: PatchSet, device: torch.device, dtype: torch.dtype
) -> Run:
    """Begin the probe that the flags ask for; where its folder holds it, it is done already.

    InputError if the folder holds a run that must not be mixed with this one.
    """
    if WORLD > 1:
        raise InputError("--probe: one process computes it; start it without torchrun")
    decisive = runs.decisive_settings(args, train, val, dtype)
    previous = runs.find_previous(args, decisive)
    run = runs.begin(args, train, device, "none" if previous else args.weights)
    run.description["args"] = runs.settings(args, decisive)
    if previous:
        saved_progress.check_history(previous, printable(run.folder / "last.pth"))
        run.epoch = previous.epoch
        run.history = previous.metrics["history"]
        run.best = previous.metrics["best"]
        run.is_judged = previous.temperature is not None
        networks.load_state(run.model, previous.model, printable(run.folder / "last.pth"))
        run.description["args"]["fit"] = previous.args.get("fit")
    return run


def complete(
    run: Run, train: PatchSet, val: PatchSet, setup: Setup, stop: Callable[[], bool]
) -> bool:
    """Bring a probe that has begun to its end, with its checkpoints. False if stop() said so."""
    of_train = find_features(run, train, setup, "train", stop)
    # Before the fit, so that little is lost where that is stopped.
    of_val = of_train and find_features(run, val, setup, "val", stop)
    if not of_val:
        return False
    if run.epoch == 0:
        found = fit_last_layer(run, train, of_train, stop)
        if not found:
            return False
        run.say(describe(found))
        run.description["args"]["fit"] = asdict(found)
        run.finish_epoch(score(run, val, of_val, setup))
        run.save("best.pth", "last.pth")
    visits = certainty.visits_of(train, val, setup, stop)
    return certainty.complete(run, train, val, visits, setup.device)


def find_features(
    run: Run, patches: PatchSet, setup: Setup, what: str, stop: Callable[[], bool]
) -> list[Source] | None:
    """Give the features of all patches, and compute those that are not known yet.

    what: what the patches are called. None if stop() said so.
    """
    model = run.model
    folder = features.of_network(features.folder_of(run.args), run.args.arch, model, setup)
    sources = features.find_sources(folder, patches)
    known = sum(features.is_known(source, model.fc.in_features) for source in sources)
    gigabytes = 2 * len(patches) * model.fc.in_features / 1e9
    run.say(
        f"features of {len(patches)} {what} patches, {gigabytes:.1f} GB in {printable(folder)}:"
        f" {known} of {len(sources)} files are there"
    )
    if not features.compute_missing(model, patches, sources, setup, stop):
        return None
    return sources


def describe(found: Penalties) -> str:
    """Say in a line which penalty was taken, and why."""
    if not found.left_out:
        return (
            f"penalty {found.penalty:g}: none could be chosen, since no city has two train sites"
            " or rasters"
        )
    best = found.penalties.index(found.penalty)
    return (
        f"penalty {found.penalty:g} of {found.penalties[0]:g} ... {found.penalties[-1]:g}:"
        f" {found.left_out} left out are told with loss {found.losses[best]:.4f},"
        f" accuracy {found.accuracies[best]:.4f}"
    )
