"""The normal equations of all sections together, and their solution in time proportional to planes and sections.

Unknowns: a lattice S and, for each plane with tissue, a gain j in every section; and the border [D, d, b] that all
sections share. Pairs of neighbouring planes and the planes' levels couple each j to the next and to its section's S,
and the last plane of a section to the first of the next. So the gains inside a section are eliminated first
(tridiagonal), then the sections one after the other (block tridiagonal), then the border. On the way back come the
blocks of the inverse that prior variances and uncertainties need.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solveh_banded

from n4flow.corrections.harmonization.geometry import DEGREES, N

P = N + 2  # unknowns that a section keeps until the end: its lattice, and the gains of its first and last plane
D = slice(0, DEGREES * N)  # place of the depth's lattices in the border


@dataclass(frozen=True)
class Chain:
    """The planes that take part, in order."""

    planes: np.ndarray  # (m,) int: their indices
    row: np.ndarray  # (m,) int: their sections, numbered without those that take no part
    pairs: np.ndarray  # (k,) int: i for each pair (i, i + 1) of `planes` that is compared

    @property
    def n_sections(self) -> int:
        """Sections that take part."""
        return int(self.row[-1]) + 1

    @property
    def starts(self) -> np.ndarray:
        """(sections + 1,): first of each section in `planes`."""
        return np.searchsorted(self.row, np.arange(self.n_sections + 1))


@dataclass(frozen=True)
class Solution:
    """Means and what is needed of the covariance."""

    lattices: np.ndarray  # (sections, n)
    gains: np.ndarray  # (m,)
    border: np.ndarray  # (q,)
    lattice_covariance: np.ndarray  # (sections, n, n)
    border_covariance: np.ndarray  # (q, q)


class System:
    """Normal equations to which pairs, levels and priors are added.

    Parameters
    ----------
    chain : Chain
    depth : (m, degrees) array
        Basis of the depth at the planes of the chain.
    drift : (m, knots) array
        Basis of the slow drift there.
    """

    def __init__(self, chain: Chain, depth: np.ndarray, drift: np.ndarray) -> None:
        self.chain, self.depth, self.drift = chain, depth, drift
        n_s, m, knots = chain.n_sections, len(chain.planes), drift.shape[1]
        self.slow = slice(D.stop, D.stop + knots)  # d, which is corrected
        self.anatomy = slice(D.stop + knots, D.stop + 2 * knots)  # b, which is not
        q = self.anatomy.stop
        self.lattice = np.zeros((n_s, N, N))
        self.lattice_next = np.zeros((n_s, N, N))  # with the next section's lattice
        self.lattice_gain = np.zeros((m, N))  # of a gain with its own section's lattice
        self.lattice_gain_next = np.zeros((n_s, 2, N))  # this lattice, next first gain; next lattice, this last gain
        self.gain, self.gain_next = np.zeros(m), np.zeros(m)
        self.lattice_border, self.gain_border = np.zeros((n_s, N, q)), np.zeros((m, q))
        self.border = np.zeros((q, q))
        self.right_lattice, self.right_gain, self.right_border = np.zeros((n_s, N)), np.zeros(m), np.zeros(q)

    def add_pairs(self, gram: np.ndarray, right: np.ndarray, scatter: np.ndarray) -> None:
        """Add what the log ratios of pairs say, in the order of `chain.pairs`.

        Parameters
        ----------
        gram, right : (k, n, n), (k, n) arrays
        scatter : (k,) array
            By which anatomy's drift b is multiplied.
        """
        a = self.chain.pairs
        b, row = a + 1, self.chain.row
        gap = np.diff(self.chain.planes)[a].astype(float)
        depth = self.depth[b] - self.depth[a]
        scalar = np.hstack([self.drift[b] - self.drift[a], self.drift[a] * (gap * scatter)[:, None]])
        h, total = gram.sum(axis=2), right.sum(axis=1)
        n = h.sum(axis=1)
        self.gain += np.bincount(a, n, len(self.gain)) + np.bincount(b, n, len(self.gain))
        self.gain_next[a] -= n
        edge = np.hstack([(depth[:, :, None] * h[:, None]).reshape(len(a), -1), n[:, None] * scalar])
        self.gain_border[b] += edge
        self.gain_border[a] -= edge
        self.right_gain[b] += total
        self.right_gain[a] -= total
        for i in range(DEGREES):
            place = slice(i * N, (i + 1) * N)
            for k in range(DEGREES):
                block = np.tensordot(depth[:, i] * depth[:, k], gram, axes=1)
                self.border[place, k * N : (k + 1) * N] += block
            mixed = (depth[:, i, None] * h).T @ scalar
            self.border[place, D.stop :] += mixed
            self.border[D.stop :, place] += mixed.T
            self.right_border[place] += depth[:, i] @ right
        self.border[D.stop :, D.stop :] += (n[:, None] * scalar).T @ scalar
        self.right_border[D.stop :] += total @ scalar
        for k in np.flatnonzero(row[a] != row[b]).tolist():  # across a cut
            s, first, last = (int(i) for i in (row[a[k]], a[k], b[k]))
            self.lattice[s] += gram[k]
            self.lattice[s + 1] += gram[k]
            self.lattice_next[s] -= gram[k]
            self.lattice_gain[first] += h[k]
            self.lattice_gain[last] += h[k]
            self.lattice_gain_next[s] -= h[k]
            edges = np.hstack([*(depth[k, i] * gram[k] for i in range(DEGREES)), np.outer(h[k], scalar[k])])
            self.lattice_border[s + 1] += edges
            self.lattice_border[s] -= edges
            self.right_lattice[s + 1] += right[k]
            self.right_lattice[s] -= right[k]

    def add_levels(self, h: np.ndarray, n: np.ndarray, level: np.ndarray) -> None:
        """Add one number for each plane: the mean distance of its tissue from the classes.

        Parameters
        ----------
        h : (m, n) array
            Sum of weights times spline weights.
        n : (m,) array
            Sum of weights.
        level : (m,) array
            Weighted mean of log intensity minus class mean.
        """
        n = np.maximum(n, 1e-12)
        edge = np.zeros((len(n), len(self.border)))
        edge[:, D] = (self.depth[:, :, None] * h[:, None]).reshape(len(n), -1)
        edge[:, self.slow] = n[:, None] * self.drift
        self.gain += n
        self.lattice_gain += h
        self.gain_border += edge
        self.right_gain += n * level
        self.border += (edge / n[:, None]).T @ edge
        self.right_border += level @ edge
        starts = self.chain.starts
        for s in range(self.chain.n_sections):
            part = slice(starts[s], starts[s + 1])
            scaled = h[part] / n[part, None]
            self.lattice[s] += scaled.T @ h[part]
            self.lattice_border[s] += scaled.T @ edge[part]
            self.right_lattice[s] += level[part] @ h[part]

    def add_priors(self, lattice: np.ndarray, gain: float, border: np.ndarray) -> None:
        """Add prior precisions: of every lattice (n, n), of every gain, of the border (q, q)."""
        self.lattice += lattice
        self.gain += gain
        self.border += border

    def solve(self) -> Solution:
        """Eliminate gains, sections and border, and go back."""
        n_s, q, starts = self.chain.n_sections, len(self.border), self.chain.starts
        diagonal, sides = np.zeros((n_s, P, P)), np.zeros((n_s, P, q))
        right, nexts = np.zeros((n_s, P)), np.zeros((n_s, P, P))
        border, right_border = self.border.copy(), self.right_border.copy()
        inner: list[tuple[slice, np.ndarray] | None] = []
        for s in range(n_s):
            first, stop = starts[s], starts[s + 1]
            last = stop - 1
            diagonal[s, :N, :N] = self.lattice[s]
            ends = [(N, first), (N + 1, last)] if last > first else [(N, first)]
            if last == first:
                diagonal[s, N + 1, N + 1] = 1.0  # stands for the gain that is not there
            for place, plane in ends:
                diagonal[s, place, place] = self.gain[plane]
                diagonal[s, place, :N] = diagonal[s, :N, place] = self.lattice_gain[plane]
                sides[s, place], right[s, place] = self.gain_border[plane], self.right_gain[plane]
            sides[s, :N], right[s, :N] = self.lattice_border[s], self.right_lattice[s]
            if last == first + 1:
                diagonal[s, N, N + 1] = diagonal[s, N + 1, N] = self.gain_next[first]
            if s + 1 < n_s:
                tail = ends[-1][0]
                nexts[s, :N, :N] = self.lattice_next[s]
                nexts[s, :N, N] = nexts[s, tail, :N] = self.lattice_gain_next[s, 0]
                nexts[s, tail, N] = self.gain_next[last]
            inner.append(None)
            if last > first + 1:
                inside = slice(first + 1, last)
                bands = np.zeros((2, last - first - 1))
                bands[1] = self.gain[inside]
                bands[0, 1:] = self.gain_next[first + 1 : last - 1]
                coupled = np.zeros((last - first - 1, P + q + 1))
                coupled[:, :N] = self.lattice_gain[inside]
                coupled[0, N], coupled[-1, N + 1] = self.gain_next[first], self.gain_next[last - 1]
                coupled[:, P:-1], coupled[:, -1] = self.gain_border[inside], self.right_gain[inside]
                solved = coupled / bands[1] if len(coupled) == 1 else solveh_banded(bands, coupled, check_finite=False)
                schur = coupled[:, :-1].T @ solved
                diagonal[s] -= schur[:P, :P]
                sides[s] -= schur[:P, P:-1]
                right[s] -= schur[:P, -1]
                border -= schur[P:, P:-1]
                right_border -= schur[P:, -1]
                inner[s] = (inside, solved)
        sections, shared, covariances, corner = _eliminate(diagonal, nexts, sides, border, right, right_border)
        gains = np.zeros(len(self.gain))
        for s in range(n_s):
            first, last = starts[s], starts[s + 1] - 1
            gains[last], gains[first] = sections[s, N + 1], sections[s, N]  # a single plane is the first
            part = inner[s]
            if part is not None:
                inside, solved = part
                gains[inside] = solved[:, -1] - solved[:, :-1] @ np.concatenate([sections[s], shared])
        return Solution(sections[:, :N], gains, shared, covariances[:, :N, :N], corner)


def _eliminate(
    diagonal: np.ndarray,
    nexts: np.ndarray,
    sides: np.ndarray,
    border: np.ndarray,
    right: np.ndarray,
    right_border: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """Solve a block tridiagonal system with a border: x, x_border and their covariance; overwrites the arrays."""
    n_s, q = len(diagonal), len(border)
    kept = []
    for s in range(n_s):
        factor = cho_factor(diagonal[s], lower=True, check_finite=False)
        follow = nexts[s] if s + 1 < n_s else np.zeros((P, 0))
        width = follow.shape[1]
        solved = cho_solve(factor, np.hstack([follow, sides[s], right[s][:, None]]), check_finite=False)
        kept.append((factor, solved))
        if width:
            schur = follow.T @ solved
            diagonal[s + 1] -= schur[:, :width]
            sides[s + 1] -= schur[:, width:-1]
            right[s + 1] -= schur[:, -1]
        schur = sides[s].T @ solved[:, width:]
        border -= schur[:, :-1]
        right_border -= schur[:, -1]
    factor = cho_factor(border, lower=True, check_finite=False)
    shared, corner = cho_solve(factor, right_border), cho_solve(factor, np.eye(q))
    x, covariance, crossed = np.zeros((n_s, P)), np.zeros((n_s, P, P)), np.zeros((n_s, P, q))
    for s in range(n_s - 1, -1, -1):
        factor, solved = kept[s]
        if s + 1 == n_s:
            known, joint = shared, corner
        else:
            known = np.concatenate([x[s + 1], shared])
            joint = np.block([[covariance[s + 1], crossed[s + 1]], [crossed[s + 1].T, corner]])
        k = solved[:, :-1]
        x[s] = solved[:, -1] - k @ known
        through = k @ joint
        covariance[s] = cho_solve(factor, np.eye(P), check_finite=False) + through @ k.T
        crossed[s] = -through[:, -q:]
    return x, shared, covariance, corner
