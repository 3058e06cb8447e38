# mypy: ignore-errors
# (numba gives these functions their types)
"""Compiled loops that evaluate a lattice; see `evaluate`."""

from __future__ import annotations

import numpy as np

from n4flow.fit.compiled import fma, kernel

_LOG2_E = np.float32(1.4426950408889634)
_SHIFT = np.int32(23)  # bits of a float32 mantissa
# 2^f on [-1/2, 1/2]: the Taylor terms ln(2)^k / k!; what is left out is below 1.3e-7 of the result
_E1 = np.float32(0.6931471805599453)
_E2 = np.float32(0.2402265069591007)
_E3 = np.float32(0.05550410866482158)
_E4 = np.float32(0.009618129107628477)
_E5 = np.float32(0.0013333558146428443)
_E6 = np.float32(0.0001540353039338161)


@kernel
def expand_plane(lattice, w, firsts_x, weights_x, rows):
    """Rows of controls of one plane: rows[j, x] = sum over l, k of w[l] wx[k, x] lattice[l, j, firsts_x[x] + k].

    Parameters
    ----------
    lattice : (4, cy, cx) float32 array
        The four slabs of controls that act on the plane.
    w : (4,) float32 array
    firsts_x : (X,) int32 array
    weights_x : (4, X) float32 array
    rows : (cy, X) float32 array
        Written.
    """
    flat = np.empty(lattice.shape[2], np.float32)
    for j in range(rows.shape[0]):
        for c in range(flat.size):
            value = w[0] * lattice[0, j, c]
            value = fma(w[1], lattice[1, j, c], value)
            value = fma(w[2], lattice[2, j, c], value)
            flat[c] = fma(w[3], lattice[3, j, c], value)
        for x in range(rows.shape[1]):
            i = firsts_x[x]
            value = weights_x[0, x] * flat[i]
            value = fma(weights_x[1, x], flat[i + 1], value)
            value = fma(weights_x[2, x], flat[i + 2], value)
            rows[j, x] = fma(weights_x[3, x], flat[i + 3], value)


@kernel
def combine_rows(r0, r1, r2, r3, w, out):
    """One row of the field: out = w0 r0 + w1 r1 + w2 r2 + w3 r3."""
    w0, w1, w2, w3 = w[0], w[1], w[2], w[3]
    for x in range(out.size):
        out[x] = fma(w3, r3[x], fma(w2, r2[x], fma(w1, r1[x], w0 * r0[x])))


@kernel
def exp_row(row):
    """In place: e to the row. With t = row log2(e) and k the whole number next to t, 2^k by its bits times 2^(t-k)."""
    bits = row.view(np.int32)
    for x in range(row.size):
        t = min(max(row[x] * _LOG2_E, np.float32(-125.5)), np.float32(125.5))
        k = np.int32(t + np.float32(128.5)) - np.int32(128)
        f = t - np.float32(k)
        p = fma(f, fma(f, fma(f, fma(f, fma(f, _E6, _E5), _E4), _E3), _E2), _E1)
        row[x] = fma(f, p, np.float32(1.0))
        bits[x] += k << _SHIFT


@kernel
def field_block(z_start, z_stop, y_start, y_stop, lattice, fz, wz, fy, wy, fx, wx, sign, image, out):
    """Write rows of planes: the log field (sign 0), exp(sign log field), or with an image, image exp(sign log field).

    Parameters
    ----------
    z_start, z_stop, y_start, y_stop : int
        Planes and rows of `out` to write.
    lattice : (cz, cy, cx) float32 array, every axis at least 4
    fz, fy, fx : (n,) int32 arrays
        First control that acts on each plane, row, column.
    wz, wy : (n, 4) float32 arrays
    wx : (4, X) float32 array
    sign : float
    image : (Z, Y, X) float32 array, or (0, 0, 0)
        It may be `out`.
    out : (Z, Y, X) float32 array
    """
    n_x = out.shape[2]
    low = fy[y_start]
    n_rows = fy[y_stop - 1] + 4 - low  # coordinates rise along an axis
    rows = np.empty((n_rows, n_x), np.float32)
    row = np.empty(n_x, np.float32)
    for z in range(z_start, z_stop):
        expand_plane(lattice[fz[z] : fz[z] + 4, low : low + n_rows], wz[z], fx, wx, rows)
        for y in range(y_start, y_stop):
            j = fy[y] - low
            target = out[z, y]
            if sign == 0.0:
                combine_rows(rows[j], rows[j + 1], rows[j + 2], rows[j + 3], wy[y], target)
                continue
            combine_rows(rows[j], rows[j + 1], rows[j + 2], rows[j + 3], wy[y] * np.float32(sign), row)
            exp_row(row)
            if image.size:
                source = image[z, y]
                for x in range(n_x):
                    target[x] = source[x] * row[x]
            else:
                for x in range(n_x):
                    target[x] = row[x]
