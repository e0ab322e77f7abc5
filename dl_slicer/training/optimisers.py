"""Optimisers: how the weights follow the gradients.

To add one, write a function like those below, name it in OPTIMISERS, and name it in
recipes.OPTIMISERS, too, from where --optimizer takes its choices without importing torch.
"""

from argparse import Namespace

import torch
from torch import nn
from torch.optim import Optimizer

from dl_slicer.training import recipes

MOMENTUM = 0.9  # of sgd


def adam(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """Adam, as published: weight decay is a part of the gradient."""
    return torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)


def adamw(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """Adam with weight decay apart from the gradient (Loshchilov and Hutter, ICLR 2019)."""
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)


def sgd(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """Stochastic gradient descent with momentum."""
    return torch.optim.SGD(
        model.parameters(), lr=lr, momentum=MOMENTUM, weight_decay=weight_decay, fused=True
    )


OPTIMISERS = {"adam": adam, "adamw": adamw, "sgd": sgd}


def make_optimizer(args: Namespace, model: nn.Module) -> Optimizer:
    """Give the optimiser of a model. args: the flags optimizer, lr and weight_decay."""
    if args.optimizer == recipes.PROBE["optimizer"]:
        # Which stands in logistic.py: this one moves nothing.
        return torch.optim.SGD(model.fc.parameters(), lr=0.0)
    return OPTIMISERS[args.optimizer](model, args.lr, args.weight_decay)
