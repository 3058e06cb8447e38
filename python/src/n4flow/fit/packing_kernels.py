# mypy: ignore-errors
# (numba gives these functions their types)
"""Compiled loops of `packing`. Indices are unsigned: a signed one might count from the end, and not vectorise."""

from __future__ import annotations

import numpy as np

from n4flow.fit.compiled import kernel, reduction

OUTSIDE = np.float32(1e6)  # above the logarithm of any float32
_ZERO = np.float32(0)
_INFINITY = np.float32(np.inf)


@kernel
def find_hulls(values, mask, first, stop, counts):
    """Find the stretch of each row that holds its usable voxels: in the mask, finite, above 0.

    Parameters
    ----------
    values : (rows, X) float32 array
    mask : (rows, X) uint8 array
    first, stop : (rows,) uintp arrays
        Written; equal where a row has none.
    counts : (rows, 3) int64 array
        Written: voxels in the mask; of those, not finite; of those, finite and not above 0.
    """
    n_x = values.shape[1]
    for r in range(values.shape[0]):
        masked, finite, usable = 0, 0, 0
        for x in range(n_x):
            v = values[r, x]
            inside = mask[r, x] != 0
            masked += inside
            finite += inside & (abs(v) < _INFINITY)
            usable += inside & (v > _ZERO) & (v < _INFINITY)
        counts[r, 0], counts[r, 1], counts[r, 2] = masked, masked - finite, finite - usable
        a, b = np.uintp(0), np.uintp(0)
        if usable:
            while mask[r, a] == 0 or not (values[r, a] > _ZERO and values[r, a] < _INFINITY):
                a += np.uintp(1)
            b = np.uintp(n_x)
            while mask[r, b - np.uintp(1)] == 0 or not (
                values[r, b - np.uintp(1)] > _ZERO and values[r, b - np.uintp(1)] < _INFINITY
            ):
                b -= np.uintp(1)
        first[r], stop[r] = a, b


@kernel
def pack_rows(values, first, stop, start, packed):
    """Copy the stretch of each row to its place in `packed`."""
    for r in range(values.shape[0]):
        a, at = first[r], start[r]
        for x in range(stop[r] - a):
            packed[at + x] = values[r, a + x]


@kernel
def settle_rows(values, mask, first, stop, start, packed):
    """Write `OUTSIDE` over packed voxels that are not usable, and into the filling behind each row's stretch."""
    for r in range(values.shape[0]):
        a, at, n = first[r], start[r], stop[r] - first[r]
        row = np.uintp(r)
        for x in range(n):
            v = values[row, a + x]
            usable = (mask[row, a + x] != 0) & (v > _ZERO) & (v < _INFINITY)
            packed[at + x] = packed[at + x] if usable else OUTSIDE
        for x in range(at + n, start[r + 1]):
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
