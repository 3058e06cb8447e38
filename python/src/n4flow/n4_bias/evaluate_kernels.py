# mypy: ignore-errors
# (numba gives these functions their types)
"""Evaluation of a lattice, compiled; see `evaluate`."""

from __future__ import annotations

import numpy as np

from n4flow.compute import simd as v
from n4flow.compute.jit import fma, kernel, row_kernel
from n4flow.compute.simd import blend

up = np.uintp
f4 = np.float32

LANES = up(v.LANES)
LOG2_E = f4(1.4426950408889634)
LARGEST_LOG = f4(80.0)  # The log field is clipped to this magnitude, since exp overflows float32 at 88.
# 1.5 x 2^23: added to a float32 number below 2^22, it leaves the nearest integer in the low bits.
ROUNDER = f4(12582912)
# Taylor coefficients ln(2)^k / k! of 2^f on [-1/2, 1/2]; the relative error is below 1.3e-7.
E1 = f4(0.6931471805599453)
E2 = f4(0.2402265069591007)
E3 = f4(0.05550410866482158)
E4 = f4(0.009618129107628477)
E5 = f4(0.0013333558146428443)
E6 = f4(0.0001540353039338161)


@row_kernel
def power_of_two(t):
    """Return 2^t as 2^(t - k) by its Taylor series, times 2^k in the exponent bits, with k the integer nearest to t."""
    rounder = v.splat(ROUNDER)
    k = v.add(t, rounder)
    f = v.subtract(t, v.subtract(k, rounder))
    p = v.fma(f, v.splat(E6), v.splat(E5))
    p = v.fma(f, p, v.splat(E4))
    p = v.fma(f, p, v.splat(E3))
    p = v.fma(f, p, v.splat(E2))
    p = v.fma(f, p, v.splat(E1))
    return v.times_power_of_two(v.fma(f, p, v.splat(f4(1))), k)


@kernel
def expand_plane(lattice, w, firsts_x, weights_x, lines, width):
    """Expand one plane along x: lines[j width + x] = sum over l, k of w[l] wx[k, x] lattice[l, j, firsts_x[x] + k].

    Parameters
    ----------
    lattice : (4, cy, cx) float32 array
        The four slabs of control points that act on the plane.
    w : (4,) float32 array
    firsts_x : (X,) int32 array
    weights_x : (4, X) float32 array
    lines : (cy * width,) float32 array
        Written.
    width : uintp
        Columns of a line, X or more.
    """
    flat = np.empty(lattice.shape[2], np.float32)
    n = up(firsts_x.size)
    weights = weights_x.reshape(-1)
    for j in range(up(lattice.shape[1])):
        for c in range(up(flat.size)):
            value = w[0] * lattice[0, j, c]
            value = fma(w[1], lattice[1, j, c], value)
            value = fma(w[2], lattice[2, j, c], value)
            flat[c] = fma(w[3], lattice[3, j, c], value)
        x = up(0)
        while x < n:
            # A vector is computed at once if the same control points act on all of its columns.
            i = up(firsts_x[x])
            if x + LANES <= n and up(firsts_x[x + LANES - up(1)]) == i:
                value = v.multiply(v.load(weights, x), v.splat(flat[i]))
                value = v.fma(v.load(weights, n + x), v.splat(flat[i + up(1)]), value)
                value = v.fma(v.load(weights, up(2) * n + x), v.splat(flat[i + up(2)]), value)
                value = v.fma(v.load(weights, up(3) * n + x), v.splat(flat[i + up(3)]), value)
                v.store(lines, j * width + x, value)
                x += LANES
            else:
                one = weights_x[0, x] * flat[i]
                one = fma(weights_x[1, x], flat[i + up(1)], one)
                one = fma(weights_x[2, x], flat[i + up(2)], one)
                lines[j * width + x] = fma(weights_x[3, x], flat[i + up(3)], one)
                x += up(1)


@row_kernel
def field_row(lines, at, width, w, logarithm, out, start, n):
    """Write a row of the field, or of its logarithm, to out[start : start + n].

    Parameters
    ----------
    lines : float32 array
        The lines that `expand_plane` wrote; for the field itself, multiplied to logarithms to base 2.
    at, width : uintp
        Index of the first of the row's four lines, and columns of a line.
    w : four vectors
        The weights of the row.
    logarithm : bool
    out : float32 array
    start, n : uintp
    """
    for x in range(up(0), n, LANES):
        value = blend(lines, at + x, width, w[0], w[1], w[2], w[3])
        v.store_first(out, start + x, value if logarithm else power_of_two(value), min(n - x, LANES))


@row_kernel
def whole_zeros(n):
    """Return n float32 zeros at an address that is aligned to vectors."""
    room = np.zeros(n + LANES, np.float32)
    skip = (LANES - up(room.ctypes.data // room.itemsize) % LANES) % LANES
    return room[skip : skip + n]


@row_kernel
def row_weights(weights, y):
    """Return the four weights of a row."""
    return (
        v.splat(weights[y, 0]),
        v.splat(weights[y, 1]),
        v.splat(weights[y, 2]),
        v.splat(weights[y, 3]),
    )


@row_kernel
def correct_row(lines, at, width, w, image, out, start, n):
    """Write a row of image values, times the field of `field_row`, to out[start : start + n]."""
    whole = n - n % LANES
    for x in range(up(0), whole, LANES):
        factor = power_of_two(blend(lines, at + x, width, w[0], w[1], w[2], w[3]))
        v.store(out, start + x, v.multiply(v.load(image, start + x), factor))
    factor = power_of_two(blend(lines, at + whole, width, w[0], w[1], w[2], w[3]))
    v.store_first(out, start + whole, v.multiply(v.load_first(image, start + whole, n - whole), factor), n - whole)


@kernel
def field_block(z_start, z_stop, y_start, y_stop, lattice, fz, wz, fy, wy, fx, wx, sign, image, out, shape):
    """Write rows of planes: the log field (sign 0), exp(sign log field), or, given an image, image exp(sign log field).

    Parameters
    ----------
    z_start, z_stop, y_start, y_stop : int
        Planes and rows of `out` to write.
    lattice : (cz, cy, cx) float32 array, every axis at least 4
    fz, fy, fx : (n,) int32 arrays
        First control point that acts on each plane, row and column.
    wz, wy : (n, 4) float32 arrays
    wx : (4, X) float32 array
    sign : float
    image : (Z * Y * X,) float32 array, or (0,)
        It may be `out`.
    out : (Z * Y * X,) float32 array
    shape : (int, int, int)
        Z, Y, X.
    """
    n = up(shape[2])
    width = (n + LANES - up(1)) // LANES * LANES
    low = fy[y_start]
    n_lines = fy[y_stop - 1] + 4 - low  # since coordinates rise along an axis
    lines = whole_zeros(up(n_lines) * width + LANES)
    limit = LARGEST_LOG * LOG2_E
    for z in range(z_start, z_stop):
        expand_plane(lattice[fz[z] : fz[z] + 4, low : low + n_lines], wz[z], fx, wx, lines, width)
        if sign != 0.0:
            factor = f4(sign) * LOG2_E
            for i in range(up(lines.size)):
                lines[i] = min(max(lines[i] * factor, -limit), limit)
        plane = up(z) * up(shape[1]) * n
        for y in range(y_start, y_stop):
            at, start = up(fy[y] - low) * width, plane + up(y) * n
            if image.size:
                correct_row(lines, at, width, row_weights(wy, y), image, out, start, n)
            else:
                field_row(lines, at, width, row_weights(wy, y), sign == 0.0, out, start, n)
