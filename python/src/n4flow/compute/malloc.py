"""How much of the memory that was freed the C library keeps."""

from __future__ import annotations

import ctypes
import os
import sys
import threading

M_ARENA_MAX = -8  # of malloc.h


def limit_arenas() -> None:
    """Let the C library keep one arena of memory for each core, where its own choice is eight.

    What was freed in one arena is not given to threads of another: with many, the peak of a process creeps up slab by
    slab. Nothing is done once there are threads, which have arenas then and would share those out; nor where the user
    set MALLOC_ARENA_MAX.
    """
    if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ and threading.active_count() == 1:
        limit = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc; others have no arenas
        if limit is not None:
            limit(M_ARENA_MAX, max(2, len(os.sched_getaffinity(0))))


def trim_heap() -> None:
    """Return memory that was freed to the system: the C library keeps it, and what comes next would lie on top."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
        if trim is not None:
            trim(0)
