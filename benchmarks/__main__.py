"""What this project costs beside plain torchvision, and beside what the machine could do at best.

    python -m benchmarks                            about three minutes on two cores
    python -m benchmarks --quick                    little more than a minute: fewer rasters, small batches, few rounds
    python -m benchmarks --json FILE --device cuda

Plain is how such scripts are usually written: Pillow opens the whole raster and one process saves its patches as JPEG; ImageFolder,
Resize, ToTensor, Normalize with as many workers as cores; float32, contiguous memory, loss.item() at every step. Both sides do the
same work in turns; what stands in the table are medians. That they give the same is checked before they are timed.

Keys of the JSON: preprocessing, input, training, evaluation (each with plain, ours, ratio, unit and more), relevance_cam (forwards),
limits (what the machine could do at best, and how close each part comes), machine; gpu where there is one.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.nn.functional import cross_entropy

import train_classification
from benchmarks import pillow, relevance_cam, script
from dl_slicer import machine, versions
from dl_slicer.cli import Parser, run
from dl_slicer.machine import keep_memory
from dl_slicer.model import devices, evaluation, networks
from dl_slicer.patch_sets import batching, ordering, reading, transforms
from dl_slicer.training import epochs, optimisers

CORES = machine.available_cores()
MEAN, STD = networks.MEAN, networks.STD


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--json", metavar="FILE", help="also write all figures here")
    parser.add_argument(
        "--quick", action="store_true", help="a minute instead of three; the ratios are rougher"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--only", nargs="+", choices=tuple(PARTS), default=list(PARTS), help="leave the others out"
    )
    args = parser.parse_args(argv)
    device = devices.pick_device(args.device)
    torch.set_num_threads(CORES)
    keep_memory()  # plain gains by it, too, but for preprocessing
    # A network on a GPU is fed more at a time, as one does there.
    sizes = (
        argparse.Namespace(rasters=16, rounds=3, batch=16, images=32, steps=1, quick=True)
        if args.quick
        else argparse.Namespace(rasters=48, rounds=3, batch=64, images=128, steps=1, quick=False)
    )
    if device.type == "cuda" and not args.quick:
        sizes.batch, sizes.steps = 256, 20
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as temporary:
        work = Path(temporary)
        make_data(work, sizes)
        result = {"machine": describe_machine(device), "quick": args.quick}
        for name in args.only:
            started = time.time()
            result[name] = PARTS[name](work, sizes, device)
            result[name]["took_s"] = round(time.time() - started, 1)
            print(f"{name}: {json.dumps(result[name])}", file=sys.stderr, flush=True)
        result["limits"] = limits(result)
        if device.type == "cuda":
            result["gpu"] = gpu(work, sizes, device)
    show(result)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


def describe_machine(device):
    names = (
        [
            line.split(":")[1].strip()
            for line in open("/proc/cpuinfo")
            if line.startswith("model name")
        ]
        if os.path.exists("/proc/cpuinfo")
        else []
    )
    fast = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": CORES,
        "threads": torch.get_num_threads(),
        "bf16_instructions": [name for name in ("avx512_bf16", "amx_bf16") if fast.get(name)],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(devices.pick_dtype("auto", device)).removeprefix("torch."),
        "date": time.strftime("%Y-%m-%d"),
        **versions.installed(),
    }


def make_data(work, sizes):
    """raw/: rasters of 4800 x 4800 pixels in two cities with two sites each, four drawn at a quarter of that and laid out like tiles.
    patches/: the patch set of four of them (quick: of the quarters), with JPEGs."""
    script(
        "data/make_sample.py", "--out", work / "drawn", "--cities", 2, "--sites", 2, "--size", 2400
    )
    for raster in sorted((work / "drawn").rglob("*.jpg")):
        with Image.open(raster) as image:
            large = Image.fromarray(np.tile(np.asarray(image), (2, 2, 1)))
        for top, copies in (("raw", sizes.rasters // 4), ("one", 1)):
            folder = work / top / raster.parent.relative_to(work / "drawn")
            folder.mkdir(parents=True)
            for copy in range(copies):
                large.save(folder / f"{raster.stem}-{copy}.jpg", quality=85)
    script(
        "preprocessing.py",
        "--raw",
        work / ("drawn" if sizes.quick else "one"),
        "--out",
        work / "patches",
        "--jpegs",
        "--test-b",
        sizes.images // 2,
    )


def in_turns(rounds, **sides):
    """{name: median seconds} of functions that are called in turns; one that returns a number has timed itself."""
    times = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            found = side()
            times[name].append(time.perf_counter() - started if found is None else found)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def waited(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# ------------------------------------------------------------------------------------------------------------ preprocessing


def preprocessing(work, sizes, device):
    """Seconds a raster: the whole command with as many workers as cores, one process of Pillow, and decoding alone in as many processes."""
    rasters = sorted((work / "raw").rglob("*.jpg"))
    check_patches(work)

    cpu = {
        "ours": [],
        "decoding": [],
    }  # seconds: they say the same on a machine that others use, too

    def ours():
        shutil.rmtree(work / "out", ignore_errors=True)
        seconds, cpu_seconds = script(
            "preprocessing.py", "--raw", work / "raw", "--out", work / "out", "--workers", CORES
        )
        cpu["ours"].append(cpu_seconds)
        return seconds

    spawned = get_context(
        "spawn"
    ).Pool  # with the memory settings of a usual script, and not of this one
    with spawned(CORES) as usual, spawned(CORES, keep_memory) as kept, spawned(1) as script_like:

        def decoding():
            cpu["decoding"].append(sum(usual.map(pillow.decode, rasters, chunksize=1)))

        def decoding_kept():
            kept.map(pillow.decode, rasters, chunksize=1)

        def plain():
            return script_like.apply(pillow.tile, (rasters[:: len(rasters) // 4], work / "plain"))

        sides = {"ours": ours, "decoding": decoding, "decoding_kept": decoding_kept, "plain": plain}
        for side in sides.values():
            side()  # not counted: processes start, and a virtual machine is slow the first time that it uses a page of memory
        for seconds in cpu.values():
            seconds.clear()
        found = in_turns(sizes.rounds, **sides)
    for name in ("ours", "decoding", "decoding_kept"):
        found[name] /= len(rasters)
    return {
        "plain": found["plain"],
        "ours": found["ours"],
        "ratio": found["plain"] / found["ours"],
        "unit": "s a raster",
        "workers": CORES,
        "rasters": len(rasters),
        "pixels": [4800, 4800],
        "decoding": found["decoding"],
        "decoding_kept": found["decoding_kept"],
        "times_decoding": found["ours"] / found["decoding"],
        "cpu": statistics.median(cpu["ours"]) / len(rasters),
        "decoding_cpu": statistics.median(cpu["decoding"]) / len(rasters),
        "times_decoding_cpu": statistics.median(cpu["ours"]) / statistics.median(cpu["decoding"]),
    }


def check_patches(work):
    """A patch is the crop of the raster, resized, to one grey level away from its border."""
    patch_set = reading.open_split(work / "patches", "train")
    for index in range(0, len(patch_set), max(1, len(patch_set) // 8)):
        region, row, col = patch_set.locate(index)
        with Image.open(patch_set.root / patch_set.description["raw"] / region.raster) as image:
            crop = image.crop((col * 240, row * 240, col * 240 + 480, row * 240 + 480))
        plain = np.asarray(torchvision.transforms.Resize((224, 224))(crop), int)
        assert abs(plain - patch_set.read([index])[0])[2:-2, 2:-2].max() <= 1, (
            f"{region.region} {row} {col}"
        )


# ------------------------------------------------------------------------------------------------------------ input


def image_folder(work, split, batch, device, shuffle=True, samples=None):
    """Plain's way to batches; samples: how many patches, more than there are for several epochs without a break."""
    folder = torchvision.datasets.ImageFolder(
        work / "patches" / split,
        torchvision.transforms.Compose(
            [
                torchvision.transforms.Resize((224, 224)),
                *(
                    [
                        torchvision.transforms.RandomHorizontalFlip(),
                        torchvision.transforms.RandomVerticalFlip(),
                    ]
                    if shuffle
                    else []
                ),
                torchvision.transforms.ToTensor(),
                torchvision.transforms.Normalize(MEAN, STD),
            ]
        ),
    )
    sampler = torch.utils.data.RandomSampler(folder, num_samples=samples) if shuffle else None
    return torch.utils.data.DataLoader(
        folder,
        batch,
        sampler=sampler,
        num_workers=CORES,
        drop_last=shuffle,
        pin_memory=device.type == "cuda",
    )


