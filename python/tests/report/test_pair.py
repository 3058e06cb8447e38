"""A volume before and after on the same pixels, in the same units."""

import numpy as np
import pytest
from report_examples import LEVEL, SHAPE, anatomy, field, masks

from n4flow.corrections.bias_field import BiasCorrection
from n4flow.corrections.plane_range import PlaneRange
from n4flow.report.pair import Pair, log_bias_fields, middle
from n4flow.sections import SectionTable
from n4flow.statistics.measure import shrink_planes


@pytest.mark.parametrize("size", [1, 2, 3, 100, 1001])
def test_the_middle_of_values_is_numpys_median(size: int) -> None:
    rng = np.random.default_rng(size)
    for values in (rng.integers(0, 9, size).astype(np.float32) / 7, rng.normal(0, 1, size)):
        assert middle(values) == np.median(values)


def test_a_voxel_put_to_exactly_zero_counts_as_zero_after():
    tissue, agarose = masks()
    before = LEVEL + anatomy(tissue) + np.random.default_rng(0).normal(0, 5, SHAPE)
    after = np.maximum(before - LEVEL, 0) / 1000  # half of the agarose is now exactly 0, and no valid voxel
    table = SectionTable.equal(SHAPE[0], 1)
    arrays = {
        "before": shrink_planes(before.astype(np.float32), 4),
        "after": shrink_planes(after.astype(np.float32), 4),
    }
    small = tissue[:, ::4, ::4]
    pair = Pair(table, **arrays, tissue=small, agarose=agarose[::4, ::4])
    blocks = after.astype(np.float32).reshape(SHAPE[0], 10, 4, 12, 4).mean(axis=(2, 4))
    assert np.stack([pair.after(z) for z in range(SHAPE[0])]) == pytest.approx(blocks, rel=1e-5, abs=1e-9)
    lower, upper, nothing = (np.full(SHAPE[0], value, np.float32) for value in (LEVEL, 1100, 0))
    ranged = PlaneRange(lower, upper, 1000.0, nothing.astype(np.uint8), nothing)
    assert Pair(table, **arrays, tissue=small, agarose=agarose[::4, ::4], recipe=[ranged]).units.level_after == 0


def test_log_bias_fields_are_added_and_placed():
    shape = (6, 30, 20)
    sections = BiasCorrection(((0, 2, field(0.1, (2, 30, 20))), (4, 6, field(0.3, (2, 30, 20)))))
    whole = BiasCorrection(((0, 6, field(-0.5, shape)),))
    runs = list(log_bias_fields([sections, whole], shape))
    assert [(z, len(run)) for z, run in runs] == [(0, 6)]
    log = np.concatenate([run for _z, run in runs])
    assert log[:, 15, 10] == pytest.approx([-0.4, -0.4, -0.5, -0.5, -0.2, -0.2], abs=1e-6)
    assert list(log_bias_fields([], shape)) == []
