"""Cubic B-splines on a lattice: weights, evaluation, refinement and Lee's fit, in plain NumPy.

An axis with c control points has m = c - 3 spans. A position on it is the parametric coordinate t from 0 (first sample)
to m (last sample). The spline at t depends on the four control points j .. j+3 of span j = floor(t); control point 0
lies one span before the image. An axis with a single sample has a single control point of weight 1: the field does not
vary along it.

The fit depends on sample indices only, not on voxel size, origin or direction of the image.

References
----------
S. Lee, G. Wolberg, S. Y. Shin, "Scattered Data Interpolation with Multilevel B-Splines", IEEE Trans. Visualization and
Computer Graphics 3(3), 1997. N. J. Tustison, J. C. Gee, "N-D C^k B-Spline Scattered Data Approximation", Insight
Journal, 2005.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

LAST_SAMPLE = 1e-3  # The last sample is moved into the last span by this share of a sample step, as in ITK.
LEAST_WEIGHT = 1.2e-8  # A control point with less total weight stays 0: no sample determines it (ITK's float epsilon).
BEYOND = 0.5  # The outermost polynomials are continued past the first and last sample by at most this many spans.


def spans(controls: int) -> int:
    """Return the number of spans of an axis with `controls` control points; 0 for a single control point."""
    return max(controls - 3, 0)


def sample_coordinates(samples: int, controls: int) -> np.ndarray:
    """Return t for every sample of the fitted image: t = i m / (n - 1).

    Returns
    -------
    (samples,) float64 array
    """
    m = spans(controls)
    if samples == 1 or m == 0:
        return np.zeros(samples)
    t = np.arange(samples) * (m / (samples - 1))
    pull = LAST_SAMPLE * m / (samples - 1)
    t[np.abs(t - m) <= pull] = m - pull
    return t


def grid_coordinates(size: int, samples: int, controls: int, *, per_sample: float = 1.0, start: int = 0) -> np.ndarray:
    """Return t for voxels `start` to `start + size` of another grid over the fitted image's field of view.

    If the fitted image was shrunken by k, sample i is the mean of the voxels i k .. i k + k - 1 and lies at their
    centre. So voxel i of the full-size grid lies at sample coordinate (i + 1/2) / k - 1/2, and t is m / (n - 1) times
    that. The first and last voxels lie up to half a sample outside; there the polynomial of the outermost span is
    continued, by at most half a span.

    Parameters
    ----------
    size : int
        Number of voxels.
    samples, controls : int
        Number of samples and of control points of the fitted image along the axis.
    per_sample : float
        Voxels of the grid per sample: k for the full-size grid.
    start : int
        Index of the first voxel.

    Returns
    -------
    (size,) float64 array
    """
    m = spans(controls)
    if samples == 1 or m == 0:
        return np.zeros(size)
    i = start + np.arange(size)
    t = ((i + 0.5) / per_sample - 0.5) * (m / (samples - 1))
    return np.clip(t, -BEYOND, m + BEYOND)


def axis_weights(t: np.ndarray, controls: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each coordinate the first of the four control points that act there, and their weights.

    With j the span and f = t - j: (1-f)^3/6, (3f^3-6f^2+4)/6, (-3f^3+3f^2+3f+1)/6, f^3/6. A coordinate outside
    the axis uses the polynomial of the nearest span.

    Returns
    -------
    first : (n,) int64 array
    weights : (n, 4) float64 array
        They sum to 1. The weights of a single control point are (1, 0, 0, 0).
    """
    t = np.asarray(t, np.float64)
    m = spans(controls)
    if m == 0:
        return np.zeros(t.size, np.int64), np.tile([1.0, 0.0, 0.0, 0.0], (t.size, 1))
    first = np.clip(np.floor(t).astype(np.int64), 0, m - 1)
    f = t - first
    g = 1.0 - f
    weights = [g**3 / 6, (3 * f**3 - 6 * f**2 + 4) / 6, (-3 * f**3 + 3 * f**2 + 3 * f + 1) / 6, f**3 / 6]
    return first, np.stack(weights, axis=1)


def weight_matrix(t: np.ndarray, controls: int) -> np.ndarray:
    """Return the (n, controls) float64 matrix of weights: values = matrix @ lattice along one axis."""
    first, weights = axis_weights(t, controls)
    matrix = np.zeros((t.size, controls))
    for k in range(min(4, controls)):
        matrix[np.arange(t.size), first + k] += weights[:, k]
    return matrix


