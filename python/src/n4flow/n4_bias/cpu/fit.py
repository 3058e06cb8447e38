"""N4 on the processor's cores, compiled; `reference` is the same algorithm in plain NumPy.

Four properties make it fast, besides compiled loops:

- an iteration needs two sweeps over the voxels. The first accumulates Lee's fit to the residuals; the second subtracts
  the new field, counts the histogram and measures the change of the field. All other arrays are small;
- the range of intensities after a step is bounded by the range before it and the step's largest control point, because
  the weights of a spline sum to 1. So fine histogram bins are defined before the sweep that fills them, and between the
  sweeps a voxel is stored as the 16-bit index of its bin. Residuals are read from a table with an entry for each bin,
  which costs 0.0001 % of accuracy;
- Lee's fit and the evaluation are products over the axes: a strip of rows is contracted along Y while it is read and
  along X at its end; planes are summed last;
- only the part of each row between its first and last voxel in the mask is stored, as float32 logarithms.

The result is identical for any number of threads: the mask alone decides how the image is cut into strips, each strip
writes its sums to its own place, and these are added in order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from n4flow.compute.progress import watched
from n4flow.compute.simd import LANES
from n4flow.compute.threads import thread_limit
from n4flow.n4_bias import bspline
from n4flow.n4_bias.cpu import level_kernels
from n4flow.n4_bias.cpu import thread_sync as sync
from n4flow.n4_bias.cpu.packing import Packed
from n4flow.n4_bias.problem import Solution
from n4flow.n4_bias.settings import FitSettings, Level
from n4flow.n4_bias.sharpening import fourier_table, padded_size

KEPT_VOXELS = 1 << 19  # ITK's running mean needs the changes of the first voxels in order; it freezes well before this.
THREAD_VOXELS = 1 << 15  # Fewest packed voxels for each thread: with fewer, threads wait longer than they compute.
FINE_PER_BIN = 32  # fine bins in a bin of the histogram
FEW_VOXELS = 100_000  # Images with fewer voxels have finer bins, which then cost hardly any time.
FINEST_PER_BIN = 128  # fine bins in a bin of the histogram, for few voxels
RECORDS = 64  # At most this many voxels that ITK may miss at the start of an image are recorded.


class Tables(NamedTuple):
    """Weights along the axes at one level: w to evaluate, shares w^3 / sum w^2 and squares w^2 to fit."""

    first_z: np.ndarray  # (Z,) uintp: first control point of each plane
    weight_z: np.ndarray  # (Z, 4) float32
    share_z: np.ndarray
    square_z: np.ndarray
    first_y: np.ndarray  # (Y,) uintp
    weight_y: np.ndarray  # (Y, 4) float32
    share_y: np.ndarray
    square_y: np.ndarray
    weight_x: np.ndarray  # (cx, width) float32: the weight of every control point in every column
    share_x: np.ndarray
    square_x: np.ndarray
    reach: np.ndarray  # (width / LANES, 2) uintp: control points that act on each vector of columns
    support: np.ndarray  # (cx, 2) uintp: columns where the weights of a control point are not 0, as whole vectors


class Work(NamedTuple):
    """Work arrays of one level; `level_kernels` and `sweep_kernels` describe what they write to them."""

    fine_index: np.ndarray  # (packed,) uint16
    kept: np.ndarray  # (kept,) float32
    voxels: np.ndarray  # (strips,) float64: usable voxels of each strip
    partial: np.ndarray  # (strips, cy, cx) float32
    ends: np.ndarray  # (strips, 2) float32
    changes: np.ndarray  # (strips, 2) float64
    field: np.ndarray  # (cz * cy * width,) float32
    step: np.ndarray
    lines: np.ndarray  # (threads, 2, cy * width) float32
    sums: np.ndarray  # (threads, cy * width) float32
    counts: np.ndarray  # (threads, 2 * fine) int32
    table: np.ndarray  # (fine,) float32
    ones: np.ndarray
    places: np.ndarray  # (records,) int64
    positions: np.ndarray  # (records,) float32
    bounds: np.ndarray  # (bins,) int64
    histogram: np.ndarray  # (bins,) float64
    expected: np.ndarray
    transforms: np.ndarray  # (5, size) float64
    cosine: np.ndarray  # (size / 2,) float64
    sine: np.ndarray


class KernelSettings(NamedTuple):
    """The settings that `level_kernels` reads."""

    bins: int
    per_bin: int
    fwhm: float
    wiener: float
    over_relax: float
    itk: bool
    kept_strips: int


def fit(packed: Packed, controls: Sequence[tuple[int, ...]], settings: FitSettings) -> Solution:
    """Fit a packed image; see `engine.fit`."""
    steps = [(1,) * (3 - len(c)) + tuple(c) for c in controls]
    tables = [_tables(packed.shape, packed.width, step) for step in steps]
    # more threads than cores would only wait for each other
    threads = max(1, min(settings.threads, thread_limit(), packed.rows.log_image.size // THREAD_VOXELS))
    kernel_settings = _kernel_settings(packed, settings)
    shared = _shared_arrays(packed, kernel_settings, threads)
    works = [_work(packed, step, threads, shared) for step in steps]
    lattices, phis, omegas = ([np.zeros(_padded(step)) for step in steps] for _array in range(3))
    measures = [np.zeros(n) for n in settings.iterations]
    made = [0] * len(steps)
    words, state = sync.new_sync(threads), np.zeros(level_kernels.STATE)
    low, high = np.log([packed.survey.low, packed.survey.high])
    state[[level_kernels.LOW, level_kernels.FLOOR, level_kernels.HIGH]] = low, low, high

    def work(thread: int, threads: int) -> None:
        common = (thread, threads, words, packed.rows, np.uintp(packed.shape[1]))
        for level, step in enumerate(steps):
            if thread == 0 and level:  # The other threads wait at the first barrier of the level.
                lattices[level][_core(step)] = bspline.refine(lattices[level - 1][_core(steps[level - 1])], step)
            level_kernels.run_level(
                *common,
                works[level],
                tables[level],
                lattices[level],
                phis[level],
                omegas[level],
                state,
                kernel_settings,
                level == 0,
                settings.iterations[level],
                settings.stop,
                measures[level],
            )
            if thread == 0:
                made[level] = int(state[level_kernels.MADE])

    with watched(lambda: sum(int(np.count_nonzero(measure)) for measure in measures)):
        sync.run_threads(work, words, threads)
    levels = tuple(
        Level.ended(c, measure[:n], settings) for c, measure, n in zip(controls, measures, made, strict=True)
    )
    return Solution(lattices[-1][_core(steps[-1])].reshape(controls[-1]), levels)


def _padded(step: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a lattice with at least four control points along every axis: the loops read so many."""
    return tuple(max(c, 4) for c in step)


