"""Otsu's mask as ITK makes it where N4 is given none."""

from __future__ import annotations

from typing import Any

import numpy as np

from n4flow.compute.arrays import array_module, to_numpy
from n4flow.errors import InputError


def otsu_mask(volume: Any, nbins: int = 200) -> Any:
    """Return the voxels above Otsu's threshold of the whole volume, the foreground mask of `n4` without one.

    The histogram spans the finite voxels from the lowest to the highest in `nbins` bins, zeros included; the threshold
    is the centre of the last dark bin. A volume of one value has no foreground.

    Parameters
    ----------
    volume : array of two or three axes
        NumPy or CuPy, any real type.
    nbins : int
        Bins of the histogram.

    Returns
    -------
    bool array of the shape and kind of `volume`.
    """
    volume = volume if hasattr(volume, "dtype") else np.asarray(volume)
    xp = array_module(volume)
    if nbins < 2:
        msg = f"nbins must be at least 2, got {nbins}"
        raise InputError(msg)
    values = volume.astype(xp.float32)
    finite = xp.isfinite(values)
    if not finite.any():
        return xp.zeros(volume.shape, bool)
    low, high = float(values[finite].min()), float(values[finite].max())  # synchronize
    if not high > low:
        return xp.zeros(volume.shape, bool)
    counts, edges = (to_numpy(a) for a in xp.histogram(values[finite], nbins, (low, high)))  # synchronize
    centres = (edges[:-1] + edges[1:]) / 2
    return finite & (values > np.float32(centres[otsu_cut(counts, centres)]))


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
