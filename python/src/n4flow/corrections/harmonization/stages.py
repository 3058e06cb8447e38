"""The stages of a mode: pairs alone, then with levels, then what all planes share, each as far as it is believed.

F is the same in every plane, and so is anatomy that all planes have in common. It is taken off as far as classes get
sharper by it (more than the histogram gets narrower), as far as the pairs had something to correct, and

* as far as the variance of the volume falls by that of F, as it does for shading that knows nothing of the anatomy, or
  as far as the gain in negentropy alone leaves no doubt: a histogram that gets a little sharper and no narrower was
  only rearranged;
* as far as F is of the size of the shading that sections have of their own, which the pairs prove. What is many times
  as large is the organ, brighter at its rim or in its middle. No histogram tells that, and parts of the stack agree on
  it as well as they agree on an instrument.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from n4flow.compute.threads import over_planes
from n4flow.corrections.harmonization import kernels
from n4flow.corrections.harmonization.classes import CLASS_WEIGHT, Classes, structure
from n4flow.corrections.harmonization.estimator import Estimator, Terms
from n4flow.corrections.harmonization.geometry import CONTROLS, DEGREES, N
from n4flow.corrections.harmonization.pairs import LEVEL

PAIR_PASSES, LEVEL_PASSES, SHARED_PASSES = 12, 15, 60  # iterations: from pairs alone, with levels, of F
SETTLED_SHARED = 1e-4  # rms change of F that ends its iterations: what is left to go is some times as much
SHARED_SAMPLES = 150_000  # voxels from which F is fitted: it is the same in every plane
MOMENTUM = 0.7  # share of the last step of F by which the next one begins farther on
SECOND_PASSES = 8  # iterations with levels once F is taken off
ROUNDS = 3  # fits of F, with levels fitted again in between
WORTH_A_ROUND = 0.1  # share of F from which another round follows
SHARPER_LEVELS = 0.025  # sharpening from which levels are believed in full
SHARPER_SHARED = 0.04, 0.12  # and F: none of it below the first, all from the second on
EXPLAINED_SHARED = 0.1, 0.4  # share of F's variance by which the volume's falls: none of F below the first, all above
NEGENTROPY_SHARED = 0.03, 0.08  # or nats that are gained: none of F below the first, all from the second on
SIZE_SHARED = 3.5, 2.9  # times the sections' own shading: none of F from the first on, all of it up to the second
SURER = 0.05  # rms (log) of what the pairs correct at which half of F is believed


@dataclass
class Estimate:
    """What was found, on the fitted grid; see `Harmonization` for the meaning."""

    depth: np.ndarray
    section: np.ndarray
    plane: np.ndarray
    shared: np.ndarray
    gain_sd: np.ndarray
    numbers: dict[str, float] = field(default_factory=dict)


class SharedField:
    """The fit of F from the distance of voxels to their classes; each section's own level is projected out.

    Posteriors follow the field, and the field them, by slow steps. So each step goes on by `MOMENTUM` in the direction
    of the one before (Y. Nesterov, A method for solving a convex programming problem with convergence rate O(1/k^2),
    Soviet Mathematics Doklady 27 (1983) 372-376). Another fit begins where the last one ended.
    """

    def __init__(self, estimator: Estimator) -> None:
        self.estimator = estimator
        self._stride = max(1, estimator.counts.sum() // SHARED_SAMPLES)
        self._planes, self._row = (values[:: self._stride] for values in (estimator.chain.planes, estimator.chain.row))
        self._lattice, self._variance = np.zeros(N), 0.1**2

    @cached_property
    def _classes(self) -> Classes:
        """Those of all fits; a mode without F has none."""
        return Classes(self.estimator.inside[self._planes], self.estimator.noise, self._stride)

    def fit(self) -> np.ndarray:
        """Return the lattice of F in what the estimator leaves over."""
        estimator, classes, lattice = self.estimator, self._classes, self._lattice
        even = estimator.even()
        # denoising leaves what all planes share as it is
        t, even = estimator.classes.denoised(even)[self._planes], even[self._planes]
        weight, planes = classes.inside.sum(axis=0), np.arange(len(self._planes))
        factor, ahead = np.float32(CLASS_WEIGHT * self._stride), lattice
        for number in range(SHARED_PASSES):
            classes.learn(t - estimator.evaluated(ahead))
            grams, rights = np.zeros((len(planes), N, N)), np.zeros((len(planes), N))
            what = even, classes.weight, classes.target, classes.inside, planes, factor
            over_planes(kernels.shared_equations, len(planes), *what, *estimator.geometry.axes, grams, rights)
            gram, right = np.zeros((N, N)), np.zeros(N)
            for s in range(estimator.chain.n_sections):
                own, target = grams[self._row == s].sum(axis=0), rights[self._row == s].sum(axis=0)
                h = own.sum(axis=1)
                n = max(h.sum(), 1e-9)
                gram += own - np.outer(h, h) / n
                right += target - h * (target.sum() / n)
            covariance = np.linalg.inv(gram + estimator.roughness / self._variance + 1e4 * LEVEL)
            found = covariance @ right
            change = estimator.evaluated(found - ahead)
            ahead = found + MOMENTUM * (found - lattice) if number > 1 else found
            lattice = found
            if number > 1:
                size = lattice @ estimator.roughness @ lattice + (estimator.roughness * covariance).sum()
                self._variance = float(np.clip(size / (N - 1), 0.003**2, 4))
            if number > 4 and float(np.sqrt((change**2 * weight).sum() / weight.sum())) < SETTLED_SHARED:
                break
        self._lattice = lattice
        estimator.classes.restart()  # they were those of a volume with F in it, which is wider
        return estimator.centred(lattice)


def sharpening(estimator: Estimator, before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Return what a correction does to the histogram.

    `sharpening` is `negentropy`, the gain of it in nats, over `narrowing`, the log ratio of widths: taking off what the
    instrument did sharpens the peaks of classes, taking off anatomy only narrows the histogram. `fall` is what the
    variance loses.
    """
    found = [structure(estimator.classes.denoised(logs)[estimator.inside]) for logs in (before, after)]
    (wide, rough), (narrow, sharp) = found
    if not min(wide, narrow):  # one value, which nothing makes sharper
        return dict.fromkeys(("sharpening", "narrowing", "negentropy", "fall"), 0.0)
    narrowing, gain = float(np.log(wide / narrow)), sharp - rough
    return {
        "sharpening": gain / max(narrowing, 0.01),
        "narrowing": narrowing,
        "negentropy": gain,
        "fall": wide**2 - narrow**2,
    }


