"""Compiled loops of histograms. They compute in a fixed order and release the GIL.

Every function works on planes, or some rows of them, and starts no threads. The results for a plane depend on this
plane alone, and therefore not on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from n4flow.compute.numba_cache import njit
from n4flow.statistics.bins import INFINITY_BITS, MAGNITUDE, N_BINS, RESIDUAL, SHIFT

# The count of a bin and the sum of its residuals share a 64-bit word: 26 bits of count above 38 bits of sum.
COUNT_SHIFT = 38
PIECE_VOXELS = 1 << 25  # voxels that such a word can count

up: Any = np.uintp


@njit(nogil=True, cache=True, error_model="numpy")
def count_rows(bits: Any, classes: Any, k: int, y_start: int, words: Any) -> tuple[Any, Any]:
    """Add rows of a float32 plane to a table of packed counts and sums; return the first and last bin in use.

    Parameters
    ----------
    bits : (y, X) int32 array
        A view of the voxels.
    classes : (blocks down, blocks across) uint8 array
        Classes of k x k voxels, 0 tissue, 1 agarose, 2 the rest; the rows begin `y_start` voxels below its edge.
    k, y_start : int
    words : (3 * 2 * N_BINS + 1,) int64 array
        By class, sign and bin; the last one is for invalid voxels.
    """
    n_x, side = up(bits.shape[1]), up(k)
    start, place = np.empty(n_x, np.uint32), np.empty(n_x, np.uint32)  # of the class, and of the bin
    one, nowhere = np.int64(1) << COUNT_SHIFT, np.uint32(words.size - 1)
    low, high, held = np.uint32(INFINITY_BITS), np.uint32(0), up(classes.shape[0])
    for y in range(up(bits.shape[0])):
        r = (up(y_start) + y) // side
        if r != held:
            x, held = up(0), r
            for c in range(up(classes.shape[1])):
                first = np.uint32(classes[r, c]) * np.uint32(2 * N_BINS)
                for _i in range(min(side, n_x - x)):
                    start[x] = first
                    x += up(1)
        # every number is made 32 bits again, so that a vector holds eight: numba computes with 64
        for x in range(n_x):
            word = np.uint32(bits[y, x])
            magnitude = np.uint32(word & np.uint32(MAGNITUDE))
            valid = magnitude if magnitude < np.uint32(INFINITY_BITS) else np.uint32(0)
            low, high = min(low, np.uint32(valid - np.uint32(1))), max(high, valid)
            sign = np.uint32(np.uint32(word >> np.uint32(31)) * np.uint32(N_BINS))
            index = np.uint32(np.uint32(start[x] + sign) + np.uint32(magnitude >> np.uint32(SHIFT)))
            place[x] = index if valid > np.uint32(0) else nowhere
        # unsigned indices need no test for negative ones
        for x in range(n_x):
            words[up(place[x])] += one + np.int64(bits[y, x] & np.int32(RESIDUAL))
    return np.int64(low) + 1 >> SHIFT, np.int64(high) >> SHIFT


@njit(nogil=True, cache=True)
def expand_rows(small: Any, k: int, y_start: int, x_start: int, out: Any) -> None:
    """Write a block (z, y, x) of a mask at full resolution from `small` (z, blocks down, blocks across)."""
    column = np.empty(out.shape[2], np.uint32)
    for x in range(column.size):
        column[x] = (x_start + x) // k
    for z in range(out.shape[0]):
        held = -1
        for y in range(out.shape[1]):
            r = (y_start + y) // k
            if r == held:
                for x in range(column.size):
                    out[z, y, x] = out[z, y - 1, x]
                continue
            for x in range(column.size):
                out[z, y, x] = small[z, r, column[x]]
            held = r


@njit(nogil=True, cache=True)
def drain(words: Any, start: int, stop: int, out: Any) -> int:
    """Move the words from `start` to `stop` that are not 0 to `out` (3, n): index, count, sum; return their number."""
    n = 0
    for place in range(start, stop):
        word = words[place]
        if word:
            out[0, n], out[1, n], out[2, n] = place, word >> COUNT_SHIFT, word & ((np.int64(1) << COUNT_SHIFT) - 1)
            words[place] = 0
            n += 1
    return n
