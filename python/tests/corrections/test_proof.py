"""Shares of stages: what is proven is kept, what is not is left, and nothing goes farther than the whole stage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from n4flow.corrections.base import Where
from n4flow.corrections.bias_field import BiasCorrection
from n4flow.corrections.harmonization.prepare import estimate_harmonization
from n4flow.corrections.histogram_matching import estimate_lookup
from n4flow.corrections.plane_gain import estimate_plane_gain
from n4flow.corrections.proof import Evidence, Modes, proven_bias, proven_lookup, proven_plane_gain
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
    return Evidence(logs, np.broadcast_to(np.float32(proven), SHAPE), tissue, TABLE.section_of_plane)


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
    parts = [
        correction.small_log_field(i, slice(0, b - a), SHAPE[1:]) for i, (a, b, _f) in enumerate(correction.fields)
    ]
    return np.concatenate(parts)


def test_nothing_proven_changes_nothing() -> None:
    observed, tissue = volume()
    proof = evidence(observed, tissue)
    bias, shares = proven_bias(fields(), proof)
    assert shares == [0.0] * len(TABLE)
    assert np.abs(log_fields(bias)).max() == 0
    histograms = plane_histograms(observed, tissue)
    matched, levels, shape = proven_lookup(estimate_lookup(histograms, (), TABLE), proof)
    assert np.nanmax(levels) == 0
    assert shape == 0
    np.testing.assert_allclose(matched.apply(observed.copy(), Where(0, 0, 0, SHAPE)), observed, rtol=1e-5)
    gain, share = proven_plane_gain(histograms, (), TABLE, 2.0, 100, proof)
    assert share == 0
    assert (gain.gain == 1).all()


def test_of_a_field_the_proven_modes_are_kept() -> None:
    observed, tissue = volume()
    whole = fields()
    y = np.linspace(-1, 1, SHAPE[1])[:, None]
    proven = np.stack([0.2 * (-1) ** s * y * np.ones(SHAPE[2]) for s in TABLE.section_of_plane])
    kept, shares = proven_bias(whole, evidence(observed, tissue, proven))
    found = log_fields(kept)
    assert all(0.3 < share < 0.9 for share in shares)
    for section in TABLE:  # the slope, as far as it is proven; the dome is anatomy as far as anybody knows
        inside = tissue[section.planes]
        error = (found - proven)[section.planes][inside]
        assert error.std() < 0.02
    everything, shares = proven_bias(whole, evidence(observed, tissue, 2 * log_fields(whole)))
    assert shares == pytest.approx([1.0] * len(TABLE), abs=1e-3)  # never more than the stage does
    for section in TABLE:
        inside = tissue[section.planes]
        assert (log_fields(everything) - log_fields(whole))[section.planes][inside].std() < 0.01


def test_a_margin_around_the_grid_changes_no_field_inside() -> None:
    modes = Modes(SHAPE)
    coefficients = np.random.default_rng(1).normal(size=len(modes.orders) + 1)
    lattice = modes.lattice(coefficients, (SHAPE[0], SHAPE[1] + 8, SHAPE[2] + 12))
    wide = BiasField(lattice, (SHAPE[0], 38, 52), (SHAPE[0], 38, 52), (1, 1, 1)).log_field()
    np.testing.assert_allclose(wide[:, 4:-4, 6:-6], modes.field(coefficients), atol=5e-4)
    assert Modes((1, 30, 40)).lattice(coefficients[: len(Modes((1, 30, 40)).orders) + 1], (1, 38, 52)).shape[0] == 1


def test_of_maps_the_proven_levels_are_kept_and_contrast_stays() -> None:
    observed, tissue = volume()
    gains = np.array([0.2, -0.1, 0.15, -0.25])[TABLE.section_of_plane][:, None, None]
    uneven = (observed * np.exp(gains)).astype(np.float32)
    lookup = estimate_lookup(plane_histograms(uneven, tissue), (), TABLE)
    matched, _levels, shape = proven_lookup(lookup, evidence(uneven, tissue, gains))
    ratio = np.log(matched.apply(uneven.copy(), Where(0, 0, 0, SHAPE)) / observed)[tissue]
    assert shape == 0
    whole = np.log(lookup.apply(uneven.copy(), Where(0, 0, 0, SHAPE)) / observed)[tissue]
    assert ratio.std() < 0.5 * whole.std()  # matching makes shares of classes alike, which they are not


def test_of_plane_gains_jitter_is_kept_and_anatomy_stays() -> None:
    observed, tissue = volume()
    observed[12:] *= 1.3  # a core that begins
    jitter = np.random.default_rng(2).normal(0, 0.05, SHAPE[0])[:, None, None]
    uneven = (observed * np.exp(jitter)).astype(np.float32)
    histograms = plane_histograms(uneven, tissue)
    gain, share = proven_plane_gain(histograms, (), TABLE, 2.0, 100, evidence(uneven, tissue, jitter))
    whole = estimate_plane_gain(histograms, (), TABLE, 2.0, 100)
    left, left_whole = (np.log(found.gain) + jitter[:, 0, 0] for found in (gain, whole))
    assert left.std() < 0.6 * jitter.std()
    assert left.std() < 0.6 * left_whole.std()
    assert 0.2 < share <= 1


def test_evidence_is_what_harmonize_proves() -> None:
    observed, tissue = volume()
    gains = np.array([0.2, -0.1, 0.15, -0.25])[TABLE.section_of_plane][:, None, None]
    uneven = (observed * np.exp(gains)).astype(np.float32)
    proven = estimate_harmonization(uneven, np.ones(SHAPE, np.float32), tissue, TABLE)
    proof = Evidence.of(uneven, np.ones(SHAPE, np.float32), tissue, TABLE, proven)
    even = uneven / np.exp(proof.proven)
    np.testing.assert_allclose(even[tissue], proven.apply(uneven.copy(), Where(0, 0, 0, SHAPE))[tissue], rtol=1e-4)
    np.testing.assert_allclose(proof.without(proof.proven).proven, 0, atol=1e-6)
