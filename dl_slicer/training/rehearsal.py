"""A rehearsal of a run: its first steps, timed as the loop does them. Nothing is written.

It runs in a process of its own, so that threads, memory and precision are those of the run. What
the run would refuse (weights that cannot be had, other flags than those it began with, too large a
batch) it refuses here, before anything has been trained.
"""

import json
import time
from collections.abc import Callable

import torch
from torch import nn

from dl_slicer import distributed
from dl_slicer.distributed import WORLD
from dl_slicer.model import evaluation
from dl_slicer.model.evaluation import Setup
from dl_slicer.patch_sets.reading import PatchSet
from dl_slicer.training import epochs, orders
from dl_slicer.training.runs import Run

WARM_UP = 5  # steps that are not timed: they get memory, and choose among kernels

Stop = Callable[[], bool]


def print_times(
    run: Run, network: nn.Module, patches: tuple[PatchSet, PatchSet], setup: Setup, stop: Stop
) -> None:
    """Print what the run takes, as a line of JSON.

    seconds_a_step: of training; steps: of an epoch; seconds_of_validation: of all val patches, by
    the first batches of them; processes.
    network: run.model as preparing.trainable gives it. patches: of train and of val.
    SystemExit, and nothing is printed, once stop() says True.
    """
    train, val = patches
    args = run.args
    wanted = args.rehearse
    run.step = 0
    args.save_every = None  # nothing is saved
    order = orders.of_epoch(args, train, run.epoch)
    moments = [time.perf_counter()]
    ends = _note_moments(moments, min(wanted, len(order)), setup, stop)
    epochs.train_epoch(run, network, train, order, setup, ends)
    seconds_a_step = _seconds_a_turn(moments)

    size = evaluation.batch_size(setup.device) * WORLD
    turns = -(-len(val) // size)
    moments = [time.perf_counter()]
    ends = _note_moments(moments, min(wanted, turns), setup, stop)
    evaluation.score(run.result, val, setup, "validation", ends)
    if stop():
        distributed.leave()
        raise SystemExit(1)
    times = {
        "seconds_a_step": seconds_a_step,
        "steps": len(order),
        "seconds_of_validation": turns * _seconds_a_turn(moments),
        "processes": WORLD,
    }
    distributed.print_once(json.dumps(times))


def _note_moments(moments: list[float], turns: int, setup: Setup, stop: Stop) -> Stop:
    """Give a function that is asked after each turn, notes when that was, and ends the last one.

    moments: holds the time of the start, and nothing else yet.
    """

    def ends() -> bool:
        # A GPU is waited for where the time is taken, and nowhere else, as in training.
        if setup.device.type == "cuda" and len(moments) in (_warm_up(turns), turns):
            torch.cuda.synchronize(setup.device)
        moments.append(time.perf_counter())
        return stop() or len(moments) > turns

    return ends


def _warm_up(turns: int) -> int:
    return min(WARM_UP, turns // 2)


def _seconds_a_turn(moments: list[float]) -> float:
    turns = len(moments) - 1
    first = _warm_up(turns)
    return (moments[-1] - moments[first]) / max(1, turns - first)
