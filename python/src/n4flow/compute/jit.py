"""Compilation of kernels with numba, and a fused multiply-add. Imported where kernels are: numba takes half a second.

Kernels release the GIL and are cached on disk. Sums that determine a result use `fma` (multiply and add with one
rounding) in a written order, so that it depends neither on the vector width nor on blocks nor on the thread count.
"""

from __future__ import annotations

import logging
from typing import Any

from numba import types
from numba.core import event
from numba.extending import intrinsic

from n4flow.compute.numba_cache import njit

log = logging.getLogger("n4flow")

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
