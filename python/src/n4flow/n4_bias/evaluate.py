"""The bias field at full resolution: evaluate a lattice on a block, or correct a block by it.

The plain statement is `bspline.evaluate`, and for the correction image / exp(log field). The compiled loops contract Z
first (a small lattice for each plane), then X (one row for each row of controls), then Y: four multiply-adds a voxel.
The value at a voxel is one fixed sequence of rounded operations on that voxel's own weights. So a block gives the same
bits as the whole volume, however it is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np

from n4flow.compute.jit import pieces, share, worthwhile, writeable
from n4flow.n4_bias import bspline
from n4flow.n4_bias.evaluate_kernels import field_block

Axes = Sequence[np.ndarray]  # parametric coordinates of each axis

NO_IMAGE = np.empty(0, np.float32)


class Evaluator:
    """A lattice prepared for evaluation on one grid.

    Parameters
    ----------
    lattice : (cz, cy, cx) float array
        An axis with a single control is constant.
    coordinates : three (n,) float64 arrays
        Parametric coordinates of the grid's planes, rows and columns, rising.
    """

    def __init__(self, lattice: np.ndarray, coordinates: Axes) -> None:
        pad = [(0, 3 if controls == 1 else 0) for controls in lattice.shape]
        self.shape = tuple(t.size for t in coordinates)
        self._lattice = np.ascontiguousarray(np.pad(np.asarray(lattice, np.float32), pad))
        tables = [bspline.axis_weights(t, controls) for t, controls in zip(coordinates, lattice.shape, strict=True)]
        (fz, wz), (fy, wy), (fx, wx) = [(first.astype(np.int32), w.astype(np.float32)) for first, w in tables]
        self._tables: tuple[np.ndarray, ...] = (fz, wz, fy, wy, fx, np.ascontiguousarray(wx.T))

    def tables(self, z: slice, y: slice, x: slice) -> tuple[np.ndarray, ...]:
        """Return what `field_block` takes of a part of the grid: lattice, first controls and weights of each axis."""
        fz, wz, fy, wy, fx, wx = self._tables
        return self._lattice, fz[z], wz[z], fy[y], wy[y], fx[x], np.ascontiguousarray(wx[:, x])

    def part(self, z: slice, y: slice, x: slice) -> Evaluator:
        """Return the evaluator of a part of the grid; the same voxel has the same bits."""
        part = copy(self)
        part._tables = self.tables(z, y, x)[1:]
        part.shape = (part._tables[0].size, part._tables[2].size, part._tables[4].size)
        return part

    @classmethod
    def of_planes(cls, lattices: np.ndarray, y: np.ndarray, x: np.ndarray) -> Evaluator:
        """Return the evaluator of planes that have a lattice (z, cy, cx) each, at rows `y` and columns `x`."""
        made = cls(lattices[:1], (np.zeros(1), y, x))
        n_z = len(lattices)
        made.shape = (n_z, y.size, x.size)
        made._lattice = np.ascontiguousarray(np.pad(np.asarray(lattices, np.float32), ((0, 3), (0, 0), (0, 0))))
        alone = np.tile(np.array([1, 0, 0, 0], np.float32), (n_z, 1))  # a plane's own lattice and none of the next
        made._tables = (np.arange(n_z, dtype=np.int32), alone, *made._tables[2:])
        return made

    def log_field(self, out: np.ndarray, threads: int = 1) -> np.ndarray:
        """Write the log field to `out`, a (z, y, x) float array; return it."""
        return self._run(0.0, None, out, threads)

    def field(self, out: np.ndarray, threads: int = 1) -> np.ndarray:
        """Write the field, exp of the log field, to `out`; return it."""
        return self._run(1.0, None, out, threads)

    def correct(self, image: np.ndarray, out: np.ndarray, threads: int = 1) -> np.ndarray:
        """Write image / field to `out`, which may be `image`; return it. Zeros and non-finite voxels stay."""
        return self._run(-1.0, image, out, threads)

    def _run(self, sign: float, image: np.ndarray | None, out: np.ndarray, threads: int) -> np.ndarray:
        threads = worthwhile(threads, out.size)
        cuts = pieces(self.shape, threads)
        in_place = _plain(out) and (image is None or _plain(image))
        whole = (NO_IMAGE if image is None else image.reshape(-1), out.reshape(-1)) if in_place else None

        def work(start: int, stop: int) -> None:
            for z_start, z_stop, y_start, y_stop in cuts[start:stop]:
                if whole:
                    block = z_start, z_stop, y_start, y_stop
                    field_block(*block, self._lattice, *self._tables, sign, *whole, self.shape)
                    continue
                place = slice(z_start, z_stop), slice(y_start, y_stop)
                # another dtype or layout goes through a float32 copy of one piece
                fz, wz, fy, wy, fx, wx = self._tables
                tables = (fz[place[0]], wz[place[0]], fy[place[1]], wy[place[1]], fx, wx)
                shape = (z_stop - z_start, y_stop - y_start, self.shape[2])
                target = np.empty(shape, np.float32)
                source = NO_IMAGE if image is None else writeable(image[place]).reshape(-1)
                block = 0, shape[0], 0, shape[1]
                field_block(*block, self._lattice, *tables, sign, source, target.reshape(-1), shape)
                out[place] = target

        share(work, len(cuts), threads)
        return out


def _plain(array: np.ndarray) -> bool:
    return array.dtype == np.float32 and array.dtype.isnative and array.flags.c_contiguous and array.flags.writeable
