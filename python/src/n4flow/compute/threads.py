"""What a stage does to every array it is given: check it, and share its planes out to threads."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

_limit: list[int] = []  # one number, once `limit_threads` was called
_local = threading.local()


def available_threads() -> int:
    """Return how many cores this process may use; 1 in a thread of `workers`, which shares nothing out."""
    return 1 if getattr(_local, "inside", False) else thread_limit()


def thread_limit() -> int:
    """Return how many cores this process may use, whichever of its threads asks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, *_limit) if _limit else cores


def limit_threads(threads: int) -> None:
    """Let the stages of this process use at most so many threads; a job may own fewer cores than it sees."""
    _limit[:] = [max(1, int(threads))]


def workers(threads: int) -> ThreadPoolExecutor:
    """Return a pool whose threads share nothing out to others: what they call runs in them."""
    return ThreadPoolExecutor(threads, initializer=_mark)


def _mark() -> None:
    _local.inside = True


@contextmanager
def crew() -> Iterator[None]:
    """Let `run_tasks` of this thread keep its threads, and what buffers they hold, until the end of the block."""
    count = available_threads()
    if count == 1 or getattr(_local, "crew", None) is not None:
        yield
        return
    with workers(count) as pool:
        _local.crew = pool
        try:
            yield
        finally:
            _local.crew = None


def run_tasks(function: Callable[..., Any], tasks: Iterable[Any], threads: int | None = None) -> list[Any]:
    """Return `function(task)` for each task, in order, computed by `threads` threads; one within a thread of such."""
    tasks = list(tasks)
    count = 1 if getattr(_local, "inside", False) else min(threads or available_threads(), len(tasks))
    if count <= 1:
        return [function(task) for task in tasks]
    kept = getattr(_local, "crew", None)
    if kept is not None and threads is None:
        return list(kept.map(function, tasks))
    with workers(count) as pool:
        return list(pool.map(function, tasks))


def share_planes(work: Callable[[int, int], None], n: int) -> None:
    """Call work(start, stop) for parts of `n` planes, by all threads; for all planes at once within a thread."""
    if getattr(_local, "inside", False):
        work(0, n)
        return
    parts = min(n, 4 * available_threads())
    run_tasks(lambda part: work(*part), pairwise([n * i // parts for i in range(parts + 1)]))


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return a buffer of this thread, kept from call to call: fresh pages cost more than the arithmetic on them."""
    held: dict[str, np.ndarray] = _local.__dict__.setdefault("held", {})
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if name not in held or held[name].size < size:
        held[name] = np.empty(size, np.uint8)
    return held[name][:size].view(dtype).reshape(shape)
