"""Recipes: sets of defaults. This module needs no torch."""

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
