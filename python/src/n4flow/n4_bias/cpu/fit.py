"""The fast engine: N4 on the processor's cores, compiled; `plain` computes the same thing in a page.

What makes it fast, beside compiled loops:

- an iteration needs two sweeps over the voxels. The first sums what the residuals ask of the controls; the second
  takes the new field off, counts the histogram and measures the change. All else is a few thousand numbers;
- the range of intensities after a step is bounded by the range before and the step's largest control (the weights sum
  to 1). So fine histogram bins can be laid out before the sweep that fills them, and what a voxel keeps between the
  sweeps is the 16-bit index of its bin. Residuals are read from a table over the bins. That costs 0.0001 % of accuracy;
- Lee's fit and the evaluation are products over the axes: a strip of the image is contracted along y as it is read,
  along x at its end; planes are summed last;
- only the stretch of each row between its first and last voxel in the mask is kept, as a float32 logarithm.

The result is the same to the bit for any number of threads: strips are cut by the data, each writes to its own place,
and those are summed in order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from n4flow.compute.simd import LANES
from n4flow.n4_bias import bspline
from n4flow.n4_bias.cpu import level_kernels
from n4flow.n4_bias.cpu import thread_sync as sync
from n4flow.n4_bias.cpu.packing import Packed
from n4flow.n4_bias.problem import Solution, refined_axes
from n4flow.n4_bias.settings import FitSettings, Level
from n4flow.n4_bias.sharpening import padded_size

KEPT_VOXELS = 1 << 19  # changes that are kept in order, for ITK's running mean; it stands still well before
THREAD_VOXELS = 1 << 15  # packed voxels for each thread at least: with fewer they wait longer than they work
FINE_PER_BIN = 32  # fine bins to one of the histogram
FEW_VOXELS = 100_000  # below which finer bins cost next to nothing
FINEST_PER_BIN = 128
RECORDS = 64  # voxels of a rising start that ITK may miss


class Tables(NamedTuple):
    """Weights along the axes at one level: w to evaluate, share w^3 / sum w^2 and square w^2 to fit."""

    first_z: np.ndarray  # (Z,) uintp: first control of each plane
    weight_z: np.ndarray  # (Z, 4) float32
    share_z: np.ndarray
    square_z: np.ndarray
    first_y: np.ndarray  # (Y,) uintp
    weight_y: np.ndarray  # (Y, 4) float32
    share_y: np.ndarray
    square_y: np.ndarray
    weight_x: np.ndarray  # (cx, width) float32: every control's weight in every column
    share_x: np.ndarray
    square_x: np.ndarray
    reach: np.ndarray  # (width / LANES, 2) uintp: controls that reach each vector of columns
    support: np.ndarray  # (cx, 2) uintp: columns between which a control's weights are not 0, whole vectors


class Work(NamedTuple):
    """Room for one level; what it holds is told where it is written, in `level_kernels` and `sweeps`."""

    fine_index: np.ndarray  # (packed,) uint16
    kept: np.ndarray  # (kept,) float32
    there: np.ndarray  # (strips,) float64: voxels of each strip
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
    """The settings that the compiled level reads."""

    bins: int
    per_bin: int
    fwhm: float
    wiener: float
    over_relax: float
    itk: bool
    kept_strips: int


def fit(packed: Packed, controls: Sequence[tuple[int, ...]], settings: FitSettings) -> Solution:
    """Fit a packed image.

    Parameters
    ----------
    packed : Packed
    controls : sequence of tuple of int
        Control points along each axis of the image at each level; an axis of one sample has one.
    settings : FitSettings
    """
    steps = [(1,) * (3 - len(c)) + tuple(c) for c in controls]
    tables = [_tables(packed.shape, packed.width, step) for step in steps]
    threads = max(1, min(settings.threads, packed.rows.log_image.size // THREAD_VOXELS))
    shared = _shared_room(packed, settings, threads)
    works = [_work(packed, step, threads, shared) for step in steps]
    lattices, phis, omegas = ([np.zeros(_padded(step)) for step in steps] for _array in range(3))
    measures = [np.zeros(n) for n in settings.iterations]
    made = [0] * len(steps)
    kernel_settings = _kernel_settings(packed, settings)
    words, state = sync.new_sync(threads), np.zeros(level_kernels.STATE)
    low, high = np.log([packed.survey.low, packed.survey.high])
    state[[level_kernels.LOW, level_kernels.FLOOR, level_kernels.HIGH]] = low, low, high

    def work(thread: int, threads: int) -> None:
        common = (thread, threads, words, packed.rows, np.uintp(packed.shape[1]))
        for level, step in enumerate(steps):
            if thread == 0 and level:  # the others wait at the beginning of the level
                lattices[level][_core(step)] = bspline.refine(
                    lattices[level - 1][_core(steps[level - 1])], refined_axes(steps[level - 1], step)
                )
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

    sync.run_threads(work, words, threads)
    levels = tuple(
        Level(tuple(c), tuple(measure[:n].tolist()), n > 0 and bool(measure[n - 1] <= settings.stop))
        for c, measure, n in zip(controls, measures, made, strict=True)
    )
    return Solution(lattices[-1][_core(steps[-1])].reshape(controls[-1]), levels)


def _padded(step: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a lattice with four controls at least: the loops read that many along every axis."""
    return tuple(max(c, 4) for c in step)


