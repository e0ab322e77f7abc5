"""The results of one call replace those of the call before, as a whole or not at all.

contents.json in a folder of results names, for each command that wrote there, the flags of its
last call and its files. Only these are ever replaced or removed: another command's files and
other people's stay as they are. The files of an explorer are shared: each command that adds layers
lists all that it has written or kept, and what another one lists, too, is replaced but not removed.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dl_slicer import distributed
from dl_slicer.cli import InputError, printable
from dl_slicer.files import atomic, hold

CONTENTS = "contents.json"
UNFINISHED = ".dl-slicer-unfinished"  # the hidden folder of what is being made
EXPLORER = ".explorer/"  # within the path of an explorer's file
NOT_PLACED = "new-results"  # where whole results go that something is in the way of

Contents = dict[str, dict]  # {command: {"flags": {...}, "files": [...]}}


@dataclass(frozen=True)
class Call:
    """A call of a command that writes results."""

    out: Path
    command: str  # whose files of before are replaced
    flags: Mapping[str, object]
    main_file: str  # path within out; it is there only while all others are
    made_later: Sequence[str] = ()  # what other commands make of the files: it goes with them
    finish: Callable[[Path], None] | None = None  # makes more of the new files, in their folder


@contextmanager
def new_results(call: Call) -> Iterator[Path | None]:
    """Hold a folder of results, and give an empty hidden one to write the new files into.

    When the block ends well they take their places: first the main file of before goes, the main
    file and contents.json come last. Until then what was there stays untouched.
    With several processes the first alone writes; the others get None.
    InputError if another process holds the folder, or if a file in the way is not the command's.
    """
    if distributed.RANK != 0:
        yield None
        return
    with hold(call.out):
        contents = read_contents(call.out)
        # At once, not after hours.
        _refuse_if_in_the_way(call, contents, [call.main_file])
        new = call.out / UNFINISHED
        _remove(new)  # of a call that was killed
        new.mkdir()
        try:
            yield new
            if call.finish is not None:
                call.finish(new)
            _put_in_place(call, contents, new)
        finally:
            _remove(new)


def taken_names(call: Call) -> set[str]:
    """Paths within a folder that this call may not write.

    They are other commands' and, in a folder with contents.json, other people's.
    """
    contents = read_contents(call.out)
    if contents is None:
        return set()
    taken = _all_files(contents)
    taken |= {path.name for path in call.out.iterdir()}
    return taken - _own_files(call, contents) - _shared_files(contents)


def listed_files(folder: Path) -> set[str]:
    """Paths of all commands' files within a folder."""
    return _all_files(read_contents(folder) or {})


def _all_files(contents: Contents) -> set[str]:
    return {name for entry in contents.values() for name in entry["files"]}


def _shared_files(contents: Contents) -> set[str]:
    """Files of explorers and their pages, to which several commands add."""
    layers = {name for name in _all_files(contents) if EXPLORER in name}
    return layers | {f"{name.partition(EXPLORER)[0]}.html" for name in layers}


def read_contents(folder: Path) -> Contents | None:
    """Give what contents.json in a folder says, None where there is none. InputError if damaged."""
    path = folder / CONTENTS
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        commands = json.loads(text)["commands"]
        for entry in commands.values():
            if not all(_is_inside(name) for name in entry["files"]):
                raise ValueError("a path that leads out of the folder")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{printable(path)}: damaged, or none of ours ({printable(error)});"
            " move it away, or choose another --out"
        ) from None
    return commands


