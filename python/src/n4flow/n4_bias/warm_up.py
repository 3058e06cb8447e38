"""Compile the kernels of the fit ahead of their use, for a container image or after an installation."""

from __future__ import annotations

from typing import Any

import numpy as np

from n4flow.n4_bias.api import fit_bias


def warm_up() -> None:
    """Fit and correct a tiny image, so that numba's cache holds every kernel of the fit and of the evaluation.

    Each kernel has a single signature, since images of other types and layouts are converted block by block.
    """
    image = 1 + np.random.default_rng(0).random((8, 16, 16)).astype(np.float32)
    options: dict[str, Any] = {"iters": (1, 1), "conv_threshold": 0, "backend": "cpu", "threads": 1}
    bias = fit_bias(image, np.ones(image.shape, bool), weights=np.ones_like(image), shrink=(1, 2, 2), **options)
    bias.apply(image, threads=1)
