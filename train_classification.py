"""Fine-tune a ResNet to tell the city from one patch.

    python train_classification.py --data data/patches --arch resnet50
    python train_classification.py --data data/patches --arch resnet50 --resume
    python train_classification.py --arch resnet18 --weights none --epochs 12 --out checkpoints/new
    torchrun --nproc_per_node=4 train_classification.py --data data/patches --arch resnet50
    python train_classification.py --data data/patches --probe --out checkpoints/probe

The defaults are the published recipe: ImageNet weights, Adam at a constant 1e-3, batches of 128,
100 epochs, random flips, classes drawn equally often. --recipe robust sets other defaults.
--probe fits the last layer alone, on features of the network as its weights file has it.
Writes last.pth, best.pth (by validation accuracy), log.csv, config.json and curves.png.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dl_slicer import cli, files
from dl_slicer.model import architectures, flags
from dl_slicer.training import recipes, schedules, tracking

if TYPE_CHECKING:  # for torch takes seconds to import
    from torch.nn import Module

    from dl_slicer.model.evaluation import Setup
    from dl_slicer.patch_sets.reading import PatchSet
    from dl_slicer.training.runs import Run


def read_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the flags; what the user leaves out comes from the recipe. InputError if one is wrong.

    This and what it imports needs no torch, so that a mistyped flag is told at once.
    """
    parser = cli.Parser(__doc__)
    add_data_flags(parser.add_argument_group("data"))
    add_model_flags(parser.add_argument_group("model"))
    recipe = parser.add_argument_group("recipe")
    add_recipe_flags(recipe)
    add_change_flags(recipe)
    add_machine_flags(parser.add_argument_group("machine"))
    add_run_flags(parser.add_argument_group("run"))
    args = parser.parse_args(argv)
    if args.probe:
        recipes.set_probe(args, cli.given_flags(parser, argv))
        if "rehearse" in args:
            raise cli.InputError("--rehearse: times steps of training, and --probe has none")
    elif args.features is not None:
        raise cli.InputError("--features: is where --probe keeps features; add --probe")
    else:
        recipes.set_defaults(args)
    if args.buffer is not None and args.order == "random":
        raise cli.InputError("--buffer: is that of --order grouped; leave it out")
    if args.out is None:
        args.out = str(Path("checkpoints", args.arch))
    tracking.check_installed(args.track)
    return args


def add_data_flags(group: flags.FlagGroup) -> None:
    """Which patches are trained on, and how often each."""
    flags.add_data(group)
    group.add_argument(
        "--balanced",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw classes equally often",
    )
    group.add_argument(
        "--order",
        default="auto",
        choices=("auto", "random", "grouped"),
        help="in which order patches come: random of all, or grouped, which sweeps the disk once an"
        " epoch; auto: grouped where the train arrays exceed half of the free memory",
    )
    group.add_argument(
        "--buffer",
        type=cli.number(float, above=0, most=1e6),
        metavar="GB",
        help="memory of each process for --order grouped; more mixes better;"
        " default: an eighth of the machine's free memory, shared by its processes",
    )


def add_model_flags(group: flags.FlagGroup) -> None:
    """Which network, and what it starts from."""
    group.add_argument(
        "--arch",
        default="resnet50",
        choices=architectures.ARCHITECTURES,
        help="how deep the ResNet is",
    )
    group.add_argument(
        "--weights",
        default="imagenet",
        help="to start from: imagenet (IMAGENET1K_V1), imagenet-v2, none, or a file",
    )
    group.add_argument(
        "--probe",
        action="store_true",
        help="leave the network as its weights are, and fit the last layer alone: hours on a CPU",
    )
    group.add_argument(
        "--features",
        metavar="DIR",
        help="where --probe keeps features for other probes, of any fold or set;"
        " default: the folder features beside --data",
    )


