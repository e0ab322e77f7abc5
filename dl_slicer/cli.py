"""What all command lines here share: errors that are the user's to mend, outputs that are whole or not there, and memory."""

import argparse
import errno
import os
import sys
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
                f"{printable(error.filename or 'writing an output')}: {error.strerror}; {REFUSALS[error.errno]}"
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


def printable(path):
    """A path or name in one printable line, whatever characters it has."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


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
