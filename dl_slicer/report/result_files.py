"""The files that the page is made from, read and checked.

This, with file_reading, is the place that refuses files: what is missing or damaged is told in one
line (InputError). Whatever fails afterwards, from data that were read here, is a fault of ours.
"""

import csv
import math
import os
from pathlib import Path
from typing import Any

from dl_slicer.report.cues_files import read_cues
from dl_slicer.report.file_reading import (
    ends,
    if_there,
    mapping,
    number,
    optional,
    read_json,
    read_table,
    refusal,
    refusing_damage,
    whole_number,
)
from dl_slicer.report.records import (
    ROLES,
    City,
    ConfusedPair,
    Confusion,
    Epoch,
    HowSure,
    Metrics,
    Neighbours,
    Pair,
    PatchSet,
    Picture,
    Portrait,
    Results,
    Training,
)

LAST_EPOCH = 10**9
LARGEST_LOSS = 1e30

TEST_AGAIN = "no whole results of test_classification.py ({}); run it again"
DO_WITHOUT = "damaged ({}); bring back a whole copy, or move it away: the report does without"


def read_results(folder: Path, run_folder: str | Path | None = None) -> Results:
    """Read what test_classification.py left in a folder, and the run that it measured.

    run_folder: where config.json and log.csv lie; else that of the checkpoint, or the one above
    `folder`. InputError names the file that is missing or damaged.
    """
    metrics = read_json(folder / "metrics.json", _metrics, TEST_AGAIN)
    cities = read_table(folder / "per_city.csv", _city, TEST_AGAIN)
    if not cities:
        raise refusal(folder / "per_city.csv", TEST_AGAIN, "it names no city")
    run = _find_run(folder, metrics, run_folder)
    training = if_there(run / "config.json", read_json, _training, DO_WITHOUT)
    return Results(
        measured_at=(folder / "metrics.json").stat().st_mtime,
        metrics=metrics,
        cities=cities,
        confusion=if_there(folder / "confusion_matrix.csv", read_confusion),
        neighbours=if_there(folder / "nearest.csv", read_table, _neighbours, TEST_AGAIN) or [],
        pairs=if_there(folder / "similarity.csv", read_table, _pair, TEST_AGAIN) or [],
        similarity=if_there(folder / "similarity.png", read_png),
        reliability=if_there(folder / "reliability.png", read_png),
        portraits=if_there(folder / "portraits" / "portraits.csv", _read_portraits) or [],
        training=training,
        log=if_there(run / "log.csv", read_table, _epoch, DO_WITHOUT) or [],
        patch_set=_read_patch_set(metrics.data),
        training_set=_read_patch_set(training.data) if training and training.data else None,
        has_logits=(folder / "logits.npy").is_file(),
        cues=if_there(folder / "cues.csv", read_cues),
        cues_picture=if_there(folder / "cues.png", read_png),
    )


def _find_run(folder: Path, metrics: Metrics, run_folder: str | Path | None) -> Path:
    if run_folder:
        return Path(run_folder)
    beside_checkpoint = Path(metrics.checkpoint).parent
    for run in (beside_checkpoint, folder.parent):
        if os.path.isfile(run / "config.json") or os.path.isfile(run / "log.csv"):
            return run
    return beside_checkpoint


def _read_patch_set(data: str) -> PatchSet | None:
    return if_there(Path(data) / "dataset.json", read_json, _patch_set, DO_WITHOUT)


# Files


def read_confusion(path: Path) -> Confusion:
    """Read confusion_matrix.csv."""
    with (
        refusing_damage(path, TEST_AGAIN),
        open(path, newline="", encoding="utf-8") as lines,
    ):
        header, *rows = csv.reader(lines)
        cities = header[1:]
        counts = [[whole_number(value) for value in row[1:]] for row in rows]
        if not cities or [len(row) for row in counts] != [len(cities)] * len(cities):
            raise ValueError("not as many rows and columns as cities")
        return Confusion(cities, counts)


def read_png(path: Path) -> Picture:
    """Read a PNG file as it is, with its size."""
    with refusing_damage(path, TEST_AGAIN):
        content = path.read_bytes()
        if not content.startswith(b"\x89PNG\r\n\x1a\n") or b"IEND" not in content[-12:]:
            raise ValueError("no whole PNG file")
        # The first chunk, IHDR, begins with both.
        width = int.from_bytes(content[16:20], "big")
        height = int.from_bytes(content[20:24], "big")
        return Picture(content, width, height)


