"""The files that the page is made from, read and checked.

This is the one place that refuses files: what is missing or damaged is told in one line
(InputError). Whatever fails afterwards, from data that were read here, is a fault of ours.
"""

import csv
import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from dl_slicer.cli import InputError, printable
from dl_slicer.report.records import (
    ROLES,
    City,
    ConfusedPair,
    Confusion,
    Epoch,
    Metrics,
    Neighbours,
    Pair,
    PatchSet,
    Picture,
    Portrait,
    Results,
    Training,
)

Row = TypeVar("Row")

LAST_EPOCH = 10**9
LARGEST_LOSS = 1e30
LONGEST_REASON = 200  # characters

TEST_AGAIN = "no whole results of test_classification.py ({}); run it again"
DO_WITHOUT = "damaged ({}); bring back a whole copy, or move it away: the report does without"
DAMAGE = (KeyError, ValueError, TypeError, OverflowError, RecursionError, csv.Error)


def read_results(folder: Path, run_folder: str | Path | None = None) -> Results:
    """Read what test_classification.py left in a folder, and the run that it measured.

    run_folder: where config.json and log.csv lie; else that of the checkpoint, or the one above
    `folder`. InputError names the file that is missing or damaged.
    """
    metrics = _read_json(folder / "metrics.json", _metrics, TEST_AGAIN)
    cities = _read_table(folder / "per_city.csv", _city, TEST_AGAIN)
    if not cities:
        raise _refusal(folder / "per_city.csv", TEST_AGAIN, "it names no city")
    run = _find_run(folder, metrics, run_folder)
    training = _if_there(run / "config.json", _read_json, _training, DO_WITHOUT)
    return Results(
        measured_at=(folder / "metrics.json").stat().st_mtime,
        metrics=metrics,
        cities=cities,
        confusion=_if_there(folder / "confusion_matrix.csv", _read_confusion),
        neighbours=_if_there(folder / "nearest.csv", _read_table, _neighbours, TEST_AGAIN) or [],
        pairs=_if_there(folder / "similarity.csv", _read_table, _pair, TEST_AGAIN) or [],
        similarity=_if_there(folder / "similarity.png", _read_png),
        reliability=_if_there(folder / "reliability.png", _read_png),
        portraits=_if_there(folder / "portraits" / "portraits.csv", _read_portraits) or [],
        training=training,
        log=_if_there(run / "log.csv", _read_table, _epoch, DO_WITHOUT) or [],
        patch_set=_read_patch_set(metrics.data),
        training_set=_read_patch_set(training.data) if training and training.data else None,
    )


def _find_run(folder: Path, metrics: Metrics, run_folder: str | Path | None) -> Path:
    if run_folder:
        return Path(run_folder)
    beside_checkpoint = Path(metrics.checkpoint).parent
    for run in (beside_checkpoint, folder.parent):
        if os.path.isfile(run / "config.json") or os.path.isfile(run / "log.csv"):
            return run
    return beside_checkpoint


def _if_there(path: Path, read: Callable, *arguments):
    # Not Path.is_file, which fails for a name that is too long.
    return read(path, *arguments) if os.path.isfile(path) else None


def _read_patch_set(data: str) -> PatchSet | None:
    return _if_there(Path(data) / "dataset.json", _read_json, _patch_set, DO_WITHOUT)


# Files


def _refusal(path: Path, remedy: str, reason: object) -> InputError:
    text = str(reason)
    if len(text) > LONGEST_REASON:
        text = f"{text[:LONGEST_REASON]} …"
    return InputError(f"{printable(path)}: {remedy.format(printable(text))}")


