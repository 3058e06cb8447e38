"""Harmonisation, inside: variances told apart by where shifts happen, and the linear system."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from n4flow.compute.threads import serial_algebra
from n4flow.corrections.harmonization import evidence, kernels
from n4flow.corrections.harmonization.evidence import FLOOR, PROVEN, Shifts, components
from n4flow.corrections.harmonization.geometry import DEGREES, Geometry, N, block_means
from n4flow.corrections.harmonization.stages import trust_in_shared
from n4flow.corrections.harmonization.system import Chain, D, System


@pytest.fixture(autouse=True)
def _serial_algebra():
    """What calls these parts lets algebra take one thread; otherwise two tests side by side wait for each other."""
    with serial_algebra():
        yield


# --------------------------------------------------------------------------------------------------------- the evidence


def shifts_of(gain: float, jitter: float, seed: int, planes: int = 240, long: int = 8) -> Shifts:
    """Return shifts of known making: anatomy 0.15 of the scatter, ten times as much at three places, and a drift."""
    rng = np.random.default_rng(seed)
    section = np.arange(planes) // long
    scatter = rng.uniform(0.03, 0.06, planes - 1)
    anatomy = rng.normal(0, 0.15, planes - 1) * scatter
    anatomy[[40, 41, 150]] *= 10
    drift = Geometry((planes, 24, 24), np.arange(0, planes + 1, long)).drift
    anatomy += scatter * (drift[:-1] @ rng.normal(0, 0.2, drift.shape[1]))
    level = rng.normal(0, gain, section.max() + 1)[section] + rng.normal(0, jitter, planes)
    depth = ((np.arange(planes) % long) / max(long - 1, 1))[:, None]
    shift = np.diff(level) + anatomy - 0.5 * np.diff(depth[:, 0])
    upper = np.arange(planes - 1)
    return Shifts(
        shift, scatter, np.full(planes - 1, 1e-6), upper, upper + 1, section, np.diff(depth, axis=0), drift[:-1]
    )


def test_variances_are_told_apart_by_where_shifts_happen() -> None:
    drifts = []
    for seed in range(3):
        found = components(shifts_of(0.12, 0.03, seed)).sd
        drifts.append(found["drift"])
        assert found["gain"] == pytest.approx(0.12, rel=0.35)  # 30 gains tell their sd to 13 %, one sd
        assert found["plane"] == pytest.approx(0.03, rel=0.25)  # 240 planes, 5 %
        found = components(shifts_of(0.0, 0.0, seed)).sd
        assert found["anatomy"] == pytest.approx(
            0.15, rel=0.4
        )  # what changed ten times as much does not count as usual
        assert found["gain"] == FLOOR["gain"]
        assert found["plane"] == FLOOR["plane"]
    assert np.median(drifts) == pytest.approx(0.2, rel=0.5)  # a sd of a few knots


def test_sections_of_one_plane_tell_gain_from_anatomy_by_going_back() -> None:
    """Gain and jitter are then one thing; anatomy does not go back."""
    found = components(shifts_of(0.1, 0.0, 0, long=1)).sd
    assert np.hypot(found["gain"], found["plane"]) == pytest.approx(0.1, rel=0.25)
    still = components(shifts_of(0.0, 0.0, 0, long=1)).sd
    assert np.hypot(still["gain"], still["plane"]) < 2e-3


def test_of_anatomy_alone_nothing_is_the_instrument_s() -> None:
    shifts = shifts_of(0.0, 0.0, 0)
    shifts.shift[:] += 0.5 * shifts.depth[:, 0]
    found = components(shifts)
    assert {name: found.sd[name] for name in evidence.INSTRUMENT} == {n: FLOOR[n] for n in evidence.INSTRUMENT}
    assert max(found.proof.values()) < PROVEN


def test_what_counts_as_proven_happens_by_chance_in_one_of_a_hundred() -> None:
    """Twice the log likelihood ratio of one parameter is distributed as chi squared with one degree of freedom."""
    assert stats.chi2.sf(PROVEN, 1) == pytest.approx(0.01, rel=0.03)  # 6.6 is 6.635, rounded


def test_the_likelihood_is_that_of_the_model_written_out() -> None:
    shifts = wild(3, size=0.1, freedom=4.0)
    pairs, planes = len(shifts.shift), len(shifts.section)
    least, sd, anatomy = evidence._most_likely(shifts)

    def written_out(sd: dict[str, float]) -> tuple[float, np.ndarray]:
        step = np.zeros((pairs, planes))  # The shift of a pair is the level of its lower plane minus that of its upper.
        for i in range(pairs):
            step[i, shifts.lower[i]], step[i, shifts.upper[i]] = 1, -1
        of_section = np.equal.outer(shifts.section, shifts.section).astype(float)
        own = np.diag((sd["anatomy"] * shifts.scatter) ** 2)
        covariance = np.diag(shifts.noise) + own + sd["plane"] ** 2 * step @ step.T
        covariance += sd["gain"] ** 2 * step @ of_section @ step.T
        covariance += sd["depth"] ** 2 * shifts.depth @ shifts.depth.T
        covariance += sd["drift"] ** 2 * np.outer(shifts.scatter, shifts.scatter) * (shifts.drift @ shifts.drift.T)
        cost = -stats.multivariate_normal(cov=covariance).logpdf(shifts.shift) - pairs / 2 * np.log(2 * np.pi)
        return cost, own @ np.linalg.solve(covariance, shifts.shift)

    cost, own = written_out(sd)
    assert least == pytest.approx(cost, abs=1e-6)
    np.testing.assert_allclose(anatomy, own, atol=1e-9)  # the mean of anatomy's part, given the shifts
    for name in sd:
        for factor in (0.8, 1.25):
            assert written_out(sd | {name: max(FLOOR[name], sd[name] * factor)})[0] >= cost - 1e-6


def test_pairs_of_much_anatomy_weigh_what_student_s_t_of_four_degrees_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Student's t is a normal whose precision has a gamma distribution: a weight is its mean, given the anatomy."""
    monkeypatch.setattr(evidence, "REWEIGHTINGS", 1)
    shifts = shifts_of(0.0, 0.0, 0)
    _least, sd, anatomy = evidence._most_likely(shifts)
    found = (shifts.scatter / components(shifts).scatter) ** 2
    size = anatomy / (sd["anatomy"] * shifts.scatter)
    assert np.abs(size).max() > 1.5
    for pair in (np.abs(size).argmin(), 10, np.abs(size).argmax()):

        def density(w: float, of: float = size[pair]) -> float:
            return float(stats.norm.pdf(of, scale=w**-0.5) * stats.gamma.pdf(w, 4 / 2, scale=2 / 4))

        whole = integrate.quad(density, 0, np.inf)[0]
        mean = integrate.quad(lambda w: w * density(w), 0, np.inf)[0] / whole
        assert found[pair] == pytest.approx(mean, rel=1e-5)


