"""What makes each city itself, and where it could be another.

Its most telling patches, each with its Relevance-CAM mask. <out>/portraits/<city>.jpg is the sheet
of a city: above, the patches that the network is surest of among those it recognises, explained
for the city; below, those that it takes for the city's nearest neighbour, explained for that one.
<out>/portraits/tiles/<city>_<k>.jpg is the k-th patch of the sheet over its mask, as the report
shows it; portraits.csv says which patches these are.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from dl_slicer.files import atomic
from dl_slicer.model import devices, temperature
from dl_slicer.model.checkpoints import Checkpoint
from dl_slicer.patch_sets import transforms
from dl_slicer.patch_sets.on_disk import PATCH_SIZE, STRIDE
from dl_slicer.patch_sets.reading import PatchSet
from dl_slicer.results import panels, tables
from relevance_cam import RelevanceCAM

# Deep enough to know cities, and still finer than a building block: layer4 marks half the patch.
LAYER = "layer3"
PER_ROW = 4  # patches in a row of a sheet
PANEL = 224  # side of a patch on a sheet, in pixels
SHEET_QUALITY = 88  # of the JPEG

# All tiles together, in bytes: as text in the report they are a third more, and the page of many
# cities stays below 10 MB.
TILE_BUDGET = 5_600_000
SAMPLED = 9  # one in so many tiles is encoded to see how large all will be,
SAMPLE_SIZE = 40  # or less, so that these are about so many at most


@dataclass
class Tested:
    """A patch set and what the network says of its N patches."""

    patch_set: PatchSet
    logits: torch.Tensor  # (N, K) on the CPU
    probabilities: torch.Tensor  # (N, K) on the CPU


class Roles(NamedTuple):
    """How the rows of a sheet that explain one city are called in portraits.csv."""

    found: str  # of patches predicted as this city
    instead: str  # of those that come closest, where no patch was predicted as it


OWN = Roles("typical", "least unlike")
NEIGHBOUR = Roles("taken for neighbour", "closest to neighbour")


class SheetRow(NamedTuple):
    """A row of a city's sheet."""

    role: str
    explained: int  # class number of the city for which the patches are explained
    patches: list[int]  # indices in the patch set, at most PER_ROW
    available: int  # how many patches there were to choose from


class Portrait(NamedTuple):
    """A patch and the class for which it is explained."""

    patch: int
    explained: int


class TileFormat(NamedTuple):
    """How tiles are written."""

    side: int  # of a patch, in pixels; a tile is twice as high
    quality: int  # of the JPEG


TILE_FORMATS = [  # best first
    TileFormat(224, 80),
    TileFormat(192, 76),
    TileFormat(160, 72),
    TileFormat(128, 64),
    TileFormat(96, 50),
]


def write_portraits(
    out: Path,
    model: nn.Module,
    checkpoint: Checkpoint,
    patch_set: PatchSet,
    logits: torch.Tensor,
    nearest: Sequence[dict],
    batch_size: int = 8,
) -> int:
    """Write <out>/portraits/. Returns the number of sheets; a city without patches has none.

    logits: float (N, K) on the CPU, of the patches in the set's order; nearest: the rows of
    nearest.csv, one a city in class order.
    """
    folder = out / "portraits"
    tested = Tested(patch_set, logits, temperature.probabilities(logits, checkpoint.divisor))
    sheets = choose_sheets(patch_set, logits, nearest, checkpoint)
    portraits = [portrait for rows in sheets.values() for portrait in portraits_of(rows)]
    maps = explain(model, checkpoint, patch_set, portraits, batch_size)
    tile_format = pick_tile_format(patch_set, maps)
    table = []
    for city, rows in sheets.items():
        drawn = {
            portrait: draw_panels(patch_set, portrait.patch, maps[portrait])
            for portrait in portraits_of(rows)
        }
        sheet = draw_sheet(city, rows, drawn, tested)
        with atomic(folder / f"{city}.jpg", sync=False) as file:
            sheet.save(file, "JPEG", quality=SHEET_QUALITY)
        tiles = write_tiles(folder, city, list(drawn.values()), tile_format)
        table += table_rows(city, rows, tiles, tile_format.side, tested)
    tables.write_dicts(folder / "portraits.csv", table)
    return len(sheets)


# Which patches


def choose_sheets(
    patch_set: PatchSet, logits: torch.Tensor, nearest: Sequence[dict], checkpoint: Checkpoint
) -> dict[str, list[SheetRow]]:
    """Choose the rows of every city's sheet, by the city's name."""
    classes = list(patch_set.classes)
    sheets = {}
    for label, city in enumerate(classes):
        neighbour = nearest[label]["confusion_1"] or nearest[label]["features_1"]
        neighbour_label = classes.index(neighbour) if neighbour else None
        rows = choose(patch_set, logits, label, neighbour_label, checkpoint)
        if rows:
            sheets[city] = rows
    return sheets


