"""Shares: how much of what a stage would do is proven, by evidence that the stage does not make true itself.

N4, matching and smoothing along Z make histograms sharp, alike and level, so sharp, alike and level histograms prove
nothing. What does is what voxels above each other in neighbouring planes say. `harmonization` makes one log field of
it, with its own doubts inside: gains, jitter, attenuation and shared shading enter only as far as they are needed. Of
what a stage divides out, the part is kept that lies between nothing and this proven field. So where nothing is proven
nothing is done, and no stage takes the volume farther from what is proven than it was, or than the whole stage would.

The parts of a field are its modes, polynomials of the place in a section; of a map it is its level; and a gain has one
part for each plane.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from n4flow.compute.threads import run_tasks, serial_algebra
from n4flow.corrections.base import Correction
from n4flow.corrections.bias_field import BiasCorrection
from n4flow.corrections.harmonization.fields import Harmonization
from n4flow.corrections.harmonization.geometry import block_means
from n4flow.corrections.plane_gain import PlaneGain, TissueMeans
from n4flow.corrections.section_lookup import SectionLookup
from n4flow.n4_bias import bspline
from n4flow.n4_bias.field import BiasField
from n4flow.statistics.plane_file import PieceFile, codec, write_pieces
from n4flow.statistics.shrunken import runs

if TYPE_CHECKING:
    from n4flow.corrections.harmonization.prepare import Samples

LEAST = 0.02  # A field whose proven part is smaller, as an rms of the log, is not divided out.
FEWEST = 20  # Samples for each mode of a field at least.
IN_PLANE, IN_DEPTH = 3, 1  # Degrees of the polynomials that are taken for an instrument's unevenness.
LEAST_PIVOT = 1e-6  # Of the largest; with less the tissue is too narrow to tell modes apart.
OUTSIDE = 0.03  # Weight of places beyond the box around tissue, where a field only must not grow.
SMOOTHINGS = 6  # Passes along Z.
MOST_SAMPLES = 20000  # Of a section, from which its modes are made orthogonal.


@dataclass(frozen=True)
class Evidence:
    """What shares are judged by, on the grid of `Samples`.

    Parameters
    ----------
    logs : (Z, y, x) float32 array
        Log intensity, 0 outside.
    proven : (Z, y, x) float32 array
        The log field that is proven.
    inside : (Z, y, x) bool array
        Samples of tissue in usable sections.
    section : (Z,) int array
        Section of each plane.
    step : int
        Shrunken voxels to a sample.
    small : tuple of int
        (y, x) of the shrunken volume.
    reason : str, optional
        Why nothing can be proven.
    """

    logs: np.ndarray
    proven: np.ndarray
    inside: np.ndarray
    section: np.ndarray
    step: int
    small: tuple[int, int]
    reason: str | None = None

    @classmethod
    def of(cls, samples: Samples, section: np.ndarray, found: Harmonization) -> Evidence:
        """Return the evidence about a volume of which these are samples, and what harmonizes it."""
        proven, reason = np.zeros_like(samples.logs), found.reason
        if reason is None:
            proven = found.shrunken_log_field(slice(0, len(proven)), proven.shape[1:])
            if len(np.unique(section[samples.inside.any(axis=(1, 2))])) < 2:
                reason = "one section alone has no cuts, at which gains and shading of sections show"
        return cls(samples.logs, proven, samples.inside, section, samples.step, samples.small, reason)

    def save(self, path: str | Path) -> None:
        """Write to a file for `load`."""
        shape, small = np.array(self.logs.shape), np.array(self.small)
        head = {"shape": shape, "section": self.section, "step": np.array(self.step), "small": small}
        head["reason"] = np.array(self.reason or "")
        planes = [p for three in zip(self.logs, self.proven, self.inside.view(np.uint8), strict=True) for p in three]
        write_pieces(path, head, run_tasks(codec().encode, planes))

    @classmethod
    def load(cls, path: str | Path) -> Evidence:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            The file is damaged, or of another version of n4flow.
        """
        file = PieceFile(path)
        shape = tuple(int(n) for n in file.head["shape"])
        logs, proven, inside = (np.empty(shape, kind) for kind in (np.float32, np.float32, bool))
        for z in range(shape[0]):
            for piece, plane in zip(file.read(3 * z, 3 * z + 3), (logs[z], proven[z], inside[z]), strict=True):
                codec().decode(piece, plane)
        y, x = file.head["small"].tolist()
        reason = str(file.head["reason"]) or None
        return cls(logs, proven, inside, file.head["section"], int(file.head["step"]), (y, x), reason)

    def log_field(self, correction: Correction, start: int, stop: int) -> np.ndarray:
        """Return (z, y, x) the log of the field that a correction divides planes by."""
        parts = [
            block_means(correction.shrunken_log_field(slice(*planes), self.small), self.step)
            for planes in runs(start, stop)
        ]
        return np.concatenate(parts)

    def divided_out(self, correction: Correction) -> np.ndarray:
        """Return (Z, y, x) the log of what a field or map divides the samples by, 0 outside and where nothing is left.

        Agarose that is put at 0 is no such thing: a gain of tissue and agarose is one of tissue above agarose, too.
        """
        found = np.zeros_like(self.logs)
        if correction.is_field:
            planes = correction.covered(len(found))
            if planes.stop > planes.start:
                field = self.log_field(correction, planes.start, planes.stop)
                found[planes] = np.where(self.inside[planes], field, 0)
            return found

        def work(z: int) -> None:
            logs = self.logs[z][self.inside[z]]
            mapped = correction.map(np.exp(logs), z)
            found[z][self.inside[z]] = logs - np.log(np.where(mapped > 0, mapped, np.exp(logs)))

        run_tasks(work, range(len(found)))
        return found

    def after(self, corrections: Iterable[Correction]) -> Evidence:
        """Return the evidence about the volume that went through corrections."""
        found = self
        for correction in corrections:
            if correction.is_field or correction.is_map:
                found = found.without(correction, found.divided_out(correction))
        return found

    def without(self, correction: Correction, change: np.ndarray) -> Evidence:
        """Return the evidence about what is left once a correction took off the log `change` (Z, y, x)."""
        proven = self.proven if correction.zeroes_agarose else self.proven - change
        return replace(self, logs=self.logs - change, proven=proven)

    def by_section(self, values: np.ndarray) -> np.ndarray:
        """Return (Z, 1, 1) the mean of (Z, y, x) values inside each plane's section."""
        counts = np.bincount(self.section, self.inside.sum(axis=(1, 2)))
        sums = np.bincount(self.section, np.where(self.inside, values, 0).sum(axis=(1, 2), dtype=float))
        return (sums / np.maximum(counts, 1))[self.section, None, None].astype(np.float32)

    def levels(self, values: np.ndarray) -> np.ndarray:
        """Return the (Z,) means of (Z, y, x) values inside; 0 in planes without samples."""
        counts = self.inside.sum(axis=(1, 2))
        return np.where(self.inside, values, 0).sum(axis=(1, 2), dtype=float) / np.maximum(counts, 1)


