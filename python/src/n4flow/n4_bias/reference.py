"""N4 in a page of NumPy: the statement that the fast engine is tested against, and the place to read how N4 works.

The observed log image u is the true one plus a smooth field b. Each iteration takes the field so far off (w = u - b),
asks the histogram of w what the true intensities are (sharpening), fits a B-spline to what is left (w - E[true | w])
and adds it to the field. A level ends when the field hardly changes; the next one doubles the spans of the lattice.
The lattice, not the field, is what is accumulated: evaluating it is linear, so that is the same and smaller.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from n4flow.n4_bias import bspline, convergence, sharpening
from n4flow.n4_bias.problem import Problem, Solution, refined_axes
from n4flow.n4_bias.settings import FitSettings, Level

LEAST_SPREAD = 1e-6  # range of log intensity that float32 hardly resolves
MEASURES = {"itk": convergence.itk_measure, "cv": convergence.cv}


def fit(problem: Problem, controls: Sequence[tuple[int, ...]], settings: FitSettings) -> Solution:
    """Fit in float64, with ITK's rules for range and convergence.

    Parameters
    ----------
    problem : Problem
    controls : sequence of tuple of int
        Control points along each axis at each level.
    settings : FitSettings
    """
    mask = problem.mask
    observed = np.log(problem.image[mask].astype(np.float32)).astype(np.float64)
    confidence = np.ones(mask.shape) if problem.weights is None else problem.weights.astype(np.float64)
    confidence = np.where(mask, confidence, 0.0)
    lattice = np.zeros(controls[0])
    bias = np.zeros_like(observed)
    levels = []
    for level, points in enumerate(controls):
        if level:
            lattice = bspline.refine(lattice, refined_axes(controls[level - 1], points))
        coordinates = [bspline.sample_coordinates(n, c) for n, c in zip(mask.shape, points, strict=True)]
        omega = bspline.fit_weights(confidence, points)
        measures: list[float] = []
        while len(measures) < settings.iterations[level] and not (measures and measures[-1] <= settings.stop):
            residual = np.zeros(mask.shape)
            residual[mask] = sharpened_residual(observed - bias, settings)
            lattice = lattice + settings.over_relax * bspline.fit(residual * confidence, omega)
            updated = bspline.evaluate(lattice, coordinates)[mask]
            measures.append(MEASURES[settings.convergence](np.exp(bias - updated)))
            bias = updated
        levels.append(Level(points, tuple(measures), bool(measures) and measures[-1] <= settings.stop))
    return Solution(lattice, tuple(levels))


def sharpened_residual(w: np.ndarray, settings: FitSettings) -> np.ndarray:
    """Return w - E[true | w], what the field has to explain of each voxel."""
    low, high = sharpening.itk_range(w)
    if high - low <= LEAST_SPREAD:  # the field explains all there is
        return np.zeros_like(w)
    counts = sharpening.histogram(w, low, high, settings.bins)
    expected = sharpening.expected_log_intensity(counts, low, high, settings.fwhm, settings.wiener)
    return w - sharpening.sharpen(w, expected, low, high)
