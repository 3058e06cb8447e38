"""The unknowns of the harmonisation: where planes lie in sections, and the bases of every term."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import DTypeLike

from n4flow.n4_bias import bspline

SPANS = 3  # Spans of the lattice along Y and X: what is finer is taken for anatomy.
CONTROLS = SPANS + 3
N = CONTROLS**2  # Control points of one plane.
DEGREES = 2  # Legendre polynomials of the depth in a section, with which shading changes.
PLANES_PER_KNOT = 15  # Planes to a knot of the slow drift along the stack,
MOST_KNOTS = 18  # and its knots at most.
SLOPE = 0.1  # Weight of the first derivative in the roughness.

SIDE = 96  # Samples along the longer side of the fitted grid: fields are smooth, and coarse samples hide misalignment.
FEWEST_SIDE = 24  # Samples along the shorter side at least, if the shrunken volume has as many.


@dataclass(frozen=True)
class Geometry:
    """Planes, sections, and bases on the grid that is fitted."""

    shape: tuple[int, int, int]  # (Z, y, x) of that grid
    edges: np.ndarray  # (sections + 1,) int: first plane of every section, and the number of planes

    @cached_property
    def section(self) -> np.ndarray:
        """(Z,) section of each plane."""
        return np.repeat(np.arange(len(self.edges) - 1), np.diff(self.edges))

    @cached_property
    def matrices(self) -> tuple[np.ndarray, ...]:
        """(y, c) and (x, c): the values of a lattice's spline are rows @ lattice @ columns.T."""
        return tuple(
            bspline.weight_matrix(bspline.sample_coordinates(size, CONTROLS), CONTROLS) for size in self.shape[1:]
        )

    @cached_property
    def axes(self) -> tuple[np.ndarray, ...]:
        """First control and weights of each row, then of each column."""
        found: list[np.ndarray] = []
        for size in self.shape[1:]:
            found += bspline.axis_weights(bspline.sample_coordinates(size, CONTROLS), CONTROLS)
        return tuple(found)

    @cached_property
    def depth(self) -> np.ndarray:
        """(Z, degrees): Legendre polynomials of the depth in the section, without the constant."""
        return depth_basis(self.edges, np.arange(self.shape[0]))

    @cached_property
    def drift(self) -> np.ndarray:
        """(Z, knots): basis of what changes slowly along the stack."""
        spans = max(1, min(round(self.shape[0] / PLANES_PER_KNOT), MOST_KNOTS))
        return bspline.weight_matrix(bspline.sample_coordinates(self.shape[0], spans + 3), spans + 3)

    @cached_property
    def roughness(self) -> np.ndarray:
        """(n, n) penalty on a lattice, scaled so that a prior of variance 1 makes fields of rms 1 (level aside).

        Squares of second differences, and a little of first ones.
        """

        def differences(order: int) -> np.ndarray:
            d = np.diff(np.eye(CONTROLS), order, axis=0)
            return np.asarray(d.T @ d)

        one, flat = np.eye(CONTROLS), np.eye(N) - 1 / N
        q = np.kron(differences(2), one) + 2 * np.kron(differences(1), differences(1)) + np.kron(one, differences(2))
        q += SLOPE * (np.kron(differences(1), one) + np.kron(one, differences(1)))
        by, bx = self.matrices
        mean_square = np.kron(by.T @ by / len(by), bx.T @ bx / len(bx))
        return np.asarray(q * np.trace(mean_square @ flat @ np.linalg.inv(q + 1e-3 * np.eye(N)) @ flat))


def depth_basis(edges: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """Return (planes, degrees): Legendre polynomials of the depth below the cut, in units of the longest section.

    The longest section has depth -1 to 1; an instrument attenuates by the micrometre, not by the section.
    """
    section = np.searchsorted(edges, planes, side="right") - 1
    longest = int(np.diff(edges).max())
    t = 2 * (planes - edges[section]) / max(longest - 1, 1) - 1
    return np.stack([np.polynomial.legendre.Legendre.basis(k)(t) for k in range(1, DEGREES + 1)], axis=1)


def fit_step(height: int, width: int) -> int:
    """Return how many shrunken voxels make a sample of the fitted grid.

    >>> fit_step(500, 400), fit_step(80, 60), fit_step(512, 40)
    (6, 1, 1)
    """
    return max(1, min(math.ceil(max(height, width) / SIDE), min(height, width) // FEWEST_SIDE))


def block_sums(values: np.ndarray, k: int, dtype: DTypeLike | None = None) -> np.ndarray:
    """Return sums of k x k blocks in plane, in the array's or another type; those at the border may be smaller."""
    for before in ((slice(None),), (slice(None), slice(None))):
        sums = values[*before, ::k].astype(dtype or values.dtype)
        for i in range(1, k):  # Slices take a third of the time of `numpy.add.reduceat`.
            others = values[*before, i::k]
            sums[*before, : others.shape[len(before)]] += others
        values = sums
    return values


def block_means(values: np.ndarray, k: int) -> np.ndarray:
    """Return means of k x k blocks in plane; those at the border may be smaller."""
    down, across = (np.minimum(k, n - np.arange(0, n, k)) for n in values.shape[1:])
    return np.asarray(block_sums(values, k, np.float64) / np.outer(down, across), np.float32)
