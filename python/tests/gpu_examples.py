"""Small images, fields and corrections that tests share, those of the GPU above all."""

from __future__ import annotations

import numpy as np

from n4flow.corrections.background import SpatialMeanBackground
from n4flow.corrections.bias_field import BiasCorrection
from n4flow.corrections.plane_gain import PlaneGain
from n4flow.corrections.plane_range import PlaneRange
from n4flow.corrections.section_lookup import SectionLookup
from n4flow.n4_bias.field import BiasField


def phantom(shape=(9, 30, 37), seed=0):
    """Two tissues with noise and a smooth field, and a mask."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape], indexing="ij")
    tissue = np.where(axes[-1] + 0.3 * np.sin(5 * axes[-2]) > 0, 200.0, 130.0)
    image = tissue * np.exp(0.25 * axes[-1] + 0.15 * axes[0] * axes[-2]) * (1 + 0.03 * rng.standard_normal(shape))
    mask = sum(a**2 for a in axes) < 1.1
    image[(0,) * len(shape)] = 0
    return image.astype(np.float32), mask


def some_field(shape, shrink=None, seed=2, scale=0.5):
    rng = np.random.default_rng(seed)
    k = (1,) * len(shape) if shrink is None else shrink
    grid = tuple(-(-n // s) for n, s in zip(shape, k, strict=True))
    lattice = rng.uniform(-scale, scale, [1 if n == 1 else 5 for n in grid]).astype(np.float32)
    return BiasField(lattice, grid, shape, k)


def some_recipe(shape, seed=0):
    """Corrections of every kind, on planes of two sections and one that is in none."""
    rng = np.random.default_rng(seed)
    n_z = shape[0]
    fields = BiasCorrection(((0, 3, some_field((3, *shape[1:]))), (4, n_z, some_field((n_z - 4, *shape[1:]), seed=4))))
    lower = rng.uniform(20, 40, n_z).astype(np.float32)
    upper = lower + rng.uniform(100, 200, n_z).astype(np.float32)
    nothing = np.zeros(n_z, np.uint8)
    limits = PlaneRange(lower, upper, 180.0, nothing, nothing.astype(np.float32))
    knots_x = np.concatenate([[0.1, 0.2, 0.35, 0.8], [0.1, 0.15, 0.6]])
    knots_y = np.concatenate([[0.1, 0.25, 0.3, 0.9], [0.1, 0.2, 0.5]])
    number = np.array([0] * 3 + [-1] + [1] * (n_z - 4), np.int32)
    lookup = SectionLookup(0.1, number, nothing, np.array([0, 4, 7]), knots_x, knots_y)
    gain = PlaneGain(rng.uniform(0.8, 1.2, n_z).astype(np.float32), nothing == 0, 2.0)
    return [SpatialMeanBackground((3.0, 3.0)), fields, limits, lookup, gain]
