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


def lay_out(
    shape: tuple[int, int, int], steps: Sequence[tuple[int, ...]], width: int, shared_bytes: int
) -> list[LevelArrays]:
    """Return the arrays of all levels on the device; the tables are sent in two copies.

    Parameters
    ----------
    shape : (Z, Y, X)
    steps : sequence of (cz, cy, cx)
        Control points of each level.
    width : int
        Number of threads of a block.
    shared_bytes : int
        Shared memory of a block, in bytes.
    """
    import cupy

    whole, real = Table(np.int32), Table(np.float32)
    drafts: list[dict[str, Any]] = []
    for step in steps:
        padded = (max(step[0], 4), max(step[1], 4), max(step[2], 4))
        firsts, tables = [], []
        for n, controls in zip(shape, step, strict=True):
            first, *weights = bspline.fit_tables(n, controls)
            firsts.append(first)
            tables.append(weights)

        def fits(most_lines: int, n_c: int = padded[2]) -> bool:
            return max(4 * most_lines * width, 8 * most_lines * n_c) <= shared_bytes

        run = choose_run(shape[0], firsts[1], fits)
        dense = [bspline.dense_weights(firsts[2], w, step[2], shape[2]) for w in tables[2]]
        starts = np.arange(0, shape[1], run.rows)
        stops = np.minimum(starts + run.rows, shape[1])
        drafts.append(
            {
                "padded": padded,
                "run": run.rows,
                "n_runs": run.runs,
                "strips": shape[0] * run.runs,
                "most_lines": run.most_lines,
                "first_z": whole.add(firsts[0]),
                "first_y": whole.add(firsts[1]),
                "first_x": whole.add(firsts[2]),
                "support_z": whole.add(supports(firsts[0], firsts[0] + 4, padded[0])),
                "runs_of": whole.add(supports(firsts[1][starts], firsts[1][stops - 1] + 4, padded[1])),
                "support_x": whole.add(supports(firsts[2], firsts[2] + 4, padded[2])),
                "weights": [real.add(tables[0][0]), real.add(tables[1][0]), real.add(tables[2][0])],
                "shares": [real.add(tables[0][1]), real.add(tables[1][1]), real.add(dense[1])],
                "squares": [real.add(tables[0][2]), real.add(tables[1][2]), real.add(dense[2])],
            }
        )
    at, of = whole.send(), real.send()
    levels = []
    for draft in drafts:
        for name in ("first_z", "first_y", "first_x", "support_z", "runs_of", "support_x"):
            draft[name] = at(draft[name])
        for name in ("weights", "shares", "squares"):
            draft[name] = Weights(*(of(place) for place in draft[name]))
        arrays = {name: cupy.zeros(draft["padded"], cupy.float64) for name in ("lattice", "step", "omega")}
        levels.append(LevelArrays(**draft, **arrays))
    return levels


def supports(first: np.ndarray, stop: np.ndarray, controls: int) -> np.ndarray:
    """Return the range (first, stop) of items that act on each control point: (controls, 2) int array.

    Parameters
    ----------
    first, stop : (n,) rising int arrays
        The range of control points that each item acts on.
    controls : int
    """
    c = np.arange(controls)
    return np.stack((np.searchsorted(stop, c, "right"), np.searchsorted(first, c, "right")), axis=1)
