"""Saliency pictures of patches and rasters."""

import re
import zlib
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dl_slicer.cities import city_code
from dl_slicer.cli import InputError, printable
from dl_slicer.files import atomic, write_rows
from dl_slicer.patch_sets import image_files, transforms
from dl_slicer.patch_sets.image_files import UnreadableImage
from dl_slicer.results import panels as figures
from dl_slicer.results import raster_figures
from relevance_cam import __main__, quality, rasters


def pick_patches(patch_set, per_city, seed):
    """Up to so many patches of each city, a pure function of seed and the city's name; in the set's order."""
    chosen = []
    for label, city in enumerate(patch_set.classes):
        own = np.flatnonzero(patch_set.labels == label)
        if len(own) < per_city:
            print(
                f"{printable(city)}: has only {len(own)} patches in {patch_set.split}, all of them are drawn"
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
        images = transforms.normalise(images, checkpoint.mean, checkpoint.std)
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
    classes, codes = patch_set.classes, [city_code(city) for city in patch_set.classes]
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
    file, classes = Path(args.raster), checkpoint.classes
    size, patch_size = checkpoint.image_size, checkpoint.patch_size or 480
    step = max(1, round((checkpoint.stride or 240) * size / patch_size))
    try:
        raster = image_files.read_image(file)
    except UnreadableImage as error:
        raise InputError(f"{printable(file)}: {error}") from None
    if min(raster.size) < patch_size:
        raise InputError(
            f"{printable(file)}: {raster.width} x {raster.height} pixels, smaller than a patch of {patch_size} x {patch_size}"
        )
    pixels = np.asarray(
        image_files.resize(
            raster, tuple(max(size, round(n * size / patch_size)) for n in raster.size)
        )
    )
    for name, method in methods.items():
        maps, probability, explained = rasters.blend(
            method,
            pixels,
            size,
            step,
            lambda images: transforms.normalise(images, checkpoint.mean, checkpoint.std),
            target,
            device,
        )
        title = f"{printable(file.name)}: {name} for {classes[explained]}"
        save(
            out / f"{file.stem}_{name}.jpg",
            raster_figures.draw_raster(
                raster, maps, probability, classes, [city_code(c) for c in classes], title
            ),
        )
        print(
            f"{printable(file.name)}: explained as {printable(classes[explained])}, mean probability {probability[..., explained].mean():.3f}; "
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
    images = transforms.normalise(
        torch.from_numpy(patch_set.read(chosen)).to(device), checkpoint.mean, checkpoint.std
    )
    rows = quality.table(
        model,
        {name: __main__.METHODS[name] for name in dict.fromkeys(names)},
        images,
        target,
        layers,
    )
    write_rows(out / "quality.csv", rows[0], (row.values() for row in rows))
