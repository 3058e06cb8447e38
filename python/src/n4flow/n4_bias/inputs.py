"""What a caller gave, checked and brought to the host: image, mask, weights; shrunken where that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from n4flow.compute.arrays import array_module, as_mask, to_numpy
from n4flow.compute.gpu import on_device, run_on_gpu
from n4flow.errors import InputError
from n4flow.n4_bias.gpu.evaluate import shrink_masked as shrink_on_gpu
from n4flow.n4_bias.shrink import shrink_masked


def image_and_mask(image: Any, mask: Any, weights: Any, backend: str) -> tuple[Any, Any, Any]:
    """Return image, mask and weights, checked against each other: for the GPU where the image lies, else on the host.

    Raises
    ------
    InputError
        Not an image of numbers with two or three axes, or shapes that do not match.
    """
    stays = backend == "gpu" and on_device(image)
    bring: Callable[[Any], Any] = array_module(image).asarray if stays else to_numpy
    values = bring(image)
    if values.ndim not in (2, 3) or values.dtype.kind not in "fiub" or 0 in values.shape:
        msg = f"expected a 2-D or 3-D array of numbers with voxels in it, got shape {values.shape} of {values.dtype}"
        raise InputError(msg)
    confidence = None
    if weights is not None:
        confidence = bring(weights).astype(np.float32)
        if confidence.shape != values.shape:
            msg = f"weights must have the shape of the image, {values.shape}, got {confidence.shape}"
            raise InputError(msg)
    if mask is None:
        from n4flow.n4_bias.otsu_mask import otsu_mask  # a stage, above this room; needed only without a mask

        return values, otsu_mask(values), confidence
    return values, as_mask(bring(mask), values.shape), confidence


def shrunken(
    values: Any, mask: Any, weights: Any, shrink: Sequence[int], threads: int, backend: str
) -> tuple[Any, Any, Any]:
    """Return image, mask and weights as the fit sees them; for the GPU on the device."""
    if all(k == 1 for k in shrink):
        return values, mask, weights
    if values.ndim == 2:
        given = None if weights is None else weights[None]
        mean, inside, shares = shrunken(values[None], mask[None], given, (1, *shrink), threads, backend)
        return mean[0], inside[0], None if shares is None else shares[0]
    if backend == "gpu":
        return run_on_gpu(
            lambda voxels: shrink_on_gpu(values, mask, weights, shrink, voxels), release=not on_device(values)
        )
    return shrink_masked(values, mask, weights, shrink, threads)
