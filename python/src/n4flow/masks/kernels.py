"""Compiled loops of the tissue mask: Gaussian means of valid voxels, closings. They release the GIL."""

from __future__ import annotations

from typing import Any

import numpy as np

from n4flow.compute import simd as v
from n4flow.compute.jit import row_kernel
from n4flow.compute.numba_cache import njit

COLUMNS = 2 * v.LANES  # Columns that are filtered at a time.


@njit(nogil=True, cache=True, error_model="numpy")
def weigh(values: Any, weights: Any, total: Any, weight: Any) -> None:
    """Write value times weight, and weight, of the valid voxels of a plane (y, x), and 0 elsewhere.

    Rows of `total` and `weight` may be longer than those of the plane; their rest is set to 0.
    """
    none = np.float32(0)
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            value = values[y, x]
            valid = np.isfinite(value) & (value != none)
            share = np.float32(weights[y, x]) if valid else none
            total[y, x] = value * share if valid else none
            weight[y, x] = share
        total[y, values.shape[1] :] = none
        weight[y, values.shape[1] :] = none


@njit(nogil=True, cache=True)
def identical(first: Any, second: Any) -> bool:
    """Return whether two planes (y, x) are equal in every voxel."""
    for y in range(first.shape[0]):
        differs = 0
        for x in range(first.shape[1]):
            differs |= first[y, x] != second[y, x]
        if differs:
            return False
    return True


@row_kernel
def _pair(lines, first, second, factor):  # type: ignore[no-untyped-def]
    """Return a vector of columns of two lines, added, times a factor."""
    return v.multiply(v.add(v.widen(v.load(lines, first)), v.widen(v.load(lines, second))), factor)


@row_kernel
def _taps(lines, places, at, kernel):  # type: ignore[no-untyped-def]
    """Return two vectors of columns of a filtered line, from column `at` on: centre, then outermost taps inwards.

    Line d around it begins at `places[reach + d]` of the flat `lines`. Two vectors at a time hide the latency of sums.
    """
    reach = kernel.size - 1
    centre, factor = places[reach] + at, v.splat(kernel[0])
    first = v.multiply(v.widen(v.load(lines, centre)), factor)
    second = v.multiply(v.widen(v.load(lines, centre + v.LANES)), factor)
    for d in range(reach, 0, -1):
        before, behind, factor = places[reach - d] + at, places[reach + d] + at, v.splat(kernel[d])
        first = v.add(first, _pair(lines, before, behind, factor))
        second = v.add(second, _pair(lines, before + v.LANES, behind + v.LANES, factor))
    return v.narrow(first), v.narrow(second)


@row_kernel
def _filter(lines, places, kernel, out, start, width):  # type: ignore[no-untyped-def]
    """Write a filtered line of `width` columns, rounded to float32, to `out` from `start` on, as float64."""
    for x in range(0, width, COLUMNS):
        first, second = _taps(lines, places, x, kernel)
        v.store(out, start + x, v.widen(first))
        v.store(out, start + x + v.LANES, v.widen(second))


@njit(nogil=True, cache=True, error_model="numpy")
def smooth(rows: Any, z: Any, along_z: Any, along_y: Any, along_x: Any, out: Any) -> None:
    """Filter plane `z` along Z, Y and X into `out` (y, columns), a row at a time; beyond the border all is 0.

    `rows` (z * y + 1, width) are those of the planes, whole `COLUMNS` long and 0 beyond the columns of `out`, and a row
    of zeros. Kernels are halves from the centre outwards. Sums are float64, and float32 between the axes, as SciPy's
    `gaussian_filter` takes them.
    """
    (n_y, n_x), width = out.shape, rows.shape[1]
    n_z = rows.shape[0] // n_y
    deep, high, across = along_z.size - 1, along_y.size - 1, along_x.size - 1
    lines = 2 * high + 1
    ring = np.zeros((lines + 1) * width)  # rows around that are filtered along Z, and one of zeros
    wide, found = np.zeros(width + 2 * across), np.empty(width)
    in_z, in_ring, in_row = np.empty(2 * deep + 1, np.int64), np.empty(lines, np.int64), np.arange(2 * across + 1)
    for ahead in range(n_y + high):
        if ahead < n_y:
            for d in range(-deep, deep + 1):
                in_z[deep + d] = ((z + d) * n_y + ahead if 0 <= z + d < n_z else n_z * n_y) * width
            _filter(rows, in_z, along_z, ring, ahead % lines * width, width)
        y = ahead - high
        if y < 0:
            continue
        for d in range(-high, high + 1):
            in_ring[high + d] = ((y + d) % lines if 0 <= y + d < n_y else lines) * width
        _filter(ring, in_ring, along_y, wide, across, width)
        _filter(wide, in_row, along_x, found, np.int64(0), width)
        for x in range(n_x):
            out[y, x] = found[x]


@njit(nogil=True, cache=True, error_model="numpy")
def divide(values: Any, norm: Any, out: Any) -> None:
    """Divide `out` (y, x) by the smoothed weights in place; 0 where the voxel of `values` is not valid."""
    none = np.float32(0)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            inside = np.isfinite(values[y, x]) & (values[y, x] != none) & (norm[y, x] > none)
            out[y, x] = out[y, x] / norm[y, x] if inside else none


@njit(nogil=True, cache=True, error_model="numpy")
def dilate(mask: Any, radius: int, out: Any) -> None:
    """Dilate a mask (y, x) with a disk into `out`, which is False at first; beyond the border there is nothing."""
    n_y, n_x = mask.shape
    near = np.empty((n_y, n_x), np.int32)  # columns to the nearest pixel inside, along the row
    for y in range(n_y):
        last = radius + 1
        for x in range(n_x):
            last = 0 if mask[y, x] else min(last + 1, radius + 1)
            near[y, x] = last
        for x in range(n_x - 1, -1, -1):
            last = 0 if mask[y, x] else min(last + 1, radius + 1)
            near[y, x] = min(near[y, x], last)
    for y in range(n_y):
        for other in range(max(0, y - radius), min(n_y, y + radius + 1)):
            half = int(np.sqrt(radius**2 - (other - y) ** 2))
            for x in range(n_x):
                out[y, x] |= near[other, x] <= half
