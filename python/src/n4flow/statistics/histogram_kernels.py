"""Compiled loops of the stages. Plain arithmetic in a fixed order, without the GIL, so that threads may share planes.

Every function works on one plane (or some rows of it) and never on a whole volume; who calls it decides on threads.
Each output depends on its own plane alone, so results do not depend on how many threads there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from n4flow.compute import simd as v
from n4flow.compute.jit import row_kernel
from n4flow.compute.numba_cache import njit
from n4flow.statistics.bins import INFINITY_BITS, MAGNITUDE, N_BINS, RESIDUAL, SHIFT

# Count and sum of residuals share one 64-bit word: 26 bits of count above 38 bits of sum, enough for 2**25 voxels.
COUNT_SHIFT = 38
PIECE_VOXELS = 1 << 25

up: Any = np.uintp


@row_kernel
def _add_ends(value, ends):  # type: ignore[no-untyped-def]
    """Widen the ranges of positive and of negative finite values, the latter by size, by a vector."""
    none, infinity = v.splat(np.float32(0)), v.splat(np.float32(np.inf))
    size = v.maximum(value, v.subtract(none, value))
    above = v.where_below(none, value, v.where_below(size, infinity, size, none), none)
    below = v.where_below(value, none, v.where_below(size, infinity, size, none), none)
    return (
        v.minimum(ends[0], v.where_below(none, above, above, infinity)),
        v.maximum(ends[1], above),
        v.minimum(ends[2], v.where_below(none, below, below, infinity)),
        v.maximum(ends[3], below),
    )


@njit(nogil=True, cache=True, error_model="numpy")
def _touch(voxels: Any, touched: Any) -> None:
    """Widen `touched` (2, 2), the ranges of bins in use, of positive and of negative values, by float32 voxels (n,)."""
    none, infinity = v.splat(np.float32(0)), v.splat(np.float32(np.inf))
    ends = (infinity, none, infinity, none)
    whole = voxels.size - voxels.size % v.LANES
    for i in range(0, whole, v.LANES):
        ends = _add_ends(v.load(voxels, i), ends)
    few = np.zeros(v.LANES, np.float32)
    few[: voxels.size - whole] = voxels[whole:]
    ends = _add_ends(v.load(few, 0), ends)
    found = np.array(
        [v.lowest_of(ends[0]), v.highest_of(ends[1]), v.lowest_of(ends[2]), v.highest_of(ends[3])], np.float32
    )
    for sign in range(2):
        if found[2 * sign + 1] > 0:
            bins = found[2 * sign : 2 * sign + 2].view(np.int32) >> np.int32(SHIFT)
            touched[sign, 0] = min(touched[sign, 0], bins[0])
            touched[sign, 1] = max(touched[sign, 1], bins[1])


@njit(nogil=True, cache=True, error_model="numpy")
def histogram_rows(rows: Any, bits: Any, classes: Any, table: Any, touched: Any) -> None:
    """Add rows (y, X) of a float32 plane, also seen as int32 bits, to `table` of packed count and sum.

    Parameters
    ----------
    rows, bits : (y * X,) float32 and int32 array
    classes : (y, X) uint8 array
        0 tissue, 1 agarose, 2 the rest.
    table : (3 * 2 * N_BINS + 1, 2) int64 array
        By class, sign and bin; the last row takes what is no valid voxel. Every other voxel is counted in the second
        column: neighbours are alike, and memory takes a second addition to a word only when the first is done.
    touched : (2, 2) int32 array
        Bins in use, of positive and of negative values; see `_touch`.
    """
    _touch(rows, touched)
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
            start = np.int32(classes[y, x]) * np.int32(2 * N_BINS)
            start += np.int32(N_BINS) if word < 0 else np.int32(0)
            place[x] = np.uint32(start + (magnitude >> np.int32(SHIFT))) if usable else nowhere
        # indices without a sign: there is no test for one that counts from the end
        for x in range(up(1), n_x, up(2)):
            first, second = up(place[x - up(1)]) * up(2), up(place[x]) * up(2) + up(1)
            words[first] += one + np.int64(bits[at + x - up(1)] & np.int32(RESIDUAL))
            words[second] += one + np.int64(bits[at + x] & np.int32(RESIDUAL))
        if n_x % up(2):
            x = n_x - up(1)
            words[up(place[x]) * up(2)] += one + np.int64(bits[at + x] & np.int32(RESIDUAL))
    table[nowhere] = 0


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
    """Count rows of planes; what a thread works on stays in its cache.

    Parameters
    ----------
    source : (z, y, X) array
        uint8, uint16, int16 or float32.
    small : (z, blocks down, blocks across) uint8 array
        Classes of k x k voxels of the planes, of which `y_start` is the first row.
    values, classes : (1, rows, X) float32 and uint8 array
        Room for the rows that are worked on at a time.
    table
        See `histogram_rows`; all zeros, before and after.
    out : (3, n) int64 array
        Written: bins, counts and sums, one list behind the other; n at least the number of voxels.
    ends : (z, 3, 2) int64 array
        Written: where the list of each plane, class and sign ends.
    """
    n_z, n_y, n_x = source.shape
    step, n = values.shape[1], 0
    touched = np.empty((2, 2), np.int32)
    for z in range(n_z):
        touched[:, 0], touched[:, 1] = np.int32(N_BINS), np.int32(-1)
        for start in range(0, n_y, step):
            stop = min(n_y, start + step)
            rows = stop - start
            for y in range(rows):
                for x in range(n_x):
                    values[0, y, x] = np.float32(source[z, start + y, x])
            flat = values.reshape(-1)[: rows * n_x]
            expand_rows(small[z : z + 1], k, y_start + start, 0, classes[:, :rows])
            histogram_rows(flat, flat.view(np.int32), classes[0, :rows], table, touched)
        for c in range(3):
            for sign in range(2):
                low, high = touched[sign]
                if low <= high:
                    first = (2 * c + sign) * N_BINS
                    n += _drain(table, first + low, first + high + 1, 2 * c * N_BINS, out[:, n:])
                ends[z, c, sign] = n


@njit(nogil=True, cache=True)
def _drain(table: Any, start: int, stop: int, shift: int, out: Any) -> int:
    """Move rows `start` to `stop` of `table` into a list, leaving zeros behind; a row's bin is its place less `shift`.

    Returns how many bins were in use.
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


@njit(nogil=True, cache=True)
def add_pieces(bins: Any, counts: Any, sums: Any, first: int, span: int) -> tuple[Any, Any, Any]:
    """Add counts and sums of equal bins, of `span` ones from `first` on; return bins in use, counts and sums."""
    added = np.zeros((span, 2), np.int64)
    for i in range(bins.size):
        added[bins[i] - first, 0] += counts[i]
        added[bins[i] - first, 1] += sums[i]
    n = 0
    for i in range(span):
        n += added[i, 0] > 0
    found = np.empty((3, n), np.int64)
    n = 0
    for i in range(span):
        if added[i, 0] > 0:
            found[0, n], found[1, n], found[2, n] = first + i, added[i, 0], added[i, 1]
            n += 1
    return found[0], found[1], found[2]


@njit(nogil=True, cache=True)
def add_pairs(index: Any, values: Any, counts: Any, total: Any, moment: Any) -> None:
    """Add counts, and counts times values, to the bins at `index`, in order."""
    for i in range(index.size):
        total[index[i]] += np.float64(counts[i])
        moment[index[i]] += np.float64(counts[i]) * np.float64(values[i])
