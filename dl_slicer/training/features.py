"""What the last layer of a network is given for each patch, computed once and kept in files.

<folder>/<network>/<pixels>.npy: the first named by the architecture, the precision and a digest of
the weights, the second by a digest of the pixels. So the folds of a cross-validation and sets that
are cut anew find what others have computed, wherever it came from; nothing in the folder is ever
out of date, and any of it may be deleted.
"""

import hashlib
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dl_slicer import files
from dl_slicer.cli import InputError, printable
from dl_slicer.model import devices, evaluation
from dl_slicer.model.evaluation import Setup
from dl_slicer.patch_sets.on_disk import Part
from dl_slicer.patch_sets.reading import PatchSet

READ_BYTES = 2**20


class Source(NamedTuple):
    """The features of one part of a split."""

    patches: range
    file: Path  # float16 (len(patches), D)


def folder_of(args: Namespace) -> Path:
    """Give the folder of features: --features, or else one beside the patch set.

    Not in the run, nor in the patch set: others are to find them there.
    """
    if args.features is not None:
        return Path(args.features)
    return Path(args.data).resolve().parent / "features"


def of_network(folder: Path, arch: str, model: nn.Module, setup: Setup) -> Path:
    """Give the folder in which this network's features are, in this precision."""
    digest = hashlib.sha256(f"{list(setup.mean)} {list(setup.std)}".encode())
    for name, tensor in model.state_dict().items():
        if not name.startswith("fc."):
            digest.update(name.encode())
            digest.update(devices.to_cpu(tensor).contiguous().numpy())
    precision = str(setup.dtype).removeprefix("torch.")
    return folder / f"{arch}-{precision}-{digest.hexdigest()[:16]}"


def find_sources(folder: Path, patch_set: PatchSet) -> list[Source]:
    """Give where the features of each part of a split are, or will be. All its pixels are read."""
    parts = patch_set.parts()
    described = tqdm(parts, desc="looking for features", leave=False, disable=None)
    return [Source(part.patches, folder / f"{_digest(part)}.npy") for part in described]


def _digest(part: Part) -> str:
    digest = hashlib.sha256(part.layout.encode())
    for path in part.files:
        with open(path, "rb") as file:
            while chunk := file.read(READ_BYTES):
                digest.update(chunk)
    return digest.hexdigest()[:32]


def is_known(source: Source, width: int) -> bool:
    """Whether a file of features is there and has the right shape. width: of the features."""
    try:
        features = np.load(source.file, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return features.shape == (len(source.patches), width) and features.dtype == np.float16


def compute_missing(
    model: nn.Module,
    patch_set: PatchSet,
    sources: Sequence[Source],
    setup: Setup,
    stop: Callable[[], bool],
) -> bool:
    """Compute the features that no file holds yet. False if stop() said so before it was done.

    A second process that wants features of the same network waits for the first, and finds them.
    InputError if a feature is not finite, or too large for float16.
    """
    width = model.fc.in_features
    if all(is_known(source, width) for source in sources):
        return True
    folder = sources[0].file.parent
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder, shared=False):
        files.clear_leftovers(folder)
        missing = [source for source in sources if not is_known(source, width)]
        parts = [source.patches for source in missing]
        done = len(patch_set) - sum(map(len, parts))
        computed = evaluation.features_of_parts(model, patch_set, parts, setup)
        with tqdm(
            total=len(patch_set), initial=done, desc="features", unit=" patches", disable=None
        ) as bar:
            for source, features in zip(missing, computed, strict=True):
                _write(source.file, features)
                bar.update(len(features))
                if stop():
                    return False
    return True


def _write(path: Path, features: Tensor) -> None:
    halves = features.half()
    if not halves.isfinite().all():
        raise InputError(
            "--weights: the network computes features that are not finite, or above 65504;"
            " take --amp off or other weights"
        )
    with files.atomic(path) as file:
        np.save(file, halves.numpy())


def blocks(sources: Sequence[Source]) -> Iterator[tuple[Tensor, slice]]:
    """Yield the features float16 (n, D) of each source and the numbers of its patches.

    They are mapped, so that the system keeps of them what it has room for.
    """
    for source in sources:
        try:
            # Copy on write, since torch takes no arrays that cannot be written.
            mapped = np.load(source.file, mmap_mode="c")
        except (OSError, ValueError, EOFError):
            raise InputError(
                f"{printable(source.file)}: no longer there, or damaged;"
                " the same command computes it again"
            ) from None
        yield torch.from_numpy(mapped), slice(source.patches.start, source.patches.stop)
