"""One self-contained page to look around in a whole raster.

Layers over one another: the raster, the city that each place resembles most, any one city's share,
and the saliency at each depth. explorer_files reads and checks what a command left in
<name>.explorer, the template lays out the page, its script draws.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dl_slicer.cli import InputError, printable
from dl_slicer.files import atomic
from dl_slicer.report import rendering
from dl_slicer.report.explorer_files import Explorer, read_explorer
from dl_slicer.report.words import data_uri

SUFFIX = ".explorer"
NAMED = 10  # cities that the legend names at once
LARGEST_PAGE = 11_500_000  # bytes; mail and browsers take such a page well
# Scale and JPEG quality of the pictures where the page would be larger, the first that does.
SMALLER = ((1, 85), (1, 70), (0.75, 70), (0.5, 70), (0.35, 60), (0.25, 50))
# Red, green and blue from the lowest value to the highest, at equal steps: matplotlib's viridis and
# inferno, which stay in order for every kind of eyes.
RAMPS = {
    "share": ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)),
    "saliency": ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)),
}


def write_explorer(folder: str | Path) -> Path:
    """Write <name>.html beside the folder <name>.explorer and give its path.

    InputError names what is missing or damaged in the folder.
    """
    folder = Path(folder)
    if not folder.name.endswith(SUFFIX):
        raise InputError(f"{printable(folder)}: give a folder whose name ends with {SUFFIX}")
    page = folder.with_name(f"{folder.name.removesuffix(SUFFIX)}.html")
    text = render(read_explorer(folder))
    with atomic(page, "w", encoding="utf-8") as file:
        file.write(text)
    return page


def find_explorers(folder: str | Path) -> list[Path]:
    """Give the folders <name>.explorer in a folder, or the folder itself if it is one."""
    folder = Path(folder)
    if folder.name.endswith(SUFFIX):
        return [folder]
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if path.is_dir())


def render(explorer: Explorer) -> str:
    """Give the page as HTML."""
    shares = "" if explorer.shares is None else base64.b64encode(explorer.shares.tobytes()).decode()
    raster, *maps = _fitted(
        [explorer.picture, *(layer.picture for layer in explorer.saliency)],
        (LARGEST_PAGE - len(shares)) * 3 // 4,  # base64 writes 3 bytes as 4 letters
    )
    return rendering.render(
        "explorer.html.j2",
        explorer=explorer,
        raster=_address(raster),
        places=None if explorer.shares is None else _address(_places(explorer)),
        data=_data(explorer, shares, maps),
        gradients={name: _gradient(ramp) for name, ramp in RAMPS.items()},
        legend=_legend(explorer),
        named=NAMED,
        style=rendering.own_file("base.css") + rendering.own_file("explorer.css"),
        script=rendering.own_file("explorer.js"),
    )


def _data(explorer: Explorer, shares: str, maps: Sequence[bytes]) -> dict:
    """Give what the script needs, fit for JSON."""
    highest = [0] * len(explorer.cities)
    if explorer.shares is not None:
        highest = explorer.shares.max((0, 1)).tolist()
    return {
        "width": explorer.width,
        "height": explorer.height,
        "metres": explorer.metres_a_pixel,
        "cell": explorer.cell,
        "rows": explorer.rows,
        "cols": explorer.cols,
        "noData": explorer.no_data,
        "unlike": explorer.unlike,
        "cities": [
            {"name": city.name, "colour": city.colour, "highest": most}
            for city, most in zip(explorer.cities, highest, strict=True)
        ],
        "shares": shares,
        "ramps": {name: _ramp_colours(ramp) for name, ramp in RAMPS.items()},
        "maps": [
            {"address": _address(content), "target": layer.target}
            for content, layer in zip(maps, explorer.saliency, strict=True)
        ],
    }


def _places(explorer: Explorer) -> bytes:
    """Give a PNG of a pixel a place in the colour of the city that it resembles most."""
    colours = [[*bytes.fromhex(city.colour[1:]), 255] for city in explorer.cities]
    pixels = np.array(colours, np.uint8)[explorer.shares.argmax(2)]
    pixels.reshape(-1, 4)[explorer.no_data] = 0
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    return png.getvalue()


def _ramp_colours(ramp: Sequence[Sequence[int]]) -> list[list[int]]:
    """Give red, green, blue and opacity for 0 ... 255, and nothing for 256: no data."""
    values = np.arange(256)
    stops = np.linspace(0, 255, len(ramp))
    bands = [np.interp(values, stops, band) for band in zip(*ramp, strict=True)]
    opacity = np.interp(values, (0, 255), (50, 255))  # low values let the raster be seen
    return [*np.stack([*bands, opacity], 1).round().astype(int).tolist(), [0, 0, 0, 0]]


def _gradient(ramp: Sequence[Sequence[int]]) -> str:
    """Give a ramp as CSS has it."""
    colours = _ramp_colours(ramp)
    stops = [colours[round(value)] for value in np.linspace(0, 255, len(ramp))]
    parts = (f"rgb({red} {green} {blue} / {alpha / 255:.2f})" for red, green, blue, alpha in stops)
    return f"linear-gradient(90deg, {', '.join(parts)})"


def _legend(explorer: Explorer) -> list[tuple[int, float]]:
    """Give (class number, share of the places that resemble it most), the most common first."""
    if explorer.shares is None:
        return []
    best = np.delete(explorer.shares.argmax(2).ravel(), explorer.no_data)
    places = np.bincount(best, minlength=len(explorer.cities))
    order = np.argsort(-places, kind="stable")
    return [(int(city), float(places[city] / best.size)) for city in order if places[city]]


def _fitted(pictures: Sequence[bytes], room: int) -> Sequence[bytes]:
    """Give pictures as they are, or made smaller until all fit into so many bytes."""
    fitted = pictures
    for scale, quality in SMALLER:
        if sum(map(len, fitted)) <= room:
            break
        fitted = [_as_jpeg(content, scale, quality) for content in pictures]
    return fitted


def _as_jpeg(content: bytes, scale: float, quality: int) -> bytes:
    with Image.open(io.BytesIO(content)) as picture:
        size = tuple(max(1, round(scale * length)) for length in picture.size)
        jpeg = io.BytesIO()
        picture.resize(size, Image.Resampling.BOX).save(jpeg, "JPEG", quality=quality)
    return jpeg.getvalue()


def _address(content: bytes) -> str:
    media_type = "image/png" if content.startswith(b"\x89PNG") else "image/jpeg"
    return data_uri(content, media_type)
