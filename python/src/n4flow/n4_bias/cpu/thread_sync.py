# mypy: ignore-errors
# (numba gives these functions their types)
"""Threads that run one compiled function in parallel and synchronize inside it: barriers and shared work queues.

An iteration of N4 is two sweeps over the voxels with a little serial work between them, a few hundred microseconds in
all. Starting each sweep from Python, through a thread pool, would cost as much as the work. So every thread runs the
whole function: threads claim strips of a sweep until none is left, and wait at barriers where the next step needs all
of them. The result does not depend on which thread computed which strip, because each strip writes to its own place.

A thread that waits reads a word for some microseconds and then sleeps in the kernel. Its core is then free for the
thread that it waits for, which on a busy machine may be the one that another process pushed aside.

There is no global pool: a caller may run several such groups at once, in threads of its own.
"""

from __future__ import annotations

import platform
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from n4flow.compute.jit import kernel

LINE = 8  # int64 words in a cache line; words that different threads write to lie in different lines
# Indices into the array of shared words. From CLAIMED on lie the counters that `claim` uses.
ARRIVED, ROUND, ABORT, POSTED, ASLEEP, CLAIMED = 0, LINE, 2 * LINE, 3 * LINE, 4 * LINE, 5 * LINE
FIRST_SWEEP, SECOND_SWEEP = 0, 1
SPINS = 2000  # how often a waiting thread reads a word, a few microseconds, before it sleeps

# Linux's call by which threads sleep until a word changes, by processor; 0 where there is none that is known. The word
# has 32 bits: the lower half of ours, which comes first.
_CALLS = {"x86_64": 202, "aarch64": 98, "riscv64": 98}
FUTEX = _CALLS.get(platform.machine(), 0) if sys.platform == "linux" and sys.byteorder == "little" else 0
WAIT, WAKE = 128, 129  # FUTEX_WAIT and FUTEX_WAKE among the threads of one process
ALL = 1 << 30

# Functions of the C library.
_yield_core = types.ExternalFunction("sched_yield", types.int32())
_system_call = types.ExternalFunction(
    "syscall", types.int64(types.int64, types.uintp, types.int64, types.int64, types.uintp, types.uintp, types.int64)
)


def new_sync(threads: int) -> np.ndarray:
    """Return the array of words by which at most `threads` threads synchronize."""
    return np.zeros(CLAIMED + 2 * threads * LINE, np.int64)


@intrinsic
def atomic_add(context, words, index, value):
    """Add to words[index] atomically; return the value before."""

    def build(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature, arguments)
        return builder.atomic_rmw("add", pointer, arguments[2], "seq_cst")

    return types.int64(words, types.intp, types.int64), build


@intrinsic
def atomic_load(context, words, index):
    """Return words[index] as the other threads left it (an atomic load)."""

    def build(context, builder, signature, arguments):
        return builder.load_atomic(_pointer(context, builder, signature, arguments), "seq_cst", 8)

    return types.int64(words, types.intp), build


def _pointer(context, builder, signature, arguments):
    array_type = signature.args[0]
    array = arrayobj.make_array(array_type)(context, builder, arguments[0])
    return cgutils.get_item_pointer(context, builder, array_type, array, [arguments[1]])


@kernel
def claim(words, sweep, thread, threads, strips):
    """Return the next strip of a sweep, or `strips` where none is left.

    A thread claims its own share first, since that is still in its core's cache from the last sweep. Then it helps the
    others.
    """
    for k in range(threads):
        owner = (thread + k) % threads
        begin, end = strips * owner // threads, strips * (owner + 1) // threads
        strip = begin + atomic_add(words, CLAIMED + (2 * owner + sweep) * LINE, np.int64(1))
        if strip < end:
            return strip
    return strips


@kernel
def reset_claims(words, sweep, threads):
    """Make all strips of a sweep claimable again. No thread may claim any meanwhile."""
    for owner in range(threads):
        words[CLAIMED + (2 * owner + sweep) * LINE] = 0


@kernel
def wait_for_change(words, index, value):
    """Wait until words[index] differs from `value`; return False if the run was aborted."""
    reads = 0
    while atomic_load(words, index) == value:
        if atomic_load(words, ABORT) != 0:
            return False
        reads += 1
        if reads > SPINS:
            sleep(words, index, value)
    return atomic_load(words, ABORT) == 0


@kernel
def sleep(words, index, value):
    """Sleep until words[index] is changed by `change`, unless it differs from `value` already; may end early."""
    if FUTEX == 0:
        _yield_core()
        return
    # `change` looks for sleepers after it wrote the word, and the kernel compares it after this: one of them sees it
    atomic_add(words, ASLEEP, np.int64(1))
    if atomic_load(words, ABORT) == 0:
        place = np.uintp(words.ctypes.data) + np.uintp(8 * index)
        _system_call(FUTEX, place, WAIT, value & 0xFFFFFFFF, np.uintp(0), np.uintp(0), 0)
    atomic_add(words, ASLEEP, np.int64(-1))


@kernel
def change(words, index):
    """Add 1 to words[index], and wake the threads that wait for it."""
    atomic_add(words, index, np.int64(1))
    if FUTEX != 0 and atomic_load(words, ASLEEP) != 0:
        place = np.uintp(words.ctypes.data) + np.uintp(8 * index)
        _system_call(FUTEX, place, WAKE, ALL, np.uintp(0), np.uintp(0), 0)


@kernel
def abort(words):
    """Let every thread that waits, or will wait, go on with the answer that the run was aborted."""
    atomic_add(words, ABORT, np.int64(1))
    change(words, np.int64(ROUND))
    change(words, np.int64(POSTED))


@kernel
def barrier(words, threads):
    """Wait until every thread has arrived here; return False if the run was aborted."""
    this_round = atomic_load(words, ROUND)
    if atomic_add(words, ARRIVED, np.int64(1)) + 1 == threads:
        words[ARRIVED] = 0
        change(words, np.int64(ROUND))
        return True
    return wait_for_change(words, np.int64(ROUND), this_round)


def run_threads(work: Callable[[int, int], Any], words: np.ndarray, threads: int) -> None:
    """Call work(thread, threads) in `threads` threads, of which the calling one is thread 0.

    `work` runs compiled functions that release the GIL and synchronize by `words`. The system may start fewer threads;
    `work` is told how many run.
    """
    start = threading.Event()
    running = [1]

    def follow(thread: int) -> None:
        start.wait()
        work(thread, running[0])

    started = []
    try:
        for number in range(1, threads):
            thread = threading.Thread(target=follow, args=(number,), daemon=True)
            thread.start()
            started.append(thread)
            running[0] += 1
    except RuntimeError:  # the system starts no more threads: those that run do the work
        pass
    start.set()
    try:
        work(0, running[0])
    except BaseException:
        abort(words)
        raise
    finally:
        for thread in started:
            thread.join()
