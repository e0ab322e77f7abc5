"""Flags that several commands have, each defined once. This module needs no torch."""

from argparse import ArgumentParser, _ArgumentGroup

from dl_slicer.cli import number
from dl_slicer.patch_sets import on_disk

FlagGroup = ArgumentParser | _ArgumentGroup


def add_checkpoint(group: FlagGroup) -> None:
    """--checkpoint, of the commands that read one."""
    group.add_argument("--checkpoint", required=True, help="best.pth or last.pth of a run")


def add_data(group: FlagGroup) -> None:
    """--data."""
    group.add_argument(
        "--data", default="data/patches", help="patch set, or a folder in the published layout"
    )


def add_split(group: FlagGroup) -> None:
    """--split."""
    group.add_argument(
        "--split", default="test_b", choices=on_disk.READABLE, help="patches to read"
    )


def add_device(group: FlagGroup) -> None:
    """--device."""
    group.add_argument("--device", default="auto", help="auto: CUDA if there is one, else cpu")


def add_precision(group: FlagGroup) -> None:
    """--amp."""
    group.add_argument(
        "--amp",
        default="auto",
        choices=("auto", "bf16", "off"),
        help="precision; auto: bf16 where the device is fast at it",
    )


def add_workers(group: FlagGroup) -> None:
    """--workers, of the commands that read patches."""
    group.add_argument(
        "--workers",
        type=number(least=0),
        default=None,
        help="processes that read patches; default: none for a patch set, all cores for JPEGs",
    )
