"""Compiled loops of block means: sums of k x k blocks of planes that come in rows or in tiles, counts and extremes.

Plain arithmetic in a fixed order, without the GIL, as in `kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from n4flow.bins import INFINITY_BITS, MAGNITUDE
from n4flow.fit import vector as v
from n4flow.fit.compiled import row_kernel
from n4flow.kernel_cache import njit

# columns of the per-plane counts of `shrink_rows_*`
N_VALID, N_ZERO, N_NONFINITE, N_NEGATIVE, N_SATURATED = range(5)


@njit(nogil=True, cache=True, error_model="numpy")
def _reduce_columns(sums: Any, found: Any, k: int, rows: int, mean: Any, valid: Any) -> int:
    """Turn sums and counts of each column over `rows` rows into means and valid shares; leave zeros behind.

    Returns how many voxels were valid.
    """
    x, voxels = 0, 0
    for c in range(mean.size):
        total, n, start = 0.0, 0, x
        while x < min(sums.size, start + k):
            total += sums[x]
            n += found[x]
            x += 1
        mean[c] = total / np.float64(max(n, 1))
        valid[c] = np.float64(n) / np.float64(rows * (x - start))
        voxels += n
    for x in range(sums.size):
        sums[x] = 0
        found[x] = 0
    return voxels


@njit(nogil=True, cache=True, error_model="numpy")
def shrink_rows_int(
    rows: Any,
    y_start: int,
    n_y: int,
    k: int,
    saturated: Any,
    sums: Any,
    found: Any,
    mean: Any,
    valid: Any,
    counts: Any,
    extremes: Any,
) -> None:
    """Add rows of an integer plane, the first being row `y_start` of `n_y`, to the means of k x k blocks.

    `sums` and `found` (X,) hold what earlier rows gave to the block row that is not complete yet; they are 0 at first.
    `mean` and `valid` (blocks down, blocks across) are written, and voxels counted, where a block row ends.
    """
    n_x = rows.shape[1]
    low, high = np.int32(2147483647), np.int32(-2147483648)
    for i in range(rows.shape[0]):
        # no branches, so that the compiler does several voxels at once
        for x in range(n_x):
            voxel = np.int32(rows[i, x])
            sums[x] += voxel
            found[x] += np.int32(voxel != 0)
        for x in range(n_x):
            voxel = np.int32(rows[i, x])
            low = min(low, voxel if voxel != 0 else np.int32(2147483647))
            high = max(high, voxel if voxel != 0 else np.int32(-2147483648))
        y = y_start + i
        if (y + 1) % k == 0 or y + 1 == n_y:
            n = _reduce_columns(sums, found, k, y % k + 1, mean[y // k], valid[y // k])
            counts[N_VALID] += n
            counts[N_ZERO] += (y % k + 1) * n_x - n
    if low < 0 or high == saturated:
        for i in range(rows.shape[0]):
            for x in range(n_x):
                counts[N_NEGATIVE] += rows[i, x] < 0
                counts[N_SATURATED] += rows[i, x] == saturated
    if low <= high:
        extremes[0], extremes[1] = min(extremes[0], low), max(extremes[1], high)


@row_kernel
def _add_measures(value, sums):  # type: ignore[no-untyped-def]
    """Add a vector of voxels to the counts of finite, of valid, of negative ones, and to the extremes."""
    finite, valid, negative, low, high = sums
    none, one, infinity = v.splat(np.float32(0)), v.splat(np.float32(1)), v.splat(np.float32(np.inf))
    size = v.greatest(value, v.subtract(none, value))
    within = v.where_below(size, infinity, one, none)
    usable = v.where_below(none, size, within, none)
    low = v.least(low, v.where_below(none, usable, value, infinity))
    high = v.greatest(high, v.where_below(none, usable, value, v.subtract(none, infinity)))
    below = v.where_below(value, none, usable, none)
    return v.add(finite, within), v.add(valid, usable), v.add(negative, below), low, high


@njit(nogil=True, cache=True, error_model="numpy")
def _measure(voxels: Any, counts: Any, extremes: Any) -> bool:
    """Count float32 voxels (n,), at most 2**24, and widen their extremes; return whether all are valid."""
    none, infinity = v.splat(np.float32(0)), v.splat(np.float32(np.inf))
    sums = (none, none, none, infinity, v.subtract(none, infinity))
    whole = voxels.size - voxels.size % v.LANES
    for i in range(0, whole, v.LANES):
        sums = _add_measures(v.load(voxels, i), sums)
    few = np.full(v.LANES, np.float32(np.nan))
    few[: voxels.size - whole] = voxels[whole:]
    finite, valid, negative, low, high = _add_measures(v.load(few, 0), sums)
    n = int(v.sum_of(valid))
    counts[N_VALID] += n
    counts[N_ZERO] += int(v.sum_of(finite)) - n
    counts[N_NONFINITE] += voxels.size - int(v.sum_of(finite))
    counts[N_NEGATIVE] += int(v.sum_of(negative))
    extremes[0] = min(extremes[0], v.lowest_of(low))
    extremes[1] = max(extremes[1], v.highest_of(high))
    return n == voxels.size


@njit(nogil=True, cache=True)
def shrink_rows_float(
    rows: Any,
    bits: Any,
    y_start: int,
    n_y: int,
    k: int,
    sums: Any,
    found: Any,
    mean: Any,
    valid: Any,
    counts: Any,
    extremes: Any,
) -> None:
    """Do what `shrink_rows_int` does for float32 rows, also seen as int32 `bits`."""
    plain = _measure(rows.reshape(-1), counts, extremes)
    n_x = rows.shape[1]
    for i in range(rows.shape[0]):
        for x in range(n_x):
            finite = (bits[i, x] & np.int32(MAGNITUDE)) < np.int32(INFINITY_BITS)
            sums[x] += np.float64(rows[i, x] if finite else np.float32(0))
        if plain:
            found += np.int32(1)
        else:
            for x in range(n_x):
                magnitude = bits[i, x] & np.int32(MAGNITUDE)
                found[x] += np.int32((magnitude != 0) & (magnitude < np.int32(INFINITY_BITS)))
        y = y_start + i
        if (y + 1) % k == 0 or y + 1 == n_y:
            _reduce_columns(sums, found, k, y % k + 1, mean[y // k], valid[y // k])


@njit(nogil=True, cache=True, error_model="numpy")
def shrink_tile(
    tile: Any, bits: Any, y_start: int, x_start: int, k: int, sums: Any, found: Any, counts: Any, extremes: Any
) -> None:
    """Add a float32 tile (z, y, x), also seen as int32 `bits`, to the sums of the k x k blocks that it touches.

    `sums` float64 and `found` int32 are (z, blocks down, blocks across), the first block being the one that holds the
    tile's first voxel, row `y_start` and column `x_start` of the plane; `counts` is (z, 5), `extremes` (z, 2).
    """
    n_z, n_y, n_x = tile.shape
    column = np.zeros(n_x, np.float64)
    usable = np.zeros(n_x, np.int32)
    for z in range(n_z):
        plain = _measure(tile[z].reshape(-1), counts[z], extremes[z])
        for i in range(n_y):
            for x in range(n_x):
                finite = (bits[z, i, x] & np.int32(MAGNITUDE)) < np.int32(INFINITY_BITS)
                column[x] += np.float64(tile[z, i, x] if finite else np.float32(0))
            if plain:
                for x in range(n_x):
                    usable[x] += np.int32(1)
            else:
                for x in range(n_x):
                    magnitude = bits[z, i, x] & np.int32(MAGNITUDE)
                    usable[x] += np.int32((magnitude != 0) & (magnitude < np.int32(INFINITY_BITS)))
            if (y_start + i + 1) % k and i + 1 < n_y:
                continue
            r = (y_start + i) // k - y_start // k
            # the columns of each block from left to right; the first block may begin before the tile
            x, stop = 0, min(n_x, k - x_start % k)
            for c in range(sums.shape[2]):
                total, n = sums[z, r, c], found[z, r, c]
                while x < stop:
                    total += column[x]
                    n += usable[x]
                    column[x] = 0.0
                    usable[x] = 0
                    x += 1
                sums[z, r, c], found[z, r, c] = total, n
                stop = min(n_x, stop + k)


@row_kernel
def _whole(block: int, k: int, start: int, extent: int, size: int) -> bool:
    """Return whether a block of `k` along an axis of `size` lies within a tile of `extent` that begins at `start`."""
    return (block * k >= start) & (min((block + 1) * k, size) <= start + extent)


@njit(nogil=True, cache=True, error_model="numpy")
def settle_tile(
    sums: Any, found: Any, at: Any, extent: Any, size: Any, k: int, mean: Any, valid: Any, edges: Any, edges_found: Any
) -> None:
    """Turn the sums (z, y, x) of blocks that lie in one tile into means and valid shares; leave zeros behind.

    The tile begins at row and column `at` and has `extent` rows and columns, of planes of `size`. What it gives to
    blocks that others touch, too, goes into `edges` and `edges_found` (z, number of such blocks).
    """
    first_r, first_c = at[0] // k, at[1] // k
    n_c = sums.shape[2]
    own = np.empty(n_c, np.bool_)
    widths = np.empty(n_c, np.float64)
    for c in range(n_c):
        own[c] = _whole(first_c + c, k, at[1], extent[1], size[1])
        widths[c] = min((first_c + c + 1) * k, size[1]) - (first_c + c) * k
    for z in range(sums.shape[0]):
        edge = 0
        for r in range(sums.shape[1]):
            row = first_r + r
            inside = _whole(row, k, at[0], extent[0], size[0])
            height = np.float64(min((row + 1) * k, size[0]) - row * k)
            for c in range(n_c):
                if not (inside and own[c]):
                    edges[z, edge], edges_found[z, edge] = sums[z, r, c], found[z, r, c]
                    edge += 1
            if inside:
                first, last = first_c + (0 if own[0] else 1), first_c + n_c - (0 if own[n_c - 1] else 1)
                for column in range(first, last):
                    n = np.float64(found[z, r, column - first_c])
                    mean[z, row, column] = sums[z, r, column - first_c] / (n if n > 0.0 else 1.0)
                    valid[z, row, column] = n / (height * widths[column - first_c])
            for c in range(n_c):
                sums[z, r, c] = 0.0
                found[z, r, c] = 0


@njit(nogil=True, cache=True, error_model="numpy")
def add_edges(
    edges: Any,
    edges_found: Any,
    at: Any,
    extent: Any,
    size: Any,
    k: int,
    blocks: Any,
    sums: Any,
    found: Any,
    open_: Any,
) -> None:
    """Add the edges of a tile of so many `blocks`, see `settle_tile`, to sums and counts of whole planes (z, y, x).

    `open_` (2, n) is set for the rows and columns of blocks that may have several tiles.
    """
    first_r, first_c = at[0] // k, at[1] // k
    for r in range(first_r, first_r + blocks[0]):
        open_[0, r] |= not _whole(r, k, at[0], extent[0], size[0])
    for c in range(first_c, first_c + blocks[1]):
        open_[1, c] |= not _whole(c, k, at[1], extent[1], size[1])
    for z in range(edges.shape[0]):
        edge = 0
        for r in range(first_r, first_r + blocks[0]):
            inside = _whole(r, k, at[0], extent[0], size[0])
            for c in range(first_c, first_c + blocks[1]):
                if not (inside and _whole(c, k, at[1], extent[1], size[1])):
                    sums[z, r, c] += edges[z, edge]
                    found[z, r, c] += edges_found[z, edge]
                    edge += 1


@njit(nogil=True, cache=True, error_model="numpy")
def settle_edges(sums: Any, found: Any, size: Any, k: int, open_: Any, mean: Any, valid: Any) -> None:
    """Turn sums and counts of blocks that several tiles may have touched into means; leave zeros behind."""
    for z in range(sums.shape[0]):
        for r in range(sums.shape[1]):
            height = min((r + 1) * k, size[0]) - r * k
            for c in range(sums.shape[2]):
                if open_[0, r] | open_[1, c]:
                    n, width = found[z, r, c], min((c + 1) * k, size[1]) - c * k
                    mean[z, r, c] = sums[z, r, c] / np.float64(max(n, 1))
                    valid[z, r, c] = np.float64(n) / np.float64(height * width)
                    sums[z, r, c] = 0.0
                    found[z, r, c] = 0
