"""Compiled loops of the tissue mask: Gaussian means of valid voxels, holes, closings. They release the GIL."""

from __future__ import annotations

from typing import Any

import numpy as np

from n4flow.compute import simd as v
from n4flow.compute.jit import row_kernel
from n4flow.compute.numba_cache import njit

COLUMNS = 2 * v.LANES  # that are filtered at a time


@njit(nogil=True, cache=True, error_model="numpy")
def weigh(values: Any, weights: Any, total: Any, weight: Any) -> None:
    """Write value times weight, and weight, of the valid voxels of a plane (y, x), 0 elsewhere.

    Rows of `total` and `weight` may be longer than those of the plane: the rest of them is 0.
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


@njit(nogil=True, cache=True, error_model="numpy")
def add_valid(planes: Any, total: Any, count: Any) -> None:
    """Add the valid voxels of planes (z, y, x), float32 or float64, to their sum and number (y, x), in order of Z."""
    for z in range(planes.shape[0]):
        for y in range(planes.shape[1]):
            for x in range(planes.shape[2]):
                value = planes[z, y, x]
                valid = np.isfinite(value) & (value != 0)
                total[y, x] += np.float64(value) if valid else 0.0
                count[y, x] += valid


@njit(nogil=True, cache=True)
def alike(first: Any, second: Any) -> bool:
    """Return whether two planes (y, x) are the same, float32 by float32."""
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
    """Return two vectors of columns, from `at` on, of a filtered line: sums from the outside to the centre.

    Line d around it begins at `places[reach + d]` of the flat `lines`. Two vectors at a time wait less for each other.
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
    ring = np.zeros((lines + 1, width))  # rows around that are filtered along Z, and one of zeros
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
        _filter(wide, in_row, along_x, found, 0, width)
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
def _spread(free: Any, outside: Any) -> bool:
    """Spread what is outside along a row of 64 pixels a word, over free pixels; say whether that changed anything."""
    one, top = np.uint64(1), np.uint64(63)
    n, carry, changed = free.size, np.uint64(0), False
    for i in range(n):  # towards higher bits: adding to the lowest bit of a run of ones carries to its end
        seeds = outside[i] | (free[i] & carry)
        total = free[i] + seeds
        carry = one if total < seeds else np.uint64(0)
        found = ((total ^ free[i]) & free[i]) | seeds
        changed |= found != outside[i]
        outside[i] = found
    carry = np.uint64(0)
    for i in range(n - 1, -1, -1):  # towards lower bits: one pixel, two, four ...
        found, run = outside[i] | (free[i] & (carry << top)), free[i]
        shift = one
        while shift < np.uint64(64):
            found |= run & (found >> shift)
            run &= run >> shift
            shift <<= one
        carry = found & one
        changed |= found != outside[i]
        outside[i] = found
    return changed


@njit(nogil=True, cache=True, error_model="numpy")
def _fill_holes(rows: Any) -> None:
    """Put what is cut off from the border inside a mask (y, words) of bits; neighbours share an edge.

    What is outside is spread row by row, down and up in turn, until nothing changes.
    """
    n_y, n_words = rows.shape
    free, outside = ~rows, np.zeros_like(rows)
    outside[0], outside[-1] = free[0], free[-1]
    outside[:, 0] |= free[:, 0] & np.uint64(1)
    outside[:, -1] |= free[:, -1] & (np.uint64(1) << np.uint64(63))
    changed = True
    while changed:
        changed = False
        for y in range(n_y):
            if y:
                outside[y] |= outside[y - 1] & free[y]
            changed |= _spread(free[y], outside[y])
        for y in range(n_y - 2, -1, -1):
            outside[y] |= outside[y + 1] & free[y]
            changed |= _spread(free[y], outside[y])
    for y in range(n_y):
        for i in range(n_words):
            rows[y, i] = ~outside[y, i]


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
def fill_and_close(mask: Any, radius: Any) -> None:
    """Fill the holes of a mask (y, x) uint8 of 0 and 1 and close it with a disk, in place.

    The plane goes on empty beyond its border.
    """
    n_y, n_x = mask.shape
    margin = 2 * radius + 1  # the erosion sees what was added beyond the border: it takes back no more than that
    before, n_words = (margin + 63) // 64, (n_x + 63) // 64
    rows = np.zeros((n_y + 2 * margin, n_words + 2 * before), np.uint64)
    for y in range(n_y):
        for i in range(n_words):
            word, pixels = np.uint64(0), mask[y, 64 * i : 64 * i + 64]
            for x in range(pixels.size):
                word |= np.uint64(pixels[x]) << np.uint64(x)
            rows[margin + y, before + i] = word
    _fill_holes(rows)
    if radius:
        grown, shrunk = np.zeros_like(rows), np.zeros_like(rows)
        _grow(rows, radius, grown)
        for y in range(grown.shape[0]):
            for i in range(grown.shape[1]):
                grown[y, i] = ~grown[y, i]
        _grow(grown, radius, shrunk)
        rows = ~shrunk
    for y in range(n_y):
        for i in range(n_words):
            word, pixels = rows[margin + y, before + i], mask[y, 64 * i : 64 * i + 64]
            for x in range(pixels.size):
                pixels[x] = np.uint8(word >> np.uint64(x)) & np.uint8(1)


@njit(nogil=True, cache=True, error_model="numpy")
def ends_of_gaps(bits: Any, first: Any, edges: Any, reach: Any, below: Any, last: Any) -> None:
    """Replace the bits of packed planes (z, bytes) uint8 by those at which a gap along Z ends that is to be filled.

    These are inside, and the gap below them is at most `reach` long. `edges` (Z + 1,) says where planes begin and end,
    in the unit of `reach`; `first` is the index of the first plane. `below` (bytes,) holds the plane below and `last`
    (bytes, 8) the plane in which each voxel was inside last, up to a gap's begin: both go on to the planes above.
    """
    for i_z in range(bits.shape[0]):
        z = first + i_z
        for i in range(bits.shape[1]):
            here, before = bits[i_z, i], below[i]
            bits[i_z, i] = 0
            if here == before:
                continue
            below[i] = here
            for k in range(8):
                bit = np.uint8(1) << np.uint8(k)
                if before & bit and not here & bit:
                    last[i, k] = z - 1
                elif here & bit and not before & bit and last[i, k] >= 0 and edges[z] - edges[last[i, k] + 1] <= reach:
                    bits[i_z, i] |= bit
