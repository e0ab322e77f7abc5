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

import json
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from sklearn import metrics
from torch.nn.functional import cross_entropy

from dl_slicer import distributed
from dl_slicer.cli import (
    InputError,
    Parser,
    atomic,
    clear_leftovers,
    keep_memory,
    number,
    run,
    shown,
    write_rows,
)
from dl_slicer.distributed import RANK
from dl_slicer.model import checkpoints as classifier
from dl_slicer.patch_sets import reading as patches
from dl_slicer.report import page as report
from dl_slicer.results import accuracy as measures
from dl_slicer.results import places, portraits
from dl_slicer.results import resemblance as similarity

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def arguments(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="best.pth or last.pth of a run")
    parser.add_argument(
        "--data", default="data/patches", help="patch set, or a folder in the published layout"
    )
    parser.add_argument("--split", default="test_b", choices=patches.SPLITS)
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
    device = classifier.pick_device(distributed.join(args.device))
    dtype = classifier.pick_dtype(args.amp, device)
    keep_memory()
    model, checkpoint = classifier.load_checkpoint(args.checkpoint)
    if args.images:
        compare_places(args, model, checkpoint, device, dtype)
        return
    patch_set = patches.open_split(args.data, args.split, checkpoint["image_size"])
    classes = classifier.class_names(checkpoint, patch_set, args.data, args.checkpoint)
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
    logits, features = classifier.evaluate(
        model,
        patch_set,
        device,
        dtype,
        checkpoint["mean"],
        checkpoint["std"],
        workers,
        features=True,
        tta=args.tta,
    )
    seconds = time.time() - started
    distributed.leave()
    if RANK != 0:
        return
    if not logits.isfinite().all():
        raise InputError(
            f"{shown(args.checkpoint)}: computes values that are not finite in {str(dtype).removeprefix('torch.')}"
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
        "epoch": checkpoint["epoch"],
        "arch": checkpoint["arch"],
        "data": str(args.data),
        "split": args.split,
        "tta": args.tta,
        "versions": classifier.versions(),
    }
    names = [patch_set.name(i) for i in range(len(patch_set))]
    figures, cities, near = write_results(
        out, classes, names, rasters, true, logits.softmax(1).numpy(), features.numpy(), figures
    )
    show(figures, cities, near)
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
    if checkpoint["classes"] is None:
        try:
            patch_set = patches.open_split(args.data, args.split, checkpoint["image_size"])
        except InputError as error:
            raise InputError(
                f"{shown(args.checkpoint)}: has no class names; give the data set it was trained on as --data, they are taken from there ({error})"
            ) from None
        checkpoint["classes"] = classifier.class_names(
            checkpoint, patch_set, args.data, args.checkpoint
        )
    out = Path(args.out) if args.out else Path(args.checkpoint).parent / "places"
    places.compare(
        args.images,
        model.to(device, memory_format=torch.channels_last),
        checkpoint,
        checkpoint["classes"],
        device,
        dtype,
        out,
    )


