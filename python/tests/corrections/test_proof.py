"""Shares of stages: what is proven is kept, what is not is left, and nothing goes farther than the whole stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from n4flow.corrections.base import Where
from n4flow.corrections.bias_field import BiasCorrection
from n4flow.corrections.harmonization.prepare import Samples, harmonization_of
from n4flow.corrections.histogram_matching import estimate_lookup
from n4flow.corrections.plane_gain import TissueMeans
from n4flow.corrections.plane_range import PlaneRange
from n4flow.corrections.proof import Evidence, Modes, proven_bias, proven_lookup, proven_plane_gain
from n4flow.io.frame import Frame
from n4flow.n4_bias import bspline
from n4flow.n4_bias.field import BiasField
from n4flow.sections import SectionTable
from n4flow.statistics.measure import plane_histograms

SHAPE, DEEP = (24, 30, 40), 6
TABLE = SectionTable.equal(SHAPE[0], SHAPE[0] // DEEP)


def volume(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return intensities of two classes whose shares change along Z, and the tissue: a disc."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SHAPE[1] * 1j, -1 : 1 : SHAPE[2] * 1j]
    radius = np.hypot(y, x)
    core = radius < np.linspace(0.3, 0.7, SHAPE[0])[:, None, None]
    noisy = np.where(core, 160.0, 100.0) * rng.normal(1, 0.02, SHAPE)
    return noisy.astype(np.float32), np.broadcast_to(radius < 0.9, SHAPE).copy()


def evidence(observed: np.ndarray, tissue: np.ndarray, proven: np.ndarray | float = 0.0) -> Evidence:
    logs = np.where(tissue, np.log(observed), 0).astype(np.float32)
    return Evidence(logs, np.float32(proven) + np.zeros_like(logs), tissue, TABLE.section_of_plane, 1, SHAPE[1:])


def fields(amount: float = 0.3) -> BiasCorrection:
    """Return a field for each section: slopes that differ, and a dome that all have."""
    y, x = np.mgrid[-1 : 1 : SHAPE[1] * 1j, -1 : 1 : SHAPE[2] * 1j]
    found = []
    for number, section in enumerate(TABLE):
        log_field = amount * ((-1) ** number * y + 0.5 * (1 - x**2 - y**2)) * np.ones((DEEP, 1, 1))
        lattice = np.zeros((4, 4, 4), np.float32)
        field = BiasField(lattice, log_field.shape, log_field.shape, (1, 1, 1))
        found.append((section.z_start, section.z_stop, _holding(field, log_field)))
    return BiasCorrection(tuple(found))


def _holding(field: BiasField, log_field: np.ndarray) -> BiasField:
    return replace(field, lattice=bspline.lattice_from_samples(log_field, (4, 4, 4)).astype(np.float32))


def log_fields(correction: BiasCorrection) -> np.ndarray:
    return correction.shrunken_log_field(slice(0, SHAPE[0]), SHAPE[1:])


def kept_of(bias: BiasCorrection, proof: Evidence) -> tuple[BiasCorrection, list[float]]:
    (kept,) = proven_bias([bias], proof)
    assert isinstance(kept, BiasCorrection)
    return kept, [field.share for _start, _stop, field in kept.fields]


def test_nothing_proven_changes_nothing() -> None:
    observed, tissue = volume()
    proof = evidence(observed, tissue)
    bias, shares = kept_of(fields(), proof)
    assert shares == [0.0] * len(TABLE)
    assert np.abs(log_fields(bias)).max() == 0
    histograms = plane_histograms(observed, tissue)
    matched = proven_lookup(estimate_lookup(histograms, (), TABLE), proof)
    assert matched.share is not None
    assert matched.share.max() == 0
    np.testing.assert_allclose(matched.apply(observed.copy(), Where(0, 0, 0, SHAPE)), observed, rtol=1e-5)
    gain = proven_plane_gain(TissueMeans.of(histograms, (), TABLE), 2.0, proof)
    assert gain.share == 0
    assert (gain.gain == 1).all()


def test_of_a_field_the_proven_modes_are_kept() -> None:
    observed, tissue = volume()
    whole = fields()
    y = np.linspace(-1, 1, SHAPE[1])[:, None]
    proven = np.stack([0.2 * (-1) ** s * y * np.ones(SHAPE[2]) for s in TABLE.section_of_plane])
    kept, shares = kept_of(whole, evidence(observed, tissue, proven))
    found = log_fields(kept)
    assert all(0.3 < share < 0.9 for share in shares)
    for section in TABLE:  # the slope, as far as it is proven; the dome is anatomy as far as anybody knows
        inside = tissue[section.planes]
        error = (found - proven)[section.planes][inside]
        assert error.std() < 0.02
    everything, shares = kept_of(whole, evidence(observed, tissue, 2 * log_fields(whole)))
    assert shares == pytest.approx([1.0] * len(TABLE), abs=1e-3)  # never more than the stage does
    for section in TABLE:
        inside = tissue[section.planes]
        assert (log_fields(everything) - log_fields(whole))[section.planes][inside].std() < 0.01


def test_a_margin_around_the_grid_changes_no_field_inside() -> None:
    modes, inside = Modes(SHAPE), np.ones(SHAPE, bool)
    coefficients = np.random.default_rng(1).normal(size=len(modes.orders) + 1)
    expected = (modes.at(inside) @ coefficients[:-1] + coefficients[-1]).reshape(SHAPE)
    lattice = modes.lattice(coefficients, inside, (SHAPE[0], SHAPE[1] + 8, SHAPE[2] + 12), (4, 11, 11))
    wide = BiasField(lattice, (SHAPE[0], 38, 52), (SHAPE[0], 38, 52), (1, 1, 1)).log_field()
    np.testing.assert_allclose(wide[:, 6:-6, 8:-8], expected[:, 2:-2, 2:-2], atol=0.03)  # it ends at the tissue's box
    coarse = Modes(SHAPE, 3)
    samples = coarse.at(np.ones((SHAPE[0], 10, 14), bool)) @ coefficients[:-1] + coefficients[-1]
    np.testing.assert_allclose(samples.reshape(SHAPE[0], 10, 14)[:, :, :13], expected[:, 1::3, 1::3], atol=1e-9)
    flat = Modes((1, 30, 40))
    one = flat.lattice(coefficients[: len(flat.orders) + 1], np.ones((1, 30, 40), bool), (1, 38, 52), (1, 4, 4))
    assert one.shape == (1, 4, 4)


def test_a_field_fitted_to_larger_samples_lies_where_its_voxels_do() -> None:
    # planes of 41 x 57 shrunken voxels of 3 x 3, fitted in samples of 2 x 2 of them, and two samples around
    k, step, samples, small, n = 3, 2, (21, 29), (41, 57), 4
    grid = (n, *(side + 4 for side in samples))
    full = (n, *(side * k * step for side in grid[1:]))
    margin = 2 * k * step
    frame = Frame(-margin, full[1] - margin, -margin, full[2] - margin)
    lattice = np.random.default_rng(2).normal(0, 0.1, (4, 6, 6)).astype(np.float32)
    field = BiasField(lattice, grid, full, (1, k * step, k * step))
    bias = BiasCorrection(((0, n, field),), frame, step)
    shape = (n, small[0] * k, small[1] * k)
    flat = bias.apply(np.ones(shape, np.float32), Where(0, 0, 0, shape))
    blocks = -np.log(flat).reshape(n, small[0], k, small[1], k).mean(axis=(2, 4))
    np.testing.assert_allclose(bias.shrunken_log_field(slice(0, n), small), blocks, atol=1e-4)  # a voxel is no point

    modes, inside = Modes((n, *small)), np.ones((n, *small), bool)
    coefficients = np.random.default_rng(1).normal(size=len(modes.orders) + 1)
    expected = (modes.at(inside) @ coefficients[:-1] + coefficients[-1]).reshape(inside.shape)
    proven = replace(field, lattice=modes.lattice(coefficients, inside, grid, (4, 11, 11), step).astype(np.float32))
    found = replace(bias, fields=((0, n, proven),)).shrunken_log_field(slice(0, n), small)
    np.testing.assert_allclose(found[:, 5:-5, 5:-5], expected[:, 5:-5, 5:-5], atol=0.03)  # it ends at the tissue's box


def test_far_from_tissue_a_proven_field_does_not_grow() -> None:
    y, x = np.mgrid[-1 : 1 : SHAPE[1] * 1j, -1 : 1 : SHAPE[2] * 1j]
    corner = np.broadcast_to(np.hypot(y + 0.6, x + 0.6) < 0.35, SHAPE).copy()
    observed, _tissue = volume()
    kept, shares = kept_of(fields(0.6), evidence(observed, corner, log_fields(fields(0.6))))
    assert min(shares) > 0.5
    found = np.abs(log_fields(kept))
    assert found.max() < 2.5 * found[corner].max()


def test_a_section_with_tissue_in_one_plane_keeps_its_field() -> None:
    observed, tissue = volume()
    tissue[:DEEP] = False
    tissue[2] = volume()[1][2]
    whole = fields()
    _kept, shares = kept_of(whole, evidence(observed, tissue, log_fields(whole)))
    assert shares[0] == pytest.approx(shares[1], abs=0.05)  # all modes but those in depth are told apart


def test_one_section_has_no_cuts() -> None:
    observed, tissue = volume()
    samples = Samples.of([(observed, np.ones(SHAPE, np.float32), tissue)], np.ones(SHAPE[0], bool))
    alone = SectionTable.equal(SHAPE[0], 1)
    proof = Evidence.of(samples, alone.section_of_plane, harmonization_of(samples, alone, mode="auto"))
    assert proof.reason is not None
    assert "one section alone has no cuts" in proof.reason


def test_of_maps_the_proven_levels_are_kept_and_contrast_stays() -> None:
    observed, tissue = volume()
    gains = np.array([0.2, -0.1, 0.15, -0.25])[TABLE.section_of_plane][:, None, None]
    uneven = (observed * np.exp(gains)).astype(np.float32)
    lookup = estimate_lookup(plane_histograms(uneven, tissue), (), TABLE)
    matched = proven_lookup(lookup, evidence(uneven, tissue, gains))
    ratio = np.log(matched.apply(uneven.copy(), Where(0, 0, 0, SHAPE)) / observed)[tissue]
    whole = np.log(lookup.apply(uneven.copy(), Where(0, 0, 0, SHAPE)) / observed)[tissue]
    assert ratio.std() < 0.5 * whole.std()  # matching makes shares of classes alike, which they are not
    low, high = (float(matched.map(np.array([value], np.float32), 0)[0]) for value in (80, 200))
    assert high / low == pytest.approx(200 / 80)


def test_of_plane_gains_jitter_is_kept_and_anatomy_stays() -> None:
    observed, tissue = volume()
    observed[12:] *= 1.3  # a core that begins
    jitter = np.random.default_rng(2).normal(0, 0.05, SHAPE[0])[:, None, None]
    uneven = (observed * np.exp(jitter)).astype(np.float32)
    histograms = plane_histograms(uneven, tissue)
    means = TissueMeans.of(histograms, (), TABLE)
    gain, whole = proven_plane_gain(means, 2.0, evidence(uneven, tissue, jitter)), means.smoothed(2.0)
    left, left_whole = (np.log(found.gain) + jitter[:, 0, 0] for found in (gain, whole))
    assert left.std() < 0.6 * jitter.std()
    assert left.std() < 0.6 * left_whole.std()
    assert 0.2 < gain.share <= 1


def test_evidence_is_what_harmonize_proves_and_survives_a_file(tmp_path: Path) -> None:
    observed, tissue = volume()
    gains = np.array([0.2, -0.1, 0.15, -0.25])[TABLE.section_of_plane][:, None, None]
    uneven = (observed * np.exp(gains)).astype(np.float32)
    samples = Samples.of([(uneven, np.ones(SHAPE, np.float32), tissue)], np.ones(SHAPE[0], bool))
    found = harmonization_of(samples, TABLE, mode="auto")
    proof = Evidence.of(samples, TABLE.section_of_plane, found)
    even = found.apply(uneven.copy(), Where(0, 0, 0, SHAPE))
    left = proof.after([found])
    np.testing.assert_allclose(np.exp(left.logs)[proof.inside], even[proof.inside], rtol=1e-4)
    np.testing.assert_allclose(left.proven[proof.inside], 0, atol=1e-6)
    proof.save(tmp_path / "evidence.npz")
    stored = Evidence.load(tmp_path / "evidence.npz")
    for name in ("logs", "proven", "inside", "section"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(proof, name))
    assert (stored.step, stored.small) == (proof.step, proof.small)


def test_agarose_that_is_put_at_zero_changes_no_proof() -> None:
    observed, tissue = volume()
    gains = np.array([0.2, -0.1, 0.15, -0.25])[TABLE.section_of_plane][:, None, None]
    planes = np.full(SHAPE[0], 50, np.float32)
    limits = PlaneRange(planes, planes + 200, 100.0, np.zeros(SHAPE[0], np.uint8), np.ones(SHAPE[0], np.float32))
    left = evidence(observed, tissue, gains).after([limits])
    np.testing.assert_allclose(np.exp(left.logs)[tissue], ((observed - 50) / 100)[tissue], rtol=1e-4)
    np.testing.assert_array_equal(left.proven, evidence(observed, tissue, gains).proven)


def test_a_stack_in_parts_gives_the_samples_of_the_whole() -> None:
    observed, tissue = volume()
    wide, inside = (np.repeat(np.repeat(a, 8, axis=1), 8, axis=2) for a in (observed, tissue))
    valid, usable = np.ones(wide.shape, np.float32), TABLE.usable_planes
    whole = Samples.of([(wide, valid, inside)], usable)
    parts = Samples.of([(wide[a:b], valid[a:b], inside[a:b]) for a, b in ((0, 5), (5, 24))], usable)
    assert whole.step == 4
    np.testing.assert_array_equal(whole.logs, parts.logs)
    np.testing.assert_array_equal(whole.inside, parts.inside)
