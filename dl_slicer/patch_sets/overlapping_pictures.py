"""Whether two patches show the same ground where one says they overlap, and how far they lie apart.

Pictures are grey and small: a JPEG is decoded at an eighth of its size, which costs a millisecond.
Where the stride is a whole number of its blocks, patches of one raster have the same blocks, and
their small pictures are equal to the bit; else to a few grey levels, which the bounds below allow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np

from dl_slicer.patch_sets import image_files

FACTORS = (8, 4, 2, 1)  # by which a picture may be smaller; a JPEG is decoded so
LEAST_SIDE = 24  # pixels of a small picture

# What two pictures differ by, as a share of what is in them: 0 for the same ground, about 1 for
# two places. Between these bounds nothing is said.
SAME = 0.25
OTHER = 0.5
# In squares of grey levels from one pixel to the next. Water may have too little of it.
LEAST_DETAIL = 4.0  # a pixel, so that a difference is none of JPEG's
LEAST_SUM = 50.0  # in all, so that sameness is no chance
OTHER_BRIGHTNESS = 12  # grey levels between the means of two places

LEAST_STRIP = 1 / 12  # of a side: patches that share less are not told from others


class Verdict(Enum):
    """What two pictures say of an overlap."""

    SAME = "same"
    OTHER = "other"
    UNKNOWN = "unknown"


@dataclass
class Sizes:
    """Pixels of the pictures."""

    side: int  # of a patch, as its file has it
    stride: int  # from one patch to the next

    @property
    def factor(self) -> int:
        """How much smaller pictures may be for the stride to be a whole number of pixels."""
        for factor in FACTORS:
            is_whole = self.stride % factor == 0 and self.side % factor == 0
            if is_whole and self.side // factor >= LEAST_SIDE:
                return factor
        return 1

    @property
    def reach(self) -> int:
        """How many windows apart two patches of one row may be and still overlap."""
        return max(0, -(-self.side // self.stride) - 1)


@dataclass
class Album:
    """The small pictures of some patches, each read once."""

    sizes: Sizes
    pictures: dict[Path, np.ndarray | None] = field(default_factory=dict)

    def compare(self, one: Path, other: Path, rows: int, cols: int) -> Verdict:
        """Do two patches show the same ground, if the other lies so many windows down and right?

        rows is not negative.
        """
        first = self._picture(one)
        second = self._picture(other)
        if first is None or second is None or first.shape != second.shape:
            return Verdict.UNKNOWN
        step = self.sizes.stride // self.sizes.factor
        down = rows * step
        right = cols * step
        height, width = first.shape
        if right < 0:
            first, second = first[:, : width + right], second[:, -right:]
        else:
            first, second = first[:, right:], second[:, : width - right]
        return compare_pictures(first[down:], second[: height - down])

    def _picture(self, file: Path) -> np.ndarray | None:
        if file not in self.pictures:
            self.pictures[file] = read_grey(file, self.sizes.factor)
        return self.pictures[file]


def read_grey(file: Path, factor: int) -> np.ndarray | None:
    """Read a picture in grey, smaller by one of FACTORS: float32 (h, w). None if it is damaged."""
    try:
        with image_files.open_image(file) as image:
            size = (image.width // factor, image.height // factor)
            image.draft("L", size)  # of a JPEG alone
            grey = image.convert("L")
    except image_files.UnreadableImage:
        return None
    if grey.width >= 2 * size[0] > 0:
        grey = grey.reduce(grey.width // size[0])
    return np.asarray(grey, np.float32)


def compare_pictures(one: np.ndarray, other: np.ndarray) -> Verdict:
    """Compare two pictures (h, w) of one size, which have at least two pixels a side.

    By what changes from pixel to pixel: slopes of light, which water and haze have, look alike
    wherever they are.
    """
    difference, content, count = measure_difference(one, other)
    if content >= LEAST_SUM and difference < SAME * content:
        return Verdict.SAME
    if content >= LEAST_DETAIL * count and difference > OTHER * content:
        return Verdict.OTHER
    if abs(float(one.mean()) - float(other.mean())) > OTHER_BRIGHTNESS:
        return Verdict.OTHER
    return Verdict.UNKNOWN


def measure_difference(one: np.ndarray, other: np.ndarray) -> tuple[float, float, int]:
    """Sum the squares of how changes from pixel to pixel differ, and of the changes themselves.

    The latter are of both pictures, so that the two sums are about equal where pictures have
    nothing in common. The third number is how many changes a picture has.
    """
    difference = content = 0.0
    count = 0
    for axis in (0, 1):
        changes = np.diff(one, axis=axis)
        others = np.diff(other, axis=axis)
        difference += float(np.square(changes - others).sum())
        content += float(np.square(changes).sum() + np.square(others).sum())
        count += changes.size
    return difference, content, count


# The stride


PAIRS = 24  # of neighbours that are looked at for it
LEAST_SHARE = 1 / 4  # of the pairs that have to agree: some are a row's last and the next's first

Pair = tuple[Path, Path]


def find_sizes(pairs: Sequence[Pair]) -> Sizes | None:
    """Find side and stride of patches from pairs that follow each other, side by side or below.

    Some may be neither. Half the side, as published, unless the pictures contradict; None where no
    stride makes them overlap, or no picture can be read.
    """
    side = next(filter(None, (_read_side(one) for one, _ in pairs)), 0)
    if side < 2:
        return None
    album = Album(Sizes(side, side // 2))
    verdicts = [_compare_both_ways(album, pair) for pair in pairs]
    told = len(verdicts) - verdicts.count(Verdict.UNKNOWN)
    if verdicts.count(Verdict.SAME) >= LEAST_SHARE * told:
        return album.sizes
    strides = [stride for pair in pairs if (stride := _find_stride(pair, side))]
    found, counts = np.unique(strides, return_counts=True)
    if not strides or counts.max() < LEAST_SHARE * told:
        return None
    return Sizes(side, int(found[counts.argmax()]))


def _compare_both_ways(album: Album, pair: Pair) -> Verdict:
    """Does the second patch lie to the right of the first, or below it?"""
    verdicts = {album.compare(*pair, 0, 1), album.compare(*pair, 1, 0)}
    if Verdict.SAME in verdicts:
        return Verdict.SAME
    return Verdict.UNKNOWN if Verdict.UNKNOWN in verdicts else Verdict.OTHER


def _read_side(file: Path) -> int | None:
    try:
        with image_files.open_image(file) as image:
            return image.width
    except image_files.UnreadableImage:
        return None


def _find_stride(pair: Pair, side: int) -> int | None:
    """Find the stride at which two patches overlap most exactly; None if they do at none."""
    pictures = [read_grey(file, 1) for file in pair]
    if any(picture is None or picture.shape != (side, side) for picture in pictures):
        return None
    shares = {}
    for one, other in (pictures, [picture.T for picture in pictures]):
        # Means of some rows tell as much, at a fraction of the cost, and have less JPEG noise.
        rows = max(1, min(FACTORS[0], side // LEAST_SIDE))
        left, right = (
            picture[: side // rows * rows].reshape(-1, rows, side).mean(1)
            for picture in (one, other)
        )
        for stride in range(1, side - round(LEAST_STRIP * side) + 1):
            difference, content, count = measure_difference(
                left[:, stride:], right[:, : side - stride]
            )
            if content >= LEAST_DETAIL * count:
                shares[stride] = min(difference / content, shares.get(stride, 1))
    best = min(shares, key=shares.__getitem__, default=None)
    return best if best is not None and shares[best] < SAME else None
