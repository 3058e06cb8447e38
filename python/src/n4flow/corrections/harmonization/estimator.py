"""The model of one volume, and its fit: pairs of planes, then levels, with prior variances found on the way.

    log observed(z, y, x) = log tissue + D(depth, y, x) + S_s(y, x) + j_z + d(z) [+ F(y, x)] + noise

Voxels that lie above each other show nearly the same tissue, so their robust log ratio gives D, j and differences of
S. What anatomy changes from plane to plane is fitted too, and not corrected: over many planes by b(z), in each pair by
a smooth field of its own; `evidence` tells their sizes from those of gain and jitter. Brightness over many planes needs
a level for each plane: its distance from the class means. It enters with a prior as wide as the gains that the pairs
prove (an instrument that jumps also drifts, one that does not is left alone), and only as far as classes get sharper by
it. F, which is the same in every plane, is in `stages`.

Prior variances of shading are the fixed points tau^2 = theta' Q theta / (n - tr(Q V) / tau^2) of D. J. C. MacKay,
Bayesian Interpolation, Neural Computation 4 (1992) 415-447.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from n4flow.compute.threads import over_planes
from n4flow.corrections.harmonization import kernels
from n4flow.corrections.harmonization.classes import CLASS_WEIGHT, Classes
from n4flow.corrections.harmonization.evidence import PROVEN
from n4flow.corrections.harmonization.geometry import CONTROLS, DEGREES, Geometry, N
from n4flow.corrections.harmonization.pairs import LEVEL, Pairs
from n4flow.corrections.harmonization.system import D, Solution, System

JUDGED = (2, 6, 11)  # passes after which the variances of gains are judged
TIE = 0.4  # sd of the drift along the stack over that of the gains
OVER_RELAXATION = 1.9
SETTLED = 3e-4  # rms change of the log field that ends the iterations
START = {"depth": 0.3, "section": 0.1, "gain": 0.3, "plane": 0.03, "anatomy": 0.15, "drift": 0.3}  # prior sd, log
LEAST = {"depth": 0.003, "section": 0.003}  # sd at least


@dataclass(frozen=True)
class Terms:
    """The terms of the log field except F: lattices (degrees, n), (sections, n), gains of the chain's planes, knots."""

    depth: np.ndarray
    section: np.ndarray
    plane: np.ndarray
    slow: np.ndarray

    def towards(self, other: Terms, share: float) -> Terms:
        """Return the terms that lie `share` of the way to others."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__)
        return Terms(*(mine + share * (theirs - mine) for mine, theirs in pairs))


class Estimator:
    """One volume on the fitted grid.

    Parameters
    ----------
    logs : (Z, y, x) float32 array
        Log intensity, 0 outside tissue.
    inside : (Z, y, x) bool array
        Tissue that is compared; planes that take no part are empty.
    geometry : Geometry
    fewest : int
        Voxels that a plane, and a pair of planes, must have.
    """

    def __init__(self, logs: np.ndarray, inside: np.ndarray, geometry: Geometry, fewest: int) -> None:
        self.logs, self.inside, self.geometry = logs, inside, geometry
        self.pairs = Pairs(logs, inside, geometry, fewest)
        self.chain, self.live = self.pairs.chain, self.pairs.live
        planes = self.chain.planes
        self.counts = inside.sum(axis=(1, 2))[planes]
        self.depth, self.drift = geometry.depth[planes], geometry.drift[planes]
        self.roughness = geometry.roughness
        self.variance = {name: sd**2 for name, sd in START.items()}
        self.attenuated = True  # until it is known
        self.lattice = np.zeros((len(planes), N))  # of every plane: all terms but F
        self.log_field = np.zeros_like(logs)
        self.shared = np.zeros(logs.shape[1:], np.float32)
        self.noise = self.pairs.noise()
        self.classes = Classes(inside, self.noise)
        self.solution: Solution
        self.passes = 0

    def _level_equations(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        planes, classes = self.chain.planes, self.classes
        found = np.zeros((len(planes), N)), np.zeros(len(planes)), np.zeros(len(planes))
        what = self.logs, self.shared, classes.weight, classes.target, self.inside, planes, np.float32(CLASS_WEIGHT)
        over_planes(kernels.level_equations, len(planes), *what, *self.geometry.axes, *found)
        return found

    def sections(self, pair_passes: int, level_passes: int) -> None:
        """Fit every term except F: `pair_passes` from pairs alone, then with levels until nothing moves."""
        for number in range(pair_passes + level_passes):
            pairs_alone = number < pair_passes
            corrected = self.even(self.shared)
            system = System(self.chain, self.depth, self.drift)
            self.pairs.look(corrected, middles=number == 0 and pairs_alone)
            if pairs_alone and number in JUDGED:
                self._judge()
            learn = number >= 2 or not pairs_alone
            equations = self.pairs.without_own(self.lattice, self.variance["anatomy"], learn=learn)
            system.add_pairs(*equations, self.pairs.scatter)
            if not pairs_alone:
                self.classes.update(corrected)
                system.add_levels(*self._level_equations())
            slow = 1e-3 if pairs_alone else max(1e-3, TIE * self.variance["gain"] ** 0.5)
            system.add_priors(*self._priors(system, slow))
            self.solution = system.solve()
            if learn:
                self._learn()
            change = self._move(OVER_RELAXATION if number > 3 else 1.0)
            self.passes += 1
            if not pairs_alone and number > pair_passes + 4 and change < SETTLED:
                break

    def _priors(self, system: System, slow: float) -> tuple[np.ndarray, float, np.ndarray]:
        q, variance = len(system.border), self.variance
        lattice = self.roughness / variance["section"] + LEVEL / variance["gain"]
        border = 1e-9 * np.eye(q)
        border[D, D] += self._depth_penalty / variance["depth"]
        knots = self.drift.shape[1]
        first = np.diff(np.eye(knots), axis=0)
        border[system.slow, system.slow] += (first.T @ first + 0.1 * np.eye(knots)) / slow**2
        border[system.anatomy, system.anatomy] += np.eye(knots) / variance["drift"]
        return lattice, 1 / variance["plane"], border

    @property
    def _depth_penalty(self) -> np.ndarray:
        return np.kron(np.diag(np.arange(1, DEGREES + 1) ** 2.0), self.roughness + LEVEL)

    def _judge(self) -> None:
        """Set the variances of gains, jitter and anatomy, and whether there is attenuation: by pairs alone."""
        found = self.pairs.judge()
        if found is None:
            return
        self.variance |= {name: sd**2 for name, sd in found.sd.items() if name != "depth"}
        attenuated = found.proof["depth"] >= PROVEN
        if attenuated != self.attenuated:
            self.variance["depth"] = (START if attenuated else LEAST)["depth"] ** 2
        self.attenuated = attenuated

    def _learn(self) -> None:
        """Set the prior variances of shading."""
        found, variance = self.solution, self.variance
        covariance = found.lattice_covariance.sum(axis=0)
        squares = found.lattices.T @ found.lattices
        depth, penalty = found.border[D], self._depth_penalty
        terms = {
            "depth": (depth @ penalty @ depth, (penalty * found.border_covariance[D, D]).sum(), len(depth)),
            "section": (
                (squares * self.roughness).sum(),
                (covariance * self.roughness).sum(),
                len(found.lattices) * (N - 1),
            ),
        }
        if not self.attenuated:
            del terms["depth"]
        for name, (size, trace, n) in terms.items():
            free = max(n - trace / variance[name], 0.02 * n)
            variance[name] = float(np.clip(size / free, LEAST[name] ** 2, 1))

    @property
    def terms(self) -> Terms:
        """What the last solution says."""
        found = self.solution
        return Terms(found.border[D].reshape(DEGREES, N), found.lattices, found.gains, found.border[self._slow])

    def take(self, terms: Terms) -> None:
        """Make these terms the log field."""
        self._move(1.0, terms)

    def _move(self, step: float, terms: Terms | None = None) -> float:
        """Bring the log field to `terms`, the solution's without any, by `step`; return the rms change in tissue."""
        terms = terms or self.terms
        lattice = terms.section[self.chain.row] + (terms.plane + self.drift @ terms.slow)[:, None]
        lattice += self.depth @ terms.depth
        self.lattice += step * (lattice - self.lattice)
        change = np.zeros(len(lattice))
        lattices, what = self.lattice.reshape(-1, CONTROLS, CONTROLS), (self.inside, self.chain.planes, self.log_field)
        over_planes(kernels.move_planes, len(lattice), lattices, *self.geometry.axes, *what, change)
        return float(np.sqrt(change.sum() / self.counts.sum()))

    @property
    def _slow(self) -> slice:
        return slice(D.stop, D.stop + self.drift.shape[1])

    def rms(self) -> float:
        """Return the rms of the log field in tissue about its mean."""
        values = [self.log_field[z][self.inside[z]] for z in self.chain.planes]
        return float(np.concatenate(values).std(dtype=float))

    def rms_section(self, terms: Terms) -> float:
        """Return the rms in tissue of the shading of sections, each about its mean."""
        total = 0.0
        for s, lattice in enumerate(terms.section):
            weights = self.inside[self.chain.planes[self.chain.row == s]].sum(axis=0)
            own = self.evaluated(lattice)
            own -= float((own * weights).sum() / weights.sum())
            total += float((own**2 * weights).sum())
        return float(np.sqrt(total / self.counts.sum()))

    def mean_field(self, shared: np.ndarray) -> float:
        """Return the mean of the log field over the tissue that took part, with the lattice of F."""
        total = sum(self.log_field[z][self.inside[z]].sum(dtype=float) for z in self.chain.planes)
        weights = self.inside.sum(axis=0)
        return float((total + (self.evaluated(shared) * weights).sum(dtype=float)) / self.counts.sum())

    def evaluated(self, lattice: np.ndarray) -> np.ndarray:
        """Return the field of a lattice in plane."""
        plane = np.empty(self.logs.shape[1:], np.float32)
        kernels.plane_field(lattice.reshape(CONTROLS, CONTROLS), *self.geometry.axes, plane)
        return plane

    def centred(self, lattice: np.ndarray) -> np.ndarray:
        """Return a lattice whose field has mean 0 over all tissue."""
        weights = self.inside.sum(axis=0)
        return lattice - float((self.evaluated(lattice) * weights).sum() / weights.sum())

    def even(self, shared: np.ndarray | float = 0.0) -> np.ndarray:
        """Return corrected log intensities, 0 outside tissue."""
        corrected = self.logs - self.log_field
        corrected -= shared
        corrected *= self.inside
        return corrected
