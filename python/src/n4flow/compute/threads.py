"""Threads: how many a computation may use, and pools of them that work on planes.

Threads of a pool do not start further threads: a function that would run in parallel runs serially there. So every
function of the package may be called from a thread of the pool without more threads than cores.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from n4flow.compute.cores import usable_cores

if TYPE_CHECKING:
    import numpy as np
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

THREAD_VOXELS = 1 << 20  # A further thread starts only for at least this many voxels.
BLOCK_VOXELS = 1 << 20  # largest block: 4 MB of float32

_limit: list[int] = []  # holds one number once `limit_threads` was called


class _Local(threading.local):
    """State of a thread: whether it belongs to a pool, the pool that it reuses, and its scratch buffers."""

    in_pool = False
    pool: ThreadPoolExecutor | None = None

    def __init__(self) -> None:
        self.buffers: dict[str, np.ndarray] = {}


_local = _Local()


def available_threads() -> int:
    """Return how many cores this process may use; 1 in a thread of a `thread_pool`."""
    return 1 if _local.in_pool else thread_limit()


def thread_limit() -> int:
    """Return how many cores this process may use, whichever of its threads asks."""
    return min([usable_cores(), *_limit])


def limit_threads(threads: int) -> None:
    """Let this process use at most `threads` threads: a job may own fewer cores than it sees."""
    _limit[:] = [max(1, int(threads))]


def thread_count(threads: int | None) -> int:
    """Return `threads`; by default as many as this process may use."""
    return available_threads() if threads is None else max(1, int(threads))


def useful_threads(threads: int, voxels: int) -> int:
    """Return how many of `threads` make a pass over `voxels` faster than the start of a thread costs."""
    return max(1, min(threads, voxels // THREAD_VOXELS))


def thread_pool(threads: int) -> ThreadPoolExecutor:
    """Return a thread pool whose threads run serially whatever they call."""
    return ThreadPoolExecutor(threads, initializer=setattr, initargs=(_local, "in_pool", True))


@contextmanager
def reuse_threads(most: int | None = None) -> Iterator[None]:
    """Let all calls of `run_tasks` within the block use one thread pool, whose threads keep their `scratch` buffers.

    It has `most` threads at most; with one, what is called runs serially.
    """
    count = available_threads() if most is None else max(1, min(most, available_threads()))
    if _local.in_pool or _local.pool is not None:
        yield
        return
    with thread_pool(count) as pool:
        _local.in_pool, _local.pool = count == 1, pool
        try:
            yield
        finally:
            _local.in_pool, _local.pool = False, None


def run_tasks(function: Callable[..., Any], tasks: Iterable[Any], threads: int | None = None) -> list[Any]:
    """Return [function(task) for task in tasks], computed by `threads` threads; serially in a thread of a pool."""
    tasks = list(tasks)
    count = 1 if _local.in_pool else min(threads or available_threads(), len(tasks))
    if count <= 1:
        return [function(task) for task in tasks]
    if _local.pool is not None and threads is None:
        return list(_local.pool.map(function, tasks))
    with thread_pool(count) as pool:
        return list(pool.map(function, tasks))


def serial_algebra() -> threadpool_limits:
    """Return a context or decorator in which NumPy's linear algebra takes one thread.

    On many small matrices the threads of BLAS wait for each other, at full load: where others work on the machine, or a
    job owns fewer cores than it sees, that takes eight times the CPU time.
    """
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas")


def parallel_planes(work: Callable[[int, int], None], n: int, threads: int | None = None) -> None:
    """Call work(start, stop) for ranges of `n` planes or blocks: a few for each thread, or one for a single thread."""
    count = threads or available_threads()
    parts = min(n, 4 * count) if count > 1 else 1
    run_tasks(lambda part: work(*part), pairwise([n * i // parts for i in range(parts + 1)]), threads)


def cut_blocks(shape: Sequence[int], threads: int) -> list[tuple[int, int, int, int]]:
    """Cut a volume into blocks of planes, or of rows if planes are large or few: z_start, z_stop, y_start, y_stop."""
    n_z, n_y, n_x = shape
    if 0 in shape:
        return []
    most = min(BLOCK_VOXELS, -(-n_z * n_y * n_x // (4 * threads))) if threads > 1 else BLOCK_VOXELS
    deep = max(1, most // (n_y * n_x))
    high = n_y if n_y * n_x <= most else max(1, most // n_x)
    return [(z, min(z + deep, n_z), y, min(y + high, n_y)) for z in range(0, n_z, deep) for y in range(0, n_y, high)]


def over_planes(kernel: Callable[..., Any], n: int, *arguments: Any) -> None:
    """Call kernel(*arguments, start, stop) for ranges of `n` planes; see `parallel_planes`."""
    parallel_planes(lambda start, stop: kernel(*arguments, start, stop), n)


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return a buffer that this thread reuses from call to call: fresh memory costs more than the arithmetic on it."""
    import numpy as np  # Commands that need no array start in two thirds of the time without it.

    buffers = _local.buffers
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if name not in buffers or buffers[name].size < size:
        buffers[name] = np.empty(size, np.uint8)
    return buffers[name][:size].view(dtype).reshape(shape)
