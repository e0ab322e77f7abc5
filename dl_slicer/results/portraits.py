"""What makes each city itself, and where it could be another: its most telling patches, each with its Relevance-CAM mask.

A sheet a city, <out>/portraits/<city>.jpg: above, the patches that the network is surest of among those it recognises, explained for
the city; below, those that it takes for the city's nearest neighbour, explained for that one. portraits.csv says which patches these are.
"""

import re

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from dl_slicer.files import atomic, write_rows
from dl_slicer.patch_sets import transforms
from dl_slicer.results import panels as figures
from relevance_cam import RelevanceCAM

LAYER = "layer3"  # deep enough to know cities, and still finer than a building block: layer4 marks half the patch
PATCHES, PANEL = 4, 224  # patches in a row of a sheet, and their side in pixels
COLUMNS = (
    "city",
    "role",
    "patch",
    "true",
    "predicted",
    "explained",
    "probability",
    "available",
    "file",
    "x",
    "y",
    "mask_y",
    "side",
)
# How the rows of a sheet are called in portraits.csv. The second and fourth stand in where there are none of the first and third.
ROLES = ("typical", "least unlike", "taken for neighbour", "closest to neighbour")


def write(out, model, checkpoint, patch_set, logits, near, device, batch_size=8):
    """Write <out>/portraits/. logits: float (N, K), of the patches in the set's order; near: the rows of nearest.csv, one a city in
    class order. Returns the number of sheets; a city without patches has none."""
    classes, sheets = list(patch_set.classes), []
    for label, city in enumerate(classes):
        neighbour = near[label]["confusion_1"] or near[label]["features_1"]
        rows = choose(
            patch_set, logits, label, classes.index(neighbour) if neighbour else None, checkpoint
        )
        if rows:
            sheets.append((city, rows))

    shown = [
        (index, target) for _, rows in sheets for _, target, indices, _ in rows for index in indices
    ]
    masks, cam = {}, RelevanceCAM(model, layers=(LAYER,))
    for i in tqdm(
        range(0, len(shown), batch_size),
        desc="portraits",
        unit=" batches",
        disable=None,
        leave=False,
    ):
        part = shown[i : i + batch_size]
        images = torch.from_numpy(patch_set.read([index for index, _ in part])).to(device)
        maps, _ = cam(
            transforms.normalise(images, checkpoint.mean, checkpoint.std),
            [target for _, target in part],
        )
        masks.update(zip(part, maps[LAYER].float().cpu()))

    table, probabilities = [], logits.softmax(1)
    for city, rows in sheets:
        file = out / "portraits" / f"{city}.jpg"
        parts = []
        for role, target, indices, available in rows:
            top = sum(part.height for part in parts)
            pictures = [picture(patch_set, index) for index in indices]
            masked = [
                figures.masked(image, figures.on_picture(masks[index, target], image))
                for index, image in zip(indices, pictures)
            ]
            captions = [f"{100 * probabilities[index, target]:.1f} %" for index in indices]
            wide = [None] * (
                PATCHES - len(indices)
            )  # all sheets are as wide, or a title would not fit
            parts.append(
                figures.sheet(
                    title(city, role, classes[target], available),
                    [pictures + wide, masked + wide],
                    captions + [""] * len(wide),
                    PANEL,
                    scale_bar=False,
                )
            )
            for k, index in enumerate(indices):
                table.append(
                    (
                        city,
                        role,
                        patch_set.name(index),
                        classes[patch_set.labels[index]],
                        classes[int(logits[index].argmax())],
                        classes[target],
                        f"{probabilities[index, target]:.6f}",
                        available,
                        file.name,
                        figures.GAP + k * (PANEL + figures.GAP),
                        top + figures.TOP,
                        top + figures.TOP + PANEL + figures.GAP,
                        PANEL,
                    )
                )
        page = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)), "white")
        for k, part in enumerate(parts):
            page.paste(part, (0, sum(part.height for part in parts[:k])))
        with atomic(file, sync=False) as opened:
            page.save(opened, "JPEG", quality=88)
    write_rows(out / "portraits" / "portraits.csv", COLUMNS, table)
    return len(sheets)


def title(city, role, explained, available):
    """The line over a sheet's row. available: how many patches there were to choose from."""
    return {
        "typical": f"{city}: recognised most surely",
        "least unlike": f"{city}: none of {available} recognised; least unlike",
        "taken for neighbour": f"{available} taken for {explained}: the surest that do not overlap",
        "closest to neighbour": f"none of {available} taken for {explained}; closest",
    }[role]


def choose(patch_set, logits, label, neighbour, checkpoint):
    """The rows of a city's sheet as (role, explained class, patch indices, how many there were to choose from); none without patches."""
    own = np.flatnonzero(patch_set.labels == label)
    if not len(own):
        return []
    predicted, sure = (
        logits[own].argmax(1).numpy(),
        {city: margin(logits[own], city) for city in (label, neighbour) if city is not None},
    )
    rows = []
    for city, found, instead in ((label, *ROLES[:2]), (neighbour, *ROLES[2:])):
        if city is not None:
            hits = np.flatnonzero(predicted == city)
            candidates = hits if len(hits) else np.arange(len(own))
            order = candidates[np.argsort(-sure[city][candidates], kind="stable")]
            rows.append(
                (
                    found if len(hits) else instead,
                    city,
                    pick_non_overlapping(patch_set, own[order], checkpoint),
                    len(candidates),
                )
            )
    return rows


def margin(logits, city):
    """log(p / (1 - p)) of a city's probability p, float64 (n,): where p rounds to 1 it still tells which patch is surer."""
    logits = logits.double()
    others = torch.cat([logits[:, :city], logits[:, city + 1 :]], 1)
    return (
        (logits[:, city] - others.logsumexp(1)).numpy()
        if others.shape[1]
        else logits[:, city].numpy()
    )


def pick_non_overlapping(patch_set, order, checkpoint, most=PATCHES):
    """The first patches of an order (indices), each from another raster as far as there are several, none overlapping another."""
    size, stride = (
        getattr(patch_set, key) or getattr(checkpoint, key) or published
        for key, published in (("patch_size", 480), ("stride", 240))
    )
    chosen, places = [], []
    for fresh in (True, False):
        for index in order.tolist():
            if len(chosen) == most:
                break
            here = window_of(patch_set, index)
            if not any(
                here[0] == there[0]
                and (fresh or max(abs(a - b) for a, b in zip(here[1:], there[1:])) * stride < size)
                for there in places
            ):
                chosen.append(index)
                places.append(here)
    return chosen


def window_of(patch_set, index):
    """(raster, row, col) of a patch by its name; row and col are 0 in a file that is not named as preprocessing.py names them."""
    found = re.search(r"r(\d+)_c(\d+)(\.\w+)?$", patch_set.name(index))
    return (
        (patch_set.raster(index), int(found[1]), int(found[2]))
        if found
        else (patch_set.raster(index), 0, 0)
    )


def picture(patch_set, index):
    """What the network saw, or the patch at full size where that is too small to look at."""
    return (
        Image.fromarray(patch_set.read([index])[0])
        if patch_set.image_size >= PANEL
        else patch_set.original(index).convert("RGB")
    )
