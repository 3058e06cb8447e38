"""Shrinking by masked block means: the fit sees fewer voxels, each the mean of the usable voxels of its block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from n4flow.compute.arrays import writeable
from n4flow.compute.threads import parallel_planes
from n4flow.errors import InputError

Factors = int | Sequence[int]  # one shrink factor for all axes, or one for each axis

LEAST_SHARE = 0.5  # A block takes part in the fit if at least this share of its voxels is usable.
LEAST_SAMPLES = 4  # A single factor for all axes leaves at least this many samples along each axis.


def shrink_factors(shrink: Factors, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the factor along each axis.

    A sequence is returned as it is. A single number is lowered along axes where it would leave fewer than the four
    samples that a cubic spline needs, so that a thin section is shrunk in plane only.

    Raises
    ------
    InputError
        A factor is below 1, or the number of factors differs from the number of axes.
    """
    given = (int(shrink),) * len(shape) if isinstance(shrink, (int, np.integer)) else tuple(int(k) for k in shrink)
    if min(given, default=0) < 1 or len(given) != len(shape):
        msg = f"shrink must be a whole number of at least 1, or one for each of the {len(shape)} axes, got {shrink}"
        raise InputError(msg)
    if isinstance(shrink, (int, np.integer)):
        return tuple(max(1, min(given[0], n // LEAST_SAMPLES)) for n in shape)
    return given


def shrunken_shape(shape: Sequence[int], shrink: Sequence[int]) -> tuple[int, ...]:
    """Return the number of blocks along each axis; the last block may be smaller than the others."""
    return tuple(-(-n // k) for n, k in zip(shape, shrink, strict=True))


def shrink_masked(
    image: np.ndarray, mask: np.ndarray, weights: np.ndarray | None, shrink: Sequence[int], threads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return block means of the usable voxels: those in the mask, finite and above 0.

    Parameters
    ----------
    image : (Z, Y, X) real or integer array
    mask : (Z, Y, X) bool array
    weights : (Z, Y, X) float32 array, optional
        Confidence of each voxel, by which the mean is weighted.
    shrink : three int
    threads : int

    Returns
    -------
    mean : (z, y, x) float32 array
        0 in blocks without a usable voxel.
    small_mask : (z, y, x) bool array
        Blocks of which at least half the voxels are usable.
    small_weights : (z, y, x) float32 array or None
        Sum of the weights in the block, divided by the number of its voxels.
    """
    from n4flow.n4_bias.shrink_kernels import shrink_block

    deep, high, wide = shrink
    small = shrunken_shape(image.shape, shrink)
    mean, shares = np.zeros(small, np.float32), np.zeros(small, np.float32)
    totals = np.zeros(small if weights is not None else (0, 0, 0), np.float32)

    def work(start: int, stop: int) -> None:
        for z in range(start, stop):
            planes = slice(z * deep, (z + 1) * deep)
            block = writeable(image[planes])
            given = np.empty((0, 0, 0), np.float32) if weights is None else writeable(weights[planes])
            total = totals[z] if weights is not None else np.empty((0, 0), np.float32)
            shrink_block(block, writeable(mask[planes], bool), given, high, wide, mean[z], shares[z], total)

    parallel_planes(work, small[0], threads)
    return mean, shares >= LEAST_SHARE, None if weights is None else totals
