"""Figures of whole rasters."""

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from dl_slicer.results import panels as figures

NAMED = 10  # cities with a colour of their own in a figure
PANEL = 1000  # pixels of the longer side of a figure's pictures


def draw_places(raster, probability, codes, title):
    """A Pillow image: the raster, and beside it (below, if it is wide) each place in the colour of its most similar city, with a legend.

    probability: (rows, cols, K), of places on a grid. Cities beyond the NAMED most common are grey.
    """
    best = probability.argmax(-1)
    shares = np.bincount(best.ravel(), minlength=len(codes)) / best.size
    common = [city for city in np.argsort(-shares, kind="stable").tolist() if shares[city]]
    named, others = common[:NAMED], common[NAMED:]
    colours = (
        np.array(matplotlib.colormaps["tab10"].colors)[[0, 1, 2, 3, 4, 8, 6, 9, 5, 7]] * 255
    ).astype(np.uint8)
    colours[9] = (40, 40, 40)  # tab10's grey is kept for the others
    palette = np.full((len(codes), 3), 150, np.uint8)
    palette[named] = colours[: len(named)]
    ratio = PANEL / max(raster.size)
    size = tuple(max(1, round(n * ratio)) for n in raster.size)
    picture = raster.resize(size, Image.Resampling.LANCZOS)
    places = Image.fromarray(palette[best]).resize(size, Image.Resampling.NEAREST)
    panels = [
        ("raster", picture),
        ("most similar city of each place", Image.blend(picture, places, 0.5)),
    ]

    gap = 12
    legend = [(palette[city], f"{codes[city]}  {100 * shares[city]:.0f} %") for city in named]
    legend += (
        [((150, 150, 150), f"{len(others)} others  {100 * shares[others].sum():.0f} %")]
        if others
        else []
    )
    beside = raster.height > 0.6 * raster.width
    width = max(600, 2 * size[0] + 3 * gap if beside else size[0] + 2 * gap)
    lines = flow_legend(legend, width - 2 * gap)
    page = Image.new(
        "RGB", (width, 60 + (size[1] + 40) * (1 if beside else 2) + 34 * len(lines) + gap), "white"
    )
    pen = ImageDraw.Draw(page)
    figures.text(pen, (gap, 14), title, 28, bold=True, width=width - 2 * gap)
    for k, (label, panel) in enumerate(panels):
        x, y = (gap + k * (size[0] + gap), 60) if beside else (gap, 60 + k * (size[1] + 40))
        figures.text(pen, (x, y), label, 20, figures.PALE, width=size[0])
        page.paste(panel, (x, y + 30))
    y = page.height - 34 * len(lines)
    for line in lines:
        for x, colour, label in line:
            pen.rectangle(
                (gap + x, y + 1, gap + x + 20, y + 21), fill=tuple(int(v) for v in colour)
            )
            figures.text(pen, (gap + x + 30, y), label, 20, width=width - 2 * gap - 30)
        y += 34
    return page


def flow_legend(legend, width):
    """Lines of a legend: (colour, label) as (x, colour, label), as many in a line as fit."""
    lines, x = [[]], 0
    for colour, label in legend:
        length = 30 + figures.font(20).getlength(label) + 36
        if x and x + length > width:
            lines.append([])
            x = 0
        lines[-1].append((x, colour, label))
        x += length
    return lines


LONGEST = 1000  # pixels of a panel's longer side


def draw_raster(raster, maps, probability, classes, codes, title):
    """The figure: the raster, the most probable city of each place, and the blended map of each depth."""
    ratio = LONGEST / max(raster.size)
    size = (max(1, round(raster.width * ratio)), max(1, round(raster.height * ratio)))
    picture = raster.resize(size, Image.Resampling.LANCZOS)
    best = probability.argmax(-1)
    shares = np.bincount(best.ravel(), minlength=len(classes)) / best.size
    common = [city for city in np.argsort(-shares) if shares[city]][:9]
    palette = np.full((len(classes), 3), 150, np.uint8)  # grey for what the legend does not name
    palette[common] = (np.array(matplotlib.colormaps["tab10"].colors)[: len(common)] * 255).astype(
        np.uint8
    )
    places = Image.fromarray(palette[best]).resize(size, Image.Resampling.NEAREST)
    panels = [("raster", picture), ("predicted city", Image.blend(picture, places, 0.45))]
    for layer, values in maps.items():
        low, high = np.percentile(
            values, (1, 99.5)
        )  # single hot pixels would leave a large raster blank
        values = (
            np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)
        )
        panels.append(
            (
                layer,
                figures.heat(
                    picture,
                    np.asarray(
                        Image.fromarray(values.astype(np.float32)).resize(
                            size, Image.Resampling.BILINEAR
                        )
                    ),
                ),
            )
        )
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    gap = figures.GAP
    page = Image.new(
        "RGB", (columns * (size[0] + gap) + gap, 60 + lines * (size[1] + 34) + 70), "white"
    )
    pen = ImageDraw.Draw(page)
    figures.text(pen, (gap, 14), title, 26, bold=True, width=page.width - 2 * gap)
    for k, (label, panel) in enumerate(panels):
        x, y = gap + k % columns * (size[0] + gap), 60 + k // columns * (size[1] + 34)
        figures.text(
            pen, (x + size[0] / 2, y + 4), label, 18, figures.PALE, anchor="ma", width=size[0]
        )
        page.paste(panel, (x, y + 28))
    x, y = gap, page.height - 64
    for city in common:
        label = f"{codes[city]} {100 * shares[city]:.0f} %"
        length = pen.textlength(label, figures.font(16)) + 44
        if x + length > page.width:
            x, y = gap, y + 26
        pen.rectangle((x, y + 3, x + 14, y + 17), fill=tuple(int(v) for v in palette[city]))
        figures.text(pen, (x + 22, y), label, 16)
        x += length
    figures.draw_scale(page, page.width - gap - 435, page.height - 28)
    return page