def trust_in_levels(sharpening: float) -> float:
    """Return the share of what levels add to the pairs that is believed."""
    return float(np.clip(sharpening / SHARPER_LEVELS, 0, 1))


def trust_in_shared(numbers: dict[str, float]) -> float:
    """Return the share of F that is believed, by what taking it off does to the histogram, and by its size."""
    real = max(ramp(numbers["variance_explained"], *EXPLAINED_SHARED), ramp(numbers["negentropy"], *NEGENTROPY_SHARED))
    size = ramp(numbers["rms_shared"] / max(numbers["rms_section"], 1e-6), *SIZE_SHARED)
    return ramp(numbers["sharpening"], *SHARPER_SHARED) * real * size


def ramp(value: float, none: float, full: float) -> float:
    """Return 0 on the one side of `none`, 1 on the other side of `full`, and what lies between in between."""
    return float(np.clip((value - none) / (full - none), 0, 1))


def trust_in_instrument(rms_pairs: float) -> float:
    """Return the share of F that is believed, by how much the pairs had to correct."""
    return 1 / (1 + (SURER / max(rms_pairs, 1e-6)) ** 4)


def estimate(estimator: Estimator, mode: str) -> Estimate:
    """Run the stages of a mode: safe, auto or full."""
    estimator.sections(PAIR_PASSES, 0)
    alone, numbers = estimator.terms, {}
    estimator.take(alone)
    numbers["rms_adjacent"] = estimator.rms()
    terms, levelled = _with_levels(estimator, alone, alone, LEVEL_PASSES, numbers)
    rms = numbers["rms_pairs"] = estimator.rms()
    lattice, share, first = np.zeros(N), 0.0, terms
    uneven = 1.0 if mode == "full" else trust_in_instrument(rms)
    field_of_all = SharedField(estimator)
    for attempt in range(ROUNDS if mode != "safe" else 0):
        lattice = field_of_all.fit()
        shared = estimator.evaluated(lattice)
        weights = estimator.inside.sum(axis=0)
        numbers["rms_shared"] = float(np.sqrt((shared**2 * weights).sum() / weights.sum()))
        numbers["rms_section"] = estimator.rms_section(terms)
        numbers |= sharpening(estimator, estimator.even(), estimator.even(shared))
        numbers["variance_explained"] = numbers.pop("fall") / max(numbers["rms_shared"] ** 2, 1e-12)
        share = 1.0 if mode == "full" else uneven * trust_in_shared(numbers)
        numbers["lambda"] = share
        if attempt + 1 == ROUNDS or share < WORTH_A_ROUND:
            break
        estimator.shared = np.float32(uneven) * shared  # tried in full; how sharp classes are afterwards decides
        terms, levelled = _with_levels(estimator, alone, levelled, SECOND_PASSES, numbers)
    if share < WORTH_A_ROUND:  # tried and not believed
        terms = first
        estimator.take(first)
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
    sharper = sharpening(estimator, before, estimator.even(estimator.shared))["sharpening"]
    # what levels have shown before F was taken off stays shown
    numbers["level_sharpening"] = sharper
    numbers["level_trust"] = max(trust_in_levels(sharper), numbers.get("level_trust", 0.0))
    terms = alone.towards(levelled, numbers["level_trust"])
    estimator.take(terms)
    return terms, levelled


def _result(estimator: Estimator, terms: Terms, shared: np.ndarray, numbers: dict[str, float]) -> Estimate:
    found, geometry = estimator.solution, estimator.geometry
    n_s, side = len(geometry.edges) - 1, CONTROLS
    section, gain_sd = np.full((n_s, N), np.nan), np.full(n_s, np.nan)
    section[estimator.live] = terms.section
    gain_sd[estimator.live] = np.sqrt(found.lattice_covariance.sum(axis=(1, 2)) / N**2)
    plane = geometry.drift @ terms.slow
    plane[estimator.chain.planes] += terms.plane
    numbers |= {f"sd_{name}": variance**0.5 for name, variance in estimator.variance.items()}
    numbers |= {"noise": estimator.noise, "passes": estimator.passes}
    if estimator.pairs.found is not None:
        numbers |= {f"proof_{name}": proof for name, proof in estimator.pairs.found.proof.items()}
    return Estimate(
        terms.depth.reshape(DEGREES, side, side),
        section.reshape(n_s, side, side),
        plane,
        shared.reshape(side, side),
        gain_sd,
        numbers,
    )
