"""The estimate: pairs of planes, then levels, then what all planes share, with prior variances found on the way.

    log observed(z, y, x) = log tissue + D(depth, y, x) + S_s(y, x) + j_z + d(z) [+ F(y, x)] + noise

Voxels that lie above each other show nearly the same tissue, so their robust log ratio gives D, j and differences of
S, whatever the anatomy; a nuisance b(z), that is fitted and not corrected, takes up what anatomy changes from plane to
plane. Brightness over many planes needs a level for each plane: its distance from the class means. It enters with a
prior as wide as the gains that the pairs found (an instrument that jumps also drifts, one that does not is left alone),
and only as far as classes get sharper by it. F, which every plane has alike, is what anatomy common to all planes looks
like too; it is taken off as far as classes get sharper beyond the histogram getting narrower.

Prior variances are the fixed points tau^2 = theta' Q theta / (n - tr(Q V) / tau^2) of D. J. C. MacKay, Bayesian
Interpolation, Neural Computation 4 (1992) 415-447.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from n4flow.harmonization import kernels
from n4flow.harmonization.classes import Classes, structure
from n4flow.harmonization.geometry import DEGREES, Geometry, N
from n4flow.harmonization.system import Chain, D, Solution, System
from n4flow.planes import run_tasks

PAIR_PASSES, LEVEL_PASSES, SHARED_PASSES = 12, 30, 25
SECOND_PASSES = 15  # of levels, once what all planes share is taken off
PAIR_WEIGHT, CLASS_WEIGHT = 0.3, 0.002  # neighbouring voxels are not independent: what one of them counts
DRIFT = 0.01  # sd of what anatomy changes from a plane to the next
TIE = 0.4  # sd of the drift along the stack over that of the gains
OVER_RELAXATION = 1.9
SHARED_RELAXATION = 1.9
ROUNDS = 3
SETTLED = 3e-4  # rms change of the log field that ends the iterations
START = {"depth": 0.3, "section": 0.1, "gain": 0.3, "plane": 0.03}  # sd, log
LEAST = {"depth": 0.003, "section": 0.003, "gain": 0.003, "plane": 0.0005}
SHARPER_LEVELS = 0.025  # sharpening with which levels are believed
SHARPER_SHARED = 0.04, 0.12  # and what all planes share: none of it below the first, all from the second on
SURER = 0.05  # rms of the pairs' correction with which half of that is believed
SAMPLES = 20000  # of a pair, from which its scale is measured


@dataclass
class Estimate:
    """What was found, on the fitted grid; see `Harmonization` for the meaning."""

    depth: np.ndarray
    section: np.ndarray
    plane: np.ndarray
    shared: np.ndarray
    gain_sd: np.ndarray
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Terms:
    """The terms of the log field but F: lattices (degrees, n) and (sections, n), gains (planes of the chain), knots."""

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
        counts = inside.sum(axis=(1, 2))
        planes = np.flatnonzero(counts >= fewest)
        self.counts = counts[planes]
        _sections, row = np.unique(geometry.section[planes], return_inverse=True)
        overlap = [(inside[a] & inside[b]).sum() for a, b in pairwise(planes)]
        pairs = np.flatnonzero(np.array(overlap) >= fewest)
        self.chain = Chain(planes, row, pairs)
        self.live = _sections
        self.depth, self.drift = geometry.depth[planes], geometry.drift[planes]
        self.roughness = geometry.roughness
        self.variance = {name: sd**2 for name, sd in START.items()}
        self.lattice = np.zeros((len(planes), N))  # of every plane: all terms but F
        self.log_field = np.zeros_like(logs)
        self.shared = np.zeros(logs.shape[1:], np.float32)
        self.noise = self._noise()
        self.classes = Classes(inside, self.noise)
        self.solution: Solution
        self.passes = 0

    def _noise(self) -> float:
        """Return the sd of a voxel's log intensity, from the differences of neighbouring planes."""
        if not len(self.chain.pairs):
            return 0.0
        return float(np.median([self.ratio(i)[1] for i in self.chain.pairs])) / np.sqrt(2)

    def ratio(self, i: int, logs: np.ndarray | None = None) -> tuple[float, float]:
        """Return median and robust sd of the log ratio of plane i + 1 of the chain to plane i."""
        logs = self.logs if logs is None else logs
        a, b = self.chain.planes[i : i + 2]
        both = self.inside[a] & self.inside[b]
        ratio = logs[b][both] - logs[a][both]
        ratio = ratio[:: max(1, ratio.size // SAMPLES)]
        middle = np.median(ratio)
        return float(middle), 1.4826 * float(np.median(np.abs(ratio - middle)))

    # ------------------------------------------------------------------------------------------------- pairs and levels

    def _pair_equations(self, corrected: np.ndarray, *, middles: bool, agree: bool) -> tuple[np.ndarray, np.ndarray]:
        pairs, planes = self.chain.pairs, self.chain.planes
        gram, right = np.zeros((len(pairs), N, N)), np.zeros((len(pairs), N))
        nothing = np.zeros((0, 0), np.float32)

        def work(k: int) -> None:
            a, b = planes[pairs[k] : pairs[k] + 2]
            both = self.inside[a] & self.inside[b]
            middle, scale = self.ratio(pairs[k], corrected)
            same = nothing
            if agree:
                posterior = self.classes.posterior
                same = (posterior[:, a] * posterior[:, b]).sum(axis=0)
            weights = np.empty(both.shape, np.float32)
            factor = PAIR_WEIGHT / float(b - a)
            kernels.pair_weights(
                corrected[a], corrected[b], both, same, middle if middles else 0.0, scale + 1e-3, factor, weights
            )
            kernels.normal_equations(weights, self.logs[b] - self.logs[a], *self.geometry.axes, gram[k], right[k])

        run_tasks(work, range(len(pairs)))
        return gram, right

    def _level_equations(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        planes = self.chain.planes
        h, n, level = np.zeros((len(planes), N)), np.zeros(len(planes)), np.zeros(len(planes))

        def work(k: int) -> None:
            z = planes[k]
            weights = np.float32(CLASS_WEIGHT) * self.classes.weight[z]
            h[k] = self._project(weights)
            n[k] = weights.sum(dtype=float)
            distance = np.where(self.inside[z], self.logs[z] - self.shared - self.classes.target[z], 0)
            level[k] = (weights * distance).sum(dtype=float) / max(n[k], 1e-12)

        run_tasks(work, range(len(planes)))
        return h, n, level

    def _project(self, weights: np.ndarray) -> np.ndarray:
        rows, columns = self._matrices
        return np.asarray(rows.T @ weights.astype(float) @ columns).reshape(-1)

    @property
    def _matrices(self) -> tuple[np.ndarray, np.ndarray]:
        fy, wy, fx, wx = self.geometry.axes
        found = []
        for first, weights in ((fy, wy), (fx, wx)):
            matrix = np.zeros((len(first), int(np.sqrt(N))))
            for k in range(4):
                matrix[np.arange(len(first)), first + k] += weights[:, k]
            found.append(matrix)
        return found[0], found[1]

    def sections(self, pair_passes: int, level_passes: int) -> None:
        """Fit every term but F: `pair_passes` from pairs alone, then with levels until nothing moves."""
        for number in range(pair_passes + level_passes):
            pairs_alone = number < pair_passes
            corrected = self.even(self.shared)
            system = System(self.chain, self.depth, self.drift)
            agree = number >= 2 or not pairs_alone
            if agree:
                self.classes.update(corrected)
            system.add_pairs(*self._pair_equations(corrected, middles=number == 0 and pairs_alone, agree=agree))
            if not pairs_alone:
                system.add_levels(*self._level_equations())
            slow = 1e-3 if pairs_alone else max(1e-3, TIE * self.variance["gain"] ** 0.5)
            system.add_priors(*self._priors(system, slow))
            self.solution = system.solve()
            if number >= 2 or not pairs_alone:
                self._learn(pairs_alone)
            change = self._move(OVER_RELAXATION if number > 3 else 1.0)
            self.passes += 1
            if not pairs_alone and number > pair_passes + 4 and change < SETTLED:
                break

    def _priors(self, system: System, slow: float) -> tuple[np.ndarray, float, np.ndarray]:
        q, variance, level = len(system.border), self.variance, np.full((N, N), 1 / N**2)
        lattice = self.roughness / variance["section"] + level / variance["gain"]
        border = 1e-9 * np.eye(q)
        border[D, D] += self._depth_penalty / variance["depth"]
        knots = self.drift.shape[1]
        first = np.diff(np.eye(knots), axis=0)
        border[system.slow, system.slow] += (first.T @ first + 0.1 * np.eye(knots)) / slow**2
        border[system.anatomy, system.anatomy] += np.eye(knots) / DRIFT**2
        return lattice, 1 / variance["plane"], border

    @property
    def _depth_penalty(self) -> np.ndarray:
        level = np.full((N, N), 1 / N**2)
        return np.kron(np.diag(np.arange(1, DEGREES + 1) ** 2.0), self.roughness + level)

    def _learn(self, pairs_alone: bool) -> None:
        """Set the prior variances; the gains are judged by the pairs alone."""
        found, variance = self.solution, self.variance
        level = np.full((N, N), 1 / N**2)
        covariance = found.lattice_covariance.sum(axis=0)
        squares = found.lattices.T @ found.lattices
        depth, penalty = found.border[D], self._depth_penalty
        n_s, many = len(found.lattices), self.counts > 30
        terms = {
            "depth": (depth @ penalty @ depth, (penalty * found.border_covariance[D, D]).sum(), len(depth)),
            "section": ((squares * self.roughness).sum(), (covariance * self.roughness).sum(), n_s * (N - 1)),
        }
        if pairs_alone:
            terms["gain"] = ((squares * level).sum(), (covariance * level).sum(), n_s)
            terms["plane"] = ((found.gains[many] ** 2).sum(), found.gain_variance[many].sum(), int(many.sum()))
        for name, (size, trace, n) in terms.items():
            free = max(n - trace / variance[name], 0.02 * n)
            variance[name] = float(np.clip(size / max(free, 1e-9), LEAST[name] ** 2, 1))

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

        def work(k: int) -> None:
            z = self.chain.planes[k]
            plane = np.empty(self.logs.shape[1:], np.float32)
            kernels.plane_field(self.lattice[k].reshape(self._square), *self.geometry.axes, plane)
            change[k] = ((plane - self.log_field[z])[self.inside[z]] ** 2).sum(dtype=float)
            self.log_field[z] = plane

        run_tasks(work, range(len(lattice)))
        return float(np.sqrt(change.sum() / self.counts.sum()))

    @property
    def _slow(self) -> slice:
        return slice(D.stop, D.stop + self.drift.shape[1])

    @property
    def _square(self) -> tuple[int, int]:
        side = int(np.sqrt(N))
        return side, side

    def rms(self) -> float:
        """Return the rms of the log field in tissue about its mean."""
        values = [self.log_field[z][self.inside[z]] for z in self.chain.planes]
        return float(np.concatenate(values).std(dtype=float))

    def mean_field(self, found: Estimate) -> float:
        """Return the mean of the log field over the tissue that took part."""
        total = [self.log_field[z][self.inside[z]].sum(dtype=float) for z in self.chain.planes]
        shared = self.evaluated(found.shared) * self.inside.sum(axis=0)
        return float((sum(total) + shared.sum(dtype=float)) / self.counts.sum())

    # ------------------------------------------------------------------------------------------------ what planes share

    def shared_field(self, lattice: np.ndarray, variance: float) -> tuple[np.ndarray, float]:
        """Fit F from the distance of voxels to their classes; each section's own level is projected out."""
        planes, row, n_s = self.chain.planes, self.chain.row, self.chain.n_sections
        even = self.even()
        self.classes.restart()
        for number in range(SHARED_PASSES):
            self.classes.update(np.where(self.inside, even - self.evaluated(lattice), np.float32(0)))
            grams, rights = np.zeros((len(planes), N, N)), np.zeros((len(planes), N))

            def work(k: int, grams: np.ndarray = grams, rights: np.ndarray = rights) -> None:
                z = planes[k]
                weights = np.float32(CLASS_WEIGHT) * self.classes.weight[z]
                distance = np.where(self.inside[z], even[z] - self.classes.target[z], np.float32(0))
                kernels.normal_equations(weights, distance, *self.geometry.axes, grams[k], rights[k])

            run_tasks(work, range(len(planes)))
            gram, right = np.zeros((N, N)), np.zeros(N)
            for s in range(n_s):
                own, target = grams[row == s].sum(axis=0), rights[row == s].sum(axis=0)
                h = own.sum(axis=1)
                n = max(h.sum(), 1e-9)
                gram += own - np.outer(h, h) / n
                right += target - h * (target.sum() / n)
            level = np.full((N, N), 1 / N**2)
            covariance = np.linalg.inv(gram + self.roughness / variance + 1e4 * level)
            step = SHARED_RELAXATION if number > 1 else 1.0
            lattice = lattice + step * (covariance @ right - lattice)
            if number > 1:
                size = lattice @ self.roughness @ lattice + (self.roughness * covariance).sum()
                variance = float(np.clip(size / (N - 1), 0.003**2, 4))
        return lattice, variance

    def evaluated(self, lattice: np.ndarray) -> np.ndarray:
        """Return the field of a lattice in plane."""
        plane = np.empty(self.logs.shape[1:], np.float32)
        kernels.plane_field(lattice.reshape(self._square), *self.geometry.axes, plane)
        return plane

    def centred(self, lattice: np.ndarray) -> np.ndarray:
        """Return a lattice whose field has mean 0 over all tissue."""
        weights = self.inside.sum(axis=0)
        return lattice - float((self.evaluated(lattice) * weights).sum() / weights.sum())

    def even(self, shared: np.ndarray | float = 0.0) -> np.ndarray:
        """Return corrected log intensities, 0 outside tissue."""
        return np.where(self.inside, self.logs - self.log_field - shared, np.float32(0))

    def sharpening(self, before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
        """Return (sharpening, narrowing): what a correction does to the histogram beyond making it narrower.

        The gain in negentropy over the log ratio of widths. Taking off what the instrument did sharpens the peaks of
        classes; taking off anatomy only narrows the histogram.
        """
        found = [structure(self.classes.denoised(logs)[self.inside]) for logs in (before, after)]
        (wide, rough), (narrow, sharp) = found
        narrowing = float(np.log(wide / narrow))
        return (sharp - rough) / max(narrowing, 0.01), narrowing


def trust_in_levels(sharpening: float) -> float:
    """Return the share of what levels add to the pairs that is believed."""
    return float(np.clip(sharpening / SHARPER_LEVELS, 0, 1))


def trust_in_shared(sharpening: float, rms_pairs: float) -> float:
    """Return lambda, the share of F that is taken off in `auto`."""
    none, full = SHARPER_SHARED
    return float(np.clip((sharpening - none) / (full - none), 0, 1)) / (1 + (SURER / max(rms_pairs, 1e-6)) ** 4)


def estimate(estimator: Estimator, mode: str) -> Estimate:
    """Run the stages of a mode: safe, auto or full."""
    estimator.sections(PAIR_PASSES, 0)
    alone, numbers = estimator.terms, {}
    estimator.take(alone)
    numbers["rms_adjacent"] = estimator.rms()
    terms, levelled = _with_levels(estimator, alone, alone, LEVEL_PASSES, numbers)
    rms = numbers["rms_pairs"] = estimator.rms()
    lattice, variance, share = np.zeros(N), 0.1**2, 0.0
    for attempt in range(ROUNDS if mode != "safe" else 0):
        lattice, variance = estimator.shared_field(lattice, variance)
        lattice = estimator.centred(lattice)
        shared = estimator.evaluated(lattice)
        numbers["sharpening"], numbers["narrowing"] = estimator.sharpening(estimator.even(), estimator.even(shared))
        share = 1.0 if mode == "full" else trust_in_shared(numbers["sharpening"], rms)
        weights = estimator.inside.sum(axis=0)
        numbers["rms_shared"] = float(np.sqrt((shared**2 * weights).sum() / weights.sum()))
        numbers["lambda"] = share
        if attempt + 1 == ROUNDS or share < 0.5:
            break
        estimator.shared = np.float32(share) * shared
        terms, levelled = _with_levels(estimator, alone, levelled, SECOND_PASSES, numbers)
    return _result(estimator, terms, share * lattice, numbers)


def _with_levels(
    estimator: Estimator, alone: Terms, start: Terms, passes: int, numbers: dict[str, float]
) -> tuple[Terms, Terms]:
    """Add levels to what the pairs alone say, as far as they are believed; also return them believed in full."""
    estimator.take(alone)
    before = estimator.even(estimator.shared)
    estimator.take(start)
    estimator.sections(0, passes)
    levelled = estimator.terms
    estimator.take(levelled)
    sharpening, _narrowing = estimator.sharpening(before, estimator.even(estimator.shared))
    numbers["level_sharpening"], numbers["level_trust"] = sharpening, trust_in_levels(sharpening)
    terms = alone.towards(levelled, numbers["level_trust"])
    estimator.take(terms)
    return terms, levelled


def _result(estimator: Estimator, terms: Terms, shared: np.ndarray, numbers: dict[str, float]) -> Estimate:
    found, geometry = estimator.solution, estimator.geometry
    n_s, side = len(geometry.edges) - 1, int(np.sqrt(N))
    section, gain_sd = np.full((n_s, N), np.nan), np.full(n_s, np.nan)
    section[estimator.live] = terms.section
    gain_sd[estimator.live] = np.sqrt(found.lattice_covariance.sum(axis=(1, 2)) / N**2)
    plane = geometry.drift @ terms.slow
    plane[estimator.chain.planes] += terms.plane
    numbers |= {f"sd_{name}": variance**0.5 for name, variance in estimator.variance.items()}
    numbers |= {"noise": estimator.noise, "passes": estimator.passes}
    return Estimate(
        terms.depth.reshape(DEGREES, side, side),
        section.reshape(n_s, side, side),
        plane,
        shared.reshape(side, side),
        gain_sd,
        numbers,
    )
