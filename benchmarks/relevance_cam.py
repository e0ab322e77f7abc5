"""What Relevance-CAM costs, in plain forward passes of the same batch, and where the time goes.

    python -m benchmarks.relevance_cam [--arch resnet50] [--batch 8] [--rounds 9] [--threads 2] [--device cpu]

The floor of arithmetic is about 2.6 for the four layers of a ResNet-50: the forward pass, and a forward and a transposed
convolution for every convolution above layer1.
"""

import statistics
import time

import torch
import torchvision

from dl_slicer.cli import Parser, number, run
from dl_slicer.model import architectures, devices
from relevance_cam import RelevanceCAM, rules

LAYERS = ("layer1", "layer2", "layer3", "layer4")


def measure(
    arch="resnet50",
    batch=8,
    size=224,
    layers=LAYERS,
    dtype="float32",
    channels_last=False,
    device="cpu",
    rounds=9,
):
    """Time RelevanceCAM(model, layers)(images) against model(images) under inference_mode, in turns, and compare the medians.

    forwards: RelevanceCAM in plain forward passes, the same model, images, precision and memory format on both sides. parts: where they
    go, in the same unit: forward (as for layer4 alone, which needs nothing more), positive (the convolutions with w+), transposed
    (the transposed convolutions), rest (shares, sums, w+, maps). plain_ms, cam_ms: the medians. All in a dict fit for JSON.
    """
    torch.manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = (
        getattr(torchvision.models, arch)(num_classes=45)
        .eval()
        .to(device, getattr(torch, dtype), memory_format=memory_format)
    )
    images = torch.randn(batch, 3, size, size).to(
        device, getattr(torch, dtype), memory_format=memory_format
    )
    cam, shallow, spent = (
        RelevanceCAM(model, layers),
        RelevanceCAM(model, "layer4"),
        {"conv": 0.0, "conv_transposed": 0.0},
    )

    def clock():
        if images.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(name, function):
        def call(*args):
            start = clock()
            result = function(*args)
            spent[name] += clock() - start
            return result

        return call

    def plain():
        with torch.inference_mode():
            model(images)

    def taken_apart():
        spent.update(conv=0.0, conv_transposed=0.0)
        originals = {name: getattr(rules, name) for name in spent}
        try:
            for name, function in originals.items():
                setattr(rules, name, timed(name, function))
            cam(images)
        finally:
            for name, function in originals.items():
                setattr(rules, name, function)

    runs = {
        "plain": plain,
        "cam": lambda: cam(images),
        "shallow": lambda: shallow(images),
        "apart": taken_apart,
    }
    times = {name: [] for name in (*runs, *spent)}
    for i in range(rounds + 1):
        for name, call in runs.items():
            start = clock()
            call()
            if i:  # the first round warms up
                times[name].append(clock() - start)
        if i:
            for name, seconds in spent.items():
                times[name].append(seconds)

    median = {name: statistics.median(values) for name, values in times.items()}
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
        "size": size,
        "layers": list(layers),
        "dtype": dtype,
        "channels_last": channels_last,
        "device": torch.cuda.get_device_name() if images.is_cuda else "cpu",
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def main():
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
        f"{args.arch}, batch {args.batch}, {args.threads} threads, torch {torch.__version__}; in plain forward passes, medians of {args.rounds}"
    )
    print(
        f"{'precision':<10}{'format':<15}{'all layers':>11}   {'forward':>8}{'w+':>8}{'w+ T':>8}{'rest':>8}   {'plain ms':>9}{'cam ms':>9}"
    )
    for dtype, channels_last in [("float32", False), ("float32", True), ("bfloat16", True)]:
        found = measure(
            args.arch,
            args.batch,
            dtype=dtype,
            channels_last=channels_last,
            device=device,
            rounds=args.rounds,
        )
        parts = "".join(f"{value:8.2f}" for value in found["parts"].values())
        layout = "channels last" if channels_last else "contiguous"
        print(
            f"{dtype:<10}{layout:<15}{found['forwards']:11.2f}   {parts}   {found['plain_ms']:9.1f}{found['cam_ms']:9.1f}",
            flush=True,
        )


if __name__ == "__main__":
    run(main)
