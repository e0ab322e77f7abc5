"""What a city is called, which names are none, and the colour a city has on every figure."""

import colorsys
import difflib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import PurePath

from dl_slicer.cli import InputError, printable

# Longest name in bytes. File systems take 255; the rest is for what we put before and after it.
LONGEST_NAME = 200

# Unicode's categories of characters that end a line or steer a terminal.
CONTROL = {"Cc", "Zl", "Zp"}

OTHERS = (150, 150, 150)  # the grey of cities that a legend does not name

# Colours of the classes by number. The first ten are matplotlib's tab10 with black for its grey.
# Each of the others is the one furthest (by CIEDE2000, over a grid of RGB without greyish colours)
# from those before it, from OTHERS and from white. No two of the 45 are closer than 13; a
# difference of 2 is hard to see.
# fmt: off
COLOURS = (
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40),
    (148, 103, 189), (188, 189, 34), (227, 119, 194), (23, 190, 207),
    (140, 86, 75), (40, 40, 40), (30, 0, 180), (120, 105, 0),
    (0, 90, 45), (0, 240, 180), (120, 0, 75), (165, 180, 255),
    (255, 180, 165), (45, 135, 120), (105, 240, 15), (255, 195, 105),
    (90, 45, 0), (210, 30, 120), (0, 60, 105), (165, 90, 0),
    (240, 105, 120), (60, 60, 0), (60, 75, 255), (240, 195, 255),
    (195, 225, 165), (60, 180, 255), (120, 0, 15), (150, 15, 165),
    (180, 135, 45), (195, 120, 90), (105, 180, 150), (60, 45, 90),
    (225, 0, 255), (90, 120, 60), (150, 165, 105), (120, 135, 195),
    (195, 135, 255), (135, 75, 120), (90, 90, 150), (255, 165, 195),
    (180, 0, 60),
)
# fmt: on


def check_name(name: str, what: str) -> None:
    """InputError unless a file or a folder can have this name, wherever it comes from.

    It must be one name and no path, have no control characters and at most LONGEST_NAME bytes:
    names come from folders and files that others wrote, and we make files of them.
    what: for the message, such as "regions.csv: city".
    """
    _refuse_fault(fault_of_name(name), name, what)


def check_path(path: str, what: str) -> None:
    """InputError unless this is a relative path of such names, which stays inside its folder."""
    faults = (fault_of_name(name) for name in path.split("/"))
    _refuse_fault(next(filter(None, faults), None), path, what)


@lru_cache(maxsize=2**14)  # a set names each city and site hundreds of times
def fault_of_name(name: str) -> str | None:
    """Say why no file or folder can have this name, for a line that begins with it; or None."""
    if name in ("", "..") or PurePath(name).name != name:
        return "must be a name without /, and neither empty nor . nor .."
    kinds = {unicodedata.category(character) for character in name}
    if "Cs" in kinds:  # half a character, as Python reads a byte that is no UTF-8
        return "its name is not in UTF-8"
    if kinds & CONTROL:
        return "its name has a line break or another control character"
    length = len(name.encode())
    if length > LONGEST_NAME:
        return f"its name has {length} bytes, at most {LONGEST_NAME} are possible"
    return None


def _refuse_fault(fault: str | None, name: str, what: str) -> None:
    if fault:
        shown = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
        raise InputError(f"{what} {printable(shown)}: {fault}; rename it")


def city_code(city: str) -> str:
    """Give the label of a city on figures: its code, the last parentheses of its name.

    A name without parentheses is its own label.
    """
    found = re.search(r"\(([^()]+)\)[^()]*$", city)
    return found.group(1).strip() if found else city


def labels(classes: Sequence[str]) -> list[str]:
    """Give the labels of cities on figures: their codes, full names where a code is not unique."""
    codes = [city_code(city) for city in classes]
    times = Counter(codes)
    return [code if times[code] == 1 else city for code, city in zip(codes, classes, strict=True)]


def colour(class_number: int) -> tuple[int, int, int]:
    """Give the colour of a class as red, green, blue in 0 ... 255: the same on every figure.

    Classes beyond the 45 of COLOURS get evenly spread hues, which may resemble one another.
    """
    if class_number < len(COLOURS):
        return COLOURS[class_number]
    # The golden ratio spreads hues evenly, however many there are.
    hue = class_number * 0.618034 % 1
    lightness = (0.35, 0.55, 0.72)[class_number % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


def find(name: str, classes: Sequence[str]) -> int:
    """Give the class number of a city by its full name, its name without the code, or its code.

    InputError, with what was probably meant, if there is no such city, or more than one.
    """
    if name in classes:
        return classes.index(name)
    numbers = defaultdict(set)
    for number, city in enumerate(classes):
        without_code = re.sub(r"\s*\([^()]*\)$", "", city)
        for form in (city_code(city), without_code, city):
            numbers[form.casefold()].add(number)
    found = sorted(numbers.get(name.casefold(), ()))
    if len(found) == 1:
        return found[0]
    if found:
        fault = "fits several cities; give the full name of one: "
        fault += ", ".join(classes[number] for number in found)
    else:
        fault = f"the checkpoint knows no such city; {_hint(name, numbers, classes)}"
    raise InputError(f"--target {printable(name)}: {printable(fault)}")


def _hint(name: str, numbers: Mapping[str, set[int]], classes: Sequence[str]) -> str:
    """Say what was probably meant. numbers: of the classes that each short or full name fits."""
    similar = difflib.get_close_matches(name.casefold(), numbers, 1, 0.5)
    if similar:
        return f"did you mean {classes[min(numbers[similar[0]])]}?"
    return "the cities are " + ", ".join(labels(classes)[:50])