def add_recipe_flags(group: flags.FlagGroup) -> None:
    """How the network is trained."""
    group.add_argument(
        "--recipe",
        default="published",
        choices=recipes.RECIPES,
        help="the defaults of the flags from --optimizer to --light",
    )
    group.add_argument("--epochs", type=cli.number(least=1), default=100, help="how long to train")
    group.add_argument(
        "--batch-size",
        type=cli.number(least=1),
        default=128,
        help="patches a step, of all processes",
    )
    group.add_argument(
        "--optimizer",
        choices=recipes.OPTIMISERS,
        help=f"sgd: with momentum 0.9; {recipes.describe_defaults('optimizer')}",
    )
    group.add_argument(
        "--lr",
        type=cli.number(float, above=0, most=100),
        help=f"learning rate, the highest one of the schedule; {recipes.describe_defaults('lr')}",
    )
    group.add_argument(
        "--weight-decay",
        type=cli.number(float, least=0, most=100),
        help=recipes.describe_defaults("weight_decay"),
    )
    group.add_argument(
        "--schedule",
        choices=schedules.SCHEDULES,
        help="of the learning rate; cosine: after a linear warm-up, down to 0 at the last epoch;"
        f" {recipes.describe_defaults('schedule')}",
    )
    group.add_argument(
        "--average",
        type=cli.number(float, least=0, most=1000),
        metavar="EPOCHS",
        help="the model is the exponential moving average of the weights over about so many"
        f" epochs; 0: the weights themselves; {recipes.describe_defaults('average')}",
    )
    group.add_argument(
        "--label-smoothing",
        type=cli.number(float, least=0, most=0.9),
        help=recipes.describe_defaults("label_smoothing"),
    )


def add_change_flags(group: flags.FlagGroup) -> None:
    """How patches are changed at random, also a part of the recipe."""
    group.add_argument(
        "--flips",
        action=argparse.BooleanOptionalAction,
        help=f"random left-right and up-down flips; {recipes.describe_defaults('flips')}",
    )
    group.add_argument(
        "--turns",
        action=argparse.BooleanOptionalAction,
        help="random quarter turns: with flips, the eight symmetries of a square;"
        f" {recipes.describe_defaults('turns')}",
    )
    group.add_argument(
        "--light",
        type=cli.number(float, least=0, most=2),
        help="strength of random changes of brightness, contrast, colour and haze; 1 is much;"
        f" {recipes.describe_defaults('light')}",
    )


def add_machine_flags(group: flags.FlagGroup) -> None:
    """What it is computed with."""
    flags.add_device(group)
    flags.add_precision(group)
    flags.add_workers(group)
    group.add_argument("--compile", action="store_true", help="torch.compile the network")
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="the same numbers in each run on a GPU too, slower; a CPU needs no such flag",
    )


def add_run_flags(group: flags.FlagGroup) -> None:
    """Where the run lies, and how it is kept."""
    group.add_argument("--out", help="folder of the run; default: checkpoints/<arch>")
    group.add_argument("--run", nargs="?", action=RenamedFlag, help=argparse.SUPPRESS)
    group.add_argument(
        "--seed", type=cli.number(least=0), default=0, help="of all that is drawn at random"
    )
    group.add_argument("--resume", action="store_true", help="go on with the run if it has begun")
    group.add_argument(
        "--save-every",
        type=cli.number(least=1),
        default=None,
        metavar="STEPS",
        help="also save last.pth every so many steps",
    )
    group.add_argument(
        "--rehearse",
        type=cli.number(least=1),
        default=argparse.SUPPRESS,  # a run's files are to know nothing of it
        metavar="STEPS",
        help="time so many steps and batches of validation, print that as JSON, and write nothing",
    )
    group.add_argument(
        "--track",
        choices=tracking.TRACKERS,
        help="also show how the run goes in TensorBoard (the folder tensorboard/ of the run), or at"
        " Weights & Biases (recorded in wandb/ where there is no connection)",
    )


class RenamedFlag(argparse.Action):
    """--run of versions before 2: a name under checkpoints/, or a path."""

    def __init__(self, **options):
        super().__init__(**options, default=argparse.SUPPRESS)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | None,
        option_string: str | None = None,
    ):
        """End with a line that names the new flag."""
        parser.error("--run is now --out, a path: --out checkpoints/NAME instead of --run NAME")


def without_resume(argv: Sequence[str]) -> list[str]:
    """Give the flags as typed, but for --resume, which argparse takes shortened to --res, too."""
    is_resume = [word.startswith("--res") and "--resume".startswith(word) for word in argv]
    return [word for word, skip in zip(argv, is_resume, strict=True) if not skip]


def main(argv: Sequence[str] | None = None) -> None:
    """Train in a folder that no other process writes into meanwhile."""
    args = read_flags(argv)
    given = without_resume(sys.argv[1:] if argv is None else argv)
    with files.hold(args.out):
        if args.probe:
            probe_run(args, given)
        else:
            train_run(args, given)


