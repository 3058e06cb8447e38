"""Small volumes before and after a correction, whose metrics are known."""

import json

import numpy as np

from n4flow.n4_bias.field import BiasField
from n4flow.report.metrics import pair_metrics
from n4flow.report.pair import Pair
from n4flow.sections import Section, SectionTable
from n4flow.statistics.measure import shrink_planes

LEVEL = 100.0  # agarose of the made volumes, before
SHAPE = (12, 40, 48)
GAINS = (1.0, 1.3, 0.8)


def masks(shape=SHAPE):
    """A block of tissue in agarose."""
    tissue = np.zeros(shape, bool)
    tissue[:, 8:32, 10:40] = True
    return tissue, ~tissue.any(axis=0)


def anatomy(tissue, contrast=2.0, seed=0):
    """Signal of two classes in stripes six pixels wide, with texture that is the same in every plane."""
    texture = np.random.default_rng(seed).lognormal(0, 0.05, tissue.shape[1:])
    bright = (np.arange(tissue.shape[2]) // 6 % 2).astype(bool)
    return np.where(tissue, 400 * texture * np.where(bright, contrast, 1.0), 0.0)


def case(gains=GAINS, trend=0.0, flags=("ok", "ok", "ok")):
    """Sections with known gains and attenuation: what was seen, the truth, masks and the table."""
    tissue, agarose = masks()
    signal = anatomy(tissue)
    depth = SHAPE[0] // 3
    table = SectionTable([Section(f"s{i}", i * depth, (i + 1) * depth, flags[i]) for i in range(3)], SHAPE[0])
    factor = np.repeat(gains, depth) * np.exp(trend * (np.arange(SHAPE[0]) % depth))
    return LEVEL + signal * factor[:, None, None], LEVEL + signal, tissue, agarose, table


def measured(before, after, tissue, agarose, table, recipe=(), shrink=1):
    """Return the metrics of full volumes and masks."""
    volumes = [shrink_planes(volume.astype(np.float32), shrink) for volume in (before, after)]
    numbers = pair_metrics(Pair(table, *volumes, tissue, agarose, recipe))
    json.dumps(numbers, allow_nan=False)  # JSON types, and no NaN
    return numbers


def field(log, shape):
    """A bias field that is exp(log) everywhere."""
    lattice = np.full([1 if n == 1 else 4 for n in shape], log, np.float32)
    return BiasField(lattice, shape, shape, (1, 1, 1))
