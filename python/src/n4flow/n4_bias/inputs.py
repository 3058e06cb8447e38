"""The image, mask and weights that a caller gives: checked, moved to where the backend computes, and shrunken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from n4flow.compute.arrays import array_module, as_mask, check_float32, to_numpy
from n4flow.compute.gpu import on_device, run_on_gpu
from n4flow.errors import InputError
from n4flow.n4_bias.gpu.evaluate import shrink_masked as shrink_on_gpu
from n4flow.n4_bias.otsu_mask import otsu_mask
from n4flow.n4_bias.shrink import Factors, shrink_factors, shrink_masked


class FitInput(NamedTuple):
    """The arrays to fit, shrunken by `shrink` from an image of the full-size `shape`."""

    image: Any
    mask: Any
    weights: Any
    shape: tuple[int, ...]
    shrink: tuple[int, ...]


def prepare(image: Any, mask: Any, weights: Any, shrink: Factors, backend: str, threads: int) -> FitInput:
    """Return the arrays that are fitted; without a mask, Otsu's mask of the image.

    Arrays stay on the device if `image` is there and `backend` is gpu, else they are moved to the host.

    Raises
    ------
    InputError
        The image is no array of numbers with two or three axes, shapes do not match, or a shrink factor is below 1.
    """
    stays = backend == "gpu" and on_device(image)
    bring: Callable[[Any], Any] = array_module(image).asarray if stays else to_numpy
    values = bring(image)
    if values.ndim not in (2, 3) or values.dtype.kind not in "fiub" or 0 in values.shape:
        msg = f"expected a 2-D or 3-D array of numbers with voxels in it, got shape {values.shape} of {values.dtype}"
        raise InputError(msg)
    check_float32(values, "the image")
    confidence = None
    if weights is not None:
        check_float32(weights, "weights")
        confidence = bring(weights).astype(np.float32)
        if confidence.shape != values.shape:
            msg = f"weights must have the shape of the image, {values.shape}, got {confidence.shape}"
            raise InputError(msg)
    inside = otsu_mask(values) if mask is None else as_mask(bring(mask), values.shape)
    k = shrink_factors(shrink, values.shape)
    return FitInput(*_shrunken(values, inside, confidence, k, threads, backend), values.shape, k)


def _shrunken(
    values: Any, mask: Any, weights: Any, shrink: Sequence[int], threads: int, backend: str
) -> tuple[Any, Any, Any]:
    """Return image, mask and weights shrunken by masked block means; for the GPU, on the device."""
    if all(k == 1 for k in shrink):
        return values, mask, weights
    if values.ndim == 2:
        given = None if weights is None else weights[None]
        mean, inside, shares = _shrunken(values[None], mask[None], given, (1, *shrink), threads, backend)
        return mean[0], inside[0], None if shares is None else shares[0]
    if backend == "gpu":
        return run_on_gpu(
            lambda voxels: shrink_on_gpu(values, mask, weights, shrink, voxels), release=not on_device(values)
        )
    return shrink_masked(values, mask, weights, shrink, threads)
