"""Pictures of maps: colours over a patch, the masked patch, sheets of panels.

Pillow draws them: sixty figures take seconds, not minutes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from dl_slicer.files import atomic
from relevance_cam.maps import mask, place, scale

GAP = 8  # pixels between panels
TOP = 72  # height of a sheet's title and column labels
LABELS_WIDTH = 150  # of the lines of text left of each row
SCALE_WIDTH = 435  # of the colour scale with its words
SCALE_HEIGHT = 34
SMALLEST = 10  # size of letters that can be read

INK = "#1a1a1a"
PALE = "#666666"
RIGHT = "#1a7f37"
WRONG = "#b42318"


def colours(values: np.ndarray) -> np.ndarray:
    """Values in 0 ... 1 as uint8 RGB of the one colour scale of all figures."""
    return (matplotlib.colormaps["turbo"](values)[..., :3] * 255).astype(np.uint8)


@dataclass(frozen=True)
class Placing:
    """How maps are put on pictures, see relevance_cam.maps.place."""

    image_size: int | None = None  # side of what the network saw; None: the picture's
    plain: bool = False  # as the published figures are


PLACED = Placing()


def on_picture(
    saliency: torch.Tensor, picture: Image.Image, placing: Placing = PLACED
) -> torch.Tensor:
    """A map (h, w) scaled to 0 ... 1 and put on a picture: float (height, width)."""
    size = (picture.height, picture.width)
    seen = None if placing.image_size is None else (placing.image_size,) * 2
    return place(scale(saliency[None].float()), size, placing.plain, seen)[0]


def overlay(picture: Image.Image, values: np.ndarray | torch.Tensor) -> Image.Image:
    """The picture with values (height, width) in 0 ... 1 laid over it in colour."""
    return Image.blend(picture, Image.fromarray(colours(np.asarray(values))), 0.5)


def masked(picture: Image.Image, values: np.ndarray | torch.Tensor) -> Image.Image:
    """The picture where values lie above their mean + one standard deviation, black elsewhere."""
    keep = mask(torch.as_tensor(values)).numpy()
    return Image.fromarray(np.asarray(picture) * keep[..., None].astype(np.uint8))


@dataclass(frozen=True)
class Style:
    """How a line of text looks."""

    size: int
    fill: str = INK
    bold: bool = False


@lru_cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib."""
    name = f"DejaVuSans{'-Bold' if bold else ''}.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


def draw_text(
    pen: ImageDraw.ImageDraw,
    xy: tuple[float, float],
    line: str,
    style: Style,
    width: int | None = None,
    anchor: str = "la",
) -> None:
    """Draw a line of text, made smaller until it is at most so wide, then cut."""
    size = style.size

    def too_long() -> bool:
        return width is not None and pen.textlength(line, font(size, style.bold)) > width

    while size > SMALLEST and too_long():
        size -= 1
    while len(line) > 1 and too_long():
        line = line[:-2] + "…"
    pen.text(xy, line, style.fill, font(size, style.bold), anchor)


def sheet(
    title: str,
    rows: Sequence[Sequence[Image.Image | None]],
    columns: Sequence[str],
    panel: int,
    row_labels: Sequence[Sequence[tuple[str, str]]] | None = None,
    colour: str = INK,
    scale_bar: bool = True,
) -> Image.Image:
    """Panels in rows below a title, with a label over each column.

    rows: a picture or None for each column; panel: width and height of each in pixels; row_labels:
    lines of text left of each row, as (line, colour); colour: of the title.
    """
    left = 0 if row_labels is None else LABELS_WIDTH
    width = left + len(columns) * (panel + GAP) + GAP
    height = TOP + len(rows) * (panel + GAP) + (SCALE_HEIGHT if scale_bar else 0)
    page = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(page)
    draw_text(pen, (GAP, 12), title, Style(22, colour, bold=True), width - 2 * GAP)
    starts = [left + GAP + j * (panel + GAP) for j in range(len(columns))]
    for x, label in zip(starts, columns, strict=True):
        draw_text(pen, (x + panel / 2, 50), label, Style(16, PALE), panel, anchor="ma")
    for i, row in enumerate(rows):
        y = TOP + i * (panel + GAP)
        for x, picture in zip(starts, row, strict=True):
            if picture is not None:
                page.paste(picture.resize((panel, panel), Image.Resampling.LANCZOS), (x, y))
        for k, (line, ink) in enumerate(row_labels[i] if row_labels else ()):
            draw_text(pen, (GAP, y + 4 + 21 * k), line, Style(15, ink), left - GAP)
    if scale_bar:
        draw_scale(page, width - GAP - SCALE_WIDTH, height - 28)
    return page