def _read_portraits(path: Path) -> list[Portrait]:
    return read_table(path, lambda row: _portrait(row, path.parent), TEST_AGAIN)


def _read_tile(folder: Path, name: str) -> bytes:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"the tile {name} lies outside {folder}")
    content = path.read_bytes()
    if not content.startswith(b"\xff\xd8\xff") or not content.endswith(b"\xff\xd9"):
        raise ValueError(f"the tile {name} is no whole JPEG file")
    return content


# What the files hold


def _metrics(found: dict) -> Metrics:
    return Metrics(
        arch=str(found.get("arch", "")),
        split=str(found["split"]),
        checkpoint=str(found["checkpoint"]),
        data=str(found["data"]),
        epoch=optional(_epoch_number, found.get("epoch")),
        tta=bool(found.get("tta")),
        n=whole_number(found["n"]),
        n_rasters=whole_number(found["n_rasters"]),
        accuracy=optional(number, found["accuracy"]),
        accuracy_ci95=optional(ends, found.get("accuracy_ci95")),
        interval=str(found.get("interval") or ""),
        top5_accuracy=optional(number, found["top5_accuracy"]),
        raster_accuracy=optional(number, found["raster_accuracy"]),
        balanced_accuracy=optional(number, found["balanced_accuracy"]),
        macro_f1=optional(number, found["macro_f1"]),
        ece=optional(number, found["ece"]),
        views_rank_correlation=optional(number, found.get("views_rank_correlation")),
        confused_pairs=[_confused_pair(pair) for pair in found.get("confused_pairs") or []],
        device=optional(str, found.get("device")),
        precision=optional(str, found.get("dtype")),
        versions=mapping(found.get("versions", {})),
        patch_size=optional(whole_number, found.get("patch_size")),
        stride=optional(whole_number, found.get("stride")),
        image_size=optional(whole_number, found.get("image_size")),
        trained_stride=optional(whole_number, found.get("trained_stride")),
        allow_overlap=bool(found.get("allow_overlap")),
        temperature=optional(_temperature, found.get("temperature")),
        ece_untempered=optional(number, found.get("ece_untempered")),
        raster_accuracy_untempered=optional(number, found.get("raster_accuracy_untempered")),
    )


def _temperature(value: Any) -> float:
    found = number(value)
    if found <= 0:
        raise ValueError(f"temperature: {value}")
    return found


def _confused_pair(found: dict) -> ConfusedPair:
    return ConfusedPair(
        a=str(found["a"]),
        b=str(found["b"]),
        n=whole_number(found["n"]),
        share=number(found["share"]),
        a_as_b=whole_number(found["a_as_b"]),
        b_as_a=whole_number(found["b_as_a"]),
    )


def _city(row: dict[str, str]) -> City:
    interval = (row["ci95_low"], row["ci95_high"])
    return City(
        city=row["city"],
        n=whole_number(row["n"]),
        rasters=whole_number(row["rasters"]),
        accuracy=optional(number, row["accuracy"]),
        ci95=None if interval == ("", "") else ends(interval),
        interval=row.get("interval") or "none",
        precision=optional(number, row["precision"]),
        f1=optional(number, row["f1"]),
        most_confused_with=row["most_confused_with"],
    )


def _neighbours(row: dict[str, str]) -> Neighbours:
    def three(view: str) -> list[str]:
        return [city for i in (1, 2, 3) if (city := row[f"{view}_{i}"])]

    return Neighbours(
        row["city"],
        three("confusion"),
        three("features"),
        row["views"],
        _how_sure(row, "confusion"),
        _how_sure(row, "features"),
    )


def _how_sure(row: dict[str, str], view: str) -> HowSure:
    """Read what results of before do not say."""
    told = row.get(f"{view}_told_apart") or ""
    if told not in ("", "yes", "no", "one raster"):
        raise ValueError(f"{view}_told_apart: {told!r}")
    return HowSure(optional(number, row.get(f"{view}_1_share") or ""), told)


