# mypy: ignore-errors
# (numba gives these functions their types)
"""The two sweeps over the voxels, compiled. `cpu.fit` explains how they are combined.

Rules that make them fast and their results reproducible: a loop over a row is written with vectors (`simd`), to a
multiple of which rows are padded; indices are unsigned, because loops with signed ones, which may wrap, do not
vectorize; each strip writes its sums to its own place.
"""

from __future__ import annotations

import numpy as np

from n4flow.compute import simd as v
from n4flow.compute.jit import kernel, row_kernel
from n4flow.compute.simd import blend, highest_of, lowest_of, sum_of

up = np.uintp
f4 = np.float32

LANES = up(v.LANES)
SMALL_STEP = 0.1  # For steps of the log field up to this, four terms give expm1 with an error of 8e-8.
ABSENT = f4(1e9)  # marks voxels outside the mask in the array of changes
PRESENT = f4(1e8)  # Changes of voxels in the mask are smaller than this.
TERMS = 12  # Terms of expm1 for larger steps: the error is 1e-7 up to 1; beyond, the measure exceeds any threshold.


@kernel
def blend_slabs(lattice_rows, at, slab, weights, out, begin, end):
    """Combine four slabs of the expanded lattice to the lines of one plane: out[i] for begin <= i < end."""
    w0, w1, w2, w3 = v.splat(weights[0]), v.splat(weights[1]), v.splat(weights[2]), v.splat(weights[3])
    for i in range(begin, end, LANES):
        v.store(out, i, blend(lattice_rows, at + i, slab, w0, w1, w2, w3))


@kernel
def expand_rows(lattice, weights, reach, rows):
    """Expand a lattice along x: rows[(a cy + j) width + x] = sum over c of lattice[a, j, c] weights[c, x].

    Parameters
    ----------
    lattice : (cz, cy, cx) float64 array
    weights : (cx, width) float32 array
    reach : (width / LANES, 2) uintp array
        The range of control points (first, stop) that act on each vector of columns.
    rows : (cz * cy * width,) float32 array
        Written.
    """
    slabs, lines, width = up(lattice.shape[0]), up(lattice.shape[1]), up(weights.shape[1])
    flat = weights.reshape(-1)
    zero = v.splat(f4(0))
    for a in range(slabs):
        for j in range(lines):
            at = (a * lines + j) * width
            for block in range(up(reach.shape[0])):
                value = zero
                x = block * LANES
                for c in range(reach[block, up(0)], reach[block, up(1)]):
                    value = v.fma(v.splat(f4(lattice[a, j, c])), v.load(flat, c * width + x), value)
                v.store(rows, at + x, value)


# ------------------------------------------------------------------------------------------------ first sweep: the fit


@row_kernel
def add_to(sums, at, w, residual):
    """Add w residual to sums[at : at + LANES]."""
    v.store(sums, at, v.fma(w, residual, v.load(sums, at)))


@row_kernel
def fit_row(index, weights, start, n, table, weights_y, sums, at, width):
    """Add the weighted residuals of a row to the sums of its four control points along y."""
    w0, w1, w2, w3 = v.splat(weights_y[0]), v.splat(weights_y[1]), v.splat(weights_y[2]), v.splat(weights_y[3])
    at1, at2, at3 = at + width, at + width + width, at + width + width + width
    weighted = weights.size > 0
    for x in range(up(0), n, LANES):
        residual = v.gather(table, index, start + x)
        if weighted:
            residual = v.multiply(residual, v.load(weights, start + x))
        add_to(sums, at + x, w0, residual)
        add_to(sums, at1 + x, w1, residual)
        add_to(sums, at2 + x, w2, residual)
        add_to(sums, at3 + x, w3, residual)


@row_kernel
def contract_x(sums, at, weights, support, width, out):
    """Set out[c] to the sum over x of sums[at + x] weights[c, x], for four control points at a time."""
    n_c = up(out.size)
    zero = v.splat(f4(0))
    for c in range(up(0), n_c, up(4)):
        last = min(c + up(3), n_c - up(1))
        c0 = c * width
        c1, c2, c3 = min(c + up(1), last) * width, min(c + up(2), last) * width, last * width
        s0, s1, s2, s3 = zero, zero, zero, zero
        for x in range(support[c, up(0)], support[last, up(1)], LANES):
            value = v.load(sums, at + x)
            s0 = v.fma(value, v.load(weights, c0 + x), s0)
            s1 = v.fma(value, v.load(weights, c1 + x), s1)
            s2 = v.fma(value, v.load(weights, c2 + x), s2)
            s3 = v.fma(value, v.load(weights, c3 + x), s3)
        out[c] = sum_of(s0)
        if c + up(1) <= last:
            out[c + up(1)] = sum_of(s1)
        if c + up(2) <= last:
            out[c + up(2)] = sum_of(s2)
        if c + up(3) <= last:
            out[c + up(3)] = sum_of(s3)