@contextmanager
def _refusing_damage(path: Path, remedy: str) -> Iterator[None]:
    """Turn what reading a damaged file raises into one line that names the file."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError("no file")
        yield
    except FileNotFoundError as error:
        raise _refusal(error.filename or path, remedy, "not there") from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise _refusal(path, remedy, error.strerror) from None
    except DAMAGE as error:
        missing = isinstance(error, KeyError)
        reason = f"it has no {error.args[0]}" if missing else error
        raise _refusal(path, remedy, reason) from None


def _read_json(path: Path, convert: Callable[[dict], Row], remedy: str) -> Row:
    with _refusing_damage(path, remedy):
        return convert(_mapping(json.loads(path.read_text(encoding="utf-8"))))


def _read_table(path: Path, convert: Callable[[dict], Row], remedy: str) -> list[Row]:
    """Each row by `convert`, which gets it as a dict of texts; refuses with the line's number."""
    with _refusing_damage(path, remedy), open(path, newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        rows = []
        for row in reader:
            try:
                if None in row or None in row.values():
                    raise ValueError("not as many fields as the header")
                rows.append(convert(row))
            except (ValueError, OverflowError) as error:
                raise ValueError(f"line {reader.line_num}: {error}") from None
        return rows


def _read_confusion(path: Path) -> Confusion:
    with (
        _refusing_damage(path, TEST_AGAIN),
        open(path, newline="", encoding="utf-8") as lines,
    ):
        header, *rows = csv.reader(lines)
        cities = header[1:]
        counts = [[_whole_number(value) for value in row[1:]] for row in rows]
        if not cities or [len(row) for row in counts] != [len(cities)] * len(cities):
            raise ValueError("not as many rows and columns as cities")
        return Confusion(cities, counts)


def _read_png(path: Path) -> Picture:
    with _refusing_damage(path, TEST_AGAIN):
        content = path.read_bytes()
        if not content.startswith(b"\x89PNG\r\n\x1a\n") or b"IEND" not in content[-12:]:
            raise ValueError("no whole PNG file")
        # The first chunk, IHDR, begins with both.
        width = int.from_bytes(content[16:20], "big")
        height = int.from_bytes(content[20:24], "big")
        return Picture(content, width, height)


def _read_portraits(path: Path) -> list[Portrait]:
    return _read_table(path, lambda row: _portrait(row, path.parent), TEST_AGAIN)


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
        epoch=_optional(_epoch_number, found.get("epoch")),
        tta=bool(found.get("tta")),
        n=_whole_number(found["n"]),
        n_rasters=_whole_number(found["n_rasters"]),
        accuracy=_optional(_number, found["accuracy"]),
        accuracy_ci95=_optional(_ends, found.get("accuracy_ci95")),
        interval=str(found.get("interval") or ""),
        top5_accuracy=_optional(_number, found["top5_accuracy"]),
        raster_accuracy=_optional(_number, found["raster_accuracy"]),
        balanced_accuracy=_optional(_number, found["balanced_accuracy"]),
        macro_f1=_optional(_number, found["macro_f1"]),
        ece=_optional(_number, found["ece"]),
        views_rank_correlation=_optional(_number, found.get("views_rank_correlation")),
        confused_pairs=[_confused_pair(pair) for pair in found.get("confused_pairs") or []],
        device=_optional(str, found.get("device")),
        precision=_optional(str, found.get("dtype")),
        versions=_mapping(found.get("versions", {})),
        patch_size=_optional(_whole_number, found.get("patch_size")),
        stride=_optional(_whole_number, found.get("stride")),
        image_size=_optional(_whole_number, found.get("image_size")),
        trained_stride=_optional(_whole_number, found.get("trained_stride")),
        allow_overlap=bool(found.get("allow_overlap")),
    )


def _confused_pair(found: dict) -> ConfusedPair:
    return ConfusedPair(
        a=str(found["a"]),
        b=str(found["b"]),
        n=_whole_number(found["n"]),
        share=_number(found["share"]),
        a_as_b=_whole_number(found["a_as_b"]),
        b_as_a=_whole_number(found["b_as_a"]),
    )


def _city(row: dict[str, str]) -> City:
    ends = (row["ci95_low"], row["ci95_high"])
    return City(
        city=row["city"],
        n=_whole_number(row["n"]),
        rasters=_whole_number(row["rasters"]),
        accuracy=_optional(_number, row["accuracy"]),
        ci95=None if ends == ("", "") else _ends(ends),
        interval=row.get("interval") or "none",
        precision=_optional(_number, row["precision"]),
        f1=_optional(_number, row["f1"]),
        most_confused_with=row["most_confused_with"],
    )


def _neighbours(row: dict[str, str]) -> Neighbours:
    def three(view: str) -> list[str]:
        return [city for i in (1, 2, 3) if (city := row[f"{view}_{i}"])]

    return Neighbours(row["city"], three("confusion"), three("features"), row["views"])


def _pair(row: dict[str, str]) -> Pair:
    confusion = _optional(_number, row["confusion"])
    features = _optional(_number, row["features"])
    return Pair(row["a"], row["b"], confusion, features)


