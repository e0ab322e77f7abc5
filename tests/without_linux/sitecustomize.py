"""Takes from a process what only Linux, or only Linux and macOS, have.

Python imports this by itself where the folder is on PYTHONPATH, in worker processes as well. The
variable WITHOUT_LINUX names the system that is played: macos or windows.
"""

import ctypes
import mmap
import multiprocessing
import multiprocessing.context
import os
import signal
import sys

SYSTEM = os.environ["WITHOUT_LINUX"]


class CDLL(ctypes.CDLL):
    """ctypes.CDLL, but the process's own C library is another one than glibc."""

    def __init__(self, name, *arguments, **options):
        if name is None and SYSTEM == "windows":
            raise TypeError("a name is needed")
        self.is_c_library = name is None
        super().__init__(name, *arguments, **options)

    def __getattr__(self, name):
        if name == "mallopt" and self.is_c_library:
            raise AttributeError(name)
        return super().__getattr__(name)


ctypes.CDLL = CDLL
del os.sched_getaffinity

# No process is forked: macOS has fork, but it is not safe there.
contexts = multiprocessing.context._concrete_contexts
contexts["fork"] = contexts["spawn"]
multiprocessing.set_start_method("spawn")
del os.fork

if SYSTEM == "macos":
    import resource

    del resource.RUSAGE_THREAD
else:
    sys.modules["fcntl"] = None
    sys.modules["resource"] = None
    del os.sync
    del signal.pthread_sigmask
    for name in [name for name in dir(mmap) if name.startswith("MADV_")]:
        delattr(mmap, name)
