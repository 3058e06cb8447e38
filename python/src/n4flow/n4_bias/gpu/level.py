"""Arrays of the levels of a fit on the GPU: tables of weights, lattices, and how the image is cut into strips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from n4flow.errors import InputError
from n4flow.n4_bias import bspline

MOST_RUN, LEAST_RUN = 64, 8  # rows of a strip, at most and at least
SHARED_BYTES = 46_000  # dynamic shared memory that every device grants a block, besides what kernels declare
STRIPS = 2048  # approximate number of strips that keeps a large device busy


class Weights(NamedTuple):
    """Weights along the axes, float32: (n, 4) of planes and rows; along X (X, 4) to evaluate, or (cx, X) to fit."""

    z: Any
    y: Any
    x: Any


@dataclass
class LevelArrays:
    """Arrays of one level. Lattices have at least four control points along every axis (`padded`)."""

    padded: tuple[int, int, int]
    run: int
    n_runs: int
    strips: int
    most_lines: int
    first_z: Any
    first_y: Any
    first_x: Any
    support_z: Any
    runs_of: Any
    support_x: Any
    weights: Weights
    shares: Weights
    squares: Weights
    lattice: Any
    step: Any
    omega: Any

    @property
    def partial_size(self) -> int:
        """Number of sums that the strips of a first sweep write."""
        return self.strips * self.most_lines * self.padded[2]

    def fit_bytes(self, width: int) -> int:
        """Shared memory in bytes of a first sweep with blocks of `width` threads."""
        return 4 * self.most_lines * width

    def field_bytes(self, fine: int) -> int:
        """Shared memory in bytes of a second sweep that counts `fine` bins in it."""
        return 4 * (fine + 2 * self.most_lines * self.padded[2])


class Run(NamedTuple):
    """How planes are cut into strips: rows in a strip, strips in a plane, most lines of control points of a strip."""

    rows: int
    runs: int
    most_lines: int


def choose_run(n_z: int, first_y: np.ndarray, fits: Any) -> Run:
    """Return how planes are cut; `fits(most_lines)` says whether a block has enough shared memory.

    Raises
    ------
    InputError
        Not even strips of a single row fit.
    """
    n_y = first_y.size
    rows = max(LEAST_RUN, min(MOST_RUN, n_z * n_y // STRIPS))
    while True:
        starts = np.arange(0, n_y, rows)
        stops = np.minimum(starts + rows, n_y)
        most = int((first_y[stops - 1] - first_y[starts]).max()) + 4
        if fits(most):
            return Run(rows, starts.size, most)
        if rows == 1:
            msg = "the lattice has too many control points along X for the gpu backend; use fewer, or backend cpu"
            raise InputError(msg)
        rows = (rows + 1) // 2


class Table:
    """Arrays that are copied to the device together, each at a multiple of 16 bytes."""

    def __init__(self, dtype: Any) -> None:
        self._dtype, self._parts, self._size = np.dtype(dtype), [np.empty(0, dtype)], 0

    def add(self, array: np.ndarray) -> tuple[int, tuple[int, ...]]:
        """Add an array; return its offset and shape."""
        place = (self._size, array.shape)
        flat = np.ascontiguousarray(array, self._dtype).reshape(-1)
        filling = -flat.size % (16 // self._dtype.itemsize)
        self._parts += [flat, np.zeros(filling, self._dtype)]
        self._size += flat.size + filling
        return place

    def send(self) -> Any:
        """Copy to the device; return a function from what `add` returned to the array there."""
        import cupy

        there = cupy.asarray(np.concatenate(self._parts))
        return lambda place: there[place[0] : place[0] + math.prod(place[1])].reshape(place[1])


def lay_out(shape: tuple[int, int, int], steps: Sequence[tuple[int, ...]], width: int) -> list[LevelArrays]:
    """Return the arrays of all levels on the device; the tables are sent in two copies.

    `steps` are the control points of each level, and `width` is the number of threads of a block.
    """
    import cupy

    whole, real = Table(np.int32), Table(np.float32)
    drafts = []
    for step in steps:
        padded = (max(step[0], 4), max(step[1], 4), max(step[2], 4))
        firsts, tables = [], []
        for n, controls in zip(shape, step, strict=True):
            first, *weights = bspline.fit_tables(n, controls)
            firsts.append(first)
            tables.append(weights)

        def fits(most_lines: int, n_c: int = padded[2]) -> bool:
            return max(4 * most_lines * width, 8 * most_lines * n_c) <= SHARED_BYTES

        run = choose_run(shape[0], firsts[1], fits)
        dense = [bspline.dense_weights(firsts[2], w, step[2], shape[2]) for w in tables[2][1:]]
        starts = np.arange(0, shape[1], run.rows)
        stops = np.minimum(starts + run.rows, shape[1])
        # Sizes, integers and weights are in the order of the fields of `LevelArrays`.
        integers = [
            *firsts,
            supports(firsts[0], firsts[0] + 4, padded[0]),
            supports(firsts[1][starts], firsts[1][stops - 1] + 4, padded[1]),
            supports(firsts[2], firsts[2] + 4, padded[2]),
        ]
        along_x = [tables[2][0], *dense]
        reals = [(tables[0][k], tables[1][k], along_x[k]) for k in range(3)]
        sizes = (padded, run.rows, run.runs, shape[0] * run.runs, run.most_lines)
        drafts.append((sizes, [whole.add(a) for a in integers], [[real.add(a) for a in group] for group in reals]))
    at, of = whole.send(), real.send()
    levels = []
    for sizes, places, groups in drafts:
        tables_there = (Weights(*map(of, group)) for group in groups)
        lattices = (cupy.zeros(sizes[0], cupy.float64) for _ in ("lattice", "step", "omega"))
        levels.append(LevelArrays(*sizes, *map(at, places), *tables_there, *lattices))
    return levels


def supports(first: np.ndarray, stop: np.ndarray, controls: int) -> np.ndarray:
    """Return the range (first, stop) of items that act on each control point: (controls, 2) int array.

    `first` and `stop` are rising: the range of control points that each item acts on.
    """
    c = np.arange(controls)
    return np.stack((np.searchsorted(stop, c, "right"), np.searchsorted(first, c, "right")), axis=1)