def write_results(out, classes, names, rasters, true, probabilities, features, more):
    """All tables and pictures of a test. N patches: names and rasters (lists), true (N,) int, probabilities (N, K), features (N, D);
    more: what else to say in metrics.json. Returns what is in metrics.json, per_city.csv and nearest.csv (dicts)."""
    predicted, codes = probabilities.argmax(1), [patches.code(city) for city in classes]
    everything = range(len(classes))
    matrix = metrics.confusion_matrix(true, predicted, labels=everything)
    write_rows(
        out / "predictions.csv",
        ("patch", "true", "predicted", "probability", "true_probability", "raster"),
        (
            (
                names[i],
                classes[t],
                classes[p],
                f"{probabilities[i, p]:.6f}",
                f"{probabilities[i, t]:.6f}",
                rasters[i],
            )
            for i, (t, p) in enumerate(zip(true, predicted))
        ),
    )
    write_rows(
        out / "confusion_matrix.csv",
        ("true \\ predicted", *classes),
        ((city, *row) for city, row in zip(classes, matrix.tolist())),
    )
    draw_confusion(out / "confusion_matrix", matrix, codes, percent=False)
    draw_confusion(out / "confusion_matrix_percent", matrix, codes, percent=True)

    cities = measures.per_city(true, probabilities, rasters, classes)
    write_rows(out / "per_city.csv", cities[0], (row.values() for row in cities))
    draw_reliability(out / "reliability", true, probabilities)

    expected = np.array([probabilities[true == city].sum(0) for city in everything])
    confused, alike = (
        similarity.by_confusion(matrix),
        similarity.by_features(features, true, len(classes)),
    )
    near = similarity.nearest(confused, alike, similarity.by_confusion(expected), classes, codes)
    pairs = similarity.pairs(confused, alike, classes)
    write_rows(out / "similarity.csv", pairs[0], (row.values() for row in pairs))
    write_rows(out / "nearest.csv", near[0], (row.values() for row in near))
    similarity.draw(out / "similarity", confused, alike, codes)

    figures = {
        **measures.figures(true, probabilities),
        "accuracy_ci95": measures.intervals(true, predicted == true, rasters, len(classes))[0],
        "interval": measures.basis(true, rasters),
        "n_rasters": sum(row["rasters"] for row in cities),
        "raster_accuracy": measures.raster_accuracy(true, probabilities, rasters),
        "n": len(true),
        "confused_pairs": measures.confused_pairs(matrix, classes),
        "views_rank_correlation": similarity.views_correlation(confused, alike),
        **more,
    }
    with atomic(out / "metrics.json", "w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(figures, file, indent=1, ensure_ascii=False, allow_nan=False)
    return figures, cities, near


def show(figures, cities, near):
    def percent(value):
        return "" if value is None else f"{100 * value:.1f}"

    print(
        f"\n{'city':<28}{'patches':>8}{'rasters':>8}{'accuracy %':>12}{'95 %':>14}{'F1 %':>7}   {'taken for':<11}nearest by features"
    )
    for row, other in zip(cities, near):
        ends = (
            f"{percent(row['ci95_low'])} - {percent(row['ci95_high'])}"
            if row["ci95_low"] is not None
            else ""
        )
        codes = [patches.code(other[f"features_{i}"]) for i in (1, 2, 3)]
        print(
            f"{shown(row['city']):<28}{row['n']:>8}{row['rasters']:>8}{percent(row['accuracy']):>12}{ends:>14}{percent(row['f1']):>7}   "
            f"{shown(patches.code(row['most_confused_with'])):<11}{shown(' '.join(codes))}{'  (views disagree)' if other['views'] == 'disagree' else ''}"
        )
    ends = figures["accuracy_ci95"]
    print(
        f"\ntop-1 {figures['accuracy']:.4f}"
        + (f" (95 %: {ends[0]:.4f} to {ends[1]:.4f})" if ends else "")
        + f"  top-5 {figures['top5_accuracy']:.4f}  "
        f"balanced {figures['balanced_accuracy']:.4f}  macro F1 {figures['macro_f1']:.4f}  whole rasters {figures['raster_accuracy']:.4f}  "
        f"calibration error {figures['ece']:.4f}\ninterval: {figures['interval']}"
    )


def draw_reliability(path, true, probabilities):
    """The reliability diagram as <path>.png and .pdf: in each bin of the highest probability, how often it was right, and how many patches."""
    bins = 15
    error, counts, confidence, accuracy = measures.calibration(true, probabilities, bins)
    figure, (axis, below) = plt.subplots(
        2, 1, figsize=(5, 6), height_ratios=(3, 1), sharex=True, layout="constrained"
    )
    middle = (np.arange(bins) + 0.5) / bins
    axis.plot(
        (0, 1), (0, 1), color="#888888", linestyle="--", linewidth=1, label="perfectly calibrated"
    )
    axis.bar(middle, accuracy, 0.92 / bins, color="#3b78b5", label="accuracy")
    axis.plot(
        confidence,
        confidence,
        "_",
        color="#c2410c",
        markersize=11,
        markeredgewidth=2,
        label="mean confidence",
    )
    axis.set(
        xlim=(0, 1),
        ylim=(0, 1.02),
        ylabel="accuracy",
        title=f"expected calibration error {100 * error:.1f} %, accuracy "
        f"{100 * (probabilities.argmax(1) == true).mean():.1f} %",
    )
    axis.legend(loc="upper left", frameon=False)
    below.bar(middle, 100 * counts / len(true), 0.92 / bins, color="#888888")
    below.set(xlabel="confidence (highest probability)", ylabel="% of patches")
    for each in (axis, below):
        each.spines[["top", "right"]].set_visible(False)
    similarity.save_figure(path, figure)


def draw_confusion(path, matrix, codes, percent):
    """The confusion matrix as <path>.png and .pdf: rows are true cities, coloured by their share, written as counts or per cent."""
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = max(4.5, 0.36 * len(codes) + 1.6)
    figure, axes = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
    image = axes.imshow(100 * share, cmap="Blues", vmin=0, vmax=100)
    size = 10 if len(codes) <= 12 else 7
    for i, j in np.ndindex(*matrix.shape):
        if matrix[i, j]:
            text = f"{100 * share[i, j]:.0f}" if percent else str(matrix[i, j])
            axes.text(
                j,
                i,
                text,
                ha="center",
                va="center",
                fontsize=size - (len(text) > 3),
                color="white" if share[i, j] > 0.55 else "#222222",
            )
    axes.set_xticks(
        range(len(codes)),
        codes,
        rotation=90,
        fontsize=size + 1,
        family="monospace",
        parse_math=False,
    )
    axes.set_yticks(
        range(len(codes)), codes, fontsize=size + 1, family="monospace", parse_math=False
    )
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title("patches, % of each true city" if percent else "patches")
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(len(codes)) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(codes)) - 0.5, minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.4)
    axes.tick_params(which="minor", length=0)
    figure.colorbar(image, ax=axes, shrink=0.6, label="% of the true city's patches")
    similarity.save_figure(path, figure)


if __name__ == "__main__":
    run(main)
