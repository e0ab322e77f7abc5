"""What all command lines share: flags, exit codes, and errors that are the user's to mend."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

MAKE_ROOM = "make room and run {again} again"
CHANGE_PERMISSIONS = "change its permissions or choose another"
MOVE_FILE = "a file is in the way; move it or choose another folder"
DISK_FAILS = "the disk or its connection fails"

# What the file system may refuse, and how a user mends it. Any other OSError is a fault of ours
# and keeps its traceback.
REFUSALS = {
    errno.ENOSPC: MAKE_ROOM,
    errno.EDQUOT: MAKE_ROOM,
    errno.EFBIG: "raise the limit (ulimit -f) or choose another folder",
    errno.ENAMETOOLONG: "shorten it",
    errno.EACCES: CHANGE_PERMISSIONS,
    errno.EPERM: CHANGE_PERMISSIONS,
    errno.EROFS: "choose a folder that can be written",
    errno.EEXIST: MOVE_FILE,
    errno.ENOTDIR: MOVE_FILE,
    errno.ELOOP: "a symbolic link leads back to itself; delete it or choose another folder",
    errno.EISDIR: "a folder is in the way; move it",
    errno.EIO: DISK_FAILS,
    errno.ESTALE: DISK_FAILS,
    errno.EPIPE: "what read the output has ended; send it into a file",
}

warnings: list[str] = []  # what warn() said and nobody has written into a file yet


class InputError(Exception):
    """What the user gave is wrong.

    The message says what, where, and what to do; one line for each thing that is wrong.
    """


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """The description as it is written, and the default after each flag's help."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_it = action.help is None or "default:" in action.help
        has_none = any(action.default is value for value in (None, False, argparse.SUPPRESS))
        if says_it or has_none:
            return action.help
        if isinstance(action.default, list | tuple):
            default = " ".join(str(value) for value in action.default)
            return f"{action.help} (default: {default})".replace("%", "%%")
        return f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong flag gives one line instead of the whole usage."""

    def __init__(self, description: str | None):
        super().__init__(
            prog=program_name(), description=description, formatter_class=HelpFormatter
        )

    def error(self, message: str):
        """Raise InputError with argparse's own words."""
        raise InputError(f"{message} (--help lists the flags)")


def given_flags(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> set[str]:
    """Give the names, as attributes, of the flags that were typed, be it with their defaults."""
    left_out = object()
    # What a namespace has already gets no default.
    names = {action.dest for action in parser._actions}
    before = argparse.Namespace(**dict.fromkeys(names, left_out))
    after = parser.parse_args(argv, before)
    return {name for name, value in vars(after).items() if value is not left_out}


def program_name() -> str:
    """What the user typed to start this process: script.py, or python -m package."""
    specification = getattr(sys.modules["__main__"], "__spec__", None)
    if specification is None:
        return Path(sys.argv[0]).name
    return f"python -m {specification.name.removesuffix('.__main__')}"


def run(
    main: Callable[[], None],
    again: str = "the same command",
    interrupted: str = "what was finished is kept, {again} goes on from there",
) -> None:
    """Call main() and exit: 0 done, 2 the input is wrong, 1 anything else.

    Wrong input gives a line (or several, one a fault) on stderr; other errors keep their traceback.
    again: what goes on where this call has stopped. interrupted: what is said of a Ctrl-C.
    """
    if sys.stdout is not None:
        # A city's name is no reason to fail on a terminal that cannot show it.
        sys.stdout.reconfigure(errors="backslashreplace")
    else:  # it was closed before the start, and the next file that is opened would be in its place
        os.open(os.devnull, os.O_WRONLY)
    if sys.stderr is None:
        sys.stderr = _into_nothing()
    try:
        main()
    except InputError as error:
        sys.exit(_refuse(str(error)))
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted.format(again=again)}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REFUSALS:
            if error.errno == errno.EPIPE:
                _let_go(sys.stdout)  # Python would try it once more at the end
            where = printable(error.filename or "writing an output")
            what_to_do = REFUSALS[error.errno].format(again=again)
            sys.exit(_refuse(f"{where}: {error.strerror}; {what_to_do}"))
        if _has_another_refused():  # this one only lost its connection to that one
            sys.exit(2)
        raise


def say(line: str) -> None:
    """Print a line at once. Where stdout cannot be written, the work goes on without.

    That is said on stderr, once, and noted in `warnings`.
    """
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it was closed before the start")
        print(line, flush=True)
    except OSError as error:
        _let_go(sys.stdout)
        warn(f"nothing more on stdout ({error.strerror}); the work goes on")


def warn(warning: str) -> None:
    """Say a line on stderr, if that can be written, and note it in `warnings`."""
    warnings.append(warning)
    try:
        print(f"{program_name()}: {warning}", file=sys.stderr, flush=True)
    except OSError:
        _let_go(sys.stderr)


def _into_nothing() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def _let_go(stream: TextIO | None) -> None:
    """Have what is written to a stream from now on, and what it still holds, go nowhere."""
    if stream is None:
        sys.stdout = _into_nothing()
        return
    with _into_nothing() as nowhere, suppress(OSError, ValueError):  # a stream without a file
        os.dup2(nowhere.fileno(), stream.fileno())


def _refuse(message: str) -> int:
    if _is_first_to_refuse():
        for line in message.splitlines():
            print(f"{program_name()}: {line}", file=sys.stderr)
    return 2


def _is_first_to_refuse() -> bool:
    """Whether no other process of torchrun on this machine has said why the work ends.

    All may meet the same fault, or one alone.
    """
    note = _note_of_a_refusal()
    if note is None:
        return os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        note.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # better said twice than not at all
        pass
    return True


def _has_another_refused() -> bool:
    note = _note_of_a_refusal()
    return note is not None and note.exists()


def _note_of_a_refusal() -> Path | None:
    """A file that torchrun's processes on this machine share; None without torchrun.

    It lies in the folder of this start of theirs, which torchrun removes.
    """
    # <folder>/<LOCAL_RANK>/error.json
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(error_file).parent.parent / "refused" if error_file else None


def printable(value: object) -> str:
    """A path or name in one printable line, whatever characters it has."""
    text = str(value)
    return text if text.isprintable() else ascii(text)


def number(
    kind: type[int] | type[float] = int,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> Callable[[str], int | float]:
    """Give an argparse type: a number of this kind within bounds.

    Outside them argparse prints one line and exits 2.
    """

    def within_bounds(value: int | float) -> bool:
        if value != value:  # not a number
            return False
        if least is not None and value < least:
            return False
        if above is not None and value <= above:
            return False
        return most is None or value <= most

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not within_bounds(value):
            what = "a whole number" if kind is int else "a number"
            limits = (("at least", least), ("above", above), ("at most", most))
            bounds = [f"{words} {limit}" for words, limit in limits if limit is not None]
            text = f"{text!r}: must be {what} {' and '.join(bounds)}".rstrip()
            raise argparse.ArgumentTypeError(text)
        return value

    return parse
