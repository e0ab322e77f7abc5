"""Fine-tune a ResNet to tell the city from one patch.

    python train_classification.py --data data/patches --run resnet50 --arch resnet50
    python train_classification.py --data data/patches --run scratch --arch resnet18 --weights none --epochs 12
    python train_classification.py --data data/patches --run resnet50 --arch resnet50 --resume

The defaults are the published recipe: ImageNet weights, Adam at a constant 1e-3, batches of 128, 100 epochs, random flips,
classes drawn equally often. --recipe robust sets other defaults, see RECIPES. Writes last.pth, best.pth (by validation accuracy), log.csv, config.json and curves.png.
"""

import argparse
import json
import math
import os
import signal
import time
import warnings
from pathlib import Path

import matplotlib
import torch
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from dl_slicer import distributed
from dl_slicer.cli import (
    InputError,
    Parser,
    atomic,
    clear_leftovers,
    keep_memory,
    number,
    run,
    shown,
    write_rows,
)
from dl_slicer.distributed import RANK, WORLD
from dl_slicer.model import checkpoints as classifier
from dl_slicer.patch_sets import batching as loader
from dl_slicer.patch_sets import reading as patches
from dl_slicer.patch_sets import transforms as augmentation

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Two sets of defaults; every flag can still be set on its own.
RECIPES = {
    "published": dict(
        optimizer="adam",
        lr=1e-3,
        weight_decay=0.0,
        schedule="constant",
        average=0.0,
        label_smoothing=0.0,
        flips=True,
        turns=False,
        light=0.0,
    ),
    "robust": dict(
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.05,
        schedule="cosine",
        average=1.0,
        label_smoothing=0.1,
        flips=True,
        turns=True,
        light=0.3,
    ),
}
WARM_UP = 0.1  # share of the steps in which the learning rate rises, with --schedule cosine
COLUMNS = ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy")


