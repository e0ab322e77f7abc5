"""What differs between operating systems and C libraries: memory, open files, counters."""

import ctypes
import resource
from contextlib import suppress


def keep_memory():
    """Have the C library (glibc) keep freed memory for the next image or batch: fresh memory from the system costs a fifth of a
    training step, a seventh of tiling a raster."""
    with suppress(OSError, AttributeError):  # another C library: it does as it likes
        for setting, value in (
            (-3, 2**25),
            (-3, 2**30),
            (-1, 2**31 - 1),
        ):  # M_MMAP_THRESHOLD, as far as this glibc goes, M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(setting, value)


def allow_open_files(count):
    # Every mapped array holds a file open; the usual soft limit of 1024 is below the 1585 rasters of the real data.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count + 256:
        limit = count + 256 if hard == resource.RLIM_INFINITY else min(hard, count + 256)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


def blocks_read():
    # What this thread has had read from a disk, in the system's units.
    return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock
