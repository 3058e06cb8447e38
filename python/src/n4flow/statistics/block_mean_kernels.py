"""Compiled loops of block means: contributions of a tile to each k x k block of a plane, counts and extremes.

They compute in a fixed order and release the GIL, as those of `histogram_kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from n4flow.compute import simd as v
from n4flow.compute.jit import row_kernel
from n4flow.compute.numba_cache import njit

N_VALID, N_ZERO, N_NONFINITE, N_NEGATIVE = range(4)  # columns of the counts of `shrink_tile`
NO_EDGES = np.empty(0, np.int64), np.empty((1, 0)), np.empty((1, 0), np.int32)  # for tiles of complete blocks
LINES = 8  # lines that are added up at a time
MOST_MEASURED = 1 << 24  # voxels counted at a time, since float32 is exact up to here


@row_kernel
def _add_whole(column, k, totals):  # type: ignore[no-untyped-def]
    for c in range(totals.size):
        total = totals[c]
        for j in range(k):
            total += column[c * k + j]
        totals[c] = total


@row_kernel
def add_blocks(column, k, ahead, whole, totals, start):  # type: ignore[no-untyped-def]
    """Add the columns of each block from left to right to totals[start], totals[start + 1], ...

    `ahead` columns belong to an incomplete block before the `whole` blocks; the last ones may belong to one after them.
    """
    first, stop = start + (1 if ahead else 0), ahead + whole * k
    for x in range(min(ahead, column.size)):
        totals[start] += column[x]
    inside, sums = column[ahead:stop], totals[first : first + whole]
    # with a constant k the compiler vectorizes over blocks, which takes a third of the time
    if k == 2:
        _add_whole(inside, 2, sums)
    elif k == 3:
        _add_whole(inside, 3, sums)
    elif k == 4:
        _add_whole(inside, 4, sums)
    elif k == 5:
        _add_whole(inside, 5, sums)
    elif k == 6:
        _add_whole(inside, 6, sums)
    else:
        _add_whole(inside, k, sums)
    for x in range(stop, column.size):
        totals[first + whole] += column[x]


@row_kernel
def _add_measures(value, sums):  # type: ignore[no-untyped-def]
    """Add a vector of voxels to the counts of finite, valid and negative voxels, and to the extremes."""
    finite, valid, negative, low, high = sums
    none, one, infinity = v.splat(np.float32(0)), v.splat(np.float32(1)), v.splat(np.float32(np.inf))
    size = v.maximum(value, v.subtract(none, value))
    within = v.where_below(size, infinity, one, none)
    usable = v.where_below(none, size, within, none)
    low = v.minimum(low, v.where_below(none, usable, value, infinity))
    high = v.maximum(high, v.where_below(none, usable, value, v.subtract(none, infinity)))
    below = v.where_below(value, none, usable, none)
    return v.add(finite, within), v.add(valid, usable), v.add(negative, below), low, high


@njit(nogil=True, cache=True, error_model="numpy")
def measure(voxels: Any, counts: Any, extremes: Any) -> bool:
    """Count float32 voxels (n,), at most MOST_MEASURED, and update the extremes; return whether all are valid."""
    none, infinity = v.splat(np.float32(0)), v.splat(np.float32(np.inf))
    sums = (none, none, none, infinity, v.subtract(none, infinity))
    whole = voxels.size - voxels.size % v.LANES
    for i in range(0, whole, v.LANES):
        sums = _add_measures(v.load(voxels, i), sums)
    few = np.empty(v.LANES, np.float32)
    for i in range(v.LANES):
        few[i] = voxels[whole + i] if whole + i < voxels.size else np.float32(np.nan)
    finite, valid, negative, low, high = _add_measures(v.load(few, 0), sums)
    n = int(v.sum_of(valid))
    counts[N_VALID] += n
    counts[N_ZERO] += int(v.sum_of(finite)) - n
    counts[N_NONFINITE] += voxels.size - int(v.sum_of(finite))
    counts[N_NEGATIVE] += int(v.sum_of(negative))
    extremes[0] = min(extremes[0], v.lowest_of(low))
    extremes[1] = max(extremes[1], v.highest_of(high))
    return n == voxels.size


@row_kernel
def _sum_blocks(tile, z, y_start, x_start, k, sums, lost, counts, extremes, column, gone):  # type: ignore[no-untyped-def]
    """Add a plane of a tile to sums and invalid voxels of its blocks (down, across); return whether all are valid."""
    n_y, n_x = tile.shape[1:]
    ahead = -x_start % k  # columns before the first block that begins in the tile
    whole = max(0, n_x - ahead) // k
    all_sums, all_lost = sums.reshape(-1), lost.reshape(-1)
    voxels, plain, i = tile[z].reshape(-1), True, np.int64(0)
    for start in range(0, voxels.size, MOST_MEASURED):
        part = voxels[start : start + MOST_MEASURED]
        plain &= measure(part, counts, extremes)
    while i < n_y:
        r = (y_start + i) // k - y_start // k
        stop = min(n_y, (r + 1 + y_start // k) * k - y_start)
        _add_rows(voxels, n_x, i, stop, column, gone)
        i = stop
        at = r * sums.shape[1]
        add_blocks(column[:n_x], k, ahead, whole, all_sums, at)
        if not plain:
            add_blocks(gone[:n_x], k, ahead, whole, all_lost, at)
    return plain


@row_kernel
def _add_values(value, total, gone):  # type: ignore[no-untyped-def]
    """Add a vector of voxels to a vector of sums, and its invalid voxels, which count as 0, to a vector of counts."""
    none, one, infinity = v.splat(np.float32(0)), v.splat(np.float32(1)), v.splat(np.float32(np.inf))
    finite = v.where_below(v.maximum(value, v.subtract(none, value)), infinity, value, none)
    return v.add(total, v.widen(finite)), v.add(gone, v.where_zero(finite, one, none))


@njit(nogil=True, cache=True, error_model="numpy")
def add_lines(voxels: Any, width: int, start: int, stop: int, total: Any, gone: Any) -> None:
    """Add up the columns from `start` to `stop` of lines (n * width,), float32, in order.

    `total` and `gone` (width,), float64 and float32, are the sums and the numbers of invalid voxels so far. A few lines
    are added at a time, which are read in order.
    """
    n, end = voxels.size // width, stop - (stop - start) % v.LANES
    for first in range(0, n, LINES):
        last = min(first + LINES, n)
        for x in range(start, end, v.LANES):
            sums, lost = v.load(total, x), v.load(gone, x)
            for i in range(first, last):
                sums, lost = _add_values(v.load(voxels, i * width + x), sums, lost)
            v.store(total, x, sums)
            v.store(gone, x, lost)
        for x in range(end, stop):
            for i in range(first, last):
                value = voxels[i * width + x]
                valid = (abs(value) < np.inf) & (value != 0)
                total[x] += np.float64(value) if valid else 0.0
                gone[x] += np.float32(0) if valid else np.float32(1)


@row_kernel
def _add_rows(voxels, n_x, start, stop, column, gone):  # type: ignore[no-untyped-def]
    """Write the sums of the columns of some rows (y * n_x,), added in order, and the numbers of invalid voxels."""
    whole = n_x - n_x % v.LANES
    for x in range(0, whole, v.LANES):
        total, lost = v.splat(np.float64(0)), v.splat(np.float32(0))
        for i in range(start, stop):
            total, lost = _add_values(v.load(voxels, i * n_x + x), total, lost)
        v.store(column, x, total)
        v.store(gone, x, v.widen(lost))
    if whole < n_x:
        total, lost = v.splat(np.float64(0)), v.splat(np.float32(0))
        for i in range(start, stop):
            total, lost = _add_values(v.load_first(voxels, i * n_x + whole, n_x - whole), total, lost)
        v.store(column, whole, total)
        v.store(gone, whole, v.widen(lost))


@njit(nogil=True, cache=True)
def blocks_of(start: int, extent: int, size: int, k: int) -> tuple[int, int, int, int]:
    """Return which blocks of `k` a tile touches along an axis of `size`: the first, and how many.

    Then which of these lie within the tile: the first, counted from there, and the one after the last.
    """
    stop, first = start + extent, start // k
    begin, end = -(-start // k), -(-size // k) if stop == size else stop // k
    return first, -(-stop // k) - first, begin - first, max(begin, end) - first


@njit(nogil=True, cache=True, error_model="numpy")
def shrink_tile(
    tile: Any,
    at: Any,
    size: Any,
    k: int,
    mean: Any,
    valid: Any,
    places: Any,
    edges: Any,
    edges_lost: Any,
    counts: Any,
    extremes: Any,
) -> None:
    """Write means and valid shares of the k x k blocks within a float32 tile (z, y, x).

    Parameters
    ----------
    at, size : (int, int)
        Row and column of the tile's first voxel in the plane; rows and columns of the plane.
    mean, valid : (z, blocks down, blocks across) array
        Those of whole planes.
    places : (n,) int64 array
        Blocks, among all that the tile touches, that other tiles touch, too; row by row.
    edges, edges_lost : (z, n) float64 and int32 array
        Written: sums, and numbers of invalid voxels, of the tile in these blocks.
    counts, extremes : (z, 5) and (z, 2) array
        Updated.
    """
    n_y, n_x = tile.shape[1:]
    first_r, n_r, r_begin, r_end = blocks_of(at[0], n_y, size[0], k)
    first_c, n_c, c_begin, c_end = blocks_of(at[1], n_x, size[1], k)
    sums, lost = np.zeros((n_r, n_c)), np.zeros((n_r, n_c))
    inside = slice(c_begin, c_end)
    widths = np.empty(c_end - c_begin)
    for c in range(widths.size):
        widths[c] = min(size[1] - (first_c + c_begin + c) * k, k)
    room = n_x + v.LANES  # the last vector may reach beyond the columns
    column, gone = np.zeros(room), np.zeros(room)
    for z in range(tile.shape[0]):
        plain = _sum_blocks(tile, z, at[0], at[1], k, sums, lost, counts[z], extremes[z], column, gone)
        for r in range(r_begin, r_end):
            height = np.float64(min(size[0] - (first_r + r) * k, k))
            means, shares = mean[z, first_r + r, first_c:][inside], valid[z, first_r + r, first_c:][inside]
            totals, gaps = sums[r, inside], lost[r, inside]
            for c in range(widths.size):
                voxels = height * widths[c]
                n = voxels - gaps[c]
                means[c] = totals[c] / (n if n > 0.0 else 1.0)
                shares[c] = 1.0 if plain else n / voxels
        for i in range(places.size):
            r, c = places[i] // n_c, places[i] % n_c
            edges[z, i], edges_lost[z, i] = sums[r, c], lost[r, c]
        sums[:] = 0.0
        lost[:] = 0.0


@njit(nogil=True, cache=True)
def add_edges(edges: Any, edges_lost: Any, places: Any, sums: Any, lost: Any) -> None:
    """Add the edges of a tile (see `shrink_tile`) to sums of blocks of whole planes (z, blocks) at `places`."""
    for z in range(edges.shape[0]):
        for i in range(places.size):
            sums[z, places[i]] += edges[z, i]
            lost[z, places[i]] += edges_lost[z, i]
