"""The figure of a whole raster: the city that each place resembles, and maps of its saliency."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from dl_slicer import cities
from dl_slicer.results import panels
from dl_slicer.results.familiar_places import UNLIKE_ANY

NAMED = 10  # cities that the legend names
PANEL = 1000  # pixels of the longer side of each panel
NARROWEST = 600  # width of a page that has room for a title and a legend
GAP = 12
TITLE_HEIGHT = 60
LABEL_HEIGHT = 30
LINE_HEIGHT = 34  # of the legend
HATCH = 18  # pixels from line to line of what is hatched
HATCH_LINE = 3  # pixels
WIDE = 0.6  # height / width of rasters whose panels stand below one another

LABEL_STYLE = panels.Style(20, panels.PALE)
LEGEND_STYLE = panels.Style(20)


class LegendEntry(NamedTuple):
    """A colour and what it means."""

    colour: tuple[int, int, int]
    label: str
    is_hatched: bool = False


class Panel(NamedTuple):
    """A picture and what it shows."""

    label: str
    picture: Image.Image


def raster_figure(
    raster: Image.Image,
    probability: np.ndarray,
    codes: Sequence[str],
    title: str,
    maps: dict[str, np.ndarray] | None = None,
    unlike: np.ndarray | None = None,
) -> Image.Image:
    """Draw a raster, the most similar city of each place, and the maps of its saliency, if given.

    probability: (rows, cols, K), of places on a grid; codes: of the K cities; maps: {"layer1":
    (H, W), ...}, of any size; NaN where there is no data, which stays uncoloured. A city
    has the colour of its class number, as on every figure; cities beyond the NAMED most common are
    grey. The legend says to what share of the places each city is the most similar. unlike: bool
    (rows, cols), places that are hatched, since they are like none of the cities.
    """
    ratio = PANEL / max(raster.size)
    size = tuple(max(1, round(length * ratio)) for length in raster.size)
    picture = raster.resize(size, Image.Resampling.LANCZOS)
    has_data = ~np.isnan(probability[..., 0])
    best = np.nan_to_num(probability).argmax(-1)
    palette, legend = colour_cities(best[has_data], codes)
    places = Image.fromarray(palette[best]).resize(size, Image.Resampling.NEAREST)
    coloured = Image.blend(picture, places, 0.5)
    if unlike is not None and (unlike & has_data).any():
        is_hatched = unlike & has_data
        coloured = hatch(coloured, is_hatched)
        label = f"{UNLIKE_ANY}  {100 * is_hatched.sum() / has_data.sum():.0f} %"
        legend.append(LegendEntry((255, 255, 255), label, is_hatched=True))
    shown = [
        Panel("raster", picture),
        Panel("most similar city of each place", _where(has_data, coloured, picture)),
    ]
    for layer, values in (maps or {}).items():
        coloured = panels.overlay(picture, _fitted(values, size))
        shown.append(Panel(layer, _where(~np.isnan(values), coloured, picture)))
    return _arrange(shown, legend, title, scale_bar=bool(maps))


def colour_cities(best: np.ndarray, codes: Sequence[str]) -> tuple[np.ndarray, list[LegendEntry]]:
    """Palette uint8 (K, 3) and legend of the class numbers best (n,) of all places."""
    shares = np.bincount(best.ravel(), minlength=len(codes)) / best.size
    by_share = np.argsort(-shares, kind="stable").tolist()
    common = [city for city in by_share if shares[city]]
    named = common[:NAMED]
    others = common[NAMED:]
    palette = np.full((len(codes), 3), cities.OTHERS, np.uint8)
    legend = []
    for city in named:
        colour = cities.colour(city)
        palette[city] = colour
        legend.append(LegendEntry(colour, f"{codes[city]}  {100 * shares[city]:.0f} %"))
    if others:
        label = f"{len(others)} others  {100 * shares[others].sum():.0f} %"
        legend.append(LegendEntry(cities.OTHERS, label))
    return palette, legend


def hatch(picture: Image.Image, places: np.ndarray) -> Image.Image:
    """Draw slanting lines, dark beside light, over places (rows, cols) that are True."""
    width, height = picture.size
    slant = (np.arange(width) + np.arange(height)[:, None]) % HATCH
    mask = np.asarray(Image.fromarray(places).resize(picture.size, Image.Resampling.NEAREST))
    pixels = np.array(picture)
    pixels[mask & (slant < HATCH_LINE)] = 255
    pixels[mask & (slant >= HATCH_LINE) & (slant < 2 * HATCH_LINE)] = 20
    return Image.fromarray(pixels)


def _fitted(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (H, W) scaled to 0 ... 1 and resized to (width, height)."""
    image = Image.fromarray(np.nan_to_num(scaled(values)).astype(np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def scaled(values: np.ndarray) -> np.ndarray:
    """A map (H, W) of a whole raster scaled to 0 ... 1; NaN stays where there is no data."""
    # Percentiles, since single hot pixels would leave a large raster blank.
    low, high = np.nanpercentile(values, (1, 99.5))
    if high > low:
        return np.clip((values - low) / (high - low), 0, 1)
    return np.where(np.isnan(values), np.nan, 0)


def _where(mask: np.ndarray, picture: Image.Image, other: Image.Image) -> Image.Image:
    """A picture where a mask (h, w) is true, elsewhere another one of the same size."""
    if mask.all():
        return picture
    return Image.composite(picture, other, Image.fromarray(mask).resize(picture.size))


def _arrange(
    shown: list[Panel], legend: list[LegendEntry], title: str, scale_bar: bool
) -> Image.Image:
    """A page of panels of one size below a title, with the legend at the foot."""
    panel_width, panel_height = shown[0].picture.size
    columns = 2 if len(shown) == 2 else 3
    if panel_height <= WIDE * panel_width:
        columns -= 1
    rows = -(-len(shown) // columns)
    # A narrow panel gets a cell as wide as the longest label.
    label_width = max(panels.font(LABEL_STYLE.size).getlength(panel.label) for panel in shown)
    cell_width = max(panel_width, round(label_width) + GAP) + GAP
    cell_height = LABEL_HEIGHT + panel_height + 10

    width = max(NARROWEST, columns * cell_width + GAP)
    lines = list(_flow(legend, width - 2 * GAP))
    scale_height = panels.SCALE_HEIGHT if scale_bar else 0
    legend_top = TITLE_HEIGHT + rows * cell_height + GAP
    height = legend_top + len(lines) * LINE_HEIGHT + scale_height
    page = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(page)
    title_style = panels.Style(28, bold=True)
    panels.draw_text(pen, (GAP, 14), title, title_style, width - 2 * GAP)
    for k, panel in enumerate(shown):
        x = GAP + k % columns * cell_width
        y = TITLE_HEIGHT + k // columns * cell_height
        panels.draw_text(pen, (x, y), panel.label, LABEL_STYLE)
        page.paste(panel.picture, (x, y + LABEL_HEIGHT))
    for k, line in enumerate(lines):
        _draw_legend_line(pen, legend_top + k * LINE_HEIGHT, line, width - 2 * GAP)
    if scale_bar:
        panels.draw_scale(page, width - GAP - panels.SCALE_WIDTH, height - 28)
    return page


def _flow(legend: list[LegendEntry], width: float) -> Iterator[list[tuple[float, LegendEntry]]]:
    """Lines of a legend, as many entries with their x in a line as fit into the width."""
    line = []
    x = 0
    for entry in legend:
        length = 30 + panels.font(LEGEND_STYLE.size).getlength(entry.label) + 36
        if line and x + length > width:
            yield line
            line = []
            x = 0
        line.append((x, entry))
        x += length
    yield line


def _draw_legend_line(
    pen: ImageDraw.ImageDraw, y: int, line: list[tuple[float, LegendEntry]], width: int
) -> None:
    for x, entry in line:
        left = GAP + x
        pen.rectangle((left, y + 1, left + 20, y + 21), fill=entry.colour)
        if entry.is_hatched:
            pen.rectangle((left, y + 1, left + 20, y + 21), outline=panels.INK)
            for shift in range(0, 20, 5):
                pen.line((left + shift, y + 21, left + 20, y + 1 + shift), fill=panels.INK)
                pen.line((left, y + 21 - shift, left + 20 - shift, y + 1), fill=panels.INK)
        panels.draw_text(pen, (left + 30, y), entry.label, LEGEND_STYLE, width - 30)
