"""What only a GPU can show, run once by who has one: at most ten minutes, one table.

    python -m benchmarks.gpu [--json FILE]          on a GPU
    python -m benchmarks.gpu --quick                small, in a minute; on a CPU it always is

Draws rasters, makes a patch set, and checks on it: arrays in the GPU's memory and pinned batches
(the same bytes as in the files), bf16, saliency (the CPU's maps), training and evaluation (rates
beside the same network on data that is there already, memory), --deterministic (the same bits
twice, and after a stop), several GPUs if there are, and --compile. A check that fails does not stop
the others. Exit code 1 if one has failed. Keys of the JSON: machine, rows, failed, seconds.
"""

import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks import gpu_checks, script
from benchmarks.gpu_checks import Row, Scene
from benchmarks.sides import Sizes, describe_machine, make_data
from dl_slicer.cli import Parser, run
from dl_slicer.files import atomic
from dl_slicer.model import devices, flags

MOST_SECONDS = 420  # after which no check is begun: the longest takes about two minutes

CHECKS: dict[str, Callable[[Scene], list[Row]]] = {
    "arrays in memory": gpu_checks.arrays_in_memory,
    "pinned batches": gpu_checks.pinned_batches,
    "bf16": gpu_checks.bf16,
    "saliency": gpu_checks.saliency,
    "training": gpu_checks.training_rate,
    "evaluation": gpu_checks.evaluation_rate,
    "--deterministic": gpu_checks.deterministic,
    "several GPUs": gpu_checks.several_gpus,
    "--compile": gpu_checks.compiled,
}
SLOW_ON_A_CPU = ("--compile",)


def main(argv: list[str] | None = None) -> None:
    """Check all, print the table and what failed. SystemExit(1) if something did."""
    parser = Parser(__doc__)
    parser.add_argument("--json", metavar="FILE", help="also write all rows here")
    parser.add_argument("--quick", action="store_true", help="small: whether it works, no rates")
    flags.add_device(parser)
    args = parser.parse_args(argv)
    started = time.time()
    device = devices.pick_device(args.device)
    is_small = args.quick or device.type != "cuda"
    machine = describe_machine(device)
    print(", ".join(f"{key} {value}" for key, value in machine.items() if value), flush=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="benchmarks-gpu-") as temporary:
        scene = make_scene(Path(temporary), device, is_small)
        for row in check_all(scene, is_small, started + MOST_SECONDS):
            print(in_table(row), flush=True)
            rows.append(row)
    failed = [row.what for row in rows if row.ok is False]
    seconds = time.time() - started
    print(f"\n{len(failed)} failed{': ' if failed else ''}{'; '.join(failed)}; {seconds:.0f} s")
    if args.json:
        result = {
            "machine": machine,
            "small": is_small,
            "rows": [row._asdict() for row in rows],
            "failed": failed,
            "seconds": round(seconds, 1),
        }
        with atomic(args.json, "w", encoding="utf-8") as file:
            file.write(json.dumps(result, indent=1) + "\n")
    if failed:
        raise SystemExit(1)


def make_scene(work: Path, device: torch.device, is_small: bool) -> Scene:
    """Make the patch set, and say how much is computed."""
    data = work / "patches"
    if is_small:
        sample = ("--cities", 2, "--sites", 2, "--size", 960)
        script("data/make_sample.py", "--out", work / "raw", *sample)
        script("preprocessing.py", "--raw", work / "raw", "--out", data, "--image-size", 64)
        sizes = {"arch": "resnet18", "batch": 8, "steps": 2, "warm_up": 1, "rounds": 1}
    else:
        # 24 train rasters of 361 patches.
        make_data(work / "drawn", Sizes(48, rounds=1, batch=1, images=2, steps=1, quick=True))
        script("preprocessing.py", "--raw", work / "drawn" / "raw", "--out", data)
        sizes = {"arch": "resnet50", "batch": 256, "steps": 200, "warm_up": 30, "rounds": 2}
    dtype = gpu_checks.prepare(device, sizes["batch"])
    return Scene(data, work, device, dtype, **sizes)


def check_all(scene: Scene, is_small: bool, latest: float) -> Iterator[Row]:
    """Give the rows of each check; one that raises is a row, too, its traceback on stderr.

    latest: the time after which no further check is begun, as time.time() gives it.
    """
    for name, check in CHECKS.items():
        if not scene.is_gpu and name in SLOW_ON_A_CPU:
            yield Row(name, "not run: takes minutes on a CPU")
            continue
        if time.time() > latest:
            yield Row(name, "not run: the ten minutes are over", "run", False)
            continue
        try:
            rows = check(scene)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            reason = " ".join(str(error).split())[-200:] or type(error).__name__
            rows = [Row(name, reason, "ends", False)]
        yield from (_without_bound(row) if is_small and _is_of_speed(row) else row for row in rows)
        gc.collect()
        if scene.is_gpu:
            torch.cuda.empty_cache()


def _is_of_speed(row: Row) -> bool:
    return "share of the rate" in row.what or "patches a second" in row.figure


def _without_bound(row: Row) -> Row:
    """Of so few steps nothing can be said of rates."""
    return row._replace(bound="", ok=None)


def in_table(row: Row) -> str:
    """A line of the table."""
    verdict = {True: "ok", False: "FAILED", None: ""}[row.ok]
    bound = f"({row.bound})" if row.bound else ""
    return f"{verdict:<7}{row.what:<74} {row.figure} {bound}".rstrip()


if __name__ == "__main__":
    run(main)
