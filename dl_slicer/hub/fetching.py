"""A download from a hub to its place in a folder: begun, gone on with, or found done.

What is on the way lies in <out>/.fetch, which preprocessing passes over: the download and what was
unpacked from it. From there folders are moved (renamed, which takes no room and no time) to their
places. Each step can be killed; the next call does what is missing.
"""

import filecmp
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dl_slicer.cli import InputError, printable, say
from dl_slicer.files import atomic, clear_leftovers
from dl_slicer.hub import archives, downloads
from dl_slicer.hub.downloads import RemoteFile, Repository
from dl_slicer.hub.layout import is_junk, tree

WORK = ".fetch"
STAGES = ("download", "unpacked", "nested")  # each holds what was unpacked from the one before
MOST_NAMES = 5  # of files that are in the way

# What lies where: the places of files or folders under --out, and what is moved there.
Places = dict[PurePosixPath, list[Path]]


class NoLevel(InputError):
    """What was fetched has no layout that is known."""

    def __init__(self, message: str, lines: list[str]):
        super().__init__(message)
        self.tree = lines  # of what there is


@dataclass(frozen=True)
class Request:
    """What to fetch, and how it is known."""

    what: str
    repository: Repository
    out: Path
    choose: Callable[[list[PurePosixPath]], list[PurePosixPath]]  # the files to download
    wanted: Callable[[PurePosixPath], bool]  # of the files in archives
    find: Callable[[list[Path]], Places]

    @property
    def work(self) -> Path:
        """The folder of what is on the way."""
        return self.out / WORK

    @property
    def stages(self) -> list[Path]:
        """The folders in which files may lie that have no place yet."""
        return [self.work / stage for stage in STAGES]


def fetch(request: Request) -> dict:
    """Fetch what is not there yet, and give the record of what was placed where.

    The record has `what`, `repository`, `revision` and `places`: {path under out: [files, bytes]}.
    InputError if the hub, an archive or a file of others does not let it; NoLevel if no place is
    known for what came.
    """
    record = _read(request.work / "done.json")
    _refuse_others(request, record)
    if record:
        say(f"{printable(request.out)}: fetched before, nothing is left to do")
        return record
    listing = _list(request)
    files = [RemoteFile(*file) for file in listing["files"]]
    if not (request.work / "plan.json").exists():
        _download(request, listing["revision"], files)
        for source, target in zip(request.stages, request.stages[1:], strict=False):
            _unpack_all(source, target, request.wanted)
        _plan(request)
    record = {key: listing[key] for key in ("what", "repository", "revision")}
    record["places"] = _move(request)
    _write(request.work / "done.json", record)
    for name in ("plan.json", "listing.json"):
        (request.work / name).unlink(missing_ok=True)
    shutil.rmtree(request.work / "parts", ignore_errors=True)
    _clear(request.work)
    return record


def _refuse_others(request: Request, record: Mapping | None) -> None:
    """InputError if the work folder is not ours, or holds something else than is asked for."""
    work = request.work
    if not work.is_symlink():
        clear_leftovers(work)
    begun = record or _read(work / "listing.json")
    if work.is_symlink() or (begun is None and work.exists() and any(work.iterdir())):
        raise InputError(f"{printable(work)}: not made by this program; move it away")
    if begun and begun["what"] != request.what:
        raise InputError(
            f"{printable(request.out)}: holds what --what {begun['what']} fetched; choose another"
            " --out"
        )


def _list(request: Request) -> dict:
    """Give the files to download, as they were when the download began."""
    path = request.work / "listing.json"
    listing = _read(path)
    if listing is None:
        revision, files = downloads.list_files(request.repository)
        by_path = {PurePosixPath(file.path): file for file in files}
        chosen = [by_path[path] for path in request.choose(list(by_path))]
        if not chosen:
            raise NoLevel(f"{request.repository.page}: no {request.what} in it", tree(by_path))
        listing = {
            "what": request.what,
            "repository": request.repository.name,
            "revision": revision,
            "files": chosen,
        }
        _write(path, listing)
        _say_what_stays(request, by_path, chosen)
    return listing


def _say_what_stays(
    request: Request, by_path: Mapping[PurePosixPath, RemoteFile], chosen: Sequence[RemoteFile]
) -> None:
    others = sorted(set(by_path.values()) - set(chosen))
    if others:
        size = downloads.size_text(sum(file.size for file in others))
        say(f"not fetched: {len(others)} other files there, {size}: {names_of(others)}")


def names_of(files: Sequence[RemoteFile | PurePosixPath | str], most: int = MOST_NAMES) -> str:
    """Name the first of some files, and say how many more there are."""
    names = [printable(getattr(file, "path", file)) for file in files[:most]]
    more = f" and {len(files) - most} more" if len(files) > most else ""
    return ", ".join(names) + more


def _download(request: Request, revision: str, files: Sequence[RemoteFile]) -> None:
    download, unpacked, _ = request.stages
    folders = archives.folders_for(PurePosixPath(file.path) for file in files)
    missing = [
        file
        for file in files
        if not (unpacked / folders.get(PurePosixPath(file.path), ".nothing")).is_dir()
    ]
    downloads.download(request.repository, revision, missing, download, request.work / "parts")


