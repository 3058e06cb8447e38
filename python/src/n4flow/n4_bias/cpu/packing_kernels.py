# mypy: ignore-errors
# (numba gives these functions their types)
"""Compiled loops of `packing`. Indices are unsigned, since loops with signed ones, which may wrap, do not vectorize."""

from __future__ import annotations

import numpy as np

from n4flow.compute import simd as v
from n4flow.compute.jit import kernel, row_kernel
from n4flow.compute.simd import highest_of, lowest_of, sum_of

OUTSIDE = np.float32(np.inf)  # marks voxels outside the mask, and is its own logarithm
_ZERO = np.float32(0)
_ONE = np.uintp(1)
COUNT_BLOCK = 1 << 20  # voxels that are counted in float32 before the count is added to an integer


@row_kernel
def usable(mask, value):
    """Return whether a voxel can be fitted: in the mask, finite, above 0."""
    return (mask != 0) & (value > _ZERO) & (value < OUTSIDE)


@kernel
def find_hulls(values, mask, first, stop, found):
    """Find the first and last usable voxel of each row.

    Parameters
    ----------
    values : (rows, X) float32 array
    mask : (rows, X) uint8 array of 0 and 1
    first, stop : (rows,) uintp arrays
        Written: the range from the first to after the last usable voxel; empty if a row has none.
    found : (rows,) int64 array
        Written: number of usable voxels.

    Returns
    -------
    masked, nonfinite : int
        Numbers of voxels in the mask, and of those that are not finite.
    """
    n_x = np.uintp(values.shape[1])
    all_masked, all_finite = np.int64(0), np.int64(0)
    for r in range(np.uintp(values.shape[0])):
        masked = np.int32(0)
        for x in range(n_x):
            masked += np.int32(mask[r, x])
        found[r], first[r], stop[r] = 0, 0, 0
        if masked == 0:
            continue
        a, b = np.uintp(0), n_x
        while mask[r, a] == 0:
            a += _ONE
        while mask[r, b - _ONE] == 0:
            b -= _ONE
        finite, positive = np.int32(0), np.int32(0)
        for x in range(b - a):
            finite += np.int32((mask[r, a + x] != 0) & (abs(values[r, a + x]) < OUTSIDE))
            positive += np.int32(usable(mask[r, a + x], values[r, a + x]))
        all_masked += masked
        all_finite += finite
        found[r] = positive
        if positive:
            while not usable(mask[r, a], values[r, a]):
                a += _ONE
            while not usable(mask[r, b - _ONE], values[r, b - _ONE]):
                b -= _ONE
            first[r], stop[r] = a, b
    return all_masked, all_masked - all_finite


@kernel
def pack_rows(values, mask, first, stop, start, packed):
    """Copy the usable voxels of each row to the packed array, with `OUTSIDE` between them and as padding."""
    for r in range(np.uintp(values.shape[0])):
        a, at, n = first[r], start[r], stop[r] - first[r]
        for x in range(n):
            value = values[r, a + x]
            packed[at + x] = value if usable(mask[r, a + x], value) else OUTSIDE
        for x in range(at + n, start[r + _ONE]):
            packed[x] = OUTSIDE


@kernel
def extremes(packed):
    """Return the lowest and highest packed value other than `OUTSIDE`, and the number of voxels with the highest."""
    outside, one, zero = v.splat(OUTSIDE), v.splat(np.float32(1)), v.splat(_ZERO)
    low, high = outside, v.splat(-OUTSIDE)
    for i in range(np.uintp(0), np.uintp(packed.size), np.uintp(v.LANES)):
        value = v.load(packed, i)
        low = v.minimum(low, value)
        high = v.maximum(high, v.where_below(value, outside, value, high))
    lowest, highest = lowest_of(low), highest_of(high)
    top = v.splat(highest)
    at_high = np.int64(0)
    for begin in range(np.uintp(0), np.uintp(packed.size), np.uintp(COUNT_BLOCK)):  # since float32 counts to 2^24 only
        number = zero
        for i in range(begin, min(begin + np.uintp(COUNT_BLOCK), np.uintp(packed.size)), np.uintp(v.LANES)):
            value = v.load(packed, i)
            number = v.add(number, v.where_below(value, top, zero, v.where_below(value, outside, one, zero)))
        at_high += np.int64(sum_of(number))
    return lowest, highest, at_high
