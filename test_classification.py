"""Measure a checkpoint on patches it has never seen.

    python test_classification.py --checkpoint checkpoints/resnet50/best.pth --data data/patches
    python test_classification.py --checkpoint checkpoints/resnet50/best.pth --images PATH ...

Writes, by default into checkpoints/<run>/<split>/:
    metrics.json, per_city.csv          accuracy and more, with 95 % intervals over rasters
    predictions.csv                     one row a patch
    confusion_matrix.csv and pictures   in counts and in percent of each true city
    reliability.png                     how often the network is right where it is so sure
    similarity.csv, .png, nearest.csv   which cities resemble each other, in two views
    portraits/                          what makes each city itself, and where it could be another
    cues.csv, .png, controls.json, colour_alone.csv     with --cues: what it goes by
    report.html                         all of it on one page, to be opened in a browser
    logits.npy                          with --logits
    contents.json                       these files, which the next call replaces, and the flags
Diagrams as PDF, too. How each is made is told in dl_slicer/results/.
With --images instead: which cities are these pictures, rasters or folders like?
Into checkpoints/<run>/places/: places.csv; of each raster of several patches a figure and a page to
look around in; of each that says where it lies GeoTIFFs and GeoJSON.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dl_slicer import versions
from dl_slicer.cli import InputError, Parser, printable, run
from dl_slicer.machine import keep_memory
from dl_slicer.model import flags

if TYPE_CHECKING:  # names of types alone: torch is imported when the flags have been read
    import torch
    from torch import nn

    from dl_slicer.model.checkpoints import Checkpoint
    from dl_slicer.model.evaluation import Setup
    from dl_slicer.patch_sets.reading import PatchSet
    from dl_slicer.results.cues import Cues

COMMAND = "test_classification.py"


def read_flags(argv: Sequence[str] | None = None) -> Namespace:
    """Read the command line; InputError if it is wrong."""
    parser = Parser(__doc__)
    model = parser.add_argument_group("model")
    flags.add_checkpoint(model)
    model.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation: the mean over the eight symmetries of each patch;"
        " eight times the time",
    )
    model.add_argument(
        "--cues",
        action="store_true",
        help="what does it go by? The same patches without colour, fine texture, layout and so on,"
        " and colour alone as a control; at most 25 times the time, and the train patches are read",
    )
    data = parser.add_argument_group("data")
    flags.add_data(data)
    flags.add_split(data)
    data.add_argument(
        "--images",
        nargs="+",
        metavar="PATH",
        help="pictures, rasters or folders of them, of any place: which cities are they like?",
    )
    machine = parser.add_argument_group("machine")
    flags.add_device(machine)
    flags.add_precision(machine)
    flags.add_workers(machine)
    results = parser.add_argument_group("results")
    results.add_argument(
        "--logits",
        action="store_true",
        help="also write logits.npy, float32 (patches, cities): the network's logits before any"
        " temperature, in the order of predictions.csv",
    )
    results.add_argument(
        "--out",
        help="folder of the results;"
        " default: <split>/ (<split>_tta/, places/) beside the checkpoint",
    )
    args = parser.parse_args(argv)
    if args.images and args.tta:
        parser.error("--tta: is for the patches of a split, not for --images")
    if args.cues and (args.images or args.tta):
        other = "--images" if args.images else "--tta"
        parser.error(f"--cues: measures the patches of a split as they are, without {other}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Measure a checkpoint as the flags say, and write what was found."""
    args = read_flags(argv)
    # Only now: torch takes seconds to import, and a wrong flag is told at once.
    import torch

    from dl_slicer import distributed
    from dl_slicer.model import checkpoints, devices, evaluation
    from dl_slicer.patch_sets import reading
    from dl_slicer.results import cue_tables, cues, portraits, result_folder, tables

    device = devices.pick_device(distributed.join(args.device))
    dtype = devices.pick_dtype(args.amp, device)
    keep_memory()
    model, checkpoint = checkpoints.load_checkpoint(args.checkpoint)
    model = model.to(device, memory_format=torch.channels_last)
    if args.images:
        compare_places(args, model, checkpoint, device, dtype)
        return
    patch_set = reading.open_split(args.data, args.split, checkpoint.image_size)
    classes = checkpoints.class_names(checkpoint, patch_set, args.data, args.checkpoint)
    checkpoints.check_sizes(patch_set, checkpoint, args.data, args.checkpoint)
    train = cues.open_train(args.data, checkpoint.image_size, classes) if args.cues else None

    call = result_folder.Call(
        output_folder(args), COMMAND, vars(args), "metrics.json", made_later=["report.html"]
    )
    with result_folder.new_results(call) as new:
        started = time.time()
        workers = patch_set.default_workers if args.workers is None else args.workers
        setup = evaluation.Setup(device, dtype, checkpoint.mean, checkpoint.std, workers)
        logits, features = evaluation.evaluate(model, patch_set, setup, tta=args.tta)
        seconds = time.time() - started
        gone_by = find_cues(model, checkpoint, patch_set, train, setup, (logits, features))
        distributed.leave()
        if new is None:  # another process writes the results
            return
        evaluation.check_finite(logits, dtype)

        predictions = tables.collect(patch_set, classes, logits, features, checkpoint.temperature)
        losses = tables.losses(logits, predictions.true, checkpoint.divisor)
        circumstances = describe_circumstances(args, checkpoint, patch_set, device, dtype)
        results = tables.write_results(new, predictions, losses | circumstances)
        write_logits(args, new, logits)
        tables.print_results(results)
        cue_tables.write_cues(new, gone_by, predictions)
        sheets = portraits.write_portraits(
            new, model, checkpoint, patch_set, logits, results.nearest
        )
        fault = write_page(new, args.checkpoint)
    out = call.out
    say_doubts(patch_set)
    print(
        f"{len(patch_set)} patches of {args.split}, {len(patch_set) / seconds:.0f} a second;"
        f" results: {out}; portraits of {sheets} cities: {out / 'portraits'}"
    )
    if fault:
        raise fault
    print(f"the report, to be opened in a browser:\n{out / 'report.html'}")


