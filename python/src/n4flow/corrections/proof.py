"""Shares: how much of what a stage would do is proven, by evidence that the stage does not make true itself.

N4, matching and smoothing along Z make histograms sharp, alike and level; so sharp, alike and level histograms prove
nothing. What does is what voxels above each other in neighbouring planes say, of which `harmonization` makes one log
field: `proven` here, with its own doubts inside (gains, jitter, attenuation and shared shading enter only as far as
they are needed). Each stage is applied by the shares, 0 to 1, that bring the volume nearest to it: where nothing is
proven they are 0, and none takes the volume farther from what is proven than leaving it or the whole stage would.

A share scales the log of what a stage multiplies by: each mode of a field, the level of a map, the gain of a plane.
A map has a shape too: what it does to contrast. That is proven where contrast changes at cuts as the maps say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from n4flow.corrections.bias_field import BiasCorrection
from n4flow.corrections.harmonization.fields import Harmonization
from n4flow.corrections.plane_gain import PlaneGain, estimate_plane_gain
from n4flow.corrections.section_lookup import SectionLookup
from n4flow.n4_bias import bspline
from n4flow.sections import SectionTable
from n4flow.statistics.histograms import Distributions

LEAST_VALID = 0.5  # share of valid voxels that a shrunken voxel needs
LEAST = 0.02  # log: a change whose proven part is smaller, as an rms, is not made
FEWEST = 20  # voxels of a plane from which a slope is measured
SURE = 2.6  # standard errors by which the share of shapes must be above 0, and which are taken off it
IN_PLANE, IN_DEPTH = 3, 1  # degrees of what is taken for an instrument's unevenness
CONTROLS = 4  # of an axis whose spline is one cubic polynomial
LEAST_PIVOT = 1e-6  # of the largest: below it the tissue does not tell modes apart
SMOOTHINGS = 6  # passes along Z
SAMPLES = 20000  # voxels of a section from which its modes are made orthogonal


@dataclass(frozen=True)
class Evidence:
    """What shares are judged by, on the shrunken grid.

    Parameters
    ----------
    logs : (Z, y, x) float32 array
        Log intensity of the volume that the chain is given, 0 outside tissue.
    proven : (Z, y, x) float32 array
        The log field that is proven.
    inside : (Z, y, x) bool array
        Tissue of usable sections with valid voxels.
    section : (Z,) int array
        Section of each plane.
    """

    logs: np.ndarray
    proven: np.ndarray
    inside: np.ndarray
    section: np.ndarray

    @classmethod
    def of(
        cls, mean: np.ndarray, valid: np.ndarray, tissue: np.ndarray, sections: SectionTable, proven: Harmonization
    ) -> Evidence:
        """Return the evidence about a shrunken volume (mean, share of valid voxels, tissue) and what harmonizes it."""
        inside = tissue & (valid >= LEAST_VALID) & (mean > 0) & sections.usable_planes[:, None, None]
        logs = np.where(inside, np.log(np.where(inside, mean, 1)), 0).astype(np.float32)
        field = np.zeros_like(logs) if proven.reason else proven.small_log_field(slice(None), logs.shape)
        return cls(logs, field, inside, sections.section_of_plane)

    def without(self, change: np.ndarray) -> Evidence:
        """Return the evidence about what is left once a log field was taken off."""
        return replace(self, logs=np.where(self.inside, self.logs - change, 0), proven=self.proven - change)


@dataclass(frozen=True)
class Modes:
    """Polynomials of a section on the shrunken grid: of the place in plane, and in depth; each a way to be uneven.

    Products of Legendre polynomials, up to `IN_PLANE` together in plane and up to `IN_DEPTH`, without the constant.
    Cubic splines hold them exactly.
    """

    shape: tuple[int, ...]

    @cached_property
    def orders(self) -> list[tuple[int, int, int]]:
        """Degrees of each mode along depth, rows and columns, from even to uneven."""
        found = [
            (k, i, j)
            for k in range(IN_DEPTH + 1 if self.shape[0] > 1 else 1)
            for i in range(IN_PLANE + 1)
            for j in range(IN_PLANE + 1 - i)
            if i + j + k
        ]
        return sorted(found, key=sum)

    def at(self, inside: np.ndarray) -> np.ndarray:
        """Return (voxels, modes) values inside."""
        z, y, x = np.nonzero(inside)
        depth, rows, columns = (_polynomials(np.linspace(-1, 1, n)) for n in self.shape)
        return np.stack([depth[z, k] * rows[y, i] * columns[x, j] for k, i, j in self.orders], axis=1)

    def field(self, coefficients: np.ndarray) -> np.ndarray:
        """Return the sum of modes; the last of the (modes + 1,) coefficients is that of the constant."""
        return self._sum(coefficients, [_polynomials(np.linspace(-1, 1, n)) for n in self.shape])

    def lattice(self, coefficients: np.ndarray, wide: Sequence[int]) -> np.ndarray:
        """Return the lattice that holds the sum of modes over a grid that is wider by a margin on either side."""
        axes = []
        for n, total in zip(self.shape, wide, strict=True):
            controls, end = CONTROLS if total > 1 else 1, (total - 1) / max(n - 1, 1)
            weights = bspline.weight_matrix(bspline.sample_coordinates(total, controls), controls)
            axes.append(np.linalg.pinv(weights) @ _polynomials(np.linspace(-end, end, total)))
        return self._sum(coefficients, axes)

    def _sum(self, coefficients: np.ndarray, axes: Sequence[np.ndarray]) -> np.ndarray:
        cube = np.zeros((IN_PLANE + 1,) * 3)
        for order, value in zip([*self.orders, (0, 0, 0)], coefficients, strict=True):
            cube[order] = value
        return np.asarray(np.einsum("kij,zk,yi,xj->zyx", cube, *axes, optimize=True))


def _polynomials(places: np.ndarray) -> np.ndarray:
    return np.asarray(np.polynomial.legendre.legvander(places, IN_PLANE))


def proven_bias(correction: BiasCorrection, evidence: Evidence) -> tuple[BiasCorrection, list[float]]:
    """Return the fields as far as they are proven, and the share of each."""
    fields, shares = [], []
    for number, (start, stop, found) in enumerate(correction.fields):
        change = correction.small_log_field(number, slice(0, stop - start), evidence.logs.shape[1:])
        coefficients, share = proven_modes(evidence, start, stop, change)
        lattice = Modes(change.shape).lattice(coefficients, found.grid_shape).astype(np.float32)
        fields.append((start, stop, found if found.reason else replace(found, lattice=lattice)))
        shares.append(share)
    return replace(correction, fields=tuple(fields)), shares


def proven_modes(evidence: Evidence, start: int, stop: int, change: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the coefficients of what is proven of the log field of planes `start` to `stop`, and the share it is.

    Field and proof are taken apart into modes that are orthogonal over the tissue of these planes, and of each mode of
    the field what lies between nothing and what is proven is kept. What is finer is anatomy, and levels are what comes
    after.
    """
    proven, inside = evidence.proven[start:stop], evidence.inside[start:stop]
    modes = Modes(change.shape)
    nothing = np.zeros(len(modes.orders) + 1)
    if inside.sum() < FEWEST * len(nothing):
        return nothing, 0.0
    values = modes.at(inside)
    middle = values.mean(axis=0)
    triangle = np.asarray(np.linalg.qr((values - middle)[:: max(1, len(values) // SAMPLES)], mode="r"))
    pivots = np.abs(np.diag(triangle))
    if pivots.min() < LEAST_PIVOT * pivots.max():
        return nothing, 0.0
    orthogonal = np.linalg.solve(triangle.T, (values - middle).T)
    sizes = (orthogonal**2).sum(axis=1)
    does, asked = (orthogonal @ (v[inside] - v[inside].mean()).astype(float) / sizes for v in (change, proven))
    kept = _towards(does, asked)
    size, whole = float(sizes @ kept**2), len(values) * float(change[inside].var(dtype=float))
    if size < LEAST**2 * len(values):
        return nothing, 0.0
    coefficients = np.linalg.solve(triangle, kept)
    return np.append(coefficients, -middle @ coefficients), min(float(np.sqrt(size / whole)), 1.0)


def _towards(does: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the part of what a stage does that is asked for: what is asked for, between nothing and what it does."""
    return np.clip(asked, np.minimum(does, 0), np.maximum(does, 0))


def proven_lookup(lookup: SectionLookup, evidence: Evidence) -> tuple[SectionLookup, np.ndarray, float]:
    """Return the maps as far as they are proven, the share of each one's level (NaN: no evidence), and of all shapes.

    Parameters
    ----------
    evidence : Evidence
        About the volume that the maps are made for.
    """
    count = len(lookup.offsets) - 1
    levels, wanted, weights = np.zeros(count), np.zeros(count), np.zeros(count)
    change = np.zeros_like(evidence.logs)
    for z in np.flatnonzero(lookup.map_of_plane >= 0).tolist():
        inside = evidence.inside[z]
        if inside.any():
            number = lookup.map_of_plane[z]
            change[z][inside] = _log_change(lookup, z, evidence.logs[z][inside])
            weights[number] += inside.sum()
            levels[number] -= change[z].sum(dtype=float)  # what is divided out
            wanted[number] += evidence.proven[z][inside].sum(dtype=float)
    some = weights > 0
    levels, wanted = (np.divide(sums, weights, out=np.zeros(count), where=some) for sums in (levels, wanted))
    weights /= max(weights.sum(), 1e-9)
    about = levels - weights @ levels  # what all have in common is no unevenness
    kept = np.where(some, _towards(about, wanted - weights @ wanted), 0)
    shape = _shape_share(lookup, evidence, change)
    x, y = lookup.knots_x, lookup.knots_y.copy()
    for number in range(count):
        part = slice(lookup.offsets[number], lookup.offsets[number + 1])
        ratio = np.divide(y[part], x[part], out=np.ones_like(x[part]), where=(x[part] > 0) & (y[part] > 0))
        own = np.log(ratio) + levels[number]
        y[part] = x[part] * np.exp(shape * own - kept[number])
    share = np.divide(kept, about, out=np.full(count, np.nan), where=some & (np.abs(about) > 1e-6))
    return replace(lookup, knots_y=y), share, shape


def _log_change(lookup: SectionLookup, z: int, logs: np.ndarray) -> np.ndarray:
    """Return the log of what the map of a plane multiplies intensities by."""
    x, y = lookup.knots(z) or (np.ones(2), np.ones(2))
    ratio = np.log(np.maximum(y[1:], 1e-12) / np.maximum(x[1:], 1e-12))
    return np.interp(np.exp(logs), x[1:], ratio).astype(np.float32)


def _shape_share(lookup: SectionLookup, evidence: Evidence, change: np.ndarray) -> float:
    """Return the share of what maps do to contrast that the contrast at cuts asks for.

    Contrast between neighbouring planes is the slope of the log ratio of voxels above each other over their mean log.
    Between planes of one section it shows what anatomy and noise do.
    """
    even = np.where(evidence.inside, evidence.logs - evidence.proven, 0)
    slopes, predicted, cut = [], [], []
    for z in range(len(even) - 1):
        both = evidence.inside[z] & evidence.inside[z + 1]
        if both.sum() < FEWEST:
            continue
        low, high = even[z][both], even[z + 1][both]
        middle = (low + high) / 2
        middle = middle - np.median(middle)
        ratio = high - low
        ratio = ratio - np.median(ratio)
        width = 1.4826 * np.median(np.abs(ratio)) + 1e-6
        weights = np.exp(-0.5 * (ratio / (1.5 * width)) ** 2)
        size = float((weights * middle**2).sum()) + 1e-9
        slopes.append(float((weights * middle * ratio).sum()) / size)
        added = change[z + 1][both] - change[z][both]
        predicted.append(float((weights * middle * (added - added.mean())).sum()) / size)
        cut.append(evidence.section[z] != evidence.section[z + 1])
    at = np.array(cut, bool)
    if at.sum() < 3 or at.all():
        return 0.0
    slope, added = np.array(slopes), np.array(predicted)
    slope, added = slope[at] - np.median(slope[~at]), added[at]
    size = max(float(added @ added), 1e-12)
    share = -float(slope @ added) / size
    error = np.sqrt(float(((slope + share * added) ** 2).mean()) / size)
    return float(np.clip(share - SURE * error, 0, 1))


def proven_plane_gain(
    histograms: Distributions,
    previous: Sequence[Any],
    sections: Any,
    sigma: float,
    min_tissue_voxels: int,
    evidence: Evidence,
) -> tuple[PlaneGain, float]:
    """Return the gains as far as they are proven, and the share of the whole ones' rms that they have.

    What smoothing leaves of a step is a ramp. So it is repeated, each time as far as what is left is proven, and ends
    where nothing is. The parameters are those of `estimate_plane_gain`, and the evidence about what it is made for.
    """
    weights = evidence.inside.sum(axis=(1, 2)).astype(float)
    wanted = np.where(evidence.inside, evidence.proven, 0).sum(axis=(1, 2), dtype=float) / np.maximum(weights, 1)
    whole = found = estimate_plane_gain(histograms, previous, sections, sigma, min_tissue_voxels)
    known = whole.measured & (weights > 0)
    weights = weights * known / max(float(weights @ known), 1e-9)
    wanted = wanted - weights @ wanted
    kept = np.zeros(len(wanted))
    for _pass in range(SMOOTHINGS):
        level = -np.log(np.where(known, found.gain, 1).astype(float))  # what is divided out
        kept += np.where(known, _towards(level - weights @ level, wanted - kept), 0)
        total = replace(whole, gain=np.exp(-kept).astype(np.float32))
        found = estimate_plane_gain(histograms, [*previous, total], sections, sigma, min_tissue_voxels)
    size = float(np.std(np.log(whole.gain[known]))) if known.any() else 0.0
    return total, min(float(np.std(kept[known])) / size, 1.0) if size > 0 else 0.0
