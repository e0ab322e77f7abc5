"""Measure a checkpoint on patches it has never seen.

    python test_classification.py --checkpoint checkpoints/resnet50/best.pth --data data/patches --split test_b
    python test_classification.py --checkpoint checkpoints/resnet50/best.pth --images PICTURE [PICTURE ...]

Writes, by default into checkpoints/<run>/<split>/:
    metrics.json, per_city.csv          figures with 95 % intervals over rasters, see measures.py
    predictions.csv                     one row a patch
    confusion_matrix.csv and pictures   in counts and in percent of each true city
    reliability.png                     how often the network is right where it is so sure
    similarity.csv, .png, nearest.csv   which cities resemble each other, in two views, see similarity.py
    portraits/                          what makes each city itself, and where it could be another, see portraits.py
    report.html                         all of it on one page, to be opened in a browser, see report.py
Diagrams as PDF, too. With --images instead: which cities are these pictures, rasters or folders like? See places.py; into checkpoints/<run>/places/.
"""

import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from dl_slicer import distributed, versions
from dl_slicer.cli import InputError, Parser, number, printable, run
from dl_slicer.distributed import RANK
from dl_slicer.files import clear_leftovers
from dl_slicer.machine import keep_memory
from dl_slicer.model import checkpoints, devices, evaluation
from dl_slicer.patch_sets import on_disk, reading
from dl_slicer.report import page as report
from dl_slicer.results import places, portraits, tables


def arguments(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="best.pth or last.pth of a run")
    parser.add_argument(
        "--data", default="data/patches", help="patch set, or a folder in the published layout"
    )
    parser.add_argument("--split", default="test_b", choices=on_disk.SPLITS)
    parser.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation: the mean over the eight symmetries of each patch; eight times the time",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        default=None,
        metavar="PATH",
        help="pictures, rasters or folders of them, of any place: which cities are they like?",
    )
    parser.add_argument(
        "--out",
        default=None,
        help="folder of the results; default: <split>/ (<split>_tta/, places/) beside the checkpoint",
    )
    parser.add_argument(
        "--amp",
        default="auto",
        choices=("auto", "bf16", "off"),
        help="auto: bf16 where the device is fast at it",
    )
    parser.add_argument("--device", default="auto", help="auto: CUDA if there is one, else cpu")
    parser.add_argument(
        "--workers",
        type=number(least=0),
        default=None,
        help="processes that read patches; default: none for a patch set, all cores for JPEGs",
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = arguments(argv)
    device = devices.pick_device(distributed.join(args.device))
    dtype = devices.pick_dtype(args.amp, device)
    keep_memory()
    model, checkpoint = checkpoints.load_checkpoint(args.checkpoint)
    if args.images:
        compare_places(args, model, checkpoint, device, dtype)
        return
    patch_set = reading.open_split(args.data, args.split, checkpoint.image_size)
    classes = checkpoints.class_names(checkpoint, patch_set, args.data, args.checkpoint)
    out = (
        Path(args.out)
        if args.out
        else Path(args.checkpoint).parent / (args.split + "_tta" * args.tta)
    )
    out.mkdir(parents=True, exist_ok=True)
    clear_leftovers(out)

    started = time.time()
    model = model.to(device, memory_format=torch.channels_last)
    workers = args.workers if args.workers is not None else patch_set.default_workers
    setup = evaluation.Setup(device, dtype, checkpoint.mean, checkpoint.std, workers)
    logits, features = evaluation.evaluate(model, patch_set, setup, tta=args.tta)
    seconds = time.time() - started
    distributed.leave()
    if RANK != 0:
        return
    if not logits.isfinite().all():
        raise InputError(
            f"{printable(args.checkpoint)}: computes values that are not finite in {str(dtype).removeprefix('torch.')}"
            f"{'; try --amp off' if dtype == torch.bfloat16 else ''}"
        )
    true, rasters = (
        patch_set.labels.astype(np.int64),
        [patch_set.raster(i) for i in range(len(patch_set))],
    )
    figures = {
        "loss": cross_entropy(logits, torch.from_numpy(true)).item(),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "checkpoint": str(args.checkpoint),
        "epoch": checkpoint.epoch,
        "arch": checkpoint.arch,
        "data": str(args.data),
        "split": args.split,
        "tta": args.tta,
        "versions": versions.installed(),
    }
    names = [patch_set.name(i) for i in range(len(patch_set))]
    figures, cities, near = tables.write_results(
        out, classes, names, rasters, true, logits.softmax(1).numpy(), features.numpy(), figures
    )
    tables.print_results(figures, cities, near)
    sheets = portraits.write(out, model, checkpoint, patch_set, logits, near, device)
    page = report.write(out, Path(args.checkpoint).parent)
    print(
        f"{len(true)} patches of {args.split}, {len(true) / seconds:.0f} a second; results: {out}; portraits of {sheets} cities: {out / 'portraits'}\n"
        f"the report, to be opened in a browser:\n{page}"
    )


def compare_places(args, model, checkpoint, device, dtype):
    """--images: one process is enough for it."""
    distributed.leave()
    if RANK != 0:
        return
    if checkpoint.classes is None:
        try:
            patch_set = reading.open_split(args.data, args.split, checkpoint.image_size)
        except InputError as error:
            raise InputError(
                f"{printable(args.checkpoint)}: has no class names; give the data set it was trained on as --data, they are taken from there ({error})"
            ) from None
        checkpoint.classes = checkpoints.class_names(
            checkpoint, patch_set, args.data, args.checkpoint
        )
    out = Path(args.out) if args.out else Path(args.checkpoint).parent / "places"
    places.compare(
        args.images,
        model.to(device, memory_format=torch.channels_last),
        checkpoint,
        checkpoint.classes,
        device,
        dtype,
        out,
    )


if __name__ == "__main__":
    run(main)
