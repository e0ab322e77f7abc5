"""What only a GPU can show, a function a check. Each gives rows of the table of benchmarks.gpu.

All run on a CPU, too, as far as it goes there, so that tests can run them.
"""

import copy
import csv
import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import ROOT, in_turns, repeats
from benchmarks.sides import clock, our_batches
from benchmarks.training import PUBLISHED, train_epoch, train_on
from dl_slicer.model import devices, evaluation, networks
from dl_slicer.model.evaluation import Setup
from dl_slicer.patch_sets import batching, reading, transforms
from dl_slicer.training import epochs, optimisers, preparing
from dl_slicer.training.runs import Run
from relevance_cam import load_method
from relevance_cam.names import LAYERS, METHODS

LEAST_SHARE = 0.9  # of the rate on data that is on the device already
LEAST_RATE = 2500  # patches a second of FAST_CARDS, ResNet-50 in training in bf16, batches of 256
FAST_CARDS = ("H100", "H200")
MOST_DIFFERENCE = 1e-4  # of maps, in shares of each map's largest value
MOST_OWN_ERROR = 2e-5  # of the CPU's maps in float32, in the same shares, from those in float64
MOST_ROUNDING = 0.05  # of logits in bf16, in shares of the largest one
SECONDS_A_ROUND = 40  # a slower card does fewer steps
GIB = 2**30


class Row(NamedTuple):
    """A line of the table."""

    what: str
    figure: str
    bound: str = ""  # in words; empty: the figure is only told
    ok: bool | None = None  # None: nothing was held against a bound


@dataclass
class Scene:
    """With what the checks are made."""

    data: Path  # the patch set
    work: Path  # a folder for runs
    device: torch.device
    dtype: torch.dtype
    arch: str
    batch: int  # patches a step
    steps: int  # that are timed
    warm_up: int  # steps before
    rounds: int  # of timing in turns

    @property
    def is_gpu(self) -> bool:
        """Whether this is what it was written for."""
        return self.device.type == "cuda"

    def patches(self) -> reading.ArrayPatches:
        """Open the train patches."""
        return reading.open_split(self.data, "train")

    def network(self, patches: reading.ArrayPatches) -> nn.Module:
        """Make the network for these patches, on the device, as training has it."""
        torch.manual_seed(0)
        model = networks.new_network(self.arch, len(patches.classes))
        return model.to(self.device, memory_format=torch.channels_last)

    def order(self, patches: reading.ArrayPatches, steps: int) -> np.ndarray:
        """Draw the patches of so many steps."""
        return np.random.default_rng(0).integers(0, len(patches), (steps, self.batch))


# ------------------------------------------------------------------------------------------- input


def arrays_in_memory(scene: Scene) -> list[Row]:
    """Batches from arrays in the device's memory are those from the files."""
    chosen = batching.choose_storage(scene.patches(), scene.device)
    expected = "device" if scene.is_gpu else "files"
    return [
        Row("patches are read from", chosen, expected, chosen == expected),
        _compare_batches(scene, "batches from arrays in the device's memory", storage="device"),
    ]


def pinned_batches(scene: Scene) -> list[Row]:
    """Batches through pinned memory are those from the files, read by a thread or by processes."""
    return [
        _compare_batches(scene, "batches through pinned memory", storage="files"),
        _compare_batches(scene, "the same, read by two processes", storage="files", workers=2),
    ]


def _compare_batches(scene: Scene, what: str, **options) -> Row:
    patches = scene.patches()
    order = scene.order(patches, 8)
    # All of them before the first is looked at: memory that is used again too early would show.
    found = list(batching.batches(patches, order, scene.device, **options))
    wrong = 0
    for (images, labels), indices in zip(found, order, strict=True):
        same_images = np.array_equal(devices.to_cpu(images).numpy(), patches.read(indices))
        same_labels = np.array_equal(devices.to_cpu(labels).numpy(), patches.labels[indices])
        wrong += not (same_images and same_labels)
    return Row(f"{what} that differ from the files", f"{wrong} of {len(order)}", "0", wrong == 0)


# --------------------------------------------------------------------------------------- precision


def bf16(scene: Scene) -> list[Row]:
    """Logits in bf16 are those in float32, to what bf16 rounds off."""
    patches = scene.patches()
    model = scene.network(patches).eval()
    images = _images(patches, 8).to(scene.device)
    with torch.inference_mode():
        exact = model(images)
        with devices.autocast(scene.device, torch.bfloat16):
            rounded = model(images).float()
    difference = float((rounded - exact).abs().max() / exact.abs().max())
    name = str(scene.dtype).removeprefix("torch.")
    is_new = scene.is_gpu and torch.cuda.get_device_capability(scene.device) >= (8, 0)
    expected = ("bfloat16", name == "bfloat16") if is_new else ()
    return [
        Row("precision of --amp auto", name, *expected),
        Row(
            "logits in bf16: difference from float32, in shares of the largest",
            f"{difference:.4f}",
            f"at most {MOST_ROUNDING}",
            difference <= MOST_ROUNDING,
        ),
    ]