# ---------------------------------------------------------------------------------------------------------- the algebra


def wild(seed: int, *, size: float, freedom: float, jitter: float = 0.03) -> Shifts:
    """Return shifts of 12 sections of 8 planes with gains of 0.12, whose anatomy has Student's t."""
    rng = np.random.default_rng(seed)
    geometry = Geometry((96, 24, 24), np.arange(0, 97, 8))
    upper, scatter = np.arange(95), np.full(95, 0.04)
    anatomy = size * scatter * rng.standard_t(freedom, 95)
    plane = jitter * rng.standard_normal(96) + 0.12 * rng.standard_normal(12)[geometry.section]
    plane += 0.25 * geometry.depth[:, 0]
    depth, drift = np.diff(geometry.depth, axis=0), geometry.drift[upper]
    return Shifts(
        np.diff(plane) + anatomy, scatter, np.full(95, 1e-7), upper, upper + 1, geometry.section, depth, drift
    )


@pytest.mark.parametrize(("freedom", "size", "seed"), [(1.5, 0.1, 0), (3.0, 0.1, 2), (3.0, 0.25, 0), (3.0, 0.25, 1)])
def test_jitter_is_proven_beside_wild_anatomy(freedom: float, size: float, seed: int) -> None:
    """With widths of Student's t that are fitted again where jitter is absent, none of these is proven."""
    found = components(wild(seed, size=size, freedom=freedom))
    assert found.proof["plane"] >= PROVEN
    assert found.sd["plane"] == pytest.approx(0.03, rel=0.25)
    assert found.sd["gain"] == pytest.approx(0.12, rel=0.5)  # 12 of them: 20 % are one sd
    without = components(wild(seed, size=size, freedom=freedom, jitter=0.0))
    assert without.proof["plane"] < PROVEN
    assert without.sd["plane"] == FLOOR["plane"]