def choose(
    patch_set: PatchSet,
    logits: torch.Tensor,
    label: int,
    neighbour: int | None,
    checkpoint: Checkpoint,
) -> list[SheetRow]:
    """Choose the rows of a city's sheet; none if the city has no patches.

    label: of the city; neighbour: of the city that it resembles most, None if there is none.
    """
    own = np.flatnonzero(patch_set.labels == label)
    if not len(own):
        return []
    predicted = logits[own].argmax(1).numpy()
    explained = [(label, OWN)]
    if neighbour is not None:
        explained.append((neighbour, NEIGHBOUR))
    rows = []
    for city, roles in explained:
        predicted_so = np.flatnonzero(predicted == city)
        candidates = predicted_so if len(predicted_so) else np.arange(len(own))
        surest_first = np.argsort(-margin(logits[own], city)[candidates], kind="stable")
        order = own[candidates[surest_first]]
        row = SheetRow(
            role=roles.found if len(predicted_so) else roles.instead,
            explained=city,
            patches=pick_non_overlapping(patch_set, order, checkpoint),
            available=len(candidates),
        )
        rows.append(row)
    return rows


def margin(logits: torch.Tensor, city: int) -> np.ndarray:
    """log(p / (1 - p)) of a city's probability p, float64 (n,), from logits (n, K) on the CPU.

    Where p rounds to 1 it still tells which patch is surer.
    """
    logits = logits.double()
    own = logits[:, city]
    others = torch.cat([logits[:, :city], logits[:, city + 1 :]], 1)
    if others.shape[1] == 0:
        return own.numpy()
    return (own - others.logsumexp(1)).numpy()


def pick_non_overlapping(
    patch_set: PatchSet, order: np.ndarray, checkpoint: Checkpoint, most: int = PER_ROW
) -> list[int]:
    """Pick the first patches of an order (indices), none overlapping another.

    Each is from another raster as far as there are several.
    """
    size, stride = find_sizes(patch_set, checkpoint)
    windows = {}
    for only_other_rasters in (True, False):
        for index in order.tolist():
            if len(windows) == most:
                break
            window = window_of(patch_set, index)
            if only_other_rasters:
                is_free = all(window.raster != other.raster for other in windows.values())
            else:
                is_free = not any(
                    overlap(window, other, size, stride) for other in windows.values()
                )
            if is_free:
                windows[index] = window
    return list(windows)


def find_sizes(patch_set: PatchSet, checkpoint: Checkpoint) -> tuple[int, int]:
    """Find the pixels of a patch and the stride: the set's own, or as the network was trained."""
    if patch_set.patch_size:
        return patch_set.patch_size, patch_set.stride
    trained = (checkpoint.patch_size or PATCH_SIZE, checkpoint.stride or STRIDE)
    return patch_set.find_sizes() or trained


class Window(NamedTuple):
    """Where a patch lies."""

    raster: str
    row_col: tuple[int, int] | None  # None: not known


def window_of(patch_set: PatchSet, index: int) -> Window:
    """Find where a patch lies."""
    located = patch_set.locate(index)
    return Window(patch_set.raster(index), located and located[1:])


def overlap(one: Window, other: Window, size: int, stride: int) -> bool:
    """May two patches have pixels in common? Every patch overlaps itself."""
    if one.raster != other.raster:
        return False
    if one.row_col is None or other.row_col is None:
        return True
    (row, col), (other_row, other_col) = one.row_col, other.row_col
    return max(abs(row - other_row), abs(col - other_col)) * stride < size


# What in them spoke for the city


def portraits_of(rows: Sequence[SheetRow]) -> list[Portrait]:
    """Give the portraits of a sheet, row by row."""
    return [Portrait(patch, row.explained) for row in rows for patch in row.patches]


def explain(
    model: nn.Module,
    checkpoint: Checkpoint,
    patch_set: PatchSet,
    portraits: Sequence[Portrait],
    batch_size: int,
) -> dict[Portrait, torch.Tensor]:
    """Compute the Relevance-CAM map (h, w) of every portrait, float32 on the CPU."""
    device = next(model.parameters()).device
    cam = RelevanceCAM(model, layers=(LAYER,))
    maps = {}
    starts = range(0, len(portraits), batch_size)
    for start in tqdm(starts, desc="portraits", unit=" batches", disable=None, leave=False):
        batch = portraits[start : start + batch_size]
        images = torch.from_numpy(patch_set.read([portrait.patch for portrait in batch]))
        images = transforms.normalise(images.to(device), checkpoint.mean, checkpoint.std)
        found, _ = cam(images, [portrait.explained for portrait in batch])
        maps.update(zip(batch, devices.to_cpu(found[LAYER].float()), strict=True))
    return maps


# How they are drawn


class Panels(NamedTuple):
    """A patch as a picture, and the same picture with all but what spoke for the city black."""

    patch: Image.Image
    masked: Image.Image


