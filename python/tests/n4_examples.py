"""Small images that the tests of N4's backends share."""

from __future__ import annotations

import numpy as np


def phantom(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two tissues with noise and a smooth field, and a mask with holes."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape], indexing="ij")
    radius = sum(a**2 for a in axes)
    tissue = np.where(axes[-1] + 0.3 * np.sin(5 * axes[-2]) > 0, 200.0, 130.0)
    field = np.exp(0.25 * axes[-1] + 0.15 * axes[0] * axes[-2] - 0.1 * radius)
    image = tissue * field * (1 + 0.03 * rng.standard_normal(shape))
    mask = (radius < 1.1) & (rng.random(shape) > 0.02)
    return image.astype(np.float32), mask
