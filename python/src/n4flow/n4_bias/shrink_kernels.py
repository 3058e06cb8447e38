# mypy: ignore-errors
# (numba gives these functions their types)
"""Masked block means, compiled; see `shrink`."""

from __future__ import annotations

import numpy as np

from n4flow.compute.jit import kernel


@kernel
def shrink_block(block, mask, weights, high, wide, mean, shares, totals):
    """Write the means, the shares of usable voxels and the mean weights of one plane of blocks."""
    n_z, n_y, n_x = block.shape
    for r in range(mean.shape[0]):
        y_stop = min(n_y, (r + 1) * high)
        for c in range(mean.shape[1]):
            x_stop = min(n_x, (c + 1) * wide)
            total, weight, count = 0.0, 0.0, 0
            for z in range(n_z):
                for y in range(r * high, y_stop):
                    for x in range(c * wide, x_stop):
                        v = block[z, y, x]
                        if not (mask[z, y, x] and v > np.float32(0.0) and v < np.inf):
                            continue
                        w = weights[z, y, x] if weights.size else np.float32(1.0)
                        if w > np.float32(0.0):
                            total += np.float64(v) * w
                            weight += w
                            count += 1
            voxels = n_z * (y_stop - r * high) * (x_stop - c * wide)
            mean[r, c] = total / weight if count else 0.0
            shares[r, c] = count / voxels
            if totals.size:
                totals[r, c] = weight / voxels
