"""Convergence: the measure of the change of the field by an iteration, at which a level ends.

With b the log field before an iteration, b' the one after it and p = exp(b - b') over the mask, the measure is the
coefficient of variation of p. ITK computes it with a running mean and a running sum of squares in float32, in raster
order. The rounding has consequences that `itk_measure` reproduces:

- a step of the mean that is smaller than half a unit in its last place is lost. After about 10^5 voxels the mean is
  frozen at that of the first planes, and the sum of squares is taken about this wrong centre. The error grows with the
  volume;
- the count stops at 2^24 voxels, while the sum of squares goes on: beyond that the measure grows with the volume;
- so the value depends on the order of the voxels. A volume that is flipped along Z stops after other iterations.

The iteration at which ITK stops is part of its result, since N4 has no fixed point to converge to. To agree with ITK,
use its measure. `cv` is the coefficient of variation itself, which depends on neither order nor size.
"""

from __future__ import annotations

import math

import numpy as np

COUNT_LIMIT = float(1 << 24)  # A float32 count ends here: adding 1 no longer changes it.


def cv(p: np.ndarray) -> float:
    """Return the coefficient of variation of p, with divisor n - 1."""
    values = np.asarray(p, np.float64)
    return float(values.std(ddof=1) / values.mean())


def itk_measure(p: np.ndarray) -> float:
    """Return the measure as ITK computes it, voxel by voxel: count, mean and sum of squares are float32.

    Parameters
    ----------
    p : (n,) array in raster order
    """
    one = np.float32(1)
    count, mean, squares = np.float32(0), np.float32(0), np.float32(0)
    for value in np.asarray(p, np.float32):
        count = count + one
        if count > one:
            squares = squares + (value - mean) ** 2 * (count - one) / count
        # As in ITK: float32 values, products in double, and the sum rounded to float32.
        mean = np.float32(float(mean) * (1.0 - 1.0 / float(count)) + float(value / count))
    return math.sqrt(float(squares) / (float(count) - 1)) / float(mean)
