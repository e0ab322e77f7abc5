"""How many windows a row has, by the pictures of patches that are numbered row by row.

Numbers alone do not tell six rows of eight from eight rows of six. But patch N + 1 shows the right
half of patch N, unless N is the last of its row, and patch N + cols shows its lower half. Of each
raster one column of patches is read, at an eighth of the size; more only where these do not tell.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from dl_slicer import machine
from dl_slicer.patch_sets import overlapping_pictures
from dl_slicer.patch_sets.overlapping_pictures import Album, Sizes, Verdict
from dl_slicer.patch_sets.published_names import Patches, Place, Places, RasterKey

Pair = tuple[int, int, int, int]  # N, another N, and how many windows that lies down and right

MOST_COLS = 512  # that are tried: a raster of 123,000 pixels
ROUNDS = 4  # columns of patches that are looked at, one after the other
MOST_PAIRS = 64  # of one kind that are looked at where columns do not tell
ENOUGH = 2  # pairs that show the same ground
FOR_SURE = 3  # pairs that contradict, if none speaks for it
CLEARLY_MORE = 3  # times as many pairs speak for one number of columns as for another
PER_CONTRADICTION = 4  # pairs for each one against: a file may be damaged


class Grid(NamedTuple):
    """How the windows of a raster's part lie."""

    rows: int | None  # None: not known
    cols: int | None
    fits: bool = True  # False: numbers or pictures contradict each other, as of two rasters

    def locate(self, place: Place) -> tuple[int, int] | None:
        """(row, col) of a place, None where that is not known."""
        if len(place) == 2:
            return place
        return None if self.cols is None else divmod(place[0], self.cols)


@dataclass
class Evidence:
    """How many pairs of pictures speak for a number of columns, and how many against it.

    Only a patch that lies below another speaks for one number of columns and no other.
    """

    pro: int = 0
    contra: int = 0

    @property
    def outweighs(self) -> bool:
        """Whether something speaks for it, and little against."""
        return 0 < self.pro >= PER_CONTRADICTION * self.contra

    @property
    def is_enough(self) -> bool:
        """Whether no other number of columns needs to be looked at."""
        return self.pro >= ENOUGH and self.outweighs

    @property
    def is_refuted(self) -> bool:
        """Whether more speaks against it than a damaged file may."""
        return self.contra > 0 and not self.outweighs


class Windows(NamedTuple):
    """What names and pictures tell of the rasters of a split."""

    sizes: Sizes | None  # None: no overlap was found
    grids: dict[RasterKey, Grid]


def find_windows(patches: Patches, find_other_halves: Callable[[], Patches]) -> Windows:
    """Find how the windows of each raster's part lie.

    find_other_halves: finds the patches of the other halves of held-out rasters, where needed.
    """
    sizes = overlapping_pictures.find_sizes(_pick_neighbours(patches))
    grids = {key: _named_grid(places) for key, places in patches.items()}
    open_ones = [key for key, grid in grids.items() if grid.cols is None]
    if sizes is None or not open_ones:
        return Windows(sizes, grids)
    grids |= _find_grids({key: patches[key] for key in open_ones}, sizes)
    open_ones = [key for key in open_ones if grids[key].cols is None and grids[key].fits]
    halves = find_other_halves() if open_ones else {}
    halves = {key: halves[key] for key in open_ones if key in halves}
    for key, grid in _find_grids(halves, sizes).items():
        if grid.cols is not None:
            grids[key] = Puzzle(patches[key], sizes).take_over(grid.cols)
    return Windows(sizes, grids)


def _named_grid(places: Places) -> Grid:
    """Give what names tell without pictures; no columns where patches are numbered."""
    fits = not has_twins(places)
    if set(places) == {(0,)}:
        return Grid(1, 1, fits)
    windows = [place for place in places if len(place) == 2]
    if len(windows) < len(places):
        return Grid(None, None, fits)
    rows, cols = (1 + max(numbers) for numbers in zip(*windows, strict=True))
    return Grid(rows, cols, fits)


def has_twins(places: Places) -> bool:
    """Whether one folder has several patches of one place."""
    return any(len({file.parent for file in files}) < len(files) for files in places.values())


