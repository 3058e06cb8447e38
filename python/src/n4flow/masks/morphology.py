"""Smoothing and closing of masks, which neither padding nor the border of the volume biases."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from itertools import groupby
from types import ModuleType
from typing import Any

import numpy as np

from n4flow.compute.arrays import array_module
from n4flow.compute.threads import run_tasks
from n4flow.masks.packed_mask import PackedMask
from n4flow.sections import SectionTable

SMOOTH_REACH = 4.0  # The Gaussian kernel ends at this many sigma.


def _ndimage(xp: ModuleType) -> Any:
    return import_module("scipy.ndimage" if xp is np else "cupyx.scipy.ndimage")


def smooth_valid(values: Any, sigmas: tuple[float, ...]) -> Any:
    """Return the Gaussian mean of the valid values of a NumPy or CuPy array around each, float32; 0 at the others.

    Sigmas are in voxels, one for each axis; the kernel reaches 4 sigma.
    """
    xp = array_module(values)
    ndi = _ndimage(xp)
    valid = xp.isfinite(values) & (values != 0)
    total = ndi.gaussian_filter(xp.where(valid, values, 0).astype(xp.float32), sigmas, mode="constant")
    norm = ndi.gaussian_filter(valid.astype(xp.float32), sigmas, mode="constant")
    return xp.where(valid & (norm > 0), total / xp.where(norm > 0, norm, 1), 0).astype(xp.float32)


class Norms:
    """Cache of smoothed weights, for planes with the weights of the plane before, as most planes have.

    Volumes are valid everywhere, or have the same mosaic padding in every plane of a section.
    """

    def __init__(self) -> None:
        self.weights: np.ndarray | None = None
        self.found: dict[tuple[int, ...], np.ndarray] = {}  # by the numbers of planes on either side within the kernel

    def of(self, weights: np.ndarray) -> dict[tuple[int, ...], np.ndarray]:
        """Return the cached results for planes that all have these (y, x) weights; new ones are added to it."""
        from n4flow.masks import kernels as tissue_kernels

        if self.weights is None or not tissue_kernels.identical(self.weights, weights):
            self.weights, self.found = weights.copy(), {}
        return self.found


def smooth_planes(
    values: np.ndarray, sigmas: tuple[float, float, float], weights: Any, inner: slice, norms: Norms
) -> np.ndarray:
    """Return planes `inner` of what `smooth_valid` returns for a float32 (Z, Y, X) array, by compiled loops.

    `weights` are those of its voxels, None for 1; `norms` is the cache of the volume, for the same sigmas.
    """
    from n4flow.masks import kernels as tissue_kernels

    n_z, n_y, n_x = values.shape
    halves = [_half_gaussian(sigma) for sigma in sigmas]
    width = -(-n_x // tissue_kernels.COLUMNS) * tissue_kernels.COLUMNS
    rows, weight_rows = (np.empty((n_z * n_y + 1, width), np.float32) for _each in range(2))
    rows[-1], weight_rows[-1] = 0, 0  # stands for rows beyond the border
    total, weight = (each[:-1].reshape(n_z, n_y, width) for each in (rows, weight_rows))
    ones = np.broadcast_to(np.ones((1, 1), np.float32), values.shape[1:])
    found = np.empty((inner.stop - inner.start, n_y, n_x), np.float32)

    def weigh(z: int) -> None:
        tissue_kernels.weigh(values[z], ones if weights is None else weights[z], total[z], weight[z])

    def differs(z: int) -> bool:
        return z > 0 and not tissue_kernels.identical(weight[z - 1], weight[z])

    def norm(z: int) -> np.ndarray:
        smooth = np.empty((n_y, n_x), np.float32)
        tissue_kernels.smooth(weight_rows, z, *halves, smooth)
        return smooth

    run_tasks(weigh, range(n_z))
    kind = np.cumsum(run_tasks(differs, range(n_z)))
    reach = len(halves[0]) - 1
    ends = [(max(z - reach, 0), min(z + reach, n_z - 1)) for z in range(n_z)]
    uniform = [bool(kind[first] == kind[last]) for first, last in ends]
    around = [tuple(sorted((z - first, last - z))) for z, (first, last) in enumerate(ends)]  # kernels are symmetric

    def smooth(z: int, known: dict[tuple[int, ...], np.ndarray]) -> None:
        out = found[z - inner.start]
        tissue_kernels.smooth(rows, z, *halves, out)
        tissue_kernels.divide(values[z], known[around[z]] if uniform[z] else norm(z), out)

    for (_kind, same), group in groupby(range(inner.start, inner.stop), lambda z: (kind[z], uniform[z])):
        planes = list(group)
        known = norms.of(weight[planes[0]]) if same else {}
        missing = {around[z]: z for z in planes if same and around[z] not in known}
        known.update(zip(missing, run_tasks(norm, missing.values()), strict=True))
        run_tasks(partial(smooth, known=known), planes)
    return found


def _half_gaussian(sigma: float) -> np.ndarray:
    """Return the Gaussian kernel of SciPy from its centre outwards; a sigma of 0 has one tap."""
    if sigma <= 1e-15:
        return np.ones(1)
    reach = int(SMOOTH_REACH * sigma + 0.5)
    kernel = np.exp(-0.5 / sigma**2 * np.arange(-reach, reach + 1) ** 2)
    return (kernel / kernel.sum())[reach:]


def close_plane(plane: Any, radius: int) -> Any:
    """Fill the holes of a (Y, X) mask and close it with a disk, as if the plane went on empty beyond its border."""
    xp, radius = array_module(plane), max(0, radius)
    ndi = _ndimage(xp)
    margin = 2 * radius + 1  # the erosion sees what was added beyond the border: it takes back no more than that
    regions, _count = ndi.label(~xp.pad(plane, margin))
    closed = regions != regions[0, 0]  # all but the region around the mask: holes become part of it
    if radius and xp is np:
        closed = ~_dilated(~_dilated(closed, radius), radius)
    elif radius:
        offset = xp.arange(-radius, radius + 1)
        closed = ndi.binary_closing(closed, structure=offset[:, None] ** 2 + offset**2 <= radius**2)
    return closed[margin:-margin, margin:-margin]


def _dilated(mask: np.ndarray, radius: int) -> np.ndarray:
    from n4flow.masks import kernels

    out = np.zeros_like(mask)
    kernels.dilate(mask, radius, out)
    return out


def close_along_z(mask: Any, sections: SectionTable, reach: int, filled: slice = slice(None)) -> Any:
    """Fill gaps along Z that are at most `reach` sections long and have the mask on both sides.

    This is a closing with a line along Z, measured in sections, which may differ in thickness; the mask keeps its
    voxels at the ends of the stack. Planes that are not `filled` are padding and do not count.
    """
    if reach <= 0 or len(sections) < 2:
        return mask
    cuts = sections.edges(filled)
    sizes, steps = np.diff(cuts), np.zeros(len(mask))
    steps[cuts[0] : cuts[-1]] = np.repeat(1 / np.maximum(sizes, 1), sizes)
    edges = np.concatenate([[0.0], np.cumsum(steps)])
    xp = array_module(mask)
    ends, closed = (PackedMask.empty(mask.shape) if xp is np else xp.zeros(mask.shape, bool) for _each in range(2))
    last = xp.full(mask.shape[1:], -1, xp.int32)  # the last plane before in which each voxel is in the mask
    for z in range(len(mask)):
        first = int(np.argmax(edges[z] - edges[: z + 1] <= reach + 1e-6))  # of the longest gap that may end here
        inside = mask[z]
        ends[z] = inside & (last >= max(first - 1, 0)) & (last < z - 1)  # of gaps below that are to be filled
        last[inside] = z
    filling = xp.zeros(mask.shape[1:], bool)
    for z in range(len(mask) - 1, -1, -1):
        inside = mask[z]
        closed[z] = inside | filling
        filling = filling & ~inside | ends[z]
    return closed if xp is not np or isinstance(mask, PackedMask) else closed[:]
