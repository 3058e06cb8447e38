"""Compiled loops of the stages. Plain arithmetic in a fixed order, without the GIL, so that threads may share planes.

Every function works on one plane (or some rows of it) and never on a whole volume; who calls it decides on threads.
Each output depends on its own plane alone, so results do not depend on how many threads there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from n4flow.bins import INFINITY_BITS, MAGNITUDE, N_BINS, RESIDUAL, SHIFT

# Count and sum of residuals share one 64-bit word: 26 bits of count above 38 bits of sum, enough for 2**25 voxels.
COUNT_SHIFT = 38
PIECE_VOXELS = 1 << 25

# columns of the per-plane counts of `shrink_rows_*`
N_VALID, N_ZERO, N_NONFINITE, N_NEGATIVE, N_SATURATED = range(5)


@njit(nogil=True, cache=True)
def shrink_rows_int(
    plane: Any, k: int, row_start: int, row_stop: int, saturated: Any, mean: Any, valid: Any, counts: Any, extremes: Any
) -> None:
    """Block means of an integer plane for block rows row_start <= r < row_stop; see `statistics.shrink_planes`."""
    n_y, n_x = plane.shape
    n_cols = mean.shape[1]
    for r in range(row_start, row_stop):
        y_stop = min(n_y, (r + 1) * k)
        for c in range(n_cols):
            x_stop = min(n_x, (c + 1) * k)
            total = np.int64(0)
            n = 0
            for y in range(r * k, y_stop):
                for x in range(c * k, x_stop):
                    v = np.int64(plane[y, x])
                    if v == 0:
                        continue
                    total += v
                    n += 1
                    counts[N_NEGATIVE] += v < 0
                    counts[N_SATURATED] += v == saturated
                    if v < extremes[0]:
                        extremes[0] = v
                    if v > extremes[1]:
                        extremes[1] = v
            size = (y_stop - r * k) * (x_stop - c * k)
            counts[N_VALID] += n
            counts[N_ZERO] += size - n
            mean[r, c] = total / n if n else 0.0
            valid[r, c] = n / size


@njit(nogil=True, cache=True)
def shrink_rows_float(
    plane: Any, k: int, row_start: int, row_stop: int, mean: Any, valid: Any, counts: Any, extremes: Any
) -> None:
    """Block means of a float32 plane for block rows row_start <= r < row_stop; see `statistics.shrink_planes`."""
    n_y, n_x = plane.shape
    n_cols = mean.shape[1]
    for r in range(row_start, row_stop):
        y_stop = min(n_y, (r + 1) * k)
        for c in range(n_cols):
            x_stop = min(n_x, (c + 1) * k)
            total = 0.0
            n = 0
            for y in range(r * k, y_stop):
                for x in range(c * k, x_stop):
                    v = np.float64(plane[y, x])
                    if v == 0.0:
                        counts[N_ZERO] += 1
                        continue
                    if not np.isfinite(v):
                        counts[N_NONFINITE] += 1
                        continue
                    total += v
                    n += 1
                    counts[N_NEGATIVE] += v < 0.0
                    if v < extremes[0]:
                        extremes[0] = v
                    if v > extremes[1]:
                        extremes[1] = v
            counts[N_VALID] += n
            mean[r, c] = total / n if n else 0.0
            valid[r, c] = n / ((y_stop - r * k) * (x_stop - c * k))


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
def plane_lookup(plane: Any, threshold: float, knots_x: Any, knots_y: Any, starts: Any, top_slope: float) -> None:
    """In place: the piecewise-linear map through the knots, for finite voxels above `threshold`.

    `starts` gives, for equal steps from the first knot to the last, the segment in which a step begins. Above the last
    knot the map goes on with `top_slope`. Float64 inside, rounded once, so that rounding cannot break monotony.
    """
    n = knots_x.size
    first, last = knots_x[0], knots_x[n - 1]
    steps = starts.size / (last - first)
    for y in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            v = np.float64(plane[y, x])
            if not v > threshold or v == 0.0 or v == np.inf:
                continue
            if v >= last:
                plane[y, x] = knots_y[n - 1] + (v - last) * top_slope
                continue
            j = starts[min(int((v - first) * steps), starts.size - 1)]
            while j > 0 and v < knots_x[j]:  # the step was rounded up
                j -= 1
            while v >= knots_x[j + 1]:
                j += 1
            slope = (knots_y[j + 1] - knots_y[j]) / (knots_x[j + 1] - knots_x[j])
            plane[y, x] = knots_y[j] + (v - knots_x[j]) * slope
