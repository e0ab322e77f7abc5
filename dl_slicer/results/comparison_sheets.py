"""The patches that one of two models recognises and the other does not, as pictures.

<out>/patches/<city>.jpg is the sheet of a city: above, the patches that the first model alone
recognises, those first on which the two are furthest apart; below, those of the second.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dl_slicer.cities import labels
from dl_slicer.cli import InputError, printable
from dl_slicer.patch_sets import reading
from dl_slicer.patch_sets.reading import PatchSet
from dl_slicer.results import panels, portraits
from dl_slicer.results.comparison import Comparison

FOLDER = "patches"
PER_ROW = 6
PANEL = 160  # side of a patch in pixels


def open_patches(comparison: Comparison) -> PatchSet:
    """Open the patches that were measured; InputError if they are not there, or others now."""
    made = comparison.a.made
    patch_set = reading.open_split(made.data, made.split, made.image_size)
    names = {patch_set.name(i) for i in range(len(patch_set))}
    gone = next((patch for patch in comparison.a.patches if patch not in names), None)
    if gone is not None:
        raise InputError(
            f"{printable(made.data)}: made anew since the test, {printable(gone)} is not in it"
        )
    return patch_set


def write_sheets(out: Path, comparison: Comparison, patch_set: PatchSet) -> int:
    """Write <out>/patches/. Returns the number of sheets; a city where nothing differs has none."""
    index = {patch_set.name(i): i for i in range(len(patch_set))}
    in_set = np.array([index[patch] for patch in comparison.a.patches])
    differ = comparison.a.right != comparison.b.right
    sheets = 0
    for label, city in enumerate(comparison.a.cities):
        if (differ & (comparison.a.labels == label)).any():
            sheet = draw_sheet(comparison, label, patch_set, in_set)
            panels.save_jpeg(out / FOLDER / f"{city}.jpg", sheet)
            sheets += 1
    return sheets


def draw_sheet(
    comparison: Comparison, label: int, patch_set: PatchSet, in_set: np.ndarray
) -> Image.Image:
    """Draw the sheet of a city. in_set: (N,) int, where each patch is in the patch set."""
    a = comparison.a
    b = comparison.b
    own = a.labels == label
    parts = []
    for knows, fails, names in ((a, b, comparison.names), (b, a, comparison.names[::-1])):
        alone = np.flatnonzero(own & knows.right & ~fails.right)
        if not len(alone):
            continue
        apart = knows.true_probability - fails.true_probability
        order = alone[np.argsort(-apart[alone], kind="stable")]
        chosen = choose(order, patch_set, in_set, comparison)
        all_shown = len(chosen) == len(alone)
        shown = "" if all_shown else f"; {len(chosen)} that do not overlap"
        title = f"{a.cities[label]}: {len(alone)} recognised by {names[0]} alone{shown}"
        pictures = [portraits.picture(patch_set, int(in_set[i])) for i in chosen]
        captions = captions_of([fails.predicted[i] for i in chosen], fails.probability[chosen])
        missing = PER_ROW - len(chosen)  # all sheets are equally wide, or a title would not fit
        row = [*pictures, *[None] * missing]
        columns = [*captions, *[""] * missing]
        parts.append(panels.sheet(title, [row], columns, PANEL, scale_bar=False))
    return panels.stack(parts)


def choose(
    order: np.ndarray, patch_set: PatchSet, in_set: np.ndarray, comparison: Comparison
) -> list[int]:
    """Choose the first patches of an order that do not overlap, of as many rasters as there are.

    order: (n,) int, numbers of patches among those compared; so is what is returned.
    """
    number = {int(in_set[i]): int(i) for i in order}
    made = comparison.a.made
    return [
        number[index]
        for index in portraits.pick_non_overlapping(patch_set, in_set[order], made, PER_ROW)
    ]


def captions_of(predicted: Sequence[str], probabilities: np.ndarray) -> list[str]:
    """Say for which city the other model took each patch, and how surely."""
    names = list(dict.fromkeys(predicted))
    code = dict(zip(names, labels(names), strict=True))
    pairs = zip(predicted, probabilities, strict=True)
    return [f"taken for {code[city]} {100 * share:.0f} %" for city, share in pairs]
