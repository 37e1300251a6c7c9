"""How the processes of a job hold memory: little of it unused, pixels where memory is warm."""

from __future__ import annotations

import contextlib
import ctypes
import os

# Parameters of glibc's mallopt.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def tune_malloc() -> None:
    """Sets up glibc and pyarrow, before either has threads.

    One arena for all threads: the runner's threads otherwise keep one each, 40 MB more at 5,000
    pairs than at 500. Blocks up to 32 MiB from the heap: a decoded image otherwise is fresh pages
    from the kernel each time, a tenth of the time of a pair.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    # Other C libraries than glibc have no such knobs, and do without.
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)
