"""The folder that an explorer is made from, read and checked.

Whatever is wrong with it is told in one line (InputError); what fails afterwards, from data that
were read here, is a fault of ours.
"""

import io
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dl_slicer.cli import InputError, printable
from dl_slicer.report import words

MOST_PIXELS = 4096  # of a picture's longer side
MOST_CITIES = 10_000
MOST_PLACES = 16_384  # a row or a column: browsers draw no larger picture
LARGEST_SIDE = 10**8  # pixels of a raster
LONGEST_REASON = 200  # characters
ONCE_MORE = "run the command that made it again"


@dataclass(frozen=True)
class City:
    """A city as the network knows it."""

    name: str
    colour: str  # #rrggbb


@dataclass(frozen=True)
class SaliencyLayer:
    """The saliency at one depth, a grey picture of the whole area."""

    method: str
    target: str  # the city that is explained
    depth: str
    picture: bytes


@dataclass(frozen=True)
class Explorer:
    """What explorer.json says, with the files that it names."""

    title: str
    width: int  # pixels of the raster that are shown
    height: int
    metres_a_pixel: float | None
    cell: float  # pixels of the raster that a place is wide and high
    rows: int
    cols: int
    cities: list[City]
    picture: bytes
    shares: np.ndarray | None  # uint8 (rows, cols, cities), 255 is all
    no_data: list[int]  # places without data, counted row by row
    unlike: list[int]  # places unlike any city that the network knows
    saliency: list[SaliencyLayer]


def read_explorer(folder: Path) -> Explorer:
    """Read explorer.json and what it names. InputError if a thing is missing or wrong."""
    try:
        found = json.loads(_read_file(folder, "explorer.json"))
        return _explorer(_mapping(found, "explorer.json"), folder)
    except FileNotFoundError as error:
        reason = f"{Path(error.filename).name} is not there"
    except KeyError as error:
        reason = f"explorer.json has no {error.args[0]}"
    except (ValueError, OSError, RecursionError, Image.DecompressionBombError) as error:
        reason = str(error)
    if len(reason) > LONGEST_REASON:
        reason = f"{reason[:LONGEST_REASON]} …"
    raise InputError(f"{printable(folder)}: no whole explorer ({printable(reason)}); {ONCE_MORE}")


def _explorer(found: dict, folder: Path) -> Explorer:
    width = _whole_number(found["width"], "width", LARGEST_SIDE)
    height = _whole_number(found["height"], "height", LARGEST_SIDE)
    rows = _whole_number(found["rows"], "rows", MOST_PLACES)
    cols = _whole_number(found["cols"], "cols", MOST_PLACES)
    cell = _length(found["cell"], "cell")
    for places, length, what in ((rows, height, "rows"), (cols, width, "cols")):
        if not -cell < places * cell - length < cell:
            raise ValueError(f"{places} {what} of {cell:g} pixels do not cover {length} pixels")
    cities = _cities(found)
    metres = found.get("metres_a_pixel")
    size = (width, height)
    return Explorer(
        title=_text(found["title"], "title"),
        width=width,
        height=height,
        metres_a_pixel=None if metres is None else _length(metres, "metres_a_pixel"),
        cell=cell,
        rows=rows,
        cols=cols,
        cities=cities,
        picture=_read_picture(folder, found["picture"], size, ("RGB", "L")),
        shares=_read_shares(folder, found.get("shares"), (rows, cols, len(cities))),
        no_data=_place_numbers(found.get("no_data", []), "no_data", rows * cols),
        unlike=_place_numbers(found.get("unlike", []), "unlike", rows * cols),
        saliency=_saliency(found.get("saliency", {}), folder, size),
    )


def _cities(found: dict) -> list[City]:
    names = _texts(found["classes"], "classes")
    colours = _texts(found["colours"], "colours")
    if not 1 <= len(names) == len(colours) <= MOST_CITIES:
        raise ValueError("not as many colours as classes")
    for colour in colours:
        if not re.fullmatch("#[0-9a-fA-F]{6}", colour):
            raise ValueError(f"the colour {colour[:20]!r} is not as #1f77b4")
    return [City(name, colour) for name, colour in zip(names, colours, strict=True)]


def _saliency(found: Any, folder: Path, size: tuple[int, int]) -> list[SaliencyLayer]:
    layers = []
    for method, explained in _mapping(found, "saliency").items():
        explained = _mapping(explained, f"saliency {method}")
        target = _text(explained["target"], "target")
        for depth, name in _mapping(explained["layers"], "layers").items():
            picture = _read_picture(folder, name, size, ("L",))
            layer = SaliencyLayer(_text(method, "method"), target, _text(depth, "depth"), picture)
            layers.append(layer)
    return layers


# Files


def _read_file(folder: Path, name: Any) -> bytes:
    path = folder / _text(name, "the name of a file")
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"{name} lies outside the folder")
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError(f"{name} is no file")
    return path.read_bytes()


def _read_picture(folder: Path, name: Any, shown: tuple[int, int], modes: tuple[str, ...]) -> bytes:
    """Give a JPEG or PNG as it is. shown: width and height in pixels of the raster in it."""
    content = _read_file(folder, name)
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as picture:
            if max(picture.size) <= MOST_PIXELS:
                picture.load()
    except (OSError, SyntaxError):
        raise ValueError(f"{name} is no whole JPEG or PNG file") from None
    width, height = picture.size
    longest = max(width, height)
    fits = all(
        abs(length - longest * true / max(shown)) <= 1
        for length, true in zip(picture.size, shown, strict=True)
    )
    if longest > MOST_PIXELS or not fits or picture.mode not in modes:
        raise ValueError(
            f"{name} is a picture of {width} x {height} pixels, {picture.mode},"
            f" and none of {shown[0]} x {shown[1]} pixels made smaller, {' or '.join(modes)}"
        )
    return content


def _read_shares(folder: Path, name: Any, shape: tuple[int, int, int]) -> np.ndarray | None:
    if name is None:
        return None
    content = _read_file(folder, name)
    if len(content) != math.prod(shape):
        raise ValueError(f"{name} has {len(content)} bytes instead of {math.prod(shape)}")
    return np.frombuffer(content, np.uint8).reshape(shape)


# Values


def _mapping(value: Any, what: str) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no mapping of names to values")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{what} is no text")
    return words.replace_unprintable(value)


def _texts(value: Any, what: str) -> list[str]:
    if not isinstance(value, list):
        raise ValueError(f"{what} is no list")
    return [_text(item, what) for item in value]


def _whole_number(value: Any, what: str, most: int) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{what} is no whole number from 1 to {most}")
    return value


def _length(value: Any, what: str) -> float:
    if type(value) not in (int, float) or not 1e-6 <= value <= LARGEST_SIDE:
        raise ValueError(f"{what} is no length")
    return float(value)


def _place_numbers(value: Any, what: str, places: int) -> list[int]:
    if not isinstance(value, list) or any(
        type(number) is not int or not 0 <= number < places for number in value
    ):
        raise ValueError(f"{what} is no list of places from 0 to {places - 1}")
    return value
