"""Files that are whole or not there, tables, and locks on folders."""

import csv
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from dl_slicer.cli import printable

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None


@contextmanager
def atomic(path: str | Path, mode: str = "wb", sync: bool = True, **options) -> Iterator[IO]:
    """Open a temporary file beside `path`; rename it to `path` if the block ends well.

    If it does not, the temporary file is removed and `path` stays as it was.
    sync: have the content on the disk before the rename, so that a power cut cannot leave an
    empty file under the final name. options: of open().
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{zlib.crc32(os.fsencode(path.name)):08x}.tmp")
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


def clear_leftovers(folder: str | Path) -> None:
    """Remove what processes that were killed while writing left in a folder."""
    for path in Path(folder).glob(".*-????????.tmp"):
        path.unlink()


def write_rows(path: str | Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a CSV file; None is an empty field."""
    # Names of files may hold bytes that are no text in UTF-8.
    with atomic(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


@contextmanager
def locked(folder: Path, shared: bool) -> Iterator[None]:
    """Hold <folder>/.lock, alone or with others who share it; wait for those who do not.

    A file system or a system without locks goes without.
    """
    with ExitStack() as stack:
        if fcntl is not None:
            with suppress(OSError):
                file = stack.enter_context(open(folder / ".lock", "w"))
                how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
                try:
                    fcntl.flock(file, how | fcntl.LOCK_NB)
                except BlockingIOError:
                    print(
                        f"{printable(folder)}: waiting for another process"
                        " that works on this patch set",
                        flush=True,
                    )
                    fcntl.flock(file, how)
        yield