def input_path(work, sizes, device):
    """Patches a second and core: normalised and flipped float batches on the device, and raw uint8 batches."""
    patch_set = reading.open_split(work / "patches", "train")
    batch = min(64, len(patch_set) // 2)
    order = ordering.epoch_order(patch_set.labels, batch, 0, 0, balanced=False)
    check_batches(work, patch_set, device)

    def plain(samples=1600):
        done, started = 0, None
        for images, _ in image_folder(work, "train", batch, device, samples=samples):
            images.to(device)
            if started is None:
                started = waited(device)  # the workers' start is not counted
            else:
                done += len(images)
        return (waited(device) - started) / done

    def ours():
        started, done = waited(device), 0
        while done < 2000:
            for step, (images, _) in enumerate(batching.batches(patch_set, order, device)):
                transforms.normalise(
                    images,
                    MEAN,
                    STD,
                    batching.to_device(ordering.draw_flips(batch, 0, 0, step), device),
                )
                done += batch
        return (waited(device) - started) / done

    def raw():
        started, done = time.perf_counter(), 0
        while done < 10000:
            for indices in order:
                patch_set.read(indices)
                done += batch
        return (time.perf_counter() - started) / done

    ours()
    found = in_turns(sizes.rounds + 2, plain=plain, ours=ours, raw=raw)
    # From the disk, as after a restart.
    files = {
        "plain": sorted((work / "patches" / "train").rglob("*.jpg")),
        "ours": sorted((work / "patches" / "arrays").rglob("*.npy")),
    }
    forget(files["plain"])
    cold_plain = plain(len(patch_set))
    forget(files["ours"])
    started = waited(device)
    for _ in batching.batches(
        reading.open_split(work / "patches", "train"), order, device, storage="files"
    ):
        pass
    cold_ours = (waited(device) - started) / order.size
    rate = {name: 1 / seconds / CORES for name, seconds in found.items()}
    return {
        "plain": rate["plain"],
        "ours": rate["ours"],
        "ratio": rate["ours"] / rate["plain"],
        "unit": "patches a second and core",
        "batch": batch,
        "raw": rate["raw"] * CORES,
        "raw_ratio": rate["raw"] * CORES / rate["plain"],
        "raw_cores": 1,
        "cold_plain": 1 / cold_plain / CORES,
        "cold_raw": 1 / cold_ours,
        "seconds_a_patch": found["ours"],
    }


def check_batches(work, patch_set, device):
    """The same patches and the same arithmetic as ToTensor and Normalize; the JPEGs differ by their compression alone."""
    index = np.linspace(0, len(patch_set) - 1, 8).astype(int)
    images, _ = next(iter(batching.batches(patch_set, [index], device)))
    ours = transforms.normalise(images, MEAN, STD).cpu()
    exact = torchvision.transforms.Compose(
        [torchvision.transforms.ToTensor(), torchvision.transforms.Normalize(MEAN, STD)]
    )
    assert torch.allclose(
        ours, torch.stack([exact(patch) for patch in patch_set.read(index)]), atol=1e-5
    )
    folder = image_folder(work, "train", 8, device, shuffle=False).dataset
    plain = torch.stack([folder[i][0] for i in index])
    assert [folder.targets[i] for i in index] == patch_set.labels[index].tolist()
    assert (plain - ours).abs().mean() * 255 * statistics.mean(STD) < 4, (
        "other patches than in the JPEGs"
    )


def forget(files):
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


# ------------------------------------------------------------------------------------------------------------ network


def network(device, fast):
    torch.manual_seed(0)
    model = torchvision.models.resnet50(num_classes=2)
    return model.to(device, memory_format=torch.channels_last) if fast else model.to(device)


def training(work, sizes, device):
    """Seconds a step of ResNet-50, from the patch set to updated weights: train_classification.train_epoch against a plain loop."""
    patch_set, dtype = (
        reading.open_split(work / "patches", "train"),
        devices.pick_dtype("auto", device),
    )
    batch = min(sizes.batch, len(patch_set) // 4)
    args = train_classification.arguments(["--weights", "none"])
    fast, slow = network(device, True), network(device, False)
    fused, usual = (
        optimisers.make_optimizer(args, fast),
        torch.optim.Adam(slow.parameters(), lr=1e-3),
    )
    classifier_agrees(patch_set, slow, fast, device, dtype)
    order = ordering.epoch_order(patch_set.labels, batch, 0, 0)[: sizes.steps]
    one = torch.randn(batch, 3, 224, 224, device=device).contiguous(
        memory_format=torch.channels_last
    )
    labels = torch.zeros(batch, dtype=torch.long, device=device)

    def ours():
        started = waited(device)
        epochs.train_epoch(
            fast,
            fused,
            None,
            patch_set,
            order,
            0,
            0,
            [0.0, 0.0, 0],
            args,
            device,
            dtype,
            0,
            lambda: False,
            None,
        )
        return (waited(device) - started) / len(order)

    batches = endless(lambda: image_folder(work, "train", batch, device))

    def plain():
        slow.train()
        started = waited(device)
        for _ in range(len(order)):
            images, truth = next(batches)
            loss = cross_entropy(slow(images.to(device)), truth.to(device))
            usual.zero_grad()
            loss.backward()
            usual.step()
            loss.item()
        found = (waited(device) - started) / len(order)
        time.sleep(0.06 * batch)  # its workers read ahead now, and not while the others are timed
        return found

    def in_memory():
        fast.train()
        started = waited(device)
        for _ in range(len(order)):
            with devices.autocast(device, dtype):
                loss = cross_entropy(fast(one), labels)
            fused.zero_grad(set_to_none=True)
            loss.backward()
            fused.step()
        return (waited(device) - started) / len(order)

    for warm in (ours, in_memory, plain):
        warm()
    found = in_turns(sizes.rounds, ours=ours, in_memory=in_memory, plain=plain)
    started = waited(device)
    repeats = 10
    for _ in range(repeats):
        for step, (images, _) in enumerate(batching.batches(patch_set, order, device)):
            transforms.normalise(
                images,
                MEAN,
                STD,
                batching.to_device(ordering.draw_flips(batch, 0, 0, step), device),
            )
    feeding = (waited(device) - started) / repeats / len(order)
    return {
        "plain": found["plain"],
        "ours": found["ours"],
        "ratio": found["plain"] / found["ours"],
        "unit": "s a step",
        "arch": "resnet50",
        "batch": batch,
        "dtype": str(dtype).removeprefix("torch."),
        "patches_a_second": batch / found["ours"],
        "in_memory": found["in_memory"],
        "input_s": feeding,
        "input_share": feeding / found["ours"],
    }


def endless(make):
    while True:
        yield from make()


def classifier_agrees(patch_set, slow, fast, device, dtype):
    """Both networks give the same logits, to what bf16 rounds off."""
    images = transforms.normalise(torch.from_numpy(patch_set.read(range(4))).to(device), MEAN, STD)
    slow.eval(), fast.eval()
    with torch.no_grad():
        plain = slow(images.contiguous())
        with devices.autocast(device, dtype):
            ours = fast(images).float()
    assert (plain - ours).abs().max() <= 0.05 * plain.abs().max(), (plain, ours)


def time_evaluation(work, sizes, device):
    """Seconds for the patches of test_b through ResNet-50: evaluation.evaluate against a plain loop."""
    patch_set, dtype = (
        reading.open_split(work / "patches", "test_b"),
        devices.pick_dtype("auto", device),
    )
    fast, slow = network(device, True), network(device, False)
    classifier_agrees(patch_set, slow, fast, device, dtype)

    def ours():
        evaluation.evaluate(fast, patch_set, evaluation.Setup(device, dtype))

    def plain():
        slow.eval()
        with torch.no_grad():
            for images, _ in image_folder(work, "test_b", 64, device, shuffle=False):
                slow(images.to(device)).argmax(1).cpu()

    ours()
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


def saliency(work, sizes, device):
    return relevance_cam.measure(
        batch=2 if sizes.quick else 8, device=str(device), rounds=1 if sizes.quick else 3
    )


# ------------------------------------------------------------------------------------------------------------ limits


def limits(result):
    """The best that this machine could do, and what share of it each part reaches."""
    source = np.ones(64 * 224 * 224 * 3, np.uint8)
    target = np.empty_like(source)

    def copy():
        started = time.perf_counter()
        for _ in range(20):
            np.copyto(target, source)
        return (time.perf_counter() - started) / 20

    seconds = in_turns(5, copy=copy)["copy"]
    found = {"memory_copy_GB_a_second": source.nbytes / seconds / 1e9, "close": {}}
    if "preprocessing" in result:
        found["decoding_s_a_raster"] = result["preprocessing"]["decoding_kept"]
        found["close"]["preprocessing"] = (
            result["preprocessing"]["decoding_kept"] / result["preprocessing"]["ours"]
        )
    if "input" in result:
        found["copied_patches_a_second"] = 64 / seconds
        found["close"]["input_raw"] = result["input"]["raw"] * seconds / 64
    if "training" in result:
        found["step_on_data_in_memory_s"] = result["training"]["in_memory"]
        found["close"]["training"] = result["training"]["in_memory"] / result["training"]["ours"]
    return found


def gpu(work, sizes, device):
    """Patches a second of ResNet-50 in training: arrays on the device, arrays in files, and one batch that is there already."""
    patch_set, dtype = (
        reading.open_split(work / "patches", "train"),
        devices.pick_dtype("auto", device),
    )
    args = train_classification.arguments(["--weights", "none"])
    model = network(device, True)
    optimizer = optimisers.make_optimizer(args, model)
    order = np.random.default_rng(0).integers(0, len(patch_set), (sizes.steps, sizes.batch))
    one = torch.randn(sizes.batch, 3, 224, 224, device=device).contiguous(
        memory_format=torch.channels_last
    )
    labels = torch.zeros(sizes.batch, dtype=torch.long, device=device)

    def steps(feed):
        model.train()
        started = waited(device)
        for images, truth in feed:
            with devices.autocast(device, dtype):
                loss = cross_entropy(model(images), truth)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return (waited(device) - started) / order.size

    def fed(where):
        for step, (images, truth) in enumerate(
            batching.batches(patch_set, order, device, storage=where)
        ):
            yield (
                transforms.normalise(
                    images,
                    MEAN,
                    STD,
                    batching.to_device(ordering.draw_flips(sizes.batch, 0, 0, step), device),
                ),
                truth,
            )

    sides = {
        "device": lambda: steps(fed("device")),
        "files": lambda: steps(fed("files")),
        "in_memory": lambda: steps([(one, labels)] * len(order)),
    }
    for warm in sides.values():
        warm()
    rate = {name: 1 / seconds for name, seconds in in_turns(sizes.rounds, **sides).items()}
    return {
        **rate,
        "unit": "patches a second",
        "batch": sizes.batch,
        "share_device": rate["device"] / rate["in_memory"],
        "share_files": rate["files"] / rate["in_memory"],
    }


def show(result):
    print(", ".join(f"{key} {value}" for key, value in result["machine"].items() if value))
    print(f"\n{'':<16}{'plain':>10}{'ours':>10}{'ratio':>9}   unit")
    for name in PARTS:
        row = result.get(name, {})
        if "ratio" in row:
            print(
                f"{name:<16}{row['plain']:>10.4g}{row['ours']:>10.4g}{row['ratio']:>8.1f}x   {row['unit']}"
            )
        if name == "preprocessing" and row:
            print(
                f"{'':<16}{row['times_decoding']:.2f} times decoding alone ({row['decoding']:.3f} s a raster), {row['workers']} workers, {row['rasters']} rasters with start-up; "
                f"{row['times_decoding_cpu']:.2f} times in CPU time"
            )
        if name == "input" and row:
            print(
                f"{'  raw uint8':<16}{row['plain']:>10.4g}{row['raw']:>10.4g}{row['raw_ratio']:>8.1f}x   {row['unit']}"
            )
            print(
                f"{'  cold start':<16}{row['cold_plain']:>10.4g}{row['cold_raw']:>10.4g}{row['cold_raw'] / row['cold_plain']:>8.1f}x   {row['unit']}, raw on our side"
            )
        if name == "training" and row:
            print(
                f"{'':<16}input takes {100 * row['input_share']:.1f} % of a step; {row['patches_a_second']:.1f} patches a second"
            )
        if name == "relevance_cam" and row:
            print(f"{name:<16}{row['forwards']:>29.2f}    plain forward passes")
    print(
        "\nlimits: memory copy "
        + f"{result['limits']['memory_copy_GB_a_second']:.1f} GB/s; reached: "
        + ", ".join(
            f"{name} {100 * share:.0f} %" for name, share in result["limits"]["close"].items()
        )
    )
    if "gpu" in result:
        print("gpu: " + ", ".join(f"{key} {value}" for key, value in result["gpu"].items()))


PARTS = {
    "preprocessing": preprocessing,
    "input": input_path,
    "training": training,
    "evaluation": time_evaluation,
    "relevance_cam": saliency,
}

if __name__ == "__main__":
    run(main)
