"""The plain B-spline: against SciPy's, against Lee's sums written out, and where samples of a shrunken fit lie."""

import itertools

import numpy as np
import pytest
from scipy.interpolate import BSpline

from n4flow.n4_bias import bspline

RNG = np.random.default_rng(0)


def scipy_spline(controls: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The uniform cubic with knots at whole numbers; control 0 sits one span before the image."""
    knots = np.arange(controls.shape[0] + 4) - 3.0
    return BSpline(knots, controls, 3, extrapolate=True)(t)


@pytest.mark.parametrize("controls", [4, 5, 11])
def test_weights_are_the_uniform_cubic(controls):
    t = np.concatenate((np.linspace(0, controls - 3, 37), RNG.uniform(0, controls - 3, 20)))
    matrix = bspline.weight_matrix(t, controls)
    assert np.allclose(matrix.sum(axis=1), 1, atol=1e-15)
    lattice = RNG.standard_normal(controls)
    assert np.allclose(matrix @ lattice, scipy_spline(lattice, t), atol=1e-14)


def test_weights_continue_the_outermost_polynomial():
    lattice = RNG.standard_normal(6)
    t = np.array([-0.5, -0.1, 3.2, 3.5])
    inside = np.linspace(0, 1, 4), np.linspace(2, 3, 4)
    expected = [
        np.polyval(np.polyfit(x - x[0], scipy_spline(lattice, x), 3), t[pick] - x[0])
        for x, pick in zip(inside, (slice(0, 2), slice(2, 4)), strict=True)
    ]
    assert np.allclose(bspline.weight_matrix(t, 6) @ lattice, np.concatenate(expected), atol=1e-12)


def test_single_control_is_constant():
    first, weights = bspline.axis_weights(np.zeros(3), 1)
    assert first.tolist() == [0, 0, 0]
    assert weights.tolist() == [[1, 0, 0, 0]] * 3


def test_refine_keeps_the_spline():
    lattice = RNG.standard_normal((4, 5, 1))
    finer = bspline.refine(lattice, (5, 7, 1))
    assert finer.shape == (5, 7, 1)
    t = [np.linspace(0, 1, 9), np.linspace(0, 2, 11), np.zeros(1)]
    doubled = [2 * t[0], 2 * t[1], t[2]]
    assert np.allclose(bspline.evaluate(lattice, t), bspline.evaluate(finer, doubled), atol=1e-14)
    assert bspline.refine(lattice, (4, 7, 1)).shape == (4, 7, 1)


def test_fit_is_lees_sum_written_out():
    shape, controls = (5, 6, 7), (4, 5, 4)
    residual, confidence = RNG.standard_normal(shape), RNG.uniform(0.1, 1, shape)
    confidence[1, 2:4] = 0
    delta, omega = np.zeros(controls), np.zeros(controls)
    tables = [bspline.axis_weights(bspline.sample_coordinates(n, c), c) for n, c in zip(shape, controls, strict=True)]
    for voxel in np.ndindex(shape):
        corners = [(tables[a][0][i], tables[a][1][i]) for a, i in enumerate(voxel)]
        weights = {
            tuple(first + k for (first, _w), k in zip(corners, offset, strict=True)): np.prod(
                [w[k] for (_first, w), k in zip(corners, offset, strict=True)]
            )
            for offset in itertools.product(range(4), repeat=3)
        }
        squares = sum(w**2 for w in weights.values())
        for place, w in weights.items():
            omega[place] += confidence[voxel] * w**2
            delta[place] += confidence[voxel] * residual[voxel] * w**3 / squares
    total = bspline.fit_weights(confidence, controls)
    assert np.allclose(total, omega, rtol=1e-12)
    assert np.allclose(bspline.fit(residual * confidence, total), delta / omega, rtol=1e-9, atol=1e-12)


def test_controls_that_saw_nothing_stay_zero():
    mask = np.zeros((20, 20))
    mask[:4, :4] = 1
    omega = bspline.fit_weights(mask, (11, 11))
    phi = bspline.fit(mask * 3.0, omega)
    assert (phi[-3:] == 0).all()
    assert np.isfinite(phi).all()


@pytest.mark.parametrize("controls", [(4, 7, 5), (11, 1, 4)])
def test_lattice_is_read_back(controls):
    lattice = RNG.standard_normal(controls)
    sizes = [bspline.reference_size(c) for c in controls]
    values = bspline.evaluate(lattice, [bspline.sample_coordinates(n, c) for n, c in zip(sizes, controls, strict=True)])
    assert np.allclose(bspline.lattice_from_samples(values, controls), lattice, atol=1e-10)


def test_grid_is_aligned_with_the_blocks():
    # 33 voxels in blocks of 4: nine samples, at the centres of their blocks
    full = bspline.grid_coordinates(33, samples=9, controls=7, per_sample=4)
    samples = np.arange(9) * 4 / 8
    assert np.isclose(np.interp(np.arange(33)[4:8].mean(), np.arange(33), full), samples[1])
    assert np.allclose(np.diff(full), 4 / 8 / 4)
    assert full[0] == pytest.approx(-0.375 * 4 / 8)  # three eighths of a sample before the first
    assert np.array_equal(bspline.grid_coordinates(5, 9, 7, per_sample=4, start=11), full[11:16])


def test_grid_is_bounded_beyond_the_last_sample():
    t = bspline.grid_coordinates(400, samples=4, controls=11, per_sample=100)
    assert t.min() == -bspline.BEYOND
    assert t.max() == 8 + bspline.BEYOND


def test_without_shrinking_both_rules_agree():
    aligned = bspline.grid_coordinates(30, 30, 7)
    assert np.allclose(aligned, bspline.sample_coordinates(30, 7), atol=1e-3 * 4 / 29)