def saliency(scene: Scene) -> list[Row]:
    """Maps from the device are the CPU's, with TF32 off; and what TF32 makes of them."""
    patches = scene.patches()
    torch.manual_seed(0)
    here = networks.new_network(scene.arch, len(patches.classes))
    images = _images(patches, 4)
    with torch.no_grad():  # for batch norm's statistics, without which activations grow
        for _ in range(10):
            here(images)
    here.eval()
    rows = []
    for name in METHODS:
        is_slow = name == "score-cam"  # a pass for each channel
        layers = LAYERS[:1] if is_slow else LAYERS
        rows += _compare_maps(scene, name, here, images[:1] if is_slow else images, layers)
    return rows


def _compare_maps(
    scene: Scene, name: str, here: nn.Module, images: Tensor, layers: tuple[str, ...]
) -> list[Row]:
    """Compare the maps of one method. here: the network on the CPU."""
    method = load_method(name)
    maps, logits = method(here, layers)(images)
    target = logits.argmax(1)
    exact, _ = method(copy.deepcopy(here).double(), layers)(images.double(), target)
    # Of a map in which nearly all cancels float32 itself keeps few digits, on any device.
    is_firm = differences(maps, exact) <= MOST_OWN_ERROR
    firm = f"{int(is_firm.sum())} of {len(is_firm)} maps"
    there = copy.deepcopy(here).to(scene.device, memory_format=torch.channels_last)
    rows = []
    for is_on in (False, True):
        with tf32(is_on):
            found, _ = method(there, layers)(images.to(scene.device), target.to(scene.device))
        shares = differences(found, maps)[is_firm]
        largest = float(shares.max()) if len(shares) else float("nan")
        what = f"{name}: difference from the CPU's {firm}, TF32 {'on' if is_on else 'off'}"
        row = Row(what, f"{largest:.1e}")
        if not is_on:
            bound = f"at most {MOST_DIFFERENCE:.0e}"
            row = row._replace(bound=bound, ok=largest <= MOST_DIFFERENCE)
        rows.append(row)
    return rows


def differences(maps: dict[str, Tensor], expected: dict[str, Tensor]) -> Tensor:
    """Give the largest difference of each map, in shares of the expected map's largest value.

    maps: {"layer1": (N, h, w), ...}, on any device. Float64 (layers * N,). Infinite where a value
    is not finite, or where an expected map that is 0 all over is not.
    """
    shares = []
    for layer, found in maps.items():
        exact = devices.to_cpu(expected[layer]).double()
        difference = (devices.to_cpu(found).double() - exact).abs().amax((1, 2))
        share = difference / exact.abs().amax((1, 2))
        share[difference == 0] = 0
        shares.append(torch.where(share.isfinite(), share, torch.inf))
    return torch.cat(shares)


@contextmanager
def tf32(is_on: bool) -> Iterator[None]:
    """Have convolutions and matrix products of float32 computed in TF32, or not, for a while."""
    before = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    torch.backends.cudnn.allow_tf32 = is_on
    torch.backends.cuda.matmul.allow_tf32 = is_on
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _images(patches: reading.ArrayPatches, count: int) -> Tensor:
    """Some patches, normalised, on the CPU."""
    numbers = np.linspace(0, len(patches) - 1, count).astype(int)
    pixels = torch.from_numpy(patches.read(numbers))
    return transforms.normalise(pixels, networks.MEAN, networks.STD)


# ------------------------------------------------------------------------------------------- rates


