# mypy: ignore-errors
# (numba gives these functions their types)
"""Compiled loops of `packing`. Indices are unsigned: a signed one might count from the end, and not vectorise."""

from __future__ import annotations

import numpy as np

from n4flow.fit.compiled import kernel, reduction, row_kernel

OUTSIDE = np.float32(np.inf)  # also its own logarithm
_ZERO = np.float32(0)
_ONE = np.uintp(1)


@row_kernel
def usable(mask, value):
    """Return whether a voxel can be fitted: in the mask, finite, above 0."""
    return (mask != 0) & (value > _ZERO) & (value < OUTSIDE)


@kernel
def find_hulls(values, mask, first, stop, counts):
    """Find the stretch of each row that holds its usable voxels.

    Parameters
    ----------
    values : (rows, X) float32 array
    mask : (rows, X) uint8 array
    first, stop : (rows,) uintp arrays
        Written; equal where a row has none.
    counts : (rows, 3) int64 array
        Written: voxels in the mask; of those, not finite; of those, finite and not above 0.
    """
    n_x = np.uintp(values.shape[1])
    for r in range(np.uintp(values.shape[0])):
        masked = np.int64(0)
        for x in range(n_x):
            masked += mask[r, x] != 0
        counts[r, 0], counts[r, 1], counts[r, 2] = masked, 0, 0
        a, b = np.uintp(0), n_x
        if masked:
            while a < b and not usable(mask[r, a], values[r, a]):
                a += _ONE
            while a < b and not usable(mask[r, b - _ONE], values[r, b - _ONE]):
                b -= _ONE
            finite, positive = np.int64(0), np.int64(0)
            for x in range(n_x):
                finite += (mask[r, x] != 0) & (abs(values[r, x]) < OUTSIDE)
                positive += usable(mask[r, x], values[r, x])
            counts[r, 1], counts[r, 2] = masked - finite, finite - positive
        else:
            b = a
        first[r], stop[r] = a, b


@kernel
def pack_rows(values, mask, first, stop, start, packed):
    """Copy the usable voxels in each row's stretch to their place; `OUTSIDE` in between, and behind it to fill up."""
    for r in range(np.uintp(values.shape[0])):
        a, at, n = first[r], start[r], stop[r] - first[r]
        for x in range(n):
            value = values[r, a + x]
            packed[at + x] = value if usable(mask[r, a + x], value) else OUTSIDE
        for x in range(at + n, start[r + _ONE]):
            packed[x] = OUTSIDE


@reduction
def count_at_top(packed):
    """Return the lowest and the highest packed value that is not `OUTSIDE`, and how many voxels hold the highest."""
    low, high = OUTSIDE, -OUTSIDE
    for i in range(packed.size):
        v = packed[i]
        low = min(low, v)
        if v < OUTSIDE:
            high = max(high, v)
    at_high = 0
    for i in range(packed.size):
        at_high += packed[i] == high
    return low, high, at_high
