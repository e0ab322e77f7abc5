"""What a chain of runs remembers from call to call: hours, and what has been measured of what."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dl_slicer.cli import InputError, printable
from dl_slicer.files import atomic, clear_leftovers

FILE = "reproduce.json"


@dataclass
class Ledger:
    """The content of the chain's file. Checksums are those of identity.identify and checksum()."""

    data: str = ""  # what all runs have in common: of their patches, or their flags
    seconds: dict[str, float] = field(default_factory=dict)  # {run: seconds of training}
    # {model: {"checkpoint": ..., "patches": ...}} of the results that lie there
    measured: dict[str, dict[str, str]] = field(default_factory=dict)
    folder: Path = Path()  # where it lies
    file: str = FILE

    def save(self) -> None:
        """Write it into the folder of the chain."""
        content = {"data": self.data, "seconds": self.seconds, "measured": self.measured}
        with atomic(self.folder / self.file, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)

    def counter(self, run: str) -> Callable[[float], None]:
        """Give a function that keeps, now and then, how long the latest training has taken."""
        before = self.seconds.get(run, 0)
        self.save()

        def passed(seconds: float) -> None:
            self.seconds[run] = round(before + seconds, 1)
            self.save()

        return passed

    def hours(self, run: str) -> float | None:
        """Give how long a run was trained in all its calls; None if that is not known."""
        seconds = self.seconds.get(run)
        return None if seconds is None else seconds / 3600


def open_ledger(folder: Path, data: str, checksum_of_data: str) -> Ledger:
    """Give the ledger of a chain that is trained on a data set, an empty one where there is none.

    InputError if the folder holds a chain of another data set, or if its ledger is damaged.
    """
    book = read_ledger(folder)
    if book.data not in ("", checksum_of_data):
        raise InputError(
            f"{printable(folder)}: holds runs on other patches than those of {printable(data)};"
            " give their --data, or choose another --out"
        )
    book.data = checksum_of_data
    return book


def read_ledger(folder: Path, file: str = FILE) -> Ledger:
    """Give the ledger in a folder, an empty one where there is none. InputError if damaged."""
    clear_leftovers(folder)
    path = folder / file
    try:
        found = Ledger(**json.loads(path.read_text(encoding="utf-8")), folder=folder, file=file)
        sound = (
            isinstance(found.data, str)
            and all(type(value) in (int, float) for value in found.seconds.values())
            and all(isinstance(value, dict) for value in found.measured.values())
        )
    except FileNotFoundError:
        return Ledger(folder=folder, file=file)
    except (ValueError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise InputError(
            f"{printable(path)}: damaged; delete it: runs are kept, tests are made again, and hours"
            " count anew"
        )
    return found


def checksum(path: Path) -> str:
    """Give the SHA-256 of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()