def _core(step: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(c) for c in step)


@functools.lru_cache(maxsize=16)  # the sections of a volume share them
def _tables(shape: tuple[int, ...], width: int, step: tuple[int, ...]) -> Tables:
    """Return the weights of one level along the three axes. Nobody writes to them."""
    columns: list[np.ndarray] = []
    for axis, (n, controls) in enumerate(zip(shape, step, strict=True)):
        first, weights = bspline.axis_weights(bspline.sample_coordinates(n, controls), controls)
        squares = weights**2
        shares = weights**3 / squares.sum(axis=1, keepdims=True)
        if axis < 2:
            columns.append(first.astype(np.uintp))
            columns += [np.ascontiguousarray(w, np.float32) for w in (weights, shares, squares)]
            continue
        columns += [_spread(first, w, controls, width) for w in (weights, shares, squares)]
    return Tables._make([*columns, _reach(columns[-1]), _support(columns[-1])])


def _spread(first: np.ndarray, weights: np.ndarray, controls: int, width: int) -> np.ndarray:
    """Return every control's weight in every column, (cx, width) float32."""
    spread = np.zeros((max(controls, 4), width), np.float32)
    for k in range(4):
        spread[first + k, np.arange(first.size)] = weights[:, k]
    return spread


def _reach(weights: np.ndarray) -> np.ndarray:
    """Return the controls that reach each vector of columns: the first, and the one behind the last."""
    used = np.asarray(weights.reshape(weights.shape[0], -1, LANES).any(axis=2))
    first, last = used.argmax(axis=0), weights.shape[0] - used[::-1].argmax(axis=0)
    reach = np.where(used.any(axis=0), [first, last], 0)
    return np.ascontiguousarray(reach.T, np.uintp)


def _support(weights: np.ndarray) -> np.ndarray:
    """Return the columns between which each control's weights are not 0, widened to whole vectors."""
    support = np.zeros((weights.shape[0], 2), np.uintp)
    for c, row in enumerate(weights):
        columns = np.flatnonzero(row)
        if columns.size:
            support[c] = columns[0] // LANES * LANES, (columns[-1] // LANES + 1) * LANES
    return support


def _kernel_settings(packed: Packed, settings: FitSettings) -> KernelSettings:
    itk = settings.convergence == "itk"
    kept_strips = int(np.searchsorted(_strip_ends(packed), KEPT_VOXELS, side="right")) if itk else 0
    few = packed.survey.usable < FEW_VOXELS
    per_bin = FINEST_PER_BIN if few and settings.bins * FINEST_PER_BIN * 2 < level_kernels.MOST_FINE else FINE_PER_BIN
    return KernelSettings(settings.bins, per_bin, settings.fwhm, settings.wiener, settings.over_relax, itk, kept_strips)


def _strip_ends(packed: Packed) -> np.ndarray:
    """Return where the voxels of each strip end among the packed ones."""
    return packed.rows.start[packed.rows.strips[:, 1].astype(np.int64)].astype(np.int64)


def _shared_room(packed: Packed, settings: FitSettings, threads: int) -> dict[str, np.ndarray]:
    """Return the work arrays that all levels use."""
    rows = packed.rows
    strips = rows.strips.shape[0]
    size = padded_size(settings.bins)
    angle = 2 * np.pi * np.arange(size // 2) / size
    fine = level_kernels.MOST_FINE + 512
    kept = int(np.concatenate(([0], _strip_ends(packed)))[_kernel_settings(packed, settings).kept_strips])
    return {
        "fine_index": np.empty(rows.log_image.size, np.uint16),
        "kept": np.empty(kept, np.float32),
        "there": packed.strip_voxels.astype(np.float64),
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
        "cosine": np.cos(angle),
        "sine": np.sin(angle),
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
