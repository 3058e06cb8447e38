"""N4 of an image file, written to another file: `n4flow n4`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from n4flow.errors import InputError
from n4flow.io.open import open_volume
from n4flow.io.writers import keeps_without_size, write_volume
from n4flow.n4_bias.api import fit_bias
from n4flow.n4_bias.problem import first_controls


def correct_file(
    image: str | Path,
    output: str | Path,
    *,
    mask: str | Path | None = None,
    bias: str | Path | None = None,
    iterations: Sequence[int] = (50, 50, 50, 50),
    shrink: int | Sequence[int] = 1,
    spline_um: float | None = None,
    control_points: int | Sequence[int] | None = None,
    tolerance: float = 1e-3,
    backend: str = "auto",
    voxel_um: Mapping[str, float] | None = None,
    channel: int | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Correct the bias field of one image, from any format to any format; voxel size and orientation are kept.

    The overall level of the field is ITK's, as with `fit_bias`.

    Parameters
    ----------
    image, output : path
        The corrected image is float32.
    mask : path, optional
        Voxels where it is not 0 are fitted. By default Otsu's mask.
    bias : path, optional
        File for the bias field; image = output x field.
    iterations, shrink, tolerance, backend, threads
        See `fit_bias`.
    spline_um : float, optional
        Distance of the first level's knots in micrometres: ceil(extent / distance) + 3 control points along each axis.
    control_points : int or sequence of int, optional
        Control points of the first level, 4 by default; not together with `spline_um`.
    voxel_um, channel
        See `open_volume`.

    Returns
    -------
    dict
        Facts of the fit, in JSON types.

    Raises
    ------
    InputError
        A file is missing or is no volume, shapes do not match, or an option is out of range.
    """
    if spline_um is not None and control_points is not None:
        msg = "spline_um and control_points both say how fine the lattice is; give one of them"
        raise InputError(msg)
    written = [Path(path) for path in (output, bias) if path is not None]
    volume = open_volume(image, channel=channel, voxel_um=voxel_um, require_voxel_um=spline_um is not None)
    if volume.voxel_um is None and not all(keeps_without_size(path, volume) for path in written):
        open_volume(image, channel=channel)  # raises the error that says that the voxel size is missing
    values = volume.read(slice(None))
    selected = None
    if mask is not None:
        selected = open_volume(mask, require_voxel_um=False).read(slice(None))
    points: int | Sequence[int] = 4 if control_points is None else control_points
    if spline_um is not None and volume.voxel_um is not None:
        extents = [n * volume.voxel_um[axis] for n, axis in zip(volume.shape, "zyx", strict=True)]
        points = first_controls(extents, spline_um, volume.shape)
    field = fit_bias(
        values,
        selected,
        iters=iterations,
        conv_threshold=tolerance,
        control_points=points,
        shrink=shrink,
        backend=backend,
        threads=threads,
    )
    if bias is not None:
        write_volume(bias, field.field(threads=threads), like=volume)
    corrected = values if values.dtype == np.float32 and values.flags.writeable else np.empty(values.shape, np.float32)
    write_volume(output, field.apply(values, corrected, threads=threads), like=volume)
    return {
        "shape": list(volume.shape),
        "mask": "otsu" if mask is None else str(mask),
        "iterations": [level.iterations for level in field.levels],
        "measures": [level.measures[-1] if level.measures else None for level in field.levels],
        "converged": [level.converged for level in field.levels],
        "control_points": list(field.lattice.shape),
        "shrink": list(field.shrink),
        "voxels": field.voxels.masked,
        "voxels_nonfinite": field.voxels.nonfinite,
        "voxels_nonpositive": field.voxels.nonpositive,
        "reason": field.reason,
        "backend": field.backend,
        "fit_seconds": field.seconds,
    }
