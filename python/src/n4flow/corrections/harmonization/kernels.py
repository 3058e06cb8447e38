# mypy: ignore-errors
# (numba gives these functions their types)
"""Compiled loops of the harmonisation, over runs of planes or of pairs of planes.

Sums are in float64, over the voxels of one plane in one order, so results do not depend on the number of threads. A
call takes a run of planes, since there are many passes over few voxels, and a call costs more than a plane.
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
def move_planes(lattices, fy, wy, fx, wx, inside, planes, fields, changes, start, stop):
    """Write the splines of planes `start` to `stop` of a chain over `fields`; sum the squares of changes in tissue."""
    spline = np.empty(fields.shape[1:], np.float32)
    for k in range(start, stop):
        z = planes[k]
        plane_field(lattices[k], fy, wy, fx, wx, spline)
        total = 0.0
        for y in range(spline.shape[0]):
            for x in range(spline.shape[1]):
                if inside[z, y, x]:
                    change = np.float64(spline[y, x] - fields[z, y, x])
                    total += change * change
                fields[z, y, x] = spline[y, x]
        changes[k] = total


@kernel
def median(values):
    """Return the median of float32 numbers, which are reordered; NumPy's takes five times as long to compile."""
    half, first, last = values.size // 2, 0, values.size - 1
    while first < last:
        pivot, i, j = values[(first + last) // 2], first, last
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i, j = i + 1, j - 1
        first, last = i if half > j else first, j if half < i else last
    if values.size % 2:
        return np.float64(values[half])
    below = values[0]
    for i in range(half):
        below = max(below, values[i])
    return np.float64(below + values[half]) / 2


@kernel
def log_ratio(a, b, inside_a, inside_b, most):
    """Return median and robust sd of b - a over tissue of both, of at most about `most` voxels; 0 without any."""
    count = 0
    for y in range(a.shape[0]):
        for x in range(a.shape[1]):
            count += inside_a[y, x] and inside_b[y, x]
    stride = max(1, count // most)
    values = np.empty((count + stride - 1) // stride, np.float32)
    if values.size == 0:
        return 0.0, 0.0
    seen, n = 0, 0
    for y in range(a.shape[0]):
        for x in range(a.shape[1]):
            if inside_a[y, x] and inside_b[y, x]:
                if seen % stride == 0:
                    values[n] = b[y, x] - a[y, x]
                    n += 1
                seen += 1
    middle = median(values)
    for i in range(values.size):
        values[i] = abs(values[i] - middle)
    return middle, 1.4826 * median(values)


@kernel
def look_at_pairs(corrected, logs, inside, upper, lower, how, fy, wy, fx, wx, scatter, grams, rights, start, stop):
    """Write the scatter and the normal equations of the log ratios of pairs `start` to `stop`.

    A voxel has the weight factor exp(-(b - a - middle)^2 / (2 (1.5 scatter)^2)) / (scatter^2 gap), for the corrected
    log intensities a and b of the upper and the lower plane.

    Parameters
    ----------
    corrected, logs : (Z, y, x) float32 arrays
    inside : (Z, y, x) bool array
    upper, lower : (k,) int arrays
        Planes of each pair.
    how : (bool, int, float, float)
        Whether the middle is the median, or 0; voxels of a pair to take it from; the least scatter; factor.
    """
    medians, most, least, factor = how
    weights, target = np.empty(logs.shape[1:], np.float32), np.empty(logs.shape[1:], np.float32)
    for k in range(start, stop):
        a, b = upper[k], lower[k]
        middle, scale = log_ratio(corrected[a], corrected[b], inside[a], inside[b], most)
        scale += least
        scatter[k] = scale
        middle = middle if medians else 0.0
        spread, height = -0.5 / (1.5 * scale) ** 2, factor / (scale**2 * (b - a))
        for y in range(weights.shape[0]):
            for x in range(weights.shape[1]):
                weight = 0.0
                if inside[a, y, x] and inside[b, y, x]:
                    difference = np.float64(corrected[b, y, x]) - np.float64(corrected[a, y, x]) - middle
                    weight = height * np.exp(max(spread * difference * difference, -20.0))
                weights[y, x] = weight
                target[y, x] = logs[b, y, x] - logs[a, y, x]
        normal_equations(weights, target, fy, wy, fx, wx, grams[k], rights[k])


@kernel
def shared_equations(even, weight, target, inside, planes, factor, fy, wy, fx, wx, grams, rights, start, stop):
    """Write the normal equations of the distances of planes `start` to `stop` of a chain to their classes."""
    weights, distance = np.empty(even.shape[1:], np.float32), np.empty(even.shape[1:], np.float32)
    for k in range(start, stop):
        z = planes[k]
        for y in range(weights.shape[0]):
            for x in range(weights.shape[1]):
                weights[y, x] = factor * weight[z, y, x]
                distance[y, x] = even[z, y, x] - target[z, y, x] if inside[z, y, x] else np.float32(0)
        normal_equations(weights, distance, fy, wy, fx, wx, grams[k], rights[k])


@kernel
def level_equations(
    logs, shared, weight, target, inside, planes, factor, fy, wy, fx, wx, sums, counts, levels, start, stop
):
    """Write of planes `start` to `stop` of a chain: weights of controls, of the plane, and its distance to classes."""
    controls = int(np.sqrt(sums.shape[1]) + 0.5)
    row = np.empty(controls)
    for k in range(start, stop):
        z, total, distance = planes[k], 0.0, 0.0
        sums[k] = 0.0
        for y in range(logs.shape[1]):
            row[:] = 0.0
            for x in range(logs.shape[2]):
                w = np.float64(factor * weight[z, y, x])
                if w == 0:
                    continue
                total += w
                if inside[z, y, x]:
                    distance += w * np.float64(logs[z, y, x] - shared[y, x] - target[z, y, x])
                for q in range(4):
                    row[fx[x] + q] += w * wx[x, q]
            for q in range(4):
                for c in range(controls):
                    sums[k, (fy[y] + q) * controls + c] += wy[y, q] * row[c]
        counts[k] = total
        levels[k] = distance / max(total, 1e-12)


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
def class_planes(
    t, inside, prior, tile, low, per_step, table, outlier, means, precisions, sums, weight, target, start, stop
):
    """Write what the classes say of planes: their sums in tiles, and precision and place of the class a voxel is near.

    Parameters
    ----------
    t : (Z, y, x) float32 array
        Denoised corrected log intensity.
    inside : (Z, y, x) bool array
    prior : (K, Z, rows, columns) float32 array
        Proportions of the classes around the centres of tiles; between them, linear.
    tile : int
        Voxels along a side of a tile.
    low, per_step : float
        Begin of the first bin of `table`, and bins to a unit.
    table : (bins, K) float32 array
        Densities of the classes.
    outlier : float
        Density of what belongs to no class.
    means, precisions : (K,) float64 arrays
        Of the classes; a precision is 1 / variance.
    sums : (K, Z, rows, columns) float32 array
        Sums of the posteriors P over tiles.
    weight, target : (Z, y, x) float32 arrays
        sum P / variance, and its weighted mean of `means`.
    start, stop : int
    """
    n_k, last, width = means.size, table.shape[0] - 1, t.shape[2]
    rows, columns = prior.shape[2:]
    p, totals, row = np.empty(n_k), np.empty((columns, n_k)), np.empty((columns, n_k), np.float32)
    left, share_right = np.empty(width, np.int64), np.empty(width, np.float32)
    for x in range(width):
        at = min(max((x + 0.5) / tile - 0.5, 0.0), columns - 1.0)
        left[x] = min(int(at), max(columns - 2, 0))
        share_right[x] = at - left[x]
    beside = 1 if columns > 1 else 0
    pulls = means * precisions
    for z in range(start, stop):
        for y in range(t.shape[1]):
            if y % tile == 0:
                totals[:] = 0.0
            at = min(max((y + 0.5) / tile - 0.5, 0.0), rows - 1.0)
            j = min(int(at), max(rows - 2, 0))
            below = min(j + 1, rows - 1)
            fy = np.float32(at - j)
            for k in range(n_k):
                for c in range(columns):
                    row[c, k] = prior[k, z, j, c] + fy * (prior[k, z, below, c] - prior[k, z, j, c])
            for x in range(width):
                if not inside[z, y, x]:
                    weight[z, y, x], target[z, y, x] = 0.0, 0.0
                    continue
                i = min(max(int((t[z, y, x] - low) * per_step), 0), last)
                c, fx = left[x], share_right[x]
                total = outlier
                for k in range(n_k):
                    p[k] = (row[c, k] + fx * (row[c + beside, k] - row[c, k])) * table[i, k]
                    total += p[k]
                scale, precision, place = 1.0 / total, 0.0, 0.0
                for k in range(n_k):
                    totals[x // tile, k] += p[k] * scale
                    precision += p[k] * scale * precisions[k]
                    place += p[k] * scale * pulls[k]
                weight[z, y, x] = precision
                target[z, y, x] = place / precision if precision > 1e-9 else 0.0
            if y % tile == tile - 1 or y == t.shape[1] - 1:
                for k in range(n_k):
                    for c in range(columns):
                        sums[k, z, y // tile, c] = totals[c, k]
