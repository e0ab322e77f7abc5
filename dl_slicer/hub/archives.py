"""Archives of other people's, unpacked into a folder and nowhere else, or refused by name."""

import errno
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from tqdm import tqdm

from dl_slicer.cities import fault_of_name
from dl_slicer.cli import InputError, printable
from dl_slicer.hub.downloads import SPARE, size_text

ENDINGS = (".tar.gz", ".tgz", ".tar", ".zip")
PIECE = 2**20  # bytes copied at a time

# Bounds that no archive of pictures or weights comes near, and that bombs go beyond: how many times
# its own size an archive may hold (and so many bytes however small it is), how many members, and
# how deep their folders.
MOST_TIMES = 100
ALWAYS_FITS = 2**24
MOST_MEMBERS = 2_000_000
MOST_FOLDERS = 32
LARGEST_HEADER = 2**20  # bytes of a name in a tar archive, which tarfile would read whole

# What a damaged or made-up archive has zipfile, tarfile and gzip raise, besides OSError.
DAMAGES = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    MemoryError,
)


class Member(NamedTuple):
    """A file or a folder in an archive."""

    name: str
    size: int
    is_folder: bool
    fault: str | None  # why it cannot be unpacked
    open: Callable[[], IO[bytes]]


class _Refused(Exception):
    """What is wrong with an archive or a member."""


def stem(name: str) -> str | None:
    """Give an archive's name without its ending; None if the name is no archive's."""
    for ending in ENDINGS:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)]
    return None


def folders_for(paths: Iterable[PurePosixPath]) -> dict[PurePosixPath, PurePosixPath]:
    """Give the folder into which each archive among these paths is unpacked.

    It is called as the archive without its ending, since that may be a city's name; where two would
    get one folder, as the archive with it.
    """
    folders = {
        path: path.with_name(name) for path in paths if (name := stem(path.name)) is not None
    }
    times = Counter(folders.values())
    return {path: folder if times[folder] == 1 else path for path, folder in folders.items()}


