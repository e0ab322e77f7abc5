"""Recipes: sets of defaults of the flags that decide how a network is trained.

This module needs no torch, since the flags are read before torch is imported.
"""

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