def arguments(argv=None):
    parser = Parser(__doc__)
    parser.add_argument(
        "--data", default="data/patches", help="patch set, or a folder in the published layout"
    )
    parser.add_argument(
        "--run",
        default=None,
        help="a name under checkpoints/, or a path; default: the architecture",
    )
    parser.add_argument("--arch", default="resnet50", choices=classifier.ARCHITECTURES)
    parser.add_argument(
        "--weights",
        default="imagenet",
        help="imagenet (IMAGENET1K_V1), imagenet-v2, none, or a file",
    )
    parser.add_argument("--epochs", type=number(least=1), default=100)
    parser.add_argument("--batch-size", type=number(least=1), default=128)
    parser.add_argument(
        "--recipe",
        default="published",
        choices=RECIPES,
        help="the defaults of the flags from --optimizer to --light",
    )
    parser.add_argument(
        "--optimizer", choices=("adam", "adamw", "sgd"), help="sgd: with momentum 0.9"
    )
    parser.add_argument(
        "--lr",
        type=number(float, above=0, most=100),
        help="learning rate, the highest one of the schedule",
    )
    parser.add_argument("--weight-decay", type=number(float, least=0, most=100))
    parser.add_argument(
        "--schedule",
        choices=("constant", "cosine"),
        help="cosine: after a linear warm-up, down to 0 at the last epoch",
    )
    parser.add_argument(
        "--average",
        type=number(float, least=0, most=1000),
        metavar="EPOCHS",
        help="the model is the exponential moving average of the weights over about so many epochs; 0: the weights themselves",
    )
    parser.add_argument("--label-smoothing", type=number(float, least=0, most=0.9))
    parser.add_argument(
        "--flips", action=argparse.BooleanOptionalAction, help="random left-right and up-down flips"
    )
    parser.add_argument(
        "--turns",
        action=argparse.BooleanOptionalAction,
        help="random quarter turns: with flips, the eight symmetries of a square",
    )
    parser.add_argument(
        "--light",
        type=number(float, least=0, most=2),
        help="strength of random changes of brightness, contrast, colour and haze; 1 is much",
    )
    parser.add_argument(
        "--balanced",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw classes equally often",
    )
    parser.add_argument(
        "--amp",
        default="auto",
        choices=("auto", "bf16", "off"),
        help="auto: bf16 where the device is fast at it",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument("--device", default="auto", help="auto: CUDA if there is one, else cpu")
    parser.add_argument(
        "--workers",
        type=number(least=0),
        default=None,
        help="processes that read patches; default: none for a patch set, all cores for JPEGs",
    )
    parser.add_argument("--seed", type=number(least=0), default=0)
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="the same numbers in each run on a GPU too, slower; a CPU needs no such flag",
    )
    parser.add_argument(
        "--save-every",
        type=number(least=1),
        default=None,
        metavar="STEPS",
        help="also save last.pth every so many steps",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run if it has begun")
    args = parser.parse_args(argv)
    for key, value in RECIPES[args.recipe].items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    return args


def main(argv=None):
    args = arguments(argv)
    device = classifier.pick_device(distributed.join(args.device))
    dtype = classifier.pick_dtype(args.amp, device)
    keep_memory()
    if args.batch_size % WORLD:
        raise InputError(
            f"--batch-size {args.batch_size}: is shared by {WORLD} processes, so it must be a multiple of {WORLD}"
        )
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not args.deterministic
    say = print if RANK == 0 else lambda *args, **kwargs: None

    train, val = patches.open_split(args.data, "train"), patches.open_split(args.data, "val")
    classifier.check_classes(val, train.classes, f"{args.data}/val", f"{args.data}/train")
    workers = args.workers if args.workers is not None else train.default_workers
    folder = run_folder(args.run or args.arch)
    # What a resumed run must share with the one it goes on with, else its result would be neither's.
    fixed = {
        key: getattr(args, key)
        for key in ("arch", "weights", "batch_size", "balanced", "seed", *RECIPES["published"])
    }
    if args.schedule != "constant":
        fixed["epochs"] = args.epochs
    fixed |= {
        "dtype": str(dtype).removeprefix("torch."),
        "data_set": {
            "classes": list(train.classes),
            "patch_size": train.patch_size,
            "stride": train.stride,
            "image_size": train.image_size,
            "train": len(train),
            "val": len(val),
        },
    }
    settings = {key: value for key, value in vars(args).items() if key != "resume"} | fixed

    # The run so far, or a new one.
    begun = resume(folder, args, fixed)
    torch.manual_seed(args.seed)
    model = classifier.build(args.arch, len(train.classes), "none" if begun else args.weights)
    if begun:
        classifier.load_state(
            model, begun.get("weights") or begun["model"], shown(folder / "last.pth")
        )
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(args, model)
    steps = len(train) // min(args.batch_size, len(train))  # of an epoch
    average = moving_average(model, args.average * steps) if args.average else None
    if begun and average:
        classifier.load_state(average.module, begun["model"], shown(folder / "last.pth"))
        average.n_averaged.fill_(begun["epoch"] * steps + begun["step"])
    trained = average.module if average else model  # what is evaluated, saved, and the result
    epoch, step, history, best, sums = 0, 0, [], None, [0.0, 0.0, 0]
    if begun:
        optimizer.load_state_dict(begun["optimizer"])
        torch.set_rng_state(begun["rng"])
        epoch, step = begun["epoch"], begun["step"]
        history, best, sums = (begun["metrics"][key] for key in ("history", "best", "sums"))
        say(f"{folder}: going on at epoch {epoch + 1}, step {step + 1}")
    stop = catch_signals()
    if RANK == 0:
        folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder)
        write_config(folder, settings, device)
        write_history(folder, history)
    network = model
    if WORLD > 1:
        # Each process normalises its share of a batch by that share's own statistics, as usual; the running averages are put
        # together when the model is saved or evaluated, so they need not be sent at every step.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the flag is being renamed
            network = DistributedDataParallel(
                network, [device] if device.type == "cuda" else None, broadcast_buffers=False
            )
    if args.compile:
        network = torch.compile(network)
    say(
        f"{args.arch} on {device}{f' and {WORLD - 1} more' if WORLD > 1 else ''} in {fixed['dtype']}; "
        f"{len(train)} train and {len(val)} val patches of {len(train.classes)} cities",
        flush=True,
    )

    def average_batch_norms():
        for network in dict.fromkeys((model, trained)):  # in the same order in all processes
            distributed.average_batch_norm(network)

    def save(names, epoch, step, sums):
        average_batch_norms()
        sums = [*distributed.total(torch.tensor(sums[:2], dtype=torch.float64)).tolist(), sums[2]]
        if RANK == 0:
            checkpoint = {
                "model": trained.state_dict(),
                "weights": model.state_dict() if average else None,
                "arch": args.arch,
                "classes": list(train.classes),
                "mean": list(classifier.MEAN),
                "std": list(classifier.STD),
                "image_size": train.image_size,
                "patch_size": train.patch_size,
                "stride": train.stride,
                "epoch": epoch,
                "step": step,
                "metrics": {"history": history, "best": best, "sums": sums},
                "optimizer": optimizer.state_dict(),
                "rng": torch.get_rng_state(),
                "args": settings,
                "versions": classifier.versions(),
            }
            for name in names:
                classifier.save_checkpoint(folder / name, checkpoint)

    started = time.time()
    for epoch in range(epoch, args.epochs):
        step, sums = train_epoch(
            network,
            optimizer,
            average,
            train,
            loader.epoch_order(train.labels, args.batch_size, args.seed, epoch, args.balanced),
            epoch,
            step,
            sums,
            args,
            device,
            dtype,
            workers,
            stop,
            save,
        )
        average_batch_norms()
        scores = (
            None
            if step < steps
            else classifier.evaluate(
                trained,
                val,
                device,
                dtype,
                workers=workers,
                desc="validation",
                stop=stop,
                score=True,
            )
        )
        if scores is None:
            save(["last.pth"], epoch, step, sums)
            say(
                f"stopped in epoch {epoch + 1} after step {step} of {steps}; the same command with --resume goes on there"
            )
            distributed.leave()
            raise SystemExit(1)
        loss_sum, correct = distributed.total(torch.tensor(sums[:2], dtype=torch.float64)).tolist()
        val_loss, val_accuracy = scores.numpy().mean(0, dtype=float).tolist()
        row = {
            "epoch": epoch + 1,
            "lr": optimizer.param_groups[0]["lr"],
            "train_loss": loss_sum / sums[2],
            "train_accuracy": correct / sums[2],
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
        }
        history.append(row)
        step, sums = 0, [0.0, 0.0, 0]
        improved = best is None or row["val_accuracy"] > best["val_accuracy"]
        if improved:
            best = {"epoch": epoch + 1, "val_accuracy": row["val_accuracy"]}
        # best.pth first: a run killed in between repeats the epoch and comes to the same best.pth.
        save(["best.pth", "last.pth"] if improved else ["last.pth"], epoch + 1, step, sums)
        if RANK == 0:
            write_history(folder, history)
        say(
            f"epoch {epoch + 1:>3}/{args.epochs}  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.4f}  "
            f"val loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.4f}{'  best' if improved else ''}",
            flush=True,
        )
    say(
        f"{folder}: best.pth is epoch {best['epoch']} (val accuracy {best['val_accuracy']:.4f}); also last.pth, log.csv, curves.png, "
        f"config.json; {time.time() - started:.0f} s"
    )
    distributed.leave()


