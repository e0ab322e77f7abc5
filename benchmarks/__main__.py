"""What this project costs beside plain torchvision, and beside what the machine could do at best.

    python -m benchmarks                            about three minutes on two cores
    python -m benchmarks --quick                    little more than a minute: fewer rasters,
                                                    small batches, few rounds
    python -m benchmarks --json FILE --device cuda

Plain is how such scripts are usually written: Pillow opens the whole raster and one process saves
its patches as JPEG; ImageFolder, Resize, ToTensor, Normalize with as many workers as cores;
float32, contiguous memory, loss.item() at every step. Both sides do the same work in turns; what
stands in the table are medians. That they give the same is checked before they are timed.

Keys of the JSON: preprocessing, input, training, evaluation (each with plain, ours, ratio, unit
and more), relevance_cam (forwards), limits (what the machine could do at best, and how close each
part comes), machine; gpu where there is one.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import (
    evaluation,
    gpu_rates,
    input_path,
    limits,
    preprocessing,
    relevance_cam,
    training,
)
from benchmarks.sides import CORES, Sizes, describe_machine, make_data
from dl_slicer.cli import Parser, run
from dl_slicer.machine import keep_memory
from dl_slicer.model import devices, flags

PARTS = {
    "preprocessing": preprocessing.compare,
    "input": input_path.compare,
    "training": training.compare,
    "evaluation": evaluation.compare,
    "relevance_cam": relevance_cam.compare,
}


def main(argv: list[str] | None = None) -> None:
    """Measure the parts that the command line asks for, and print a table."""
    parser = Parser(__doc__)
    parser.add_argument("--json", metavar="FILE", help="also write all results here")
    parser.add_argument(
        "--quick", action="store_true", help="a minute instead of three; the ratios are rougher"
    )
    flags.add_device(parser)
    parser.add_argument(
        "--only", nargs="+", choices=tuple(PARTS), default=list(PARTS), help="leave the others out"
    )
    args = parser.parse_args(argv)
    device = devices.pick_device(args.device)
    torch.set_num_threads(CORES)
    keep_memory()  # plain gains by it, too, but for preprocessing
    sizes = choose_sizes(args.quick, device)
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as temporary:
        work = Path(temporary)
        make_data(work, sizes)
        result = {"machine": describe_machine(device), "quick": args.quick}
        for name in args.only:
            started = time.time()
            result[name] = PARTS[name](work, sizes, device)
            result[name]["took_s"] = round(time.time() - started, 1)
            print(f"{name}: {json.dumps(result[name])}", file=sys.stderr, flush=True)
        result["limits"] = limits.reached(result)
        if device.type == "cuda":
            result["gpu"] = gpu_rates.compare(work, sizes, device)
    print_table(result)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


def choose_sizes(quick: bool, device: torch.device) -> Sizes:
    """How much is computed; a network on a GPU is fed more at a time, as one does there."""
    if quick:
        return Sizes(rasters=16, rounds=3, batch=16, images=32, steps=1, quick=True)
    if device.type == "cuda":
        return Sizes(rasters=48, rounds=3, batch=256, images=128, steps=20, quick=False)
    return Sizes(rasters=48, rounds=3, batch=64, images=128, steps=1, quick=False)


def print_table(result: dict[str, dict]) -> None:
    """Print a line or two a part."""
    print(", ".join(f"{key} {value}" for key, value in result["machine"].items() if value))
    print(f"\n{'':<16}{'plain':>10}{'ours':>10}{'ratio':>9}   unit")
    for name in PARTS:
        if name in result:
            for line in part_lines(name, result[name]):
                print(line)
    speed = f"memory copy {result['limits']['memory_copy_GB_a_second']:.1f} GB/s"
    shares = result["limits"]["close"].items()
    reached = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares)
    print(f"\nlimits: {speed}; reached: {reached}")
    if "gpu" in result:
        print("gpu: " + ", ".join(f"{key} {value}" for key, value in result["gpu"].items()))


def part_lines(name: str, part: dict[str, object]) -> list[str]:
    """The table's lines of one part."""
    if name == "relevance_cam":
        return [f"{name:<16}{part['forwards']:>29.2f}    plain forward passes"]
    unit = part["unit"]
    lines = [ratio_line(name, part["plain"], part["ours"], part["ratio"], unit)]
    if name == "preprocessing":
        lines.append(
            f"{'':<16}{part['times_decoding']:.2f} times decoding alone"
            f" ({part['decoding']:.3f} s a raster), {part['workers']} workers,"
            f" {part['rasters']} rasters with start-up;"
            f" {part['times_decoding_cpu']:.2f} times in CPU time"
        )
    if name == "input":
        cold_ratio = part["cold_raw"] / part["cold_plain"]
        cold_unit = f"{unit}, raw on our side"
        lines += [
            ratio_line("  raw uint8", part["plain"], part["raw"], part["raw_ratio"], unit),
            ratio_line("  cold start", part["cold_plain"], part["cold_raw"], cold_ratio, cold_unit),
        ]
    if name == "training":
        lines.append(
            f"{'':<16}input takes {100 * part['input_share']:.1f} % of a step;"
            f" {part['patches_a_second']:.1f} patches a second"
        )
    return lines


def ratio_line(name: str, plain: float, ours: float, ratio: float, unit: str) -> str:
    """A line of the table: both sides, and how many times better ours is."""
    return f"{name:<16}{plain:>10.4g}{ours:>10.4g}{ratio:>8.1f}x   {unit}"


if __name__ == "__main__":
    run(main)
