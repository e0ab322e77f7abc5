"""Fine-tune a ResNet to tell the city from one patch.

    python train_classification.py --data data/patches --run resnet50 --arch resnet50
    python train_classification.py --data data/patches --run scratch --arch resnet18 --weights none --epochs 12
    python train_classification.py --data data/patches --run resnet50 --arch resnet50 --resume

The defaults are the published recipe: ImageNet weights, Adam at a constant 1e-3, batches of 128, 100 epochs, random flips,
classes drawn equally often. --recipe robust sets other defaults, see RECIPES. Writes last.pth, best.pth (by validation accuracy), log.csv, config.json and curves.png.
"""

import argparse
import os
import time
import warnings

import torch
from torch.nn.parallel import DistributedDataParallel

from dl_slicer import distributed, versions
from dl_slicer.cli import InputError, Parser, number, printable, run
from dl_slicer.distributed import RANK, WORLD
from dl_slicer.files import clear_leftovers
from dl_slicer.machine import keep_memory
from dl_slicer.model import architectures, checkpoints, devices, evaluation, networks
from dl_slicer.patch_sets import ordering, reading
from dl_slicer.training import epochs, optimisers, recipes, runs, signals
from dl_slicer.training.history import write_history


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
    parser.add_argument("--arch", default="resnet50", choices=architectures.ARCHITECTURES)
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
        choices=recipes.RECIPES,
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
    for key, value in recipes.RECIPES[args.recipe].items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    return args


def main(argv=None):
    args = arguments(argv)
    device = devices.pick_device(distributed.join(args.device))
    dtype = devices.pick_dtype(args.amp, device)
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

    train, val = reading.open_split(args.data, "train"), reading.open_split(args.data, "val")
    checkpoints.check_classes(val, train.classes, f"{args.data}/val", f"{args.data}/train")
    workers = args.workers if args.workers is not None else train.default_workers
    folder = runs.run_folder(args.run or args.arch)
    # What a resumed run must share with the one it goes on with, else its result would be neither's.
    fixed = {
        key: getattr(args, key)
        for key in (
            "arch",
            "weights",
            "batch_size",
            "balanced",
            "seed",
            *recipes.RECIPES["published"],
        )
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
    begun = runs.resume(folder, args, fixed)
    torch.manual_seed(args.seed)
    model = checkpoints.initial_network(args.arch, len(train.classes), "none" if begun else args.weights)
    if begun:
        networks.load_state(model, begun.weights or begun.model, printable(folder / "last.pth"))
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = optimisers.make_optimizer(args, model)
    steps = len(train) // min(args.batch_size, len(train))  # of an epoch
    average = optimisers.moving_average(model, args.average * steps) if args.average else None
    if begun and average:
        networks.load_state(average.module, begun.model, printable(folder / "last.pth"))
        average.n_averaged.fill_(begun.epoch * steps + begun.step)
    trained = average.module if average else model  # what is evaluated, saved, and the result
    epoch, step, history, best, sums = 0, 0, [], None, [0.0, 0.0, 0]
    if begun:
        optimizer.load_state_dict(begun.optimizer)
        torch.set_rng_state(begun.rng)
        epoch, step = begun.epoch, begun.step
        history, best, sums = (begun.metrics[key] for key in ("history", "best", "sums"))
        say(f"{folder}: going on at epoch {epoch + 1}, step {step + 1}")
    stop = signals.catch_signals()
    if RANK == 0:
        folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder)
        runs.write_config(folder, settings, device)
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
            checkpoint = checkpoints.Checkpoint(
                model=trained.state_dict(),
                weights=model.state_dict() if average else None,
                arch=args.arch,
                classes=list(train.classes),
                mean=list(networks.MEAN),
                std=list(networks.STD),
                image_size=train.image_size,
                patch_size=train.patch_size,
                stride=train.stride,
                epoch=epoch,
                step=step,
                metrics={"history": history, "best": best, "sums": sums},
                optimizer=optimizer.state_dict(),
                rng=torch.get_rng_state(),
                args=settings,
                versions=versions.installed(),
            )
            for name in names:
                checkpoints.save_checkpoint(folder / name, checkpoint)

    started = time.time()
    for epoch in range(epoch, args.epochs):
        step, sums = epochs.train_epoch(
            network,
            optimizer,
            average,
            train,
            ordering.epoch_order(train.labels, args.batch_size, args.seed, epoch, args.balanced),
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
            else evaluation.score(
                trained,
                val,
                evaluation.Setup(device, dtype, workers=workers),
                desc="validation",
                stop=stop,
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


if __name__ == "__main__":
    run(main)
