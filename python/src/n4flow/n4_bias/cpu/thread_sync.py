# mypy: ignore-errors
# (numba gives these functions their types)
"""A team of threads that run one compiled function side by side and meet inside it.

An iteration of N4 is two sweeps over the voxels with a little serial work between them, some hundred microseconds in
all. Handing that to threads from Python, sweep by sweep, would cost as much as the work. So every member of the team
runs the whole function: members claim pieces of a sweep until none is left, and wait for each
other where the next step needs all of them. Which member did which piece never matters, because a piece writes to its
own place.

There is no global pool: two teams may run at once, in threads of a caller's own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from n4flow.compute.jit import kernel

LINE = 8  # words to a cache line; what different members write to lies a line apart
# words of the shared array; from CLAIMED on, see `claim`
ARRIVED, ROUND, ABORT, POSTED, CLAIMED = 0, LINE, 2 * LINE, 3 * LINE, 4 * LINE
FIRST_SWEEP, SECOND_SWEEP = 0, 1
SPINS = 2000  # looks at a word before the processor is offered to others: some microseconds

# the C library's; declared here, so that a member that waits on a busy machine lets the others run
_give_way = types.ExternalFunction("sched_yield", types.int32())


def new_team(members: int) -> np.ndarray:
    """Return the words that a team of at most `members` shares."""
    return np.zeros(CLAIMED + 2 * members * LINE, np.int64)


@intrinsic
def atomic_add(context, words, index, value):
    """Add to words[index] in one indivisible step; return what it was."""

    def build(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature, arguments)
        return builder.atomic_rmw("add", pointer, arguments[2], "seq_cst")

    return types.int64(words, types.intp, types.int64), build


@intrinsic
def atomic_load(context, words, index):
    """Return words[index] as other threads left it."""

    def build(context, builder, signature, arguments):
        return builder.load_atomic(_pointer(context, builder, signature, arguments), "seq_cst", 8)

    return types.int64(words, types.intp), build


def _pointer(context, builder, signature, arguments):
    array_type = signature.args[0]
    array = arrayobj.make_array(array_type)(context, builder, arguments[0])
    return cgutils.get_item_pointer(context, builder, array_type, array, [arguments[1]])


@kernel
def claim(words, sweep, member, members, pieces):
    """Return the next piece of a sweep, or `pieces` where none is left.

    A member's own share comes first: what its last sweep wrote of it is still in its processor's cache. Then it helps
    the others.
    """
    for k in range(members):
        owner = (member + k) % members
        begin, end = pieces * owner // members, pieces * (owner + 1) // members
        piece = begin + atomic_add(words, CLAIMED + (2 * owner + sweep) * LINE, np.int64(1))
        if piece < end:
            return piece
    return pieces


@kernel
def begin_anew(words, sweep, members):
    """Make all pieces of a sweep free again; while no member claims any."""
    for owner in range(members):
        words[CLAIMED + (2 * owner + sweep) * LINE] = 0


@kernel
def wait_for_change(words, index, value):
    """Wait until words[index] is another than `value`; return False where the team was told to give up."""
    looks = 0
    while atomic_load(words, index) == value:
        if atomic_load(words, ABORT) != 0:
            return False
        looks += 1
        if looks > SPINS:
            _give_way()
    return True


@kernel
def meet(words, members):
    """Wait until every member has come here; return False where the team was told to give up."""
    this_round = atomic_load(words, ROUND)
    if atomic_add(words, ARRIVED, np.int64(1)) + 1 == members:
        words[ARRIVED] = 0
        atomic_add(words, ROUND, np.int64(1))
        return True
    return wait_for_change(words, ROUND, this_round)


def run(work: Callable[[int, int], Any], words: np.ndarray, members: int) -> None:
    """Call work(member, members) in `members` threads, of which this one is member 0.

    Parameters
    ----------
    work : callable
        Runs compiled functions that release the GIL and `meet` on `words`.
    words : what `new_team` returned
    members : int
        Fewer take part where the system gives no more threads.
    """
    gate = threading.Event()
    team = [1]

    def follow(member: int) -> None:
        gate.wait()
        work(member, team[0])

    threads = []
    try:
        for member in range(1, members):
            thread = threading.Thread(target=follow, args=(member,), daemon=True)
            thread.start()
            threads.append(thread)
            team[0] += 1
    except RuntimeError:  # no more threads: those that started are the team
        pass
    gate.set()
    try:
        work(0, team[0])
    except BaseException:
        words[ABORT] = 1
        raise
    finally:
        for thread in threads:
            thread.join()
