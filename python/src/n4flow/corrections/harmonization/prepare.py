"""From a shrunken volume to the harmonisation: which voxels take part, the fitted grid, reasons to change nothing."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from n4flow.compute.threads import reuse_threads, run_tasks, serial_algebra
from n4flow.corrections.harmonization.estimator import Estimator
from n4flow.corrections.harmonization.fields import Harmonization
from n4flow.corrections.harmonization.geometry import CONTROLS, DEGREES, Geometry, block_means, fit_step
from n4flow.corrections.harmonization.stages import Estimate, estimate
from n4flow.errors import InputError, N4flowWarning
from n4flow.sections import SectionTable, filled_planes

MODES = ("safe", "auto", "full")
FEWEST = 10  # samples of tissue that a plane must have
LEAST_VALID = 0.5  # share of valid voxels that a shrunken voxel needs
WHOLE = 0.99  # share of tissue that a fitted sample needs
STEP_RATIO = 2.0  # how much larger the steps beside the cuts must be for the table to be doubted
LEAST_STEP = 0.03  # and how large (log)
THREAD_SAMPLES = 1 << 18  # samples for each thread: a pass over fewer ends before another thread has begun


@dataclass(frozen=True)
class Samples:
    """What is compared of a volume: block means of the shrunken volume over whole tissue, without the rim.

    Parameters
    ----------
    logs : (Z, y, x) float32 array
        Log intensity, 0 outside.
    inside : (Z, y, x) bool array
        Samples of tissue that take part.
    step : int
        Shrunken voxels to a sample along Y and X.
    usable : (Z,) bool array
        Planes that may take part.
    within : slice
        Planes with valid voxels, in which depth and drift are counted; what lies around is padding.
    small : tuple of int
        (y, x) of the shrunken volume.
    """

    logs: np.ndarray
    inside: np.ndarray
    step: int
    usable: np.ndarray
    within: slice
    small: tuple[int, int]

    @classmethod
    def of(
        cls,
        parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
        usable: np.ndarray,
        *,
        shrink: int = 1,
        flat: np.ndarray | None = None,
    ) -> Samples:
        """Take samples of a shrunken volume that comes in runs of planes, so that only a few are in memory.

        Parameters
        ----------
        parts : iterable of three (z, y, x) arrays
            Mean and share of valid voxels, float32, and tissue, bool; in order of Z.
        usable : (Z,) bool array
            Planes that take part.
        shrink : int
            Voxels to a shrunken voxel.
        flat : (Y, X) array, optional
            By which the volume is divided.
        """
        shading = None if flat is None else block_means(flat[None], shrink)
        logs: list[np.ndarray] = []
        inside: list[np.ndarray] = []
        filled, z = [], 0
        for mean, valid, tissue in parts:
            step = fit_step(*mean.shape[1:])
            if shading is not None:
                mean = mean / shading
            compared = (valid >= LEAST_VALID) & tissue & usable[z : z + len(mean), None, None]
            for found, part in zip((logs, inside), _sampled(mean, compared, step), strict=True):
                found.append(part)
            filled.append(np.any(valid > 0, axis=(1, 2)))
            z, small = z + len(mean), mean.shape[1:]
        within = filled_planes(np.concatenate(filled))
        return cls(np.concatenate(logs), np.concatenate(inside), step, usable, within, (small[0], small[1]))


def estimate_harmonization(
    mean: np.ndarray,
    valid: np.ndarray,
    tissue: np.ndarray,
    sections: SectionTable,
    *,
    shrink: int = 1,
    mode: str = "safe",
    exclude: Collection[str | int] = (),
    flat: np.ndarray | None = None,
) -> Harmonization:
    """Estimate the harmonisation of a volume.

    Parameters
    ----------
    mean : (Z, y, x) float32 array
        Shrunken volume, corrected by whatever comes before.
    valid : (Z, y, x) float32 array
        Share of valid voxels of each shrunken voxel.
    tissue : (Z, y, x) bool array
    sections : SectionTable
        Flagged sections are left out, and get what lies between their neighbours.
    shrink : int
        Voxels to a shrunken voxel.
    mode, exclude, flat
        See `harmonize`. With a flat field, shading that all planes share is taken as measured.

    Returns
    -------
    Harmonization

    Raises
    ------
    InputError
        An unknown mode or section, shapes that differ, or a flat field that is not positive.
    """
    if not mean.shape == valid.shape == tissue.shape:
        msg = f"volume, valid shares and tissue must have one shape, got {mean.shape}, {valid.shape}, {tissue.shape}"
        raise InputError(msg)
    table = SectionTable.coerce(sections, len(mean))
    usable = table.usable_planes & ~_excluded(table, exclude)[table.section_of_plane]
    samples = Samples.of([(mean, valid, tissue)], usable, shrink=shrink, flat=flat)
    return harmonization_of(samples, table, shrink=shrink, mode=mode, flat=flat)


def harmonization_of(
    samples: Samples, table: SectionTable, *, shrink: int = 1, mode: str = "safe", flat: np.ndarray | None = None
) -> Harmonization:
    """Estimate the harmonisation from samples; see `estimate_harmonization`. `flat` was divided out of them."""
    if mode not in MODES:
        msg = f"mode must be {', '.join(MODES[:-1])} or {MODES[-1]}, got {mode!r}"
        raise InputError(msg)
    within, n_planes = samples.within, len(samples.logs)
    edges = table.edges(within)
    logs, inside = samples.logs[within], samples.inside[within].copy()
    if inside.any():
        logs = np.where(inside, logs - np.median(logs[inside]), np.float32(0))
    inside[inside.sum(axis=(1, 2)) < FEWEST] = False
    reason = None
    if not samples.usable.any():
        reason = "every section is flagged or excluded"
    elif not inside.any():
        reason = f"no plane has {FEWEST} samples of tissue"
    elif (inside.any(axis=(1, 2))).sum() < 2:
        reason = "only one plane has tissue, and nothing to compare it with"
    grid, shape, step = inside.shape[1:], (CONTROLS, CONTROLS), samples.step * shrink
    nothing = np.full(len(table), np.nan)
    if reason is not None:
        warnings.warn(f"harmonize leaves the volume as it is: {reason}", N4flowWarning, stacklevel=2)
        still = (np.zeros((DEGREES, *shape)), np.zeros((len(table), *shape)), np.zeros(shape), np.zeros(n_planes))
        return Harmonization(*still, edges, grid, step, mode, nothing, nothing, {}, reason, flat)
    with serial_algebra(), reuse_threads(logs.size // THREAD_SAMPLES):
        estimator = Estimator(logs, inside, Geometry(inside.shape, edges - within.start), FEWEST)
        for sentence in doubts(estimator):
            warnings.warn(sentence, N4flowWarning, stacklevel=2)
        found = estimate(estimator, mode if flat is None else "safe")
    return _harmonization(found, estimator, edges, n_planes, step, mode, flat)


def _excluded(table: SectionTable, exclude: Collection[str | int]) -> np.ndarray:
    """Return (sections,) bool: what is left out beside the flagged."""
    ids = [section.id for section in table]
    found = np.zeros(len(ids), bool)
    for wanted in exclude:
        if isinstance(wanted, str) and wanted in ids:
            found[ids.index(wanted)] = True
        elif isinstance(wanted, (int, np.integer)) and 0 <= wanted < len(ids):
            found[wanted] = True
        else:
            msg = f"exclude must name sections of the table ({ids[0]} to {ids[-1]}) or count them, got {wanted!r}"
            raise InputError(msg)
    return found


def _sampled(mean: np.ndarray, inside: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (logs, inside) of the fitted grid: samples of whole tissue, without the rim."""
    inside = inside & (mean > 0)
    if step > 1:

        def means(z: int) -> tuple[np.ndarray, np.ndarray]:
            share = block_means(inside[z : z + 1], step)[0]
            sums = block_means(np.where(inside[z], mean[z], 0)[None], step)[0]
            return np.divide(sums, share, out=np.zeros_like(sums), where=share > 0), share > WHOLE

        mean, inside = (np.stack(planes) for planes in zip(*run_tasks(means, range(len(mean))), strict=True))
    # what lies at the rim is part agarose, and the first to move when sections are not aligned; small planes keep it
    inner = ndimage.binary_erosion(inside, np.ones((1, 3, 3)))
    small = inner.sum(axis=(1, 2)) < 3 * FEWEST
    inside = np.where(small[:, None, None], inside, inner)
    return np.where(inside, np.log(np.where(inside, mean, 1)), 0).astype(np.float32), inside


