"""Shrunken planes and histograms of an array of whole planes.

A voxel is *valid* when it is finite and not exactly 0 (an exact zero is mosaic padding); invalid voxels are counted,
and enter nothing else. Histograms have the fixed bins of `bins`, so that those of parts of a volume are merged exactly;
the mean of the voxels of a bin comes from an integer sum and is exact, too.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from n4flow.compute.arrays import array_module, as_block, as_mask, to_numpy, within_float32
from n4flow.compute.threads import run_tasks, scratch
from n4flow.errors import InputError
from n4flow.statistics.accumulate import PlaneCounter, PlaneShrinker, class_rows, strips
from n4flow.statistics.bins import INFINITY_BITS, MAGNITUDE, N_BINS, RESIDUAL, SHIFT, pairs_of_bins
from n4flow.statistics.histograms import PlaneHistograms
from n4flow.statistics.shrunken import ShrunkenVolume

SHRUNKEN_SIDE = 512  # voxels of a side of a shrunken plane: enough for a mask and a smooth field
LEAST_COVER = 0.5  # A block is tissue where the mask of the user covers at least this share of it.
FEWEST_SIDE = 32  # voxels of the shorter side of a shrunken plane, below which tissue no longer shows
FIT_SIDE = 256  # samples along the longer side of the grid that bias fields are fitted on,
KNOT_SAMPLES = 16  # and as many more as put this many between knots at a distance that was asked for


def choose_shrink(shape: tuple[int, int, int]) -> int:
    """Return the smallest in-plane block size that brings planes to at most 512 voxels a side, and not below 32.

    >>> choose_shrink((100, 400, 512)), choose_shrink((100, 4000, 6000)), choose_shrink((9, 40, 4000))
    (1, 12, 1)
    """
    return _block_size(shape, SHRUNKEN_SIDE)


def choose_fit_step(shape: tuple[int, int, int], knot: float | None = None) -> int:
    """Return how many voxels of a shrunken volume (Z, y, x) make a sample for bias fields in plane.

    A field is smooth: fitted to a quarter of the voxels, which are less noisy, it is as near to the truth.

    Parameters
    ----------
    shape : tuple of int
    knot : float, optional
        Distance of control points in voxels, where it was asked for.

    >>> choose_fit_step((8, 512, 400)), choose_fit_step((8, 200, 250)), choose_fit_step((8, 512, 400), knot=20.0)
    (2, 1, 1)
    """
    step = _block_size(shape, FIT_SIDE)
    return step if knot is None else max(1, min(step, int(knot / KNOT_SAMPLES)))


def _block_size(shape: tuple[int, int, int], side: int) -> int:
    _planes, height, width = shape
    return max(1, min(math.ceil(max(height, width) / side), min(height, width) // FEWEST_SIDE))


def shrink_planes(block: Any, k: int, *, threads: int | None = None) -> ShrunkenVolume:
    """Average the valid voxels of each k x k block in plane; Z is kept.

    Parameters
    ----------
    block : (z, Y, X) array
        Whole planes of any real type; NumPy (a CuPy array is copied to the host, since reading takes most of the time).
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
        Whole planes, any real type, counted as float32. NumPy or CuPy; counted on the device that holds it.
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
    counter = PlaneCounter(shape[0])

    def count(z: int) -> list[tuple[np.ndarray, np.ndarray]]:
        inside, around = (mask if mask is None or mask.ndim == 2 else mask[z] for mask in masks)
        if xp is not np:
            return _count_plane(block[z], inside, around)
        classes = class_rows(inside, around, shape[1:])
        with within_float32():
            for a, b in strips(*shape[1:]):
                counter.add(z, block[z, a:b].astype("f4", "C"), classes, 1, a)
        return counter.lists(z)

    return PlaneHistograms.of_planes(run_tasks(count, range(shape[0]), threads if xp is np else 1), z_start)


def plane_means(
    block: Any, tissue: Any, agarose: Any = None, z_start: int = 0, *, threads: int | None = None
) -> PlaneHistograms:
    """Return the mean of the valid tissue of every plane, as histograms with one bin, which is all that a gain needs.

    Parameters and devices are those of `plane_histograms`. A plane with valid voxels but no tissue has one voxel of the
    rest, so that it counts as filled.
    """
    block = as_block(block, "block")
    xp = array_module(block)
    mask = as_mask(tissue, tuple(block.shape), "tissue mask")
    mask = xp.asarray(mask if xp is not np else to_numpy(mask))
    nothing = np.empty(0, np.float32), np.empty(0, np.uint32)

    def measure(z: int) -> list[tuple[np.ndarray, np.ndarray]]:
        total, number = (_plane_sum if xp is np else _plane_sum_arrays)(block[z], mask[z])
        if number:
            return [(np.array([total / number], np.float32), np.array([number], np.uint32)), nothing, nothing]
        filled = bool((xp.isfinite(block[z]) & (block[z] != 0)).any())
        return [nothing, nothing, (np.ones(1, np.float32), np.ones(1, np.uint32)) if filled else nothing]

    return PlaneHistograms.of_planes(run_tasks(measure, range(len(block)), threads if xp is np else 1), z_start)


def _plane_sum(plane: np.ndarray, inside: np.ndarray) -> tuple[float, int]:
    """Return the sum and number of the valid voxels inside."""
    from n4flow.statistics import block_mean_kernels as kernels

    values, width = scratch("tissue", plane.shape, np.float32), plane.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite, in float32 or outside, is not valid
        np.multiply(plane, inside, out=values, dtype=np.float32, casting="unsafe")
    total, gone = np.zeros(width), np.zeros(width, np.float32)
    kernels.add_lines(values.reshape(-1), width, 0, width, total, gone)
    return float(total.sum()), plane.size - int(gone.sum(dtype=np.float64))


def _plane_sum_arrays(plane: Any, inside: Any) -> tuple[float, int]:
    """Do what `_plane_sum` does on the device that holds `plane`."""
    xp = array_module(plane)
    valid = inside & xp.isfinite(plane) & (plane != 0)
    return float(xp.where(valid, plane, 0).sum(dtype=xp.float64)), int(valid.sum())


def _count_plane(plane: Any, tissue: Any, agarose: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Count as `PlaneCounter` does, by array operations on the device that holds `plane`."""
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
        # sums of integers below 2**53 are exact in float64, in any order
        sums = xp.bincount(chosen, weights=(magnitude[valid & members] & RESIDUAL).astype(xp.float64))
        bins = xp.flatnonzero(counts)
        lists.append(pairs_of_bins(to_numpy(bins), to_numpy(counts[bins]), to_numpy(sums[bins])))  # synchronize
    return lists
