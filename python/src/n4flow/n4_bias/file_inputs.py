"""The arrays that a correction of a file fits: channels of the image, mask and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from n4flow.compute.arrays import SMALLEST, as_mask, check_float32
from n4flow.errors import InputError
from n4flow.io.geometry import on_grid
from n4flow.io.omezarr.chunk_grid import listed
from n4flow.io.open import open_volume
from n4flow.io.reader import MeanReader
from n4flow.io.volume import Volume
from n4flow.n4_bias.otsu_mask import otsu_mask


def read_channel(volume: Volume, channels: Sequence[Volume]) -> np.ndarray:
    """Read one of the channels of a file; a file that is decoded as a whole is decoded once for all of them.

    Raises
    ------
    InputError
        Its values are beyond the range of float32.
    """
    first = channels[0].reader
    volume.reader.share(first)
    values = volume.read(slice(None))
    first.share(volume.reader)
    check_float32(values, volume.source.name)
    if values.dtype.kind == "f" and (values > 0).any() and not (values >= SMALLEST).any():
        below = f"has no values above {SMALLEST:.2g}, the smallest float32, in which n4flow computes"
        msg = f"{volume.source.name} {below}; multiply it by a constant"
        raise InputError(msg)
    return values


def mean_of(channels: Sequence[Volume]) -> np.ndarray:
    """Return the mean of the channels of a file as float32."""
    return replace(channels[0], reader=MeanReader([volume.reader for volume in channels])).read(slice(None))


def open_beside(path: str | Path, image: Volume, role: str, **read: Any) -> Volume:
    """Open the mask or the weights of an image, on its grid; `read` are options of `open_volume`.

    Raises
    ------
    InputError
        The file has several channels, or another grid than the image.
    """
    volume = open_volume(path, channel=0, require_voxel_um=False, **read)
    if volume.reader.channels > 1:
        msg = f"{role} must be a file of one channel, and {path} has {volume.reader.channels}; save one of them alone"
        raise InputError(msg)
    return on_grid(volume, image, role)


def read_mask(mask: Volume | None, label: int | None, image: np.ndarray, *, whole: bool = False) -> np.ndarray:
    """Return the voxels to fit: those of a mask's label, or those that `tissue_of` takes.

    Without a mask, Otsu's mask of the image, or with `whole` every voxel.

    Raises
    ------
    InputError
        The mask has no voxel of the label, or several labels and none is given.
    """
    if mask is None:
        return np.ones(image.shape, bool) if whole else otsu_mask(image)
    given = mask.read(slice(None))
    mask.reader.release()
    if label is None:
        inside: np.ndarray = as_mask(given, image.shape, f"the mask {mask.source}")
        return inside
    chosen = given == label
    if not chosen.any():
        found = [f"{value:g}" for value in np.unique(given[given != 0])]
        labels = listed(found) if found else "nothing but 0"
        msg = f"mask-label {label} is not in {mask.source}, which has {labels}; give one of its labels"
        raise InputError(msg)
    return chosen


def read_weights(weights: Volume) -> np.ndarray:
    """Return the confidence in each voxel as float32.

    Raises
    ------
    InputError
        Values are not finite or below 0.
    """
    values = weights.read(slice(None))
    weights.reader.release()
    check_float32(values, weights.source.name)
    if not (np.isfinite(values).all() and values.min() >= 0):
        msg = f"weights must be finite and at least 0, got {values.min():g} to {values.max():g} in {weights.source}"
        raise InputError(msg)
    return values.astype(np.float32)
