"""Repositories of a Hugging Face hub, downloaded so that what has come is never asked for again.

huggingface_hub's own download throws the half of a file away when a process is killed. So it lists
a repository and says what an answer means; the bytes are received here, by ranges.
"""

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from tqdm import tqdm

from dl_slicer.cities import check_path
from dl_slicer.cli import InputError, printable, say

LIBRARY = "dl-slicer"  # what a hub is told of who asks
WORKERS = 8  # files that are received at a time
TIMEOUT = 30  # seconds without a byte
TRIES = 6  # in a row without a byte, before a download gives up
PAUSE = 1.0  # seconds before the second of them; each further one takes twice as long
LONGEST_PAUSE = 600  # seconds, where the hub itself says how long
SAY_EVERY = 60  # seconds, where there is no terminal for a bar
PIECE = 2**20  # bytes read at a time for a checksum
SPARE = 2**28  # bytes that stay free on the disk

TOO_BUSY = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Repository:
    """What to download from. token: never printed, never written."""

    name: str  # OWNER/NAME
    kind: str  # dataset or model
    endpoint: str  # https://...
    token: str | None = field(default=None, repr=False)

    @property
    def page(self) -> str:
        """The address at which people see it."""
        folder = "datasets/" if self.kind == "dataset" else ""
        return f"{self.endpoint}/{folder}{self.name}"


class RemoteFile(NamedTuple):
    """A file as the hub lists it."""

    path: str
    size: int  # bytes
    digest: str  # sha256:... of the content, or sha1:... as git reckons it


def size_text(count: float) -> str:
    """Give a number of bytes in words."""
    for unit, divisor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= divisor:
            return f"{count / divisor:.1f} {unit}"
    return f"{count:.0f} bytes"


def list_files(repository: Repository) -> tuple[str, list[RemoteFile]]:
    """Give a repository's newest revision and its files; InputError if that cannot be had."""
    api = _library().HfApi(
        endpoint=repository.endpoint, token=repository.token, library_name=LIBRARY
    )
    try:
        with _explained(repository):
            revision = api.repo_info(
                repository.name, repo_type=repository.kind, timeout=TIMEOUT
            ).sha
            entries = api.list_repo_tree(
                repository.name, repo_type=repository.kind, revision=revision, recursive=True
            )
            files = [_remote_file(entry) for entry in entries if hasattr(entry, "blob_id")]
    except (ValueError, KeyError, TypeError, AssertionError, AttributeError):
        # The sign-in page of a hotel, or a wrong --endpoint.
        raise InputError(
            f"{repository.endpoint}: does not answer like a Hugging Face hub; check --endpoint"
        ) from None
    for file in files:
        check_path(file.path, f"{repository.page}:")
    return revision, sorted(files)


def _remote_file(entry: Any) -> RemoteFile:
    if type(entry.size) is not int or entry.size < 0:
        raise ValueError("no size")
    if entry.lfs is not None:
        return RemoteFile(entry.path, entry.size, f"sha256:{entry.lfs.sha256}")
    return RemoteFile(entry.path, entry.size, f"sha1:{entry.blob_id}")


def _library() -> ModuleType:
    # Without this it asks the hub for a list of programs that may have started it.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub.utils  # loaded by the package on demand alone
    except ImportError:
        raise InputError(
            "downloading needs the package huggingface_hub:"
            " pip install -r requirements-optional.txt"
        ) from None
    return huggingface_hub