def _pick_neighbours(patches: Patches) -> list[overlapping_pictures.Pair]:
    """Pick pairs of patches of which one is the next in its row, from all rasters alike."""
    pairs = []
    for places in patches.values():
        following = [(place, (*place[:-1], place[-1] + 1)) for place in sorted(places)]
        pairs.append([(places[a][0], places[b][0]) for a, b in following if b in places])
    pairs = [neighbours for neighbours in pairs if neighbours]
    each = -(-overlapping_pictures.PAIRS // max(1, len(pairs)))
    drawing = random.Random(0)
    drawn = [pair for neighbours in pairs for pair in _draw(neighbours, each, drawing)]
    return _draw(drawn, overlapping_pictures.PAIRS, drawing)


def _draw(items: Sequence, most: int, drawing: random.Random) -> list:
    """Draw at most so many, which stay in order: every eighth might be the last of its row."""
    if len(items) <= most:
        return list(items)
    return [items[k] for k in sorted(drawing.sample(range(len(items)), most))]


def _find_grids(patches: Patches, sizes: Sizes) -> dict[RasterKey, Grid]:
    """Find the columns of each raster by its own pictures.

    Most rasters have as many as the first that tells: that number is tried first.
    """
    keys = list(patches)
    grids = {}
    guess = None
    while keys and guess is None:
        key = keys.pop(0)
        grids[key] = Puzzle(patches[key], sizes).solve(None)
        guess = grids[key].cols if len(patches[key]) > 1 else None
    with ThreadPoolExecutor(machine.available_cores()) as pool:  # Pillow decodes in parallel
        solved = pool.map(lambda key: Puzzle(patches[key], sizes).solve(guess), keys)
        return grids | dict(zip(keys, solved, strict=True))


class Puzzle:
    """The numbered patches of a raster's part, whose number of columns is looked for."""

    def __init__(self, places: Places, sizes: Sizes):
        self.files = {place[0]: files for place, files in places.items() if len(place) == 1}
        self.numbers = sorted(self.files)
        self.count = self.numbers[-1] + 1  # as many windows as there are at least
        self.is_whole = len(self.files) == self.count
        splits = {file.parent.parent.name for each in places.values() for file in each}
        self.is_drawn = splits == {"test_b"}  # then the first N of more may be there by chance
        self.has_twins = has_twins(places)
        self.album = Album(sizes)
        self._neighbours: list[tuple[int, Verdict]] | None = None

    def _grid(self, cols: int, fits: bool) -> Grid:
        return Grid(-(-self.count // cols), cols, fits)

    def solve(self, guess: int | None) -> Grid:
        """Find the columns. guess: what to try first."""
        for cols in self._likely(guess):
            if self._weigh_columns(cols).is_enough:
                return self._grid(cols, self._fits(cols))
        evidence = {cols: self.weigh(cols) for cols in self._possible()}
        cols = _choose(evidence)
        if cols is not None:
            return self._grid(cols, self._fits(cols))
        is_refuted = all(each.is_refuted for each in evidence.values())
        return Grid(None, None, not (self.has_twins or is_refuted))

    def take_over(self, cols: int) -> Grid:
        """Take the columns of the other half of the raster, unless the pictures contradict.

        The halves are equally wide but for a pixel, which may cost one of them a column.
        """
        for each in (cols, cols + 1, cols - 1):
            if each and not self.weigh(each).is_refuted:
                return self._grid(each, self._fits(each))
        return Grid(None, None, False)

    def _possible(self) -> Iterator[int]:
        """Give every number of columns; so many as there are windows is a single row."""
        yield from range(1, min(self.count, MOST_COLS) + 1)
        if self.count > MOST_COLS:
            yield self.count

    def _likely(self, guess: int | None) -> list[int]:
        """Give the numbers of columns that make whole rows, first of all the guess."""
        most = min(self.count, MOST_COLS)
        divisors = [cols for cols in range(1, most + 1) if self.count % cols == 0]
        # Rasters are rather square, so that numbers in the middle are the likeliest.
        divisors.sort(key=lambda cols: abs(cols - self.count / cols))
        first = [guess] if guess is not None and guess < self.count else []
        return first + [cols for cols in divisors if self.is_whole and cols != guess]

    def _fits(self, cols: int) -> bool:
        """Whether numbers and pictures are those of one raster with so many columns."""
        has_half_a_row = self.is_whole and not self.is_drawn and self.count % cols
        if self.has_twins or has_half_a_row:
            return False
        # Beside a damaged file one column contradicts. A raster that was written over a larger one
        # of its name contradicts in each.
        broken = 0
        for done, pairs in enumerate(self._columns(cols), 1):
            evidence = Evidence()
            for pair in pairs:
                self._weigh_pair(pair, evidence)
            broken += evidence.contra > 0
            if 2 * broken < done:
                return True
        return broken == 0

    def _columns(self, cols: int) -> list[list[Pair]]:
        """Give pairs of a patch and the one below: of each row one in the middle, then others."""
        rows = defaultdict(list)
        for number in self.numbers:
            if number + cols in self.files:
                rows[number // cols].append(number)
        for row in rows.values():
            row.sort(key=lambda number: abs(number % cols - cols // 2))
        return [
            [(row[k], row[k] + cols, 1, 0) for row in rows.values() if k < len(row)]
            for k in range(min(ROUNDS, max(map(len, rows.values()), default=0)))
        ]

    def _weigh_columns(self, cols: int) -> Evidence:
        """Weigh so many columns by patches above each other, no more than needed."""
        evidence = Evidence()
        for pairs in self._columns(cols):
            for pair in pairs:
                self._weigh_pair(pair, evidence)
                if evidence.contra >= FOR_SURE and not evidence.pro:
                    return evidence
            if evidence.is_enough:
                break
        return evidence

    def weigh(self, cols: int) -> Evidence:
        """Weigh so many columns by all that can be seen."""
        evidence = self._weigh_columns(cols)
        if evidence.is_refuted:
            return evidence
        for pair in _draw(list(self._diagonals(cols)), MOST_PAIRS, random.Random(0)):
            self._weigh_pair(pair, evidence)
        for number, verdict in self._look_at_neighbours():
            is_last = (number + 1) % cols == 0
            # That patches lie side by side speaks for every number of columns but those whose row
            # ends between them.
            evidence.contra += is_last == (verdict is Verdict.SAME)
        return evidence

    def _diagonals(self, cols: int) -> Iterator[Pair]:
        """Give pairs of a patch and the ones below to the left and to the right."""
        for number in self.numbers:
            col = number % cols
            if col > 0 and number + cols - 1 in self.files:
                yield number, number + cols - 1, 1, -1
            if col < cols - 1 and number + cols + 1 in self.files:
                yield number, number + cols + 1, 1, 1

    def _look_at_neighbours(self) -> list[tuple[int, Verdict]]:
        """Give the numbers N whose pictures tell whether N + 1 lies to the right of it."""
        if self._neighbours is None:
            numbers = [number for number in self.numbers if number + 1 in self.files]
            seen = [
                (number, self._look((number, number + 1, 0, 1)))
                for number in _draw(numbers, MOST_PAIRS, random.Random(0))
            ]
            self._neighbours = [each for each in seen if each[1] is not Verdict.UNKNOWN]
        return self._neighbours

    def _weigh_pair(self, pair: Pair, evidence: Evidence) -> None:
        verdict = self._look(pair)
        evidence.pro += verdict is Verdict.SAME
        evidence.contra += verdict is Verdict.OTHER

    def _look(self, pair: Pair) -> Verdict:
        number, other, down, right = pair
        return self.album.compare(self.files[number][0], self.files[other][0], down, right)


def _choose(evidence: Mapping[int, Evidence]) -> int | None:
    """Choose the one number of columns that the evidence leaves; None if it leaves several."""
    pro = {cols: each.pro for cols, each in evidence.items() if each.outweighs}
    if pro:
        best = max(pro, key=pro.__getitem__)
        second = max((count for cols, count in pro.items() if cols != best), default=0)
        return best if pro[best] >= CLEARLY_MORE * second else None
    left = [cols for cols, each in evidence.items() if not each.contra]
    return left[0] if len(left) == 1 else None
