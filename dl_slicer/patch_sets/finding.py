"""The rasters of a raw folder, and which of them are held out."""

import os
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dl_slicer.cities import fault_of_name
from dl_slicer.cli import InputError, printable
from dl_slicer.patch_sets import image_files, on_disk
from dl_slicer.patch_sets.image_files import UnreadableImage
from dl_slicer.patch_sets.jobs import Job, stamp_of
from dl_slicer.patch_sets.rasters import open_raster

LONGEST_ON_DISK = 255  # bytes of a name that a file system takes
LONGEST_SUFFIX = len("_r00000_c00000.jpg")  # what follows a raster's flat name in that of a patch


class RasterFile(NamedTuple):
    """A raster as it was found."""

    site: str  # "" where it lies in no site's folder
    raster: str  # path relative to the raw folder
    stamp: list[int]  # jobs.stamp_of


# Gives {raster: its site} of {city: its rasters, each with its stamp}.
FindSites = Callable[[Mapping[str, Sequence[tuple[str, list[int]]]]], Mapping[str, str]]


def find_rasters(
    raw: Path,
    out: Path,
    find_sites: FindSites | None = None,
    held_out: int = 1,
    val: str = "half",
) -> list[Job]:
    """A job for each raster, sorted by city, site and path.

    held_out and val: which site of each city is held out, see splits_of_sites. find_sites: for
    cities whose rasters lie directly in their folder; None refuses these. InputError if the layout
    is not as expected, all faults at once.
    """
    if not raw.is_dir():
        raise InputError(
            f"{printable(raw)}: no such folder; --raw must hold <City (CODE)>/<site>/<raster>.jpg"
        )
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(raw)):
        raise InputError(
            f"{printable(out)}: lies inside the raw folder {printable(raw)}; choose another --out"
        )
    faults: list[str] = []
    cities, shallow = _find_files(raw, faults)
    if not cities and not shallow and not faults:
        raise InputError(
            f"{printable(raw)}: no rasters in it;"
            " expected <City (CODE)>/<site>/<raster>.jpg (or png, tif)"
        )
    if find_sites is not None:
        shallow = _take_flat_cities(cities, shallow)
    faults += _faults_of_shallow(raw, [Path(file.raster) for file in shallow], bool(cities))
    if find_sites is None:
        faults += _advice_on_sites(raw, shallow)
    faults += _faults_of_names(raw, cities)
    if len(cities) == 1:
        faults.append(_fault_of_one_city(raw, *cities.items()))
    faults += _faults_of_twins(raw, sorted(cities))
    for city, rasters in sorted(cities.items()):
        faults += _faults_of_city(raw, city, rasters) if len(cities) > 1 else []
    if faults:
        raise InputError("\n".join(faults))
    if find_sites is not None:
        _give_sites(raw, cities, find_sites)
    return [
        job
        for city, rasters in sorted(cities.items())
        for job in _jobs_of_city(city, rasters, held_out, val)
    ]


def _take_flat_cities(
    cities: dict[str, list[RasterFile]], shallow: list[RasterFile]
) -> list[RasterFile]:
    """Add the cities whose rasters all lie directly in their folder; give the other rasters."""
    has_sites = set(cities)
    left = []
    for file in shallow:
        city, _, inside = file.raster.partition("/")
        if inside and city not in has_sites:
            cities[city].append(file)
        else:
            left.append(file)
    return left


def _advice_on_sites(raw: Path, shallow: list[RasterFile]) -> Iterator[str]:
    """A line where rasters lie directly in a city's folder and know their place."""
    first_of_city = {file.raster.partition("/")[0]: file.raster for file in reversed(shallow)}
    for city, raster in sorted(first_of_city.items()):
        if city != raster and _has_georeference(raw / raster):
            yield (
                f"{printable(raw)}: rasters that lie directly in their city's folder can be put"
                " into sites by where they lie on the ground: --sites 3 makes three of each such"
                " city"
            )
            return


def _has_georeference(path: Path) -> bool:
    with suppress(UnreadableImage), open_raster(path) as raster:
        return raster.transform is not None
    return False


