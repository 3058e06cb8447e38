"""Compilation of kernels with numba, and a fused multiply-add. Imported where kernels are: numba takes half a second.

Kernels release the GIL and are cached on disk. Sums that determine a result use `fma` (multiply and add with one
rounding) in a written order, so that it depends neither on the vector width nor on blocks nor on the thread count.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from numba import types
from numba.core import event
from numba.extending import intrinsic

from n4flow.compute import clock
from n4flow.compute.numba_cache import WAITING, njit

log = logging.getLogger("n4flow")
EVERY = 10.0  # Seconds of compiling between two lines of a log.

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


class _Compiling(event.Listener):
    """Logs that kernels are being compiled and how it goes on, and stops the clock meanwhile.

    A kernel that calls another is compiled around it; so is one that another thread waits for. To wait until another
    process has compiled a kernel counts as compiling.
    """

    def __init__(self) -> None:
        self.open, self.started, self.kernels, self.said = 0, 0.0, 0, -EVERY

    def on_start(self, event: Any) -> None:
        own = event.kind == WAITING or event.data["dispatcher"].py_func.__module__.startswith("n4flow.")
        self.kernels += own
        if not self.open:
            self.started = time.perf_counter()
            if own and self.kernels == 1:
                clock.first_compiled()
            if own and clock.compiling() - self.said >= EVERY:
                self.said = clock.compiling()
                log.info(
                    "compiling kernels for this processor; this happens once and takes up to some minutes"
                    if self.kernels == 1
                    else f"compiling kernels: {self.kernels} after {self.said:.0f} s"
                )
        self.open += 1

    def on_end(self, event: Any) -> None:
        self.open -= 1
        if not self.open:
            clock.add_compiling(time.perf_counter() - self.started)


_compiling = _Compiling()
event.register("numba:compile", _compiling)
event.register(WAITING, _compiling)
