"""The default mask of N4: voxels above Otsu's threshold, as in ITK.

References
----------
N. Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. Systems, Man, and Cybernetics 9(1),
1979.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from n4flow.compute.arrays import array_module, check_float32, takes_arrays, to_numpy
from n4flow.errors import InputError


@takes_arrays
def otsu_mask(volume: ArrayLike, nbins: int = 200) -> NDArray[np.bool_]:
    """Return the voxels above Otsu's threshold of the whole volume, the default mask of `n4`.

    The histogram has `nbins` bins from the lowest to the highest finite voxel, zeros included; the threshold is the
    centre of the last dark bin. The mask of a constant volume is empty.

    Parameters
    ----------
    volume : array of two or three axes
        NumPy or CuPy, any real type.
    nbins : int
        Number of bins of the histogram.

    Returns
    -------
    bool array of the shape and kind of `volume`.
    """
    voxels: Any = volume if hasattr(volume, "dtype") else np.asarray(volume)
    xp = array_module(voxels)
    if nbins < 2:
        msg = f"nbins must be at least 2, got {nbins}"
        raise InputError(msg)
    check_float32(voxels, "the image")
    values = voxels.astype(xp.float32)
    finite = xp.isfinite(values)
    if not finite.any():
        return xp.zeros(voxels.shape, bool)
    low, high = float(values[finite].min()), float(values[finite].max())  # synchronize
    if not high > low:
        return xp.zeros(voxels.shape, bool)
    counts, edges = (to_numpy(a) for a in xp.histogram(values[finite], nbins, (low, high)))  # synchronize
    centres = edges[:-1] / 2 + edges[1:] / 2  # the sum may be beyond float32
    inside: NDArray[np.bool_] = finite & (values > np.float32(centres[otsu_cut(counts, centres)]))
    return inside


def otsu_cut(counts: np.ndarray, centres: np.ndarray) -> int:
    """Return the last bin of the dark class: the first maximum of the between-class variance."""
    weight = np.cumsum(counts, dtype=np.float64)[:-1]
    moment = np.cumsum(counts * centres, dtype=np.float64)
    rest = counts.sum() - weight
    both = (weight > 0) & (rest > 0)
    between = np.zeros(len(weight))
    difference = moment[:-1][both] / weight[both] - (moment[-1] - moment[:-1][both]) / rest[both]
    between[both] = weight[both] * rest[both] * difference**2
    return int(np.argmax(between))