def fit_tables(samples: int, controls: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return what Lee's fit needs of an axis, for each sample: first control point, weights w, w^3 / sum w^2, w^2."""
    first, w = axis_weights(sample_coordinates(samples, controls), controls)
    squares = w**2
    return first, w, w**3 / squares.sum(axis=1, keepdims=True), squares


def dense_weights(first: np.ndarray, weights: np.ndarray, controls: int, width: int) -> np.ndarray:
    """Return the weight of every control point at every sample: (at least 4 controls, width) float32, 0 beyond."""
    dense = np.zeros((max(controls, 4), width), np.float32)
    for k in range(4):
        dense[first + k, np.arange(first.size)] = weights[:, k]
    return dense


def contract(values: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Return `values` multiplied along each axis by a matrix, the slowest axis first."""
    for axis, matrix in enumerate(matrices):
        values = np.moveaxis(np.tensordot(matrix, values, axes=(1, axis)), 0, axis)
    return values


def evaluate(lattice: np.ndarray, coordinates: Sequence[np.ndarray]) -> np.ndarray:
    """Return the spline at every point of the grid with the given coordinates along each axis, as float64."""
    matrices = [weight_matrix(t, controls) for t, controls in zip(coordinates, lattice.shape, strict=True)]
    return contract(np.asarray(lattice, np.float64), matrices)


def refine(lattice: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return the same spline with `shape` control points: on an axis where c become 2c - 3, with twice the spans.

    Exact for uniform cubics: new[2i] = (c[i] + c[i+1]) / 2, new[2i+1] = (c[i] + 6 c[i+1] + c[i+2]) / 8.
    """
    lattice = np.asarray(lattice, np.float64)
    for axis, wanted in enumerate(shape):
        before, controls, after = lattice.shape[:axis], lattice.shape[axis], lattice.shape[axis + 1 :]
        if controls != wanted:
            stacked = lattice.reshape(math.prod(before), controls, math.prod(after))
            lattice = (_refinement(controls) @ stacked).reshape(*before, -1, *after)
    return lattice


@functools.lru_cache(maxsize=64)
def _refinement(controls: int) -> np.ndarray:
    """Return the (2c - 3, c) matrix that refines one axis."""
    matrix = np.zeros((2 * controls - 3, controls))
    i = np.arange(controls - 1)
    matrix[2 * i, i] = matrix[2 * i, i + 1] = 1 / 2
    i = i[:-1]
    matrix[2 * i + 1, i] = matrix[2 * i + 1, i + 2] = 1 / 8
    matrix[2 * i + 1, i + 1] = 6 / 8
    return matrix


def _sample_matrices(samples: Sequence[int], controls: Sequence[int]) -> list[np.ndarray]:
    """Return the weights of the control points at the samples of the fitted image, along each axis."""
    return [weight_matrix(sample_coordinates(n, c), c) for n, c in zip(samples, controls, strict=True)]


def fit_weights(mask: np.ndarray, controls: Sequence[int]) -> np.ndarray:
    """Return omega, the sum of squared weights of each control point; it depends on mask and lattice only.

    `mask` is the confidence of each voxel, 0 outside the mask.
    """
    squares = [w.T**2 for w in _sample_matrices(mask.shape, controls)]
    return contract(np.asarray(mask, np.float64), squares)


def fit(residual: np.ndarray, omega: np.ndarray) -> np.ndarray:
    """Return the lattice of Lee's least-squares fit to a residual image (Lee et al. 1997, eq. 3 and 5).

    A single voxel with residual r and tensor weights W_k would set control point k to r W_k / sum(W^2). A control point
    gets the mean of these values over its voxels, weighted by W_k^2: phi = delta / omega with
    delta_k = sum r W_k^3 / sum(W^2) and omega_k = sum W_k^2. W^2 and W^3 / sum(W^2) are products over the axes, so both
    sums are contractions along one axis after the other.

    `residual` is multiplied by confidence, and 0 outside the mask; `omega` is the result of `fit_weights`.
    """
    matrices = _sample_matrices(residual.shape, omega.shape)
    shares = [(w**3 / (w**2).sum(axis=1, keepdims=True)).T for w in matrices]
    delta = contract(np.asarray(residual, np.float64), shares)
    seen = omega > LEAST_WEIGHT
    return np.where(seen, delta / np.where(seen, omega, 1.0), 0.0)


def lattice_from_samples(values: np.ndarray, controls: Sequence[int]) -> np.ndarray:
    """Return the lattice whose spline has the given values on a grid that spans the image.

    It is the least-squares solution along each axis, well determined on a grid of `reference_size`.
    """
    inverses = [np.linalg.pinv(w) for w in _sample_matrices(values.shape, controls)]
    return contract(np.asarray(values, np.float64), inverses)


def reference_size(controls: int) -> int:
    """Return how many samples determine `controls` control points well: four in each span, and the last one."""
    return 4 * spans(controls) + 1
