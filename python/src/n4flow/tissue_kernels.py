"""Compiled loops of the tissue mask: Gaussian means of valid voxels, holes, closings. They release the GIL."""

from __future__ import annotations

from typing import Any

import numpy as np

from n4flow.kernel_cache import njit

up: Any = np.uintp  # an index that cannot count from the end: loops over it become vector instructions


@njit(nogil=True, cache=True, error_model="numpy")
def weigh(values: Any, weights: Any, total: Any, weight: Any) -> None:
    """Write value times weight, and weight, of the valid voxels of a plane (y, x), 0 elsewhere."""
    none = np.float32(0)
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            value = values[y, x]
            valid = np.isfinite(value) & (value != none)
            share = np.float32(weights[y, x]) if valid else none
            total[y, x] = value * share if valid else none
            weight[y, x] = share


@njit(nogil=True, cache=True, error_model="numpy")
def _add_pairs(rows: Any, at: Any, kernel: Any, sums: Any) -> None:
    """Write the filtered row into `sums` (X,) float64: `rows[at[r - d]] + rows[at[r + d]]` by kernel[d], d from r to 1.

    Two taps at a time, so that sums stay in registers; they are added in order all the same.
    """
    n, reach = up(sums.size), up(kernel.size - 1)
    centre = up(at[reach])
    for x in range(n):
        sums[x] = rows[centre, x] * kernel[0]
    d = reach
    while d > up(1):
        a, b, c, e = up(at[reach - d]), up(at[reach + d]), up(at[reach - d + up(1)]), up(at[reach + d - up(1)])
        outer, inner = kernel[d], kernel[d - up(1)]
        for x in range(n):
            sums[x] = (sums[x] + (rows[a, x] + rows[b, x]) * outer) + (rows[c, x] + rows[e, x]) * inner
        d -= up(2)
    if d == up(1):
        a, b, outer = up(at[reach - up(1)]), up(at[reach + up(1)]), kernel[1]
        for x in range(n):
            sums[x] += (rows[a, x] + rows[b, x]) * outer


@njit(nogil=True, cache=True, error_model="numpy")
def _along_x(wide: Any, kernel: Any, sums: Any) -> None:
    """Filter a row that has zeros around it, as `_add_pairs` does."""
    n, reach = up(sums.size), up(kernel.size - 1)
    for x in range(n):
        sums[x] = wide[reach + x] * kernel[0]
    d = reach
    while d > up(1):
        outer, inner = kernel[d], kernel[d - up(1)]
        for x in range(n):
            here = reach + x
            near = (wide[here - d + up(1)] + wide[here + d - up(1)]) * inner
            sums[x] = (sums[x] + (wide[here - d] + wide[here + d]) * outer) + near
        d -= up(2)
    if d == up(1):
        outer = kernel[1]
        for x in range(n):
            sums[x] += (wide[reach + x - up(1)] + wide[reach + x + up(1)]) * outer


@njit(nogil=True, cache=True, error_model="numpy")
def _smooth(planes: Any, z: Any, along_z: Any, along_y: Any, along_x: Any, out: Any) -> None:
    """Filter plane `z` of (z, y, x) `planes` along Z, Y and X into `out` (y, x), a row at a time."""
    n_z, n_y, n_x = planes.shape
    deep, high, across = along_z.size - 1, along_y.size - 1, along_x.size - 1
    column = np.zeros((2 * deep + 1, n_x))  # a row of the planes around
    ring = np.zeros((2 * high + 2, n_x))  # rows around that are filtered along Z; the last one stays 0
    wide, sums = np.zeros(n_x + 2 * across), np.empty(n_x)
    in_order, at = np.arange(2 * deep + 1), np.empty(2 * high + 1, np.int64)
    for ahead in range(n_y + high):
        if ahead < n_y:
            for d in range(-deep, deep + 1):
                if 0 <= z + d < n_z:
                    for x in range(n_x):
                        column[deep + d, x] = planes[z + d, ahead, x]
            _add_pairs(column, in_order, along_z, sums)
            slot = ahead % (2 * high + 1)
            for x in range(n_x):
                ring[slot, x] = np.float32(sums[x])
        y = ahead - high
        if y < 0:
            continue
        for d in range(-high, high + 1):
            at[high + d] = (y + d) % (2 * high + 1) if 0 <= y + d < n_y else 2 * high + 1
        _add_pairs(ring, at, along_y, sums)
        for x in range(n_x):
            wide[across + x] = np.float32(sums[x])
        _along_x(wide, along_x, sums)
        for x in range(n_x):
            out[y, x] = sums[x]


