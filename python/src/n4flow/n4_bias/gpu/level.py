"""What one level of a fit on the GPU needs: tables of weights, arrays, and how the image is cut into strips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from n4flow.errors import InputError
from n4flow.n4_bias import bspline

MOST_RUN = 64  # rows of a strip
LEAST_RUN = 8
STRIPS = 2048  # about as many as keep a large device busy


class Weights(NamedTuple):
    """Weights along the axes, float32: of planes and rows (n, 4); along x (X, 4), or (cx, X) to contract."""

    z: Any
    y: Any
    x: Any


@dataclass
class LevelArrays:
    """One level; sizes are those of the lattices with four controls at least along every axis (`padded`)."""

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
        """Sums that the strips of a first sweep leave."""
        return self.strips * self.most_lines * self.padded[2]

    def fit_bytes(self, width: int) -> int:
        """Shared memory of a first sweep by blocks of `width` threads."""
        return 4 * self.most_lines * width

    def field_bytes(self, fine: int) -> int:
        """Shared memory of a second sweep that counts `fine` bins there."""
        return 4 * (fine + 2 * self.most_lines * self.padded[2])


class Run(NamedTuple):
    """How planes are cut into runs of rows: rows to a run, runs to a plane, most lines of controls to a run."""

    rows: int
    runs: int
    most_lines: int


def choose_run(n_z: int, first_y: np.ndarray, fits: Any) -> Run:
    """Return the cut of planes; `fits(most_lines)` says whether a block has the memory.

    Raises
    ------
    InputError
        Not even single rows fit.
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
    """Arrays that go to the device together, each at a multiple of 16 bytes."""

    def __init__(self, dtype: Any) -> None:
        self._dtype, self._parts, self._size = np.dtype(dtype), [np.empty(0, dtype)], 0

    def add(self, array: np.ndarray) -> tuple[int, tuple[int, ...]]:
        """Note an array; return where it will lie."""
        place = (self._size, array.shape)
        flat = np.ascontiguousarray(array, self._dtype).reshape(-1)
        filling = -flat.size % (16 // self._dtype.itemsize)
        self._parts += [flat, np.zeros(filling, self._dtype)]
        self._size += flat.size + filling
        return place

    def send(self) -> Any:
        """Return a function from places to arrays on the device."""
        import cupy

        there = cupy.asarray(np.concatenate(self._parts))
        return lambda place: there[place[0] : place[0] + math.prod(place[1])].reshape(place[1])


def lay_out(
    shape: tuple[int, int, int], steps: Sequence[tuple[int, ...]], width: int, shared_bytes: int
) -> list[LevelArrays]:
    """Return the arrays of all levels on the device, sent in two copies.

    Parameters
    ----------
    shape : (Z, Y, X)
    steps : sequence of (cz, cy, cx)
        Control points of each level.
    width : int
        Threads of a block.
    shared_bytes : int
        Shared memory of a block.
    """
    import cupy

    whole, real = Table(np.int32), Table(np.float32)
    drafts: list[dict[str, Any]] = []
    for step in steps:
        padded = (max(step[0], 4), max(step[1], 4), max(step[2], 4))
        firsts, tables = [], []
        for n, controls in zip(shape, step, strict=True):
            first, w = bspline.axis_weights(bspline.sample_coordinates(n, controls), controls)
            squares = w**2
            firsts.append(first)
            tables.append((w, w**3 / squares.sum(axis=1, keepdims=True), squares))

        def fits(most_lines: int, n_c: int = padded[2]) -> bool:
            return max(4 * most_lines * width, 8 * most_lines * n_c) <= shared_bytes

        run = choose_run(shape[0], firsts[1], fits)
        spread = [np.zeros((padded[2], shape[2]), np.float32) for _ in range(3)]
        for rows, w in zip(spread, tables[2], strict=True):
            for k in range(4):
                rows[firsts[2] + k, np.arange(shape[2])] = w[:, k]
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
                "shares": [real.add(tables[0][1]), real.add(tables[1][1]), real.add(spread[1])],
                "squares": [real.add(tables[0][2]), real.add(tables[1][2]), real.add(spread[2])],
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
    """Return which items reach each control: (controls, 2), the first, and the one behind the last.

    Parameters
    ----------
    first, stop : (n,) rising int arrays
        The controls that each item reaches: the first, and the one behind the last.
    controls : int
    """
    c = np.arange(controls)
    return np.stack((np.searchsorted(stop, c, "right"), np.searchsorted(first, c, "right")), axis=1)