def _give_sites(raw: Path, cities: dict[str, list[RasterFile]], find_sites: FindSites) -> None:
    """Put the rasters that lie directly in a city's folder into sites."""
    flat = {city: files for city, files in cities.items() if not files[0].site}
    others = sorted(cities.keys() - flat.keys())
    if others:
        noun = "city" if len(others) == 1 else "cities"
        print(
            f"{printable(raw)}: sites are folders already in {len(others)} {noun}, such as"
            f" {printable(others[0])}, and stay as they are",
            flush=True,
        )
    sites = find_sites({city: [file[1:] for file in files] for city, files in flat.items()})
    for city, files in flat.items():
        cities[city] = [file._replace(site=sites[file.raster]) for file in files]


def _find_files(
    raw: Path, faults: list[str]
) -> tuple[dict[str, list[RasterFile]], list[RasterFile]]:
    """Give the rasters of each city, and those that lie in no site's folder.

    What cannot be used goes into faults.
    """
    cities: dict[str, list[RasterFile]] = defaultdict(list)
    shallow = []
    for path, status in _walk(raw, faults):
        inside = path.relative_to(raw)
        fault = _fault_of_path(status)
        if fault:
            faults.append(f"{printable(path)}: {fault}")
        elif stat.S_ISDIR(status.st_mode):
            continue
        elif len(inside.parts) < 3:
            shallow.append(RasterFile("", inside.as_posix(), stamp_of(status)))
        else:
            city, site, *_ = inside.parts
            cities[city].append(RasterFile(site, inside.as_posix(), stamp_of(status)))
    return cities, shallow


def _walk(raw: Path, faults: list[str]) -> Iterator[tuple[Path, os.stat_result]]:
    """All folders and images but hidden and systems' ones.

    Folders that cannot be listed go into faults.
    """

    def note(error: OSError) -> None:
        faults.append(f"{printable(error.filename)}: {error.strerror}")

    for folder, folders, names in os.walk(raw, onerror=note):
        folders[:] = sorted(name for name in folders if not image_files.is_passed_over(name))
        images = sorted(name for name in names if image_files.is_image_name(name))
        for name in folders + images:
            path = Path(folder, name)
            yield path, path.lstat()


def _fault_of_path(status: os.stat_result) -> str | None:
    """Say what is wrong with a folder or an image in the raw folder, and what to do; or None."""
    if stat.S_ISLNK(status.st_mode):
        return (
            "a symbolic link, these are not followed;"
            " put what it points to in its place (cp -rL does)"
        )
    if stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
        return None
    return "no regular file; delete it"


def _faults_of_shallow(raw: Path, shallow: list[Path], has_cities: bool) -> list[str]:
    """A line for each raster that lies in no site's folder; one for all where --raw is too low."""
    if shallow and not has_cities:
        level = _level_above(raw, 3 - max(len(inside.parts) for inside in shallow))
        if _has_two_cities(level):
            return [
                f"{printable(raw)}: its rasters lie in no folders <City (CODE)>/<site>, the first"
                f" is {printable(min(shallow))}; it may be one of the cities or sites itself:"
                f" --raw {printable(level)}"
            ]
    place = f"{printable(raw)}/<City (CODE)>/<site>"
    return [
        f"{printable(raw / inside)}: a raster must lie in a site's folder,"
        f" {place}/{printable(inside.name)}"
        for inside in shallow
    ]


def _level_above(folder: Path, levels: int) -> Path:
    for _ in range(levels):
        folder = Path(os.path.dirname(os.path.abspath(folder)))
    return folder


def _has_two_cities(raw: Path) -> bool:
    cities = set()
    for path in raw.glob("*/*/*"):
        if image_files.is_image_name(path.name):
            cities.add(path.parts[-3])
        if len(cities) == 2:
            return True
    return False