def _pair(row: dict[str, str]) -> Pair:
    confusion = optional(number, row["confusion"])
    features = optional(number, row["features"])
    return Pair(row["a"], row["b"], confusion, features)


def _portrait(row: dict[str, str], folder: Path) -> Portrait:
    if row["role"] not in ROLES:
        raise ValueError(f"unknown role {row['role']!r}")
    return Portrait(
        city=row["city"],
        role=row["role"],
        true=row["true"],
        explained=row["explained"],
        probability=number(row["probability"]),
        available=whole_number(row["available"]),
        tile=_read_tile(folder, row["tile"]),
        side=whole_number(row["side"]),
    )


def _epoch(row: dict[str, str]) -> Epoch:
    return Epoch(
        epoch=_epoch_number(row["epoch"]),
        train_loss=_loss(row["train_loss"]),
        train_accuracy=number(row["train_accuracy"]),
        val_loss=_loss(row["val_loss"]),
        val_accuracy=number(row["val_accuracy"]),
    )


def _training(found: dict) -> Training:
    given = found.get("given")
    if given is not None and not _is_list_of_texts(given):
        raise ValueError("given: not a list of flags")
    data_set = mapping(found.get("data_set", {}))
    return Training(
        settings=found,
        given=given,
        data=optional(str, found.get("data")),
        versions=mapping(found.get("versions", {})),
        cities=len(data_set.get("classes") or []),
        train=whole_number(data_set.get("train") or 0),
        val=whole_number(data_set.get("val") or 0),
        patch_size=optional(whole_number, data_set.get("patch_size")),
        stride=optional(whole_number, data_set.get("stride")),
        image_size=optional(whole_number, data_set.get("image_size")),
    )


VIEW = ("ground_resolution", "bands", "stretch", "crs", "max_nodata")
SWITCHES = ("mosaic", "allow_overlap")
USUAL_MAX_NODATA = 0.05


def _flags_of_rasters(found: dict) -> tuple[str, ...]:
    """How rasters were arranged and seen, as flags of preprocessing.py; none of what is usual."""
    words = []
    if found.get("sites") is not None:
        words += ["--sites", str(whole_number(found["sites"]))]
    for key in SWITCHES:
        if found.get(key) is True:
            words.append(f"--{key.replace('_', '-')}")
    for key in VIEW:
        value = found.get(key)
        if value is None or (key == "max_nodata" and value == USUAL_MAX_NODATA):
            continue
        parts = value if isinstance(value, list) else [value]
        words.append(f"--{key.replace('_', '-')}")
        words += [part if isinstance(part, str) else f"{number(part):.15g}" for part in parts]
    return tuple(words)


def _origin_of_val(value: Any) -> str:
    if value not in ("half", "site"):
        raise ValueError(f"val: {str(value)[:40]}")
    return value


def _patch_set(found: dict) -> PatchSet:
    counts = mapping(found.get("counts", {}))

    def patches(split: str) -> int:
        by_city = mapping(counts.get(split, {}))
        return sum(whole_number(count) for count in by_city.values())

    return PatchSet(
        raw=str(found["raw"]),
        patch_size=whole_number(found["patch_size"]),
        stride=whole_number(found["stride"]),
        image_size=whole_number(found["image_size"]),
        test_b=optional(whole_number, found.get("test_b")),
        seed=optional(whole_number, found.get("seed")),
        cities=len(found["classes"]),
        train=patches("train"),
        val=patches("val"),
        held_out_distance={
            city: number(metres)
            for city, metres in mapping(found.get("held_out_distance", {})).items()
        },
        held_out=whole_number(found.get("held_out", 1)),
        val_from=_origin_of_val(found.get("val", "half")),
        train_sites=optional(whole_number, found.get("train_sites")),
        seen=_flags_of_rasters(found),
    )


# Values


def _epoch_number(value: Any) -> int:
    epoch = whole_number(value)
    if epoch > LAST_EPOCH:
        raise ValueError(f"{value}: no number of an epoch")
    return epoch


def _loss(value: Any) -> float:
    """A number, infinite where training has gone astray: also a loss that no chart can hold."""
    loss = float(value)
    return math.copysign(math.inf, loss) if abs(loss) > LARGEST_LOSS else loss


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
