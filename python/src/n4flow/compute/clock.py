"""A clock that stands still while kernels are compiled: that happens once, and says nothing of how fast they are."""

from __future__ import annotations

import time
from collections.abc import Callable

_compiling: list[float] = [0.0]
_when_first: list[Callable[[], object]] = []


def at_first_kernel(function: Callable[[], object]) -> None:
    """Let a function be called when this process begins to compile its first kernel; not if all of them are cached."""
    _when_first[:] = [function]


def first_compiled() -> None:
    """Call what `at_first_kernel` was given, once."""
    while _when_first:
        _when_first.pop()()


def now() -> float:
    """Return seconds, of which only differences mean something, without those of compiling."""
    return time.perf_counter() - _compiling[0]


def compiling() -> float:
    """Return the seconds for which kernels were compiled in this process."""
    return _compiling[0]


def add_compiling(seconds: float) -> None:
    """Take seconds off the clock, in which kernels were compiled."""
    _compiling[0] += seconds


def said_of_compiling(since: float = 0.0) -> str:
    """Return what a line about a computation says of compiling beyond `since` seconds; nothing below a tenth."""
    seconds = compiling() - since
    return f", after compiling kernels for {seconds:.3g} s, once" if seconds >= 0.1 else ""
