"""The geometry of the confusion matrix: where its squares and labels lie, in pixels."""

import math
from collections import Counter
from dataclasses import dataclass

from dl_slicer.cities import labels
from dl_slicer.report.records import Confusion

# Up to how many cities: side of a cell and size of letters.
SIZES = ((8, 44, 13), (15, 30, 12))
SIZE_OF_MORE = (17, 10.5)
MOST_WITH_NUMBERS = 15
MOST_CELLS = 6000  # beyond the diagonal: more would make the page slow, and are a grey haze
LONGEST_LABEL = 9
STRONG = 0.3
LETTER_WIDTH = 0.66  # of a letter's size, in a font whose letters are all as wide


@dataclass(frozen=True)
class Cell:
    """The patches of one true city that were taken for one city; share: of that true city."""

    x: float
    y: float
    right: bool
    true: str
    predicted: str
    n: int
    of: int
    share: float
    number: str  # the share in per cent; empty where there is no room for it
    strong: bool  # so strong a colour that the number on it is white
    opacity: float


@dataclass(frozen=True)
class Row:
    """A true city: its code stands beside its row and above its column, at their middle."""

    code: str
    middle: float
    cells: list[Cell]


@dataclass(frozen=True)
class Matrix:
    """The confusion matrix as a drawing; empty cells are left out."""

    cities: int
    right: int  # patches on the diagonal
    size: float
    letter_size: float
    margin: float  # left of the cells and above them, for the labels
    cell_side: int
    with_numbers: bool
    left_out: int  # cells of the smallest shares
    rows: list[Row]


def lay_out(confusion: Confusion) -> Matrix:
    """Lay out the matrix: rows are true cities, columns what their patches were taken for."""
    number = len(confusion.cities)
    codes = shorten(labels(confusion.cities))
    least, left_out = _least_share(confusion)
    cell_side, letter_size = _sizes(number)
    margin = 12 + max(map(len, codes)) * letter_size * LETTER_WIDTH
    return Matrix(
        cities=number,
        right=sum(confusion.counts[i][i] for i in range(number)),
        size=margin + number * cell_side + 2,
        letter_size=letter_size,
        margin=margin,
        cell_side=cell_side,
        with_numbers=number <= MOST_WITH_NUMBERS,
        left_out=left_out,
        rows=[
            Row(
                code=code,
                middle=margin + (i + 0.5) * cell_side,
                cells=[
                    _cell(confusion, i, j, margin, cell_side)
                    for j in range(number)
                    if i == j or _share(confusion, i, j) > least
                    if confusion.counts[i][j]
                ],
            )
            for i, code in enumerate(codes)
        ],
    )


def shorten(codes: list[str]) -> list[str]:
    """Cut labels that would make the margin too wide, but for those that would then be the same."""
    short = [
        code if len(code) <= LONGEST_LABEL else code[: LONGEST_LABEL - 1] + "…" for code in codes
    ]
    times = Counter(short)
    return [cut if times[cut] == 1 else code for cut, code in zip(short, codes, strict=True)]


def _least_share(confusion: Confusion) -> tuple[float, int]:
    """The share that cells beside the diagonal must exceed to be drawn, and how many do not."""
    number = len(confusion.cities)
    shares = sorted(
        _share(confusion, i, j)
        for i in range(number)
        for j in range(number)
        if i != j and confusion.counts[i][j]
    )
    if len(shares) <= MOST_CELLS:
        return 0, 0
    least = shares[-MOST_CELLS - 1]
    return least, sum(share <= least for share in shares)


def _share(confusion: Confusion, i: int, j: int) -> float:
    return confusion.counts[i][j] / max(1, sum(confusion.counts[i]))


def _sizes(number: int) -> tuple[int, float]:
    for most, cell_side, letter_size in SIZES:
        if number <= most:
            return cell_side, letter_size
    return SIZE_OF_MORE


def _cell(confusion: Confusion, i: int, j: int, margin: float, cell_side: int) -> Cell:
    n = confusion.counts[i][j]
    of = sum(confusion.counts[i])
    share = n / of
    return Cell(
        x=margin + j * cell_side,
        y=margin + i * cell_side,
        right=i == j,
        true=confusion.cities[i],
        predicted=confusion.cities[j],
        n=n,
        of=of,
        share=share,
        number=_rounded(share) if len(confusion.cities) <= MOST_WITH_NUMBERS else "",
        strong=share > STRONG,
        # The root, since a few patches among many must be seen, too.
        opacity=0.12 + 0.88 * math.sqrt(share),
    )


def _rounded(share: float) -> str:
    return "<1" if share < 0.005 else f"{100 * share:.0f}"
