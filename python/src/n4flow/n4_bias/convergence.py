"""When a level ends: by how much an iteration changed the field, relative to its mean change.

With b the log field before an iteration and b' after it, p = exp(b - b') over the mask; the measure is the coefficient
of variation of p. ITK computes it as a running mean and a running sum of squares in float32, in raster order, and that
has consequences which `itk_measure` shares:

- a step of the mean smaller than half a unit in its last place is lost. After some 10^5 voxels the mean stands still at
  that of the first planes, and the sum of squares is about a wrong centre. The larger the volume, the more so;
- the count stops at 2^24 voxels, while the sum goes on: beyond that the measure grows with the volume;
- so the value depends on the order of the voxels. A volume turned upside down stops elsewhere.

Where ITK stops is part of its result, since N4 has no fixed point to converge to. To agree with it, use its measure;
`cv` is the quantity meant, which depends on neither order nor size.
"""

from __future__ import annotations

import math

import numpy as np

COUNT_LIMIT = float(1 << 24)  # a float32 count cannot go beyond: adding 1 is lost


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
        # float32 values, products in double, the sum stored as float32
        mean = np.float32(float(mean) * (1.0 - 1.0 / float(count)) + float(value / count))
    return math.sqrt(float(squares) / (float(count) - 1)) / float(mean)
