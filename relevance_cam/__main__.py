"""Draw what in a patch, or in a whole raster, makes it that city.

    python -m relevance_cam --checkpoint checkpoints/resnet50/best.pth --data data/patches --split test_b --per-city 10
    python -m relevance_cam --checkpoint checkpoints/resnet50/best.pth --methods relevance-cam grad-cam grad-cam++ score-cam
    python -m relevance_cam --checkpoint checkpoints/resnet50/best.pth --raster picture.jpg --target "Almaty (ALA)"

Writes, by default into checkpoints/<run>/saliency/: a figure for each patch, a contact sheet for each city, patches.csv.
"""

import difflib
import re
import sys
import time
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dl_slicer.cli import InputError, Parser, atomic, number, run, shown, write_rows
from dl_slicer.model import checkpoints as classifier
from dl_slicer.patch_sets import batching as loader
from dl_slicer.patch_sets import reading as patches
from dl_slicer.results import panels as figures

from . import GradCAM, GradCAMPlusPlus, RelevanceCAM, ScoreCAM, quality, rasters
from .resnet import LAYERS, check_layers, check_model

METHODS = {
    "relevance-cam": RelevanceCAM,
    "grad-cam": GradCAM,
    "grad-cam++": GradCAMPlusPlus,
    "score-cam": partial(ScoreCAM, progress=sys.stderr.isatty()),
}