def _harmonization(
    found: Estimate,
    estimator: Estimator,
    edges: np.ndarray,
    n_planes: int,
    step: int,
    mode: str,
    flat: np.ndarray | None,
) -> Harmonization:
    grid = estimator.geometry.shape[1:]
    section, live = found.section.copy(), np.isfinite(found.section[:, 0, 0])
    middles = (edges[:-1] + edges[1:]) / 2
    for place in np.ndindex(section.shape[1:]):  # a missing section lies between its neighbours
        section[(~live, *place)] = np.interp(middles[~live], middles[live], section[(live, *place)])
    # brightness as a whole is kept: the mean log field over the tissue that took part is 0
    shared = found.shared
    level = estimator.mean_field(shared)
    section -= level
    gain = np.where(live, section.mean(axis=(1, 2)), np.nan)
    return Harmonization(
        found.depth,
        section,
        shared,
        np.pad(found.plane, (edges[0], n_planes - edges[-1])),
        edges,
        (int(grid[0]), int(grid[1])),
        step,
        mode,
        gain,
        found.gain_sd,
        found.numbers,
        flat=flat,
    )


def doubts(estimator: Estimator) -> list[str]:
    """Return a sentence where steps lie beside the cuts of the section table, and not at them."""
    planes, pairs = estimator.chain.planes, estimator.chain.pairs
    n_planes, edges = estimator.geometry.shape[0], np.unique(estimator.geometry.edges)
    steps = np.full(n_planes, np.nan)  # from each plane to the next
    for i in pairs:
        if planes[i + 1] == planes[i] + 1:
            steps[planes[i]] = estimator.pairs.ratio(i)[0]
    cuts = edges[1:-1] - 1
    if len(cuts) < 3 or n_planes < 4 * (len(edges) - 1):
        return []
    steps -= np.nanmedian(steps)
    sizes = {}
    for shift in (-1, 0, 1):
        beside = steps[np.clip(cuts + shift, 0, n_planes - 1)]
        sizes[shift] = float(np.median(np.abs(beside[np.isfinite(beside)]))) if np.isfinite(beside).any() else 0.0
    worst = max((-1, 1), key=lambda shift: sizes[shift])
    if sizes[worst] > LEAST_STEP and sizes[worst] > STEP_RATIO * sizes[0]:
        side = "before" if worst < 0 else "after"
        where = f"one plane {side} the cuts of the section table ({sizes[worst]:.0%} there, {sizes[0]:.0%} at the cuts)"
        return [f"brightness steps lie {where}; check where the sections begin"]
    return []
