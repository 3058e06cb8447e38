"""The streaming passes: the shrunken volume, and the histograms of every plane.

Both look at a block of whole planes once and keep kilobytes of it. A voxel is *valid* when it is finite and not
exactly 0 (exact zero is mosaic padding); invalid voxels enter nothing but the counts.

Histograms live on one fixed grid of the float32 number line: the bin of a value is its sign and its bits without the
lowest 13, so bins are at most 2**-10 of their value wide, no range has to be known beforehand, and parts of a
volume merge exactly. A bin keeps its count and the mean of its voxels, which comes from an integer sum and is exact.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from n4flow.compute.arrays import array_module, as_block, as_mask, to_numpy
from n4flow.compute.threads import run_tasks
from n4flow.errors import InputError
from n4flow.statistics.accumulate import PlaneCounter, PlaneShrinker, class_rows
from n4flow.statistics.bins import INFINITY_BITS, MAGNITUDE, N_BINS, RESIDUAL, SHIFT, pairs_of_bins
from n4flow.statistics.histograms import PlaneHistograms
from n4flow.statistics.shrunken import ShrunkenVolume

SHRUNKEN_SIDE = 512  # voxels: enough for a mask and a smooth field, and a plane of it is 1 MB
LEAST_COVER = 0.5  # share of a block that the user's mask covers where the block is tissue
FEWEST_SIDE = 32  # voxels: below this a shrunken plane no longer shows the tissue


def choose_shrink(shape: tuple[int, int, int]) -> int:
    """Return the smallest in-plane block size that brings planes to at most 512 voxels a side, and not below 32.

    >>> choose_shrink((100, 400, 512)), choose_shrink((100, 4000, 6000)), choose_shrink((9, 40, 4000))
    (1, 12, 1)
    """
    _planes, height, width = shape
    wanted = math.ceil(max(height, width) / SHRUNKEN_SIDE)
    return max(1, min(wanted, min(height, width) // FEWEST_SIDE))


def shrink_planes(block: Any, k: int, *, threads: int | None = None) -> ShrunkenVolume:
    """Average the valid voxels of each k x k block in plane; Z is kept.

    Parameters
    ----------
    block : (z, Y, X) array
        Whole planes of any real type; NumPy (a CuPy array is copied to the host: this pass is bound by reading).
    k : int
        Shrink factor, voxels, at least 1. Sizes need not be multiples of it: the last blocks are smaller.

    Raises
    ------
    InputError
        Not three axes, no voxels, complex numbers, or k below 1.
    """
    block = to_numpy(as_block(block, "block"))
    if k < 1:
        msg = f"shrink must be at least 1, got {k}"
        raise InputError(msg)
    shrinker = PlaneShrinker(block.shape, k, block.dtype)
    shrinker.add(block, threads=threads)
    return ShrunkenVolume.of(shrinker)


def plane_histograms(
    block: Any, tissue: Any = None, agarose: Any = None, z_start: int = 0, *, threads: int | None = None
) -> PlaneHistograms:
    """Count the valid voxels of every plane on the fixed grid of bins.

    Parameters
    ----------
    block : (z, Y, X) array
        Whole planes, any real type (float32 is what the grid is made for). NumPy or CuPy, counted where it lies.
    tissue : (z, Y, X) mask, optional
        Tissue; none when left out.
    agarose : (Y, X) or (z, Y, X) mask, optional
        Agarose; a voxel that is tissue counts as tissue and not as agarose.
    z_start : int
        Plane index of the block's first plane.
    """
    block = as_block(block, "block")
    xp = array_module(block)
    shape = tuple(block.shape)
    masks = []
    for mask, name in ((tissue, "tissue mask"), (agarose, "agarose mask")):
        if mask is not None:
            mask = as_mask(mask, shape if mask.ndim == 3 else shape[1:], name)
            mask = xp.asarray(mask if xp is not np else to_numpy(mask))
        masks.append(mask)
    if xp is np:
        counter = PlaneCounter(shape[0])
        lists = run_tasks(partial(_count_rows, counter, block, *masks), range(shape[0]), threads)
    else:
        lists = [
            _count_plane(block[z], *(m if m is None or m.ndim == 2 else m[z] for m in masks)) for z in range(shape[0])
        ]
    return PlaneHistograms.of_planes(lists, z_start)


def _count_rows(
    counter: PlaneCounter, block: np.ndarray, tissue: np.ndarray | None, agarose: np.ndarray | None, z: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (values, counts) of plane `z` of a host array for the three classes."""
    agarose = agarose[z] if agarose is not None and agarose.ndim == 3 else agarose
    classes = class_rows(None if tissue is None else tissue[z], agarose, block.shape[1:])
    counter.add(z, block[z : z + 1], classes[None])
    return counter.lists(z)


def _count_plane(plane: Any, tissue: Any, agarose: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Do what `_PlaneCounter.count` does in array operations, on the device that owns `plane`."""
    xp = array_module(plane)
    bits = xp.ascontiguousarray(plane, dtype=xp.float32).view(xp.int32)
    magnitude = bits & MAGNITUDE
    valid = (magnitude > 0) & (magnitude < INFINITY_BITS)
    is_tissue = xp.zeros(plane.shape, bool) if tissue is None else tissue
    is_agarose = xp.zeros(plane.shape, bool) if agarose is None else agarose & ~is_tissue
    index = (magnitude >> SHIFT) + xp.where(bits < 0, N_BINS, 0)
    lists = []
    for members in (is_tissue, is_agarose, ~(is_tissue | is_agarose)):
        chosen = index[valid & members]
        counts = xp.bincount(chosen)
        # whole numbers below 2**53: adding them in float64 is exact in any order
        sums = xp.bincount(chosen, weights=(magnitude[valid & members] & RESIDUAL).astype(xp.float64))
        bins = xp.flatnonzero(counts)
        lists.append(pairs_of_bins(to_numpy(bins), to_numpy(counts[bins]), to_numpy(sums[bins])))  # synchronize
    return lists
