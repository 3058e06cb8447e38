"""Compiled loops of block means: sums of k x k blocks of planes that come in rows, counts and extremes.

Plain arithmetic in a fixed order, without the GIL, as in `kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from n4flow.compute import simd as v
from n4flow.compute.jit import row_kernel
from n4flow.compute.numba_cache import njit
from n4flow.statistics.bins import INFINITY_BITS, MAGNITUDE

# columns of the per-plane counts of `shrink_rows_*`
N_VALID, N_ZERO, N_NONFINITE, N_NEGATIVE, N_SATURATED = range(5)
MOST_MEASURED = 1 << 24  # voxels at a time: float32 counts them exactly
PLAIN, ZEROS, BROKEN = range(3)  # all voxels valid; zeros among them; others that are not finite


@njit(nogil=True, cache=True, error_model="numpy")
def _any(flags: Any) -> bool:
    """Return whether one of some whole numbers is not 0."""
    found = np.int32(0)
    for i in range(flags.size):
        found |= flags[i]
    return found != 0


@row_kernel
def _add_whole(column, k, totals):  # type: ignore[no-untyped-def]
    for c in range(totals.size):
        total = totals[c]
        for j in range(k):
            total += column[c * k + j]
        totals[c] = total


@row_kernel
def add_blocks(column, k, ahead, whole, totals, start):  # type: ignore[no-untyped-def]
    """Add the columns of each block from left to right to totals[start], ..., many blocks at a time.

    So many columns lie `ahead` of the `whole` blocks and belong to one before them, and some to one after them.
    """
    first, stop = start + (1 if ahead else 0), ahead + whole * k
    for x in range(min(ahead, column.size)):
        totals[start] += column[x]
    inside, sums = column[ahead:stop], totals[first : first + whole]
    # with a constant number of columns the compiler makes vectors of several blocks: a third of the time
    if k == 2:
        _add_whole(inside, 2, sums)
    elif k == 3:
        _add_whole(inside, 3, sums)
    elif k == 4:
        _add_whole(inside, 4, sums)
    elif k == 5:
        _add_whole(inside, 5, sums)
    elif k == 6:
        _add_whole(inside, 6, sums)
    else:
        _add_whole(inside, k, sums)
    for x in range(stop, column.size):
        totals[first + whole] += column[x]


@row_kernel
def mean_of(total, lost, voxels):  # type: ignore[no-untyped-def]
    """Return the mean of a block, and the share of it that is valid."""
    n = np.float64(voxels - lost)
    return total / (n if n > 0.0 else 1.0), n / np.float64(voxels)


@njit(nogil=True, cache=True, error_model="numpy")
def _reduce_columns(sums: Any, lost: Any, k: int, rows: int, mean: Any, valid: Any) -> int:
    """Turn sums and counts of invalid voxels of each column over `rows` rows into means and valid shares.

    Leaves zeros behind; returns how many voxels were valid.
    """
    n_x, whole = sums.size, sums.size // k
    totals = np.zeros(mean.size, np.float64)  # a block of 182 x 182 uint16 may be more than int32 holds; exact for all
    add_blocks(sums, k, 0, whole, totals, 0)
    voxels, last = rows * k, rows * (n_x - whole * k)
    sums[:] = 0
    if not _any(lost):
        for c in range(mean.size):
            mean[c] = totals[c] / np.float64(voxels)
            valid[c] = 1.0
        if whole < mean.size:
            mean[whole] = totals[whole] / np.float64(last)
        return rows * n_x
    gone = np.zeros(mean.size, np.int32)
    add_blocks(lost, k, 0, whole, gone, 0)
    lost[:] = 0
    for c in range(mean.size):
        mean[c], valid[c] = mean_of(totals[c], gone[c], voxels)
    if whole < mean.size:
        mean[whole], valid[whole] = mean_of(totals[whole], gone[whole], last)
    return rows * n_x - gone.sum()


@njit(nogil=True, cache=True, error_model="numpy")
def shrink_rows_int(
    rows: Any,
    y_start: int,
    n_y: int,
    k: int,
    limits: Any,
    sums: Any,
    lost: Any,
    mean: Any,
    valid: Any,
    counts: Any,
    extremes: Any,
) -> None:
    """Add rows of an integer plane, the first being row `y_start` of `n_y`, to the means of k x k blocks.

    `sums` and `lost` (X,), of invalid voxels, hold what earlier rows gave to the block row that is not complete yet;
    they are 0 at first. `mean` and `valid` (blocks down, blocks across) are written, and voxels counted, where a block
    row ends.
    """
    n_x = rows.shape[1]
    none, one = rows.dtype.type(0), rows.dtype.type(1)
    bottom, top = rows.dtype.type(limits[0]), rows.dtype.type(limits[1])
    low, high = top, bottom
    for i in range(rows.shape[0]):
        # loops of one thing each, in the type of the voxels and without branches, become the longest vectors
        for x in range(n_x):
            sums[x] += np.int32(rows[i, x])
        for x in range(n_x):
            low = min(low, rows[i, x] if rows[i, x] != none else top)
        for x in range(n_x):
            high = max(high, rows[i, x] if rows[i, x] != none else bottom)
        zeros = none
        for x in range(n_x):
            zeros = max(zeros, one if rows[i, x] == none else none)
        if zeros:
            for x in range(n_x):
                lost[x] += np.int32(rows[i, x] == none)
        y = y_start + i
        if (y + 1) % k == 0 or y + 1 == n_y:
            n = _reduce_columns(sums, lost, k, y % k + 1, mean[y // k], valid[y // k])
            counts[N_VALID] += n
            counts[N_ZERO] += (y % k + 1) * n_x - n
    if low < none or high == top:
        for i in range(rows.shape[0]):
            for x in range(n_x):
                counts[N_NEGATIVE] += rows[i, x] < none
                counts[N_SATURATED] += rows[i, x] == top
    if low <= high:
        extremes[0], extremes[1] = min(extremes[0], np.float64(low)), max(extremes[1], np.float64(high))


@row_kernel
def _add_measures(value, sums):  # type: ignore[no-untyped-def]
    """Add a vector of voxels to the counts of finite, of valid, of negative ones, and to the extremes."""
    finite, valid, negative, low, high = sums
    none, one, infinity = v.splat(np.float32(0)), v.splat(np.float32(1)), v.splat(np.float32(np.inf))
    size = v.maximum(value, v.subtract(none, value))
    within = v.where_below(size, infinity, one, none)
    usable = v.where_below(none, size, within, none)
    low = v.minimum(low, v.where_below(none, usable, value, infinity))
    high = v.maximum(high, v.where_below(none, usable, value, v.subtract(none, infinity)))
    below = v.where_below(value, none, usable, none)
    return v.add(finite, within), v.add(valid, usable), v.add(negative, below), low, high


@njit(nogil=True, cache=True, error_model="numpy")
def measure(voxels: Any, counts: Any, extremes: Any) -> int:
    """Count float32 voxels (n,), at most MOST_MEASURED, and widen their extremes; return PLAIN, ZEROS or BROKEN."""
    none, infinity = v.splat(np.float32(0)), v.splat(np.float32(np.inf))
    sums = (none, none, none, infinity, v.subtract(none, infinity))
    whole = voxels.size - voxels.size % v.LANES
    for i in range(0, whole, v.LANES):
        sums = _add_measures(v.load(voxels, i), sums)
    few = np.full(v.LANES, np.float32(np.nan))
    few[: voxels.size - whole] = voxels[whole:]
    finite, valid, negative, low, high = _add_measures(v.load(few, 0), sums)
    n = int(v.sum_of(valid))
    counts[N_VALID] += n
    counts[N_ZERO] += int(v.sum_of(finite)) - n
    counts[N_NONFINITE] += voxels.size - int(v.sum_of(finite))
    counts[N_NEGATIVE] += int(v.sum_of(negative))
    extremes[0] = min(extremes[0], v.lowest_of(low))
    extremes[1] = max(extremes[1], v.highest_of(high))
    if n == voxels.size:
        return PLAIN
    return ZEROS if int(v.sum_of(finite)) == voxels.size else BROKEN


@row_kernel
def usable(bits):  # type: ignore[no-untyped-def]
    """Return whether a float32, seen as int32, is finite, and whether it is valid."""
    magnitude = bits & np.int32(MAGNITUDE)
    finite = magnitude < np.int32(INFINITY_BITS)
    return finite, finite & (magnitude != 0)


@njit(nogil=True, cache=True, error_model="numpy")
def shrink_rows_float(
    rows: Any,
    bits: Any,
    y_start: int,
    n_y: int,
    k: int,
    sums: Any,
    lost: Any,
    mean: Any,
    valid: Any,
    counts: Any,
    extremes: Any,
) -> None:
    """Do what `shrink_rows_int` does for float32 rows, also seen as int32 `bits`."""
    state = measure(rows.reshape(-1), counts, extremes)
    n_x = rows.shape[1]
    for i in range(rows.shape[0]):
        if state == PLAIN:
            for x in range(n_x):
                sums[x] += np.float64(rows[i, x])
        else:
            for x in range(n_x):
                finite, good = usable(bits[i, x])
                sums[x] += np.float64(rows[i, x] if finite else np.float32(0))
                lost[x] += np.int32(not good)
        y = y_start + i
        if (y + 1) % k == 0 or y + 1 == n_y:
            _reduce_columns(sums, lost, k, y % k + 1, mean[y // k], valid[y // k])
