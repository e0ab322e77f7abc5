"""From a patch set to batches on the device: which patches in which order, and the uint8-to-network step done there."""
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


def epoch_order(labels, batch_size, seed, epoch, balanced=True):
    """The patches of one epoch as an int64 array (steps, batch_size): a pure function of its arguments.

    balanced: every class is drawn equally often (to within one), each class without replacement until it is used up and then
    from the start; else every patch is drawn once. What does not fill a last batch is left out of this epoch.
    """
    rng = np.random.default_rng([seed, epoch])
    if balanced:
        classes = np.unique(labels)
        shares = np.full(len(classes), len(labels) // len(classes))
        shares[rng.permutation(len(classes))[:len(labels) % len(classes)]] += 1
        order = np.concatenate([_cycled(np.flatnonzero(labels == label), share, rng) for label, share in zip(classes, shares)])
        rng.shuffle(order)
    else:
        order = rng.permutation(len(labels))
    batch_size = min(batch_size, len(order))
    steps = len(order) // batch_size
    return order[:steps * batch_size].reshape(steps, batch_size)


def _cycled(indices, count, rng):
    rounds = [rng.permutation(indices) for _ in range(-(-count // len(indices)))]
    return np.concatenate(rounds)[:count] if rounds else indices[:0]


def flips(batch_size, seed, epoch, step):
    """Bool array (2, batch_size): which patches of a step are flipped left-right and up-down, a pure function of the arguments."""
    return np.random.default_rng([seed, epoch, step, 1]).integers(0, 2, (2, batch_size)).astype(bool)


class _Batches(Dataset):
    def __init__(self, patch_set):
        self.patch_set = patch_set

    def __getitem__(self, indices):
        return torch.from_numpy(self.patch_set.read(indices)), torch.from_numpy(self.patch_set.labels[indices])


def batches(patch_set, order, device, workers=0):
    """Yield (images, labels) on the device for each array of indices in order: uint8 (n, size, size, 3) and int64 (n,).

    workers: processes that read ahead. A patch set of arrays needs none, slicing is fast; a folder of JPEGs does.
    """
    # A generator of its own: else each loop would draw from the global one, and a resumed run would find that at another place.
    loader = DataLoader(_Batches(patch_set), sampler=order, batch_size=None, num_workers=workers, pin_memory=device.type == "cuda",
                        generator=torch.Generator())
    for images, labels in loader:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def normalise(images, mean, std, flipped=None):
    """uint8 (n, h, w, 3) to the network's float32 (n, 3, h, w), channels last in memory: (x / 255 - mean) / std.

    flipped: bool tensor (2, n), patches to flip left-right and up-down.
    """
    if flipped is not None:
        horizontal, vertical = flipped[:, :, None, None, None]
        images = torch.where(horizontal, images.flip(2), images)
        images = torch.where(vertical, images.flip(1), images)
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std)], device=images.device)
    return torch.addcmul(shift, images.float(), scale).permute(0, 3, 1, 2)
