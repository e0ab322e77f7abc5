"""Sites by place: rasters that lie directly in a city's folder, put into sites by where they are.

Which raster is in which site stands in sites.csv of the patch set, so that a raster that is added
moves no other.
"""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dl_slicer import cities
from dl_slicer.cli import InputError, printable
from dl_slicer.files import atomic
from dl_slicer.patch_sets import footprints, on_disk
from dl_slicer.patch_sets.footprints import Footprint, Piece
from dl_slicer.patch_sets.jobs import Job, Request
from dl_slicer.patch_sets.survey import Stamped, Survey

SAME_PLACE = 0.001  # metres: below it the order of a sum decides, not the place
UNEVEN = 0.25  # share of its ground by which a site may be larger or smaller for a wider gap


class Group(NamedTuple):
    """Rasters of a city that overlap or touch, and so stay together."""

    rasters: list[str]
    place: np.ndarray  # its middle in geocentric metres (3,)
    area: float  # square metres of data, each raster counted


# ------------------------------------------------------------------------------- which site


def assign(
    request: Request, survey: Survey, flat: Mapping[str, Sequence[Stamped]]
) -> dict[str, str]:
    """{raster: its site} of the cities whose rasters lie directly in their folders.

    As sites.csv of the set has it; a raster that is not in it joins the nearest site, and a city
    that is not in it is divided into --sites. InputError if that cannot be.
    """
    before = load(request.out)
    number = request.sites or most_sites(before)
    sites: dict[str, str] = {}
    faults: list[str] = []
    for city, stamped in sorted(flat.items()):
        found = survey.look(stamped)
        faults += _faults_of_rasters(request, survey, (raster for raster, _ in stamped), found)
        if faults:
            continue
        known = {raster: before[raster] for raster in found if raster in before}
        if known and request.sites and request.sites != len(set(_of_city(before, city).values())):
            raise InputError(
                f"{printable(request.out / on_disk.SITES)}: the sites of {printable(city)} were"
                f" made with another --sites than {request.sites}; choose another --out, or leave"
                " out --sites"
            )
        if known:
            sites |= known | _join_nearest(survey, found, known)
        else:
            sites |= _divide_city(request, survey, city, found, number)
    if faults:
        raise InputError("\n".join(faults))
    return sites


def most_sites(before: Mapping[str, str]) -> int:
    """How many sites a city was given, at {raster: site}: what --sites was."""
    names = defaultdict(set)
    for raster, site in before.items():
        names[raster.partition("/")[0]].add(site)
    return max(map(len, names.values()), default=2)


def _of_city(sites: Mapping[str, str], city: str) -> dict[str, str]:
    return {raster: site for raster, site in sites.items() if raster.startswith(f"{city}/")}


def _faults_of_rasters(
    request: Request, survey: Survey, rasters: Iterable[str], found: Mapping[str, Footprint]
) -> Iterable[str]:
    for raster in rasters:
        if raster not in found:
            why = survey.faults.get(
                raster,
                "has no georeference, so --sites cannot tell where it lies;"
                " give it one, or put it into a site's folder with the others of its city",
            )
            yield f"{printable(request.raw / raster)}: {why}"


def _divide_city(
    request: Request, survey: Survey, city: str, found: Mapping[str, Footprint], number: int
) -> dict[str, str]:
    groups = find_groups(survey, found)
    if len(groups) < number:
        many = f"{len(groups)} groups" if len(groups) > 1 else "a single group"
        advice = f"take --sites {len(groups)}, or" if len(groups) > 1 else ""
        raise InputError(
            f"{printable(request.raw / city)}: --sites {number}, but its {len(found)} rasters"
            f" make only {many}: those that overlap or touch stay together; {advice}"
            " add rasters that lie apart"
        )
    digits = len(str(number))
    parts = divide(groups, number)
    return {
        raster: f"site_{i:0{digits}d}"
        for i, part in enumerate(parts, 1)
        for group in part
        for raster in group.rasters
    }


def find_groups(survey: Survey, found: Mapping[str, Footprint]) -> list[Group]:
    """Rasters that overlap or touch, be it through others, sorted by name."""
    names = sorted(found)
    pieces = [Piece(raster, found[raster]) for raster in names]

    def meets(i: int, j: int) -> bool:
        return footprints.overlap(pieces[i], pieces[j], survey.opened, -footprints.STRIP / 2)

    near = footprints.neighbours([found[raster] for raster in names])
    groups = []
    for members in footprints.connected(len(names), near, meets):
        rasters = [names[i] for i in members]
        areas = [found[raster].area for raster in rasters]
        middles = [found[raster].ground.mean(axis=0) for raster in rasters]
        # fsum: the sum is the same in whatever order the files come.
        place = [math.fsum(axis) / len(middles) for axis in np.array(middles).T.tolist()]
        groups.append(Group(rasters, np.array(place), math.fsum(areas)))
    return groups


def divide(groups: Sequence[Group], number: int) -> list[list[Group]]:
    """Divide groups into so many compact parts of about the same area, by their places alone.

    By halves: across the longer side, west or south comes first. Each side gets as much ground as
    it is to be parts, or a little more or less where a wider gap is near.
    """
    points = _on_a_plane(np.array([group.place for group in groups]))

    def cut(members: list[int], parts: int) -> list[list[Group]]:
        if parts == 1:
            return [[groups[i] for i in members]]
        first = parts // 2
        extent = np.ptp(points[members], axis=0)
        axis = 0 if extent[0] >= extent[1] else 1
        ordered = sorted(members, key=lambda i: (points[i, axis], points[i, 1 - axis]))
        areas = np.cumsum([groups[i].area for i in ordered])
        gaps = np.diff(points[ordered, axis])
        off = {}  # {number of groups on the first side: share of ground that it is off}
        # Each side must have as many groups as it is to be parts.
        for size in range(first, len(ordered) - (parts - first) + 1):
            off[size] = abs(areas[size - 1] / areas[-1] - first / parts)
        allowed = max(UNEVEN * first / parts / math.ceil(math.log2(parts)), min(off.values()))
        near = [size for size in off if off[size] <= allowed]
        widest = max(gaps[size - 1] for size in near)
        size = min((s for s in near if gaps[s - 1] >= widest / 2), key=lambda s: off[s])
        return cut(ordered[:size], first) + cut(ordered[size:], parts - first)

    return cut(list(range(len(groups))), number)


