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
def histogram_rows(bits: Any, classes: Any, table: Any) -> tuple[Any, Any]:
    """Add rows (y, X) of a float32 plane to a table of packed counts and sums; return the first and last bin in use.

    Parameters
    ----------
    bits : (y * X,) int32 array
        A view of the voxels.
    classes : (y, X) uint8 array
        0 tissue, 1 agarose, 2 the rest.
    table : (3 * 2 * N_BINS + 1, 2) int64 array
        By class, sign and bin; the last row counts invalid voxels. Every other voxel is counted in the second column,
        because neighbours often share a bin, and an addition to a word has to wait for the one before.
    """
    low, high = np.int32(N_BINS), np.int32(-1)
    n_x = up(classes.shape[1])
    place = np.empty(n_x + up(1), np.uint32)
    one, nowhere = np.int64(1) << COUNT_SHIFT, np.uint32(table.shape[0] - 1)
    words = table.reshape(-1)
    for y in range(up(classes.shape[0])):
        at = y * n_x
        for x in range(n_x):
            word = bits[at + x]
            magnitude = word & np.int32(MAGNITUDE)
            usable = (magnitude > 0) & (magnitude < np.int32(INFINITY_BITS))
            index = magnitude >> np.int32(SHIFT)
            low = min(low, index if usable else np.int32(N_BINS))
            high = max(high, index if usable else np.int32(-1))
            start = np.int32(classes[y, x]) * np.int32(2 * N_BINS)
            start += np.int32(N_BINS) if word < 0 else np.int32(0)
            place[x] = np.uint32(start + index) if usable else nowhere
        # unsigned indices need no test for negative ones
        for x in range(up(1), n_x, up(2)):
            first, second = up(place[x - up(1)]) * up(2), up(place[x]) * up(2) + up(1)
            words[first] += one + np.int64(bits[at + x - up(1)] & np.int32(RESIDUAL))
            words[second] += one + np.int64(bits[at + x] & np.int32(RESIDUAL))
        if n_x % up(2):
            x = n_x - up(1)
            words[up(place[x]) * up(2)] += one + np.int64(bits[at + x] & np.int32(RESIDUAL))
    table[nowhere] = 0
    return low, high


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


@njit(nogil=True, cache=True, error_model="numpy")
def count_planes(
    source: Any,
    small: Any,
    k: int,
    y_start: int,
    values: Any,
    classes: Any,
    table: Any,
    out: Any,
    ends: Any,
) -> None:
    """Count rows of planes, a few at a time, so that they stay in the cache.

    Parameters
    ----------
    source : (z, y, X) array
        uint8, uint16, int16 or float32.
    small : (z, blocks down, blocks across) uint8 array
        Classes of k x k voxels of the planes, of which `y_start` is the first row.
    values, classes : (1, rows, X) float32 and uint8 array
        Buffers for the rows that are counted at a time.
    table
        See `histogram_rows`; all zeros, before and after.
    out : (3, n) int64 array
        Written: bins, counts and sums, list after list; n is at least the number of voxels.
    ends : (z, 3, 2) int64 array
        Written: where the list of each plane, class and sign ends.
    """
    n_z, n_y, n_x = source.shape
    step, n = values.shape[1], 0
    for z in range(n_z):
        low, high = np.int32(N_BINS), np.int32(-1)
        for start in range(0, n_y, step):
            stop = min(n_y, start + step)
            rows = stop - start
            for y in range(rows):
                for x in range(n_x):
                    values[0, y, x] = np.float32(source[z, start + y, x])
            flat = values.reshape(-1)[: rows * n_x]
            expand_rows(small[z : z + 1], k, y_start + start, 0, classes[:, :rows])
            first, last = histogram_rows(flat.view(np.int32), classes[0, :rows], table)
            low, high = min(low, first), max(high, last)
        for c in range(3):
            for sign in range(2):
                start = (2 * c + sign) * N_BINS
                n += _drain(table, start + low, start + high + 1, 2 * c * N_BINS, out[:, n:])
                ends[z, c, sign] = n


@njit(nogil=True, cache=True)
def _drain(table: Any, start: int, stop: int, shift: int, out: Any) -> int:
    """Move rows `start` to `stop` of `table` to a list and set them to zero; return the number of bins in use.

    The bin of a row is its index minus `shift`.
    """
    n = 0
    for place in range(start, stop):
        word, other = table[place, 0], table[place, 1]
        if word | other:
            rest = (np.int64(1) << COUNT_SHIFT) - 1
            out[0, n] = place - shift
            out[1, n] = (word >> COUNT_SHIFT) + (other >> COUNT_SHIFT)
            out[2, n] = (word & rest) + (other & rest)
            table[place, 0] = 0
            table[place, 1] = 0
            n += 1
    return n