def training_rate(scene: Scene) -> list[Row]:
    """Patches a second of training from the patch set, beside the bare loop on one batch."""
    patches = scene.patches()
    model = scene.network(patches)
    optimizer = optimisers.make_optimizer(PUBLISHED, model)
    resident = batch_on_device(scene, patches.image_size)
    if scene.is_gpu:
        torch.cuda.reset_peak_memory_stats(scene.device)

    def from_set(order: np.ndarray) -> float:
        return train_epoch(patches, order, model, optimizer, scene.dtype)

    def from_files(order: np.ndarray) -> float:
        batches = our_batches(patches, order, scene.device, "files")
        return train_on(batches, model, optimizer, scene.dtype)

    def on_resident(order: np.ndarray) -> float:
        return train_on([resident] * len(order), model, optimizer, scene.dtype)

    sides = {"set": from_set, "files": from_files, "resident": on_resident}
    warm_up = scene.order(patches, scene.warm_up)
    for side in sides.values():
        side(warm_up)
    seconds_a_step = on_resident(warm_up) / len(warm_up)
    steps = max(1, min(scene.steps, int(SECONDS_A_ROUND / seconds_a_step)))
    order = scene.order(patches, steps)
    found = in_turns(scene.rounds, **{name: _timed(side, order) for name, side in sides.items()})
    rate = {name: order.size / seconds for name, seconds in found.items()}
    what = f"{scene.arch}, batch {scene.batch}, {steps} steps"
    return [
        Row(f"training on data on the device, {what}", _a_second(rate["resident"])),
        *_share_rows("training from the patch set, flips on", rate["set"], rate["resident"]),
        *_share_rows("training through pinned memory", rate["files"], rate["resident"]),
        _bound_of_fast_cards(scene, rate["set"], steps),
        _memory_row(scene),
    ]


def batch_on_device(scene: Scene, size: int) -> tuple[Tensor, Tensor]:
    """Normalised images of this size and their labels, drawn, on the device."""
    images = torch.randn(scene.batch, 3, size, size, device=scene.device)
    labels = torch.zeros(scene.batch, dtype=torch.long, device=scene.device)
    return images.contiguous(memory_format=torch.channels_last), labels


def _timed(side: Callable[[np.ndarray], float], order: np.ndarray) -> Callable[[], float]:
    return lambda: side(order)


def _bound_of_fast_cards(scene: Scene, rate: float, steps: int) -> Row:
    name = torch.cuda.get_device_name(scene.device) if scene.is_gpu else "cpu"
    what = f"{scene.arch} in {scene.dtype}, batch {scene.batch}, on {name}"
    is_fast = any(card in name for card in FAST_CARDS)
    if not is_fast or scene.arch != "resnet50":
        return Row(what, _a_second(rate))
    is_ok = rate >= LEAST_RATE and steps >= 200 and scene.dtype == torch.bfloat16
    return Row(what, _a_second(rate), f"{LEAST_RATE} or more", is_ok)


def _memory_row(scene: Scene) -> Row:
    if not scene.is_gpu:
        return Row("the GPU's memory while training", "not run: no GPU")
    most = torch.cuda.max_memory_allocated(scene.device) / GIB
    reserved = torch.cuda.max_memory_reserved(scene.device) / GIB
    _, total = torch.cuda.mem_get_info(scene.device)
    figure = f"{most:.1f} GiB, {reserved:.1f} reserved, of {total / GIB:.1f}"
    return Row("the GPU's memory while training, arrays included", figure)


