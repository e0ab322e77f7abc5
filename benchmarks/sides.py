"""What the parts of `python -m benchmarks` share: the data, plain's way to batches, and ours."""

import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms as plain_transforms

from benchmarks import script
from dl_slicer import machine, versions
from dl_slicer.model import devices, networks
from dl_slicer.patch_sets import batching, ordering, reading, transforms
from dl_slicer.patch_sets.on_disk import IMAGE_SIZE

CORES = machine.available_cores()


@dataclass
class Sizes:
    """How much is computed. Fewer rasters and rounds take less time and give rougher ratios."""

    rasters: int
    rounds: int  # medians are taken over these
    batch: int  # of training
    images: int  # patches of test_b
    steps: int  # of training in a round
    quick: bool


def make_data(work: Path, sizes: Sizes) -> None:
    """Make the rasters and the patch set that the parts read.

    raw/: rasters of 4800 x 4800 pixels in two cities with two sites each, four drawn at a quarter
    of that and laid out like tiles. patches/: the patch set of four of them (quick: of the
    quarters), with JPEGs.
    """
    drawn = work / "drawn"
    flags = ("--cities", 2, "--sites", 2, "--size", 2400)
    script("data/make_sample.py", "--out", drawn, *flags)
    for raster in sorted(drawn.rglob("*.jpg")):
        with Image.open(raster) as image:
            large = Image.fromarray(np.tile(np.asarray(image), (2, 2, 1)))
        for top, copies in (("raw", sizes.rasters // 4), ("one", 1)):
            folder = work / top / raster.parent.relative_to(drawn)
            folder.mkdir(parents=True)
            for copy in range(copies):
                large.save(folder / f"{raster.stem}-{copy}.jpg", quality=85)
    raw = drawn if sizes.quick else work / "one"
    flags = ("--jpegs", "--test-b", sizes.images // 2)
    script("preprocessing.py", "--raw", raw, "--out", work / "patches", *flags)


def describe_machine(device: torch.device) -> dict[str, object]:
    """On what the results were measured."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    bf16 = [name for name in ("avx512_bf16", "amx_bf16") if capabilities.get(name)]
    return {
        "processor": processor_name(),
        "cores": CORES,
        "threads": torch.get_num_threads(),
        "bf16_instructions": bf16,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(devices.pick_dtype("auto", device)).removeprefix("torch."),
        "date": time.strftime("%Y-%m-%d"),
        **versions.installed(),
    }


def processor_name() -> str:
    """What the processor is called, as far as the system says it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def clock(device: torch.device) -> float:
    """Give the time when the device has done what it was asked for, in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def plain_batches(
    work: Path, split: str, batch: int, device: torch.device, samples: int | None = None
) -> DataLoader:
    """Plain's way to batches for training: shuffled, flipped at random.

    samples: how many patches, more than there are for several epochs without a break; None: all.
    """
    flips = [plain_transforms.RandomHorizontalFlip(), plain_transforms.RandomVerticalFlip()]
    folder = _image_folder(work, split, flips)
    sampler = RandomSampler(folder, num_samples=samples)
    return DataLoader(
        folder,
        batch,
        sampler=sampler,
        num_workers=CORES,
        drop_last=True,
        pin_memory=device.type == "cuda",
    )


def plain_batches_in_order(work: Path, split: str, batch: int, device: torch.device) -> DataLoader:
    """Plain's way to batches for evaluation: every patch once, as it is."""
    folder = _image_folder(work, split, [])
    return DataLoader(folder, batch, num_workers=CORES, pin_memory=device.type == "cuda")


def _image_folder(
    work: Path, split: str, flips: list[nn.Module]
) -> torchvision.datasets.ImageFolder:
    steps = [
        plain_transforms.Resize((IMAGE_SIZE, IMAGE_SIZE)),
        *flips,
        plain_transforms.ToTensor(),
        plain_transforms.Normalize(networks.MEAN, networks.STD),
    ]
    return torchvision.datasets.ImageFolder(
        work / "patches" / split, plain_transforms.Compose(steps)
    )


def our_batches(
    patch_set: reading.ArrayPatches,
    order: np.ndarray,
    device: torch.device,
    storage: str | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Our way to batches for training: (images, labels) on the device, normalised and flipped.

    storage: see batching.batches.
    """
    raw = batching.batches(patch_set, order, device, storage=storage)
    for step, (images, labels) in enumerate(raw):
        flips = ordering.draw_flips(order.shape[1], 0, 0, step)
        flips = batching.to_device(flips, device)
        yield transforms.normalise(images, networks.MEAN, networks.STD, flips), labels


def make_network(device: torch.device, fast: bool) -> nn.Module:
    """A ResNet-50 of two cities; fast: with channels last in memory."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50(num_classes=2)
    if fast:
        return model.to(device, memory_format=torch.channels_last)
    return model.to(device)


def check_networks(
    patch_set: reading.ArrayPatches,
    slow: nn.Module,
    fast: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Both networks give the same logits, to what bf16 rounds off. AssertionError if not."""
    patches = torch.from_numpy(patch_set.read(range(4))).to(device)
    images = transforms.normalise(patches, networks.MEAN, networks.STD)
    slow.eval()
    fast.eval()
    with torch.no_grad():
        plain = slow(images.contiguous())
        with devices.autocast(device, dtype):
            ours = fast(images).float()
    assert (plain - ours).abs().max() <= 0.05 * plain.abs().max(), (plain, ours)
