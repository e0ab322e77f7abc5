"""Schedules of the learning rate. This module needs no torch.

To add one, write a function of the share of the training that is done (0 ... 1) which gives the
share of --lr to train with, and name it in SCHEDULES: --schedule then offers it.
"""

import math
from argparse import Namespace

WARM_UP = 0.1  # share of the training in which the learning rate rises


def constant(done: float) -> float:
    """The highest rate from beginning to end."""
    return 1.0


def cosine(done: float) -> float:
    """A linear warm-up, then half a cosine down to 0 (Loshchilov and Hutter, ICLR 2017)."""
    if done < WARM_UP:
        return done / WARM_UP
    return (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2


SCHEDULES = {"constant": constant, "cosine": cosine}  # the choices of --schedule


def learning_rate(args: Namespace, epochs_done: float) -> float:
    """Give the learning rate after so many epochs.

    args: the flags lr (the highest rate), schedule and epochs.
    epochs_done: with its fraction, so that the rate changes from step to step.
    """
    return args.lr * SCHEDULES[args.schedule](epochs_done / args.epochs)
