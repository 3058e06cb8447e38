"""The arrays that a correction of a file fits: channels of the image, mask and weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from n4flow.compute.arrays import as_mask
from n4flow.errors import InputError
from n4flow.io.omezarr.chunk_grid import listed
from n4flow.io.open import open_volume
from n4flow.io.volume import Volume
from n4flow.n4_bias.otsu_mask import otsu_mask


def read_channel(volume: Volume, channels: Sequence[Volume]) -> np.ndarray:
    """Read one of the channels of a file; a file that is decoded as a whole is decoded once for all of them."""
    first = channels[0].reader
    volume.reader.share(first)
    values = volume.read(slice(None))
    first.share(volume.reader)
    return values


def mean_of(channels: Sequence[Volume]) -> np.ndarray:
    """Return the mean of the channels of a file as float32."""
    total = np.zeros(channels[0].shape)
    for volume in channels:
        total += read_channel(volume, channels)
    return (total / len(channels)).astype(np.float32)


def read_mask(path: str | Path | None, label: int | None, image: np.ndarray, *, whole: bool = False) -> np.ndarray:
    """Return the voxels to fit: those of a mask's label, or all of a mask that are not 0.

    Without a mask, Otsu's mask of the image, or with `whole` every voxel.

    Raises
    ------
    InputError
        The mask has another shape than the image, or no voxel of the label.
    """
    if path is None:
        return np.ones(image.shape, bool) if whole else otsu_mask(image)
    given = open_volume(path, require_voxel_um=False).read(slice(None))
    inside = as_mask(given, image.shape)
    if label is None:
        return inside
    chosen = given == label
    if not chosen.any():
        found = [f"{value:g}" for value in np.unique(given[inside])]
        labels = listed(found) if found else "nothing but 0"
        msg = f"mask-label {label} is not in {path}, which has {labels}; give one of its labels"
        raise InputError(msg)
    return chosen


def read_weights(path: str | Path, shape: Sequence[int]) -> np.ndarray:
    """Return the confidence in each voxel as float32.

    Raises
    ------
    InputError
        Another shape than that of the image, or values that are not finite or below 0.
    """
    values = open_volume(path, require_voxel_um=False).read(slice(None)).astype(np.float32)
    if values.shape != tuple(shape):
        msg = f"weights must have the shape {tuple(shape)} of the volume, got {values.shape}; resample them"
        raise InputError(msg)
    if not (np.isfinite(values).all() and values.min() >= 0):
        msg = f"weights must be finite and at least 0, got {values.min():g} to {values.max():g} in {path}"
        raise InputError(msg)
    return values
