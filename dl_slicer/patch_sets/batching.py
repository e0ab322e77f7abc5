"""From a patch set to batches on the device: which patches in which order, and the uint8-to-network step done there."""

from concurrent.futures import ThreadPoolExecutor
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


def choose_storage(patch_set, device):
    """Where patches are best read from for this device: "device" (its own memory holds the arrays) or "files".

    Arrays go into a GPU's memory if they take at most half of what is free there: the other half is for the network.
    """
    if device.type != "cuda" or not hasattr(patch_set, "region_arrays"):
        return "files"
    return "device" if patch_set.nbytes <= torch.cuda.mem_get_info(device)[0] / 2 else "files"


def batches(patch_set, order, device, workers=0, where=None):
    """Yield (images, labels) on the device for each array of indices in order: uint8 (n, size, size, 3) and int64 (n,).

    workers: processes that read ahead. A patch set of arrays needs none, slicing is fast; a folder of JPEGs does.
    where: see place(), which is asked if it is None. The batches are the same bytes wherever they come from.
    """
    where = where or _remembered_storage(patch_set, device)
    if where == "device":
        return _from_device(patch_set, order, device)
    if workers:
        return _from_workers(patch_set, order, device, workers)
    return _from_files(patch_set, order, device)


_places, _residents = (
    WeakKeyDictionary(),
    WeakKeyDictionary(),
)  # of patch sets; what is there is gone when they are


def _remembered_storage(patch_set, device):
    # Asked once: later the arrays themselves, and the network, are in the memory.
    known = _places.setdefault(patch_set, {})
    if device not in known:
        known[device] = choose_storage(patch_set, device)
    return known[device]


def _from_device(patch_set, order, device):
    pixels, first, width = _arrays_on_device(patch_set, device)
    size = patch_set.image_size
    for indices in order:
        region, y, x = patch_set.corners(indices)
        start = first[region] + 3 * (y * width[region] + x)  # (n,), of a patch's first row
        rows = start[:, None] + 3 * width[region][:, None] * np.arange(
            size
        )  # (n, size), of each row
        # A view of every place where a row could start: a batch is then one gather.
        images = pixels.unfold(0, 3 * size, 1)[to_device(rows, device)].view(
            len(indices), size, size, 3
        )
        yield images, to_device(patch_set.labels[indices].astype(np.int64), device)


def _arrays_on_device(patch_set, device):
    """All arrays of a patch set one after the other in one uint8 tensor on the device; where each begins, and its width."""
    known = _residents.setdefault(patch_set, {})
    if device not in known:
        pixels = torch.empty(patch_set.nbytes, dtype=torch.uint8, device=device)
        first, width, used = [], [], 0
        for array in patch_set.region_arrays():
            pixels[used : used + array.size].copy_(torch.from_numpy(array).view(-1))
            first.append(used)
            width.append(array.shape[1])
            used += array.size
        known[device] = pixels[:used], np.array(first), np.array(width)
    return known[device]


def _from_files(patch_set, order, device):
    """Read in a thread, one batch ahead: the disk, if it is needed, works while the network does."""

    def read(indices):
        images = torch.empty(
            len(indices),
            patch_set.image_size,
            patch_set.image_size,
            3,
            dtype=torch.uint8,
            pin_memory=device.type == "cuda",
        )
        patch_set.read(indices, images.numpy())
        return images

    with ThreadPoolExecutor(1) as thread:
        ahead = None
        for i, indices in enumerate(order):
            images = (ahead or thread.submit(read, indices)).result()
            ahead = thread.submit(read, order[i + 1]) if i + 1 < len(order) else None
            yield (
                images.to(device, non_blocking=True),
                to_device(patch_set.labels[indices].astype(np.int64), device),
            )


def to_device(array, device):
    """A NumPy array as a tensor on the device, without making a GPU wait."""
    tensor = torch.from_numpy(array)
    return (
        tensor.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda"
        else tensor.to(device)
    )


class _Batches(Dataset):
    def __init__(self, patch_set):
        self.patch_set = patch_set

    def __getitem__(self, indices):
        return torch.from_numpy(self.patch_set.read(indices)), torch.from_numpy(
            self.patch_set.labels[indices].astype(np.int64)
        )


def _from_workers(patch_set, order, device, workers):
    # A generator of its own: else each loop would draw from the global one, and a resumed run would find that at another place.
    loader = DataLoader(
        _Batches(patch_set),
        sampler=order,
        batch_size=None,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),
    )
    for images, labels in loader:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
