"""Tiles of a site that touch or overlap on one grid of pixels, joined to one raster.

What joins them is a file in GDAL's VRT format that lies in the patch set, in the folder `mosaics`
as the rasters lie in theirs; a mosaic is called by its path there. It names the tiles, so that it
also remembers which they are: a tile that is added joins the mosaic that it touches.
"""

import heapq
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from dl_slicer.cli import printable
from dl_slicer.files import atomic
from dl_slicer.patch_sets import footprints, on_disk
from dl_slicer.patch_sets.footprints import Footprint, Piece
from dl_slicer.patch_sets.image_files import UnreadableImage
from dl_slicer.patch_sets.jobs import Job, Request
from dl_slicer.patch_sets.survey import Survey

GRID = 0.01  # pixels that tiles may be off a common grid
# Tiles of a mosaic overlap by their rims. What shares more of its ground is another picture of it,
# as of another year, and stays another raster.
SHARED_AT_MOST = 0.5
NAME = "mosaic_{}.vrt"


class Source(NamedTuple):
    """A tile as a mosaic names it."""

    path: str
    is_relative: bool
    place: tuple[int, int, int, int]  # x, y, width and height in the mosaic
    block: Sequence[int]


@dataclass(frozen=True)
class Tile:
    """A raster that may be part of a mosaic."""

    job: Job
    footprint: Footprint
    layout: Mapping[str, Any] | None  # of its bands; equal for all tiles of a mosaic
    block: Sequence[int]  # width and height of the blocks of its file


def has_any(out: Path) -> bool:
    """Whether a patch set has mosaics: later runs keep them."""
    return next((out / on_disk.MOSAICS).rglob("*.vrt"), None) is not None


def join(request: Request, survey: Survey, jobs: Sequence[Job]) -> list[Job]:
    """Give one job for all tiles of a mosaic in place of theirs, and write what joins them.

    Rasters that fit to no other stay as they are. Says how many mosaics of how many tiles there
    are.
    """
    before = load(request.out)
    found = survey.look((job.raster, job.stamp) for job in jobs)
    tiles: dict[tuple[str, str], list[Tile]] = defaultdict(list)
    for job in jobs:
        if job.raster in found:
            tile = _tile(survey, job, found[job.raster])
            if tile is not None:
                tiles[job.city, job.site].append(tile)
    groups = []
    for _, of_site in sorted(tiles.items()):
        groups += [group for group in _groups(survey, of_site) if len(group) > 1]
    joined = []
    for group, name in zip(groups, _names(groups, before, jobs), strict=True):
        _write(request, name, group)
        joined.append(_job(name, group))
    _remove_others(request.out, {job.raster for job in joined})
    count = sum(len(job.tiles) for job in joined)
    number = "1 mosaic" if len(joined) == 1 else f"{len(joined)} mosaics"
    print(
        f"{printable(request.raw)}: {number} of {count} tiles,"
        f" {len(jobs) - count} rasters stay on their own",
        flush=True,
    )
    parts = {raster for job in joined for raster, _, _ in job.tiles}
    left = [job for job in jobs if job.raster not in parts]
    return sorted(left + joined, key=lambda job: (job.city, job.site, job.raster))


def _tile(survey: Survey, job: Job, footprint: Footprint) -> Tile | None:
    """A raster with what must be equal for it to be joined to others; None if it cannot be read."""
    try:
        return Tile(job, footprint, *survey.layout(job.raster))
    except UnreadableImage:
        return None  # whoever tiles it says why


def _job(name: str, group: Sequence[Tile]) -> Job:
    first = group[0].job
    tiles = tuple((tile.job.raster, *tile.job.stamp) for tile in group)
    stamp = [sum(size for _, size, _ in tiles), max(time for _, _, time in tiles)]
    return Job(name, first.city, first.site, first.splits, stamp, tiles=tiles)


# ------------------------------------------------------------------------------- what fits


def _groups(survey: Survey, tiles: Sequence[Tile]) -> list[list[Tile]]:
    """Tiles that touch on one grid, be it through others, sorted by path; single ones, too."""
    pieces = [Piece(tile.job.raster, tile.footprint) for tile in tiles]
    touching: dict[int, set[int]] = defaultdict(set)
    clashing: dict[int, set[int]] = defaultdict(set)
    for i, j in footprints.neighbours([tile.footprint for tile in tiles]):
        offset = _offset(tiles[i], tiles[j])
        if offset is None or not _touch(tiles[i].footprint, tiles[j].footprint, offset):
            continue
        if _shared(tiles[i].footprint, tiles[j].footprint, offset) > SHARED_AT_MOST:
            clashing[i].add(j)
            clashing[j].add(i)
        elif footprints.overlap(pieces[i], pieces[j], survey.opened, -footprints.STRIP / 2):
            touching[i].add(j)
            touching[j].add(i)
    return [[tiles[i] for i in members] for members in _grow(len(tiles), touching, clashing)]