def arguments(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="best.pth or last.pth of a run")
    parser.add_argument(
        "--data", default="data/patches", help="patch set, or a folder in the published layout"
    )
    parser.add_argument("--split", default="test_b", choices=patches.SPLITS)
    parser.add_argument(
        "--raw", default=None, help="folder of the rasters, if it has moved since preprocessing"
    )
    parser.add_argument(
        "--per-city", type=number(least=1), default=10, help="patches drawn of each city"
    )
    parser.add_argument("--layers", nargs="+", default=list(LAYERS), help="depths to explain")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["relevance-cam"],
        choices=METHODS,
        help="score-cam is slow by nature",
    )
    parser.add_argument(
        "--target",
        default=None,
        metavar="CITY",
        help="explain this city (name or code) instead of the predicted one",
    )
    parser.add_argument(
        "--raster", default=None, metavar="FILE", help="explain a whole raster instead of patches"
    )
    parser.add_argument("--seed", type=number(least=0), default=0, help="of the draw of patches")
    parser.add_argument(
        "--quality",
        action="store_true",
        help="also quality.csv: how good the maps are, by method and depth; slow",
    )
    parser.add_argument("--save-maps", action="store_true", help="also maps.npz with the raw maps")
    parser.add_argument("--device", default="auto", help="auto: CUDA if there is one, else cpu")
    parser.add_argument(
        "--out",
        default=None,
        help="folder of the figures; default: saliency/ beside the checkpoint",
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = arguments(argv)
    device = classifier.pick_device(args.device)
    try:
        layers = check_layers(args.layers)
    except ValueError as error:
        raise InputError(f"--layers: {error}") from None
    model, checkpoint = classifier.load_checkpoint(args.checkpoint)
    try:
        check_model(model)
    except TypeError as error:
        raise InputError(f"{shown(args.checkpoint)}: {error}") from None
    model = model.to(device, memory_format=torch.channels_last)
    patch_set = None
    if args.raster is None or checkpoint["classes"] is None:
        patch_set = patches.open_split(args.data, args.split, checkpoint["image_size"])
        checkpoint["classes"] = classifier.class_names(
            checkpoint, patch_set, args.data, args.checkpoint
        )
    target = None if args.target is None else find_city(args.target, checkpoint["classes"])
    methods = {name: METHODS[name](model, layers) for name in dict.fromkeys(args.methods)}
    out = Path(args.out) if args.out else Path(args.checkpoint).parent / "saliency"
    if args.raster is not None:
        explain_raster(args, checkpoint, methods, target, device, out)
        return

    started = time.time()
    chosen = draw_patches(patch_set, args.per_city, args.seed)
    maps, logits = explain(methods, patch_set, chosen, checkpoint, target, device)
    rows = draw_figures(out, patch_set, chosen, maps, logits, target, args.raw)
    write_rows(out / "patches.csv", rows[0], (row.values() for row in rows))
    if args.save_maps:
        with atomic(out / "maps.npz") as file:
            arrays = {
                f"{name}/{layer}": values.numpy()
                for name, by_layer in maps.items()
                for layer, values in by_layer.items()
            }
            np.savez_compressed(
                file,
                patch=[row["patch"] for row in rows],
                logits=logits.numpy(),
                classes=patch_set.classes,
                **arrays,
            )
    if args.quality:
        write_quality(
            out, args.methods, model, patch_set, chosen, checkpoint, target, layers, device
        )
    print(
        f"{len(chosen)} patches of {len(patch_set.classes)} cities, {len(methods)} {'method' if len(methods) == 1 else 'methods'}, "
        f"{', '.join(layers)}: {time.time() - started:.0f} s\nfigures: {out}/<city>/, contact sheets: {out}/<city>.jpg, patches.csv"
        + (", maps.npz" if args.save_maps else "")
        + (", quality.csv" if args.quality else "")
    )


def find_city(name, classes):
    """The class index of a city given by its full name, its name without the code, or its code. InputError if there is none."""
    names = {}
    for index, city in enumerate(classes):
        for form in (patches.code(city), re.sub(r"\s*\([^()]*\)$", "", city), city):
            names[form.casefold()] = index
    if name.casefold() not in names:
        near = difflib.get_close_matches(name.casefold(), names, 1, 0.5)
        few = ", ".join(patches.code(city) for city in classes[:50])
        hint = f"did you mean {classes[names[near[0]]]}?" if near else f"the cities are {few}"
        raise InputError(
            f"--target {shown(name)}: the checkpoint knows no such city; {shown(hint)}"
        )
    return names[name.casefold()]


def draw_patches(patch_set, per_city, seed):
    """Up to so many patches of each city, a pure function of seed and the city's name; in the set's order."""
    chosen = []
    for label, city in enumerate(patch_set.classes):
        own = np.flatnonzero(patch_set.labels == label)
        if len(own) < per_city:
            print(
                f"{shown(city)}: has only {len(own)} patches in {patch_set.split}, all of them are drawn"
            )
        order = np.random.default_rng([seed, zlib.crc32(city.encode())]).permutation(len(own))
        chosen += sorted(own[order[:per_city]].tolist())
    return np.array(chosen)


def explain(methods, patch_set, chosen, checkpoint, target, device, batch_size=8):
    """{method: {layer: raw maps (N, h, w)}} and logits (N, K) on the CPU."""
    maps, logits = {name: {} for name in methods}, []
    for i in tqdm(
        range(0, len(chosen), batch_size),
        desc="explaining",
        unit=" batches",
        disable=None,
        leave=False,
    ):
        images = torch.from_numpy(patch_set.read(chosen[i : i + batch_size])).to(device)
        images = loader.normalise(images, checkpoint["mean"], checkpoint["std"])
        for name, method in methods.items():
            found, scores = method(images, target)
            for layer, values in found.items():
                maps[name].setdefault(layer, []).append(values.float().cpu())
        logits.append(scores.float().cpu())
    return {
        name: {layer: torch.cat(parts) for layer, parts in by_layer.items()}
        for name, by_layer in maps.items()
    }, torch.cat(logits)


def draw_figures(out, patch_set, chosen, maps, logits, target, raw):
    """Write every figure. Returns the rows of patches.csv."""
    classes, codes = patch_set.classes, [patches.code(city) for city in patch_set.classes]
    probabilities, rows = logits.softmax(1), []
    first = next(iter(maps))
    with tqdm(total=len(chosen), desc="drawing", unit=" patches", disable=None, leave=False) as bar:
        for label in sorted(set(patch_set.labels[chosen].tolist())):
            pictures, found, labels = [], [], []
            for k in np.flatnonzero(patch_set.labels[chosen] == label):
                index, predicted = int(chosen[k]), int(logits[k].argmax())
                explained = predicted if target is None else target
                own = {
                    name: {layer: values[k] for layer, values in by_layer.items()}
                    for name, by_layer in maps.items()
                }
                picture = patch_set.original(index, raw).convert("RGB")
                title = f"true {classes[label]}, predicted {classes[predicted]} {100 * probabilities[k, predicted]:.1f} %"
                if explained != predicted:
                    title += f", explained {classes[explained]} {100 * probabilities[k, explained]:.1f} %"
                name = f"{len(pictures) + 1:02d}_{re.sub(r'[^0-9A-Za-z_.-]+', '_', patch_set.name(index).split('/', 1)[1])}"
                file = out / classes[label] / f"{name}.jpg"
                right = predicted == label
                save(file, figures.patch_figure(picture, own[first], title, right))
                if len(maps) > 1:
                    save(
                        file.with_name(f"{name}_methods.jpg"),
                        figures.comparison_figure(picture, own, title, right),
                    )
                pictures.append(picture)
                found.append(own[first])
                ink = figures.RIGHT if right else figures.WRONG
                labels.append(
                    [
                        (f"predicted {codes[predicted]}", ink),
                        (f"{100 * probabilities[k, predicted]:.1f} %", ink),
                    ]
                    + (
                        [(f"explained {codes[explained]}", figures.INK)]
                        if explained != predicted
                        else []
                    )
                )
                rows.append(
                    {
                        "patch": patch_set.name(index),
                        "true": classes[label],
                        "predicted": classes[predicted],
                        "probability": f"{probabilities[k, predicted]:.6f}",
                        "explained": classes[explained],
                        "figure": file.relative_to(out).as_posix(),
                    }
                )
                bar.update()
            save(
                out / f"{classes[label]}.jpg",
                figures.contact_sheet(pictures, found, f"{classes[label]}: {first}", labels),
            )
    return rows


def save(path, picture):
    with atomic(path, sync=False) as file:
        picture.save(file, "JPEG", quality=88)


def explain_raster(args, checkpoint, methods, target, device, out):
    """Write <raster>_<method>.jpg for a whole raster, and its maps if asked for."""
    file, classes = Path(args.raster), checkpoint["classes"]
    size, patch_size = checkpoint["image_size"], checkpoint["patch_size"] or 480
    step = max(1, round((checkpoint["stride"] or 240) * size / patch_size))
    try:
        raster = patches.read_image(file)
    except patches.UnreadableImage as error:
        raise InputError(f"{shown(file)}: {error}") from None
    if min(raster.size) < patch_size:
        raise InputError(
            f"{shown(file)}: {raster.width} x {raster.height} pixels, smaller than a patch of {patch_size} x {patch_size}"
        )
    pixels = np.asarray(
        patches.resize(raster, tuple(max(size, round(n * size / patch_size)) for n in raster.size))
    )
    for name, method in methods.items():
        maps, probability, explained = rasters.blend(
            method,
            pixels,
            size,
            step,
            lambda images: loader.normalise(images, checkpoint["mean"], checkpoint["std"]),
            target,
            device,
        )
        title = f"{shown(file.name)}: {name} for {classes[explained]}"
        save(
            out / f"{file.stem}_{name}.jpg",
            rasters.draw(
                raster, maps, probability, classes, [patches.code(c) for c in classes], title
            ),
        )
        print(
            f"{shown(file.name)}: explained as {shown(classes[explained])}, mean probability {probability[..., explained].mean():.3f}; "
            f"{out / f'{file.stem}_{name}.jpg'}"
        )
        if args.save_maps:
            with atomic(out / f"{file.stem}_{name}.npz") as opened:
                np.savez_compressed(
                    opened,
                    probability=probability.astype(np.float32),
                    classes=classes,
                    target=explained,
                    **maps,
                )


def write_quality(out, names, model, patch_set, chosen, checkpoint, target, layers, device):
    """quality.csv: average drop, increase, deletion, insertion and randomisation, a row for each method and depth."""
    images = loader.normalise(
        torch.from_numpy(patch_set.read(chosen)).to(device), checkpoint["mean"], checkpoint["std"]
    )
    rows = quality.table(
        model, {name: METHODS[name] for name in dict.fromkeys(names)}, images, target, layers
    )
    write_rows(out / "quality.csv", rows[0], (row.values() for row in rows))


if __name__ == "__main__":
    run(main)
