"""Flat fields: measured shading that every plane has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from n4flow.arrays import to_numpy
from n4flow.errors import InputError
from n4flow.volume import open_volume


def check_flat(flat_field: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return a flat field as float32 of mean log 0, None as None.

    Parameters
    ----------
    flat_field : (Y, X) or (1, Y, X) array, optional
    shape : tuple of int
        (Z, Y, X) of the volume.

    Raises
    ------
    InputError
        Not of a plane's shape, or not positive.
    """
    if flat_field is None:
        return None
    flat = np.asarray(to_numpy(flat_field), np.float64)
    flat = flat[0] if flat.ndim == 3 and len(flat) == 1 else flat
    if flat.shape != tuple(shape[1:]):
        msg = f"the flat field must have the shape of a plane, {tuple(shape[1:])} (Y, X), got {flat.shape}"
        raise InputError(msg)
    if not (np.isfinite(flat) & (flat > 0)).all():
        msg = "the flat field must be positive and finite everywhere; fill its holes"
        raise InputError(msg)
    return np.asarray(flat / np.exp(np.log(flat).mean()), np.float32)


def read_flat(path: str | Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a flat field for a volume of `shape` (Z, Y, X): a file of one plane, of any format that volumes have.

    Raises
    ------
    InputError
        The message names the file; see `check_flat`.
    """
    volume = open_volume(path, require_voxel_um=False)
    if volume.shape[0] != 1:
        msg = f"flat_field {Path(path).name} has {volume.shape[0]} planes; give one plane, measured or averaged"
        raise InputError(msg)
    try:
        flat = check_flat(volume.read(slice(0, 1)), shape)
    except InputError as error:
        msg = f"flat_field {Path(path).name}: {error}"
        raise InputError(msg) from error
    return np.asarray(flat)