def _faults_of_names(raw: Path, cities: Mapping[str, list[RasterFile]]) -> Iterator[str]:
    """A line for each folder and each raster whose name is none, or makes too long a name."""
    faults: dict[Path, str | None] = {}
    for city, rasters in sorted(cities.items()):
        for _, raster, _ in sorted(rasters):
            inside = Path(raster)
            parts = (*reversed(inside.parents[:-1]), inside)
            for path in parts:
                if path not in faults:
                    faults[path] = fault_of_name(path.name)
                    if faults[path]:
                        yield f"{printable(raw / path)}: {faults[path]}; rename it"
            flat = len(os.fsencode(on_disk.flat_name(city, raster))) + LONGEST_SUFFIX
            if flat > LONGEST_ON_DISK and not any(faults[path] for path in parts):
                yield (
                    f"{printable(raw / inside)}: its patches would have names of {flat} bytes, at"
                    f" most {LONGEST_ON_DISK} are possible; shorten its name or its folders'"
                )


def _fault_of_one_city(raw: Path, found: tuple[str, list[RasterFile]]) -> str:
    """Say that one city is too few, and which folder holds cities if one in it does."""
    city, rasters = found
    inside = [Path(file.raster).parts for file in rasters]
    level = raw
    fault = f"{printable(raw)}: only one city ({printable(city)}), at least two are needed"
    # The layout needs a city, a site and a raster.
    while all(len(parts) > 3 for parts in inside) and len({parts[0] for parts in inside}) == 1:
        level /= inside[0][0]
        inside = [parts[1:] for parts in inside]
        cities = {parts[0] for parts in inside}
        if len(cities) > 1:
            return f"{fault}; its {len(cities)} folders may be the cities: --raw {printable(level)}"
    return f"{fault}; expected <City (CODE)>/<site>/<raster>.jpg in it"


def _compared(name: str) -> str:
    """Give what is the same for names that some file systems, and most people, take for the same.

    They differ in case alone, or in how an accent is put together.
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _faults_of_twins(raw: Path, cities: list[str]) -> Iterator[str]:
    first_of_name: dict[str, str] = {}
    for city in cities:
        other = first_of_name.setdefault(_compared(city), city)
        if other != city:
            yield (
                f"{printable(raw / city)}: has the same name as {ascii(other)}, but for case or"
                f" accents ({ascii(city)}); make them one city, or rename one of them"
            )


def _faults_of_city(raw: Path, city: str, rasters: list[RasterFile]) -> Iterator[str]:
    sites = sorted({file.site for file in rasters})
    if len(sites) == 1 and sites != [""]:
        yield (
            f"{printable(raw / city)}: only one site ({printable(sites[0])}) has rasters;"
            " at least two are needed, one of them is held out"
        )
    first_of_name: dict[str, str] = {}
    for _, raster, _ in sorted(rasters):
        name = _compared(on_disk.flat_name(city, raster))
        if name in first_of_name:
            other = printable(raw / first_of_name[name])
            yield (
                f"{printable(raw / raster)}: would get the same name as {other}; rename one of them"
            )
        first_of_name.setdefault(name, raster)


def splits_of_sites(
    sites: Iterable[str], held_out: int = 1, val: str = "half"
) -> dict[str, list[str]]:
    """Give the splits of each site of a city: {site: one, or test and val for its two halves}.

    held_out: which site in sorted order is test, counted from the last one, going round where there
    are fewer. val: half takes it from the right half of that site's rasters; site takes the next
    site in the same order as a whole, where that leaves one for train; else it is half, too.
    """
    backwards = sorted(set(sites), reverse=True)
    test = backwards[(held_out - 1) % len(backwards)]
    splits = {site: ["train"] for site in backwards}
    if val == "site" and len(backwards) > 2:
        splits[test] = ["test"]
        splits[backwards[held_out % len(backwards)]] = ["val"]
    else:
        splits[test] = ["test", "val"]
    return splits


def _jobs_of_city(city: str, rasters: list[RasterFile], held_out: int, val: str) -> list[Job]:
    splits = splits_of_sites((file.site for file in rasters), held_out, val)
    return [
        Job(
            raster=file.raster,
            city=city,
            site=file.site,
            splits=splits[file.site],
            stamp=file.stamp,
        )
        for file in sorted(rasters)
    ]
