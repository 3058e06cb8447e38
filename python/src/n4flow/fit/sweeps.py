# mypy: ignore-errors
# (numba gives these functions their types)
"""Compiled loops of the fast engine: the two sweeps over the voxels. See `cpu` for how they fit together.

Rules that keep them fast and their results fixed: indices are unsigned (a signed one might count from the end, which
stops vectorisation); long plain loops over a row or a buffer, one array written in each; multiply-adds written as
`fma`; every piece of a sweep writes its sums to its own place.
"""

from __future__ import annotations

import numpy as np

from n4flow.fit.compiled import fma, kernel, reduction, row_kernel
from n4flow.fit.evaluate_kernels import exp_row

up = np.uintp
f4 = np.float32

BUFFER = 2048  # voxels between two flushes of the second sweep: what it writes stays in the first-level cache
SMALL_STEP = 0.1  # |step of the log field| up to which expm1 is four terms of its series, to 8e-8
_BITS_OF_HUGE = np.int32(0x7F000000)


@row_kernel
def blend(source, at0, at1, at2, at3, w0, w1, w2, w3, out, at, n):
    """out[at + x] = w0 source[at0 + x] + .. + w3 source[at3 + x] for x < n: four controls' rows (or slabs) to one."""
    for x in range(n):
        value = w0 * source[at0 + x]
        value = fma(w1, source[at1 + x], value)
        value = fma(w2, source[at2 + x], value)
        out[at + x] = fma(w3, source[at3 + x], value)


@kernel
def expand_rows(lattice, weights, support, width, rows):
    """Expand a lattice along x: rows[(a cy + j) width + x] = sum over c of lattice[a, j, c] weights[c, x].

    Four controls at a time, over the stretch of x that they reach.
    """
    slabs, lines, n_c = lattice.shape
    stride = up(width)
    flat = weights.reshape(-1)
    for a in range(slabs):
        for j in range(lines):
            at = up(a * lines + j) * stride
            for x in range(stride):
                rows[at + x] = f4(0)
            for c in range(0, n_c, 4):
                last = min(c + 3, n_c - 1)
                begin, end = support[c, 0], support[last, 1]
                v0 = f4(lattice[a, j, c])
                v1 = f4(lattice[a, j, c + 1]) if c + 1 < n_c else f4(0)
                v2 = f4(lattice[a, j, c + 2]) if c + 2 < n_c else f4(0)
                v3 = f4(lattice[a, j, c + 3]) if c + 3 < n_c else f4(0)
                c0 = up(c) * stride + begin
                c1 = up(min(c + 1, n_c - 1)) * stride + begin
                c2 = up(min(c + 2, n_c - 1)) * stride + begin
                c3 = up(min(c + 3, n_c - 1)) * stride + begin
                out = at + begin
                for x in range(end - begin):
                    value = fma(v0, flat[c0 + x], rows[out + x])
                    value = fma(v1, flat[c1 + x], value)
                    value = fma(v2, flat[c2 + x], value)
                    rows[out + x] = fma(v3, flat[c3 + x], value)


# ------------------------------------------------------------------------------------------------ first sweep: the fit


@row_kernel
def look_up(table, index, at, row, n):
    """row[x] = table[index[at + x]]."""
    for x in range(n):
        row[x] = table[up(index[at + x])]


@row_kernel
def scale(row, factors, at, n):
    """row[x] *= factors[at + x]."""
    for x in range(n):
        row[x] *= factors[at + x]


@row_kernel
def accumulate(row, w, sums, at, n):
    """sums[at + x] += w row[x]."""
    for x in range(n):
        sums[at + x] = fma(w, row[x], sums[at + x])


@reduction
def dot(a, at_a, b, at_b, n):
    """Return the sum of a[at_a + x] b[at_b + x]."""
    total = f4(0)
    for x in range(n):
        total += a[at_a + x] * b[at_b + x]
    return total