@pytest.mark.parametrize("place", [7, 47, 231])
def test_gains_that_one_place_alone_needs_are_not_there(place: int) -> None:
    rng = np.random.default_rng(place)
    shifts = shifts_of(0.0, 0.0, seed=place)
    shifts.shift[place] -= 0.25  # a midline begins at a cut and ends in the section
    shifts.shift[place + 2] += 0.25
    found = components(shifts)
    assert found.sd["gain"] == FLOOR["gain"]
    cuts = np.flatnonzero(np.diff(shifts.section))
    shifts.shift[cuts] += 0.15 * np.diff(rng.normal(size=30))
    found = components(shifts)
    assert found.proof["gain"] >= PROVEN
    assert found.sd["gain"] == pytest.approx(0.15, rel=0.5)  # 30 gains tell their sd to 13 %, one sd


def weight_matrix(geometry: Geometry) -> np.ndarray:
    """Return (voxels of a plane, n): the spline weights of every voxel, written out."""
    fy, wy, fx, wx = geometry.axes
    side = int(np.sqrt(N))
    rows, columns = np.zeros((len(fy), side)), np.zeros((len(fx), side))
    for first, weights, matrix in ((fy, wy, rows), (fx, wx, columns)):
        for i, (start, four) in enumerate(zip(first, weights, strict=True)):
            matrix[i, start : start + 4] = four
    return np.kron(rows, columns)


def test_normal_equations_are_those_of_the_written_out_matrix() -> None:
    rng = np.random.default_rng(0)
    geometry = Geometry((2, 11, 17), np.array([0, 2]))
    weights = (rng.random((11, 17)) * (rng.random((11, 17)) > 0.3)).astype(np.float32)
    target = rng.normal(size=(11, 17)).astype(np.float32)
    gram, right = np.zeros((N, N)), np.zeros(N)
    kernels.normal_equations(weights, target, *geometry.axes, gram, right)
    b = weight_matrix(geometry)
    np.testing.assert_allclose(gram, b.T @ (weights.reshape(-1, 1) * b), atol=1e-10)
    np.testing.assert_allclose(right, b.T @ (weights.astype(float) * target).reshape(-1), atol=1e-10)


