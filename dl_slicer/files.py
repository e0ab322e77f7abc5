"""Files that are whole or not there, tables, and locks on folders."""

import csv
import os
import platform
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

from dl_slicer.cli import REFUSALS, InputError, printable, warn

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

NO_LOCKS = "start no second command with the same --out, it would not be noticed"
_held: list[IO] = []  # the lock files that this process holds alone


@contextmanager
def atomic(path: str | Path, mode: str = "wb", sync: bool = True, **options) -> Iterator[IO]:
    """Open a temporary file beside `path`; rename it to `path` if the block ends well.

    If it does not, the temporary file is removed and `path` stays as it was.
    sync: have the content on the disk before the rename, so that a power cut cannot leave an
    empty file under the final name. options: of open().
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{_checksum(path.name)}.tmp")
    try:
        with open(temporary, mode, **options) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and str(error.filename) in (str(None), str(temporary)):
            # The user knows the file by its final name.
            error.filename = str(path)
            error.filename2 = None
        raise


def clear_leftovers(folder: str | Path, names: Iterable[str] | None = None) -> None:
    """Remove what processes that were killed while writing left in a folder.

    names: of the files that were written, so that nothing else is taken for a rest of them.
    """
    checksums = None if names is None else {_checksum(name) for name in names}
    for path in Path(folder).glob(f".[0-9]*-{'[0-9a-f]' * 8}.tmp"):
        if checksums is None or path.stem[-8:] in checksums:
            path.unlink(missing_ok=True)


def _checksum(name: str) -> str:
    return f"{zlib.crc32(os.fsencode(name)):08x}"


def write_rows(path: str | Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a CSV file; None is an empty field."""
    # Names of files may hold bytes that are no text in UTF-8.
    with atomic(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


@contextmanager
def hold(folder: str | Path) -> Iterator[None]:
    """Hold a folder, which is made if it is not there, while a command writes into it.

    Under torchrun process 0 holds it for all. A folder that was made for this and is empty at the
    end goes again. InputError, naming the holder, if another process holds it.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in REFUSALS:
            raise
        fault = f"{printable(folder)}: {error.strerror}; choose another --out"
        raise InputError(fault) from None
    try:
        with _held_alone(folder):
            yield
    finally:
        for path in made:
            with suppress(OSError):  # it is not empty
                path.rmdir()


@contextmanager
def locked(folder: Path, shared: bool) -> Iterator[None]:
    """Hold <folder>/.lock, alone or with others who share it; wait for those who do not."""

    def wait(file: IO) -> None:
        print(
            f"{printable(folder)}: waiting for another process that works on this patch set",
            flush=True,
        )

    file = _take_lock(folder, shared, wait)
    try:
        yield
    finally:
        if file is not None:
            file.close()


@contextmanager
def _held_alone(folder: Path) -> Iterator[None]:
    def refuse(file: IO) -> None:
        holder = os.pread(file.fileno(), 400, 0).decode(errors="replace").strip()
        raise InputError(
            f"{printable(folder)}: {printable(holder or 'another process')} writes into this"
            " folder; wait until it has ended, or choose another --out"
        )

    file = _take_lock(folder, False, refuse)
    if file is None:
        yield
        return
    _held.append(file)
    try:
        with suppress(OSError):  # on a full disk the holder stays unnamed
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n".encode())
        yield
    finally:
        _held.remove(file)
        with suppress(OSError):
            os.unlink(file.name)
        # Not only closed: a child that has its own copy would hold it on.
        fcntl.flock(file, fcntl.LOCK_UN)
        file.close()


def _take_lock(folder: Path, shared: bool, if_busy: Callable[[IO], None]) -> IO | None:
    """Give <folder>/.lock, open and locked. None, said once, where there are no locks.

    if_busy: called with the file if others hold it; once it returns, they are waited for.
    """
    if fcntl is None:
        _warn_once(f"this system has no locks: {NO_LOCKS}")
        return None
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    path = folder / ".lock"
    while True:
        with ExitStack() as stack:
            # The content is the holder's, so that opening must leave it.
            file = stack.enter_context(open(path, "ab+", buffering=0))
            try:
                fcntl.flock(file, how | fcntl.LOCK_NB)
            except BlockingIOError:
                if_busy(file)
                fcntl.flock(file, how)
            except OSError as error:
                _warn_once(f"{printable(folder)}: no locks here ({error.strerror}): {NO_LOCKS}")
                return None
            if _is_file_at(path, file):
                stack.pop_all()
                return file
        # Its last holder removed the file after this process had opened it.


def _is_file_at(path: Path, file: IO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


_warn_once = cache(warn)


def _let_go_in_child() -> None:
    for file in _held:
        file.close()


if fcntl is not None:
    # A process that was started to read patches may outlive one that was killed, which would
    # still seem to hold its folder.
    os.register_at_fork(after_in_child=_let_go_in_child)
