"""Optimisers, schedules and averages of weights."""

import math

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

WARM_UP = 0.1  # share of the steps in which the learning rate rises, with --schedule cosine


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
