"""No ground in two splits: held-out rasters of one place cut at one line, overlaps refused."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dl_slicer.cli import InputError, printable
from dl_slicer.patch_sets import footprints, on_disk
from dl_slicer.patch_sets.footprints import Footprint, Grid, Piece
from dl_slicer.patch_sets.jobs import Job, Request
from dl_slicer.patch_sets.survey import Survey

SAMPLES = 65  # places along a side of a raster where a line is looked at
ROUNDING = 0.001  # pixels by which a line may lie beside the border of two
PAIRS_NAMED = 5
PAIRS_COUNTED = 1000


# ------------------------------------------------------------------------------- one line


def cut_at_common_lines(
    survey: Survey, jobs: Sequence[Job], found: Mapping[str, Footprint]
) -> list[Job]:
    """Give halved rasters of a city that overlap, be it through others, one line to be cut at.

    It is the middle of their union in the system that most of them have: what lies west of it is
    test, east of it val. found: {raster: its footprint} of georeferenced ones.
    """
    lines = {}
    held_out = defaultdict(list)
    for job in jobs:
        if len(job.splits) == 2 and job.raster in found:
            held_out[job.city].append(job.raster)
    for _, names in sorted(held_out.items()):
        pieces = [Piece(raster, found[raster]) for raster in names]

        def meets(i: int, j: int, pieces: Sequence[Piece] = pieces) -> bool:
            return footprints.overlap(pieces[i], pieces[j], survey.opened)

        near = footprints.neighbours([piece.footprint for piece in pieces])
        for members in footprints.connected(len(pieces), near, meets):
            if len(members) > 1:
                lines |= _common_line({names[i]: found[names[i]] for i in members})
    return [replace(job, **lines.get(job.raster, {})) for job in jobs]


def _common_line(group: Mapping[str, Footprint]) -> dict[str, dict]:
    """{raster: cut and splits of its job} for rasters that overlap."""
    systems = Counter(footprint.seen.crs for footprint in group.values())
    system = min(systems, key=lambda crs: (-systems[crs], crs))
    ends = []
    for footprint in group.values():
        outline = footprint.own.to_system(footprint.outline())
        x = footprints.transformed(footprint.own.crs, system, outline)[:, 0]
        ends += [x.min(), x.max()]
    middle = (min(ends) + max(ends)) / 2
    return {raster: _cut(footprint.seen, system, middle) for raster, footprint in group.items()}


def _cut(grid: Grid, system: str, line: float) -> dict:
    """Where a raster's left part ends and its right part begins, on the safe sides of a line.

    Of a raster that is turned round the left part lies east, and so is val.
    """
    cols = np.linspace(0, grid.width, SAMPLES)
    rows = np.linspace(0, grid.height, SAMPLES)
    points = np.stack(np.meshgrid(cols, rows), axis=-1).reshape(-1, 2)
    points = footprints.transformed(grid.crs, system, grid.to_system(points))
    x = points[:, 0].reshape(SAMPLES, SAMPLES) - line
    is_turned = x[:, -1].sum() < x[:, 0].sum()
    if is_turned:
        x = -x
    # np.interp: where the line lies beyond an end, it gives that end.
    crossings = np.array([np.interp(0, row, cols) for row in np.maximum.accumulate(x, axis=1)])
    return {
        "splits": ["val", "test"] if is_turned else ["test", "val"],
        "cut": (
            math.floor(crossings.min() + ROUNDING),
            math.ceil(crossings.max() - ROUNDING),
        ),
    }


# ------------------------------------------------------------------------------- pieces


def pieces_of(job: Job, footprint: Footprint, settings: Mapping[str, int]) -> list[Piece]:
    """The parts of a raster that get patches, each of its own split."""
    size = (settings["patch_size"], settings["stride"])
    seen = footprint.seen
    if not on_disk.count_windows(seen.height, *size):
        return []
    if len(job.splits) == 1:
        is_wide = on_disk.count_windows(seen.width, *size) > 0
        return [Piece(job.raster, footprint, *job.splits)] if is_wide else []
    end, begin = job.cut or [round(seen.width / 2)] * 2
    parts = [(0, end), (begin, seen.width)]
    return [
        Piece(job.raster, footprint, split, columns)
        for split, columns in zip(job.splits, parts, strict=True)
        if on_disk.count_windows(columns[1] - columns[0], *size)
    ]


def check_halves(request: Request, jobs: Iterable[Job], pieces: Iterable[Piece]) -> None:
    """Say which held-out rasters a common line leaves in one split.

    InputError for a city in which such lines leave no raster for test, or none for val.
    """
    there: dict[str, set[str]] = defaultdict(set)
    for piece in pieces:
        there[piece.raster].add(piece.split)
    cut = defaultdict(list)
    others: Counter[str] = Counter()  # of each city the rasters that are cut in their own middle
    for job in jobs:
        if job.cut:
            cut[job.city].append(job)
        elif len(job.splits) == 2:
            others[job.city] += 1
    one_sided = [job.raster for of_city in cut.values() for job in of_city]
    one_sided = sorted(raster for raster in one_sided if len(there[raster]) == 1)
    if one_sided:
        held_out = sum(len(of_city) for of_city in cut.values()) + others.total()
        print(
            f"{printable(request.raw)}: {len(one_sided)} of {held_out} held-out rasters lie on one"
            " side of the line at which they and those that they overlap are cut, and are in test"
            f" or in val alone; the first is {printable(one_sided[0])}",
            flush=True,
        )
    for city, of_city in sorted(cut.items()):
        splits = set().union(*(there[job.raster] for job in of_city))
        for split in ("test", "val"):
            if split not in splits and city not in others:
                size = request.settings["patch_size"]
                raise InputError(
                    f"{printable(request.raw / city)}: its {len(of_city)} held-out rasters, such as"
                    f" {printable(of_city[0].raster)}, overlap on the ground and are cut at one"
                    f" line, the middle of their union; none has {size} pixels left for {split}"
                    " beside it; add wider rasters to that site, or take a smaller --patch-size"
                )


# ------------------------------------------------------------------------------- overlaps


def find_overlaps(survey: Survey, pieces: Sequence[Piece]) -> Iterator[tuple[str, str]]:
    """Pairs of rasters whose data overlaps on the ground in different splits.

    Each as "path (its splits that do)".
    """
    of_raster: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        of_raster[piece.raster].append(piece)
    names = sorted(of_raster)
    near = footprints.neighbours([of_raster[raster][0].footprint for raster in names])
    for i, j in near:
        found = [
            pair
            for pair in itertools.product(of_raster[names[i]], of_raster[names[j]])
            if pair[0].split != pair[1].split and footprints.overlap(*pair, survey.opened)
        ]
        if found:
            yield _named([first for first, _ in found]), _named([second for _, second in found])


def _named(pieces: Sequence[Piece]) -> str:
    splits = " and ".join(sorted({piece.split for piece in pieces}))
    return f"{printable(pieces[0].raster)} ({splits})"


def refuse_overlaps(request: Request, survey: Survey, pieces: Sequence[Piece]) -> bool:
    """InputError where data of different splits overlaps on the ground; names the first pairs.

    With --allow-overlap it says so only. Returns whether any overlaps.
    """
    found = list(itertools.islice(find_overlaps(survey, pieces), PAIRS_COUNTED))
    if not found:
        return False
    number = "1 pair" if len(found) == 1 else f"{len(found)} pairs"
    if len(found) == PAIRS_COUNTED:
        number = f"at least {number}"
    where = (
        f"{printable(request.raw)}: the same ground lies in different splits, {number} of rasters:"
    )
    pairs = [f"{first} and {second}" for first, second in sorted(found)]
    if request.allow_overlap:
        print(f"{where} {pairs[0]}; --allow-overlap lets that pass", flush=True)
        return True
    if len(pairs) > PAIRS_NAMED:
        pairs[PAIRS_NAMED:] = [f"and {len(found) - PAIRS_NAMED} more"]
    advice = (
        "put rasters of the same ground into one site's folder, or remove one of each pair;"
        " --allow-overlap goes on, and every result will say that test was not kept apart"
    )
    raise InputError("\n".join([where, *(f"  {pair}" for pair in pairs), advice]))
