"""Patches of a grouped order, from slabs that a thread reads ahead of need into a buffer."""

import heapq
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np

from dl_slicer import machine
from dl_slicer.cli import InputError, printable
from dl_slicer.patch_sets import on_disk
from dl_slicer.patch_sets.grouping import GroupedOrder
from dl_slicer.patch_sets.on_disk import Indices
from dl_slicer.patch_sets.reading import ArrayPatches


class SlabBuffer:
    """The slabs that an order needs next. Reads its batches, from the first on, as a patch set.

    A context: the thread that fills the buffer ends with it.
    """

    def __init__(self, patch_set: ArrayPatches, order: GroupedOrder):
        self.patch_set = patch_set
        self.order = order
        self.labels = patch_set.labels
        self.image_size = patch_set.image_size
        self.bytes_read = 0
        places = min(order.places, len(order.loads.slab))
        # Its memory is taken as it is filled.
        self._memory = np.empty((places, int(order.slabs.nbytes.max())), np.uint8)
        self._batches_done = 0
        # What both threads use, under the lock: {slab: its lines in the buffer}, {slab: the place
        # it takes, and the last position that it is needed for}, a heap of (such a position, slab).
        self._changed = threading.Condition()
        self._arrays: dict[int, np.ndarray] = {}
        self._held: dict[int, tuple[int, int]] = {}
        self._ends: list[tuple[int, int]] = []
        self._free = list(range(places))
        self._is_closed = False
        self._thread = ThreadPoolExecutor(1)
        self._filling: Future[None] | None = None

    def __enter__(self) -> "SlabBuffer":
        self._filling = self._thread.submit(self._fill)
        self._filling.add_done_callback(lambda _: self._tell())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.shutdown()

    def read(self, indices: Indices, out: np.ndarray | None = None) -> np.ndarray:
        """The next batch of the order as uint8 (n, image_size, image_size, 3), in `out` if given.

        indices: the patches of that batch.
        """
        order = self.order
        size = self.image_size
        batch = np.empty((len(indices), size, size, 3), np.uint8) if out is None else out
        slabs = order.slabs.of_patches(indices)
        _, y, x = self.patch_set.corners(indices)
        corners = zip(
            slabs.tolist(), (y - order.slabs.line[slabs]).tolist(), x.tolist(), strict=True
        )
        position = order.begin + self._batches_done * order.of_batch
        for i, (slab, top, left) in enumerate(corners):
            array = self._arrays.get(slab)
            if array is None:
                array = self._wait_for(slab, position + i * order.of_patch)
            batch[i] = array[top : top + size, left : left + size]
        self._batches_done += 1
        with self._changed:
            self._forget(position + order.of_batch)
        return batch

    def _wait_for(self, slab: int, position: int) -> np.ndarray:
        """Give a slab's lines once they are there."""
        with self._changed:
            # Now, and not when the batch is whole: else there might never be room.
            self._forget(position)
            while slab not in self._arrays:
                if self._filling.done():
                    self._filling.result()  # raises why there is no more
                    raise RuntimeError("a batch was asked for out of its order")
                self._changed.wait()
            return self._arrays[slab]

    def _forget(self, position: int) -> None:
        """Make room of what is needed for no position from this one on. The lock is held."""
        while self._ends and self._ends[0][0] < position:
            end, slab = heapq.heappop(self._ends)
            place, last = self._held[slab]
            if last == end:  # else it is needed again, and stayed
                del self._arrays[slab], self._held[slab]
                self._free.append(place)
        self._changed.notify_all()

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _fill(self) -> None:
        """Read what is needed, in the order of first need, as there is room."""
        loads = self.order.loads
        for slab, last in zip(loads.slab.tolist(), loads.last.tolist(), strict=True):
            with self._changed:
                while not self._free and slab not in self._held and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return
                if slab in self._held:
                    self._hold(slab, self._held[slab][0], last)
                    continue
                place = self._free.pop()
            array = self.read_slab(slab, place)
            with self._changed:
                self._hold(slab, place, last)
                self._arrays[slab] = array
                self._changed.notify_all()

    def _hold(self, slab: int, place: int, last: int) -> None:
        self._held[slab] = place, last
        heapq.heappush(self._ends, (last, slab))

    def read_slab(self, slab: int, place: int) -> np.ndarray:
        """Read a slab into its place: its lines, uint8 (lines, width, 3)."""
        slabs = self.order.slabs
        lines = int(slabs.lines[slab])
        width = int(slabs.width[slab])
        nbytes = 3 * lines * width
        first = on_disk.ARRAY_HEADER + 3 * int(slabs.line[slab]) * width
        path = self.patch_set.root / self.patch_set.regions[slabs.region[slab]].file
        part = self._memory[place, :nbytes]
        with open(path, "rb", buffering=0) as file:
            machine.read_ahead(file.fileno(), first, nbytes)
            file.seek(first)
            done = 0
            while done < nbytes:
                count = file.readinto(part[done:])
                if not count:
                    raise InputError(
                        f"{printable(path)}: has become shorter; run preprocessing.py again"
                    )
                done += count
        self.bytes_read += nbytes
        return part.reshape(lines, width, 3)
