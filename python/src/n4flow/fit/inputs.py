"""What a caller gave, checked and brought to the host: image, mask, weights; shrunken where that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from n4flow.arrays import to_numpy
from n4flow.errors import InputError
from n4flow.fit.shrink import shrink_masked
from n4flow.planes import as_mask


def image_and_mask(image: Any, mask: Any, weights: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return image, mask and weights on the host, checked against each other."""
    values = to_numpy(image)
    if values.ndim not in (2, 3) or values.dtype.kind not in "fiub" or 0 in values.shape:
        msg = f"expected a 2-D or 3-D array of numbers with voxels in it, got shape {values.shape} of {values.dtype}"
        raise InputError(msg)
    confidence = None
    if weights is not None:
        confidence = np.asarray(to_numpy(weights), np.float32)
        if confidence.shape != values.shape:
            msg = f"weights must have the shape of the image, {values.shape}, got {confidence.shape}"
            raise InputError(msg)
    if mask is None:
        from n4flow.mask import otsu_mask  # a stage, above this room; needed only without a mask

        return values, np.asarray(otsu_mask(values), bool), confidence
    return values, as_mask(to_numpy(mask), values.shape), confidence


def shrunken(
    values: np.ndarray, mask: np.ndarray, weights: np.ndarray | None, shrink: Sequence[int], threads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return image, mask and weights as the fit sees them."""
    if all(k == 1 for k in shrink):
        return values, mask, weights
    if values.ndim == 3:
        return shrink_masked(values, mask, weights, shrink, threads)
    given = None if weights is None else weights[None]
    mean, small_mask, small_weights = shrink_masked(values[None], mask[None], given, (1, *shrink), threads)
    return mean[0], small_mask[0], None if small_weights is None else small_weights[0]
