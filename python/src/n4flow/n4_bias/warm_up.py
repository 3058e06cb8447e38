"""Compile the kernels of the fit once, for a container image or after an install."""

from __future__ import annotations

import numpy as np

from n4flow.n4_bias import engine
from n4flow.n4_bias.problem import level_controls
from n4flow.n4_bias.settings import FitSettings
from n4flow.n4_bias.shrink import shrink_masked


def warm_up() -> None:
    """Fit and correct a tiny image, so that numba's cache holds every kernel of the fit and of the evaluation.

    Each kernel has a single signature: images of other types and layouts go through it too, converted piece by piece.
    """
    image = 1 + np.random.default_rng(0).random((8, 16, 16)).astype(np.float32)
    small, mask, weights = shrink_masked(image, np.ones(image.shape, bool), np.ones_like(image), (1, 2, 2), 1)
    controls = level_controls((4, 4, 4), 2, small.shape)
    settings = FitSettings(iterations=(1, 1), threshold=0)
    facts = {"shape": image.shape, "shrink": (1, 2, 2)}
    bias = engine.fit(small, mask, weights, controls=controls, settings=settings, backend="cpu", **facts)  # type: ignore[arg-type]
    bias.apply(image, threads=1)
