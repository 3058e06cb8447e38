# mypy: ignore-errors
# (numba gives these functions their types)
"""The compiled loops of the corrections: look-ups, ranges and gains of whole runs of planes."""

from __future__ import annotations

from typing import Any

import numpy as np

from n4flow.compute import simd as v
from n4flow.compute.jit import row_kernel
from n4flow.compute.numba_cache import njit
from n4flow.n4_bias.evaluate_kernels import field_block

_no_plane = np.empty(0, np.float32)
_none, _few = np.empty(0, np.int32), np.empty((0, 4), np.float32)
NO_FIELD = (np.empty((0, 0, 0), np.float32), _none, _few, _none, _few, _none, np.empty((4, 0), np.float32))


NO_LIMITS = (_no_plane, _no_plane, np.float32(1))
NO_MAP = (np.float32(0), _few, np.empty((0, 2), np.float32))
NO_GAIN = (_no_plane, np.empty((0, 0, 0), np.bool_))


@njit(nogil=True, cache=True)
def plane_range(block: Any, lower: Any, upper: Any, span: Any) -> None:
    """In place, plane by plane: clip at `upper`, then `lower`, subtract `lower`, divide by `span`.

    Zeros and non-finite voxels stay.
    """
    for z in range(block.shape[0]):
        least, most = lower[z], upper[z]
        for y in range(block.shape[1]):
            row = block[z, y]
            for x in range(row.size):
                v = row[x]
                mapped = (max(min(v, most), least) - least) / span
                row[x] = mapped if (v != np.float32(0.0)) & (abs(v) < np.float32(np.inf)) else v


@njit(nogil=True, cache=True)
def plane_gain(block: Any, tissue: Any, gain: Any) -> None:
    """In place, plane by plane: multiply tissue voxels by `gain`."""
    # whole planes, and a product of every voxel: so the compiler makes vectors, in a fifth of the time
    voxels, inside = block.reshape(-1), tissue.reshape(-1)
    size = np.uintp(block.shape[1] * block.shape[2])
    for z in range(block.shape[0]):
        factor, start = gain[z], np.uintp(z) * size
        for i in range(start, start + size):
            voxels[i] *= factor if inside[i] else np.float32(1)


@row_kernel
def _looked_up(value, below, first, steps, end, starts, segments):  # type: ignore[no-untyped-def]
    """Return a vector of values through a map; see `plane_lookup`."""
    nothing, infinity = v.splat(np.float32(0)), v.splat(np.float32(np.inf))
    step = v.minimum(v.multiply(v.subtract(value, first), steps), end)
    step = v.where_below(value, infinity, v.where_below(first, value, step, nothing), nothing)
    knot, number = v.gather_pairs(starts, step)
    number = v.where_below(value, knot, number, v.add(number, v.splat(np.float32(1))))
    knot_x, knot_y, slope, most = v.gather_fours(segments, number)
    mapped = v.minimum(v.add(knot_y, v.multiply(v.subtract(value, knot_x), slope)), most)
    mapped = v.where_below(below, value, mapped, value)
    return v.where_zero(value, value, v.where_below(value, infinity, mapped, value))


@njit(nogil=True, cache=True, error_model="numpy")
def plane_lookup(voxels: Any, threshold: Any, segments: Any, starts: Any) -> None:
    """In place: a piecewise-linear map of finite voxels above `threshold`; others stay.

    Parameters
    ----------
    voxels : (n,) float32 array
    threshold : float32
    segments : (m, 4) float32 array
        Of each segment x and y of its knot, its slope, and the y that it does not exceed, so that rounding does not
        break monotony. The last one goes on without end.
    starts : (steps, 2) float32 array
        For equal steps from the first knot to the last: x of the knot after the segment in which the step begins, and
        the row of that segment. No step reaches beyond the second knot.
    """
    first = segments[0, 0]
    steps = np.float32(starts.shape[0]) / (segments[segments.shape[0] - 1, 0] - first)
    low, below = v.splat(first), v.splat(threshold)
    steps, end = v.splat(steps), v.splat(np.float32(starts.shape[0] - 1))
    # no branches: on which side of a threshold or a knot a voxel lies is a matter of speckle
    whole = voxels.size - voxels.size % v.LANES
    for i in range(0, whole, v.LANES):
        v.store(voxels, i, _looked_up(v.load(voxels, i), below, low, steps, end, starts, segments))
    if whole < voxels.size:
        few = np.zeros(v.LANES, np.float32)
        for i in range(voxels.size - whole):
            few[i] = voxels[whole + i]
        v.store(few, 0, _looked_up(v.load(few, 0), below, low, steps, end, starts, segments))
        for i in range(voxels.size - whole):
            voxels[whole + i] = few[i]


@njit(nogil=True, cache=True, error_model="numpy")
def correct_planes(block: Any, field: Any, limits: Any, lookup: Any, gain: Any) -> None:
    """In place: take planes (z, y, x), float32, through corrections, each plane through all of them in turn.

    Parameters
    ----------
    block : (z, y, x) float32 array
    field : tuple
        `Evaluator.tables` of a bias field on the block; NO_FIELD for none.
    limits : (lower, upper, span)
        See `plane_range`; NO_LIMITS for none.
    lookup : (threshold, segments, starts)
        See `plane_lookup`; NO_MAP for none.
    gain : (gain, tissue)
        See `plane_gain`; NO_GAIN for none.
    """
    lattice, fz, wz, fy, wy, fx, wx = field
    lower, upper, span = limits
    threshold, segments, starts = lookup
    gains, tissue = gain
    n_z, n_y, n_x = block.shape
    voxels = block.reshape(-1)
    for z in range(n_z):
        here = slice(z, z + 1)
        if lattice.size:
            field_block(
                z, z + 1, np.int64(0), n_y, lattice, fz, wz, fy, wy, fx, wx, -1.0, voxels, voxels, (n_z, n_y, n_x)
            )
        if lower.size:
            plane_range(block[here], lower[here], upper[here], span)
        if starts.size:
            plane_lookup(voxels[z * n_y * n_x : (z + 1) * n_y * n_x], threshold, segments, starts)
        if gains.size:
            plane_gain(block[here], tissue[here], gains[here])
