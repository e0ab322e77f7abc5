"""An order of patches that sweeps the disk about once an epoch: rasters are read in groups.

A patch in random order makes the disk read ten times what it uses, since its rows lie far apart in
its array. Here arrays are read in *slabs*, some rows of windows each, and all patches of a slab are
used before it is forgotten.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from dl_slicer.cli import InputError
from dl_slicer.patch_sets.reading import ArrayPatches

# Two slabs one below the other both hold the lines that their patches share. A slab of so many
# times these lines makes the disk read at most a quarter more than the array has, and holds as few
# patches of one place as that allows.
SHARED_LINES = 4

AHEAD = 8  # of the buffer's places one in so many is for what is read ahead of need


class Slabs(NamedTuple):
    """Parts of a split's arrays, each read at once: some rows of windows of one region.

    Int64 arrays (n,), in the order of patches, but for `patch`, (n + 1,).
    """

    patch: np.ndarray  # number of each slab's first patch; at the end, how many patches there are
    region: np.ndarray
    line: np.ndarray  # its first line in the region's array
    lines: np.ndarray
    width: np.ndarray  # pixels of a line

    @property
    def nbytes(self) -> np.ndarray:
        """Bytes of each slab, int64 (n,)."""
        return 3 * self.lines * self.width

    def of_patches(self, indices: np.ndarray) -> np.ndarray:
        """Give the number of the slab of each patch."""
        return np.searchsorted(self.patch, indices, side="right") - 1


def cut_slabs(patch_set: ArrayPatches) -> Slabs:
    """Cut the arrays of a split (of any but test_b) into slabs.

    Those of a region are as equal as whole rows of windows allow. A slab without patches is none.
    """
    size = patch_set.image_size
    step = patch_set.step
    rows = np.array([region.rows for region in patch_set.regions], np.int64)
    cols = np.array([region.cols for region in patch_set.regions], np.int64)
    rows_at_most = max(1, -(-SHARED_LINES * (size - step) // step))
    slabs = -(-rows // rows_at_most)
    region = np.repeat(np.arange(len(rows)), slabs)
    number = np.arange(len(region)) - np.repeat(np.cumsum(slabs) - slabs, slabs)
    first_row = rows[region] * number // slabs[region]
    end_row = rows[region] * (number + 1) // slabs[region]
    first_patch = patch_set.patches_before(region, first_row)
    kept = patch_set.patches_before(region, end_row) > first_patch
    return Slabs(
        patch=np.append(first_patch[kept], len(patch_set)),
        region=region[kept],
        line=(first_row * step)[kept],
        lines=((end_row - first_row - 1) * step + size)[kept],
        width=((cols - 1) * step + size)[region][kept],
    )


class Loads(NamedTuple):
    """Which slab is needed when, in the order of first need.

    first, last: positions in the epoch, counted in patches. A slab may be needed several times.
    """

    slab: np.ndarray
    first: np.ndarray
    last: np.ndarray


@dataclass(frozen=True)
class GroupedOrder:
    """The patches of an epoch, or a part of them, and what has to be in memory for each.

    Like the array (steps, batch size) that ordering.epoch_order gives: len(), shape, size, and
    order[step:, share]. At no position more slabs are needed at a time than there are places.
    """

    patches: np.ndarray  # (steps, patches of a batch)
    slabs: Slabs
    loads: Loads
    places: int  # in the buffer, of slabs
    begin: int = 0  # position of the first patch in the epoch
    of_batch: int = 0  # positions from one batch to the next
    of_patch: int = 1  # positions from one patch of a batch to the next

    @property
    def shape(self) -> tuple[int, int]:
        """(steps, patches of a batch)."""
        return self.patches.shape

    @property
    def size(self) -> int:
        """How many patches there are in all batches."""
        return self.patches.size

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, part: slice | tuple[slice, slice]) -> "GroupedOrder":
        """Give some of the batches, from one on, and of each a share, as of an array."""
        steps, share = part if isinstance(part, tuple) else (part, slice(None))
        patches = self.patches[steps, share]
        first_step, _, _ = steps.indices(len(self))
        first_patch, _, stride = share.indices(self.shape[1])
        begin = self.begin + first_step * self.of_batch + first_patch * self.of_patch
        end = begin + len(patches) * self.of_batch
        needed = (self.loads.last >= begin) & (self.loads.first < end)
        return replace(
            self,
            patches=patches,
            loads=Loads(*(values[needed] for values in self.loads)),
            begin=begin,
            of_patch=self.of_patch * stride,
        )


def count_streams(labels: np.ndarray, balanced: bool) -> int:
    """How many streams of slabs are read side by side: one a city, or one of all."""
    return len(np.unique(labels)) if balanced else 1


def least_buffer(slabs: Slabs, streams: int) -> int:
    """Bytes of the smallest buffer: one slab of each stream, and what is read ahead."""
    places = streams + 1
    while count_group(places, streams) < 1:
        places += 1
    return places * int(slabs.nbytes.max())


def count_places(slabs: Slabs, streams: int, buffer: int) -> int:
    """How many slabs fit into a buffer of so many bytes. InputError if they are too few."""
    places = buffer // int(slabs.nbytes.max())
    if places <= streams or count_group(places, streams) < 1:
        least = least_buffer(slabs, streams)
        raise InputError(
            f"--buffer {buffer / 1e9:g}: too small, it must hold a part of a raster of each city;"
            f" take at least {least / 1e9:.6f} (GB), or --order random"
        )
    return places


def count_group(places: int, streams: int) -> int:
    """How many slabs of each stream are in use at a time."""
    return (places - max(1, places // AHEAD)) // streams


def grouped_order(
    slabs: Slabs,
    labels: np.ndarray,
    batch_size: int,
    moment: tuple[int, int],
    balanced: bool,
    places: int,
) -> GroupedOrder:
    """The patches of one epoch, and what is read for them: see the module. A pure function.

    The slabs of a city are shuffled, so that its rasters and sites come as they fall, and taken in
    groups; the patches of a group are shuffled. A city goes through all its slabs before it begins
    again, and uses all patches of a group before the next. Cities take turns: each comes once in
    every round of as many patches as there are cities, in an order drawn for that round. So the
    cities' shares of any stretch of an epoch are equal to within two patches.

    moment: (seed, epoch). balanced: as of ordering.epoch_order; else all cities are one stream.
    places: as count_places gives it.
    """
    rng = np.random.default_rng(moment)
    index_type = np.int32 if len(labels) < 2**31 else np.int64
    of_stream = labels[slabs.patch[:-1]] if balanced else np.zeros(len(slabs.region), np.uint8)
    streams = np.unique(of_stream)
    turns = _take_turns(len(streams), len(labels), rng)
    order = np.empty(len(labels), index_type)
    loads = []
    for number, stream in enumerate(streams):
        positions = np.flatnonzero(turns == number)
        own = np.flatnonzero(of_stream == stream)
        group = count_group(places, len(streams))
        patches, of_load, slab = _draw_stream(slabs, own, len(positions), group, rng)
        order[positions] = patches
        loads.append(_find_loads(slab, of_load, positions))
    batch_size = min(batch_size, len(order))
    steps = len(order) // batch_size
    joined = Loads(*(np.concatenate(values) for values in zip(*loads, strict=True)))
    kept = np.argsort(joined.first, kind="stable")
    kept = kept[joined.first[kept] < steps * batch_size]
    return GroupedOrder(
        patches=order[: steps * batch_size].reshape(steps, batch_size),
        slabs=slabs,
        loads=Loads(*(values[kept] for values in joined)),
        places=places,
        of_batch=batch_size,
    )


def _take_turns(streams: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Which stream each position of an epoch takes its patch from, (count,)."""
    number = np.arange(streams, dtype=np.min_scalar_type(streams))
    rounds, rest = divmod(count, streams)
    turns = rng.permuted(np.tile(number, (rounds, 1)), axis=1)
    return np.concatenate([turns.ravel(), rng.permutation(number)[:rest]])


