"""Seconds a patch of test_b through ResNet-50."""

from pathlib import Path

import torch

from benchmarks import in_turns
from benchmarks.sides import Sizes, check_networks, make_network, plain_batches_in_order
from dl_slicer.model import devices
from dl_slicer.model.evaluation import Setup, evaluate
from dl_slicer.patch_sets import reading


def compare(work: Path, sizes: Sizes, device: torch.device) -> dict[str, object]:
    """The part's keys of the JSON file: our evaluation against a plain loop."""
    patch_set = reading.open_split(work / "patches", "test_b")
    dtype = devices.pick_dtype("auto", device)
    fast = make_network(device, fast=True)
    slow = make_network(device, fast=False)
    check_networks(patch_set, slow, fast, device, dtype)

    def ours():
        evaluate(fast, patch_set, Setup(device, dtype))

    def plain():
        slow.eval()
        with torch.no_grad():
            for images, _ in plain_batches_in_order(work, "test_b", 64, device):
                slow(images.to(device)).argmax(1).cpu()

    ours()  # not counted: it warms up
    found = in_turns(sizes.rounds, ours=ours, plain=plain)
    return {
        "plain": found["plain"] / len(patch_set),
        "ours": found["ours"] / len(patch_set),
        "ratio": found["plain"] / found["ours"],
        "unit": "s a patch",
        "arch": "resnet50",
        "patches": len(patch_set),
        "dtype": str(dtype).removeprefix("torch."),
        "patches_a_second": len(patch_set) / found["ours"],
    }
