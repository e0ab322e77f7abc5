"""Recipes: sets of defaults of the flags that decide how a network is trained.

This module needs no torch, since the flags are read before torch is imported.
"""

from argparse import Namespace
from collections.abc import Collection

from dl_slicer.cli import InputError

# The choices of --optimizer. What each one is stands in optimisers.py, under the same name.
OPTIMISERS = ("adam", "adamw", "sgd")

# A flag that the user gives goes before its recipe.
RECIPES = {
    "published": {
        "optimizer": "adam",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "schedule": "constant",
        "average": 0.0,
        "label_smoothing": 0.0,
        "flips": True,
        "turns": False,
        "light": 0.0,
    },
    "robust": {
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.05,
        "schedule": "cosine",
        "average": 1.0,
        "label_smoothing": 0.1,
        "flips": True,
        "turns": True,
        "light": 0.3,
    },
}

# What --probe sets, and nobody else can: the last layer is fitted to the patches as they are.
PROBE = {
    "recipe": "probe",
    "epochs": 1,
    "batch_size": 0,  # all at once
    "optimizer": "lbfgs",
    "lr": 0.0,
    "weight_decay": 0.0,  # the penalty is chosen
    "schedule": "constant",
    "average": 0.0,
    "label_smoothing": 0.0,
    "flips": False,
    "turns": False,
    "light": 0.0,
    "balanced": True,
    "order": "random",  # none: no patch comes before another
    "buffer": None,
    "compile": False,
    "save_every": None,
    "track": None,
}


def set_defaults(args: Namespace) -> None:
    """Give the flags that the user left out the values of --recipe."""
    for setting, value in RECIPES[args.recipe].items():
        if getattr(args, setting) is None:
            setattr(args, setting, value)


def set_probe(args: Namespace, given: Collection[str]) -> None:
    """Give flags the values that they have with --probe.

    given: the names of those that the user typed. InputError if one of them means nothing then.
    """
    refused = [
        f"--{name.replace('_', '-')}"
        for name, value in PROBE.items()
        if name in given and getattr(args, name) != value
    ]
    if refused:
        raise InputError(
            f"--probe: {', '.join(refused)} would change nothing, since only the last layer is"
            " fitted, to the patches as they are; leave it out"
        )
    vars(args).update(PROBE)


def describe_defaults(setting: str) -> str:
    """Give a setting's default in each recipe, for --help."""
    values = {name: _as_typed(recipe[setting]) for name, recipe in RECIPES.items()}
    if len(set(values.values())) == 1:
        return f"default: {values['published']}"
    return "default: " + ", ".join(f"{value} ({name})" for name, value in values.items())


def _as_typed(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else value