def unpack(archive: Path, folder: Path, wanted: Callable[[PurePosixPath], bool]) -> None:
    """Unpack an archive into a folder that is not there yet: whole, or not at all.

    wanted: of a member's path, whether to write it. InputError, naming archive and member, if the
    archive is damaged, has a member that would lie outside or is a link or a device, or holds more
    than an archive of its size and the disk can.
    """
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir(parents=True)
    try:
        _unpack_into(archive, temporary, wanted)
        os.rename(temporary, folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        fault = _fault_of_archive(error)
        if fault is None:
            raise
        raise InputError(
            f"{printable(archive)}: {fault}; nothing of it was unpacked: tell those who published"
            " it"
        ) from None


def _fault_of_archive(error: BaseException) -> str | None:
    """Say what an error says of an archive; None if it says nothing, such as a full disk."""
    reason = printable(" ".join(str(error).split())[:300] or type(error).__name__)
    if isinstance(error, _Refused):
        return reason
    # EINVAL: it sends zipfile to a place before the beginning of the file.
    is_no_disk = isinstance(error, OSError) and error.errno in (None, errno.EINVAL)
    if is_no_disk or isinstance(error, DAMAGES):
        return f"damaged, or no zip or tar archive ({reason})"
    return None


def _unpack_into(archive: Path, folder: Path, wanted: Callable[[PurePosixPath], bool]) -> None:
    fits = _room(archive, folder)
    with (
        open(archive, "rb") as file,
        tqdm(unit="B", unit_scale=True, disable=None, desc=archive.name[:30]) as bar,
    ):
        is_zip = file.read(2) == b"PK"
        file.seek(0)
        members = _members_of_zip(file, fits) if is_zip else _members_of_tar(file)
        total = 0
        for number, member in enumerate(members, 1):
            path = _safe_path(member)
            total += member.size
            if number > MOST_MEMBERS:
                raise _Refused(f"has more than {MOST_MEMBERS} members")
            fits(total)
            if path is not None and wanted(path):
                _write(member, folder / path)
                bar.update(member.size)


def _room(archive: Path, folder: Path) -> Callable[[int], None]:
    """Give a check of a number of unpacked bytes: _Refused beyond what archive and disk can hold.

    A disk that is too small is InputError: that is mended by making room.
    """
    size = archive.stat().st_size
    most = max(ALWAYS_FITS, MOST_TIMES * size)
    free = shutil.disk_usage(folder).free - SPARE

    def check(total: int) -> None:
        if total > most:
            raise _Refused(
                f"holds {size_text(total)} or more, over {MOST_TIMES} times its own size, as bombs"
                " do"
            )
        if total > free:
            raise InputError(
                f"{printable(archive)}: unpacks to {size_text(total)} or more, the disk has"
                f" {size_text(max(0, free))} left; make room and run the same command again"
            )

    return check


def _safe_path(member: Member) -> PurePosixPath | None:
    """Give the path of a member inside the folder; None for the folder itself. Else _Refused."""
    name = member.name.replace("\\", "/")  # as some programs for Windows write
    parts = [part for part in name.split("/") if part not in ("", ".")]
    fault = member.fault
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        fault = "an absolute name"
    elif ".." in parts:
        fault = "a name that leads out of the folder"
    elif len(parts) > MOST_FOLDERS:
        fault = "too many folders in each other"
    fault = fault or next(filter(None, map(fault_of_name, parts)), None)
    if fault:
        raise _Refused(f"its member {printable(member.name[:200])!r}: {fault}")
    return PurePosixPath(*parts) if parts else None


def _write(member: Member, path: Path) -> None:
    try:
        if member.is_folder:
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as out, member.open() as content:
            left = member.size
            while piece := content.read(min(PIECE, left)):
                out.write(piece)
                left -= len(piece)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise _Refused(f"its member {printable(member.name)!r} is there twice") from None
    if left:
        raise _Refused(f"its member {printable(member.name)!r} ends early")


# --------------------------------------------------------------------------------------------- zip


def _members_of_zip(file: IO[bytes], fits: Callable[[int], None]) -> Iterator[Member]:
    """All members of a zip archive, after a look at the whole of its table."""
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        packed = sum(info.compress_size for info in infos)
        if packed > file.seek(0, os.SEEK_END):
            raise _Refused("its members overlap, as bombs' do")
        fits(sum(info.file_size for info in infos))
        members = [_member_of_zip(archive, info) for info in infos]
        for member in members:  # all of them before the first byte is written
            _safe_path(member)
        yield from members


def _member_of_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    fault = None
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        fault = "a symbolic link" if kind == stat.S_IFLNK else "a device or a pipe"
    elif info.flag_bits & 1:
        fault = "locked with a password"
    name = _name_in_zip(info)
    return Member(
        name, info.file_size, name.endswith(("/", "\\")), fault, lambda: archive.open(info)
    )


def _name_in_zip(info: zipfile.ZipInfo) -> str:
    """Give a member's name: macOS writes UTF-8 without saying so."""
    name = info.orig_filename
    if info.flag_bits & 0x800:
        return name
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        return name


# --------------------------------------------------------------------------------------------- tar


class _Bounded:
    """A file of which nobody reads much at once, as tarfile does where a header says so."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if size > LARGEST_HEADER:
            raise _Refused(f"a header of {size_text(size)}, as bombs have")
        return self.file.read(size)


def _members_of_tar(file: IO[bytes]) -> Iterator[Member]:
    """The members of a tar archive, packed by gzip or not, in their order."""
    is_packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    stream = gzip.GzipFile(fileobj=file) if is_packed else file
    with tarfile.open(fileobj=_Bounded(stream), mode="r:") as archive:
        while (info := archive.next()) is not None:
            archive.members.clear()  # half a million of them are half a gigabyte
            yield _member_of_tar(archive, info)
    left = ALWAYS_FITS
    while left > 0 and (piece := stream.read(PIECE)):  # at its end gzip compares the checksum
        left -= len(piece)


def _member_of_tar(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    fault = None
    if info.issym() or info.islnk():
        fault = "a link"
    elif info.issparse() or not (info.isreg() or info.isdir()):
        fault = "a device, a pipe or a file with holes"
    return Member(info.name, info.size, info.isdir(), fault, lambda: archive.extractfile(info))
