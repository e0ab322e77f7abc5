"""Pictures of maps: heat over a patch, the masked patch, sheets of panels. Pillow draws them: sixty figures take seconds, not minutes."""

from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from relevance_cam.maps import mask, scale, upsample

GAP, TOP, INK, PALE, RIGHT, WRONG = (
    8,
    72,
    "#1a1a1a",
    "#666666",
    "#1a7f37",
    "#b42318",
)  # TOP: height of a sheet's title and labels


def colours(values):
    """Values in 0 ... 1 as uint8 RGB of the one colour scale of all figures."""
    return (matplotlib.colormaps["turbo"](values)[..., :3] * 255).astype(np.uint8)


def on_picture(saliency, picture):
    """A map (h, w) scaled to 0 ... 1 and resized to a Pillow picture: float array (height, width)."""
    return upsample(scale(saliency[None].float()), (picture.height, picture.width))[0]


def heat(picture, values, strength=0.5):
    """The picture with values (height, width) in 0 ... 1 laid over it in colour."""
    return Image.blend(picture, Image.fromarray(colours(np.asarray(values))), strength)


def masked(picture, values):
    """The picture where values lie above their mean + one standard deviation, black elsewhere."""
    keep = mask(torch.as_tensor(values)).numpy()
    return Image.fromarray(np.asarray(picture) * keep[..., None].astype(np.uint8))


@lru_cache
def font(size, bold=False):
    name = f"DejaVuSans{'-Bold' if bold else ''}.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


def text(draw, xy, string, size, fill=INK, bold=False, width=None, anchor="la"):
    """One line of text, made smaller until it is at most so wide, then cut."""
    while width and size > 10 and draw.textlength(string, font(size, bold)) > width:
        size -= 1
    while width and len(string) > 1 and draw.textlength(string, font(size, bold)) > width:
        string = string[:-2] + "…"
    draw.text(xy, string, fill, font(size, bold), anchor)


def sheet(title, rows, columns, panel, row_labels=None, colour=INK, scale_bar=True):
    """Panels in rows below a title, with a label over each column and, where given, lines of text left of each row.

    rows: lists of Pillow images or None; columns: labels; panel: width and height of each; row_labels: lists of (line, colour).
    """
    left = 0 if row_labels is None else 150
    width = left + len(columns) * (panel + GAP) + GAP
    height = TOP + len(rows) * (panel + GAP) + (34 if scale_bar else 0)
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    text(draw, (GAP, 12), title, 22, colour, bold=True, width=width - 2 * GAP)
    for j, label in enumerate(columns):
        text(
            draw,
            (left + GAP + j * (panel + GAP) + panel / 2, 50),
            label,
            16,
            PALE,
            width=panel,
            anchor="ma",
        )
    for i, row in enumerate(rows):
        y = TOP + i * (panel + GAP)
        for j, picture in enumerate(row):
            if picture is not None:
                page.paste(
                    picture.resize((panel, panel), Image.Resampling.LANCZOS),
                    (left + GAP + j * (panel + GAP), y),
                )
        if row_labels:
            for k, (line, ink) in enumerate(row_labels[i]):
                text(draw, (GAP, y + 4 + 21 * k), line, 15, ink, width=left - GAP)
    if scale_bar:
        draw_scale(page, width - GAP - 435, height - 28)
    return page


def draw_scale(page, x, y):
    draw = ImageDraw.Draw(page)
    page.paste(
        Image.fromarray(np.tile(colours(np.linspace(0, 1, 200))[None], (14, 1, 1))),
        (x + 110, y + 2),
    )
    text(draw, (x + 102, y), "lowest in map", 14, PALE, anchor="ra")
    text(draw, (x + 318, y), "highest in map", 14, PALE)


def patch_figure(picture, maps, title, right):
    """One patch, explained at several depths: the heat over it, and below what lies above mean + one standard deviation.

    picture: Pillow image; maps: {"layer1": (h, w) tensor, ...}; right: is the prediction?
    """
    values = [on_picture(saliency, picture) for saliency in maps.values()]
    return sheet(
        title,
        [
            [picture, *(heat(picture, v) for v in values)],
            [None, *(masked(picture, v) for v in values)],
        ],
        ["patch", *maps],
        280,
        colour=RIGHT if right else WRONG,
    )


def comparison_figure(picture, maps, title, right):
    """Methods side by side: a row for each method, a column for each depth. maps: {"grad-cam": {"layer1": (h, w), ...}, ...}"""
    rows = [
        [
            picture if i == 0 else None,
            *(heat(picture, on_picture(saliency, picture)) for saliency in by_layer.values()),
        ]
        for i, by_layer in enumerate(maps.values())
    ]
    labels = [[(name, INK)] for name in maps]
    return sheet(
        title, rows, ["patch", *next(iter(maps.values()))], 240, labels, RIGHT if right else WRONG
    )


def contact_sheet(pictures, maps, title, labels):
    """All patches of a city, a row each. maps: a {"layer1": (h, w), ...} for each picture; labels: lines of text for each."""
    rows = [
        [picture, *(heat(picture, on_picture(saliency, picture)) for saliency in by_layer.values())]
        for picture, by_layer in zip(pictures, maps)
    ]
    return sheet(title, rows, ["patch", *maps[0]], 180, labels)