def _draw_stream(
    slabs: Slabs, own: np.ndarray, count: int, group: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """So many patches of the slabs `own`: (patches, place in the list of slabs of each, slabs).

    group: slabs whose patches are shuffled together.
    """
    sizes = slabs.patch[own + 1] - slabs.patch[own]
    rounds = -(-count // int(sizes.sum()))
    drawn = np.concatenate([rng.permutation(len(own)) for _ in range(rounds)] or [own[:0]])
    ends = np.cumsum(sizes[drawn])
    drawn = drawn[: np.searchsorted(ends, count) + 1]
    slab = own[drawn]
    sizes = sizes[drawn]
    ends = np.cumsum(sizes)
    of_load = np.repeat(np.arange(len(slab)), sizes)
    patches = np.arange(len(of_load)) + np.repeat(slabs.patch[slab] - ends + sizes, sizes)
    shuffled = np.arange(len(of_load))
    for begin, end in _group_bounds(len(slab), len(own), group, rng):
        first = ends[begin] - sizes[begin]
        rng.shuffle(shuffled[first : ends[end - 1]])
    shuffled = shuffled[:count]
    return patches[shuffled], of_load[shuffled], slab


def _group_bounds(
    slabs: int, in_a_cycle: int, group: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """(first slab, end) of each group.

    The first group is of a random size: else all cities would need their next one at once. A city
    that fits into a group as a whole is one, each time it begins again.
    """
    if group >= in_a_cycle:
        bounds = np.arange(0, slabs + in_a_cycle, in_a_cycle)
    else:
        first = rng.integers(1, group, endpoint=True)
        bounds = np.concatenate([[0], np.arange(first, slabs + group, group)])
    bounds = np.unique(np.minimum(bounds, slabs)).tolist()
    return list(zip(bounds, bounds[1:], strict=False))


def _find_loads(slab: np.ndarray, of_load: np.ndarray, positions: np.ndarray) -> Loads:
    """When each slab of a stream is needed. One of which no patch was drawn is not."""
    first = np.full(len(slab), np.iinfo(np.int64).max)
    last = np.full(len(slab), -1)
    # Of equal places NumPy keeps what is assigned last.
    first[of_load[::-1]] = positions[::-1]
    last[of_load] = positions
    needed = last >= 0
    return Loads(slab[needed], first[needed], last[needed])
