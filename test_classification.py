"""Measure a checkpoint on patches it has never seen.

    python test_classification.py --checkpoint checkpoints/resnet50/best.pth --data data/patches --split test_b

Writes metrics.json, per_city.csv, predictions.csv, confusion_matrix.csv and the confusion matrix as figures, in counts and in
percent of each true city, by default into checkpoints/<run>/<split>/.
"""
import csv
import json
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from sklearn import metrics
from torch.nn.functional import cross_entropy

import classifier
import distributed
import patches
from cli import Parser, atomic, clear_leftovers, number, run, shown
from distributed import RANK

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def arguments(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="best.pth or last.pth of a run")
    parser.add_argument("--data", default="data/patches", help="patch set, or a folder in the published layout")
    parser.add_argument("--split", default="test_b", choices=patches.SPLITS)
    parser.add_argument("--out", default=None, help="folder of the results; default: <split>/ beside the checkpoint")
    parser.add_argument("--amp", default="auto", choices=("auto", "bf16", "off"), help="auto: bf16 where the device is fast at it")
    parser.add_argument("--device", default="auto", help="auto: CUDA if there is one, else cpu")
    parser.add_argument("--workers", type=number(least=0), default=None, help="processes that read patches; default: none for a patch set, all cores for JPEGs")
    return parser.parse_args(argv)


def main(argv=None):
    args = arguments(argv)
    device = classifier.pick_device(distributed.join(args.device))
    dtype = classifier.pick_dtype(args.amp, device)
    classifier.keep_memory(device)
    model, checkpoint = classifier.load_checkpoint(args.checkpoint)
    patch_set = patches.open_split(args.data, args.split, checkpoint["image_size"])
    classes = classifier.class_names(checkpoint, patch_set, args.data, args.checkpoint)
    out = Path(args.out) if args.out else Path(args.checkpoint).parent / args.split
    out.mkdir(parents=True, exist_ok=True)
    clear_leftovers(out)

    started = time.time()
    model = model.to(device, memory_format=torch.channels_last)
    workers = args.workers if args.workers is not None else patch_set.default_workers
    logits = classifier.evaluate(model, patch_set, device, dtype, checkpoint["mean"], checkpoint["std"], workers)
    seconds = time.time() - started
    distributed.leave()
    if RANK != 0:
        return
    probabilities, true = logits.softmax(1).numpy(), patch_set.labels
    predicted = probabilities.argmax(1)

    figures = {**measure(true, predicted, probabilities), "n": len(true), "loss": cross_entropy(logits, torch.from_numpy(true)).item(),
               "device": str(device), "dtype": str(dtype).removeprefix("torch."), "checkpoint": str(args.checkpoint),
               "epoch": checkpoint["epoch"], "arch": checkpoint["arch"], "data": str(args.data), "split": args.split,
               "versions": classifier.versions()}
    with atomic(out / "metrics.json", "w", encoding="utf-8") as file:
        json.dump(figures, file, indent=1, ensure_ascii=False)
    write_rows(out / "predictions.csv", ("patch", "true", "predicted", "probability"),
               ((patch_set.name(i), classes[t], classes[p], f"{probabilities[i, p]:.6f}") for i, (t, p) in enumerate(zip(true, predicted))))
    cities = per_city(true, predicted, classes)
    write_rows(out / "per_city.csv", cities[0].keys(), (row.values() for row in cities))
    matrix = metrics.confusion_matrix(true, predicted, labels=range(len(classes)))
    write_rows(out / "confusion_matrix.csv", ("true \\ predicted", *classes), ((city, *row) for city, row in zip(classes, matrix.tolist())))
    codes = [patches.code(city) for city in classes]
    draw_confusion(out / "confusion_matrix", matrix, codes, percent=False)
    draw_confusion(out / "confusion_matrix_percent", matrix, codes, percent=True)

    print(f"\n{'city':<28}{'patches':>8}{'precision':>11}{'recall':>9}{'F1':>8}   most often taken for")
    for row in cities:
        print(f"{shown(row['city']):<28}{row['n']:>8}{row['precision']:>11.3f}{row['recall']:>9.3f}{row['f1']:>8.3f}   {shown(row['most_confused_with'])}")
    print(f"\ntop-1 {figures['accuracy']:.4f}  top-5 {figures['top5_accuracy']:.4f}  balanced {figures['balanced_accuracy']:.4f}  macro F1 "
          f"{figures['macro_f1']:.4f}  on {len(true)} patches of {args.split}; {len(true) / seconds:.0f} patches a second")
    print(f"results: {out}")


def measure(true, predicted, probabilities):
    """scikit-learn's figures over all patches, in 0 .. 1. Macro figures weigh every city alike, whatever its number of patches."""
    labels = np.arange(probabilities.shape[1])
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(true, predicted, labels=labels, average="macro", zero_division=0)
    # scikit-learn's top-k refuses two classes and k = all of them.
    rank = (probabilities > probabilities[np.arange(len(true)), true][:, None]).sum(1)
    return {"accuracy": float(metrics.accuracy_score(true, predicted)), "top5_accuracy": float((rank < 5).mean()),
            "balanced_accuracy": float(metrics.recall_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0)),
            "macro_precision": float(precision), "macro_recall": float(recall), "macro_f1": float(f1)}


def per_city(true, predicted, classes):
    """One dict a city: patches, precision, recall, F1, and the city it is most often taken for."""
    labels = np.arange(len(classes))
    precision, recall, f1, n = metrics.precision_recall_fscore_support(true, predicted, labels=labels, zero_division=0)
    wrong = metrics.confusion_matrix(true, predicted, labels=labels) * (1 - np.eye(len(classes), dtype=int))
    return [{"city": city, "code": patches.code(city), "n": int(n[i]), "precision": float(precision[i]), "recall": float(recall[i]),
             "f1": float(f1[i]), "most_confused_with": classes[wrong[i].argmax()] if wrong[i].any() else ""} for i, city in enumerate(classes)]


def write_rows(path, header, rows):
    with atomic(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


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
            axes.text(j, i, text, ha="center", va="center", fontsize=size - (len(text) > 3), color="white" if share[i, j] > 0.55 else "#222222")
    axes.set_xticks(range(len(codes)), codes, rotation=90, fontsize=size + 1, family="monospace")
    axes.set_yticks(range(len(codes)), codes, fontsize=size + 1, family="monospace")
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title("patches, % of each true city" if percent else "patches")
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(len(codes)) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(codes)) - 0.5, minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.4)
    axes.tick_params(which="minor", length=0)
    figure.colorbar(image, ax=axes, shrink=0.6, label="% of the true city's patches")
    for kind in ("png", "pdf"):
        with atomic(path.with_name(f"{path.name}.{kind}")) as file:
            figure.savefig(file, dpi=150, format=kind)
    plt.close(figure)


if __name__ == "__main__":
    run(main)
