"""The memory of this process: what the system lets it have, and how much freed memory the C library keeps."""

from __future__ import annotations

import ctypes
import os
import sys
import threading

from n4flow.errors import OutOfMemoryError

M_ARENA_MAX = -8  # the constant of malloc.h
LEAST_MB = 850  # `n4flow run` on 5 x 20 x 24 voxels had 816 MB of address space while it compiled, 714 MB afterwards.


def check_address_space() -> None:
    """Refuse a limit of address space under which libraries cannot be loaded or LLVM aborts, without a sentence.

    Raises
    ------
    OutOfMemoryError
        The limit is below what the smallest run takes.
    """
    if sys.platform == "win32":
        return
    import resource

    limit, _hard = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_MB * 10**6:
        needed = f"n4flow needs at least {LEAST_MB} MB of address space, more for large planes"
        msg = f"{needed}, and the limit is {limit // 10**6} MB; raise it (ulimit -v, or the memory of the job)"
        raise OutOfMemoryError(msg)


def limit_arenas() -> None:
    """Let glibc use one arena of memory for each core, where its default is eight.

    Memory that was freed in one arena is not available to threads of another: with many arenas, the peak memory of a
    process grows slab by slab. The limit has no effect on threads that run already, so nothing is done then, nor if the
    user set MALLOC_ARENA_MAX.
    """
    if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ and threading.active_count() == 1:
        limit = getattr(ctypes.CDLL(None), "mallopt", None)  # Only glibc has it; other C libraries have no arenas.
        if limit is not None:
            limit(M_ARENA_MAX, max(2, len(os.sched_getaffinity(0))))


def trim_heap() -> None:
    """Return freed memory to the system. Otherwise the C library keeps it, in addition to what is allocated next."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # Only glibc has it.
        if trim is not None:
            trim(0)
