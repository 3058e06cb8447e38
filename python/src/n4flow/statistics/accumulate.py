"""Block means and histograms of planes that arrive in parts.

Results depend neither on the rows that arrive together nor on the number of threads: floating-point numbers are added
in a fixed order, and histograms are integers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from n4flow.compute.arrays import within_float32
from n4flow.compute.threads import available_threads, run_tasks, scratch
from n4flow.statistics.bins import N_BINS, pairs_of_bins
from n4flow.statistics.pooling import add_up

PLANE_COUNTS = ("n_valid", "n_zero", "n_nonfinite", "n_negative", "n_saturated")
STRIP_VOXELS = 1 << 17  # Rows are processed in strips of half a megabyte of float32, which stay in the cache of a core.
COLUMNS = 512  # Parts of a plane that are tasks of their own have at least about this many columns.
MOST_TILES = 1024  # RENDER measures at most this many tiles before it merges them.
MOST_PIECES = 16  # At most this many partial histograms of a plane are kept before they are added up.

_tables = threading.local()

Lists = tuple[np.ndarray, ...]  # bins, counts and sums of residuals, see `pairs_of_bins`


def strips(height: int, width: int, voxels: int = STRIP_VOXELS) -> list[tuple[int, int]]:
    """Cut the rows of a plane into strips of about `voxels`; return the first and the end row of each."""
    step = max(1, voxels // width)
    return [(y, min(y + step, height)) for y in range(0, height, step)]


class BlockMeans:
    """Means of the valid voxels of k x k blocks of planes, and counts and extremes of each plane.

    Parameters
    ----------
    shape : (Z, Y, X)
        Shape of the planes that will be added.
    k : int
        Block size, voxels.

    Attributes
    ----------
    mean, valid : (Z, y, x) float32 arrays
        See `statistics.ShrunkenVolume`.
    counts : (Z, 5) int64 array
        See `PLANE_COUNTS`.
    extremes : (Z, 2) float64 array
    """

    def __init__(self, shape: tuple[int, int, int], k: int) -> None:
        n_z, n_y, n_x = shape
        self.shape, self.k = shape, k
        self.mean = np.empty((n_z, -(-n_y // k), -(-n_x // k)), np.float32)
        self.valid = np.empty_like(self.mean)
        self.counts = np.zeros((n_z, len(PLANE_COUNTS)), np.int64)
        self.extremes = np.tile([np.inf, -np.inf], (n_z, 1))

    def _count(self, planes: slice, counts: np.ndarray, extremes: np.ndarray) -> None:
        """Add the counts (z, 5) and extremes (z, 2) of a part of some planes."""
        self.counts[planes] += counts
        np.minimum(self.extremes[planes, 0], extremes[:, 0], out=self.extremes[planes, 0])
        np.maximum(self.extremes[planes, 1], extremes[:, 1], out=self.extremes[planes, 1])


class PlaneShrinker(BlockMeans):
    """Block means of planes whose rows, of voxels of one type, are added in order."""

    def __init__(self, shape: tuple[int, int, int], k: int, dtype: np.dtype) -> None:
        super().__init__(shape, k)
        self._top = int(np.iinfo(dtype).max) if dtype.kind in "ui" else None
        # of each plane, the last rows that were added, whose blocks are incomplete
        self._begun: dict[int, np.ndarray] = {}

    def add(self, block: np.ndarray, z: int = 0, y: int = 0, threads: int | None = None) -> None:
        """Add rows (z, y, X), the first of which is row `y` of plane `z`; the rows of a plane are added in order."""
        n_z, n_y, n_x = block.shape
        stop, top = y + n_y, y // self.k * self.k
        bottom = stop if stop == self.shape[1] else stop // self.k * self.k  # the rows before it are complete blocks
        # few planes are divided among threads by columns, in whole blocks
        blocks = self.mean.shape[2]
        parts = max(1, min((threads or available_threads()) // n_z, n_x // COLUMNS, blocks))
        cuts = [min(n_x, blocks * i // parts * self.k) for i in range(parts)] + [n_x]
        step = max(1, STRIP_VOXELS * parts // (n_x * self.k)) * self.k
        begun = [self._begun.pop(plane, block[:0, 0]) for plane in range(z, z + n_z)]
        counts = np.zeros((n_z, parts, len(PLANE_COUNTS)), np.int64)
        extremes = np.tile([np.inf, -np.inf], (n_z, parts, 1))

        def work(task: tuple[int, int]) -> None:
            i, part = task
            columns = slice(cuts[part], cuts[part + 1])
            numbers = counts[i, part : part + 1], extremes[i, part : part + 1]
            for start in range(top, bottom, step):
                rows = block[i, max(start - y, 0) : min(start + step, bottom) - y, columns]
                above = [begun[i][:, columns]] if start < y else []
                self._shrink([*above, rows], (start, columns.start), z + i, *numbers)

        run_tasks(work, [(i, part) for i in range(n_z) for part in range(parts)], threads)
        for part in range(parts):
            self._count(slice(z, z + n_z), counts[:, part], extremes[:, part])
        if bottom < stop:
            for plane, above, rows in zip(range(z, z + n_z), begun, block[:, max(bottom - y, 0) :], strict=True):
                self._begun[plane] = np.concatenate([above, rows]) if bottom == top else rows.copy()

    def _shrink(
        self, rows: Sequence[np.ndarray], at: tuple[int, int], plane: int, counts: np.ndarray, extremes: np.ndarray
    ) -> None:
        """Write the block means of rows (y, x) of a plane, given as parts that together are complete blocks."""
        from n4flow.statistics import block_mean_kernels as kernels

        values = scratch("shrink", (1, sum(map(len, rows)), rows[0].shape[1]), np.float32)
        with within_float32():
            np.concatenate(rows, out=values[0], casting="unsafe")
        means = self.mean[plane : plane + 1], self.valid[plane : plane + 1]
        place = at, self.shape[1:], self.k, *means, *kernels.NO_EDGES
        kernels.shrink_tile(values, *place, counts, extremes)
        if self._top is not None and extremes[0, 1] >= self._top:
            counts[0, PLANE_COUNTS.index("n_saturated")] += sum(np.count_nonzero(part == self._top) for part in rows)


def plane_numbers(counts: np.ndarray, extremes: np.ndarray) -> dict[str, np.ndarray]:
    """Return counts and extremes (Z, ...) by name; the extremes of a plane without valid voxels are 0."""
    numbers: dict[str, np.ndarray] = {name: counts[:, i] for i, name in enumerate(PLANE_COUNTS)}
    some = numbers["n_valid"] > 0
    numbers["minimum"] = np.where(some, extremes[:, 0], 0.0)
    numbers["maximum"] = np.where(some, extremes[:, 1], 0.0)
    return numbers


class Tile:
    """Contributions of one part of some planes to the k x k blocks that it touches.

    Parameters
    ----------
    means : TileShrinker
        Receives the means of blocks that lie in this tile alone.
    at : (z, y, x)
        Position of its first voxel.
    shape : (z, y, x)
    """

    def __init__(self, means: TileShrinker, at: tuple[int, int, int], shape: tuple[int, ...]) -> None:
        from n4flow.statistics import block_mean_kernels as kernels

        self.means, self.at, self.shape = means, at, shape
        axes = zip(at[1:], shape[1:], means.shape[1:], strict=True)
        rows, columns = (kernels.blocks_of(*axis, means.k) for axis in axes)
        shared = np.ones((rows[1], columns[1]), bool)  # the blocks that other tiles touch, too
        shared[slice(*rows[2:]), slice(*columns[2:])] = False
        down, across = np.nonzero(shared)
        self.places = (rows[0] + down) * means.mean.shape[2] + columns[0] + across  # among the blocks of a plane
        self.edges = np.empty((shape[0], down.size)), np.empty((shape[0], down.size), np.int32)
        self._own_places = np.flatnonzero(shared)  # the same among those of the tile
        self.counts = np.zeros((shape[0], len(PLANE_COUNTS)), np.int64)
        self.extremes = np.tile([np.inf, -np.inf], (shape[0], 1))

    def add(self, first: int, values: np.ndarray) -> None:
        """Add whole planes (z, y, x) of the tile, float32, from its plane `first` on."""
        from n4flow.statistics import block_mean_kernels as kernels

        planes = slice(first, first + len(values))
        inside = slice(self.at[0] + first, self.at[0] + first + len(values))
        place = self.at[1:], self.means.shape[1:], self.means.k, self.means.mean[inside], self.means.valid[inside]
        state = (part[planes] for part in (*self.edges, self.counts, self.extremes))
        kernels.shrink_tile(values, *place, self._own_places, *state)


class TileShrinker(BlockMeans):
    """Block means of planes that arrive in tiles.

    The contributions of several tiles to a block are added in the order of their rows and columns.
    """

    def __init__(self, shape: tuple[int, int, int], k: int) -> None:
        super().__init__(shape, k)
        self._open: slice | None = None
        # blocks that several tiles touch, by their index in a plane: which they are, sums, and invalid voxels
        self._shared = np.zeros(self.mean[0].size, bool)
        self._sums, self._lost = np.zeros((0, self._shared.size)), np.zeros((0, self._shared.size), np.int32)

    def merge(self, planes: slice, tiles: Iterable[Tile]) -> None:
        """Merge complete tiles of the same planes; tiles of other planes end the planes before."""
        from n4flow.statistics import block_mean_kernels as kernels

        if self._open != planes:
            self.finish()
            self._open = planes
            shape = planes.stop - planes.start, self._shared.size
            if len(self._sums) < shape[0]:
                self._sums, self._lost = np.zeros(shape), np.zeros(shape, np.int32)
        for tile in sorted(tiles, key=lambda tile: tile.at):
            first = tile.at[0] - planes.start
            inside = slice(first, first + tile.shape[0])
            kernels.add_edges(*tile.edges, tile.places, self._sums[inside], self._lost[inside])
            self._shared[tile.places] = True
            self._count(slice(tile.at[0], tile.at[0] + tile.shape[0]), tile.counts, tile.extremes)

    def finish(self) -> None:
        """Write the means of the planes that were merged last."""
        if self._open is not None:
            down, across = (np.minimum(n - np.arange(0, n, self.k), self.k) for n in self.shape[1:])
            places, depth = np.flatnonzero(self._shared), self._open.stop - self._open.start
            voxels = np.outer(down, across).reshape(-1)[places]
            n = voxels - self._lost[:depth, places]
            means, shares = (part[self._open].reshape(depth, -1) for part in (self.mean, self.valid))
            means[:, places] = self._sums[:depth, places] / np.where(n > 0, n, 1)
            shares[:, places] = n / voxels
            self._sums[:depth, places], self._lost[:depth, places] = 0, 0
            self._open, self._shared[:] = None, False


class PlaneCounter:
    """Histograms of planes whose rows are added in any order."""

    def __init__(self, n_planes: int) -> None:
        self._pieces: list[tuple[list[Lists], ...]] = [([], [], []) for _plane in range(n_planes)]

    def add(self, plane: int, rows: np.ndarray, classes: np.ndarray, k: int = 1, y: int = 0) -> None:
        """Count rows of a plane; two threads must not add to the same plane at a time.

        Parameters
        ----------
        plane : int
        rows : (y, X) float32 array
        classes : (blocks down, blocks across) uint8 array
            Class of each k x k block of a part of the plane: 0 tissue, 1 agarose, 2 the rest.
        k : int
        y : int
            Row of this part that `rows` begin with.
        """
        from n4flow.statistics import histogram_kernels as kernels

        if not hasattr(_tables, "words"):
            _tables.words = np.zeros(3 * 2 * N_BINS + 1, np.int64)  # all zeros between calls
        most = max(1, kernels.PIECE_VOXELS // rows.shape[1])
        for start in range(0, len(rows), most):
            part = rows[start : start + most]
            low, high = kernels.count_rows(part.view(np.int32), classes, k, y + start, _tables.words)
            room = scratch("counted", (3, max(0, high - low + 1)), np.int64)
            for i, lists in enumerate(self._pieces[plane]):
                for sign in range(2):
                    first = (2 * i + sign) * N_BINS
                    n = kernels.drain(_tables.words, first + low, first + high + 1, room)
                    if n:
                        bins, counts, sums = room[:, :n].copy()
                        lists.append((bins - 2 * i * N_BINS, counts, sums))
                if len(lists) > MOST_PIECES:
                    lists[:] = [add_up(lists)]
            _tables.words[-1] = 0

    def lists(self, plane: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return (values float32, counts uint32) of a plane for the three classes, and release them."""
        pieces, self._pieces[plane] = self._pieces[plane], ([], [], [])
        return [pairs_of_bins(*add_up(parts)) for parts in pieces]


def class_rows(tissue: Any, agarose: Any, shape: tuple[int, int]) -> np.ndarray:
    """Return the class of each position (y, x) as uint8: 0 tissue, 1 agarose outside tissue, 2 the rest."""
    classes = np.full(shape, 2, np.uint8)
    if agarose is not None:
        classes[agarose] = 1
    if tissue is not None:
        classes[tissue] = 0
    return classes
