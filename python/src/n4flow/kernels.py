"""Compiled loops of the stages. Plain arithmetic in a fixed order, without the GIL, so that threads may share planes.

Every function works on one plane (or some rows of it) and never on a whole volume; who calls it decides on threads.
Each output depends on its own plane alone, so results do not depend on how many threads there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from n4flow.bins import INFINITY_BITS, MAGNITUDE, N_BINS, RESIDUAL, SHIFT
from n4flow.kernel_cache import njit

# Count and sum of residuals share one 64-bit word: 26 bits of count above 38 bits of sum, enough for 2**25 voxels.
COUNT_SHIFT = 38
PIECE_VOXELS = 1 << 25

# columns of the per-plane counts of `shrink_rows_*`
N_VALID, N_ZERO, N_NONFINITE, N_NEGATIVE, N_SATURATED = range(5)


@njit(nogil=True, cache=True)
def _reduce_columns(sums: Any, found: Any, k: int, rows: int, r: int, mean: Any, valid: Any) -> None:
    """Turn sums and counts of each column over `rows` rows into block r's means and valid shares."""
    n_x = sums.size
    for c in range(mean.shape[1]):
        x_stop = min(n_x, (c + 1) * k)
        total = 0.0
        n = 0
        for x in range(c * k, x_stop):
            total += sums[x]
            n += found[x]
        mean[r, c] = total / n if n else 0.0
        valid[r, c] = n / (rows * (x_stop - c * k))


@njit(nogil=True, cache=True)
def shrink_rows_int(
    plane: Any, k: int, row_start: int, row_stop: int, saturated: Any, mean: Any, valid: Any, counts: Any, extremes: Any
) -> None:
    """Block means of an integer plane for block rows row_start <= r < row_stop; see `statistics.shrink_planes`."""
    n_y, n_x = plane.shape
    sums = np.empty(n_x, np.int64)
    found = np.empty(n_x, np.int32)
    low, high = np.int32(2147483647), np.int32(-2147483648)
    for r in range(row_start, row_stop):
        y_stop = min(n_y, (r + 1) * k)
        sums[:] = 0
        found[:] = 0
        for y in range(r * k, y_stop):
            row = plane[y]
            n = np.int32(0)
            negative = np.int32(0)
            full = np.int32(0)
            # no branches and 32-bit counts of a row, so that the compiler does several voxels at once
            for x in range(n_x):
                v = np.int32(row[x])
                some = np.int32(v != 0)
                sums[x] += v
                found[x] += some
                n += some
                negative += np.int32(v < 0)
                full += np.int32(v == saturated)
                low = min(low, v if v != 0 else np.int32(2147483647))
                high = max(high, v if v != 0 else np.int32(-2147483648))
            counts[N_VALID] += n
            counts[N_ZERO] += n_x - n
            counts[N_NEGATIVE] += negative
            counts[N_SATURATED] += full
        _reduce_columns(sums, found, k, y_stop - r * k, r, mean, valid)
    if low <= high:
        extremes[0], extremes[1] = low, high


@njit(nogil=True, cache=True, fastmath={"nnan"})
def shrink_rows_float(
    plane: Any, bits: Any, k: int, row_start: int, row_stop: int, mean: Any, valid: Any, counts: Any, extremes: Any
) -> None:
    """Block means of a float32 plane, also seen as int32 `bits`; validity is read from the bits alone."""
    n_y, n_x = plane.shape
    sums = np.empty(n_x, np.float64)
    found = np.empty(n_x, np.int32)
    low, high = np.float32(3.4028235e38), np.float32(-3.4028235e38)
    for r in range(row_start, row_stop):
        y_stop = min(n_y, (r + 1) * k)
        sums[:] = 0.0
        found[:] = 0
        for y in range(r * k, y_stop):
            row, words = plane[y], bits[y]
            n = np.int32(0)
            zero = np.int32(0)
            negative = np.int32(0)
            for x in range(n_x):
                magnitude = words[x] & np.int32(MAGNITUDE)
                usable = (magnitude > 0) & (magnitude < np.int32(INFINITY_BITS))
                v = row[x] if usable else np.float32(0)
                sums[x] += np.float64(v)
                found[x] += np.int32(usable)
                n += np.int32(usable)
                zero += np.int32(magnitude == 0)
                negative += np.int32(usable & (words[x] < 0))
                low = min(low, v if usable else np.float32(3.4028235e38))
                high = max(high, v if usable else np.float32(-3.4028235e38))
            counts[N_VALID] += n
            counts[N_ZERO] += zero
            counts[N_NONFINITE] += n_x - n - zero
            counts[N_NEGATIVE] += negative
        _reduce_columns(sums, found, k, y_stop - r * k, r, mean, valid)
    if low <= high:
        extremes[0], extremes[1] = low, high