def evaluation_rate(scene: Scene) -> list[Row]:
    """Patches a second of evaluation from the patch set, beside passes over one batch."""
    patches = scene.patches()
    model = scene.network(patches)
    size = evaluation.batch_size(scene.device)
    images = torch.randn(size, 3, patches.image_size, patches.image_size, device=scene.device)
    images = images.contiguous(memory_format=torch.channels_last)
    passes = -(-len(patches) // size)  # rounded up

    def from_set() -> float:
        started = clock(scene.device)
        evaluation.evaluate(model, patches, Setup(scene.device, scene.dtype))
        return (clock(scene.device) - started) / len(patches)

    def on_resident() -> float:
        model.eval()
        started = clock(scene.device)
        with torch.inference_mode(), devices.autocast(scene.device, scene.dtype):
            for _ in range(passes):
                model(images)
        return (clock(scene.device) - started) / (passes * size)

    sides = {"set": from_set, "resident": on_resident}
    for side in sides.values():
        side()  # not counted: it warms up
    found = in_turns(scene.rounds + 1, **sides)
    rate = {name: 1 / seconds for name, seconds in found.items()}
    return [
        Row("evaluation on data on the device", _a_second(rate["resident"])),
        *_share_rows("evaluation from the patch set", rate["set"], rate["resident"]),
    ]


def _share_rows(what: str, rate: float, best: float) -> Iterable[Row]:
    share = rate / best
    yield Row(what, _a_second(rate))
    yield Row(
        f"{what}: share of the rate on data on the device",
        f"{100 * share:.0f} %",
        f"{100 * LEAST_SHARE:.0f} % or more",
        share >= LEAST_SHARE,
    )


def _a_second(rate: float) -> str:
    return f"{rate:,.0f} patches a second"


# --------------------------------------------------------------------- repeats, compiled, by NCCL


def deterministic(scene: Scene) -> list[Row]:
    """--deterministic gives the same bits twice, and a stopped run goes on to them."""
    out = scene.work / "repeats"
    batch = min(scene.batch, 64)
    if scene.is_gpu:
        flags = ["--data", scene.data, "--out", out, "--device", scene.device]
        said = _python("-m", "benchmarks.repeats", *flags, "--batch-size", batch)
        found = json.loads(said.splitlines()[-1])
    else:
        found = repeats.repeat(str(scene.data), out, str(scene.device), batch)
    stopped = f"stopped after step {found['stopped_at']} of {found['steps']}"
    return [
        Row(
            "--deterministic, twice",
            "the same bits" if found["again"] else "other bits",
            "the same bits",
            found["again"],
        ),
        Row(
            f"--deterministic, {stopped} and gone on with",
            "the same bits" if found["resumed"] else "other bits",
            "the same bits",
            found["resumed"],
        ),
    ]


def compiled(scene: Scene) -> list[Row]:
    """--compile trains like the plain network, and how fast. Takes a minute or two to compile."""
    patches = scene.patches()
    order = scene.order(patches, scene.warm_up + scene.steps)
    first = order[:3]  # later the two have gone apart, as any two roundings do
    losses = []
    rates = []
    for is_compiled in (False, True):
        model = scene.network(patches)
        network = preparing.trainable(model, scene.device, is_compiled)
        run = Run(PUBLISHED, model, optimisers.make_optimizer(PUBLISHED, model))
        setup = Setup(scene.device, scene.dtype)
        epochs.train_epoch(run, network, patches, first, setup)
        losses.append(run.totals.loss / run.totals.patches)
        epochs.train_epoch(run, network, patches, order[: scene.warm_up], setup)
        started = clock(scene.device)
        steps = len(order) - run.step  # it goes on from there
        epochs.train_epoch(run, network, patches, order, setup)
        rates.append(steps * scene.batch / (clock(scene.device) - started))
    difference = abs(losses[1] / losses[0] - 1)
    return [
        Row("training with --compile", f"{_a_second(rates[1])}, without {_a_second(rates[0])}"),
        Row(
            f"--compile: difference of the mean loss of the first {len(first)} steps",
            f"{100 * difference:.1f} %",
            "at most 5 %",
            difference <= 0.05,
        ),
    ]


def several_gpus(scene: Scene, processes: int | None = None) -> list[Row]:
    """All GPUs together, by NCCL: the same bits twice, and every patch is evaluated once.

    processes: as many as there are GPUs if None; on a CPU they use gloo.
    """
    if processes is None:
        processes = torch.cuda.device_count() if scene.is_gpu else 1
    if processes < 2:
        return [Row("several GPUs", "not run: there are not two")]
    device = ["--device", "auto" if scene.is_gpu else "cpu"]
    logs = []
    for name in ("first", "second"):
        out = scene.work / f"several-{name}"
        flags = ["--data", scene.data, "--out", out, "--arch", "resnet18", "--weights", "none"]
        flags += ["--epochs", 1, "--batch-size", 8 * processes, "--deterministic", *device]
        _torchrun(processes, "train_classification.py", *flags)
        logs.append((out / "log.csv").read_text())
    test = ["--checkpoint", out / "last.pth", "--data", scene.data, "--split", "test", *device]
    _torchrun(processes, "test_classification.py", *test, "--out", scene.work / "several-test")
    _python("test_classification.py", *test, "--out", scene.work / "one-test")
    agreement = _agreement(scene.work / "several-test", scene.work / "one-test")
    is_same = logs[0] == logs[1]
    return [
        Row(
            f"{processes} processes, --deterministic, twice",
            "the same log" if is_same else "another log",
            "the same log",
            is_same,
        ),
        Row(
            f"{processes} processes test as one: patches with the same city",
            f"{100 * agreement:.1f} %",
            "99 % or more",
            agreement >= 0.99,
        ),
    ]


def _agreement(one: Path, other: Path) -> float:
    """Give the share of the patches for which two tests predict the same city."""
    predicted = []
    for out in (one, other):
        with open(out / "predictions.csv", newline="", encoding="utf-8") as file:
            predicted.append([row["predicted"] for row in csv.DictReader(file)])
    same = [a == b for a, b in zip(*predicted, strict=True)]
    return sum(same) / len(same)


def _torchrun(processes: int, *command: object) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")
    _python(*torchrun, *command)


def _python(*command: object) -> str:
    """Run Python in the project's folder. Give what it printed; RuntimeError if it fails."""
    line = [sys.executable, *map(str, command)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=150)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-2000:] or f"ended with {done.returncode}")
    return done.stdout


def prepare(device: torch.device, batch: int) -> torch.dtype:
    """Set the device as training does. Give the precision that --amp auto takes there."""
    flags = Namespace(device=str(device), amp="auto", batch_size=batch, deterministic=False)
    return preparing.prepare_device(flags)[1]
