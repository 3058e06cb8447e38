"""Small images and fields that the tests of the GPU share."""

from __future__ import annotations

import numpy as np

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
