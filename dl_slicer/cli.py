"""What all command lines here share: errors that are the user's to mend, outputs that are whole or not there, and memory."""

import argparse
import csv
import ctypes
import errno
import os
import sys
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

# The file system's refusals that a user can mend, and how; any other OSError is a fault of ours and keeps its traceback.
REFUSALS = {
    errno.ENOSPC: "make room and run the same command again",
    errno.EDQUOT: "make room and run the same command again",
    errno.EFBIG: "raise the limit (ulimit -f) or choose another folder",
    errno.ENAMETOOLONG: "shorten it",
    errno.EACCES: "change its permissions or choose another",
    errno.EPERM: "change its permissions or choose another",
    errno.EROFS: "choose a folder that can be written",
    errno.EEXIST: "a file is in the way; move it or choose another folder",
    errno.ENOTDIR: "a file is in the way; move it or choose another folder",
    errno.EISDIR: "a folder is in the way; move it",
    errno.EIO: "the disk or its connection fails",
    errno.ESTALE: "the disk or its connection fails",
}


class InputError(Exception):
    """What the user gave is wrong. The message says what, where, and what to do; one line for each thing that is wrong."""


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong flag gives one line instead of the whole usage."""

    def __init__(self, description):
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def error(self, message):
        raise InputError(f"{message} (--help lists the flags)")


def run(main):
    """Call main(); exit 0 when done, 2 with a line (or several, one a fault) on stderr when the input is wrong, 1 on anything else."""
    sys.stdout.reconfigure(
        errors="backslashreplace"
    )  # a city's name is no reason to fail on a terminal that cannot show it
    try:
        main()
    except InputError as error:
        sys.exit(_refuse(str(error)))
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        sys.exit(
            _refuse(
                f"{shown(error.filename or 'writing an output')}: {error.strerror}; {REFUSALS[error.errno]}"
            )
        )
    except KeyboardInterrupt:
        print(
            "interrupted; what was finished is kept, the same command goes on from there",
            file=sys.stderr,
        )
        sys.exit(1)


def _refuse(message):
    if (
        os.environ.get("LOCAL_RANK", "0") != "0"
    ):  # torchrun: the processes of one machine would all say the same
        return 2
    program = Path(sys.argv[0]).name
    for line in message.splitlines():
        print(f"{program}: {line}", file=sys.stderr)
    return 2


def shown(path):
    """A path or name in one printable line, whatever characters it has."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


@contextmanager
def atomic(path, mode="wb", sync=True, **kwargs):
    """Open a temporary file beside `path`; rename it to `path` if the block ends well, else remove it.

    sync: have it on the disk before the rename, so that a power cut cannot leave an empty file under the final name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{zlib.crc32(os.fsencode(path.name)):08x}.tmp")
    try:
        with open(temporary, mode, **kwargs) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and (
            error.filename is None or str(error.filename) == str(temporary)
        ):
            error.filename, error.filename2 = str(path), None  # what the user knows it by
        raise


def write_rows(path, header, rows):
    """A CSV file; None is an empty field."""
    with atomic(
        path, "w", newline="", encoding="utf-8", errors="backslashreplace"
    ) as file:  # names of files may be no text
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def keep_memory():
    """Have the C library (glibc) keep freed memory for the next image or batch: fresh memory from the system costs a fifth of a
    training step, a seventh of tiling a raster."""
    with suppress(OSError, AttributeError):  # another C library: it does as it likes
        for setting, value in (
            (-3, 2**25),
            (-3, 2**30),
            (-1, 2**31 - 1),
        ):  # M_MMAP_THRESHOLD, as far as this glibc goes, M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(setting, value)


def clear_leftovers(folder):
    """Remove what processes that were killed while writing left in a folder."""
    for path in Path(folder).glob(".*-????????.tmp"):
        path.unlink()


def number(kind=int, least=None, above=None, most=None):
    """An argparse type: a number of this kind within bounds. Outside them argparse prints one line and exits 2."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if (
            value is None
            or value != value
            or (least is not None and value < least)
            or (above is not None and value <= above)
            or (most is not None and value > most)
        ):
            what = "a whole number" if kind is int else "a number"
            bounds = [
                f"{word} {bound}"
                for word, bound in (("at least", least), ("above", above), ("at most", most))
                if bound is not None
            ]
            raise argparse.ArgumentTypeError(
                f"{text!r}: must be {what} {' and '.join(bounds)}".rstrip()
            )
        return value

    return parse
