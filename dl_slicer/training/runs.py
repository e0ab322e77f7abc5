"""The state of a run: what a resumed one goes on with."""

import json
import os
from pathlib import Path

import torch

from dl_slicer import versions
from dl_slicer.cli import InputError, printable
from dl_slicer.distributed import WORLD
from dl_slicer.files import atomic
from dl_slicer.model import checkpoints
from dl_slicer.training import recipes


def run_folder(name):
    """A bare name lies under checkpoints/, anything with a slash is a path."""
    return Path(name) if os.sep in name or name in (".", "..") else Path("checkpoints", name)


def resume(folder, args, fixed):
    """The checkpoint to go on with, or None for a new run. InputError if the folder holds a run that must not be mixed with this one."""
    file = folder / "last.pth"
    if not file.is_file():
        return None
    if not args.resume:
        raise InputError(
            f"{printable(folder)}: holds a run already; go on with it with --resume, or choose another --run"
        )
    begun = checkpoints.read_file(file)
    needed = (begun.args, begun.optimizer, begun.metrics, begun.rng, begun.epoch, begun.step)
    if any(value is None for value in needed):
        raise InputError(
            f"{printable(file)}: no checkpoint of train_classification.py that can be gone on with"
        )
    before = begun.args
    before = recipes.RECIPES["published"] | before  # runs of before there were others
    changed = [
        f"{key} was {printable(before.get(key))}, is {printable(fixed[key])}"
        for key in fixed
        if before.get(key) != fixed[key]
    ]
    if changed:
        raise InputError(
            f"--resume {printable(folder)}: would not give that run's result: {'; '.join(changed)}"
        )
    if begun.epoch > args.epochs:
        raise InputError(
            f"--resume {printable(folder)}: has {begun.epoch} epochs already, --epochs {args.epochs} is fewer"
        )
    return begun


def write_config(folder, settings, device):
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    config = {
        **settings,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "processes": WORLD,
        "versions": versions.installed(),
    }
    with atomic(folder / "config.json", "w", encoding="utf-8") as file:
        json.dump(config, file, indent=1, ensure_ascii=False)