def train_epoch(
    network,
    optimizer,
    average,
    train,
    order,
    epoch,
    step,
    sums,
    args,
    device,
    dtype,
    workers,
    stop,
    save,
):
    """Train on order[step:], or until stop() says True. Returns the steps done, and (loss, correct) summed over this process's
    patches and the number of patches of all processes; sums is where to go on from, as saved."""
    network.train()
    totals = torch.tensor(sums[:2] if RANK == 0 else [0.0, 0.0], dtype=torch.float64, device=device)
    share = slice(RANK, None, WORLD)
    shown_at = 0.0
    with tqdm(
        total=order.size,
        initial=step * order.shape[1],
        desc=f"epoch {epoch + 1}",
        unit=" patches",
        leave=False,
        disable=None if RANK == 0 else True,
    ) as bar:
        for images, labels in loader.batches(train, order[step:, share], device, workers):
            flipped = loader.flips(order.shape[1], args.seed, epoch, step)[:, share]
            flipped = loader.to_device(flipped, device) if args.flips else None
            images = loader.normalise(images, classifier.MEAN, classifier.STD, flipped)
            if args.turns or args.light:
                drawn = {
                    key: loader.to_device(values[share], device)
                    for key, values in augmentation.draw(
                        order.shape[1], args.seed, epoch, step
                    ).items()
                }
                images = augmentation.augment(
                    images, drawn, classifier.MEAN, classifier.STD, args.turns, args.light
                )
            with classifier.autocast(device, dtype):
                logits = network(images)
                loss = cross_entropy(logits, labels, label_smoothing=args.label_smoothing)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(args, epoch + (step + 0.5) / len(order))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if average:
                average.update_parameters(network)
            step += 1
            totals += torch.stack(
                [loss.detach().double() * len(labels), (logits.argmax(1) == labels).sum().double()]
            )
            bar.update(order.shape[1])
            if time.time() - shown_at > 1:  # fetching makes a GPU wait, so only now and then
                shown_at = time.time()
                if not totals.isfinite().all():
                    raise InputError(
                        f"the loss is no longer finite in epoch {epoch + 1}, step {step}: take a smaller --lr than {args.lr}"
                    )
                if RANK == 0:
                    loss_sum, correct = (totals / (step * len(labels))).tolist()
                    bar.set_postfix(loss=f"{loss_sum:.3f}", accuracy=f"{correct:.3f}")
            if stop():
                break
            if args.save_every and step % args.save_every == 0 and step < len(order):
                save(["last.pth"], epoch, step, [*totals.tolist(), step * order.shape[1]])
    return step, [*totals.tolist(), step * order.shape[1]]