@kernel
def fit_strip(strip, thread, rows, n_y, table, tables, weights_y, weights_x, work):
    """Accumulate the part of Lee's fit of one strip, contracted along y and x: work.partial[strip].

    Parameters
    ----------
    strip : uintp
    thread : int
        Number of the thread, which selects its work arrays.
    rows : packing.Rows
    n_y : uintp
        Number of rows of a plane.
    table : (fine,) float32 array
        Residual of each fine bin; 0 for the bin of voxels outside the mask.
    tables : fit.Tables
    weights_y, weights_x : (Y, 4), (cx, width) float32 arrays
        From `tables`: shares for the fit, or squares for the weights of the control points.
    work : fit.Work
    """
    begin, end = rows.strips[strip, up(0)], rows.strips[strip, up(1)]
    y0 = begin % n_y
    fy = tables.first_y
    low, high = fy[y0], fy[end - begin + y0 - up(1)] + up(4)
    sums = work.sums[thread]
    width = up(weights_x.shape[1])
    zero = v.splat(f4(0))
    for x in range(low * width, high * width, LANES):
        v.store(sums, x, zero)
    index, weights = work.fine_index, rows.weights
    for r in range(begin, end):
        start = rows.start[r]
        n = rows.start[r + up(1)] - start
        if n > up(0):
            y = r - begin + y0
            at = fy[y] * width + rows.first[r]
            fit_row(index, weights, start, n, table, weights_y[y], sums, at, width)
    flat = weights_x.reshape(-1)
    for j in range(low, high):
        contract_x(sums, j * width, flat, tables.support, width, work.partial[strip, j])


# ------------------------------------------------------------------------------------------ second sweep: the new field


@row_kernel
def expm1(d, small):
    """Return expm1 by its Taylor series; if the step is small, with four terms."""
    one = v.splat(f4(1))
    if small:
        value = v.fma(d, v.splat(f4(1 / 24)), v.splat(f4(1 / 6)))
        value = v.fma(d, value, v.splat(f4(1 / 2)))
        return v.multiply(d, v.fma(d, value, one))
    value = one
    for k in range(TERMS, 1, -1):
        value = v.fma(v.multiply(d, v.splat(f4(1.0 / k))), value, one)
    return v.multiply(d, value)


@row_kernel
def field_row(
    rows, r, n, lines, steps, at, width, weights_y, grid, small, keep, index, kept, low, high, total, squares
):
    """Subtract the field from one row: write fine bins, update extremes, and keep or sum the changes.

    Returns
    -------
    low, high, total, squares : vector
        Updated by this row.
    """
    origin, per_unit, outside = v.splat(grid[0]), v.splat(grid[1]), v.splat(grid[2])
    w0, w1, w2, w3 = v.splat(weights_y[0]), v.splat(weights_y[1]), v.splat(weights_y[2]), v.splat(weights_y[3])
    zero, absent = v.splat(f4(0)), v.splat(ABSENT)
    start = rows.start[r]
    for x in range(up(0), n, LANES):
        bias = blend(lines, at + x, width, w0, w1, w2, w3)
        position = v.subtract(v.load(rows.log_image, start + x), bias)
        position = v.multiply(v.subtract(position, origin), per_unit)
        v.store_uint16(index, start + x, v.minimum(position, outside))
        low = v.minimum(low, position)
        high = v.maximum(high, v.where_below(position, outside, position, zero))
        change = expm1(v.subtract(zero, blend(steps, at + x, width, w0, w1, w2, w3)), small)
        if keep:
            v.store(kept, start + x, v.where_below(position, outside, change, absent))
        else:
            change = v.where_below(position, outside, change, zero)
            total = v.add(total, change)
            squares = v.fma(change, change, squares)
    return low, high, total, squares


@row_kernel
def count(index, at, n, counts, stride):
    """Count indices in two histograms, `stride` apart: in a single one, equal neighbours would wait for each other."""
    for x in range(at, at + n, up(2)):
        counts[up(index[x])] += np.int32(1)
        counts[up(index[x + up(1)]) + stride] += np.int32(1)


