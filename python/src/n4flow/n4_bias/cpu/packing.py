"""Packing of the voxels in a mask, row by row, for the sweeps of `cpu.fit`.

Each row of the image is stored from its first to its last voxel in the mask, as log intensities in float32. Voxels
between them that are outside the mask hold `OUTSIDE`, which lies above any logarithm, and fall into a bin of their own.
Rows are padded with `OUTSIDE` to a multiple of `LANES`, so that vector loops need no remainder loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from n4flow.compute.arrays import writeable
from n4flow.compute.simd import LANES
from n4flow.compute.threads import cut_blocks, parallel_planes, useful_threads
from n4flow.n4_bias.cpu.packing_kernels import extremes, find_hulls, pack_rows
from n4flow.n4_bias.problem import Survey, Voxels

STRIP_VOXELS = 1 << 14  # approximate number of packed voxels in a strip; small planes are a strip each


class Rows(NamedTuple):
    """Packed voxels, and the position of each row of the image among them.

    A strip is a run of rows of one plane, the unit of work of a sweep.
    """

    log_image: np.ndarray  # (n,) float32
    weights: np.ndarray  # (n,) float32: confidence; empty if all voxels have the same weight
    first: np.ndarray  # (Z * Y,) uintp: the x of a row's first packed voxel
    start: np.ndarray  # (Z * Y + 1,) uintp: index of each row's first voxel in the packed arrays
    strips: np.ndarray  # (strips, 2) uintp: range of rows (first, stop) of each strip


@dataclass(frozen=True)
class Packed:
    """A packed image with statistics of its voxels."""

    rows: Rows
    shape: tuple[int, int, int]  # A 2-D image has one plane.
    width: int  # stride of a row in work arrays: X and the padding, a multiple of `LANES`
    strip_voxels: np.ndarray  # (strips,) int64: number of usable voxels of each strip
    survey: Survey


def pack(image: np.ndarray, mask: np.ndarray, weights: np.ndarray | None, threads: int) -> Packed:
    """Pack the usable voxels of an image: those in the mask, finite and above 0, with a weight above 0."""
    lead = (None,) * (3 - image.ndim)
    image, mask = image[lead], mask[lead]
    if weights is not None:
        weights = writeable(weights[lead])
        mask = mask & (weights > 0)
    n_z, n_y, n_x = image.shape
    flat_mask = writeable(mask, bool).reshape(n_z * n_y, n_x).view(np.uint8)

    first, stop = np.empty(n_z * n_y, np.uintp), np.empty(n_z * n_y, np.uintp)
    found = np.empty(n_z * n_y, np.int64)  # number of usable voxels of each row
    counts = []  # numbers of voxels in the mask, and of those that are not finite

    def find(start: int, end: int, values: np.ndarray) -> None:
        rows = slice(start, end)
        counts.append(find_hulls(values, flat_mask[rows], first[rows], stop[rows], found[rows]))

    _by_rows(image, threads, find)
    lengths = -(-(stop - first).astype(np.int64) // LANES) * LANES
    start = np.zeros(n_z * n_y + 1, np.uintp)
    np.cumsum(lengths, out=start[1:])
    log_image = np.empty(int(start[-1]), np.float32)

    def fill(row_start: int, row_stop: int, values: np.ndarray) -> None:
        rows = slice(row_start, row_stop)
        edges = start[row_start : row_stop + 1]
        pack_rows(values, flat_mask[rows], first[rows], stop[rows], edges, log_image)
        part = log_image[int(edges[0]) : int(edges[-1])]
        np.log(part, out=part)

    _by_rows(image, threads, fill)
    packed_weights = np.empty(0, np.float32)
    if weights is not None:
        packed_weights = np.empty(log_image.size, np.float32)
        pack_rows(weights.reshape(n_z * n_y, n_x), flat_mask, first, stop, start, packed_weights)
        packed_weights[np.isinf(packed_weights)] = 0
    masked, nonfinite = (sum(numbers) for numbers in zip(*counts, strict=True)) if counts else (0, 0)
    low, high, at_high = extremes(log_image)
    ends = np.concatenate(([0], np.cumsum(found)))
    usable = int(ends[-1])
    survey = Survey(
        Voxels(masked, nonfinite, masked - nonfinite - usable),
        math.exp(low) if usable else 0.0,
        math.exp(high) if usable else 0.0,
        int(at_high),
    )
    strips = _strips(start, n_y)
    voxels = ends[strips[:, 1].astype(np.int64)] - ends[strips[:, 0].astype(np.int64)]
    rows = Rows(log_image, packed_weights, first, start, strips)
    return Packed(rows, (n_z, n_y, n_x), (n_x // LANES + 2) * LANES, voxels, survey)


def _by_rows(image: np.ndarray, threads: int, work: Callable[[int, int, np.ndarray], None]) -> None:
    """Call work(start, stop, values) for runs of rows of an image; values is (stop - start, X) float32."""
    n_y, n_x = image.shape[1:]
    cuts = cut_blocks(image.shape, threads)

    def each(first: int, last: int) -> None:
        for z_start, z_stop, y_start, y_stop in cuts[first:last]:
            block = writeable(image[z_start:z_stop, y_start:y_stop])
            start = z_start * n_y + y_start
            work(start, start + block.shape[0] * block.shape[1], block.reshape(-1, n_x))

    parallel_planes(each, len(cuts), useful_threads(threads, image.size))


def _strips(start: np.ndarray, n_y: int) -> np.ndarray:
    """Return the ranges of rows of the strips: whole planes, or in large planes runs of rows of about `STRIP_VOXELS`.

    They depend on the mask alone and not on the number of threads, because sums are stored for each strip. Rows without
    voxels at the beginning and end of a plane belong to no strip.
    """
    full = np.diff(start.astype(np.int64)).reshape(-1, n_y) > 0
    planes = np.flatnonzero(full.any(axis=1))
    begin = planes * n_y + full[planes].argmax(axis=1)
    end = (planes + 1) * n_y - full[planes, ::-1].argmax(axis=1)
    strips_of = np.rint((start[end] - start[begin]).astype(np.int64) / STRIP_VOXELS).astype(np.int64)
    if (strips_of <= 1).all():
        return np.stack((begin, end), axis=1).astype(np.uintp)
    strips = []
    for first, last, n in zip(begin.tolist(), end.tolist(), np.maximum(strips_of, 1).tolist(), strict=True):
        edges = start[first : last + 1].astype(np.int64)
        inner = np.searchsorted(edges, edges[0] + (edges[-1] - edges[0]) * np.arange(1, n) // n)
        cuts = np.unique(np.concatenate(([0], inner, [last - first])))
        strips += [(first + a, first + b) for a, b in pairwise(cuts.tolist())]
    return np.array(strips, np.uintp).reshape(-1, 2)