def stack(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets of one width, one below the other."""
    page = Image.new("RGB", (sheets[0].width, sum(each.height for each in sheets)), "white")
    top = 0
    for each in sheets:
        page.paste(each, (0, top))
        top += each.height
    return page


def draw_scale(page: Image.Image, x: int, y: int) -> None:
    """Draw the colour scale of maps, SCALE_WIDTH wide, with its words."""
    pen = ImageDraw.Draw(page)
    bar = np.tile(colours(np.linspace(0, 1, 200))[None], (14, 1, 1))
    page.paste(Image.fromarray(bar), (x + 110, y + 2))
    draw_text(pen, (x + 102, y), "lowest in map", Style(14, PALE), anchor="ra")
    draw_text(pen, (x + 318, y), "highest in map", Style(14, PALE))


def patch_figure(
    picture: Image.Image,
    maps: dict[str, torch.Tensor],
    title: str,
    right: bool,
    placing: Placing = PLACED,
) -> Image.Image:
    """One patch, explained at several depths.

    Above, each map laid over it in colour; below, what lies above mean + one standard deviation.
    maps: {"layer1": (h, w), ...}; right: is the prediction?
    """
    values = [on_picture(saliency, picture, placing) for saliency in maps.values()]
    overlays = [picture, *(overlay(picture, each) for each in values)]
    masks = [None, *(masked(picture, each) for each in values)]
    colour = RIGHT if right else WRONG
    return sheet(title, [overlays, masks], ["patch", *maps], 280, colour=colour)


def comparison_figure(
    picture: Image.Image,
    maps: dict[str, dict[str, torch.Tensor]],
    title: str,
    right: bool,
    placing: Placing = PLACED,
) -> Image.Image:
    """Methods side by side: a row for each method, a column for each depth.

    maps: {"grad-cam": {"layer1": (h, w), ...}, ...}; right: is the prediction?
    """
    rows = [[None, *_overlays(picture, by_layer, placing)] for by_layer in maps.values()]
    rows[0][0] = picture
    columns = ["patch", *next(iter(maps.values()))]
    labels = [[(name, INK)] for name in maps]
    return sheet(title, rows, columns, 240, labels, RIGHT if right else WRONG)


def contact_sheet(
    pictures: Sequence[Image.Image],
    maps: Sequence[dict[str, torch.Tensor]],
    title: str,
    labels: Sequence[Sequence[tuple[str, str]]],
    placing: Placing = PLACED,
) -> Image.Image:
    """All patches of a city, a row each.

    maps: a {"layer1": (h, w), ...} for each picture; labels: lines of text for each, as
    (line, colour).
    """
    rows = [
        [picture, *_overlays(picture, by_layer, placing)]
        for picture, by_layer in zip(pictures, maps, strict=True)
    ]
    return sheet(title, rows, ["patch", *maps[0]], 180, labels)


def save_jpeg(path: Path, figure: Image.Image) -> None:
    """Write a figure."""
    with atomic(path, sync=False) as file:
        figure.save(file, "JPEG", quality=88)


def _overlays(
    picture: Image.Image, maps: dict[str, torch.Tensor], placing: Placing
) -> list[Image.Image]:
    return [overlay(picture, on_picture(saliency, picture, placing)) for saliency in maps.values()]