def draw_panels(patch_set: PatchSet, index: int, saliency: torch.Tensor) -> Panels:
    """Draw a patch and its mask at the patch's own size. saliency: its map (h, w)."""
    patch = picture(patch_set, index)
    placing = panels.Placing(patch_set.image_size)
    return Panels(patch, panels.masked(patch, panels.on_picture(saliency, patch, placing)))


def picture(patch_set: PatchSet, index: int) -> Image.Image:
    """Give what the network saw, or the patch at full size where that is too small to look at."""
    if patch_set.image_size >= PANEL:
        return Image.fromarray(patch_set.read([index])[0])
    return patch_set.original(index).convert("RGB")


def draw_sheet(
    city: str, rows: Sequence[SheetRow], drawn: dict[Portrait, Panels], tested: Tested
) -> Image.Image:
    """Draw the sheet of a city, a part for each row, one below the other."""
    parts = []
    for row in rows:
        pictures = [drawn[portrait] for portrait in portraits_of([row])]
        probabilities = tested.probabilities[row.patches, row.explained]
        captions = [f"{100 * probability:.1f} %" for probability in probabilities]
        # All sheets are equally wide, or a title would not fit.
        missing = PER_ROW - len(pictures)
        patches = [each.patch for each in pictures] + [None] * missing
        masks = [each.masked for each in pictures] + [None] * missing
        captions += [""] * missing
        title = title_of(city, row, tested.patch_set.classes[row.explained])
        parts.append(panels.sheet(title, [patches, masks], captions, PANEL, scale_bar=False))
    sheet = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def title_of(city: str, row: SheetRow, explained: str) -> str:
    """Give the line over a sheet's row. explained: name of the city it is explained for."""
    return {
        OWN.found: f"{city}: recognised most surely",
        OWN.instead: f"{city}: none of {row.available} recognised; least unlike",
        NEIGHBOUR.found: f"{row.available} taken for {explained}: the surest that do not overlap",
        NEIGHBOUR.instead: f"none of {row.available} taken for {explained}; closest",
    }[row.role]


def pick_tile_format(patch_set: PatchSet, maps: dict[Portrait, torch.Tensor]) -> TileFormat:
    """Pick the best format in which the tiles of all portraits keep to the budget.

    Judged by a sample of them. The smallest format is taken even if that exceeds the budget.
    """
    step = max(SAMPLED, len(maps) // SAMPLE_SIZE)
    sample = [
        draw_panels(patch_set, portrait.patch, maps[portrait]) for portrait in list(maps)[::step]
    ]
    for tile_format in TILE_FORMATS:
        encoded = sum(len(encode_tile(drawn, tile_format)) for drawn in sample)
        if encoded * len(maps) <= TILE_BUDGET * len(sample):
            return tile_format
    return TILE_FORMATS[-1]


def encode_tile(drawn: Panels, tile_format: TileFormat) -> bytes:
    """Encode a patch over its mask as a JPEG."""
    side = tile_format.side
    tile = Image.new("RGB", (side, 2 * side))
    for top, panel in ((0, drawn.patch), (side, drawn.masked)):
        tile.paste(panel.resize((side, side), Image.Resampling.LANCZOS), (0, top))
    encoded = io.BytesIO()
    tile.save(encoded, "JPEG", quality=tile_format.quality, optimize=True)
    return encoded.getvalue()


def write_tiles(
    folder: Path, city: str, drawn: Sequence[Panels], tile_format: TileFormat
) -> list[str]:
    """Write the tiles of a city's sheet. Returns their paths relative to the folder."""
    paths = [f"tiles/{city}_{k}.jpg" for k in range(len(drawn))]
    for path, each in zip(paths, drawn, strict=True):
        with atomic(folder / path, sync=False) as file:
            file.write(encode_tile(each, tile_format))
    return paths


# What portraits.csv says


def table_rows(
    city: str, rows: Sequence[SheetRow], tiles: Sequence[str], side: int, tested: Tested
) -> list[dict]:
    """Rows of portraits.csv, one a portrait of this city's sheet: its columns are the keys below.

    tiles: their paths relative to portraits/, in the sheet's order; side: of a tile's patch.
    """
    patch_set = tested.patch_set
    classes = patch_set.classes
    sheet_rows = [row for row in rows for _ in row.patches]
    table = []
    for row, portrait, tile in zip(sheet_rows, portraits_of(rows), tiles, strict=True):
        patch, explained = portrait
        table_row = {
            "city": city,
            "role": row.role,
            "patch": patch_set.name(patch),
            "true": classes[patch_set.labels[patch]],
            "predicted": classes[int(tested.logits[patch].argmax())],
            "explained": classes[explained],
            "probability": f"{tested.probabilities[patch, explained]:.6f}",
            "available": row.available,
            "tile": tile,
            "side": side,
        }
        table.append(table_row)
    return table
