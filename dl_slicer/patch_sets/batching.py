"""From a patch set to batches on the device, from wherever the patches are best read."""

import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dl_slicer.cli import InputError
from dl_slicer.patch_sets.grouping import GroupedOrder
from dl_slicer.patch_sets.reading import Indices, PatchSet
from dl_slicer.patch_sets.slab_reading import SlabBuffer

Order = Sequence[Indices] | np.ndarray | GroupedOrder  # the patches of each batch
Batch = tuple[Tensor, Tensor]  # images uint8 (n, size, size, 3) and labels int64 (n,)
Answer = Batch | InputError | OSError  # of a worker: why there is no batch, else


def choose_storage(patch_set: PatchSet, device: torch.device) -> str:
    """Say where patches are best read from: "device" (its memory holds the arrays) or "files".

    Arrays go into a GPU's memory if they take at most half of what is free there: the other half is
    for the network.
    """
    if device.type != "cuda" or not hasattr(patch_set, "region_arrays"):
        return "files"
    free, _ = torch.cuda.mem_get_info(device)
    return "device" if patch_set.nbytes <= free / 2 else "files"


def batches(
    patch_set: PatchSet,
    order: Order,
    device: torch.device,
    workers: int = 0,
    storage: str | None = None,
) -> Iterator[Batch]:
    """Yield (images, labels) on the device for each array of indices in order.

    images: uint8 (n, size, size, 3); labels: int64 (n,). workers: processes that read ahead; a
    patch set of arrays needs none, slicing is fast; a folder of JPEGs does. storage: see
    choose_storage, which decides if it is None. The batches are the same bytes from everywhere.
    A grouped order is read through its buffer, which needs no workers.
    """
    storage = storage or remembered_storage(patch_set, device)
    is_grouped = isinstance(order, GroupedOrder)
    if storage == "device":
        return _from_device(patch_set, order.patches if is_grouped else order, device)
    if is_grouped:
        return _from_slabs(patch_set, order, device)
    if workers:
        return _from_workers(patch_set, order, device, workers)
    return _from_files(patch_set, order, device)


class DeviceArrays(NamedTuple):
    """All arrays of a patch set in a device's memory."""

    pixels: Tensor  # uint8, one array after the other
    first: np.ndarray  # where in it each array begins
    width: np.ndarray  # of each array, in pixels


# Both {patch set: {device: ...}}; what belongs to a patch set goes when that does.
_storages: WeakKeyDictionary[PatchSet, dict[torch.device, str]] = WeakKeyDictionary()
_device_arrays: WeakKeyDictionary[PatchSet, dict[torch.device, DeviceArrays]] = WeakKeyDictionary()


def remembered_storage(patch_set: PatchSet, device: torch.device) -> str:
    """Give what choose_storage said when this was first asked.

    Later the arrays themselves, and the network, are in the memory.
    """
    known = _storages.setdefault(patch_set, {})
    if device not in known:
        known[device] = choose_storage(patch_set, device)
    return known[device]


def _from_device(patch_set: PatchSet, order: Order, device: torch.device) -> Iterator[Batch]:
    arrays = _load_onto_device(patch_set, device)
    size = patch_set.image_size
    for indices in order:
        region, y, x = patch_set.corners(indices)
        width = arrays.width[region]
        # In bytes: where a patch's first row starts, (n,), and where each of its rows does,
        # (n, size).
        start = arrays.first[region] + 3 * (y * width + x)
        rows = start[:, None] + 3 * width[:, None] * np.arange(size)
        # A view of every place where a row could start: a batch is then one gather.
        possible_rows = arrays.pixels.unfold(0, 3 * size, 1)
        images = possible_rows[to_device(rows, device)].view(len(indices), size, size, 3)
        yield images, _labels(patch_set, indices, device)


