"""Compiled loops of the shrunken volume's files: means and shares as the whole numbers that they come from."""

from __future__ import annotations

from typing import Any

import numpy as np

from n4flow.compute.numba_cache import njit

LARGEST_SUM = 1 << 30  # so that the difference of two fits into 32 bits


@njit(nogil=True, cache=True, error_model="numpy")
def sums_of_means(mean: Any, valid: Any, height: Any, width: Any, out: Any) -> bool:
    """Write a plane's sums into `out` (y, x) uint32, each as its difference to the left one; say whether that works.

    It works where `means_of_sums` gives the same bits. `height` and `width` are the voxels of each block along an axis.
    Differences are written as 2 d, or -2 d - 1 where they are negative: small ones have empty high bits.
    """
    bits = mean.view(np.int32)
    for y in range(mean.shape[0]):
        last = np.int64(0)
        for x in range(mean.shape[1]):
            n = np.rint(np.float64(valid[y, x]) * np.float64(height[y] * width[x]))
            total = np.rint(np.float64(mean[y, x]) * n)
            if not abs(total) < LARGEST_SUM:
                return False
            again = np.float32(total / max(n, 1.0))
            if again != mean[y, x] or (again == 0 and bits[y, x] != 0):
                return False
            step = np.int64(total) - last
            last = np.int64(total)
            out[y, x] = np.uint32((step << 1) ^ (step >> 63))
    return True


@njit(nogil=True, cache=True, error_model="numpy")
def means_of_sums(steps: Any, valid: Any, height: Any, width: Any, mean: Any) -> None:
    """Write the means (y, x) float32 that `sums_of_means` was given."""
    total = np.empty(mean.shape[1])
    for y in range(mean.shape[0]):
        last = np.int32(0)
        for x in range(total.size):
            step = np.int32(steps[y, x] >> np.uint32(1)) ^ -np.int32(steps[y, x] & np.uint32(1))
            last += step
            total[x] = last
        for x in range(total.size):  # apart, so that the divisions become vector instructions
            n = np.rint(np.float64(valid[y, x]) * np.float64(height[y] * width[x]))
            mean[y, x] = total[x] / max(n, 1.0)


@njit(nogil=True, cache=True, error_model="numpy")
def lost_of_shares(valid: Any, height: Any, width: Any, out: Any) -> bool:
    """Write how many voxels of each block are not valid into `out` (y, x); say whether the shares follow from that."""
    for y in range(valid.shape[0]):
        for x in range(valid.shape[1]):
            voxels = np.float64(height[y] * width[x])
            n = np.rint(np.float64(valid[y, x]) * voxels)
            if not 0 <= n <= voxels or np.float32(n / voxels) != valid[y, x]:
                return False
            out[y, x] = np.uint32(voxels - n)
    return True


@njit(nogil=True, cache=True, error_model="numpy")
def shares_of_lost(lost: Any, height: Any, width: Any, valid: Any) -> None:
    """Write the shares (y, x) float32 that `lost_of_shares` was given."""
    for y in range(valid.shape[0]):
        for x in range(valid.shape[1]):
            voxels = np.float64(height[y] * width[x])
            valid[y, x] = (voxels - np.float64(lost[y, x])) / voxels