def _grow(
    number: int, touching: Mapping[int, set[int]], clashing: Mapping[int, set[int]]
) -> list[list[int]]:
    """Groups of 0 ... number - 1 that touch through others and hold no two that clash."""
    left = set(range(number))
    groups = []
    for start in range(number):
        if start not in left:
            continue
        group: set[int] = set()
        waiting = [start]
        while waiting:
            tile = heapq.heappop(waiting)
            if tile not in left or clashing.get(tile, set()) & group:
                continue
            group.add(tile)
            left.discard(tile)
            for other in touching.get(tile, ()):
                heapq.heappush(waiting, other)
        groups.append(sorted(group))
    return groups


def _offset(first: Tile, second: Tile) -> tuple[int, int] | None:
    """Columns and rows from a tile's corner to another's; None if they share no grid."""
    own = first.footprint.own
    other = second.footprint.own
    if own.crs != other.crs or first.layout is None or first.layout != second.layout:
        return None
    # Over the longer raster the difference of two pixel sizes must not add up to more.
    longest = max(own.width, own.height, other.width, other.height)
    size = max(abs(value) for value in (own.transform[0], own.transform[1]))
    for i in (0, 1, 3, 4):
        if abs(own.transform[i] - other.transform[i]) * longest > GRID * size:
            return None
    corner = np.array([[other.transform[2], other.transform[5]]])
    x, y = own.to_pixels(corner)[0].tolist()
    if abs(x - round(x)) > GRID or abs(y - round(y)) > GRID:
        return None
    return round(x), round(y)


def _touch(first: Footprint, second: Footprint, offset: tuple[int, int]) -> bool:
    """Whether two frames on one grid have a side, a corner or more in common."""
    x, y = offset
    across = min(first.own.width, x + second.own.width) - max(0, x)
    down = min(first.own.height, y + second.own.height) - max(0, y)
    return across >= 0 and down >= 0


def _shared(first: Footprint, second: Footprint, offset: tuple[int, int]) -> float:
    """The share of the smaller frame that lies in the other one."""
    x, y = offset
    across = min(first.own.width, x + second.own.width) - max(0, x)
    down = min(first.own.height, y + second.own.height) - max(0, y)
    smaller = min(each.own.width * each.own.height for each in (first, second))
    return max(0, across) * max(0, down) / smaller


# ------------------------------------------------------------------------------- names


def _names(
    groups: Sequence[Sequence[Tile]], before: Mapping[str, str], jobs: Sequence[Job]
) -> list[str]:
    """A path for each mosaic: that which most of its tiles were in before, or the next number."""
    names: dict[int, str] = {}
    claims = []
    for i, group in enumerate(groups):
        known = Counter(before[tile.job.raster] for tile in group if tile.job.raster in before)
        claims += [(-count, i, name) for name, count in known.items()]
    for _, i, name in sorted(claims):
        if i not in names and name not in names.values():
            names[i] = name
    # Regions are called by paths without suffixes.
    used = {_stem(raster) for raster in (*before.values(), *(job.raster for job in jobs))}
    for i, group in enumerate(groups):
        folder = os.path.commonpath([Path(tile.job.raster).parent for tile in group])
        for number in itertools.count(1):
            if i in names:
                break
            name = f"{Path(folder).as_posix()}/{NAME.format(number)}"
            if _stem(name) not in used:
                names[i] = name
                used.add(_stem(name))
    return [names[i] for i in range(len(groups))]


def _stem(raster: str) -> str:
    # Some file systems take names that differ in case alone for the same.
    return Path(raster).with_suffix("").as_posix().casefold()


def load(out: Path) -> dict[str, str]:
    """{tile: its mosaic} as the patch set has them."""
    tiles = {}
    for file in sorted((out / on_disk.MOSAICS).rglob("*.vrt")):
        try:
            root = ElementTree.parse(file).getroot()
        except (OSError, ElementTree.ParseError):
            continue  # it is written anew
        name = file.relative_to(out / on_disk.MOSAICS).as_posix()
        for item in root.iterfind("./Metadata[@domain='TILES']/MDI"):
            tiles[item.text or ""] = name
    return tiles


def _remove_others(out: Path, names: set[str]) -> None:
    for file in (out / on_disk.MOSAICS).rglob("*.vrt"):
        if file.relative_to(out / on_disk.MOSAICS).as_posix() not in names:
            file.unlink(missing_ok=True)