@pytest.mark.parametrize("lengths", [(4, 1, 5, 2), (7,), (1, 1, 1), (2, 3)])
def test_the_linear_solve_is_that_of_the_dense_system(lengths: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    row = np.repeat(np.arange(len(lengths)), lengths)
    m, knots = len(row), 4
    chain = Chain(np.arange(m), row, np.arange(m - 1))
    depth, drift = rng.normal(size=(m, DEGREES)), rng.normal(size=(m, knots))
    factors = rng.normal(size=(m - 1, N, 50))
    gram, right = factors @ factors.transpose(0, 2, 1) / 50, rng.normal(size=(m - 1, N))
    h, level = rng.random((m, N)), rng.normal(size=m)
    system = System(chain, depth, drift)
    scatter = rng.random(m - 1) + 0.5
    system.add_pairs(gram, right, scatter)
    system.add_levels(h, h.sum(axis=1), level)
    q = len(system.border)
    precisions = np.eye(N) * 2.0, 3.0, np.eye(q)
    system.add_priors(*precisions)
    found = system.solve()

    # the same equations, one row of unknowns: lattices, gains, border
    n_s = len(lengths)
    size = n_s * N + m + q
    gains = slice(n_s * N, n_s * N + m)

    def plane(z: int) -> np.ndarray:
        """Return (n, unknowns): the control points of plane z as the unknowns make them."""
        rows = np.zeros((N, size))
        rows[:, row[z] * N : (row[z] + 1) * N] = np.eye(N)
        rows[:, gains.start + z] = 1
        for i in range(DEGREES):
            rows[:, gains.stop + i * N : gains.stop + (i + 1) * N] = depth[z, i] * np.eye(N)
        rows[:, gains.stop + D.stop : gains.stop + D.stop + knots] = drift[z]
        return rows

    dense = np.diag(np.concatenate([np.full(n_s * N, 2.0), np.full(m, 3.0), np.ones(q)]))
    target = np.zeros(size)
    for k in range(m - 1):
        rows = plane(k + 1) - plane(k)
        rows[:, gains.stop + D.stop + knots :] = scatter[k] * drift[k]
        dense += rows.T @ gram[k] @ rows
        target += rows.T @ right[k]
    for z in range(m):
        one = h[z] @ plane(z)
        dense += np.outer(one, one) / h[z].sum()
        target += one * level[z]
    expected, covariance = np.linalg.solve(dense, target), np.linalg.inv(dense)
    np.testing.assert_allclose(found.lattices.reshape(-1), expected[: n_s * N], atol=1e-8)
    np.testing.assert_allclose(found.gains, expected[gains], atol=1e-8)
    np.testing.assert_allclose(found.border, expected[gains.stop :], atol=1e-8)
    np.testing.assert_allclose(found.border_covariance, covariance[gains.stop :, gains.stop :], atol=1e-8)
    for s in range(n_s):
        block = slice(s * N, (s + 1) * N)
        np.testing.assert_allclose(found.lattice_covariance[s], covariance[block, block], atol=1e-8)


# ----------------------------------------------------------------------------------------------------------- the belief


@pytest.mark.parametrize(
    ("changed", "share"),
    [
        ({}, 1.0),
        ({"sharpening": 0.08}, 0.5),
        ({"variance_explained": -0.1, "sharpening": 0.95, "negentropy": 0.01}, 0.0),  # rearranged, and not narrower
        ({"variance_explained": -0.1, "sharpening": 36.0, "negentropy": 0.36}, 1.0),  # shading that hid the contrast
        ({"rms_shared": 0.18}, 0.0),  # many times the sections' own: the organ
        ({"rms_section": 0.0}, 0.0),
    ],
)
def test_shared_shading_must_sharpen_explain_and_be_of_a_size(changed: dict[str, float], share: float) -> None:
    usual = {"sharpening": 0.5, "negentropy": 0.1, "variance_explained": 0.7, "rms_shared": 0.1, "rms_section": 0.045}
    assert trust_in_shared(usual | changed) == pytest.approx(share)


@pytest.mark.parametrize("k", [1, 3, 4, 50])
def test_blocks_at_the_border_are_means_of_what_they_have(k: int) -> None:
    values = np.random.default_rng(k).gamma(9, 100, (3, 26, 37)).astype(np.float32)
    found = block_means(values, k)
    expected = [[values[:, y : y + k, x : x + k].mean((1, 2), float) for x in range(0, 37, k)] for y in range(0, 26, k)]
    assert found.dtype == np.float32
    assert np.array_equal(found, np.moveaxis(expected, 2, 0).astype(np.float32))


@pytest.mark.parametrize("n", [1, 2, 3, 8, 101, 1000])
@pytest.mark.parametrize("levels", [3, 10**6])
def test_median_is_numpys(n: int, levels: int) -> None:
    """Also with many ties, in order, and backwards."""
    values = np.random.default_rng(n).integers(0, levels, n).astype(np.float32) / np.float32(7)
    for order in (values, np.sort(values), np.sort(values)[::-1].copy()):
        assert kernels.median(order.copy()) == np.median(order)
