"""Where in a download the cities lie, whatever is above them, and which cities they are.

Names stay as they were published: the authors' class numbers are their sorted folder names.
"""

import csv
import difflib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dl_slicer.cli import printable

SPLITS = ("train", "val", "test", "test_b")
RAW = re.compile(r"(?<![a-z])raw(?![a-z])")
PROCESSED = re.compile(r"processed|patches")
CODED = re.compile(r".+\([A-Z]{3}\)\s*")  # Almaty (ALA)
JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini"}
SIMILAR = 0.8  # of names, from where one is taken for another spelling
MOST_LINES = 60  # of a folder in a tree


class City(NamedTuple):
    """A row of cities.csv."""

    name: str
    code: str

    def __str__(self) -> str:
        return f"{self.name} ({self.code})"


class Cities:
    """The cities of the paper, found by names as others spell them."""

    def __init__(self, known: Sequence[City]):
        self.known = list(known)
        self.by_key = {_key(str(city)): city for city in known}
        self.by_key |= {_key(city.name): city for city in known}
        self.by_code = {city.code: city for city in known}

    def named(self, folder: str) -> City | None:
        """The city that a folder's name says, in any case, with accents or without."""
        if _key(folder) in self.by_key:
            return self.by_key[_key(folder)]
        code = re.search(r"(?:^|\()([A-Z]{3})\)?\s*$", folder)
        return self.by_code.get(code[1]) if code else None

    def similar(self, folder: str) -> City | None:
        """The city that a folder of cities may mean; for names that `named` does not know."""
        name = _key(re.sub(r"\([^()]*\)", "", folder))
        names = {_key(city.name): city for city in self.known}
        found = difflib.get_close_matches(name, names, 1, SIMILAR)
        return self.named(folder) or (names[found[0]] if found else None)

    def looks_like_one(self, folder: str) -> bool:
        """Whether a folder's name is that of a city, known or not."""
        return self.named(folder) is not None or CODED.fullmatch(folder) is not None


def _key(name: str) -> str:
    """Give a name without case, accents, spaces and signs."""
    plain = unicodedata.normalize("NFKD", name).casefold()
    return "".join(character for character in plain if character.isalnum())


def read_cities(path: Path) -> Cities:
    """Read cities.csv."""
    with open(path, encoding="utf-8", newline="") as file:
        return Cities([City(row["name"], row["code"]) for row in csv.DictReader(file)])


# ------------------------------------------------------------------------------- raw or processed


def is_junk(path: PurePosixPath) -> bool:
    """Whether a file is hidden or was left by a program that shows folders."""
    return any(part.startswith(".") or part in JUNK for part in path.parts)


def kind_of(path: PurePosixPath, cities: Cities) -> str | None:
    """Say what a file's path in a repository or an archive says it is: raw or processed.

    None if it says neither, or both. What stands below a city's folder says nothing.
    """
    kinds = set()
    for part in path.parts:
        if cities.looks_like_one(part):
            break
        if RAW.search(part.lower()):
            kinds.add("raw")
        if PROCESSED.search(part.lower()) or part.split(".")[0].lower() in SPLITS:
            kinds.add("processed")
    return kinds.pop() if len(kinds) == 1 else None


def choose(
    paths: Sequence[PurePosixPath],
    kind: str,
    cities: Cities,
    is_data: Callable[[PurePosixPath], bool],
) -> list[PurePosixPath]:
    """Give the files of a repository that are of a kind, or may be if none says so."""
    kinds = {path: kind_of(path, cities) for path in paths if not is_junk(path)}
    chosen = [path for path, own in kinds.items() if own == kind]
    if any(is_data(path) for path in chosen):
        return chosen
    return [path for path, own in kinds.items() if own in (kind, None) and is_data(path)]


# ------------------------------------------------------------------------------------------ cities


def find_cities(root: Path, cities: Cities, is_image: Callable[[str], bool]) -> list[Path]:
    """Give the folders of cities below a folder.

    A folder that is called like a city and holds images, unless cities lie in it; and whatever
    holds images beside two such.
    """
    found, _ = _look(root, cities, is_image, is_root=True)
    return sorted(found)


