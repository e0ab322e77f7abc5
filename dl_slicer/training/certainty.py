"""How a run ends: its checkpoints learn how sure they should be, and what they know.

One pass over 20,000 train patches at most says where the features of each city lie; one pass over
val gives the temperature and how far from there is usual. Once a run, for best.pth and for
last.pth, which are one and the same where the last epoch is the best. A run that is killed
meanwhile does with --resume what is left, and comes to the same bytes.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dl_slicer import distributed
from dl_slicer.distributed import RANK
from dl_slicer.model import checkpoints, evaluation, familiarity, networks
from dl_slicer.model.checkpoints import Checkpoint
from dl_slicer.model.evaluation import Setup, Take, Watch
from dl_slicer.model.familiarity import SHRINKAGE, Inside, Known, Moments, Space
from dl_slicer.model.temperature import Evidence
from dl_slicer.patch_sets.reading import PatchSet
from dl_slicer.training.history import write_history
from dl_slicer.training.runs import Run

NAMES = ("best.pth", "last.pth")

Stop = Callable[[], bool]


class Found(NamedTuple):
    """What a checkpoint is given."""

    temperature: float
    familiarity: dict


class Visits(NamedTuple):
    """Passes over patches, as evaluation.visit makes them, of a network that is given to them.

    Each takes (model, take, width, chosen) and gives (n, width), None if it was stopped.
    """

    train: Callable[..., Tensor | None]
    val: Callable[..., Tensor | None]


def visits_of(train: PatchSet, val: PatchSet, setup: Setup, stop: Stop) -> Visits:
    """Give the passes over what the network sees in the patches."""

    def visit(patches: PatchSet, desc: str) -> Callable[..., Tensor | None]:
        def passed(
            model: nn.Module, take: Take, width: int, chosen: object = None
        ) -> Tensor | None:
            return evaluation.visit(model, patches, setup, take, width, Watch(desc, stop), chosen)

        return passed

    return Visits(visit(train, "what is familiar"), visit(val, "temperature"))


def complete(
    run: Run, train: PatchSet, val: PatchSet, visits: Visits, device: torch.device
) -> bool:
    """Give both checkpoints of a run that is done what they lack. False if it was stopped.

    All processes must call it. log.csv has the last epoch from then on.
    """
    if run.is_judged:
        return True
    distributed.any_of(False)  # what another process has written is to be there
    known: dict[int, Found] = {}  # by epochs
    for name in NAMES:
        path = run.folder / name
        checkpoint = checkpoints.read_file(path)
        if checkpoint.temperature is not None and checkpoint.familiarity is not None:
            continue
        if checkpoint.epoch not in known:
            found = find(network_of(checkpoint, device), train, val, visits, run.args.seed)
            if found is None:
                return False
            known[checkpoint.epoch] = found
            run.say(describe(name, found))
        if RANK == 0:
            save(path, checkpoint, known[checkpoint.epoch])
    run.is_judged = True
    if RANK == 0:
        write_history(run.folder, run.told_history)
    return True


def network_of(checkpoint: Checkpoint, device: torch.device) -> nn.Module:
    """Give the network of a checkpoint on a device, as it is evaluated."""
    model = networks.new_network(checkpoint.arch, len(checkpoint.classes))
    networks.load_state(model, checkpoint.model, "the run")
    return model.to(device, memory_format=torch.channels_last)


def save(path: Path, checkpoint: Checkpoint, found: Found) -> None:
    """Write a checkpoint again, with what was found."""
    checkpoints.save_checkpoint(path, replace(checkpoint, **found._asdict()))


def find(
    model: nn.Module, train: PatchSet, val: PatchSet, visits: Visits, seed: int
) -> Found | None:
    """Give the temperature and what the network knows. None if a pass was stopped."""
    classes = len(train.classes)
    device = model.fc.weight.device
    moments = {
        name: Moments.none(classes, width, device)
        for name, width in familiarity.widths_of(model.state_dict()).items()
    }
    chosen = familiarity.choose_patches(train.labels, classes, seed)

    def learn(logits: Tensor, inside: Inside, labels: Tensor) -> Tensor:
        for name, each in moments.items():
            each.add(inside.view(name), labels)
        return logits[:, :0]

    if visits.train(model, learn, 0, chosen) is None:
        return None
    spaces = {name: each.space(SHRINKAGE[name]) for name, each in moments.items()}
    known = Known(**spaces, patches=len(chosen))
    on_device = {name: Space(*(each.to(device) for each in spaces[name])) for name in spaces}
    judged = Known(**on_device, patches=len(chosen))
    evidence = Evidence()

    def judge(logits: Tensor, inside: Inside, labels: Tensor) -> Tensor:
        evidence.add(logits, labels)
        return judged.far(inside)

    distances = visits.val(model, judge, 3, None)
    if distances is None:
        return None
    known.distances = distances
    known.labels = torch.from_numpy(val.labels.astype(np.int64))
    found = evidence.of_all_processes(classes, device).temperature(count_sites(val))
    return Found(found, known.as_dict())


def count_sites(patches: PatchSet) -> int:
    """Count the sites that patches are from."""
    places = {(int(label), patches.site(i)) for i, label in enumerate(patches.labels)}
    return len(places)


def describe(name: str, found: Found) -> str:
    """Say in a line what a checkpoint has learnt of itself."""
    known = Known.of(found.familiarity, torch.device("cpu"))
    line = f"{name}: temperature {found.temperature:.3f}, by {len(known.labels)} val patches"
    few = len(known.few())
    if few:
        line += (
            f"; {few} of {len(known.kind.means)} cities have below"
            f" {familiarity.LEAST_VAL_PATCHES} of them: too few to tell what is unlike any city"
        )
    return line