def write_logits(args: Namespace, new: Path, logits: torch.Tensor) -> None:
    """Write logits.npy into a folder of new results, where --logits asks for it.

    logits: (N, K) on the CPU, in the order of predictions.csv.
    """
    import numpy as np

    if args.logits:
        np.save(new / "logits.npy", logits.float().numpy())


def say_doubts(patch_set: PatchSet) -> None:
    """Say what is not as it should be in a patch set, or not known."""
    if patch_set.allow_overlap:
        print(
            "not kept apart: preprocessing was told --allow-overlap, so some of these patches show"
            " ground that training patches show, and every figure is too good"
        )
    if patch_set.split == "held-out" and any(part.split == "val" for part in patch_set.regions):
        print(
            "held-out has val patches, too: they gave the temperature and chose best.pth; measure"
            " last.pth, and take how sure it is from --split test"
        )
    unplaced = patch_set.describe_unplaced()
    if unplaced:
        print(f"portraits: {unplaced}; a row of portraits has at most one of each such raster")


def write_page(out: Path, checkpoint: str) -> InputError | None:
    """Write report.html. Give what hinders it, from files of the run: the results are kept."""
    from dl_slicer.report import page

    try:
        page.write_report(out, Path(checkpoint).parent)
    except InputError as error:
        return error
    return None


def write_explorers(new: Path) -> None:
    """Write the page of each raster whose layers lie in a folder of new results."""
    from dl_slicer.report import explorer

    for folder in sorted(new.glob("*.explorer")):
        explorer.write_explorer(folder)


def find_cues(
    model: nn.Module,
    checkpoint: Checkpoint,
    patch_set: PatchSet,
    train: PatchSet | None,
    setup: Setup,
    answers: tuple[torch.Tensor, torch.Tensor],
) -> Cues | None:
    """--cues: measure what the network goes by; None without train patches, that is, without it.

    answers: logits and features of the patches as they are. All processes take part.
    """
    from dl_slicer.model import evaluation
    from dl_slicer.results import cues

    if train is None:
        return None
    logits, features = answers
    evaluation.check_finite(logits, setup.dtype)
    return cues.measure(
        model,
        patch_set,
        train,
        setup,
        evaluation.Answers(logits, features),
        checkpoint.patch_size,
        checkpoint.metres_a_pixel,
    )


def output_folder(args: Namespace) -> Path:
    """Give the folder of the results: --out, or one beside the checkpoint."""
    if args.out:
        return Path(args.out)
    name = f"{args.split}_tta" if args.tta else args.split
    return Path(args.checkpoint).parent / ("places" if args.images else name)


def name_of(dtype: torch.dtype) -> str:
    """Name a precision: float32 or bfloat16."""
    return str(dtype).removeprefix("torch.")


def describe_circumstances(
    args: Namespace,
    checkpoint: Checkpoint,
    patch_set: PatchSet,
    device: torch.device,
    dtype: torch.dtype,
) -> dict:
    """Give what metrics.json says of how the test was made."""
    others = {"allow_overlap": True} if patch_set.allow_overlap else {}
    return {
        **others,
        "device": str(device),
        "dtype": name_of(dtype),
        "checkpoint": str(args.checkpoint),
        "epoch": checkpoint.epoch,
        "arch": checkpoint.arch,
        "data": str(args.data),
        "split": args.split,
        "tta": args.tta,
        "patch_size": patch_set.patch_size,
        "stride": patch_set.stride,
        "image_size": patch_set.image_size,
        "trained_stride": checkpoint.stride,
        "versions": versions.installed(),
    }


def compare_places(
    args: Namespace,
    model: nn.Module,
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """--images: which cities are these files like? One process is enough for it."""
    from dl_slicer import distributed
    from dl_slicer.results import places, result_folder

    distributed.leave()
    if distributed.RANK != 0:
        return
    classes = checkpoint.classes or classes_of_data(args, checkpoint)
    out = output_folder(args)
    call = result_folder.Call(
        out, f"{COMMAND} --images", vars(args), "places.csv", finish=write_explorers
    )
    places.compare(args.images, model, checkpoint, classes, device, dtype, call)


def classes_of_data(args: Namespace, checkpoint: Checkpoint) -> list[str]:
    """Take the names of a checkpoint's classes from the data set; InputError if that fails."""
    from dl_slicer.model import checkpoints
    from dl_slicer.patch_sets import reading

    try:
        patch_set = reading.open_split(args.data, args.split, checkpoint.image_size)
    except InputError as error:
        raise InputError(
            f"{printable(args.checkpoint)}: has no class names; give the data set it was trained on"
            f" as --data, they are taken from there ({error})"
        ) from None
    return checkpoints.class_names(checkpoint, patch_set, args.data, args.checkpoint)


if __name__ == "__main__":
    run(main, interrupted="nothing is kept, the same command starts anew")