def probe_run(args: argparse.Namespace, given: list[str]) -> None:
    """Open the data, compute what features are missing, fit the last layer, validate, save."""
    from dl_slicer.model import evaluation
    from dl_slicer.training import preparing, probes, runs, signals

    started = time.time()
    device, dtype = preparing.prepare_device(args)
    train, val = preparing.open_data(args.data)
    workers = args.workers if args.workers is not None else train.default_workers
    setup = evaluation.Setup(device, dtype, workers=workers)
    run = probes.begin_or_find(args, train, val, device, dtype)
    if not run.is_judged:
        stop = signals.catch_signals()
        runs.start_writing(run, given, device)
        run.say(preparing.describe(args, setup, train, val))
        if not probes.complete(run, train, val, setup, stop):
            run.say("stopped; the same command with --resume goes on with the features")
            raise SystemExit(1)
        runs.start_writing(run, given, device)
    run.say(
        f"{run.folder}: best.pth and last.pth are the probe"
        f" (val accuracy {run.best['val_accuracy']:.4f});"
        f" also log.csv, curves.png, config.json; {time.time() - started:.0f} s"
    )


def train_run(args: argparse.Namespace, given: list[str]) -> None:
    """Open the data, begin or resume the run, train it.

    given: the flags as they were typed.
    """
    # Here, since torch takes seconds to import, and a mistyped flag is told before.
    from dl_slicer import distributed
    from dl_slicer.model import evaluation
    from dl_slicer.training import preparing, rehearsal, runs, signals

    device, dtype = preparing.prepare_device(args)
    train, val = preparing.open_data(args.data)
    workers = args.workers if args.workers is not None else train.default_workers
    setup = evaluation.Setup(device, dtype, workers=workers)
    run = runs.begin_or_resume(args, train, val, device, dtype)
    stop = signals.catch_signals()
    network = preparing.trainable(run.model, device, args.compile)
    if "rehearse" in args:
        rehearsal.print_times(run, network, (train, val), setup, stop)
        distributed.leave()
        return
    runs.start_writing(run, given, device)
    run.say(preparing.describe(args, setup, train, val))

    started = time.time()
    with runs.watched(run, train):
        is_done = train_epochs(run, network, train, val, setup, stop)
        is_done = is_done and judge(run, train, val, setup, stop)
    if is_done:
        run.say(
            f"{run.folder}: best.pth is epoch {run.best['epoch']}"
            f" (val accuracy {run.best['val_accuracy']:.4f});"
            f" also last.pth, log.csv, curves.png, config.json; {time.time() - started:.0f} s"
        )
    distributed.leave()
    if not is_done:
        raise SystemExit(1)


def train_epochs(
    run: "Run",
    network: "Module",
    train: "PatchSet",
    val: "PatchSet",
    setup: "Setup",
    stop: Callable[[], bool],
) -> bool:
    """For each epoch that is left train, validate, save. Give False if stop() said True."""
    from dl_slicer import distributed
    from dl_slicer.training import epochs, history, orders

    args = run.args
    while run.epoch < args.epochs:
        order = orders.of_epoch(args, train, run.epoch)
        epochs.train_epoch(run, network, train, order, setup, stop)
        scores = None
        if run.step == len(order):
            scores = epochs.validate(run, val, setup, stop)
        if scores is None:  # a signal has come
            run.save("last.pth")
            run.say(
                f"stopped in epoch {run.epoch + 1} after step {run.step} of {len(order)};"
                " the same command with --resume goes on there"
            )
            return False
        is_best = run.finish_epoch(scores)
        # best.pth first: a run killed in between repeats the epoch and comes to the same best.pth.
        if is_best:
            run.save("best.pth", "last.pth")
        else:
            run.save("last.pth")
        if distributed.RANK == 0:
            history.write_history(run.folder, run.told_history)
        run.say(history.describe(run.history[-1], args.epochs, is_best))
    return True


def judge(
    run: "Run", train: "PatchSet", val: "PatchSet", setup: "Setup", stop: Callable[[], bool]
) -> bool:
    """Have both checkpoints learn how sure they should be. Give False if stop() said True."""
    from dl_slicer.training import certainty

    visits = certainty.visits_of(train, val, setup, stop)
    is_done = certainty.complete(run, train, val, visits, setup.device)
    if not is_done:
        run.say("stopped after the last epoch; the same command with --resume does what is left")
    return is_done


if __name__ == "__main__":
    cli.run(main, again="the same command with --resume")