@contextmanager
def _explained(repository: Repository) -> Iterator[None]:
    """Have whatever goes wrong on the way to a hub end as InputError, in one line."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HfHubHTTPError as error:
        raise InputError(f"{repository.page}: {_meaning(repository, error)}") from None
    except errors.OfflineModeIsEnabled:
        fault = "HF_HUB_OFFLINE forbids to ask; unset it"
        raise InputError(f"{repository.page}: {fault}") from None
    except errors.HTTPError as error:
        raise InputError(
            f"{repository.endpoint}: no connection ({_reason(error)}); check the network, or name"
            " a mirror with --endpoint; what has come is kept, the same command goes on"
        ) from None


def _reason(error: Exception) -> str:
    in_one_line = " ".join(str(error).split())[:100]
    return printable(in_one_line or type(error).__name__)


def _meaning(repository: Repository, error: Exception) -> str:
    """Say what an answer that is an error means, and what to do."""
    from huggingface_hub import errors

    status = error.response.status_code
    said = str(error.response.headers.get("X-Error-Message", ""))
    token = "a token (--token, or HF_TOKEN in the environment)"
    if status == 401 and "credentials" in said:
        fault = "the hub does not know this token; make a new one"
        return f"{fault} at {repository.endpoint}/settings/tokens"
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return f"gated ({status}): accept its terms at this address, then give {token} with access"
    if status == 401:
        return f"no such repository, or one for which the hub wants {token} (401)"
    if isinstance(error, errors.EntryNotFoundError):
        return "a file that it listed is not there; run the same command again"
    if status == 404:
        return "no such repository (404); another hub or a mirror is named with --endpoint"
    return f"the hub answers with {status}; run the same command again later"


def download(
    repository: Repository, revision: str, files: Sequence[RemoteFile], folder: Path, parts: Path
) -> None:
    """Download files of a revision to their paths in a folder.

    What is there is not asked for again, and half a file, in the folder `parts`, goes on where it
    stopped. InputError if the hub, the connection or the disk does not let it.
    """
    to_do = [file for file in files if not _is_there(file, folder)]
    if not to_do:
        return
    parts.mkdir(parents=True, exist_ok=True)
    receiver = _Receiver(repository, revision, folder, parts)
    have = sum(receiver.received(file) for file in to_do)
    total = sum(file.size for file in to_do)
    _check_disk(folder, total - have)
    before = f", {size_text(have)} of them before" if have else ""
    say(f"{repository.page}: {len(to_do)} files, {size_text(total)}{before}")
    with (
        tqdm(
            total=total, initial=have, unit="B", unit_scale=True, disable=None, smoothing=0.1
        ) as receiver.bar,
        ThreadPoolExecutor(WORKERS) as pool,
    ):
        jobs = [pool.submit(receiver.fetch, file) for file in to_do]
        try:
            while jobs:
                done, jobs = wait(jobs, SAY_EVERY, return_when=FIRST_EXCEPTION)
                for job in done:
                    job.result()
                if jobs and receiver.bar.disable:
                    say(f"{size_text(have + receiver.count)} of {size_text(total)} are here")
        except BaseException:
            receiver.stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _is_there(file: RemoteFile, folder: Path) -> bool:
    path = folder / file.path
    return path.is_file() and path.stat().st_size == file.size


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    if needed + SPARE > free:
        raise InputError(
            f"{printable(folder)}: {size_text(needed)} are to come, the disk has"
            f" {size_text(free)} left; make room or choose another --out"
        )


class _Stopped(Exception):
    """Another file failed, or the user pressed Ctrl-C."""


class _Receiver:
    """Receives files, several at a time. State that its threads share."""

    def __init__(self, repository: Repository, revision: str, folder: Path, parts: Path):
        self.repository = repository
        self.revision = revision
        self.folder = folder
        self.parts = parts
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.bar: tqdm | None = None
        self.count = 0  # bytes
        self.headers = _library().utils.build_hf_headers(
            token=repository.token, library_name=LIBRARY
        )
        # Ranges count the bytes of the file, not of something packed for the way.
        self.headers["Accept-Encoding"] = "identity"

    def part(self, file: RemoteFile) -> Path:
        """Where half a file lies. Its name tells the content: another revision may have another."""
        key = f"{file.path}\n{file.digest}"
        return self.parts / hashlib.sha256(key.encode()).hexdigest()[:32]

    def received(self, file: RemoteFile) -> int:
        """Bytes of a file that are there."""
        part = self.part(file)
        return min(part.stat().st_size, file.size) if part.is_file() else 0

    def fetch(self, file: RemoteFile) -> None:
        """Receive a whole file, check it and put it in its place."""
        with _explained(self.repository):
            self._receive_all(file)
        part = self.part(file)
        if _digest(part, file.digest) != file.digest:
            part.unlink()
            raise InputError(
                f"{self.repository.page}: {printable(file.path)} has not come as the hub describes"
                " it (its checksum differs) and was deleted; run the same command again"
            )
        target = self.folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, target)

    def _receive_all(self, file: RemoteFile) -> None:
        from huggingface_hub import errors

        part = self.part(file)
        part.touch()
        if part.stat().st_size > file.size:
            os.truncate(part, 0)
        failures = 0
        while (begin := part.stat().st_size) < file.size:
            error = None
            try:
                self._receive(file, part, begin)
            except errors.HTTPError as caught:
                if _status(caught) not in TOO_BUSY | {None}:
                    raise
                error = caught
            failures = 0 if part.stat().st_size > begin else failures + 1
            if failures == TRIES:
                raise error or InputError(
                    f"{self.repository.endpoint}: sends {printable(file.path)} no further than byte"
                    f" {begin} of {file.size}; run the same command again later"
                )
            if failures:
                self._wait(error, failures)

    def _receive(self, file: RemoteFile, part: Path, begin: int) -> None:
        """Receive what follows the first bytes of a file, as far as the connection lasts."""
        hub = _library()
        url = hub.hf_hub_url(
            self.repository.name,
            file.path,
            repo_type=self.repository.kind,
            revision=self.revision,
            endpoint=self.repository.endpoint,
        )
        headers = {**self.headers, "Range": f"bytes={begin}-"}
        with hub.get_session().stream(
            "GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=True
        ) as response:
            hub.utils.hf_raise_for_status(response)
            comes_from = begin
            if not response.headers.get("Content-Range", "").startswith(f"bytes {begin}-"):
                comes_from = 0  # a server that knows no ranges sends the whole file
            with open(part, "ab") as out:
                out.truncate(comes_from)
                self._add(comes_from - begin)
                left = file.size - comes_from
                for piece in response.iter_bytes():
                    if self.stop.is_set():
                        raise _Stopped
                    out.write(piece[:left])
                    self._add(len(piece[:left]))
                    left -= len(piece)
                    if left <= 0:
                        break

    def _add(self, count: int) -> None:
        with self.lock:
            self.count += count
            self.bar.update(count)

    def _wait(self, error: Exception | None, failures: int) -> None:
        if self.stop.wait(_pause(error, failures)):
            raise _Stopped


def _pause(error: Exception | None, failures: int) -> float:
    """Seconds to wait before the next try: what the hub says, else longer from try to try."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    said = re.fullmatch(r"(\d+)", headers.get("Retry-After", ""))
    # As in "resolvers";r=0;t=55: none are left, new ones come in 55 seconds.
    said = said or re.search(r"\br *= *0 *; *t *= *(\d+)", headers.get("RateLimit", ""))
    return min(int(said[1]), LONGEST_PAUSE) if said else PAUSE * 2 ** (failures - 1)


def _status(error: Exception | None) -> int | None:
    """The status of an answer that was an error; None where there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _digest(path: Path, like: str) -> str:
    """Give the checksum of a file, of the kind and in the form of another one."""
    kind = like.partition(":")[0]
    checksum = hashlib.new(kind)
    if kind == "sha1":  # git's, which puts this before the content
        checksum.update(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            checksum.update(piece)
    return f"{kind}:{checksum.hexdigest()}"
