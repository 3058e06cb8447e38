"""Flat fields: measured shading that is the same in every plane."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from n4flow.compute.arrays import to_numpy
from n4flow.errors import InputError
from n4flow.io.frame import Frame, framed
from n4flow.io.open import open_volume


def check_flat(flat_field: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return a flat field, (Y, X) or (1, Y, X), of a volume of `shape` as float32 of mean log 0, None as None.

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


def read_flat(path: str | Path, frame: Frame | None, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Read a flat field inside a frame, with a mean log of 0 there: a file of one plane, in any format of volumes.

    Parameters
    ----------
    path : path
    frame : Frame or None
        Rows and columns; None for all.
    shape : tuple of int, optional
        (Z, Y, X) of the volume it is for; that of the file without it.

    Raises
    ------
    InputError
        The message names the file; see `check_flat`.
    """
    volume = open_volume(path, require_voxel_um=False, planes=(0, 1))
    if volume.shape[0] != 1:
        msg = f"flat_field {Path(path).name} has {volume.shape[0]} planes; give one plane, measured or averaged"
        raise InputError(msg)
    try:
        check_flat(volume.read(slice(0, 1)), shape or volume.shape)
        inner = framed(volume, frame)
        flat = check_flat(inner.read(slice(0, 1)), inner.shape)
    except InputError as error:
        msg = f"flat_field {Path(path).name}: {error}"
        raise InputError(msg) from error
    return np.asarray(flat)
