"""The command lines that make the patch set, the network and the results again."""

import os
import shlex
from pathlib import Path

from dl_slicer.report.records import Metrics, PatchSet, Results, Training

# What config.json says besides the flags of train_classification.py.
NO_FLAGS = (
    "given",
    "dtype",
    "data_set",
    "device_name",
    "threads",
    "processes",
    "versions",
)
# Flags that are given or not; all others that hold true or false have a form --no-... .
SWITCHES = ("compile", "deterministic")

Command = list[str]


def commands(results: Results) -> list[Command]:
    """Give the commands in the order of the work, each as words fit for a shell.

    What is not known (a patch set's or the training's settings) has no command.
    """
    found = []
    # Sets of --curve are cut from others by cross_validation: no command of their own makes them.
    if results.training and results.training_set and not results.training_set.train_sites:
        training = results.training
        found.append(_preprocessing(training.data, results.training_set, training))
    if results.patch_set and not results.patch_set.train_sites:
        preprocessing = _preprocessing(results.metrics.data, results.patch_set, results.metrics)
        if preprocessing not in found:
            found.append(preprocessing)
    if results.training:
        found.append(["python", "train_classification.py", *_training_flags(results.training)])
    found.append(_test(results))
    found.append(["python", "-m", "relevance_cam", *_measured_on(results.metrics)])
    return [[shlex.quote(word) for word in words] for words in found]


def _preprocessing(data: str, patch_set: PatchSet, used: Training | Metrics) -> Command:
    """used: by whom; its sizes are right if the set was made anew since."""
    raw = os.path.normpath(Path(data, patch_set.raw))
    words = ["python", "preprocessing.py", "--raw", raw, "--out", os.path.normpath(data)]
    flags = {
        "--patch-size": used.patch_size or patch_set.patch_size,
        "--stride": used.stride or patch_set.stride,
        "--image-size": used.image_size or patch_set.image_size,
        "--test-b": patch_set.test_b,
        "--seed": patch_set.seed,
    }
    for flag, value in flags.items():
        if value is not None:
            words += [flag, str(value)]
    if patch_set.held_out != 1:
        words += ["--held-out", str(patch_set.held_out)]
    if patch_set.val_from != "half":
        words += ["--val", patch_set.val_from]
    return [*words, *patch_set.seen]


def _training_flags(training: Training) -> Command:
    """The flags that were given; all settings where a run did not write down which were."""
    if training.given is not None:
        return training.given
    words = []
    for key, value in training.settings.items():
        if key not in NO_FLAGS:
            words += _flag(key, value)
    return words


def _flag(key: str, value: object) -> Command:
    if key == "run":
        # Runs of before there was --out: a bare name stood for a folder under checkpoints.
        key = "out"
        if value is not None and os.sep not in str(value):
            value = os.path.join("checkpoints", str(value))
    flag = "--" + key.replace("_", "-")
    if value is None or isinstance(value, dict):
        return []
    if isinstance(value, bool):
        if key in SWITCHES:
            return [flag] if value else []
        return [flag if value else "--no-" + flag.removeprefix("--")]
    values = value if isinstance(value, list) else [value]
    return [flag, *map(str, values)]


def _test(results: Results) -> Command:
    given = {"--tta": results.metrics.tta, "--cues": results.cues, "--logits": results.has_logits}
    words = ["python", "test_classification.py", *_measured_on(results.metrics)]
    return words + [flag for flag, value in given.items() if value]


def _measured_on(metrics: Metrics) -> Command:
    return [
        "--checkpoint",
        metrics.checkpoint,
        "--data",
        metrics.data,
        "--split",
        metrics.split,
    ]