def _is_inside(name: object) -> bool:
    """Whether a name in contents.json is a relative path that stays below its folder."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.parts != ()


def _own_files(call: Call, contents: Contents | None) -> set[str]:
    """Give what the command may replace, and what goes with the results of its last call."""
    if contents is None or call.command not in contents:
        return set()
    return {*contents[call.command]["files"], *call.made_later}


def _refuse_if_in_the_way(call: Call, contents: Contents | None, names: Sequence[str]) -> None:
    """InputError, naming it, if something that is not the command's stands in a file's place."""
    own = _own_files(call, contents) | _shared_files(contents or {})
    for name in names:
        target = call.out / name
        is_others = contents is not None and name not in own and os.path.lexists(target)
        in_the_way = target if is_others or target.is_dir() else _bad_folder(call.out, name)
        if in_the_way is not None:
            raise InputError(
                f"{printable(in_the_way)}: in the way, and {CONTENTS} does not name it as a result"
                f" of {printable(call.command)}; move it, or choose another --out"
            )


def _bad_folder(out: Path, name: str) -> Path | None:
    """Give what stands where a file's folders should be: a file, or a link that leads elsewhere."""
    folders = [out / parent for parent in PurePosixPath(name).parents][:-1]
    for folder in reversed(folders):
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            return folder
    return None


def _put_in_place(call: Call, contents: Contents | None, new: Path) -> None:
    """Replace the command's files of before by those in a folder."""
    names = _files_below(new)
    try:
        _refuse_if_in_the_way(call, contents, names)
    except InputError as error:
        kept = _unused_path(call.out / NOT_PLACED)
        os.rename(new, kept)
        raise InputError(f"{error}; the new results are whole in {printable(kept)}") from None
    if contents is None:
        _count_others(call.out, names)
        contents = {}
    before = _own_files(call, contents)
    entry = {"flags": dict(call.flags), "files": names}
    # Killed from here on: all that may lie there is known to be ours.
    unfinished = {"unfinished": True, "files": sorted({*before, *names})}
    _write_contents(call.out, new, contents | {call.command: entry | unfinished})
    (call.out / call.main_file).unlink(missing_ok=True)
    others = _all_files({key: contents[key] for key in contents if key != call.command})
    for name in sorted(before.difference(names, others)):
        _remove_file(call.out, name)
    for name in names:
        if name != call.main_file:
            _move(new, call.out, name)
    _move(new, call.out, call.main_file)
    _write_contents(call.out, new, contents | {call.command: entry})


def _files_below(folder: Path) -> list[str]:
    """Give the paths of all files, relative to a folder."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _unused_path(path: Path) -> Path:
    number = 2
    unused = path
    while os.path.lexists(unused):
        unused = path.with_name(f"{path.name}-{number}")
        number += 1
    return unused


def _count_others(out: Path, names: Sequence[str]) -> None:
    """Say how many files without a list stay: they may be of another call."""
    written = set(names)
    others = 0
    for folder, folders, files in os.walk(out):
        folders[:] = [name for name in folders if name != UNFINISHED]
        paths = (Path(folder, name).relative_to(out).as_posix() for name in files)
        others += sum(path != ".lock" and path not in written for path in paths)
    if others:
        what = "1 file stays" if others == 1 else f"{others} files stay"
        print(
            f"{printable(out)}: {what} from before, which no {CONTENTS} lists:"
            " not results of this call"
        )


def _remove_file(out: Path, name: str) -> None:
    """Remove a file of ours, and the folders that are empty without it."""
    if _bad_folder(out, name) or (out / name).is_dir():
        return  # no longer what we wrote
    (out / name).unlink(missing_ok=True)
    with suppress(OSError):  # not empty, or not there
        for parent in list(PurePosixPath(name).parents)[:-1]:
            (out / parent).rmdir()


def _move(new: Path, out: Path, name: str) -> None:
    target = out / name
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(new / name, target)


def _write_contents(out: Path, new: Path, contents: Contents) -> None:
    # By way of the hidden folder, so that a kill leaves no temporary file beside the results.
    with atomic(new / CONTENTS, "w", encoding="utf-8") as file:
        json.dump({"commands": contents}, file, indent=1, default=str)
    os.replace(new / CONTENTS, out / CONTENTS)


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        raise InputError(f"{printable(folder)}: a link is in the way; move it")
    if folder.exists():
        shutil.rmtree(folder)
