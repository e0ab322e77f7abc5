"""Flags of commands that start the scripts one after the other. This module needs no torch."""

from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dl_slicer import cli
from dl_slicer.cli import InputError
from dl_slicer.training import recipes


def refuse_own_flags(words: Sequence[str], own: Mapping[str, str | None], where: str) -> None:
    """InputError if a word is, perhaps shortened, a flag that the command gives a script itself.

    own: {flag: what to do instead}; None: leave it out. where: in which part of the command line
    the words stand, such as "after --".
    """
    for word in words:
        typed = "--help" if word == "-h" else word.partition("=")[0]
        for flag, instead in own.items():
            # argparse takes flags shortened.
            if len(typed) > len("--") and flag.startswith(typed):
                advice = instead or "leave it out"
                raise InputError(f"{word} {where}: {flag} is this command's affair; {advice}")


def read_changes(more: Sequence[str]) -> Namespace:
    """Give what chains need of the training's flags: None where the user has not set it.

    That is device, amp and workers, which tests are given, too, optimizer and average.
    """
    parser = cli.Parser(None)
    for name in ("--device", "--amp", "--workers", "--optimizer"):
        parser.add_argument(name)
    parser.add_argument("--average", type=cli.number(float, least=0))
    changed, _ = parser.parse_known_args(more)
    if changed.optimizer not in (None, *recipes.OPTIMISERS):
        raise InputError(f"--optimizer: must be one of {', '.join(recipes.OPTIMISERS)}")
    return changed


def flags_of_test(
    checkpoint: Path, data: str | Path, split: str, out: Path, changed: Namespace
) -> list[str]:
    """Give the flags of test_classification.py. changed: of read_changes."""
    flags = {
        "--checkpoint": checkpoint,
        "--data": data,
        "--split": split,
        "--out": out,
        "--device": changed.device,
        "--amp": changed.amp,
        "--workers": changed.workers,
    }
    given = [flag for flag in flags.items() if flag[1] is not None]
    return [str(part) for flag in given for part in flag]


def without(words: Iterable[str], flags: Iterable[str]) -> list[str]:
    """Leave out flags that take one value each, with it: --flag value or --flag=value."""
    flags = set(flags)
    left = []
    is_value = False
    for word in words:
        name, is_joined, _ = word.partition("=")
        if not is_value and name not in flags:
            left.append(word)
        is_value = not is_value and word in flags and not is_joined
    return left
