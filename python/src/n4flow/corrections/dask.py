"""The stages on dask arrays: statistics as a delayed pass, and a correction applied chunk by chunk.

Nothing is computed here. The statistics read whole planes (chunks joined in plane, Z chunks as they are), one task
for each run of planes; their histograms merge into one small object, from which the correction is estimated once. The
result is a lazy array with the input's chunks, every one of which depends on that estimate: computing it reads the
input twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from n4flow.compute.arrays import as_mask, check_float32, is_dask, to_numpy
from n4flow.corrections.base import Correction, Where
from n4flow.statistics.histograms import PlaneHistograms
from n4flow.statistics.measure import plane_histograms


def whole_planes(vol: Any) -> Any:
    """Return a (Z, Y, X) dask array in chunks of whole planes, those along Z as they are, without empty ones."""
    return vol.rechunk((tuple(n for n in vol.chunks[0] if n), -1, -1))


def mask_parts(mask: Any, whole: Any) -> list[Any]:
    """Return the parts of a (Z, Y, X) mask, of any kind, that belong to chunks of whole planes."""
    if is_dask(mask):
        return list(mask.rechunk((whole.chunks[0], -1, -1)).to_delayed().reshape(-1))
    return [mask[a:b] for a, b in itertools.pairwise(np.cumsum((0, *whole.chunks[0])))]


def estimate_lazily(
    estimate: Callable[..., Correction],
    vol: Any,
    *args: Any,
    tissue: Any = None,
    agarose: Any = None,
    measure: Callable[..., PlaneHistograms] = plane_histograms,
) -> Any:
    """Return the delayed `estimate(histograms, *args)` of a dask array; masks may be NumPy or dask.

    `measure` returns the histograms of some planes.
    """
    import dask

    whole = whole_planes(vol)
    pieces = whole.to_delayed().reshape(-1)
    masks: list[list[Any]] = []
    for mask, name in ((tissue, "tissue mask"), (agarose, "agarose mask")):
        if mask is not None:
            mask = mask if hasattr(mask, "ndim") else np.asarray(mask)
            mask = as_mask(mask, vol.shape if mask.ndim == 3 else vol.shape[1:], name)
        if mask is not None and mask.ndim == 3:
            masks.append(mask_parts(mask, whole))
        elif mask is not None:
            mask = mask.rechunk(-1).to_delayed().item() if is_dask(mask) else dask.delayed(mask)
            masks.append([mask] * len(pieces))
        else:
            masks.append([None] * len(pieces))
    count = dask.delayed(measure)
    parts = [
        count(piece, inside, around, int(z), threads=1)
        for piece, inside, around, z in zip(pieces, *masks, np.cumsum((0, *whole.chunks[0][:-1])), strict=True)
    ]
    return dask.delayed(estimate, pure=False)(dask.delayed(PlaneHistograms.concatenate)(parts), *args)


def _apply_chunk(
    block: Any, correction: Correction, tissue: Any = None, *, shape: tuple[int, int, int], block_info: Any = None
) -> Any:
    z, y, x = (start for start, _stop in block_info[0]["array-location"])
    check_float32(block, "volume")
    values = block.astype(np.float32)
    return correction.apply(values, Where(z, y, x, shape, tissue)) if values.size else values


def apply_lazily(vol: Any, correction: Any, tissue: Any = None) -> Any:
    """Return `vol` with a delayed correction applied, lazily, chunk by chunk."""
    import dask.array as da

    arguments = [vol, correction]
    if tissue is not None:
        tissue = tissue if is_dask(tissue) else da.from_array(to_numpy(tissue), chunks=vol.chunks)
        arguments.append(tissue.rechunk(vol.chunks))
    return da.map_blocks(
        _apply_chunk, *arguments, shape=tuple(vol.shape), dtype=np.float32, meta=vol._meta.astype(np.float32)
    )
