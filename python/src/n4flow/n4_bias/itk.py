"""The reference backend: SimpleITK's N4BiasFieldCorrection on the image that is fitted.

SimpleITK returns the log field on a grid, but not its lattice. The lattice is computed from the field on a small grid
that determines it, with four samples in each span, by solving for the control points axis by axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from n4flow.compute.progress import advance
from n4flow.errors import InputError
from n4flow.n4_bias import bspline
from n4flow.n4_bias.problem import Problem, Solution
from n4flow.n4_bias.settings import FitSettings, Level


def fit(problem: Problem, controls: Sequence[tuple[int, ...]], settings: FitSettings) -> Solution:
    """Fit with SimpleITK.

    ITK doubles the spans of every axis from level to level. At a level where an axis must not be doubled (Z of a thin
    section), a second call fits the remaining levels to the image divided by the field so far, and the lattices are
    added. The log field is the sum of its updates, so the result is the same.

    Raises
    ------
    InputError
        Weights, over-relaxation or the measure 'cv' were chosen, which SimpleITK does not have.
    """
    _check(problem, settings)
    axes = [axis for axis, n in enumerate(problem.image.shape) if n > 1]  # ITK rejects an axis with one sample.
    image = problem.image.astype(np.float32)
    image[~problem.mask] = 1  # It may hold NaN there, which ITK does not accept.
    image, mask = image.squeeze(), problem.mask.squeeze()
    lattice = np.zeros([controls[0][axis] for axis in axes])
    levels: list[Level] = []
    for start, stop in _runs(controls):
        points = [tuple(c[axis] for axis in axes) for c in controls[start:stop]]
        lattice = bspline.refine(lattice, points[0])
        coordinates = [bspline.sample_coordinates(n, c) for n, c in zip(image.shape, lattice.shape, strict=True)]
        even = (image / np.exp(bspline.evaluate(lattice, coordinates))).astype(np.float32) if start else image
        update, measures = _run(even, mask, points, settings.iterations[start:stop], settings)
        for fine in points[1:]:
            lattice = bspline.refine(lattice, fine)
        lattice = lattice + update
        levels += [Level.ended(c, m, settings) for c, m in zip(controls[start:stop], measures, strict=True)]
    return Solution(lattice.reshape(controls[-1]), tuple(levels))


def _check(problem: Problem, settings: FitSettings) -> None:
    for wanted, name in (
        (problem.weights is not None, "weights"),
        (settings.over_relax != 1, "over_relax"),
        (settings.convergence != "itk", "convergence 'cv'"),
    ):
        if wanted:
            msg = f"backend itk has no {name}, since SimpleITK has none; use backend cpu, or leave it out"
            raise InputError(msg)


def _runs(controls: Sequence[tuple[int, ...]]) -> list[tuple[int, int]]:
    """Return the ranges of levels (first, stop) within which every axis doubles from each level to the next."""
    cuts = [0]
    for level, (coarse, fine) in enumerate(pairwise(controls), start=1):
        if any(a == b != 1 for a, b in zip(coarse, fine, strict=True)):
            cuts.append(level)
    return list(pairwise([*cuts, len(controls)]))


def _run(
    image: np.ndarray,
    mask: np.ndarray,
    controls: list[tuple[int, ...]],
    iterations: tuple[int, ...],
    settings: FitSettings,
) -> tuple[np.ndarray, list[tuple[float, ...]]]:
    """Run the filter once; return the lattice of the last level, and the measures of each level."""
    import SimpleITK as sitk

    correction = sitk.N4BiasFieldCorrectionImageFilter()
    correction.SetMaximumNumberOfIterations([int(n) for n in iterations])
    correction.SetConvergenceThreshold(settings.threshold)
    correction.SetNumberOfHistogramBins(settings.bins)
    correction.SetBiasFieldFullWidthAtHalfMaximum(settings.fwhm)
    correction.SetWienerFilterNoise(settings.wiener)
    correction.SetNumberOfControlPoints([int(c) for c in reversed(controls[0])])  # ITK orders axes from the fastest.
    correction.SetNumberOfThreads(settings.threads)
    measures: list[list[float]] = [[] for _ in iterations]

    def iterated() -> None:
        measures[correction.GetCurrentLevel()].append(correction.GetCurrentConvergenceMeasurement())
        advance(1)

    correction.AddCommand(sitk.sitkIterationEvent, iterated)
    correction.Execute(sitk.GetImageFromArray(image), sitk.GetImageFromArray(mask.astype(np.uint8)))
    sizes = [bspline.reference_size(c) for c in controls[-1]]
    grid = sitk.Image([int(n) for n in reversed(sizes)], sitk.sitkFloat32)
    log_field = sitk.GetArrayFromImage(correction.GetLogBiasFieldAsImage(grid))
    return bspline.lattice_from_samples(log_field, controls[-1]), [tuple(m) for m in measures]
