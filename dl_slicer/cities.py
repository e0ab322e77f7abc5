"""What a city is called, and the colour it has on every figure."""

import colorsys
import difflib
import re
from collections.abc import Sequence

from dl_slicer.cli import InputError, printable

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


def city_code(city: str) -> str:
    """Give the label of a city on figures: its code, the last parentheses of its name.

    A name without parentheses is its own label.
    """
    found = re.search(r"\(([^()]+)\)[^()]*$", city)
    return found.group(1).strip() if found else city


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

    InputError, with what was probably meant, if there is no such city.
    """
    numbers = {}
    for number, city in enumerate(classes):
        without_code = re.sub(r"\s*\([^()]*\)$", "", city)
        for form in (city_code(city), without_code, city):
            numbers[form.casefold()] = number
    if name.casefold() in numbers:
        return numbers[name.casefold()]
    similar = difflib.get_close_matches(name.casefold(), numbers, 1, 0.5)
    if similar:
        hint = f"did you mean {classes[numbers[similar[0]]]}?"
    else:
        hint = "the cities are " + ", ".join(city_code(city) for city in classes[:50])
    raise InputError(
        f"--target {printable(name)}: the checkpoint knows no such city; {printable(hint)}"
    )
