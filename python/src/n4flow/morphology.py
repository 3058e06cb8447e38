"""Smoothing and closing that neither padding nor the border of the volume can pull down."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from n4flow.arrays import array_module
from n4flow.sections import SectionTable


def _ndimage(xp: ModuleType) -> Any:
    if xp is np:
        import scipy.ndimage

        return scipy.ndimage
    import cupyx.scipy.ndimage

    return cupyx.scipy.ndimage


def smooth_valid(values: Any, sigmas: tuple[float, ...], weights: Any = None) -> Any:
    """Return the Gaussian mean of the valid values around each valid voxel, float32; 0 at the others.

    Parameters
    ----------
    values : float array of any number of axes
        NumPy or CuPy.
    sigmas : tuple of float
        Sigma in voxels, one for each axis; the kernel reaches 4 sigma.
    weights : array, optional
        Weight of each voxel, for example its share of valid voxels; 1 for valid voxels when left out.
    """
    xp = array_module(values)
    ndi = _ndimage(xp)
    valid = xp.isfinite(values) & (values != 0)
    weight = valid.astype(xp.float32) if weights is None else xp.where(valid, weights, 0).astype(xp.float32)
    total = ndi.gaussian_filter(xp.where(valid, values, 0).astype(xp.float32) * weight, sigmas, mode="constant")
    norm = ndi.gaussian_filter(weight, sigmas, mode="constant")
    return xp.where(valid & (norm > 0), total / xp.where(norm > 0, norm, 1), 0).astype(xp.float32)


def _disk(radius: int) -> np.ndarray:
    offset = np.arange(-radius, radius + 1)
    return offset[:, None] ** 2 + offset[None, :] ** 2 <= radius**2


def close_plane(plane: Any, radius: int) -> Any:
    """Fill the holes of a (Y, X) mask and close it with a disk, as if the plane went on empty beyond its border."""
    xp = array_module(plane)
    ndi = _ndimage(xp)
    plane = ndi.binary_fill_holes(plane)
    if radius <= 0 or not plane.any():
        return plane
    # The erosion of the closing sees `radius` voxels beyond the border: with these there, it takes back no more than
    # was added.
    closed = ndi.binary_closing(xp.pad(plane, radius), structure=xp.asarray(_disk(radius)))
    return closed[radius:-radius, radius:-radius]


def close_along_z(mask: Any, sections: SectionTable, reach: int) -> Any:
    """Bridge gaps along Z that are at most `reach` sections long, where the mask is on both sides of the gap.

    That is the closing with a line along Z, measured in sections, which may differ in thickness; nothing is taken
    from the mask at the ends of the stack.
    """
    xp = array_module(mask)
    if reach <= 0 or len(sections) < 2:
        return mask
    edges = xp.asarray(
        np.concatenate(
            [
                [0.0],
                np.cumsum(
                    np.concatenate([np.full(s.z_stop - s.z_start, 1 / (s.z_stop - s.z_start)) for s in sections])
                ),
            ]
        )
    )
    n_planes = mask.shape[0]
    last = xp.full(mask.shape, -1, xp.int32)  # the last plane at or below each voxel that is in the mask
    running = xp.full(mask.shape[1:], -1, xp.int32)
    for z in range(n_planes):
        running = xp.where(mask[z], xp.int32(z), running)
        last[z] = running
    closed = mask.copy()
    following = xp.full(mask.shape[1:], n_planes, xp.int32)
    for z in range(n_planes - 1, -1, -1):
        following = xp.where(mask[z], xp.int32(z), following)
        gap = edges[xp.minimum(following, n_planes)] - edges[last[z] + 1]
        closed[z] |= (last[z] >= 0) & (following < n_planes) & (gap <= reach + 1e-6)
    return closed
