"""`n4flow.harmonize`: an array in memory, or a lazy one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from n4flow.compute.arrays import as_block, as_mask, is_dask, takes_arrays, to_numpy
from n4flow.corrections.base import Where
from n4flow.corrections.dask import apply_lazily, mask_parts, whole_planes
from n4flow.corrections.harmonization.fields import Harmonization
from n4flow.corrections.harmonization.flat import check_flat
from n4flow.corrections.harmonization.prepare import estimate_harmonization
from n4flow.sections import SectionsLike, SectionTable
from n4flow.statistics.measure import LEAST_COVER, choose_shrink, shrink_planes
from n4flow.statistics.shrunken import ShrunkenVolume


@takes_arrays
def harmonize(
    vol: ArrayLike,
    mask: ArrayLike,
    sections: SectionsLike,
    *,
    mode: str = "safe",
    exclude: Collection[str | int] = (),
    flat_field: ArrayLike | None = None,
) -> tuple[NDArray[np.float32], Harmonization]:
    """Make sections even without harming anatomy.

    Log intensity is taken for tissue plus shading that changes with the depth in a section (identical in all sections),
    shading and gain of each section, a gain of each plane and slow drift along the stack. Voxels above each other in
    neighbouring planes show nearly the same tissue. What changes between them all over a plane is the instrument as far
    as it happens where an instrument changes (at cuts, or there and back), and anatomy otherwise.
    Slow drift is taken from how far planes are from tissue classes, as far as those classes get sharper by it.

    Shading that is the same in every plane cannot be told from anatomy that is. `safe` leaves it, `auto` takes it off
    as far as it sharpens the tissue classes and is of the size of the shading that sections have of their own, `full`
    takes it off; best is a measured `flat_field`.

    Parameters
    ----------
    vol : (Z, Y, X) array
        NumPy, CuPy or dask (then lazy); any real type; never modified. Without an additive offset.
    mask : (Z, Y, X) mask
        Tissue: bool, 0/1, 0/255 or float.
    sections : section table, path or count
        Planes that were cut and imaged together. Flagged sections are left out, and get what lies between neighbours.
    mode : {'safe', 'auto', 'full'}
    exclude : collection of str or int
        More sections to leave out, by id or index.
    flat_field : (Y, X) array, optional
        Measured shading that every plane has, positive; its scale does not matter.

    Returns
    -------
    corrected : (Z, Y, X) float32 array of the kind of `vol`
    fields : Harmonization
        The correction, with what it rests on (`summary`); delayed when `vol` is dask.

    Raises
    ------
    InputError
        Shapes that do not match, an unknown mode or section, or a flat field that is not positive.

    Notes
    -----
    Neighbours must be aligned to about a voxel of the fitted grid (the plane's longer side over 96). Time and memory
    are proportional to the number of planes; memory is a few times the shrunken volume.
    """
    block = as_block(vol)
    shape = tuple(block.shape)
    table, shrink = SectionTable.coerce(sections, shape[0]), choose_shrink(shape)
    flat = check_flat(flat_field, shape)
    options = {"mode": mode, "exclude": exclude, "flat": flat, "shrink": shrink}
    if is_dask(block):
        return _lazily(block, mask, table, shrink, options)
    inside = to_numpy(as_mask(mask, shape))
    fields = _estimate([shrink_planes(block, shrink)], [_cover(inside, shrink)], table, options)
    return fields.apply(block.astype(np.float32), Where(0, 0, 0, shape)), fields


def _estimate(
    parts: list[ShrunkenVolume], covers: list[np.ndarray], table: SectionTable, options: dict[str, Any]
) -> Any:
    """Estimate from shrunken planes and the share of every block that the mask covers, in parts along Z."""
    shrunken, tissue = ShrunkenVolume.concatenate(parts), np.concatenate(covers) >= LEAST_COVER
    return estimate_harmonization(shrunken.mean, shrunken.valid, tissue, table, **options)


def _lazily(vol: Any, mask: Any, table: SectionTable, shrink: int, options: dict[str, Any]) -> tuple[Any, Any]:
    """Shrink runs of planes as delayed tasks, estimate once, apply chunk by chunk."""
    import dask

    whole = whole_planes(vol)
    parts = [dask.delayed(shrink_planes)(block, shrink, threads=1) for block in whole.to_delayed().reshape(-1)]
    covers = [dask.delayed(_cover)(part, shrink) for part in mask_parts(as_mask(mask, vol.shape), whole)]
    fields = dask.delayed(_estimate, pure=False)(parts, covers, table, options)
    return apply_lazily(vol, fields), fields


def _cover(mask: np.ndarray, shrink: int) -> np.ndarray:
    """Return the share of every block that a mask covers."""
    return shrink_planes(mask.view(np.uint8), shrink, threads=1).valid