def _on_a_plane(places: np.ndarray) -> np.ndarray:
    """Geocentric places (n, 3) as metres to the east and to the north (n, 2) of their middle."""
    middle = np.array([math.fsum(axis) / len(places) for axis in places.T.tolist()])
    up = middle / np.linalg.norm(middle)
    east = np.cross((0.0, 0.0, 1.0), up)
    if np.linalg.norm(east) < 1e-9:  # at a pole
        east = np.array((1.0, 0.0, 0.0))
    east /= np.linalg.norm(east)
    north = np.cross(up, east)
    plane = (places - middle) @ np.stack([east, north], axis=1)
    return np.round(plane / SAME_PLACE) * SAME_PLACE


def _join_nearest(
    survey: Survey, found: Mapping[str, Footprint], known: Mapping[str, str]
) -> dict[str, str]:
    """{raster: site} of the rasters that are new: that of the nearest raster that is known."""
    new = {raster: found[raster] for raster in found if raster not in known}
    joined = {}
    for group in find_groups(survey, new) if new else []:
        nearest = min(
            (distance(found[raster], found[other]), known[other])
            for raster in group.rasters
            for other in known
        )
        joined |= dict.fromkeys(group.rasters, nearest[1])
    return joined


# ------------------------------------------------------------------------------- sites.csv


def load(out: Path) -> dict[str, str]:
    """{raster: site} as sites.csv of a patch set has it; InputError if it is damaged."""
    file = out / on_disk.SITES
    if not file.is_file():
        return {}
    try:
        with open(file, newline="", encoding="utf-8") as lines:
            sites = {row["raster"]: row["site"] for row in csv.DictReader(lines, strict=True)}
        for raster, site in sites.items():
            cities.check_path(raster, f"{printable(file)}: raster")
            cities.check_name(site, f"{printable(file)}: site")
    except (OSError, KeyError, TypeError, ValueError, AttributeError, csv.Error) as error:
        raise InputError(
            f"{printable(file)}: cannot be read ({printable(error)}); put back a copy of it, or"
            " delete it and run the same command with --sites"
        ) from None
    return sites


def save(out: Path, sites: Mapping[str, str]) -> None:
    """Write sites.csv, where there are any and it says something else."""
    file = out / on_disk.SITES
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("raster", "site"))
    writer.writerows(sorted(sites.items()))
    content = text.getvalue().encode()
    if sites and not (file.is_file() and file.read_bytes() == content):
        with atomic(file) as opened:
            opened.write(content)


# ------------------------------------------------------------------------------- distances


def distance(first: Footprint, second: Footprint) -> float:
    """Metres between the outlines of the data of two rasters, in a straight line."""
    return min(_to_lines(first, second), _to_lines(second, first))


def _to_lines(points_of: Footprint, lines_of: Footprint) -> float:
    """Metres from the nearest corner of one outline to the nearest line of the other."""
    points = points_of.ground[:, None]
    starts = lines_of.ground
    if lines_of.thin is not None:  # corners of cells, in no order
        return float(np.sqrt(((points - starts) ** 2).sum(axis=2).min()))
    ways = np.roll(starts, -1, axis=0) - starts
    lengths = np.maximum((ways**2).sum(axis=1), 1e-12)
    shares = (((points - starts) * ways).sum(axis=2) / lengths).clip(0, 1)
    nearest = starts + shares[..., None] * ways
    return float(np.sqrt(((points - nearest) ** 2).sum(axis=2).min()))


def held_out_distances(
    survey: Survey, jobs: Iterable[Job], found: Mapping[str, Footprint]
) -> dict[str, float]:
    """{city: metres} from the data of its test site to that of the nearest train raster.

    0 where they touch or overlap; a site that is val alone does not count. Cities that have no
    georeferenced raster on one of the two sides are left out.
    """
    sides: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for job in jobs:
        if job.raster in found and job.splits != ["val"]:
            sides[job.city][job.splits != ["train"]].append(job.raster)
    return {
        city: round(_nearest(survey, train, held_out, found), 1)
        for city, (train, held_out) in sorted(sides.items())
        if train and held_out
    }


def _nearest(
    survey: Survey, train: list[str], held_out: list[str], found: Mapping[str, Footprint]
) -> float:
    middles = np.array([found[raster].ground.mean(axis=0) for raster in train])
    reaches = np.array([_reach(found[raster]) for raster in train])
    best = math.inf
    for raster in held_out:
        own = found[raster]
        apart = np.linalg.norm(middles - own.ground.mean(axis=0), axis=1) - reaches - _reach(own)
        for i in np.argsort(apart, kind="stable").tolist():
            if apart[i] >= best:
                break
            best = min(best, distance(own, found[train[i]]))
            # One may lie within the other, away from its outline.
            pieces = (Piece(raster, own), Piece(train[i], found[train[i]]))
            if apart[i] < 0 and footprints.overlap(*pieces, survey.opened):
                return 0.0
    return best


def _reach(footprint: Footprint) -> float:
    middle = footprint.ground.mean(axis=0)
    return float(np.linalg.norm(footprint.ground - middle, axis=1).max())
