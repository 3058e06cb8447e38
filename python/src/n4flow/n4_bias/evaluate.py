"""The bias field at full resolution: evaluate a lattice on a block, or correct a block by it.

`bspline.evaluate` is the same evaluation in plain NumPy; the corrected image is image / exp(log field). The compiled
loops contract Z first (a small lattice for each plane), then X (a line for each row of control points), then Y (four
multiply-adds for each voxel). The value of a voxel is a fixed sequence of rounded operations on the weights of that
voxel. So a block has the same bits as that part of the whole volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np

from n4flow.compute.arrays import writeable
from n4flow.compute.threads import cut_blocks, parallel_planes, useful_threads
from n4flow.n4_bias import bspline

Axes = Sequence[np.ndarray]  # parametric coordinates along each axis

NO_IMAGE = np.empty(0, np.float32)


class Evaluator:
    """A lattice prepared for evaluation on one grid.

    Parameters
    ----------
    lattice : (cz, cy, cx) float array
        The field is constant along an axis with a single control point.
    coordinates : three (n,) float64 arrays
        Rising parametric coordinates of the grid's planes, rows and columns.
    """

    def __init__(self, lattice: np.ndarray, coordinates: Axes) -> None:
        pad = [(0, 3 if controls == 1 else 0) for controls in lattice.shape]
        self.shape = tuple(t.size for t in coordinates)
        self._lattice = np.ascontiguousarray(np.pad(np.asarray(lattice, np.float32), pad))
        tables = [bspline.axis_weights(t, controls) for t, controls in zip(coordinates, lattice.shape, strict=True)]
        (fz, wz), (fy, wy), (fx, wx) = [(first.astype(np.int32), w.astype(np.float32)) for first, w in tables]
        self._tables: tuple[np.ndarray, ...] = (fz, wz, fy, wy, fx, np.ascontiguousarray(wx.T))

    def tables(self, z: slice, y: slice, x: slice) -> tuple[np.ndarray, ...]:
        """Return the arguments of `field_block` for a part of the grid: lattice, first control points and weights."""
        fz, wz, fy, wy, fx, wx = self._tables
        return self._lattice, fz[z], wz[z], fy[y], wy[y], fx[x], np.ascontiguousarray(wx[:, x])

    def part(self, z: slice, y: slice, x: slice) -> Evaluator:
        """Return the evaluator of a part of the grid. Voxels have the same bits as in the whole grid."""
        part = copy(self)
        part._tables = self.tables(z, y, x)[1:]
        part.shape = (part._tables[0].size, part._tables[2].size, part._tables[4].size)
        return part

    @classmethod
    def of_planes(cls, lattices: np.ndarray, y: np.ndarray, x: np.ndarray) -> Evaluator:
        """Return an evaluator of planes with a lattice each: `lattices` is (z, cy, cx), `y` and `x` are coordinates."""
        made = cls(lattices[:1], (np.zeros(1), y, x))
        n_z = len(lattices)
        made.shape = (n_z, y.size, x.size)
        made._lattice = np.ascontiguousarray(np.pad(np.asarray(lattices, np.float32), ((0, 3), (0, 0), (0, 0))))
        alone = np.tile(np.array([1, 0, 0, 0], np.float32), (n_z, 1))  # the weights of a plane's own lattice alone
        made._tables = (np.arange(n_z, dtype=np.int32), alone, *made._tables[2:])
        return made

    def log_field(self, out: np.ndarray, threads: int = 1) -> np.ndarray:
        """Write the log field to `out`, a (z, y, x) float array; return it."""
        return self._run(0.0, None, out, threads)

    def field(self, out: np.ndarray, threads: int = 1) -> np.ndarray:
        """Write the field, exp of the log field, to `out`; return it."""
        return self._run(1.0, None, out, threads)

    def correct(self, image: np.ndarray, out: np.ndarray, threads: int = 1) -> np.ndarray:
        """Write image / field to `out`, which may be `image`; return it. Zeros and non-finite voxels are unchanged."""
        return self._run(-1.0, image, out, threads)

    def _run(self, sign: float, image: np.ndarray | None, out: np.ndarray, threads: int) -> np.ndarray:
        from n4flow.n4_bias.evaluate_kernels import field_block

        threads = useful_threads(threads, out.size)
        cuts = cut_blocks(self.shape, threads)
        in_place = _plain(out) and (image is None or _plain(image))
        whole = (NO_IMAGE if image is None else image.reshape(-1), out.reshape(-1)) if in_place else None

        def work(start: int, stop: int) -> None:
            for z_start, z_stop, y_start, y_stop in cuts[start:stop]:
                if whole:
                    block = z_start, z_stop, y_start, y_stop
                    field_block(*block, self._lattice, *self._tables, sign, *whole, self.shape)
                    continue
                # Arrays of another dtype or layout are computed on a float32 copy of the block.
                place = slice(z_start, z_stop), slice(y_start, y_stop)
                shape = (z_stop - z_start, y_stop - y_start, self.shape[2])
                target = np.empty(shape, np.float32)
                source = NO_IMAGE if image is None else writeable(image[place]).reshape(-1)
                tables = self.tables(*place, slice(None))
                field_block(0, shape[0], 0, shape[1], *tables, sign, source, target.reshape(-1), shape)
                out[place] = target

        parallel_planes(work, len(cuts), threads)
        return out


def _plain(array: np.ndarray) -> bool:
    return array.dtype == np.float32 and array.dtype.isnative and array.flags.c_contiguous and array.flags.writeable