def _portrait(row: dict[str, str], folder: Path) -> Portrait:
    if row["role"] not in ROLES:
        raise ValueError(f"unknown role {row['role']!r}")
    return Portrait(
        city=row["city"],
        role=row["role"],
        true=row["true"],
        explained=row["explained"],
        probability=_number(row["probability"]),
        available=_whole_number(row["available"]),
        tile=_read_tile(folder, row["tile"]),
        side=_whole_number(row["side"]),
    )


def _epoch(row: dict[str, str]) -> Epoch:
    return Epoch(
        epoch=_epoch_number(row["epoch"]),
        train_loss=_loss(row["train_loss"]),
        train_accuracy=_number(row["train_accuracy"]),
        val_loss=_loss(row["val_loss"]),
        val_accuracy=_number(row["val_accuracy"]),
    )


def _training(found: dict) -> Training:
    given = found.get("given")
    if given is not None and not _is_list_of_texts(given):
        raise ValueError("given: not a list of flags")
    data_set = _mapping(found.get("data_set", {}))
    return Training(
        settings=found,
        given=given,
        data=_optional(str, found.get("data")),
        versions=_mapping(found.get("versions", {})),
        cities=len(data_set.get("classes") or []),
        train=_whole_number(data_set.get("train") or 0),
        val=_whole_number(data_set.get("val") or 0),
        patch_size=_optional(_whole_number, data_set.get("patch_size")),
        stride=_optional(_whole_number, data_set.get("stride")),
        image_size=_optional(_whole_number, data_set.get("image_size")),
    )


VIEW = ("ground_resolution", "bands", "stretch", "crs", "max_nodata")
SWITCHES = ("mosaic", "allow_overlap")
USUAL_MAX_NODATA = 0.05


def _flags_of_rasters(found: dict) -> tuple[str, ...]:
    """How rasters were arranged and seen, as flags of preprocessing.py; none of what is usual."""
    words = []
    if found.get("sites") is not None:
        words += ["--sites", str(_whole_number(found["sites"]))]
    for key in SWITCHES:
        if found.get(key) is True:
            words.append(f"--{key.replace('_', '-')}")
    for key in VIEW:
        value = found.get(key)
        if value is None or (key == "max_nodata" and value == USUAL_MAX_NODATA):
            continue
        parts = value if isinstance(value, list) else [value]
        words.append(f"--{key.replace('_', '-')}")
        words += [part if isinstance(part, str) else f"{_number(part):.15g}" for part in parts]
    return tuple(words)


def _patch_set(found: dict) -> PatchSet:
    counts = _mapping(found.get("counts", {}))

    def patches(split: str) -> int:
        by_city = _mapping(counts.get(split, {}))
        return sum(_whole_number(number) for number in by_city.values())

    return PatchSet(
        raw=str(found["raw"]),
        patch_size=_whole_number(found["patch_size"]),
        stride=_whole_number(found["stride"]),
        image_size=_whole_number(found["image_size"]),
        test_b=_optional(_whole_number, found.get("test_b")),
        seed=_optional(_whole_number, found.get("seed")),
        cities=len(found["classes"]),
        train=patches("train"),
        val=patches("val"),
        held_out_distance={
            city: _number(metres)
            for city, metres in _mapping(found.get("held_out_distance", {})).items()
        },
        seen=_flags_of_rasters(found),
    )


# Values


def _optional(convert: Callable, value: object):
    """None for an empty field or null."""
    return None if value in ("", None) else convert(value)


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value}: not a finite number")
    return number


def _whole_number(value: Any) -> int:
    number = int(value)
    if number < 0:
        raise ValueError(f"{value}: below 0")
    return number


def _epoch_number(value: Any) -> int:
    number = _whole_number(value)
    if number > LAST_EPOCH:
        raise ValueError(f"{value}: no number of an epoch")
    return number


def _loss(value: Any) -> float:
    """A number, infinite where training has gone astray: also a loss that no chart can hold."""
    loss = float(value)
    return math.copysign(math.inf, loss) if abs(loss) > LARGEST_LOSS else loss


def _ends(values: Any) -> tuple[float, float]:
    low, high = values
    return _number(low), _number(high)


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _mapping(value: Any) -> dict:
    if not isinstance(value, Mapping):
        raise ValueError(f"{str(value)[:40]!r}: not a mapping of names to values")
    return dict(value)