@kernel
def fit_unit(unit, member, rows, n_y, table, tables, squares, work):
    """Sum what one piece of the image asks of the controls, resolved along y and x: work.partial[unit].

    Parameters
    ----------
    unit : uintp
    member : int
        Whose rows of the work arrays to use.
    rows : packing.Rows
    n_y : uintp
        Rows of a plane.
    table : (fine,) float32 array
        Residual of each fine bin; 0 for the bin of voxels outside the mask.
    tables : cpu.Tables
    squares : bool
        Whether to weight by squares (for the controls' weights) rather than by shares.
    work : cpu.Work
    """
    begin, end = rows.unit_row[unit], rows.unit_row[unit + up(1)]
    y0 = begin % n_y
    end = min(end, begin - y0 + n_y)  # the planes that follow may have no voxels
    fy = tables.first_y
    wy, wx = (tables.square_y, tables.square_x) if squares else (tables.share_y, tables.share_x)
    low, high = fy[y0], fy[end - begin + y0 - up(1)] + up(4)
    sums, row, out = work.sums[member], work.row[member], work.partial[unit]
    width = up(row.size)
    for x in range(low * width, high * width):
        sums[x] = f4(0)
    weighted = rows.weights.size > 0
    for r in range(begin, end):
        n = rows.start[r + up(1)] - rows.start[r]
        if n == up(0):
            continue
        y = r - begin + y0
        look_up(table, work.fine_index, rows.start[r], row, n)
        if weighted:
            scale(row, rows.weights, rows.start[r], n)
        at = fy[y] * width + rows.first[r]
        accumulate(row, wy[y, up(0)], sums, at, n)
        accumulate(row, wy[y, up(1)], sums, at + width, n)
        accumulate(row, wy[y, up(2)], sums, at + up(2) * width, n)
        accumulate(row, wy[y, up(3)], sums, at + up(3) * width, n)
    flat = wx.reshape(-1)
    for j in range(low, high):
        for c in range(up(wx.shape[0])):
            left, right = tables.support[c, up(0)], tables.support[c, up(1)]
            out[j, c] = dot(sums, j * width + left, flat, c * width + left, right - left)


# ------------------------------------------------------------------------------------------- second sweep: the new
# field


@row_kernel
def bin_position(log_image, at, lines, at0, at1, at2, at3, w0, w1, w2, w3, origin, per_unit, out, to, n):
    """out[to + x] = (u - b - origin) per_unit, in fine bins: u the log image, b the field blended from four lines."""
    for x in range(n):
        bias = w0 * lines[at0 + x]
        bias = fma(w1, lines[at1 + x], bias)
        bias = fma(w2, lines[at2 + x], bias)
        bias = fma(w3, lines[at3 + x], bias)
        out[to + x] = ((log_image[at + x] - bias) - origin) * per_unit


@row_kernel
def change(lines, at0, at1, at2, at3, w0, w1, w2, w3, out, to, n):
    """out[to + x] = expm1(-d) as four terms, d the step of the log field blended from four lines."""
    for x in range(n):
        d = w0 * lines[at0 + x]
        d = fma(w1, lines[at1 + x], d)
        d = fma(w2, lines[at2 + x], d)
        d = -fma(w3, lines[at3 + x], d)
        out[to + x] = d * fma(d, fma(d, fma(d, f4(1 / 24), f4(1 / 6)), f4(0.5)), f4(1))


@row_kernel
def large_change(lines, at0, at1, at2, at3, w0, w1, w2, w3, out, to, n):
    """As `change`, for steps of any size; what rounding costs does not matter then."""
    blend(lines, at0, at1, at2, at3, -w0, -w1, -w2, -w3, out, to, n)
    row = out[to : to + n]
    exp_row(row)
    for x in range(n):
        row[x] -= f4(1)


@row_kernel
def quantise(position, bits, n, outside, outside_bits, index, at):
    """index[at + x] = the bin that position[x] lies in; at most `outside`, the bin of voxels that are not in the mask.

    Returns the lowest and highest position of voxels in the mask, as the bits of a float32 above 0: whole numbers have
    an order that the compiler may vectorise.
    """
    low, high = outside_bits, np.int32(0)
    for x in range(n):
        index[at + x] = np.uint16(np.int32(min(position[x], outside)))
        low = min(low, bits[x])
        high = max(high, bits[x] if bits[x] < outside_bits else np.int32(0))
    return low, high


@kernel
def first_lowest(bits, n, outside_bits, at, places, record_bits):
    """Return the lowest position among the first voxels as ITK 5.4 sees it: of those that do not raise the maximum.

    The voxels that raise it are noted, since those below the lowest position of all were missed
    (`sharpening.itk_range`).

    Parameters
    ----------
    bits : (n or more,) int32 array
        Positions, as the bits of a float32.
    outside_bits : int32
        Bits of the bin of voxels outside the mask.
    at : uintp
        Where the first voxel lies among the packed ones.
    places : (m,) int64 array
        Written: packed places of the first m voxels that raise the maximum; -1 behind them.
    record_bits : (m,) int32 array
        Written: their positions.
    """
    highest, lowest = np.int32(-1), outside_bits
    noted = 0
    places[:] = -1
    for x in range(n):
        b = bits[x]
        if b >= outside_bits:
            continue
        if b <= highest:
            lowest = min(lowest, b)
            continue
        highest = b
        if noted < places.size:
            places[noted], record_bits[noted] = at + x, b
            noted += 1
    return lowest


@reduction
def sum_changes(changes, at, position, outside, n):
    """Return the sum and the sum of squares of the changes of voxels in the mask."""
    total, squares = f4(0), f4(0)
    for x in range(n):
        e = changes[at + x] if position[x] < outside else f4(0)
        total += e
        squares += e * e
    return total, squares


