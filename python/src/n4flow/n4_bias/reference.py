"""N4 in plain NumPy: read here how N4 works. Tests compare the fast implementations with it.

The observed log image u is the true log image plus a smooth field b. Each iteration subtracts the current field
(w = u - b), estimates the true intensities from the histogram of w (sharpening), fits a B-spline to the residual
w - E[true | w] and adds it to the field. A level ends when the field hardly changes any more; the next level doubles
the spans of the lattice. Lattices are added instead of fields, which is the same because evaluation is linear.

References
----------
N. J. Tustison et al., "N4ITK: Improved N3 Bias Correction", IEEE Trans. Medical Imaging 29(6), 2010.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from n4flow.n4_bias import bspline, convergence, sharpening
from n4flow.n4_bias.problem import Problem, Solution
from n4flow.n4_bias.settings import FitSettings, Level

LEAST_SPREAD = 1e-6  # Float32 hardly resolves a smaller range of log intensity, and nothing is left to correct.
MEASURES = {"itk": convergence.itk_measure, "cv": convergence.cv}


def fit(problem: Problem, controls: Sequence[tuple[int, ...]], settings: FitSettings) -> Solution:
    """Fit in float64, with the range and the convergence measure of ITK; see `engine.fit`."""
    mask = problem.mask
    observed = np.log(problem.image[mask].astype(np.float32)).astype(np.float64)
    confidence = np.ones(mask.shape) if problem.weights is None else problem.weights.astype(np.float64)
    confidence = np.where(mask, confidence, 0.0)
    lattice = np.zeros(controls[0])
    bias = np.zeros_like(observed)
    levels = []
    for level, points in enumerate(controls):
        lattice = bspline.refine(lattice, points)
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
        levels.append(Level.ended(points, measures, settings))
    return Solution(lattice, tuple(levels))


def sharpened_residual(w: np.ndarray, settings: FitSettings) -> np.ndarray:
    """Return the residual w - E[true | w] of each voxel, to which the field is fitted."""
    low, high = sharpening.itk_range(w)
    if high - low <= LEAST_SPREAD:  # The field explains all variation.
        return np.zeros_like(w)
    counts = sharpening.histogram(w, low, high, settings.bins)
    expected = sharpening.expected_log_intensity(counts, low, high, settings.fwhm, settings.wiener)
    return w - sharpening.sharpen(w, expected, low, high)