# ------------------------------------------------------------------------------- the file


def _write(request: Request, name: str, group: Sequence[Tile]) -> None:
    """Write what joins tiles, unless it is there; later tiles lie over earlier ones."""
    file = request.out / on_disk.MOSAICS / name
    text = _text(request, file, group)
    if not (file.is_file() and file.read_bytes() == text):
        with atomic(file, sync=False) as opened:
            opened.write(text)


def _text(request: Request, file: Path, group: Sequence[Tile]) -> bytes:
    first = group[0].footprint.own
    corners = [_offset(group[0], tile) or (0, 0) for tile in group]
    left = min(x for x, _ in corners)
    upper = min(y for _, y in corners)
    places = [
        (x - left, y - upper, tile.footprint.own.width, tile.footprint.own.height)
        for (x, y), tile in zip(corners, group, strict=True)
    ]
    width = max(x + size for x, _, size, _ in places)
    height = max(y + size for _, y, _, size in places)
    root = Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    SubElement(root, "SRS").text = first.crs
    a, b, _, d, e, _ = first.transform
    corner = first.to_system(np.array([[left, upper]], float))[0].tolist()
    transform = (corner[0], a, b, corner[1], d, e)
    SubElement(root, "GeoTransform").text = ", ".join(repr(float(value)) for value in transform)
    listed = SubElement(root, "Metadata", domain="TILES")
    for i, tile in enumerate(group):
        SubElement(listed, "MDI", key=f"TILE_{i}").text = tile.job.raster
    sources = [
        Source(*_path_from(file, request.raw / tile.job.raster), place, tile.block)
        for tile, place in zip(group, places, strict=True)
    ]
    _add_bands(root, sources, group[0].layout)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8")


def _path_from(file: Path, tile: Path) -> tuple[str, bool]:
    """A tile's path, and whether it is relative to a file: both may be moved together."""
    real = os.path.realpath(tile)
    try:
        path = os.path.relpath(real, os.path.realpath(file.parent))
        return Path(path).as_posix(), True
    except ValueError:  # on Windows no path leads from one drive to another
        return real, False


def _add_bands(root: Element, sources: Sequence[Source], layout: Mapping[str, Any]) -> None:
    gaps = layout["gaps"]
    for number, (kind, meaning, nodata, bits) in enumerate(layout["bands"], 1):
        band = SubElement(root, "VRTRasterBand", dataType=kind, band=str(number))
        if bits:
            structure = SubElement(band, "Metadata", domain="IMAGE_STRUCTURE")
            SubElement(structure, "MDI", key="NBITS").text = bits
        SubElement(band, "ColorInterp").text = meaning
        if nodata is not None:
            SubElement(band, "NoDataValue").text = repr(nodata)
        for source in sources:
            complex_source = _add_source(band, source, str(number), layout)
            if gaps == "nodata" and nodata is not None:
                SubElement(complex_source, "NODATA").text = repr(nodata)
            elif gaps == "mask":
                SubElement(complex_source, "UseMaskBand").text = "true"
    if gaps == "nodata":
        return
    # What no tile covers is no data.
    band = SubElement(SubElement(root, "MaskBand"), "VRTRasterBand", dataType="Byte")
    for source in sources:
        if gaps == "mask":
            complex_source = _add_source(band, source, "mask,1", layout)
            SubElement(complex_source, "NODATA").text = "0"
        else:
            complex_source = _add_source(band, source, "1", layout)
            SubElement(complex_source, "ScaleOffset").text = "255"
            SubElement(complex_source, "ScaleRatio").text = "0"


def _add_source(band: Element, source: Source, number: str, layout: Mapping[str, Any]) -> Element:
    """Add a tile to a band; without its properties GDAL would open all tiles at once."""
    element = SubElement(band, "ComplexSource")
    is_relative = str(int(source.is_relative))
    SubElement(element, "SourceFilename", relativeToVRT=is_relative).text = source.path
    SubElement(element, "SourceBand").text = number
    x, y, width, height = map(str, source.place)
    sizes = {"RasterXSize": width, "RasterYSize": height}
    sizes |= {"BlockXSize": str(source.block[0]), "BlockYSize": str(source.block[1])}
    kind = "Byte" if number.startswith("mask") else layout["bands"][int(number) - 1][0]
    SubElement(element, "SourceProperties", {**sizes, "DataType": kind})
    extent = {"xSize": width, "ySize": height}
    SubElement(element, "SrcRect", {"xOff": "0", "yOff": "0", **extent})
    SubElement(element, "DstRect", {"xOff": x, "yOff": y, **extent})
    return element
