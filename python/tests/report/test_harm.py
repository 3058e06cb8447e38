"""Harm to tissue is measured: contrast that maps changed, and change that neighbouring planes do not prove."""

from __future__ import annotations

import numpy as np
import pytest

from n4flow.corrections.plane_gain import PlaneGain
from n4flow.corrections.proof import Evidence
from n4flow.report.assessment import changed_unproven
from n4flow.report.harm import contrast_kept, tile_products, unproven

PLANES, SIDE = 12, 64


def test_fields_leave_local_contrast_and_maps_change_it() -> None:
    rng = np.random.default_rng(0)
    logs = np.where(rng.random((PLANES, SIDE, SIDE)) < 0.4, 0.4, 0.0) + rng.normal(0, 0.02, (PLANES, SIDE, SIDE))
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    field = 0.5 * y - 0.3 * x * y + rng.normal(0, 0.2, PLANES)[:, None, None]
    dimmed = np.where(np.arange(PLANES)[:, None, None] < 6, logs, 0.6 * logs) + field
    inside = np.ones((SIDE, SIDE), bool)
    sums = np.stack([tile_products(np.exp(a), np.exp(b), inside) for a, b in zip(logs, dimmed, strict=True)], axis=1)
    found = contrast_kept(np.stack([sums[:, :6].sum(axis=1), sums[:, 6:].sum(axis=1)], axis=1))
    assert found == pytest.approx([1, 0.6], abs=0.01)
    inside[8:] = False  # one row of tiles
    assert np.isnan(contrast_kept(tile_products(np.exp(logs[0]), np.exp(logs[0]), inside)[:, None]))


def test_what_was_changed_beyond_proof_is_counted_by_stage() -> None:
    rng = np.random.default_rng(1)
    gains = rng.normal(0, 0.1, PLANES)
    proven = np.broadcast_to(gains[:, None, None], (PLANES, 8, 8)).astype(np.float32)
    inside, section = np.ones(proven.shape, bool), np.repeat([0, 1, 2], 4)
    evidence = Evidence(np.zeros_like(proven), proven, inside, section, 1, (8, 8))

    def divided_by(logs: np.ndarray) -> PlaneGain:
        return PlaneGain(np.exp(-logs).astype(np.float32), np.ones(PLANES, bool), 2.0)

    assert unproven(evidence, [divided_by(gains)])[0]["all"] == pytest.approx(0, abs=1e-4)
    assert unproven(evidence, [divided_by(gains / 2)])[0]["all"] == pytest.approx(0, abs=1e-4)
    brighter = divided_by(gains + 0.3)  # brightness as a whole is no matter
    assert unproven(evidence, [brighter])[0]["all"] == pytest.approx(0, abs=1e-4)
    wrong, of_section = unproven(evidence, [divided_by(-gains)])
    assert wrong["all"] == pytest.approx(gains.std(), rel=0.01)
    assert wrong["plane_gain"] == wrong["all"]
    about = (gains - gains.mean()).reshape(3, 4)
    np.testing.assert_allclose(of_section, np.sqrt((about**2).mean(axis=1)), rtol=1e-4)
    assert unproven(evidence, [])[0] == {"needed": pytest.approx(gains.std(), rel=1e-3), "all": 0.0}


def test_a_single_section_that_was_changed_without_proof_deserves_a_look() -> None:
    found = {"needed": 0.1, "all": 0.025}  # at most 0.03 of the volume, twice as much of a section
    for worst, said in ((0.05, ""), (0.08, "tissue of section s2 was changed by 8.0% (rms) that "), (np.nan, "")):
        change = {"unproven_worst": worst, "unproven_worst_in": "s2"}
        sentence = changed_unproven(found, 0.05, {"change": change})
        assert sentence.startswith(said)
        assert bool(sentence) is bool(said)
