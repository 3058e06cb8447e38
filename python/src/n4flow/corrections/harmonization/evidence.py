"""What the shifts from plane to plane say about the instrument, beyond what anatomy does from plane to plane.

The mean log ratio of a plane to the plane above it, its shift, is made of

* the gain of a section, which shifts at cuts and nowhere else;
* jitter of single planes, which shifts there and back;
* attenuation with depth, the same in every section;
* anatomy, which shifts anywhere: in proportion to how much single voxels change (`scatter`), each pair for itself
  and, over many planes, all in one direction.

So their variances can be told apart: those that make the observed shifts most likely (normal; the anatomy of a pair
has Student's t, as some planes lie where everything changes, such as a midline). Gain, jitter or attenuation whose
variance the shifts do not need (likelihood ratio) is not there; nor are gains that only one place needs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.optimize import minimize

WINDOW = 100  # pairs whose shifts are judged together; windows are independent, so time is proportional to planes
# Standard deviations of the log ratio, that of anatomy in units of the scatter: least, first guess, largest.
FLOOR = {"anatomy": 1e-3, "drift": 1e-3, "plane": 3e-4, "gain": 1e-3, "depth": 3e-3}
START = {"anatomy": 0.15, "drift": 0.1, "plane": 0.02, "gain": 0.08, "depth": 0.2}
INSTRUMENT = ("plane", "gain", "depth")
LARGEST = 3.0
AGAIN = 0.1  # least sd that a later search starts from, over `START`: near 0 the likelihood has no slope
PROVEN = 6.6  # twice the log likelihood ratio that one more variance needs: 1 % by chance
FREEDOM = 4.0  # degrees of freedom of Student's t
REWEIGHTINGS = 3
FEWEST_CUTS = 7  # from so many on, gains must be proven without their most telling cut
LEFT_OUT = 1e3  # factor on the scatter of a pair that takes its weight away


@dataclass(frozen=True)
class Shifts:
    """One row for each pair of planes that is compared.

    Parameters
    ----------
    shift, scatter, noise : (k,) arrays
        Mean log ratio, robust sd of the log ratio of single voxels, and variance of the mean by noise.
    upper, lower : (k,) int arrays
        The planes, numbered from 0.
    section : (planes,) int array
    depth : (k, degrees) array
        Differences of the depth's basis.
    drift : (k, knots) array
        Basis of what changes slowly along the stack.
    """

    shift: np.ndarray
    scatter: np.ndarray
    noise: np.ndarray
    upper: np.ndarray
    lower: np.ndarray
    section: np.ndarray
    depth: np.ndarray
    drift: np.ndarray


@dataclass(frozen=True)
class Components:
    """Standard deviations, log: of anatomy in units of the scatter, of the instrument as such.

    `scatter` (k,) is that of the pairs, wider where anatomy is seen to have changed much; `proof` is twice the log
    likelihood ratio of each of `INSTRUMENT`.
    """

    sd: dict[str, float]
    scatter: np.ndarray
    proof: dict[str, float]


def components(shifts: Shifts) -> Components:
    """Return the standard deviations that make the shifts most likely."""
    usual, sd = shifts.scatter, START
    for _pass in range(REWEIGHTINGS):
        _cost, sd, anatomy = _most_likely(shifts, start=sd)
        wide = (FREEDOM + (anatomy / (sd["anatomy"] * usual)) ** 2) / (FREEDOM + 1)
        shifts = replace(shifts, scatter=usual * np.sqrt(np.maximum(wide, FREEDOM / (FREEDOM + 1))))
    least, sd, _anatomy = _most_likely(shifts, start=sd)
    proof: dict[str, float] = {}
    absent: list[str] = []
    while len(absent) < len(INSTRUMENT):  # the least proven goes first: another may explain what it did
        proof |= {n: 2 * (_most_likely(shifts, [*absent, n], sd)[0] - least) for n in INSTRUMENT if n not in absent}
        if "gain" not in absent and proof["gain"] >= PROVEN:
            proof["gain"] = min(proof["gain"], _proof_elsewhere(shifts, absent, sd))
        weakest = min((name for name in INSTRUMENT if name not in absent), key=lambda name: proof[name])
        if proof[weakest] >= PROVEN:
            break
        absent.append(weakest)
        least, sd, _anatomy = _most_likely(shifts, absent, sd)
    return Components(sd, shifts.scatter, proof)


def _proof_elsewhere(shifts: Shifts, absent: list[str], sd: dict[str, float]) -> float:
    """Return the proof of gains without the most telling cut and those beside it.

    Where all gains rest on one place, anatomy may lie there: the midline, say, which begins or ends at a cut. With few
    cuts nothing would be left over, and their own proof stands.
    """
    cuts = np.flatnonzero(shifts.section[shifts.upper] != shifts.section[shifts.lower])
    if len(cuts) < FEWEST_CUTS:
        return np.inf
    size = np.abs(shifts.shift[cuts] - np.median(shifts.shift[cuts])) / shifts.scatter[cuts]
    most = int(np.argmax(size))
    scatter = shifts.scatter.copy()
    scatter[cuts[max(most - 1, 0) : most + 2]] *= LEFT_OUT
    rest = replace(shifts, scatter=scatter)
    return 2 * (_most_likely(rest, [*absent, "gain"], sd)[0] - _most_likely(rest, absent, sd)[0])


def _windows(shifts: Shifts) -> list[tuple[slice, np.ndarray, dict[str, np.ndarray]]]:
    """Return parts of the pairs, with the covariance that is known and those that have a variance each."""
    count = len(shifts.shift)
    edges = np.linspace(0, count, max(1, round(count / WINDOW)) + 1).astype(int)
    found = []
    for start, stop in pairwise(edges.tolist()):
        part = slice(start, stop)
        planes = np.unique(np.concatenate([shifts.upper[part], shifts.lower[part]]))
        _sections, owner = np.unique(shifts.section[planes], return_inverse=True)
        rows = np.arange(stop - start)
        plane = np.zeros((len(rows), len(planes)))
        plane[rows, np.searchsorted(planes, shifts.lower[part])] = 1
        plane[rows, np.searchsorted(planes, shifts.upper[part])] = -1
        gain = plane @ np.eye(owner.max() + 1)[owner]
        slow = shifts.scatter[part, None] * shifts.drift[part]
        known = np.diag(shifts.noise[part])
        terms = {"anatomy": np.diag(shifts.scatter[part] ** 2), "drift": slow @ slow.T}
        terms |= {"plane": plane @ plane.T, "gain": gain @ gain.T, "depth": shifts.depth[part] @ shifts.depth[part].T}
        found.append((part, known, terms))
    return found


def _most_likely(
    shifts: Shifts, without: Collection[str] = (), start: Mapping[str, float] = START
) -> tuple[float, dict[str, float], np.ndarray]:
    """Return minus the log likelihood, the standard deviations, and what anatomy's own shift of each pair is."""
    windows, names = _windows(shifts), [name for name in START if name not in without]

    def inverse(sd: dict[str, float], known: np.ndarray, terms: dict[str, np.ndarray]) -> tuple[np.ndarray, float]:
        covariance = known + sum(sd[name] ** 2 * term for name, term in terms.items())
        factor, failed = dpotrf(covariance, lower=True)
        if failed:
            msg = "the covariance of the shifts is not positive definite"
            raise np.linalg.LinAlgError(msg)
        found = dpotri(factor, lower=True)[0]
        return np.where(np.tri(len(found), dtype=bool), found, found.T), float(np.log(np.diag(factor)).sum())

    def cost(logs: np.ndarray) -> tuple[float, np.ndarray]:
        sd = FLOOR | dict(zip(names, np.exp(logs).tolist(), strict=True))
        total, slope = 0.0, np.zeros(len(names))
        for part, known, terms in windows:
            precision, half_log = inverse(sd, known, terms)
            pull = precision @ shifts.shift[part]
            total += 0.5 * float(shifts.shift[part] @ pull) + half_log
            for i, name in enumerate(names):
                slope[i] += float(np.vdot(precision, terms[name]) - pull @ terms[name] @ pull) * sd[name] ** 2
        return total, slope

    bounds = [(np.log(FLOOR[name]), np.log(LARGEST)) for name in names]
    best = minimize(
        cost,
        np.log([max(start[name], AGAIN * START[name]) for name in names]),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
    )
    sd = FLOOR | dict(zip(names, np.exp(best.x).tolist(), strict=True))
    anatomy = np.zeros(len(shifts.shift))
    for part, known, terms in windows:
        anatomy[part] = sd["anatomy"] ** 2 * terms["anatomy"] @ inverse(sd, known, terms)[0] @ shifts.shift[part]
    return float(best.fun), sd, anatomy