def _load_onto_device(patch_set: PatchSet, device: torch.device) -> DeviceArrays:
    known = _device_arrays.setdefault(patch_set, {})
    if device not in known:
        pixels = torch.empty(patch_set.nbytes, dtype=torch.uint8, device=device)
        first = []
        width = []
        used = 0
        for array in patch_set.region_arrays():
            pixels[used : used + array.size].copy_(torch.from_numpy(array).view(-1))
            first.append(used)
            width.append(array.shape[1])
            used += array.size
        known[device] = DeviceArrays(pixels[:used], np.array(first), np.array(width))
    return known[device]


def _from_files(patch_set: PatchSet, order: Order, device: torch.device) -> Iterator[Batch]:
    """Read in a thread, one batch ahead: a disk works while the network does."""

    def read(indices: Indices) -> Tensor:
        images = torch.empty(
            (len(indices), patch_set.image_size, patch_set.image_size, 3),
            dtype=torch.uint8,
            pin_memory=device.type == "cuda",
        )
        _read(patch_set, indices, images.numpy())
        return images

    if not len(order):
        return
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(read, order[0])
        for number, indices in enumerate(order, 1):
            images = ahead.result()
            if number < len(order):
                ahead = thread.submit(read, order[number])
            yield images.to(device, non_blocking=True), _labels(patch_set, indices, device)


def _from_slabs(patch_set: PatchSet, order: GroupedOrder, device: torch.device) -> Iterator[Batch]:
    try:
        buffer = SlabBuffer(patch_set, order)
    except MemoryError:
        raise InputError("the buffer takes more memory than there is; take a smaller one") from None
    with buffer:
        yield from _from_files(buffer, order.patches, device)


def _read(patch_set: PatchSet, indices: Indices, out: np.ndarray | None = None) -> np.ndarray:
    try:
        return patch_set.read(indices, out)
    except MemoryError:
        raise InputError(
            f"reading {len(indices)} patches takes more memory than there is;"
            " take smaller batches or fewer --workers"
        ) from None


def _labels(patch_set: PatchSet, indices: Indices, device: torch.device) -> Tensor:
    return to_device(patch_set.labels[indices].astype(np.int64), device)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A NumPy array as a tensor on the device, without making a GPU wait."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class _Batches(Dataset):
    """Whole batches, for workers: they are handed numbers of patches and give images and labels."""

    def __init__(self, patch_set: PatchSet):
        self.patch_set = patch_set

    def __getitem__(self, indices: Indices) -> Answer:
        try:
            images = torch.from_numpy(_read(self.patch_set, indices))
        except (InputError, OSError) as error:
            # Handed over, not raised: torch would make it the text of a traceback.
            return error
        return images, _labels(self.patch_set, indices, torch.device("cpu"))


def _from_workers(
    patch_set: PatchSet, order: Order, device: torch.device, workers: int
) -> Iterator[Batch]:
    loader = DataLoader(
        _Batches(patch_set),
        sampler=order,
        batch_size=None,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        # A process that uses CUDA has threads, and must not fork: a child could wait for a lock
        # that none of its own threads holds.
        multiprocessing_context="forkserver" if device.type == "cuda" else None,
        # A generator of its own: else each loop would draw from torch's global one, and a resumed
        # run would find that in another state.
        generator=torch.Generator(),
    )
    batches = _start(loader)
    while (batch := _next(batches)) is not None:
        if isinstance(batch, Exception):
            raise batch
        images, labels = batch
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _start(loader: DataLoader) -> Iterator[Answer]:
    """Start the processes, without torch's handler of the signal that one of them has ended.

    It raises wherever this process happens to be, be it in the middle of writing a checkpoint. A
    loader that waits for a process notices by itself within seconds that there is none.
    """
    may_set_handlers = threading.current_thread() is threading.main_thread()
    if not hasattr(signal, "SIGCHLD") or not may_set_handlers:  # Windows has none
        return iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL if handler is None else handler)
    return batches


def _next(batches: Iterator[Answer]) -> Answer | None:
    """The next batch; None at the end. InputError if a process that reads was killed."""
    try:
        return next(batches, None)
    except RuntimeError as error:
        # torch's words, which are its only sign.
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            "a process that reads patches was killed, most often since the memory was full;"
            " take fewer --workers"
        ) from None
