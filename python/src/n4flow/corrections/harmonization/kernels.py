# mypy: ignore-errors
# (numba gives these functions their types)
"""Compiled loops of the harmonisation, one plane or one pair of planes a call.

Sums are in float64, over the voxels of one plane in one order, so results do not depend on the number of threads.
A lattice of a plane has c x c controls; the weights of its cubic B-spline are four along each axis.
"""

from __future__ import annotations

import numpy as np

from n4flow.compute.jit import kernel


@kernel
def plane_field(lattice, fy, wy, fx, wx, out):
    """Write the spline of one plane: out[y, x] = sum wy wx lattice."""
    n_y, n_x = out.shape
    row = np.empty(lattice.shape[1])
    for y in range(n_y):
        for c in range(row.size):
            row[c] = 0.0
            for k in range(4):
                row[c] += wy[y, k] * lattice[fy[y] + k, c]
        for x in range(n_x):
            i = fx[x]
            value = wx[x, 0] * row[i] + wx[x, 1] * row[i + 1] + wx[x, 2] * row[i + 2] + wx[x, 3] * row[i + 3]
            out[y, x] = np.float32(value)


@kernel
def pair_weights(a, b, inside, middle, scale, factor, out):
    """Write the weight of the log ratio of every voxel of a pair of planes.

    factor exp(-(b - a - middle)^2 / (2 (1.5 scale)^2)) / scale^2.

    Parameters
    ----------
    a, b : (y, x) float32 arrays
        Corrected log intensity of the upper and lower plane.
    inside : (y, x) bool array
        Tissue in both.
    middle, scale, factor : float
    out : (y, x) float32 array
    """
    spread = -0.5 / (1.5 * scale) ** 2
    height = factor / scale**2
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            weight = 0.0
            if inside[y, x]:
                difference = np.float64(b[y, x]) - np.float64(a[y, x]) - middle
                weight = height * np.exp(max(spread * difference * difference, -20.0))
            out[y, x] = weight


@kernel
def normal_equations(w, target, fy, wy, fx, wx, gram, right):
    """Write sum w b b' (n, n) and sum w target b (n,), b the c^2 = n spline weights of a voxel.

    Rows are summed first, into the ten products of the four weights that act there; then those along Y.
    """
    n_y, n_x = w.shape
    spans_x, spans_y = fx[n_x - 1] + 1, fy[n_y - 1] + 1
    controls = int(np.sqrt(right.size) + 0.5)
    sums = np.zeros((spans_y, 10, spans_x, 10))
    firsts = np.zeros((spans_y, 4, spans_x, 4))
    row, line = np.empty((spans_x, 10)), np.empty((spans_x, 4))
    for y in range(n_y):
        row[:], line[:] = 0.0, 0.0
        some = False
        for x in range(n_x):
            if w[y, x] == 0:
                continue
            some = True
            value, i, v = np.float64(w[y, x]), fx[x], np.float64(target[y, x])
            pair = 0
            for k in range(4):
                part = value * wx[x, k]
                line[i, k] += part * v
                for m in range(k, 4):
                    row[i, pair] += part * wx[x, m]
                    pair += 1
        if not some:
            continue
        j, pair = fy[y], 0
        for k in range(4):
            for m in range(k, 4):
                both = wy[y, k] * wy[y, m]
                for i in range(spans_x):
                    for q in range(10):
                        sums[j, pair, i, q] += both * row[i, q]
                pair += 1
            for i in range(spans_x):
                for q in range(4):
                    firsts[j, k, i, q] += wy[y, k] * line[i, q]
    gram[:], right[:] = 0.0, 0.0
    for j in range(spans_y):
        pair = 0
        for k in range(4):
            for i in range(spans_x):
                for q in range(4):
                    right[(j + k) * controls + i + q] += firsts[j, k, i, q]
            for m in range(k, 4):
                for i in range(spans_x):
                    both = 0
                    for p in range(4):
                        for q in range(p, 4):
                            value = sums[j, pair, i, both]
                            both += 1
                            _add(gram, (j + k) * controls + i + p, (j + m) * controls + i + q, value)
                            if p != q and k != m:
                                _add(gram, (j + k) * controls + i + q, (j + m) * controls + i + p, value)
                pair += 1
    for r in range(gram.shape[0]):
        for c in range(r):
            gram[r, c] = gram[c, r]


@kernel
def _add(gram, r, c, value):
    """Add to the upper triangle."""
    if r <= c:
        gram[r, c] += value
    else:
        gram[c, r] += value


@kernel
def class_plane(t, inside, prior, tile, low, step, table, outlier, means, variances, posterior, weight, target):
    """Write what the classes say of one plane: posteriors, and the precision and place of the class a voxel is near.

    Parameters
    ----------
    t : (y, x) float32 array
        Denoised corrected log intensity.
    inside : (y, x) bool array
    prior : (K, rows, columns) float32 array
        Proportions of the classes around the centres of tiles; between them, linear.
    tile : int
        Voxels along a side of a tile.
    low, step : float
        First bin and width of `table`.
    table : (bins, K) float32 array
        Densities of the classes.
    outlier : float
        Density of what belongs to no class.
    means, variances : (K,) float64 arrays
    posterior : (K, y, x) float32 array
    weight, target : (y, x) float32 arrays
        sum P / variance, and its weighted mean of `means`.
    """
    n_k, last = means.size, table.shape[0] - 1
    rows, columns = prior.shape[1:]
    p = np.empty(n_k)
    for y in range(t.shape[0]):
        at = min(max((y + 0.5) / tile - 0.5, 0.0), rows - 1.0)
        j = min(int(at), max(rows - 2, 0))
        below = min(j + 1, rows - 1)
        fy = np.float32(at - j)
        for x in range(t.shape[1]):
            if not inside[y, x]:
                for k in range(n_k):
                    posterior[k, y, x] = 0.0
                weight[y, x], target[y, x] = 0.0, 0.0
                continue
            i = min(max(int((t[y, x] - low) / step), 0), last)
            at = min(max((x + 0.5) / tile - 0.5, 0.0), columns - 1.0)
            c = min(int(at), max(columns - 2, 0))
            right = min(c + 1, columns - 1)
            fx = np.float32(at - c)
            total = outlier
            for k in range(n_k):
                upper = prior[k, j, c] + fx * (prior[k, j, right] - prior[k, j, c])
                lower = prior[k, below, c] + fx * (prior[k, below, right] - prior[k, below, c])
                p[k] = (upper + fy * (lower - upper)) * table[i, k]
                total += p[k]
            precision, place = 0.0, 0.0
            for k in range(n_k):
                share = p[k] / total
                posterior[k, y, x] = share
                precision += share / variances[k]
                place += share * means[k] / variances[k]
            weight[y, x] = precision
            target[y, x] = place / precision if precision > 1e-9 else 0.0
