"""What a city is called, and the colour it has on every figure."""

import colorsys
import difflib
import re
from collections.abc import Sequence

from dl_slicer.cli import InputError, printable

OTHERS = (150, 150, 150)  # the grey of cities that a legend does not name

# Colours of the first classes, easily told apart: matplotlib's tab10 without its grey.
FIRST_COLOURS = (
    (31, 119, 180),
    (255, 127, 14),
    (44, 160, 44),
    (214, 39, 40),
    (148, 103, 189),
    (188, 189, 34),
    (227, 119, 194),
    (23, 190, 207),
    (140, 86, 75),
    (40, 40, 40),
)


def city_code(city: str) -> str:
    """Give the label of a city on figures: its code, the last parentheses of its name.

    A name without parentheses is its own label.
    """
    found = re.search(r"\(([^()]+)\)[^()]*$", city)
    return found.group(1).strip() if found else city


def colour(class_number: int) -> tuple[int, int, int]:
    """Give the colour of a class as red, green, blue in 0 ... 255: the same on every figure."""
    if class_number < len(FIRST_COLOURS):
        return FIRST_COLOURS[class_number]
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
