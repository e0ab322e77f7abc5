"""What a city is called."""

import difflib
import re

from dl_slicer.cli import InputError, printable


def city_code(city):
    """The label of a city on figures: what stands in the last parentheses of its name, else the name."""
    found = re.search(r"\(([^()]+)\)[^()]*$", city)
    return found.group(1).strip() if found else city


def find(name, classes):
    """The class index of a city given by its full name, its name without the code, or its code. InputError if there is none."""
    names = {}
    for index, city in enumerate(classes):
        for form in (city_code(city), re.sub(r"\s*\([^()]*\)$", "", city), city):
            names[form.casefold()] = index
    if name.casefold() not in names:
        near = difflib.get_close_matches(name.casefold(), names, 1, 0.5)
        few = ", ".join(city_code(city) for city in classes[:50])
        hint = f"did you mean {classes[names[near[0]]]}?" if near else f"the cities are {few}"
        raise InputError(
            f"--target {printable(name)}: the checkpoint knows no such city; {printable(hint)}"
        )
    return names[name.casefold()]
