"""Networks that the authors published: which files hold them, and what they are measured on."""

import re
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dl_slicer.cli import InputError, printable, say
from dl_slicer.hub.layout import is_junk
from dl_slicer.model.weight_files import Model, describe
from dl_slicer.patch_sets.reading import open_split
from dl_slicer.results.known_patches import find_published

# What results say that they were measured on.
PUBLISHED = "published test_b"
OF_THIS_SET = "test_b of this set"
PERHAPS_TRAINED_ON = f"{OF_THIS_SET}; test sites may have been in its training"

SAYS_BEST = 0
SAYS_NEITHER = 1
SAYS_LAST = 2


class AuthorsModel(NamedTuple):
    """A network of others, one an architecture."""

    arch: str
    checkpoint: Path


class MeasuredOn(NamedTuple):
    """What a network is measured on."""

    data: Path
    split: str
    words: str  # PUBLISHED, OF_THIS_SET or PERHAPS_TRAINED_ON


def list_authors_models(models: str | Path, classes: int | None = None) -> list[AuthorsModel]:
    """Give the networks of others in and below a folder: one an architecture, the smallest first.

    They are known by their content, whatever files are called. Of several of one architecture that
    is taken which its name calls the best. classes: how many cities are told apart; a network of
    another number is none of these. What is taken and what is passed over is said on stdout, a
    line each.
    InputError if there is no such folder.
    """
    models = Path(models)
    if not models.is_dir():
        raise InputError(
            f"--models {printable(models)}: no such folder; fetch the authors' models with"
            f" python data/fetch.py --what models --out {printable(models)}"
        )
    by_arch: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(models.rglob("*")):
        inside = PurePosixPath(path.relative_to(models).as_posix())
        if is_junk(inside) or not path.is_file():
            continue
        model = describe(path)
        if model is None:
            continue
        fault = model if isinstance(model, str) else _why_not_theirs(model, classes)
        if fault:
            say(f"{printable(path)}: not measured: {fault}")
        else:
            by_arch[model.arch].append(path)
    archs = sorted(by_arch, key=lambda arch: int(arch.removeprefix("resnet")))
    return [_choose(arch, by_arch[arch], models) for arch in archs]


def _why_not_theirs(model: Model, classes: int | None) -> str | None:
    if model.is_ours:
        return "made by train_classification.py, not by the authors"
    if classes not in (None, model.classes):
        return f"it tells {model.classes} classes apart, there are {classes} cities"
    return None


def _choose(arch: str, paths: list[Path], models: Path) -> AuthorsModel:
    """Choose the file of an architecture that is measured."""
    ranks = {path: _rank(path.relative_to(models)) for path in paths}
    first, *others = sorted(paths, key=lambda path: (ranks[path], path))
    if not others:
        words = "the only one of its architecture"
    elif ranks[first] == SAYS_BEST and ranks[others[0]] != SAYS_BEST:
        words = f"the one of {len(paths)} that is called the best"
    elif ranks[first] != ranks[others[0]]:
        words = f"the one of {len(paths)} that is not called the last"
    else:
        words = f"the first of {len(paths)} by name: which is the best is not told"
    say(f"{printable(first)}: {arch} of the authors, {words}")
    return AuthorsModel(arch, first)


def _rank(path: Path) -> int:
    """Say whether a file is called the best or the last one: by its own name, else by folders'."""
    for name in (path.stem, *reversed(path.parent.parts)):
        words = re.findall("[a-z]+", name.lower())
        if "best" in words:
            return SAYS_BEST
        if "last" in words:
            return SAYS_LAST
    return SAYS_NEITHER


def choose_test_patches(processed: str | Path | None, data: str | Path) -> MeasuredOn:
    """Choose the patches on which networks of others are measured.

    processed: the folder of the published patches, where they were fetched; data: the patch set
    that our networks are trained on. The published test patches are taken if there are some of
    every city; else test_b of that set, whose words are those of words_of_set.
    """
    if processed is not None and _has_test_b(Path(processed)):
        return MeasuredOn(Path(processed), "test_b", PUBLISHED)
    return MeasuredOn(Path(data), "test_b", words_of_set(processed, data))


def words_of_set(processed: str | Path | None, data: str | Path) -> str:
    """Say what test_b of a patch set is to a network of others: OF_THIS_SET, PERHAPS_TRAINED_ON.

    The latter unless enough published test patches of every city are found among its test windows,
    and none among those of train. What was found is said on stdout.
    """
    if processed is None or not Path(processed, "test_b").is_dir():
        return PERHAPS_TRAINED_ON
    found = find_published(processed, open_split(data, "train"), open_split(data, "test"))
    say(f"{printable(data)}: {found}")
    return OF_THIS_SET if found.is_held_out else PERHAPS_TRAINED_ON


def _has_test_b(processed: Path) -> bool:
    if not (processed / "test_b").is_dir():
        return False
    published = open_split(processed, "test_b")
    return len(set(published.labels.tolist())) == len(published.classes)
