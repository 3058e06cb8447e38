"""Compiled loops of block means: a tile's share of each k x k block of a plane, counts and extremes, and their sum.

Plain arithmetic in a fixed order, without the GIL, as in `histogram_kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from n4flow.compute import simd as v
from n4flow.compute.jit import row_kernel
from n4flow.compute.numba_cache import njit
from n4flow.statistics.bins import INFINITY_BITS, MAGNITUDE

N_VALID, N_ZERO, N_NONFINITE, N_NEGATIVE = range(4)  # columns of the counts of `shrink_tile`
NO_EDGES = np.empty((1, 0)), np.empty((1, 0), np.int32)  # of tiles that end where blocks do
MOST_MEASURED = 1 << 24  # voxels at a time: float32 counts them exactly
PLAIN, ZEROS, BROKEN = range(3)  # all voxels valid; zeros among them; others that are not finite


@row_kernel
def _add_whole(column, k, totals):  # type: ignore[no-untyped-def]
    for c in range(totals.size):
        total = totals[c]
        for j in range(k):
            total += column[c * k + j]
        totals[c] = total


@row_kernel
def add_blocks(column, k, ahead, whole, totals, start):  # type: ignore[no-untyped-def]
    """Add the columns of each block from left to right to totals[start], ..., many blocks at a time.

    So many columns lie `ahead` of the `whole` blocks and belong to one before them, and some to one after them.
    """
    first, stop = start + (1 if ahead else 0), ahead + whole * k
    for x in range(min(ahead, column.size)):
        totals[start] += column[x]
    inside, sums = column[ahead:stop], totals[first : first + whole]
    # with a constant number of columns the compiler makes vectors of several blocks: a third of the time
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
def mean_of(total, lost, voxels):  # type: ignore[no-untyped-def]
    """Return the mean of a block, and the share of it that is valid."""
    n = np.float64(voxels - lost)
    return total / (n if n > 0.0 else 1.0), n / np.float64(voxels)


@row_kernel
def _add_measures(value, sums):  # type: ignore[no-untyped-def]
    """Add a vector of voxels to the counts of finite, of valid, of negative ones, and to the extremes."""
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
def measure(voxels: Any, counts: Any, extremes: Any) -> int:
    """Count float32 voxels (n,), at most MOST_MEASURED, and widen their extremes; return PLAIN, ZEROS or BROKEN."""
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
    if n == voxels.size:
        return PLAIN
    return ZEROS if int(v.sum_of(finite)) == voxels.size else BROKEN


@row_kernel
def usable(bits):  # type: ignore[no-untyped-def]
    """Return whether a float32, seen as int32, is finite, and whether it is valid."""
    magnitude = bits & np.int32(MAGNITUDE)
    finite = magnitude < np.int32(INFINITY_BITS)
    return finite, finite & (magnitude != 0)


@row_kernel
def _sum_blocks(tile, bits, z, y_start, x_start, k, sums, lost, counts, extremes, column, gone):  # type: ignore[no-untyped-def]
    """Add a plane of a tile to the sums (blocks down, blocks across) of blocks that it touches; return its state."""
    n_y, n_x = tile.shape[1:]
    ahead = -x_start % k  # columns before the first block that begins in the tile
    whole = max(0, n_x - ahead) // k
    all_sums, all_lost = sums.reshape(-1), lost.reshape(-1)
    voxels, state, i = tile[z].reshape(-1), PLAIN, 0
    for start in range(0, voxels.size, MOST_MEASURED):
        part = voxels[start : start + MOST_MEASURED]
        state = max(state, measure(part, counts, extremes))
    while i < n_y:
        r = (y_start + i) // k - y_start // k
        stop = min(n_y, (r + 1 + y_start // k) * k - y_start)
        if state == BROKEN:
            _add_valid_rows(tile, bits, z, i, stop, column, gone)
        else:
            _add_rows(voxels, n_x, i, stop, column, gone)
        i = stop
        at = r * sums.shape[1]
        add_blocks(column[:n_x], k, ahead, whole, all_sums, at)
        if state != PLAIN:
            add_blocks(gone[:n_x], k, ahead, whole, all_lost, at)
    return state


@row_kernel
def _add_values(value, total, zeros):  # type: ignore[no-untyped-def]
    """Add a vector of voxels to a vector of sums, and what is 0 to one of counts."""
    none, one = v.splat(np.float32(0)), v.splat(np.float32(1))
    return v.add(total, v.widen(value)), v.add(zeros, v.where_zero(value, one, none))


@row_kernel
def _add_rows(voxels, n_x, start, stop, column, gone):  # type: ignore[no-untyped-def]
    """Write the sums of the columns of some rows (y * n_x,), in the order of the rows, and how many voxels are 0."""
    whole = n_x - n_x % v.LANES
    for x in range(0, whole, v.LANES):
        total, zeros = v.splat(np.float64(0)), v.splat(np.float32(0))
        for i in range(start, stop):
            total, zeros = _add_values(v.load(voxels, i * n_x + x), total, zeros)
        v.store(column, x, total)
        v.store(gone, x, zeros)
    if whole < n_x:
        total, zeros = v.splat(np.float64(0)), v.splat(np.float32(0))
        for i in range(start, stop):
            total, zeros = _add_values(v.load_first(voxels, i * n_x + whole, n_x - whole), total, zeros)
        v.store(column, whole, total)
        v.store(gone, whole, zeros)


@row_kernel
def _add_valid_rows(tile, bits, z, start, stop, column, gone):  # type: ignore[no-untyped-def]
    """Write the sums of the finite voxels of columns, and how many are not valid."""
    column[:] = 0.0
    gone[:] = np.float32(0)
    for i in range(start, stop):
        for x in range(tile.shape[2]):
            finite, good = usable(bits[z, i, x])
            column[x] += np.float64(tile[z, i, x] if finite else np.float32(0))
            gone[x] += np.float32(not good)


@row_kernel
def _whole(block: int, k: int, start: int, extent: int, size: int) -> bool:
    """Return whether a block of `k` along an axis of `size` lies within a tile of `extent` that begins at `start`."""
    return (block * k >= start) & (min((block + 1) * k, size) <= start + extent)


@row_kernel
def _extent(block: int, k: int, size: int) -> int:
    """Return how many voxels a block has along an axis of `size`."""
    return min((block + 1) * k, size) - block * k


@njit(nogil=True, cache=True, error_model="numpy")
def shrink_tile(
    tile: Any,
    bits: Any,
    at: Any,
    size: Any,
    k: int,
    mean: Any,
    valid: Any,
    edges: Any,
    edges_lost: Any,
    counts: Any,
    extremes: Any,
) -> None:
    """Write means and valid shares of the k x k blocks that lie in a float32 tile (z, y, x), also seen as int32 `bits`.

    Parameters
    ----------
    at, size : (int, int)
        Row and column of the plane that the tile begins at; rows and columns of the plane.
    mean, valid : (z, blocks down, blocks across) array
        Of whole planes.
    edges, edges_lost : (z, n) float64 and int32 array
        Written: what the tile gives to blocks that others touch, too: sums, and voxels that are not valid.
    counts, extremes : (z, 5) and (z, 2) array
        Added to.
    """
    extent = tile.shape[1:]
    first_r, first_c = at[0] // k, at[1] // k
    n_r, n_c = -(-(at[0] + extent[0]) // k) - first_r, -(-(at[1] + extent[1]) // k) - first_c
    begin = 0 if _whole(first_c, k, at[1], extent[1], size[1]) else 1
    # one block that reaches beyond the tile on both sides is left out once
    end = n_c if _whole(first_c + n_c - 1, k, at[1], extent[1], size[1]) else max(begin, n_c - 1)
    sums, lost = np.zeros((n_r, n_c)), np.zeros((n_r, n_c))
    room = extent[1] + v.LANES  # the last vector may reach beyond the columns
    column, gone = np.zeros(room, np.float64), np.zeros(room, np.float32)
    for z in range(tile.shape[0]):
        state = _sum_blocks(tile, bits, z, at[0], at[1], k, sums, lost, counts[z], extremes[z], column, gone)
        edge = 0
        for r in range(n_r):
            row = first_r + r
            inside = _whole(row, k, at[0], extent[0], size[0])
            if inside:
                height = _extent(row, k, size[0])
                means, shares, totals = mean[z, row, first_c:], valid[z, row, first_c:], sums[r]
                most = np.float64(height * k)
                if state == PLAIN:
                    for c in range(begin, end - 1):
                        means[c] = totals[c] / most
                        shares[c] = 1.0
                else:
                    for c in range(begin, end - 1):
                        n = most - lost[r, c]
                        means[c] = totals[c] / (n if n > 0.0 else 1.0)
                        shares[c] = n / most
                for c in range(max(begin, end - 1), end):  # the last one may be narrower
                    voxels = height * _extent(first_c + c, k, size[1])
                    means[c], shares[c] = mean_of(totals[c], lost[r, c], voxels)
            # what is inside is left out
            for c in range(begin if inside else n_c):
                edges[z, edge], edges_lost[z, edge] = sums[r, c], lost[r, c]
                edge += 1
            for c in range(end if inside else n_c, n_c):
                edges[z, edge], edges_lost[z, edge] = sums[r, c], lost[r, c]
                edge += 1
        sums[:] = 0.0
        if state != PLAIN:
            lost[:] = 0.0


@njit(nogil=True, cache=True, error_model="numpy")
def add_edges(
    edges: Any,
    edges_lost: Any,
    at: Any,
    extent: Any,
    size: Any,
    k: int,
    blocks: Any,
    sums: Any,
    lost: Any,
    open_: Any,
) -> None:
    """Add the edges of a tile of so many `blocks`, see `shrink_tile`, to sums and counts of whole planes (z, y, x).

    `open_` (2, n) is set for the rows and columns of blocks that may have several tiles.
    """
    first_r, first_c = at[0] // k, at[1] // k
    n_c = blocks[1]
    begin = 0 if _whole(first_c, k, at[1], extent[1], size[1]) else 1
    # one block that reaches beyond the tile on both sides is left out once
    end = n_c if _whole(first_c + n_c - 1, k, at[1], extent[1], size[1]) else max(begin, n_c - 1)
    for r in range(first_r, first_r + blocks[0]):
        open_[0, r] |= not _whole(r, k, at[0], extent[0], size[0])
    for c in range(n_c):
        open_[1, first_c + c] |= c < begin or c >= end
    for z in range(edges.shape[0]):
        edge = 0
        for r in range(first_r, first_r + blocks[0]):
            c, inside = 0, _whole(r, k, at[0], extent[0], size[0])
            while c < n_c:
                if inside and c == begin and begin < end:
                    c = end
                    continue
                sums[z, r, first_c + c] += edges[z, edge]
                lost[z, r, first_c + c] += edges_lost[z, edge]
                edge += 1
                c += 1


@njit(nogil=True, cache=True, error_model="numpy")
def settle_edges(sums: Any, lost: Any, size: Any, k: int, open_: Any, mean: Any, valid: Any) -> None:
    """Turn sums and counts of blocks that several tiles may have touched into means; leave zeros behind."""
    every, some = np.arange(sums.shape[2]), np.flatnonzero(open_[1, : sums.shape[2]])
    for z in range(sums.shape[0]):
        for r in range(sums.shape[1]):
            height = _extent(r, k, size[0])
            for c in every if open_[0, r] else some:
                voxels = height * _extent(c, k, size[1])
                mean[z, r, c], valid[z, r, c] = mean_of(sums[z, r, c], lost[z, r, c], voxels)
                sums[z, r, c] = 0.0
                lost[z, r, c] = 0