def _core(step: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(c) for c in step)


@functools.lru_cache(maxsize=16)  # Sections of a volume have the same tables.
def _tables(shape: tuple[int, ...], width: int, step: tuple[int, ...]) -> Tables:
    """Return the weights of one level along the three axes, as read-only arrays."""
    columns: list[np.ndarray] = []
    for n, controls in zip(shape[:2], step[:2], strict=True):
        first, *weights = bspline.fit_tables(n, controls)
        columns += [first.astype(np.uintp), *(np.ascontiguousarray(w, np.float32) for w in weights)]
    first, *weights = bspline.fit_tables(shape[2], step[2])
    columns += [bspline.dense_weights(first, w, step[2], width) for w in weights]
    return Tables._make([*columns, _reach(columns[-1]), _support(columns[-1])])


def _reach(weights: np.ndarray) -> np.ndarray:
    """Return the range of control points (first, stop) that act on each vector of columns."""
    used = np.asarray(weights.reshape(weights.shape[0], -1, LANES).any(axis=2))
    first, last = used.argmax(axis=0), weights.shape[0] - used[::-1].argmax(axis=0)
    reach = np.where(used.any(axis=0), [first, last], 0)
    return np.ascontiguousarray(reach.T, np.uintp)


def _support(weights: np.ndarray) -> np.ndarray:
    """Return the range of columns (first, stop), in whole vectors, where each control point's weights are not 0."""
    support = np.zeros((weights.shape[0], 2), np.uintp)
    for c, row in enumerate(weights):
        columns = np.flatnonzero(row)
        if columns.size:
            support[c] = columns[0] // LANES * LANES, (columns[-1] // LANES + 1) * LANES
    return support


def _kernel_settings(packed: Packed, settings: FitSettings) -> KernelSettings:
    itk = settings.convergence == "itk"
    ends = packed.rows.start[packed.rows.strips[:, 1]]  # index after the last packed voxel of each strip
    kept_strips = int(np.searchsorted(ends, KEPT_VOXELS, side="right")) if itk else 0
    per_bin = fine_per_bin(packed.survey.usable, settings.bins)
    return KernelSettings(settings.bins, per_bin, settings.fwhm, settings.wiener, settings.over_relax, itk, kept_strips)


def fine_per_bin(voxels: int, bins: int) -> int:
    """Return how many fine bins a bin of the histogram has."""
    finest = voxels < FEW_VOXELS and bins * FINEST_PER_BIN * 2 < level_kernels.MOST_FINE
    return FINEST_PER_BIN if finest else FINE_PER_BIN


def _shared_arrays(packed: Packed, settings: KernelSettings, threads: int) -> dict[str, np.ndarray]:
    """Return the work arrays that all levels share."""
    rows = packed.rows
    strips = rows.strips.shape[0]
    size = padded_size(settings.bins)
    cosine, sine = fourier_table(size)
    fine = level_kernels.MOST_FINE + 512
    kept = int(rows.start[rows.strips[settings.kept_strips - 1, 1]]) if settings.kept_strips else 0
    return {
        "fine_index": np.empty(rows.log_image.size, np.uint16),
        "kept": np.empty(kept, np.float32),
        "voxels": packed.strip_voxels.astype(np.float64),
        "ends": np.zeros((strips, 2), np.float32),
        "changes": np.zeros((strips, 2)),
        "counts": np.empty((threads, 2 * fine), np.int32),
        "table": np.empty(fine, np.float32),
        "ones": np.empty(fine, np.float32),
        "places": np.full(RECORDS, -1, np.int64),
        "positions": np.zeros(RECORDS, np.float32),
        "bounds": np.empty(settings.bins, np.int64),
        "histogram": np.empty(settings.bins),
        "expected": np.empty(settings.bins),
        "transforms": np.empty((5, size)),
        "cosine": cosine,
        "sine": sine,
    }


def _work(packed: Packed, step: tuple[int, ...], threads: int, shared: dict[str, np.ndarray]) -> Work:
    """Return the work arrays of one level."""
    slabs, lines, columns = _padded(step)
    plane = lines * packed.width
    return Work(
        partial=np.zeros((packed.rows.strips.shape[0], lines, columns), np.float32),
        field=np.empty(slabs * plane, np.float32),
        step=np.empty(slabs * plane, np.float32),
        lines=np.empty((threads, 2, plane), np.float32),
        sums=np.empty((threads, plane), np.float32),
        **shared,
    )
