"""Files that are whole or not there, and tables."""

import csv
import os
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path


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


def clear_leftovers(folder):
    """Remove what processes that were killed while writing left in a folder."""
    for path in Path(folder).glob(".*-????????.tmp"):
        path.unlink()
