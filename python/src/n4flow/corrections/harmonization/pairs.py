"""Pairs of neighbouring planes: what the voxels above each other say, and how much of it anatomy may have done."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from n4flow.compute.threads import over_planes
from n4flow.corrections.harmonization import kernels
from n4flow.corrections.harmonization.evidence import Components, Shifts, components
from n4flow.corrections.harmonization.geometry import Geometry, N
from n4flow.corrections.harmonization.system import Chain

WEIGHT = 0.3  # Weight of one voxel: neighbouring voxels are not independent.
SAMPLES = 20000  # Voxels of a pair from which its scatter is measured.
LEAST_SCATTER = 1e-3
TEXTURE = 0.15  # Initial sd, in units of the scatter, of what anatomy changes unevenly over a plane.
LEAST_TEXTURE = 0.003
LEVEL = np.full((N, N), 1 / N**2)  # Quadratic form that is the square of the mean of a lattice.


class Pairs:
    """The pairs that are compared, with the normal equations of their log ratios; made of what an `Estimator` is."""

    def __init__(self, logs: np.ndarray, inside: np.ndarray, geometry: Geometry, fewest: int) -> None:
        self.logs, self.inside, self.axes, self.roughness = logs, inside, geometry.axes, geometry.roughness
        planes = np.flatnonzero(inside.sum(axis=(1, 2)) >= fewest)
        self.live, row = np.unique(geometry.section[planes], return_inverse=True)
        overlap = [(inside[a] & inside[b]).sum() for a, b in pairwise(planes)]
        self.chain = Chain(planes, row, np.flatnonzero(np.array(overlap) >= fewest))
        self.depth, self.drift = geometry.depth[planes], geometry.drift[planes]
        self.texture = TEXTURE**2
        self.found: Components | None = None
        count = len(self.chain.pairs)
        self.gram, self.right, self.scatter = np.zeros((count, N, N)), np.zeros((count, N)), np.zeros(count)

    def ratio(self, i: int) -> tuple[float, float]:
        """Return median and robust sd of the log ratio of plane i + 1 of the chain to plane i."""
        a, b = self.chain.planes[i : i + 2]
        found: tuple[float, float] = kernels.log_ratio(
            self.logs[a], self.logs[b], self.inside[a], self.inside[b], SAMPLES
        )
        return found

    def noise(self) -> float:
        """Return the sd of a voxel's log intensity, from the differences of neighbouring planes."""
        if not len(self.chain.pairs):
            return 0.0
        return float(np.median([self.ratio(i)[1] for i in self.chain.pairs])) / np.sqrt(2)

    def look(self, corrected: np.ndarray, *, middles: bool) -> None:
        """Set up the normal equations, weighted by how near log ratios are to 0, or with `middles` to the median."""
        pairs, planes = self.chain.pairs, self.chain.planes
        what = corrected, self.logs, self.inside, planes[pairs], planes[pairs + 1]
        how = middles, SAMPLES, LEAST_SCATTER, WEIGHT
        over_planes(kernels.look_at_pairs, len(pairs), *what, how, *self.axes, self.scatter, self.gram, self.right)

    def judge(self) -> Components | None:
        """Return what the shifts between planes say of gains, jitter and anatomy; None without a pair."""
        upper = self.chain.pairs
        if not len(upper):
            return None
        weight = np.maximum(self.gram.sum(axis=(1, 2)), 1e-9)
        shift = self.right.sum(axis=1) / weight
        gap = np.diff(self.chain.planes)[upper].astype(float)
        depth, drift = self.depth[upper + 1] - self.depth[upper], self.drift[upper] * gap[:, None]
        row = self.chain.row
        self.found = components(Shifts(shift, self.scatter, 1 / weight, upper, upper + 1, row, depth, drift))
        return self.found

    def without_own(self, lattice: np.ndarray, anatomy: float, *, learn: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the normal equations when every pair may also have changed by anatomy of its own.

        A smooth field for each pair is integrated out: even in plane by `anatomy` (variance) and uneven by `texture`,
        both in units of the pair's scatter. What cuts have beyond it is the instrument's.

        Parameters
        ----------
        lattice : (planes, n) array
            The log field so far; with `learn`, `texture` is set to what is left over between planes of one section.
        """
        upper = self.chain.pairs
        wide = self.scatter if self.found is None else self.found.scatter
        precision = (self.roughness / self.texture + LEVEL / anatomy) / wide[:, None, None] ** 2
        inverse = np.linalg.inv(self.gram + precision)
        if learn and len(upper):
            inner = self.chain.row[upper] == self.chain.row[upper + 1]
            inner |= not inner.any()  # sections of one plane: nothing tells the two apart, and it is taken for anatomy
            change = lattice[upper + 1] - lattice[upper]
            left = self.right - np.einsum("kab,kb->ka", self.gram, change)
            own = np.einsum("kab,kb->ka", inverse, left)[inner] / wide[inner, None]
            size = float(np.einsum("ka,ab,kb->", own, self.roughness, own))
            trace = float((self.roughness * inverse[inner] / wide[inner, None, None] ** 2).sum())
            n = int(inner.sum()) * (N - 1)
            free = max(n - trace / self.texture, 0.02 * n)
            self.texture = float(np.clip(size / free, LEAST_TEXTURE**2, 1))
        kept = self.gram @ inverse
        gram = self.gram - kept @ self.gram
        return (gram + gram.transpose(0, 2, 1)) / 2, self.right - np.einsum("kab,kb->ka", kept, self.right)
