"""Does a deterministic training repeat itself to the bit, and goes a stopped one on to the same?

    python -m benchmarks.repeats --data data/patches --out DIR [--device cuda]

Trains one epoch of a ResNet-18 from scratch by the robust recipe, as --deterministic does it,
three times: whole, again, and stopped in the middle and gone on with from the checkpoint. Prints a
line of JSON. A process of its own, since cuBLAS reads its setting when it is first used.
"""

import json
from argparse import Namespace
from pathlib import Path

import torch

from dl_slicer.cli import Parser, number, run
from dl_slicer.model import flags
from dl_slicer.model.evaluation import Setup
from dl_slicer.patch_sets import ordering
from dl_slicer.training import epochs, preparing, recipes, runs

COMPARED = ("model", "weights", "optimizer", "metrics", "epoch", "step")


def main(argv: list[str] | None = None) -> None:
    """Train, and print what came of it."""
    parser = Parser(__doc__)
    flags.add_data(parser)
    parser.add_argument("--out", required=True, help="folder of the three runs")
    flags.add_device(parser)
    parser.add_argument("--batch-size", type=number(least=1), default=128)
    args = parser.parse_args(argv)
    found = repeat(args.data, Path(args.out), args.device, args.batch_size)
    print(json.dumps(found))


def repeat(data: str, out: Path, device: str, batch_size: int) -> dict[str, object]:
    """Give whether the runs `again` and `resumed` ended with the bits of the first one.

    And after which of how many steps the third one was stopped. out: the runs' folder.
    """
    fixed = {"data": data, "device": device, "batch_size": batch_size}
    is_benchmarked = torch.backends.cudnn.benchmark
    try:
        _, steps = train(out / "whole", fixed)
        train(out / "again", fixed)
        stopped_at, _ = train(out / "resumed", fixed, stop_after=steps // 2)
        train(out / "resumed", fixed)
    finally:  # what --deterministic has set
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = is_benchmarked
    whole = read_bits(out / "whole")
    return {
        "again": read_bits(out / "again") == whole,
        "resumed": read_bits(out / "resumed") == whole,
        "stopped_at": stopped_at,
        "steps": steps,
    }


def train(out: Path, fixed: dict[str, object], stop_after: int | None = None) -> tuple[int, int]:
    """Begin or go on with a run of one epoch, and save it. Give its steps done, and all.

    fixed: the flags data, device and batch_size. stop_after: so many steps of this call.
    """
    args = Namespace(
        **recipes.RECIPES["robust"],
        **fixed,
        **{"arch": "resnet18", "weights": "none", "epochs": 1, "seed": 0, "balanced": True},
        **{"amp": "auto", "deterministic": True, "save_every": None, "track": None, "probe": False},
        **{"order": "random", "buffer": None, "out": str(out), "resume": True},
    )
    device, dtype = preparing.prepare_device(args)
    train_patches, val = preparing.open_data(args.data)
    setup = Setup(device, dtype)
    state = runs.begin_or_resume(args, train_patches, val, device, dtype)
    runs.start_writing(state, [], device)
    network = preparing.trainable(state.model, device, is_compiled=False)
    order = ordering.epoch_order(train_patches.labels, args.batch_size, args.seed, 0)
    asked = []

    def stop() -> bool:
        asked.append(None)
        return len(asked) == stop_after

    epochs.train_epoch(state, network, train_patches, order, setup, stop)
    done = state.step
    if done == len(order):
        state.finish_epoch(epochs.validate(state, val, setup))
    state.save("last.pth")
    return done, len(order)


def read_bits(out: Path) -> object:
    """Give what a run has come to, in a form that == compares to the bit."""
    checkpoint = torch.load(out / "last.pth", weights_only=True, map_location="cpu")
    return as_bits({name: checkpoint[name] for name in COMPARED})


def as_bits(value: object) -> object:
    """Replace each tensor in dictionaries and lists by its type, shape and bytes."""
    if isinstance(value, torch.Tensor):
        plain = value.contiguous().reshape(-1).view(torch.uint8)
        return str(value.dtype), tuple(value.shape), plain.numpy().tobytes()
    if isinstance(value, dict):
        return {key: as_bits(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_bits(each) for each in value]
    return value


if __name__ == "__main__":
    run(main)
