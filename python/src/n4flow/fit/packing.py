"""The voxels of a mask, packed row by row, as the sweeps of the fast engine read them.

Of each row of the image the stretch from its first to its last voxel in the mask is kept, as log intensity in float32.
Voxels in between that are outside the mask hold `OUTSIDE`, far above any logarithm, and fall into a bin of their own.
Each row's stretch is filled up to a multiple of `LANES` in the same way, so that the vector loops over it have no
tail.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from n4flow.fit.compiled import pieces, share
from n4flow.fit.packing_kernels import count_at_top, find_hulls, pack_rows, settle_rows
from n4flow.fit.problem import Survey, Voxels

LANES = 16  # float32 in the widest vector register
UNIT_VOXELS = 1 << 14  # packed voxels to a piece of a sweep, about: a plane where it is smaller


class Rows(NamedTuple):
    """Packed voxels, and where each row of the image lies among them.

    Parameters
    ----------
    log_image : (n,) float32 array
    weights : (n,) float32 array
        Confidence; empty where every voxel counts alike.
    first : (Z * Y,) uintp array
        The x of a row's first packed voxel.
    start : (Z * Y + 1,) uintp array
        Where a row begins in the packed arrays.
    unit_row : (units + 1,) uintp array
        Where a piece of a sweep begins, as a row. A piece lies in one plane.
    """

    log_image: np.ndarray
    weights: np.ndarray
    first: np.ndarray
    start: np.ndarray
    unit_row: np.ndarray


@dataclass(frozen=True)
class Packed:
    """A packed image, and what is known about its voxels.

    Parameters
    ----------
    rows : Rows
    shape : (Z, Y, X)
        A 2-D image has one plane.
    width : int
        Stride of a row in work arrays: X and room for the filling, a multiple of `LANES`.
    unit_voxels : (units,) int64 array
        Usable voxels of each piece.
    survey : Survey
    """

    rows: Rows
    shape: tuple[int, int, int]
    width: int
    unit_voxels: np.ndarray
    survey: Survey


def pack(image: np.ndarray, mask: np.ndarray, weights: np.ndarray | None, threads: int) -> Packed:
    """Pack the usable voxels of an image: those in the mask, finite and above 0, with a weight above 0.

    Parameters
    ----------
    image : (Z, Y, X) or (Y, X) real or integer array
    mask : bool array of the same shape
    weights : float32 array of the same shape, or None
    threads : int
    """
    lead = (None,) * (3 - image.ndim)
    image, mask = image[lead], mask[lead]
    if weights is not None:
        weights = np.ascontiguousarray(weights[lead])
        mask = mask & (weights > 0)
    n_z, n_y, n_x = image.shape
    flat_mask = np.ascontiguousarray(mask).reshape(n_z * n_y, n_x).view(np.uint8)

    first, stop = np.empty(n_z * n_y, np.uintp), np.empty(n_z * n_y, np.uintp)
    counts = np.empty((n_z * n_y, 3), np.int64)  # in the mask, not finite, not above 0

    def look(start: int, end: int, values: np.ndarray) -> None:
        find_hulls(values, flat_mask[start:end], first[start:end], stop[start:end], counts[start:end])

    _by_rows(image, threads, look)
    lengths = -(-(stop - first).astype(np.int64) // LANES) * LANES
    start = np.zeros(n_z * n_y + 1, np.uintp)
    np.cumsum(lengths, out=start[1:])
    log_image = np.empty(int(start[-1]), np.float32)

    def fill(row_start: int, row_stop: int, values: np.ndarray) -> None:
        rows = slice(row_start, row_stop)
        edges = start[row_start : row_stop + 1]
        part = log_image[int(edges[0]) : int(edges[-1])]
        pack_rows(values, first[rows], stop[rows], edges, log_image)
        with np.errstate(invalid="ignore", divide="ignore"):
            np.log(part, out=part)
        settle_rows(values, flat_mask[rows], first[rows], stop[rows], edges, log_image)

    _by_rows(image, threads, fill)
    packed_weights = np.empty(0, np.float32)
    if weights is not None:
        packed_weights = np.zeros(log_image.size, np.float32)
        pack_rows(weights.reshape(n_z * n_y, n_x), first, stop, start, packed_weights)
    masked, nonfinite, nonpositive = (int(n) for n in counts.sum(axis=0))
    low, high, at_high = count_at_top(log_image)
    usable = masked - nonfinite - nonpositive
    survey = Survey(
        Voxels(masked, nonfinite, nonpositive),
        math.exp(low) if usable else 0.0,
        math.exp(high) if usable else 0.0,
        int(at_high),
    )
    unit_row = _units(start, n_y)
    voxels = (
        np.add.reduceat(counts[:, 0] - counts[:, 1] - counts[:, 2], unit_row[:-1].astype(np.int64))
        if usable
        else counts[:0, 0]
    )
    rows = Rows(log_image, packed_weights, first, start, unit_row)
    return Packed(rows, (n_z, n_y, n_x), (n_x // LANES + 2) * LANES, voxels, survey)


def _by_rows(image: np.ndarray, threads: int, work: Callable[[int, int, np.ndarray], None]) -> None:
    """Call work(start, stop, values) for runs of rows of an image; values is (stop - start, X) float32."""
    n_y, n_x = image.shape[1:]
    cuts = pieces(image.shape, threads)

    def each(first: int, last: int) -> None:
        for z_start, z_stop, y_start, y_stop in cuts[first:last]:
            block = np.ascontiguousarray(image[z_start:z_stop, y_start:y_stop], np.float32)
            start = z_start * n_y + y_start
            work(start, start + block.shape[0] * block.shape[1], block.reshape(-1, n_x))

    share(each, len(cuts), threads)


def _units(start: np.ndarray, n_y: int) -> np.ndarray:
    """Return where the pieces of a sweep begin: whole planes, or runs of rows of about `UNIT_VOXELS` in large planes.

    They follow from the mask alone, never from the number of threads, since sums are kept by piece.
    """
    begins = start[::n_y].astype(np.int64)
    cuts = []
    for z, (begin, end) in enumerate(pairwise(begins)):
        if end == begin:
            continue
        n = max(1, round((end - begin) / UNIT_VOXELS))
        inner = np.searchsorted(start[z * n_y : (z + 1) * n_y], begin + (end - begin) * np.arange(1, n) // n)
        cuts.append(z * n_y + np.unique(np.concatenate(([0], inner[inner < n_y]))))
    cuts.append(np.array([start.size - 1]))
    return np.concatenate(cuts).astype(np.uintp)