@njit(nogil=True, cache=True, error_model="numpy")
def smooth_plane(
    values: Any, total: Any, weight: Any, z: Any, along_z: Any, along_y: Any, along_x: Any, out: Any
) -> None:
    """Write plane `z` of the Gaussian mean of (z, y, x) `values` into `out` (y, x), 0 where the voxel is not valid.

    `total` and `weight` come from `weigh`; kernels are halves from the centre outwards. Sums are float64 from the
    outside to the centre, and float32 between the axes, as SciPy's `gaussian_filter` takes them.
    """
    norm = np.empty_like(out)
    _smooth(weight, z, along_z, along_y, along_x, norm)
    _smooth(total, z, along_z, along_y, along_x, out)
    none = np.float32(0)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            inside = np.isfinite(values[z, y, x]) and values[z, y, x] != none and norm[y, x] > none
            out[y, x] = out[y, x] / norm[y, x] if inside else none


@njit(nogil=True, cache=True, error_model="numpy")
def fill_holes(mask: Any) -> None:
    """Put what is outside a mask (y, x) uint8 and cut off from the border inside; neighbours share an edge."""
    n_y, n_x = mask.shape
    outside = np.zeros((n_y, n_x), np.uint8)
    stack = np.empty(n_y * n_x, np.int32)
    n = 0
    for y in range(n_y):
        for x in range(n_x) if y in (0, n_y - 1) else range(0, n_x, max(1, n_x - 1)):
            if not mask[y, x] and not outside[y, x]:
                outside[y, x] = 1
                stack[n] = y * n_x + x
                n += 1
    while n:
        n -= 1
        y, x = divmod(stack[n], n_x)
        for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            j, i = y + dy, x + dx
            if 0 <= j < n_y and 0 <= i < n_x and not mask[j, i] and not outside[j, i]:
                outside[j, i] = 1
                stack[n] = j * n_x + i
                n += 1
    for y in range(n_y):
        for x in range(n_x):
            mask[y, x] = 1 - outside[y, x]


@njit(nogil=True, cache=True, error_model="numpy")
def _grow(rows: Any, radius: Any, grown: Any) -> None:
    """Dilate (y, words) uint64 `rows` of 64 pixels a word with a disk; bit x of a row is bit x % 64 of word x // 64."""
    n_y, n_words = rows.shape
    for y in range(n_y):
        for dy in range(-radius, radius + 1):
            if not 0 <= y + dy < n_y:
                continue
            half = int(np.sqrt(radius * radius - dy * dy))
            for dx in range(-half, half + 1):
                skip, shift = dx // 64, np.uint64(dx % 64)  # towards higher bits
                rest = np.uint64(64) - shift
                for i in range(max(0, skip), min(n_words, n_words + skip + 1)):
                    word = np.uint64(0)
                    if i - skip < n_words:
                        word = rows[y + dy, i - skip] << shift
                    if shift and i - skip > 0:
                        word |= rows[y + dy, i - skip - 1] >> rest
                    grown[y, i] |= word


@njit(nogil=True, cache=True, error_model="numpy")
def close_disk(mask: Any, radius: Any) -> None:
    """Close a mask (y, x) uint8 with a disk, in place, as if the plane went on empty beyond its border."""
    n_y, n_x = mask.shape
    margin = 2 * radius  # the erosion sees what was added beyond the border: it takes back no more than that
    one = np.uint64(1)
    rows = np.zeros((n_y + 2 * margin, (n_x + 2 * margin + 63) // 64), np.uint64)
    grown, shrunk = np.zeros_like(rows), np.zeros_like(rows)
    for y in range(n_y):
        for x in range(n_x):
            if mask[y, x]:
                rows[margin + y, (margin + x) // 64] |= one << np.uint64((margin + x) % 64)
    _grow(rows, radius, grown)
    for y in range(grown.shape[0]):
        for i in range(grown.shape[1]):
            grown[y, i] = ~grown[y, i]
    _grow(grown, radius, shrunk)
    for y in range(n_y):
        for x in range(n_x):
            outside = (shrunk[margin + y, (margin + x) // 64] >> np.uint64((margin + x) % 64)) & one
            mask[y, x] = 1 - np.uint8(outside)


@njit(nogil=True, cache=True, error_model="numpy")
def bridge_gaps(bits: Any, edges: Any, reach: Any) -> None:
    """Fill gaps along Z of packed planes (Z, bytes) uint8, in place, where they are at most `reach` long.

    `edges` (Z + 1,) says where planes begin and end, in the unit of `reach`.
    """
    last = np.full((bits.shape[1], 8), -1, np.int32)  # plane in which each voxel was inside last, up to a gap's begin
    below = np.zeros(bits.shape[1], np.uint8)
    for z in range(bits.shape[0]):
        for i in range(bits.shape[1]):
            here, before = bits[z, i], below[i]
            if here == before:
                continue
            below[i] = here
            for k in range(8):
                bit = np.uint8(1) << np.uint8(k)
                if before & bit and not here & bit:
                    last[i, k] = z - 1
                elif here & bit and not before & bit and last[i, k] >= 0:
                    start = last[i, k] + 1
                    if edges[z] - edges[start] <= reach:
                        for gap in range(start, z):
                            bits[gap, i] |= bit