def make_optimizer(args, model):
    parameters = model.parameters()
    if args.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=args.lr, momentum=0.9, weight_decay=args.weight_decay, fused=True
        )
    optimizer = torch.optim.Adam if args.optimizer == "adam" else torch.optim.AdamW
    return optimizer(parameters, lr=args.lr, weight_decay=args.weight_decay, fused=True)


def learning_rate(args, epochs_done):
    """The learning rate after so many epochs: constant, or a linear warm-up and half a cosine down to 0 (Loshchilov and Hutter, ICLR 2017)."""
    if args.schedule == "constant":
        return args.lr
    done = epochs_done / args.epochs
    return args.lr * (
        done / WARM_UP
        if done < WARM_UP
        else (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2
    )


def moving_average(model, horizon):
    """The exponential moving average of a model's weights and of batch norm's statistics over about so many steps, as an AveragedModel.

    At the start over fewer, else the untrained weights would be in it for long.
    """

    def update(averaged, current, count):
        done = int(average.n_averaged)  # the same as count, but on the CPU: nothing waits for a GPU
        get_ema_multi_avg_fn(min(math.exp(-1 / horizon), (1 + done) / (10 + done)))(
            averaged, current, count
        )

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    return average


def run_folder(name):
    """A bare name lies under checkpoints/, anything with a slash is a path."""
    return Path(name) if os.sep in name or name in (".", "..") else Path("checkpoints", name)


def resume(folder, args, fixed):
    """The checkpoint to go on with, or None for a new run. InputError if the folder holds a run that must not be mixed with this one."""
    file = folder / "last.pth"
    if not file.is_file():
        return None
    if not args.resume:
        raise InputError(
            f"{shown(folder)}: holds a run already; go on with it with --resume, or choose another --run"
        )
    begun = classifier.read_file(file)
    if not {"args", "optimizer", "metrics", "rng", "epoch", "step"} <= begun.keys():
        raise InputError(
            f"{shown(file)}: no checkpoint of train_classification.py that can be gone on with"
        )
    before = begun["args"]
    before = RECIPES["published"] | before  # runs of before there were others
    changed = [
        f"{key} was {shown(before.get(key))}, is {shown(fixed[key])}"
        for key in fixed
        if before.get(key) != fixed[key]
    ]
    if changed:
        raise InputError(
            f"--resume {shown(folder)}: would not give that run's result: {'; '.join(changed)}"
        )
    if begun["epoch"] > args.epochs:
        raise InputError(
            f"--resume {shown(folder)}: has {begun['epoch']} epochs already, --epochs {args.epochs} is fewer"
        )
    return begun


def catch_signals():
    """A function that says whether SIGTERM or SIGINT has come, to any of the processes. A second one ends this process at once."""
    came = []

    def note(number, frame):
        if came:
            raise KeyboardInterrupt
        came.append(number)

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)
    return lambda: distributed.any_of(bool(came))


def write_config(folder, settings, device):
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    config = {
        **settings,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "processes": WORLD,
        "versions": classifier.versions(),
    }
    with atomic(folder / "config.json", "w", encoding="utf-8") as file:
        json.dump(config, file, indent=1, ensure_ascii=False)


def write_history(folder, history):
    """log.csv and curves.png, each epoch once, whatever was there."""
    write_rows(
        folder / "log.csv", COLUMNS, ([row[column] for column in COLUMNS] for row in history)
    )
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axis, name in zip(axes, ("loss", "accuracy")):
        for split in ("train", "val"):
            axis.plot(
                epochs,
                [row[f"{split}_{name}"] for row in history],
                marker="o" if len(history) < 30 else None,
                markersize=3,
                label=split,
            )
        axis.set(xlabel="epoch", title=name)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend()
    axes[1].set_ylim(0, 1.02)
    with atomic(folder / "curves.png") as file:
        figure.savefig(file, dpi=120, format="png")
    plt.close(figure)


if __name__ == "__main__":
    run(main)