@row_kernel
def count(index, at, n, counts, stride):
    """Count indices into four histograms, `stride` apart: equal neighbours would wait for each other in one.

    `n` is a multiple of 4.
    """
    two = stride + stride
    three = two + stride
    for x in range(at, at + n, up(4)):
        counts[up(index[x])] += np.int32(1)
        counts[up(index[x + up(1)]) + stride] += np.int32(1)
        counts[up(index[x + up(2)]) + two] += np.int32(1)
        counts[up(index[x + up(3)]) + three] += np.int32(1)


@kernel
def field_unit(unit, member, rows, n_y, grid, small, tables, work, counts):
    """Take the new field off one piece of the image: its voxels' fine bins, counts, extremes, and changes.

    Parameters
    ----------
    unit, member, rows, n_y, tables, work : see `fit_unit`
    grid : (float32, float32, float32, int32)
        Log intensity at the start of the fine bins, bins to a unit of it, the bin of voxels outside the mask, its bits.
    small : bool
        Whether the step is small everywhere.
    counts : (4 * stride,) int32 array
        This member's counts of fine bins.

    Writes
    ------
    work.fine_index
        Fine bin of each packed voxel.
    work.kept
        Change of each voxel in order, where the whole piece lies in the part that is kept for ITK's measure.
    work.changes
        Of other pieces: sum and sum of squares of the changes.
    work.ends
        Lowest and highest position in fine bins, as the bits of a float32.
    work.places, work.record_bits
        By the first piece; see `first_lowest`.
    """
    origin, per_unit, outside, outside_bits = grid
    begin, end = rows.unit_row[unit], rows.unit_row[unit + up(1)]
    y0, z = begin % n_y, begin // n_y
    end = min(end, begin - y0 + n_y)
    fy, wy, wz = tables.first_y, tables.weight_y, tables.weight_z
    low, high = fy[y0], fy[end - begin + y0 - up(1)] + up(4)
    width, n_lines = up(work.row.shape[1]), up(work.partial.shape[1])
    lines, steps, position, changes = (
        work.lines[member, 0],
        work.lines[member, 1],
        work.lines[member, 2],
        work.lines[member, 3],
    )
    slab, at, n = n_lines * width, low * width, (high - low) * width
    s0 = tables.first_z[z] * slab + at
    s1, s2, s3 = s0 + slab, s0 + slab + slab, s0 + slab + slab + slab
    w0, w1, w2, w3 = wz[z, up(0)], wz[z, up(1)], wz[z, up(2)], wz[z, up(3)]
    blend(work.field, s0, s1, s2, s3, w0, w1, w2, w3, lines, at, n)
    blend(work.step, s0, s1, s2, s3, w0, w1, w2, w3, steps, at, n)
    index, kept = work.fine_index, work.kept
    keep = rows.start[end] <= up(kept.size)
    bits = position.view(np.int32)
    lowest, highest = _BITS_OF_HUGE, np.int32(0)
    stride = up(counts.size) // up(4)
    total, squares = 0.0, 0.0
    at, filled = rows.start[begin], up(0)
    for r in range(begin, end):
        n = rows.start[r + up(1)] - rows.start[r]
        if n > up(0):
            y = r - begin + y0
            l0 = fy[y] * width + rows.first[r]
            l1, l2, l3 = l0 + width, l0 + width + width, l0 + width + width + width
            w0, w1, w2, w3 = wy[y, up(0)], wy[y, up(1)], wy[y, up(2)], wy[y, up(3)]
            bin_position(
                rows.log_image,
                at + filled,
                lines,
                l0,
                l1,
                l2,
                l3,
                w0,
                w1,
                w2,
                w3,
                origin,
                per_unit,
                position,
                filled,
                n,
            )
            target, to = (kept, at + filled) if keep else (changes, filled)
            if small:
                change(steps, l0, l1, l2, l3, w0, w1, w2, w3, target, to, n)
            else:
                large_change(steps, l0, l1, l2, l3, w0, w1, w2, w3, target, to, n)
            filled += n
        if filled >= up(BUFFER) or (r + up(1) == end and filled > up(0)):
            low_bits, high_bits = quantise(position, bits, filled, outside, outside_bits, index, at)
            if at == up(0):
                low_bits = first_lowest(bits, filled, outside_bits, at, work.places, work.record_bits)
            lowest, highest = min(lowest, low_bits), max(highest, high_bits)
            if not keep:
                a, b = sum_changes(changes, up(0), position, outside, filled)
                total += a
                squares += b
            count(index, at, filled, counts, stride)
            at += filled
            filled = up(0)
    work.ends[unit, up(0)], work.ends[unit, up(1)] = lowest, highest
    work.changes[unit, up(0)], work.changes[unit, up(1)] = total, squares