@kernel
def first_lowest(rows, r, n, lines, at, width, weights_y, grid, places, positions):
    """Return the lowest position in the first row as ITK 5.4 finds it, and record the voxels that it may miss.

    ITK searches the minimum only among voxels that do not raise the maximum so far (`sharpening.itk_range`).

    Parameters
    ----------
    rows, r, n, lines, at, width, weights_y, grid : see `field_row`
    places : (m,) int64 array
        Written: packed indices of the first m voxels that raise the maximum; -1 after them.
    positions : (m,) float32 array
        Written: their positions.
    """
    origin, per_unit, outside = v.splat(grid[0]), v.splat(grid[1]), grid[2]
    w0, w1, w2, w3 = v.splat(weights_y[0]), v.splat(weights_y[1]), v.splat(weights_y[2]), v.splat(weights_y[3])
    highest, lowest = f4(-1), outside
    noted = 0
    places[:] = -1
    for x in range(up(0), n, LANES):
        bias = blend(lines, at + x, width, w0, w1, w2, w3)
        position = v.subtract(v.load(rows.log_image, rows.start[r] + x), bias)
        position = v.multiply(v.subtract(position, origin), per_unit)
        for k in range(v.LANES):
            p = v.lane(position, k)
            if p >= outside:
                continue
            if p <= highest:
                lowest = min(lowest, p)
                continue
            highest = p
            if noted < places.size:
                places[noted], positions[noted] = rows.start[r] + x + up(k), p
                noted += 1
    return lowest


@kernel
def field_strip(strip, thread, rows, n_y, grid, small, tables, work, counts):
    """Subtract the new field from one strip, and write fine bins, counts, extremes and changes of its voxels.

    Parameters
    ----------
    strip, thread, rows, n_y, tables, work : see `fit_strip`
    grid : (float32, float32, float32)
        Log intensity at the start of the fine bins, fine bins per unit of it, and the bin of voxels outside the mask.
    small : bool
        Whether the step is at most SMALL_STEP everywhere.
    counts : (2 * stride,) int32 array
        Counts of fine bins of this thread.

    Writes
    ------
    work.fine_index
        The fine bin of each packed voxel.
    work.kept
        The change of each voxel in order, `ABSENT` outside the mask, for strips that belong to the kept part.
    work.changes
        Sum and sum of squares of the changes, for other strips.
    work.ends
        Lowest and highest position in fine bins.
    work.places, work.positions
        Records of the first strip, see `first_lowest`.
    """
    begin, end = rows.strips[strip, up(0)], rows.strips[strip, up(1)]
    y0, z = begin % n_y, begin // n_y
    fy, wy = tables.first_y, tables.weight_y
    width, n_lines = up(tables.weight_x.shape[1]), up(work.partial.shape[1])
    low_line, high_line = fy[y0] * width, (fy[end - begin + y0 - up(1)] + up(4)) * width
    lines, steps = work.lines[thread, 0], work.lines[thread, 1]
    slab = n_lines * width
    blend_slabs(work.field, tables.first_z[z] * slab, slab, tables.weight_z[z], lines, low_line, high_line)
    blend_slabs(work.step, tables.first_z[z] * slab, slab, tables.weight_z[z], steps, low_line, high_line)
    index, kept = work.fine_index, work.kept
    keep = rows.start[end] <= up(kept.size)
    stride = up(counts.size) // up(2)
    zero = v.splat(f4(0))
    low, high, total, squares = v.splat(grid[2]), zero, zero, zero
    first_low = grid[2]
    for r in range(begin, end):
        n = rows.start[r + up(1)] - rows.start[r]
        if n == up(0):
            continue
        y = r - begin + y0
        at = fy[y] * width + rows.first[r]
        before = low
        low, high, total, squares = field_row(
            rows, r, n, lines, steps, at, width, wy[y], grid, small, keep, index, kept, low, high, total, squares
        )
        if rows.start[r] == up(0):
            low = before
            first_low = first_lowest(rows, r, n, lines, at, width, wy[y], grid, work.places, work.positions)
    count(index, rows.start[begin], rows.start[end] - rows.start[begin], counts, stride)
    work.ends[strip, up(0)], work.ends[strip, up(1)] = min(first_low, lowest_of(low)), highest_of(high)
    work.changes[strip, up(0)], work.changes[strip, up(1)] = sum_of(total), sum_of(squares)
