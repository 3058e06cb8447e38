"""Histograms of planes, in memory or in the files of slabs, and statistics that are computed from them."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from n4flow.errors import InputError
from n4flow.statistics.bins import bin_edges
from n4flow.statistics.plane_file import PieceFile, codec, write_pieces
from n4flow.statistics.pooling import Pool, pool, weighted_percentile

CLASSES = ("tissue", "agarose", "other")

Pairs = tuple[np.ndarray, np.ndarray]


class Distributions(ABC):
    """Exact counts of the valid voxels of every plane, separately for tissue, agarose and the rest.

    Attributes
    ----------
    z_start : int
        Index of the first plane; methods take plane indices of the whole volume.
    bins : (3, Z) int64 array
        Bins in use, per class and plane.
    """

    z_start: int
    bins: np.ndarray

    @abstractmethod
    def _pairs(self, row: int, c: int) -> Pairs:
        """Return (values float32, counts uint32) of class `c` of the plane `row` planes after the first."""

    @property
    def n_planes(self) -> int:
        """Planes that the histograms cover."""
        return self.bins.shape[1]

    @property
    def filled(self) -> np.ndarray:
        """Which planes have valid voxels, (Z,) bool."""
        return np.asarray(self.bins.any(axis=0))

    def pairs(self, z: int, cls: str = "all") -> Pairs:
        """Return (values float32, counts int64) of plane `z`; `cls` is tissue, agarose, other or all."""
        row = z - self.z_start
        if not 0 <= row < self.n_planes:
            msg = f"plane must be from {self.z_start} to {self.z_start + self.n_planes - 1}, got {z}"
            raise InputError(msg)
        if cls == "all":
            parts = [self._pairs(row, c) for c in range(len(CLASSES))]
            return pool(np.concatenate([v for v, _n in parts]), np.concatenate([n for _v, n in parts]))
        values, counts = self._pairs(row, CLASSES.index(cls))
        return values, counts.astype(np.int64)

    def pooled(self, planes: Iterable[int], cls: str = "all") -> Pairs:
        """Return the pairs of several planes together."""
        pooled = Pool()
        for z in planes:
            pooled.add(*self.pairs(z, cls))
        return pooled.pairs()

    def count(self, z: int, cls: str = "all") -> int:
        """Return the number of voxels of plane `z`."""
        names = CLASSES if cls == "all" else (cls,)
        return sum(int(self.pairs(z, name)[1].sum()) for name in names)

    def mean(self, z: int, cls: str = "all") -> float:
        """Return the mean of plane `z`, NaN when it has no voxels."""
        values, counts = self.pairs(z, cls)
        return float(counts @ values.astype(np.float64) / counts.sum()) if len(counts) else float("nan")

    def percentile(self, z: int, q: float, cls: str = "all") -> float:
        """Return the q-th percentile (0 to 100) of plane `z` within one bin, NaN when it has no voxels."""
        return weighted_percentile(*self.pairs(z, cls), q)

    def median(self, z: int, cls: str = "all") -> float:
        """Return the median of plane `z` within one bin, NaN when it has no voxels."""
        return self.percentile(z, 50.0, cls)

    def highest(self, z: int) -> float:
        """Return what no valid voxel of plane `z` exceeds, within one bin of the brightest; -inf without voxels."""
        found = -np.inf
        for name in CLASSES:
            values, counts = (part[-1:] for part in self.pairs(z, name))
            lower, upper = bin_edges(values)
            found = max(found, np.where((counts == 1) | (values == lower), values, upper).max(initial=found))
        return float(found)

    def per_plane(self, *asked: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
        """Return statistics of every plane, each a (Z,) array, in one pass over the planes.

        Parameters
        ----------
        *asked : tuple
            Name of a method (`count`, `mean`, `median`, `percentile`) and its arguments after the plane.
        """
        planes = range(self.z_start, self.z_start + self.n_planes)
        found = [[getattr(self, name)(z, *args) for name, *args in asked] for z in planes]
        return tuple(np.array(column) for column in zip(*found, strict=True))


@dataclass
class PlaneHistograms(Distributions):
    """Histograms of planes in memory.

    Parameters
    ----------
    z_start : int
        Index of the first plane.
    offsets : (3, Z + 1) int64 array
        Start of each plane's bins in `values[c]` and `counts[c]`, per class.
    values : three float32 arrays
        Mean of the voxels of each bin in use, ascending within a plane.
    counts : three uint32 arrays
        Voxels in each bin.
    """

    z_start: int
    offsets: np.ndarray
    values: tuple[np.ndarray, ...]
    counts: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        self.bins = np.diff(self.offsets, axis=1)

    @classmethod
    def of_planes(cls, lists: Sequence[Sequence[Pairs]], z_start: int = 0) -> Self:
        """Combine (values, counts) of the three classes of each plane."""
        values = tuple(np.concatenate([plane[c][0] for plane in lists]) for c in range(3))
        counts = tuple(np.concatenate([plane[c][1] for plane in lists]) for c in range(3))
        lengths = np.array([[len(plane[c][0]) for plane in lists] for c in range(3)])
        offsets = np.concatenate([np.zeros((3, 1), np.int64), np.cumsum(lengths, axis=1)], axis=1)
        return cls(int(z_start), offsets, values, counts)

    def _pairs(self, row: int, c: int) -> Pairs:
        part = slice(self.offsets[c, row], self.offsets[c, row + 1])
        return self.values[c][part], self.counts[c][part]

    def save(self, path: str | Path) -> None:
        """Write to an .npz file from which `HistogramFiles` reads planes.

        Each class of a plane is compressed alone: differences of the bits of successive values, then counts.
        """
        pieces = []
        for row, c in itertools.product(range(self.n_planes), range(len(CLASSES))):
            values, counts = self._pairs(row, c)
            steps = np.diff(values.view(np.uint32), prepend=np.uint32(0))
            pieces.append(codec().encode(np.concatenate([steps, counts])) if len(counts) else b"")
        write_pieces(path, {"z_start": np.array(self.z_start), "bins": self.bins}, pieces)

    @classmethod
    def concatenate(cls, slabs: Sequence[Self]) -> Self:
        """Join slabs of one volume, in any order; a gap or an overlap is an InputError."""
        slabs = sorted(slabs, key=lambda slab: slab.z_start)
        check_successive([(slab.z_start, slab.n_planes) for slab in slabs])
        lengths = np.concatenate([slab.bins for slab in slabs], axis=1)
        offsets = np.concatenate([np.zeros((3, 1), np.int64), np.cumsum(lengths, axis=1)], axis=1)
        return cls(
            slabs[0].z_start,
            offsets,
            tuple(np.concatenate(v) for v in zip(*(s.values for s in slabs), strict=True)),
            tuple(np.concatenate(n) for n in zip(*(s.counts for s in slabs), strict=True)),
        )


class HistogramFiles(Distributions):
    """Histograms of planes in the files of slabs that `PlaneHistograms.save` wrote; one file is in memory at a time.

    Parameters
    ----------
    paths : sequence of path
        Files of all slabs, in any order.

    Raises
    ------
    InputError
        A slab is missing or given twice, or a file is damaged.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        files = sorted(map(PieceFile, paths), key=lambda file: int(file.head["z_start"]))
        check_successive([(int(file.head["z_start"]), file.head["bins"].shape[1]) for file in files])
        self.z_start = int(files[0].head["z_start"])
        self.bins = np.concatenate([file.head["bins"] for file in files], axis=1)  # (3, Z), in use
        self._places = [(file, row) for file in files for row in range(file.head["bins"].shape[1])]
        self._held: tuple[PieceFile | None, list[bytes]] = (None, [])

    def _pairs(self, row: int, c: int) -> Pairs:
        file, within = self._places[row]
        if not self.bins[c, row]:
            return np.empty(0, np.float32), np.empty(0, np.uint32)
        held, pieces = self._held
        if held is not file:
            pieces = file.read(0, len(file))
            self._held = file, pieces
        steps, counts = np.frombuffer(codec().decode(pieces[len(CLASSES) * within + c]), np.uint32).reshape(2, -1)
        return np.cumsum(steps, dtype=np.uint32).view(np.float32), counts


def check_successive(slabs: Sequence[tuple[int, int]]) -> None:
    """Raise an InputError for slabs (first plane, number of planes), in order of Z, with a gap or an overlap."""
    for (start, n_planes), (following, _planes) in itertools.pairwise(slabs):
        if start + n_planes != following:
            stop = start + n_planes
            msg = f"slabs must follow each other: one ends before plane {stop}, the next begins at {following}"
            raise InputError(msg)
