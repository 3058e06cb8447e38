"""Compiled loops of the writer: cast to integers, and block means of a chunk. They release the GIL.

Arrays are indexed whole: taking a view of a row would cost as much as the arithmetic on a row of a chunk.
"""

from __future__ import annotations

import numpy as np

from n4flow.compute.numba_cache import njit

# Counts of voxels as float sums, exact below 2**24, in any order: so the compiler does several voxels at once.
counting = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})


@counting
def cast_to_integers(values, out, low, high):  # type: ignore[no-untyped-def]
    """Round half to even and saturate (z, y, x) `values` into integer `out`; computed in the type of `low` and `high`.

    Returns
    -------
    saturated, undefined : int
        Voxels cut at `low` or `high`, and NaN voxels, which become 0.
    """
    saturated = 0
    undefined = 0
    none, one = type(low)(0), type(low)(1)
    for z in range(values.shape[0]):
        for y in range(values.shape[1]):
            cut, lost = none, none
            for x in range(values.shape[2]):
                value = np.rint(type(low)(values[z, y, x]))
                cut += one if (value > high) | (value < low) else none
                lost += one if value != value else none
                value = value if value == value else none
                value = value if value > low else low
                out[z, y, x] = value if value < high else high
            saturated += int(cut)
            undefined += int(lost)
    return saturated, undefined


@counting
def _finite(values, k, j, n):  # type: ignore[no-untyped-def]
    """Return whether the first `n` values of a row are finite."""
    others = np.float32(0)
    for i in range(n):
        others += np.float32(0) if np.isfinite(values[k, j, i]) else np.float32(1)
    return others == 0


@njit(nogil=True, cache=True, error_model="numpy", forceinline=True)
def _pair(values, z, y, x):  # type: ignore[no-untyped-def]
    return np.float64(values[z, y, x]) + np.float64(values[z, y, x + 1])


@njit(nogil=True, cache=True, error_model="numpy")
def block_mean(values, extent, out, step_z, step_y, step_x):  # type: ignore[no-untyped-def]
    """Mean over blocks of the first `extent` (z, y, x) `values` into `out`: of finite voxels, of what there is.

    Steps are 1 or 2. A block without a finite voxel becomes NaN. Sums are float64 and in a fixed order.
    """
    columns = out.shape[2]
    whole = extent[2] // step_x
    sums = np.empty(columns, np.float64)
    for k in range(out.shape[0]):
        z_stop = min((k + 1) * step_z, extent[0])
        for j in range(out.shape[1]):
            y_stop = min((j + 1) * step_y, extent[1])
            rows = (z_stop - k * step_z) * (y_stop - j * step_y)
            if step_x == 2 and step_y == 2 and columns == whole and rows == 2 * step_z:
                # blocks of 2 x 2 and 2 x 2 x 2 voxels, which nearly all are
                if step_z == 1:
                    for i in range(columns):
                        total = _pair(values, k, 2 * j, 2 * i) + _pair(values, k, 2 * j + 1, 2 * i)
                        out[k, j, i] = total / 4
                else:
                    for i in range(columns):
                        total = _pair(values, 2 * k, 2 * j, 2 * i) + _pair(values, 2 * k, 2 * j + 1, 2 * i)
                        total += _pair(values, 2 * k + 1, 2 * j, 2 * i)
                        out[k, j, i] = (total + _pair(values, 2 * k + 1, 2 * j + 1, 2 * i)) / 8
            else:
                _sum_rows(values, k * step_z, z_stop, j * step_y, y_stop, whole, step_x, sums)
                for i in range(columns):
                    out[k, j, i] = sums[i] / (rows * (min((i + 1) * step_x, extent[2]) - i * step_x))
            if not _finite(out, k, j, columns):
                for i in range(columns):
                    if not np.isfinite(out[k, j, i]):
                        x_stop = min((i + 1) * step_x, extent[2])
                        mean = _finite_mean(values, k * step_z, z_stop, j * step_y, y_stop, i * step_x, x_stop)
                        out[k, j, i] = mean


@njit(nogil=True, cache=True)
def _sum_rows(values, z_start, z_stop, y_start, y_stop, whole, step_x, sums):  # type: ignore[no-untyped-def]
    """Write the sums of blocks of `step_x` columns; the last block may be narrower than the `whole` ones."""
    sums[:] = 0.0
    for z in range(z_start, z_stop):
        for y in range(y_start, y_stop):
            if step_x == 2:
                for i in range(whole):
                    sums[i] += np.float64(values[z, y, 2 * i]) + np.float64(values[z, y, 2 * i + 1])
                if sums.size > whole:
                    sums[whole] += values[z, y, 2 * whole]
            else:
                for i in range(sums.size):
                    sums[i] += values[z, y, i]


@njit(nogil=True, cache=True)
def _finite_mean(values, z_start, z_stop, y_start, y_stop, x_start, x_stop):  # type: ignore[no-untyped-def]
    total = 0.0
    count = 0
    for z in range(z_start, z_stop):
        for y in range(y_start, y_stop):
            for x in range(x_start, x_stop):
                value = values[z, y, x]
                if np.isfinite(value):
                    total += value
                    count += 1
    return total / count if count > 0 else np.nan