@dataclass(frozen=True)
class Modes:
    """Polynomials of a section: of the place in plane and in depth; each a way in which an instrument is uneven.

    Products of Legendre polynomials, of degree `IN_PLANE` at most together in plane and `IN_DEPTH` at most along Z,
    without the constant.

    Parameters
    ----------
    shape : tuple of int
        (z, y, x) of a section on the shrunken grid.
    step : int
        Shrunken voxels to a sample along Y and X.
    """

    shape: tuple[int, int, int]
    step: int = 1

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

    def at(self, inside: np.ndarray, first: int = 0) -> np.ndarray:
        """Return the (samples, modes) values at the samples inside, of planes from `first` on."""
        z, y, x = np.nonzero(inside)
        depth, rows, columns = (_polynomials(self._middles(axis)) for axis in range(3))
        return np.stack([depth[z + first, k] * rows[y, i] * columns[x, j] for k, i, j in self.orders], axis=1)

    def lattice(
        self, coefficients: np.ndarray, inside: np.ndarray, wide: Sequence[int], controls: Sequence[int], k: int = 1
    ) -> np.ndarray:
        """Return the lattice of the sum of modes over a fitted grid that is wider by a margin on either side.

        A cubic grows without bounds where there is no tissue. So it ends at the box around it: what lies beyond has the
        value at the nearest side.

        Parameters
        ----------
        coefficients : (modes + 1,) array
            The last is that of the constant.
        inside : (z, y, x) bool array
            Samples of tissue.
        wide : tuple of int
            (z, y, x) of that grid.
        controls : tuple of int
            Control points along each axis.
        k : int
            Shrunken voxels to a sample of that grid along Y and X.
        """
        axes = []
        for axis, (n, total, count) in enumerate(zip(self.shape, wide, controls, strict=True)):
            used = np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis})))
            low, high = self._middles(axis)[used[[0, -1]]]
            size = k if axis else 1  # a sample lies in the middle of its block
            margin = (total - -(-n // size)) // 2
            start = size - n - 2 * size * margin
            stop = start + 2 * size * (total - 1)
            places = np.linspace(start / max(n - 1, 1), stop / max(n - 1, 1), total)
            believed = np.where((places >= low) & (places <= high), 1, OUTSIDE)[:, None]
            splines = bspline.weight_matrix(bspline.sample_coordinates(total, count), count)
            values = _polynomials(np.clip(places, low, high))
            axes.append(np.linalg.lstsq(believed * splines, believed * values, rcond=None)[0])
        cube = np.zeros((IN_PLANE + 1,) * 3)
        for order, value in zip([*self.orders, (0, 0, 0)], coefficients, strict=True):
            cube[order] = value
        return np.asarray(np.einsum("kij,zk,yi,xj->zyx", cube, *axes, optimize=True))

    def _middles(self, axis: int) -> np.ndarray:
        """Return the places of planes, or of the middles of samples, along an axis: -1 to 1 over the shrunken grid."""
        n, step = self.shape[axis], self.step if axis else 1
        first = np.arange(0, n, step)
        return (first + np.minimum(first + step, n) - 1) / max(n - 1, 1) - 1


def _polynomials(places: np.ndarray) -> np.ndarray:
    return np.asarray(np.polynomial.legendre.legvander(places, IN_PLANE))


def towards(does: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the part of what a stage does that is asked for: what is asked for, between nothing and what it does."""
    return np.clip(asked, np.minimum(does, 0), np.maximum(does, 0))


def proven_bias(recipe: Iterable[Correction], evidence: Evidence) -> list[Correction]:
    """Return a recipe with its bias fields as far as they are proven, each with the share of it that is kept."""
    found: list[Correction] = []
    for correction in recipe:
        evidence = evidence.after(found[-1:])
        if isinstance(correction, BiasCorrection):
            with serial_algebra():
                fields = run_tasks(partial(_proven_field, correction, evidence=evidence), correction.fields)
            correction = replace(correction, fields=tuple(fields))
        found.append(correction)
    return found


def _proven_field(
    correction: BiasCorrection, part: tuple[int, int, BiasField], evidence: Evidence
) -> tuple[int, int, BiasField]:
    """Return the field of a run of planes as far as it is proven."""
    start, stop, field = part
    if field.reason is not None:
        return part
    modes = Modes((stop - start, *evidence.small), evidence.step)
    coefficients, share = _proven_modes(evidence, start, stop, evidence.log_field(correction, start, stop), modes)
    lattice = np.zeros_like(field.lattice)
    if share > 0:
        inside = evidence.inside[start:stop]
        lattice[...] = modes.lattice(coefficients, inside, field.grid_shape, field.lattice.shape, correction.step)
    return start, stop, replace(field, lattice=lattice, share=share)


def _proven_modes(
    evidence: Evidence, start: int, stop: int, change: np.ndarray, modes: Modes
) -> tuple[np.ndarray, float]:
    """Return the coefficients of what is proven of the log field of planes `start` to `stop`, and its share.

    Field and proof are taken apart into modes that are orthogonal over the tissue of these planes. What is finer is
    anatomy, and levels are for the stages that come after.
    """
    proven, inside = evidence.proven[start:stop], evidence.inside[start:stop]
    n, count = len(modes.orders), int(inside.sum())
    found = np.zeros(n + 1)
    if count < FEWEST * len(found):
        return found, 0.0
    products, some, seen, stride = np.zeros((n + 3, n + 3)), [], 0, max(1, count // MOST_SAMPLES)
    for first, last in runs(0, len(inside)):  # the values of all modes at all samples would take most of the memory
        part, planes = inside[first:last], slice(first, last)
        values = [modes.at(part, first), change[planes][part], proven[planes][part], np.ones(int(part.sum()))]
        rows = np.column_stack(values)
        products += rows.T @ rows
        some.append(rows[-seen % stride :: stride, :n])
        seen += len(rows)
    means = products[-1] / count
    products -= count * np.outer(means, means)
    centred = np.concatenate(some) - means[:n]
    pivots = np.abs(np.diag(np.linalg.qr(centred, mode="r")))
    told = np.flatnonzero(pivots >= LEAST_PIVOT * pivots.max())  # from those before them, in this tissue
    triangle = np.asarray(np.linalg.qr(centred[:, told], mode="r"))
    orthogonal = np.linalg.inv(triangle).T
    sizes = np.diag(orthogonal @ products[np.ix_(told, told)] @ orthogonal.T)
    does, asked = (orthogonal @ products[told, column] / sizes for column in (n, n + 1))
    kept = towards(does, asked)
    size, whole = float(sizes @ kept**2), float(products[n, n])
    if size < LEAST**2 * count:
        return found, 0.0
    found[told] = np.linalg.solve(triangle, kept)
    found[n] = -means[:n] @ found[:n]
    return found, min(float(np.sqrt(size / whole)), 1.0)


def proven_lookup(lookup: SectionLookup, evidence: Evidence) -> SectionLookup:
    """Return the maps as far as they are proven, gains of their levels, with the share of each.

    What a map does to contrast stays out. Contrast between neighbouring planes, the slope of the log ratio of samples
    above each other over their mean log, also changes at cuts with shading that is left, and proves maps that are
    wrong.

    Parameters
    ----------
    lookup : SectionLookup
    evidence : Evidence
        About the volume that the maps are made for.
    """
    count = len(lookup.offsets) - 1
    change, mapped = evidence.divided_out(lookup), lookup.map_of_plane >= 0
    plane_weight = evidence.inside.sum(axis=(1, 2)) * mapped
    of_plane = np.where(mapped, lookup.map_of_plane, 0)

    def by_map(values: np.ndarray) -> np.ndarray:
        return np.bincount(of_plane, values * plane_weight, count)[:count]

    weights = by_map(np.ones(len(of_plane)))
    some = weights > 0
    levels, wanted = (
        np.divide(by_map(evidence.levels(v)), weights, out=np.zeros(count), where=some)
        for v in (change, evidence.proven)
    )
    weights = weights / max(weights.sum(), 1e-9)
    about = levels - weights @ levels  # what all have in common is no unevenness
    kept = np.where(some, towards(about, wanted - weights @ wanted), 0)
    gain = np.exp(-kept)
    knots = lookup.threshold + (lookup.knots_x - lookup.threshold) * np.repeat(gain, np.diff(lookup.offsets))
    share = np.divide(kept, about, out=np.zeros(count), where=some & (np.abs(about) > 1e-6))
    return replace(lookup, knots_y=knots, share=share, slope_above=None, most=None)


def proven_plane_gain(means: TissueMeans, sigma: float, evidence: Evidence) -> PlaneGain:
    """Return the gains as far as they are proven, with the share of the whole ones' rms that they have.

    What smoothing leaves of a step is a ramp. So it is repeated, each time as far as what is left is proven, and ends
    where nothing is.

    Parameters
    ----------
    means : TissueMeans
    sigma : float
        Sigma of the Gaussian, planes.
    evidence : Evidence
        About the volume whose means these are.
    """
    whole = means.smoothed(sigma)
    weights = evidence.inside.sum(axis=(1, 2)) * whole.measured.astype(float)
    known = weights > 0
    weights /= max(float(weights.sum()), 1e-9)
    wanted = evidence.levels(evidence.proven)
    wanted = wanted - weights @ wanted
    kept = np.zeros(len(wanted))
    for _pass in range(SMOOTHINGS):
        gain = means.times(np.exp(-kept)).smoothed(sigma).gain.astype(float)
        level = -np.log(np.where(known, gain, 1))  # what is divided out
        kept += np.where(known, towards(level - weights @ level, wanted - kept), 0)
    if known.any():  # planes with too little tissue to compare are as their neighbours
        bare = np.flatnonzero(whole.measured & ~known)
        kept[bare] = np.interp(bare, np.flatnonzero(known), kept[known])
    size = float(np.std(np.log(whole.gain[known]))) if known.any() else 0.0
    share = min(float(np.std(kept[known])) / size, 1.0) if size > 0 else 0.0
    return replace(whole, gain=np.exp(-kept).astype(np.float32), share=share)
