"""What Relevance-CAM costs, in plain forward passes of the same batch, and where the time goes.

    python -m benchmarks.relevance_cam [--arch resnet50] [--batch 8] [--rounds 9] [--threads 2]
                                       [--device cpu]

The floor of arithmetic is about 2.6 for the four layers of a ResNet-50: the forward pass, and a
forward and a transposed convolution for every convolution above layer1.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torchvision

from benchmarks.sides import Sizes, clock
from dl_slicer.cli import Parser, number, run
from dl_slicer.model import architectures, devices
from relevance_cam import RelevanceCAM, rules

LAYERS = ("layer1", "layer2", "layer3", "layer4")
SIZE = 224  # pixels of an image's side
CLASSES = 45


def compare(work: Path, sizes: Sizes, device: torch.device) -> dict[str, object]:
    """The part's keys of `python -m benchmarks`."""
    if sizes.quick:
        return count_forwards(batch=2, device=device, rounds=1)
    return count_forwards(batch=8, device=device, rounds=3)


def count_forwards(
    arch: str = "resnet50",
    batch: int = 8,
    dtype: str = "float32",
    channels_last: bool = False,
    device: str | torch.device = "cpu",
    rounds: int = 9,
) -> dict[str, object]:
    """Time Relevance-CAM of four layers against the plain forward pass, in turns.

    Both under inference_mode, with the same model, images, precision and memory format; medians
    are compared. Gives a dict fit for JSON, among it:
    forwards: Relevance-CAM in plain forward passes.
    parts: where they go, in the same unit: forward (as for layer4 alone, which needs nothing
    more), positive (the convolutions with w+), transposed (the transposed convolutions), rest
    (shares, sums, w+, maps).
    plain_ms, cam_ms: the medians.
    """
    torch.manual_seed(0)
    placed = {
        "device": torch.device(device),
        "dtype": getattr(torch, dtype),
        "memory_format": torch.channels_last if channels_last else torch.contiguous_format,
    }
    model = torchvision.models.get_model(arch, num_classes=CLASSES).eval().to(**placed)
    images = torch.randn(batch, 3, SIZE, SIZE).to(**placed)
    median = time_sides(model, images, rounds)
    parts = {
        "forward": median["shallow"],
        "positive": median["conv"],
        "transposed": median["conv_transposed"],
    }
    parts["rest"] = median["apart"] - sum(parts.values())
    return {
        "forwards": round(median["cam"] / median["plain"], 2),
        "parts": {name: round(seconds / median["plain"], 2) for name, seconds in parts.items()},
        "plain_ms": round(median["plain"] * 1e3, 1),
        "cam_ms": round(median["cam"] * 1e3, 1),
        "arch": arch,
        "batch": batch,
        "size": SIZE,
        "layers": list(LAYERS),
        "dtype": dtype,
        "channels_last": channels_last,
        "device": torch.cuda.get_device_name() if images.is_cuda else "cpu",
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def time_sides(model: torch.nn.Module, images: torch.Tensor, rounds: int) -> dict[str, float]:
    """Median seconds of what is called in turns, and of the rules' two convolutions.

    plain: the forward pass. cam: Relevance-CAM of four layers. shallow: of layer4 alone. apart:
    as cam, with the convolutions timed, which are conv and conv_transposed.
    """
    cam = RelevanceCAM(model, LAYERS)
    shallow = RelevanceCAM(model, "layer4")
    spent = {"conv": 0.0, "conv_transposed": 0.0}

    def plain():
        with torch.inference_mode():
            model(images)

    def apart():
        with timed_rules(spent, images.device):
            cam(images)

    sides = {
        "plain": plain,
        "cam": lambda: cam(images),
        "shallow": lambda: shallow(images),
        "apart": apart,
    }
    times = {name: [] for name in (*sides, *spent)}
    for _ in range(rounds + 1):
        for name, side in sides.items():
            started = clock(images.device)
            side()
            times[name].append(clock(images.device) - started)
        for name, seconds in spent.items():
            times[name].append(seconds)
    # The first round warms up.
    return {name: statistics.median(values[1:]) for name, values in times.items()}


@contextmanager
def timed_rules(spent: dict[str, float], device: torch.device) -> Iterator[None]:
    """Have functions of the rules note in `spent`, by their names, the seconds that they take."""
    spent.update(dict.fromkeys(spent, 0.0))
    originals = {name: getattr(rules, name) for name in spent}

    def timed(name: str, function: Callable) -> Callable:
        def call(*args):
            started = clock(device)
            result = function(*args)
            spent[name] += clock(device) - started
            return result

        return call

    try:
        for name, function in originals.items():
            setattr(rules, name, timed(name, function))
        yield
    finally:
        for name, function in originals.items():
            setattr(rules, name, function)


def main() -> None:
    """Print a line for each precision and memory format."""
    parser = Parser(__doc__)
    parser.add_argument("--arch", default="resnet50", choices=architectures.ARCHITECTURES)
    parser.add_argument("--batch", type=number(least=1), default=8)
    parser.add_argument("--rounds", type=number(least=1), default=9)
    parser.add_argument("--threads", type=number(least=1), default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = devices.pick_device(args.device)
    torch.set_num_threads(args.threads)
    print(
        f"{args.arch}, batch {args.batch}, {args.threads} threads, torch {torch.__version__};"
        f" in plain forward passes, medians of {args.rounds}"
    )
    print(
        f"{'precision':<10}{'format':<15}{'all layers':>11}"
        f"   {'forward':>8}{'w+':>8}{'w+ T':>8}{'rest':>8}   {'plain ms':>9}{'cam ms':>9}"
    )
    for dtype, channels_last in [("float32", False), ("float32", True), ("bfloat16", True)]:
        found = count_forwards(args.arch, args.batch, dtype, channels_last, device, args.rounds)
        parts = "".join(f"{value:8.2f}" for value in found["parts"].values())
        layout = "channels last" if channels_last else "contiguous"
        print(
            f"{dtype:<10}{layout:<15}{found['forwards']:11.2f}"
            f"   {parts}   {found['plain_ms']:9.1f}{found['cam_ms']:9.1f}",
            flush=True,
        )


if __name__ == "__main__":
    run(main)