def _look(
    folder: Path, cities: Cities, is_image: Callable[[str], bool], is_root: bool = False
) -> tuple[list[Path], int]:
    """Give the cities in or below a folder, and how many images it holds."""
    below: list[Path] = []
    beside: list[Path] = []  # what is no city by its name, but holds images
    images = here = 0
    with os.scandir(folder) as entries:
        children = sorted(entries, key=lambda entry: entry.name)
    for child in children:
        if child.is_dir(follow_symlinks=False) and not is_junk(PurePosixPath(child.name)):
            found, count = _look(Path(child), cities, is_image)
            images += count
            here += bool(found) and cities.looks_like_one(child.name)
            below += found
            beside += [_innermost(Path(child))] if count and not found else []
        elif child.is_file(follow_symlinks=False) and is_image(child.name):
            images += 1
    if here >= 2:
        below += beside
    elif images and not is_root and cities.looks_like_one(folder.name):
        below = _own_or_inner(folder, below, cities, is_image)
    return below, images


def _own_or_inner(
    folder: Path, below: list[Path], cities: Cities, is_image: Callable[[str], bool]
) -> list[Path]:
    """Give what is the city of a folder that is called like one: itself, or what lies in it."""
    own = cities.named(folder.name) or folder.name
    others = {cities.named(path.name) or path.name for path in below}
    if len(others - {own}) > 1:
        return below
    is_packed_twice = others == {own} and len(below) == 1
    if is_packed_twice and _count(folder, is_image) == _count(below[0], is_image):
        return below
    return [folder]


def _count(folder: Path, is_image: Callable[[str], bool]) -> int:
    return sum(is_image(name) for _, _, names in os.walk(folder) for name in names)


def _innermost(folder: Path) -> Path:
    """Give the folder in a folder of the same name, which an archive was unpacked into."""
    while os.listdir(folder) == [folder.name] and (folder / folder.name).is_dir():
        folder /= folder.name
    return folder


def split_of(folder: Path, root: Path) -> str | None:
    """Give the name of the folder of a split in which a city lies."""
    above = folder.relative_to(root).parts[:-1]
    return next((part for part in reversed(above) if part.lower() in SPLITS), None)


def places(
    roots: Iterable[Path], kind: str, cities: Cities, is_image: Callable[[str], bool]
) -> dict[PurePosixPath, list[Path]]:
    """Give where the folders of cities are to be placed, and where each of them lies.

    Several where archives hold parts of one city. Empty if fewer than two cities were found.
    """
    found = defaultdict(list)
    for root in roots:
        for folder in find_cities(root, cities, is_image) if root.is_dir() else ():
            split = split_of(folder, root)
            if (split is not None) == (kind == "processed"):
                found[PurePosixPath(split or "", folder.name)].append(folder)
    names = {path.name for path in found}
    return dict(found) if len(names) > 1 else {}


# ------------------------------------------------------------------------------------------- trees


def tree(paths: Iterable[PurePosixPath], depth: int = 3) -> list[str]:
    """Give lines that show folders and files down to a depth, and how many files lie below."""
    files: Counter[PurePosixPath] = Counter()  # in and below
    children: dict[PurePosixPath, set[PurePosixPath]] = defaultdict(set)
    for path in paths:
        parts = path.parts
        for level in range(1, min(depth, len(parts)) + 1):
            child = PurePosixPath(*parts[:level])
            files[child] += 1
            children[child.parent].add(child)
            if level < len(parts):
                children.setdefault(child, set())
    return list(_lines(files, children, PurePosixPath()))


def _lines(
    files: Mapping[PurePosixPath, int],
    children: Mapping[PurePosixPath, set[PurePosixPath]],
    folder: PurePosixPath,
) -> Iterator[str]:
    indent = "    " * (len(folder.parts) + 1)
    inside = sorted(children.get(folder, ()))
    for path in inside[:MOST_LINES]:
        below = f"/   {files[path]} files" if path in children else ""
        yield f"{indent}{printable(path.name)}{below}"
        yield from _lines(files, children, path)
    if len(inside) > MOST_LINES:
        yield f"{indent}... and {len(inside) - MOST_LINES} more"
