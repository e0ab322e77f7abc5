"""What differs between operating systems: cores, memory, open files, processes.

Where a system lacks a call, the program does without what the call would have gained.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.context import BaseContext
from pathlib import Path

try:
    import resource
except ImportError:  # Windows has none
    resource = None

# Parameters of glibc's mallopt (man mallopt).
TRIM_THRESHOLD = -1
MMAP_THRESHOLD = -3

CONTROL_GROUP = "/sys/fs/cgroup"  # of this process, where a container has limits (Linux)

SPARE_FILES = 256  # open files that a process needs besides those that it maps


def available_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_memory() -> None:
    """Have the C library (glibc) keep freed memory for the next image or batch.

    Fresh memory from the system costs a fifth of a training step and a seventh of tiling a raster.
    Another C library does as it likes.
    """
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_THRESHOLD, 2**25)
        mallopt(MMAP_THRESHOLD, 2**30)  # newer versions take so much; else the first call holds
        mallopt(TRIM_THRESHOLD, 2**31 - 1)


def return_memory() -> None:
    """Have the C library (glibc) give the memory of large arrays back as soon as they are freed.

    Kept memory is scattered with small things that live longer: over hours it grows without end.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 2**21)


def allow_open_files(count: int) -> None:
    """Raise the limit of open files to `count` and some to spare, as far as the system lets us.

    Every mapped array holds a file open; the usual limit of 1024 is below the real data's 1585.
    """
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY:
        wanted = min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def mappable_files() -> int:
    """How many files this process may keep mapped at a time."""
    most = 32768  # Linux maps at most 65530, whatever else is allowed
    if resource is None:
        return 256
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return most
    return min(max(16, soft - SPARE_FILES), most)


def blocks_read() -> int:
    """What this thread has had read from a disk, in the system's units; 0 if it does not say."""
    if not hasattr(resource, "RUSAGE_THREAD"):
        return 0
    return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock


def read_ahead(file: int, first: int, count: int) -> None:
    """Have so many bytes of an open file read at once, where the system can be asked to."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, first, count, os.POSIX_FADV_WILLNEED)


def free_memory() -> int | None:
    """Bytes of memory that new work may take; None where the system does not say (not Linux).

    What the system could give up of its cache counts as free. In a container with a limit of its
    own it is what that leaves.
    """
    try:
        of_machine = Path("/proc/meminfo").read_text(encoding="ascii")
        free = 1024 * int(of_machine.partition("MemAvailable:")[2].split()[0])
    except (OSError, ValueError, IndexError):
        return None
    with suppress(OSError, ValueError, IndexError):
        limit = int(Path(CONTROL_GROUP, "memory.max").read_text(encoding="ascii"))
        used = int(Path(CONTROL_GROUP, "memory.current").read_text(encoding="ascii"))
        cached = Path(CONTROL_GROUP, "memory.stat").read_text(encoding="ascii")
        used -= int(cached.partition("inactive_file ")[2].split()[0])
        free = min(free, max(0, limit - used))
    return free


def worker_processes() -> BaseContext:
    """How worker processes are started: forked where that is safe, in milliseconds; else anew.

    Forking is safe on Linux in a process that has started no threads, as preprocessing.py has not.
    """
    return multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Keep Ctrl-C waiting, also in processes that are started meanwhile, for as long as they run.

    A terminal sends Ctrl-C to all its processes: the workers are to leave it to their parent.
    Windows has no such call; there workers ignore Ctrl-C as soon as they have started.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def follow_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and end as soon as it has ended, however it did."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
