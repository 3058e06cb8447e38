"""What the compiled loops share: how they are compiled, one rounding rule, and threads.

Every kernel is compiled without the GIL and cached on disk. Sums that decide a result use `fma` (multiply and add with
one rounding) in a written order, so that neither vector width nor cut nor thread count changes a bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numba import types
from numba.core import event
from numba.extending import intrinsic

from n4flow.compute.numba_cache import njit
from n4flow.compute.threads import available_threads, run_tasks

log = logging.getLogger("n4flow")

THREAD_VOXELS = 1 << 20  # fewest voxels to a thread
PIECE_VOXELS = 1 << 20  # most voxels to a piece of work: 4 MB of float32

kernel = njit(nogil=True, cache=True, error_model="numpy")
# A loop over one row, inlined where it is called: handing over a dozen arrays would cost as much as the row.
row_kernel = njit(nogil=True, cache=True, error_model="numpy", forceinline=True)


@intrinsic
def fma(_context, a, b, c):  # type: ignore[no-untyped-def]
    """Return a b + c with one rounding; all three of one float type."""
    if not (isinstance(a, types.Float) and a == b == c):
        return None

    def build(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.fma(*arguments)

    return a(a, b, c), build


class _Announcement(event.Listener):
    """Says once that kernels are being compiled: it takes a while, and only after an install."""

    said = False

    def on_start(self, event: Any) -> None:
        function = event.data["dispatcher"].py_func
        if not self.said and function.__module__.startswith("n4flow."):
            type(self).said = True
            log.info("compiling kernels for this processor; this happens once and takes some seconds")

    def on_end(self, event: Any) -> None:
        pass


event.register("numba:compile", _Announcement())


def thread_count(threads: int | None) -> int:
    """Return `threads`, or as many as this process may use."""
    return available_threads() if threads is None else max(1, int(threads))


def writeable(array: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    """Return `array` as the kernels want it: contiguous, native, writeable; copied where it is not."""
    return np.require(array, np.dtype(dtype).newbyteorder("="), ["C", "W"])


def useful_threads(threads: int, voxels: int) -> int:
    """Return as many of `threads` as are sooner done with a pass over `voxels` than they are started."""
    return max(1, min(threads, voxels // THREAD_VOXELS))


def parallel_for(work: Callable[[int, int], None], n: int, threads: int) -> None:
    """Call work(start, stop) for parts of range(n), a few for each thread so that a slow one delays little."""
    parts = min(n, 4 * threads) if threads > 1 else 1
    cuts = [n * i // parts for i in range(parts + 1)]
    run_tasks(lambda part: work(*part), pairwise(cuts), threads)


def cut_blocks(shape: Sequence[int], threads: int) -> list[tuple[int, int, int, int]]:
    """Cut planes, and where planes are large or few their rows, into pieces: z_start, z_stop, y_start, y_stop."""
    n_z, n_y, n_x = shape
    if 0 in shape:
        return []
    most = min(PIECE_VOXELS, -(-n_z * n_y * n_x // (4 * threads))) if threads > 1 else PIECE_VOXELS
    deep = max(1, most // (n_y * n_x))
    high = n_y if n_y * n_x <= most else max(1, most // n_x)
    return [(z, min(z + deep, n_z), y, min(y + high, n_y)) for z in range(0, n_z, deep) for y in range(0, n_y, high)]