def _unpack_all(source: Path, target: Path, wanted: Callable[[PurePosixPath], bool]) -> None:
    """Unpack each archive in a folder into one of its own, at the same path in another folder.

    Then the archive is emptied. It is not deleted: its name still says which folders are taken.
    """
    paths = sorted(path.relative_to(source) for path in walk(source))
    folders = archives.folders_for(PurePosixPath(path.as_posix()) for path in paths)
    for path, folder in folders.items():
        if not (target / folder).is_dir():
            say(f"unpacking {printable(path)}")
            (target / folder).parent.mkdir(parents=True, exist_ok=True)
            archives.unpack(
                source / path,
                target / folder,
                lambda member, folder=folder: not is_junk(member) and wanted(folder / member),
            )
        os.truncate(source / path, 0)


def walk(folder: Path) -> Iterator[Path]:
    """All regular files in and below a folder, but hidden ones."""
    for inner, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_junk(PurePosixPath(name)))
        for name in sorted(names):
            path = Path(inner, name)
            if path.is_file() and not path.is_symlink() and not is_junk(PurePosixPath(name)):
                yield path


def left_over(out: Path) -> list[PurePosixPath]:
    """The files that came and have no place, by their paths under `out`."""
    stages = [out / WORK / stage for stage in STAGES]
    return [
        PurePosixPath(path.relative_to(out).as_posix())
        for stage in stages
        for path in walk(stage)
        if not (archives.stem(path.name) and path.stat().st_size == 0)
    ]


# --------------------------------------------------------------------------------------- placing


def _plan(request: Request) -> None:
    """Find what is to be moved where, and write that down; InputError if files are in the way."""
    places = request.find(request.stages)
    if not places:
        inside = [path.relative_to(WORK) for path in left_over(request.out)]
        raise NoLevel(
            f"{printable(request.out)}: what came has no layout that is known",
            tree(inside, depth=4),  # the first one is that of the stage
        )
    taken = [
        path
        for path in places
        if os.path.lexists(request.out / path) or _has_link_above(request.out / path, request.out)
    ]
    if taken:
        raise InputError(
            f"{printable(request.out)}: there is already {names_of(taken)}, which this program has"
            " not placed there; move it away and run the same command again, or choose another"
            " --out"
        )
    _refuse_differing(places)
    plan = [
        [path.as_posix(), [str(source.relative_to(request.work)) for source in sources]]
        for path, sources in sorted(places.items())
    ]
    _write(request.work / "plan.json", plan)


def _refuse_differing(places: Places) -> None:
    """InputError if two folders of one city have files of one name that differ."""
    differing = []
    for first, *others in places.values():
        there: dict[Path, Path] = {path.relative_to(first): path for path in walk(first)}
        for other in others:
            for path in walk(other):
                same = there.setdefault(path.relative_to(other), path)
                if not filecmp.cmp(path, same, shallow=False):
                    differing.append(f"{path} and {same}")
    if differing:
        raise InputError(
            "of one name, but with other bytes; move the wrong one away and run the same command"
            f" again: {names_of(differing)}"
        )


def _move(request: Request) -> dict[str, list[int]]:
    """Move everything to its place as planned; give {path under out: [files, bytes]}."""
    _clear(request.work)
    placed = {}
    duplicates = 0
    for name, names in _read(request.work / "plan.json"):
        first, *others = (request.work / name for name in names)
        target = request.out / name
        if os.path.lexists(first):
            if os.path.lexists(target) or _has_link_above(target, request.out):
                raise InputError(
                    f"{printable(target)}: has come into the way; move it and run the same command"
                    " again"
                )
            duplicates += sum(_merge(first, other) for other in others)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(first, target)
        placed[name] = measure(target)
    if duplicates:
        say(f"{duplicates} files came twice with the same bytes; one of each is kept")
    return placed


def _merge(first: Path, other: Path) -> int:
    """Move what lies in another folder of a city into the first; count what was there twice."""
    duplicates = 0
    for path in walk(other):
        there = first / path.relative_to(other)
        duplicates += there.exists()
        there.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, there)
    return duplicates


def _has_link_above(target: Path, out: Path) -> bool:
    above = target.relative_to(out).parents
    return any((out / folder).is_symlink() for folder in list(above)[:-1])


def measure(path: Path) -> list[int]:
    """Give how many files there are at a place, and their bytes."""
    files = [path] if path.is_file() else list(walk(path))
    return [len(files), sum(file.stat().st_size for file in files)]


def _clear(folder: Path) -> None:
    """Remove the archives that were emptied, and empty folders."""
    for inner, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(inner, name)
            if archives.stem(name) and path.stat().st_size == 0:
                path.unlink()
        if inner != str(folder) and not os.listdir(inner):
            os.rmdir(inner)


def _read(path: Path) -> dict | list | None:
    """The content of a JSON file of ours; None if there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        fault = "damaged; delete it and run the same command again"
        raise InputError(f"{printable(path)}: {fault}") from None


def _write(path: Path, content: object) -> None:
    with atomic(path, "w", encoding="utf-8") as file:
        json.dump(content, file)
