"""The level and the type of corrected intensities."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from n4flow.errors import InputError
from n4flow.io.omezarr.planning import DTYPES
from n4flow.n4_bias.field import BiasField, Slices


def level_kept(
    field: BiasField, values: np.ndarray, fitted: np.ndarray, where: Slices, threads: int | None = None
) -> BiasField:
    """Return the field scaled so that correction by it keeps the mean intensity of the fitted voxels.

    Parameters
    ----------
    field : BiasField
    values : array
        The image, which is the part `where` of the field's domain.
    fitted : bool array
    where : tuple of slice
    threads : int, optional
    """
    if not fitted.any():
        return field
    before = float(values[fitted].mean(dtype=np.float64))
    after = float(field.apply(values, where=where, threads=threads)[fitted].mean(dtype=np.float64))
    return replace(field, lattice=field.lattice + np.float32(math.log(after / before)))  # A spline's weights sum to 1.


def result_dtype(asked: str, given: np.dtype) -> np.dtype:
    """Return the type of the result; `input` is that of the input.

    Raises
    ------
    InputError
        The input has a type that cannot be written.
    """
    kind = np.dtype((np.uint8 if given.kind == "b" else given) if asked == "input" else asked)
    if kind.name not in DTYPES:
        msg = f"dtype input asks for {kind.name}, which is not written; choose float32, or convert the input first"
        raise InputError(msg)
    return kind


def converted(values: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, int, int]:
    """Return values in a type, and how many of them were clipped to its range and how many were not finite.

    Integers are rounded, halves to even; of what is not finite, NaN becomes 0.
    """
    if dtype.kind == "f":
        return values.astype(dtype, copy=False), 0, 0
    limits = np.iinfo(dtype)
    out = np.empty(values.shape, dtype)
    clipped = undefined = 0
    for plane, target in zip(values, out, strict=True):
        rounded = np.rint(plane.astype(np.float64))  # float32 has no 2**31 - 1
        nan = np.isnan(rounded)
        clipped += int(np.count_nonzero((rounded < limits.min) | (rounded > limits.max)))
        undefined += int(np.count_nonzero(nan))
        rounded[nan] = 0
        target[...] = np.clip(rounded, limits.min, limits.max)
    return out, clipped, undefined
