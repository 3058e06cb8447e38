"""The two classes of tissue of which contrast is measured."""

import numpy as np
import pytest
from report_examples import anatomy, masks

from n4flow.report.measurement import class_thresholds


def test_holes_belong_to_neither_class():
    tissue, _agarose = masks()
    signal = anatomy(tissue)[tissue]
    signal[::10] = 1.0  # ventricles inside the mask
    lowest, threshold = class_thresholds(signal)
    assert lowest == pytest.approx(0.25 * np.median(signal), rel=1e-6)
    bright = anatomy(tissue, contrast=np.inf)[tissue] == np.inf
    assert np.mean((signal > threshold) == (bright & (signal > 1))) > 0.999  # a spread of 5 % around 400 and 800
