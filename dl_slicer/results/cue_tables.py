"""What a network goes by, as tables: cues.csv, controls.json and colour_alone.csv, and a figure."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dl_slicer.files import atomic, write_rows
from dl_slicer.results import (
    alterations,
    colour_alone,
    cue_plots,
    exchanged_sites,
    intervals,
    refitting,
)
from dl_slicer.results.cues import SEED, Cues, Measured
from dl_slicer.results.paired_intervals import paired_interval
from dl_slicer.results.tables import Predictions, write_dicts

UNALTERED = "unaltered"


def write_cues(out: Path, cues: Cues | None, predictions: Predictions) -> None:
    """Write cues.csv, controls.json, colour_alone.csv and cues.png and .pdf into a folder.

    Nothing without cues, that is, where --cues was not asked for. predictions: of the measured
    patches as they are. Then print what was found.
    """
    if cues is None:
        return
    rows = list(cue_rows(cues, predictions))
    model = colour_alone.fit(cues.train_colours, cues.colour_sample)
    by_colour = model.classify(cues.colours)
    controls = {
        "n": len(predictions.true),
        "n_rasters": rows[0]["n_rasters"],
        "accuracy": rows[0]["accuracy"],
        "colour_alone": compare_with_colour(predictions, by_colour)
        | {
            "penalty": model.penalty,
            "left_out": model.units,
            "train_patches": len(cues.colour_sample.rows),
        },
        "exchanged": describe_exchanged(cues, predictions),
        "refit": {
            "train_patches": len(cues.refit_sample.rows),
            "penalties": list(refitting.PENALTIES),
            "left_out": cues.refit_sample.units,
        },
        "metres_a_pixel": cues.metres_a_pixel,
        "metres_assumed": cues.is_assumed,
        "seed": SEED,
    }
    write_dicts(out / "cues.csv", rows)
    classes = predictions.classes
    write_rows(
        out / "colour_alone.csv",
        ("patch", "predicted"),
        ((name, classes[k]) for name, k in zip(predictions.names, by_colour, strict=True)),
    )
    with atomic(out / "controls.json", "w", encoding="utf-8") as file:
        json.dump(controls, file, indent=1, ensure_ascii=False, allow_nan=False)
    cue_plots.draw_cues(out / "cues", rows, controls)
    print_cues(rows, controls)


def cue_rows(cues: Cues, predictions: Predictions) -> Iterator[dict]:
    """Give the rows of cues.csv: its columns are the keys of the dict below.

    The first row is of the patches as they are. accuracy: 0 .. 1 of the network as it is;
    difference: from the patches as they are, with its 95 % interval over rasters (low, high: empty
    where there is one raster only); refitted_...: the same with the last layer fitted anew for such
    patches, beside the last layer fitted anew for patches as they are.
    """
    yield _row(cues, predictions, "nothing", UNALTERED, cues.unaltered)
    for cue, name in alterations.LISTED:
        yield _row(cues, predictions, cue, name, cues.altered[name])


def _row(cues: Cues, predictions: Predictions, cue: str, name: str, found: Measured) -> dict:
    true = predictions.true
    right = found.shown == true
    refitted_right = found.refitted == true
    pixels = alterations.size_in_pixels(name, cues.image_size)
    metres = None if pixels is None else pixels * cues.metres_a_pixel
    parameter = alterations.PARAMETERS.get(name)
    row = {"cue": cue, "altered": name, "parameter": parameter, "metres": metres}
    pairs = (
        ("", right, cues.unaltered.shown == true),
        ("refitted_", refitted_right, cues.unaltered.refitted == true),
    )
    for prefix, altered, as_it_is in pairs:
        difference, interval = paired_interval(
            true, altered, as_it_is, predictions.rasters, len(predictions.classes)
        )
        low, high = interval or (None, None)
        is_compared = name != UNALTERED
        row |= {
            f"{prefix}accuracy": float(altered.mean()),
            f"{prefix}difference": difference if is_compared else None,
            f"{prefix}low": low if is_compared else None,
            f"{prefix}high": high if is_compared else None,
        }
    words = "as they are" if name == UNALTERED else alterations.describe(cue, name, pixels, metres)
    row |= {
        "n_rasters": len(intervals.group_by_raster(true, predictions.rasters)[1]),
        "description": words,
        "refitted_penalty": found.penalty,
    }
    return row


def compare_with_colour(predictions: Predictions, by_colour: np.ndarray) -> dict:
    """Say how good colour alone is, and how much better the network is; shares, 95 % intervals.

    by_colour: (N,) the class that colour alone takes each patch for.
    """
    true = predictions.true
    cities = len(predictions.classes)
    right = by_colour == true
    own, _ = intervals.accuracy_intervals(true, right, predictions.rasters, cities)
    difference, interval = paired_interval(
        true, predictions.predicted == true, right, predictions.rasters, cities
    )
    return {
        "accuracy": float(right.mean()),
        "interval": own,
        "difference": difference,
        "difference_interval": interval,
    }


def describe_exchanged(cues: Cues, predictions: Predictions) -> dict:
    """Give what controls.json says of the accuracies that exchanged names of sites give."""
    found = exchanged_sites.exchange_sites(
        predictions.true, predictions.predicted, cues.sites, len(predictions.classes)
    )
    return found._asdict()


def print_cues(rows: Sequence[dict], controls: Mapping) -> None:
    """Print a line for each way in which the patches were shown, and one for each control."""
    print(f"\nwhat it goes by: patches{'':<52}as it is %  fitted anew %")
    for row in rows:
        shown = 100 * row["accuracy"]
        refitted = 100 * row["refitted_accuracy"]
        print(f"  {row['description']:<74}{shown:>8.1f}{refitted:>15.1f}")
    colour = controls["colour_alone"]
    ends = colour["difference_interval"]
    interval = f" (95 %: {100 * ends[0]:.1f} to {100 * ends[1]:.1f})" if ends else ""
    exchanged = controls["exchanged"]
    print(
        f"colour alone {100 * colour['accuracy']:.1f} %: the network is better by"
        f" {100 * colour['difference']:.1f} points{interval}\n"
        f"sites exchanged: median {100 * exchanged['median']:.1f} %, 95th percentile"
        f" {100 * exchanged['p95']:.1f} %; 1/K {100 * exchanged['chance']:.1f} %"
    )
