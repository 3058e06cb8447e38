"""Compiled loops of the writer: cast to integers, and block means of a chunk. They release the GIL."""

from __future__ import annotations

import numpy as np

from n4flow.kernel_cache import njit


@njit(nogil=True, cache=True)
def cast_to_integers(values, out, low, high):  # type: ignore[no-untyped-def]
    """Round half to even and saturate (z, y, x) `values` into integer `out`; computed in the type of `low` and `high`.

    Returns
    -------
    saturated, undefined : int
        Voxels cut at `low` or `high`, and NaN voxels, which become 0.
    """
    saturated = 0
    undefined = 0
    nothing = type(low)(0)
    for z in range(values.shape[0]):
        for y in range(values.shape[1]):
            row, target = values[z, y], out[z, y]
            cut = np.int32(0)
            lost = np.int32(0)
            for x in range(row.size):
                # no branches, so that the compiler does several voxels at once
                value = np.rint(type(low)(row[x]))
                cut += np.int32((value > high) | (value < low))
                lost += np.int32(value != value)
                value = min(max(value, low), high)
                target[x] = value if value == value else nothing
            saturated += int(cut)
            undefined += int(lost)
    return saturated, undefined


@njit(nogil=True, cache=True)
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
            sums[:] = 0.0
            rows = 0
            for z in range(k * step_z, z_stop):
                for y in range(j * step_y, y_stop):
                    rows += 1
                    if step_x == 2:
                        for i in range(whole):
                            sums[i] += np.float64(values[z, y, 2 * i]) + np.float64(values[z, y, 2 * i + 1])
                        if columns > whole:
                            sums[whole] += values[z, y, 2 * whole]
                    else:
                        for i in range(columns):
                            sums[i] += values[z, y, i]
            for i in range(columns):
                x_stop = min((i + 1) * step_x, extent[2])
                count = rows * (x_stop - i * step_x)
                if np.isfinite(sums[i]):
                    out[k, j, i] = sums[i] / count
                else:
                    out[k, j, i] = _finite_mean(values, k * step_z, z_stop, j * step_y, y_stop, i * step_x, x_stop)


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
