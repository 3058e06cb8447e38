"""Contrast between neighbouring tissue: fields and gains leave it, maps of intensity do not."""

from __future__ import annotations

import numpy as np
import pytest

from n4flow.report.local_contrast import local_contrast
from n4flow.sections import SectionTable


def test_fields_leave_local_contrast_and_maps_change_it() -> None:
    rng = np.random.default_rng(0)
    logs = np.where(rng.random((12, 64, 64)) < 0.4, 0.4, 0.0) + rng.normal(0, 0.02, (12, 64, 64))
    inside, table = np.ones(logs.shape, bool), SectionTable.equal(12, 3)
    inside[8:, 8:] = False
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    field = 0.5 * y - 0.3 * x * y + rng.normal(0, 0.2, 12)[:, None, None]
    found = local_contrast(logs, logs + field, inside, table)
    assert found[:2] == pytest.approx(1, abs=0.01)
    assert np.isnan(found[2]) or found[2] == pytest.approx(1, abs=0.02)
    dimmed = logs.copy()
    dimmed[4:8] *= 0.6
    assert local_contrast(logs, dimmed + field, inside, table)[:2] == pytest.approx([1, 0.6], abs=0.01)
    inside[4:8] = False
    assert np.isnan(local_contrast(logs, logs, inside, table)[1])
