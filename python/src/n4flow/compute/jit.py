"""Compilation of kernels with numba, a fused multiply-add, and what callers of kernels need.

Kernels release the GIL and are cached on disk. Sums that determine a result use `fma` (multiply and add with one
rounding) in a written order, so that it depends neither on the vector width nor on blocks nor on the thread count.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numba.core import event
from numba.extending import intrinsic

from n4flow.compute.numba_cache import njit
from n4flow.compute.threads import available_threads

log = logging.getLogger("n4flow")

THREAD_VOXELS = 1 << 20  # A further thread starts only for at least this many voxels.
BLOCK_VOXELS = 1 << 20  # largest block: 4 MB of float32

kernel = njit(nogil=True, cache=True, error_model="numpy")
# A loop over one row is inlined, because passing a dozen arrays to a function would cost as much as the row.
row_kernel = njit(nogil=True, cache=True, error_model="numpy", forceinline=True)


@intrinsic
def fma(_context, a, b, c):  # type: ignore[no-untyped-def]
    """Return a b + c with one rounding; all three have the same float type."""
    if not (isinstance(a, types.Float) and a == b == c):
        return None

    def build(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.fma(*arguments)

    return a(a, b, c), build


class _Announcement(event.Listener):
    """Logs once that kernels are being compiled, which takes some seconds after an installation."""

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
    """Return `threads`; by default as many as this process may use."""
    return available_threads() if threads is None else max(1, int(threads))


def writeable(array: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    """Return `array` as kernels need it: contiguous, native byte order, writeable; copied if it is not."""
    return np.require(array, np.dtype(dtype).newbyteorder("="), ["C", "W"])


def useful_threads(threads: int, voxels: int) -> int:
    """Return how many of `threads` make a pass over `voxels` faster than the start of a thread costs."""
    return max(1, min(threads, voxels // THREAD_VOXELS))


def cut_blocks(shape: Sequence[int], threads: int) -> list[tuple[int, int, int, int]]:
    """Cut a volume into blocks of planes, or of rows if planes are large or few: z_start, z_stop, y_start, y_stop."""
    n_z, n_y, n_x = shape
    if 0 in shape:
        return []
    most = min(BLOCK_VOXELS, -(-n_z * n_y * n_x // (4 * threads))) if threads > 1 else BLOCK_VOXELS
    deep = max(1, most // (n_y * n_x))
    high = n_y if n_y * n_x <= most else max(1, most // n_x)
    return [(z, min(z + deep, n_z), y, min(y + high, n_y)) for z in range(0, n_z, deep) for y in range(0, n_y, high)]