@njit(nogil=True, cache=True)
def histogram_rows(
    bits: Any,
    tissue: Any,
    has_tissue: bool,
    agarose: Any,
    has_agarose: bool,
    row_start: int,
    row_stop: int,
    table: Any,
    touched: Any,
) -> None:
    """Add rows of a float32 plane, seen as int32 bits, to `table` (3, 2 * N_BINS) of packed count and residual sum.

    Classes: 0 tissue, 1 agarose outside tissue, 2 the rest. `touched` (3, 2) is the range of bins in use.
    """
    for y in range(row_start, row_stop):
        for x in range(bits.shape[1]):
            word = bits[y, x]
            magnitude = word & MAGNITUDE
            if magnitude == 0 or magnitude >= INFINITY_BITS:
                continue
            c = 2
            if has_tissue and tissue[y, x]:
                c = 0
            elif has_agarose and agarose[y, x]:
                c = 1
            index = magnitude >> SHIFT
            if word < 0:
                index += N_BINS
            table[c, index] += (np.int64(1) << COUNT_SHIFT) + np.int64(magnitude & RESIDUAL)
            if index < touched[c, 0]:
                touched[c, 0] = index
            if index > touched[c, 1]:
                touched[c, 1] = index


@njit(nogil=True, cache=True)
def drain(table: Any, touched: Any, c: int, bins: Any, counts: Any, sums: Any) -> int:
    """Move class `c` of `table` into the lists, leaving zeros behind; returns how many bins were in use."""
    n = 0
    for index in range(touched[c, 0], touched[c, 1] + 1):
        word = table[c, index]
        if word:
            bins[n] = index
            counts[n] = word >> COUNT_SHIFT
            sums[n] = word & ((np.int64(1) << COUNT_SHIFT) - 1)
            table[c, index] = 0
            n += 1
    touched[c, 0] = 2 * N_BINS
    touched[c, 1] = -1
    return n


@njit(nogil=True, cache=True)
def plane_range(plane: Any, lower: Any, upper: Any, span: Any) -> None:
    """In place: clip at `upper`, then `lower`, subtract `lower`, divide by `span`. Zeros and non-finite voxels stay."""
    for y in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            v = plane[y, x]
            if v == np.float32(0.0) or not np.isfinite(v):
                continue
            plane[y, x] = (max(min(v, upper), lower) - lower) / span


@njit(nogil=True, cache=True)
def plane_gain(plane: Any, tissue: Any, gain: Any) -> None:
    """In place: multiply tissue voxels by `gain`."""
    for y in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            if tissue[y, x]:
                plane[y, x] *= gain


@njit(nogil=True, cache=True)
def plane_lookup(plane: Any, threshold: float, x: Any, y: Any, slopes: Any, starts: Any) -> None:
    """In place: the piecewise-linear map through the knots (x, y), for finite voxels above `threshold`.

    x and y end with infinity, so that what lies above the last knot is a segment too; `slopes` has one for each.
    `starts` gives, for equal steps from the first knot to the last, the segment in which a step begins, or one before;
    from there it is two knots at most. Float64 inside and rounded once; a segment ends no higher than its knot, so that
    rounding does not break monotony.
    """
    first, last = x[0], x[x.size - 2]
    steps = starts.size / (last - first)
    end = np.uint64(starts.size - 1)  # unsigned: no test for an index from the end
    one = np.uint64(1)
    for r in range(plane.shape[0]):
        row = plane[r]
        for c in range(row.size):
            # no branches: on which side of a threshold or a knot a voxel lies is a matter of speckle
            v = np.float64(row[c])
            mapped = (v > threshold) & (v != 0.0) & (v < np.inf)
            u = v if mapped else first
            j = np.uint64(starts[min(np.uint64((min(u, last) - first) * steps), end)])
            j += np.uint64(u >= x[j + one])
            j += np.uint64(u >= x[j + one])
            w = np.float32(min(y[j] + (u - x[j]) * slopes[j], y[j + one]))
            row[c] = w if mapped else row[c]
