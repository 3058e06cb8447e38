"""The fixed grid of bins on the float32 number line, and distributions as (value, count) pairs.

The bin of a value is its sign and its bits without the lowest 13. The width of a bin is therefore at most 2**-10 of its
value, no range has to be known beforehand, and bins are the same for every plane, section and volume. A distribution is
a sorted list of pairs, one for each bin in use: the mean of the bin's voxels (float32) and their number.
"""

from __future__ import annotations

import numpy as np

SHIFT = 13  # lowest bits of a float32 that its bin ignores
RESIDUAL = (1 << SHIFT) - 1  # mask of these bits
INFINITY_BITS = 0x7F800000  # float32 infinity as an integer; finite numbers are below, NaN is above
MAGNITUDE = 0x7FFFFFFF  # mask of all bits of a float32 but its sign
N_BINS = INFINITY_BITS >> SHIFT  # number of bins of one sign


def bin_index(values: np.ndarray) -> np.ndarray:
    """Return the signed index of each float32 value's bin; indices have the order of the values."""
    bits = np.ascontiguousarray(values, np.float32).view(np.int32)
    return np.where(bits < 0, -((bits & MAGNITUDE) >> SHIFT) - 1, bits >> SHIFT)


def bin_edges(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper edge of each value's bin, float64."""
    bits = np.ascontiguousarray(values, np.float32).view(np.int32)
    inner = (bits & ~np.int32(RESIDUAL)).view(np.float32).astype(np.float64)  # the edge nearer to 0
    exponent = np.maximum((bits >> 23) & 0xFF, 1)
    outer = inner + np.copysign(np.ldexp(1.0, exponent - 127 - 23 + SHIFT), inner)
    return np.minimum(inner, outer), np.maximum(inner, outer)


def pairs_of_bins(bins: np.ndarray, counts: np.ndarray, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn (bin, + N_BINS if negative; count; sum of residual bits) into sorted values float32 and counts uint32."""
    negative = bins >= N_BINS
    magnitude = bins - np.where(negative, N_BINS, 0)
    edge = (magnitude << SHIFT).astype(np.int32).view(np.float32).astype(np.float64)
    step = np.ldexp(1.0, np.maximum(magnitude >> (23 - SHIFT), 1) - 127 - 23)  # one unit in the last place
    values = np.where(negative, -1.0, 1.0) * (edge + step * (sums / counts))
    order = np.argsort(values, kind="stable")
    return values[order].astype(np.float32), counts[order].astype(np.uint32)
