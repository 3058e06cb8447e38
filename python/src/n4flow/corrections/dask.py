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

from n4flow.compute.arrays import as_mask, is_dask, to_numpy
from n4flow.corrections.base import Correction, Where
from n4flow.statistics.histograms import PlaneHistograms
from n4flow.statistics.measure import plane_histograms


class LazyHistograms:
    """Histograms of a dask array that are not counted yet."""

    def __init__(self, delayed: Any) -> None:
        self.delayed = delayed

    def then(self, estimate: Callable[..., Correction], *args: Any, **kwargs: Any) -> Any:
        """Return the delayed result of `estimate(histograms, ...)`."""
        import dask

        return dask.delayed(estimate, pure=False)(self.delayed, *args, **kwargs)


def whole_planes(vol: Any) -> Any:
    """Return a (Z, Y, X) dask array in chunks of whole planes, those along Z as they are, without empty ones."""
    return vol.rechunk((tuple(n for n in vol.chunks[0] if n), -1, -1))


def count_lazily(vol: Any, tissue: Any = None, agarose: Any = None) -> LazyHistograms:
    """Return the plane histograms of a dask array as a delayed object; masks may be NumPy or dask."""
    import dask

    whole = whole_planes(vol)
    starts = np.cumsum((0, *whole.chunks[0]))
    pieces = whole.to_delayed().reshape(-1)
    masks: list[list[Any]] = []
    for mask, name in ((tissue, "tissue mask"), (agarose, "agarose mask")):
        if mask is not None:
            mask = mask if hasattr(mask, "ndim") else np.asarray(mask)
            mask = as_mask(mask, vol.shape if mask.ndim == 3 else vol.shape[1:], name)
            if is_dask(mask):
                mask = mask.rechunk((whole.chunks[0], -1, -1) if mask.ndim == 3 else -1)
        if mask is None:
            masks.append([None] * len(pieces))
        elif mask.ndim == 2:
            shared = mask.to_delayed().item() if is_dask(mask) else dask.delayed(mask)
            masks.append([shared] * len(pieces))
        elif is_dask(mask):
            masks.append(list(mask.to_delayed().reshape(-1)))
        else:
            masks.append([mask[a:b] for a, b in itertools.pairwise(starts)])
    count = dask.delayed(plane_histograms)
    parts = [
        count(piece, inside, around, int(z), threads=1)
        for piece, inside, around, z in zip(pieces, *masks, starts[:-1], strict=True)
    ]
    return LazyHistograms(dask.delayed(PlaneHistograms.concatenate)(parts))


def _apply_chunk(
    block: Any, correction: Correction, tissue: Any = None, *, shape: tuple[int, int, int], block_info: Any = None
) -> Any:
    z, y, x = (start for start, _stop in block_info[0]["array-location"])
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


def lazy_vector(correction: Any, name: str, length: int) -> Any:
    """Return the (length,) array `name` of a delayed correction as a lazy array."""
    import dask.array as da

    return da.from_delayed(getattr(correction, name), (length,), dtype=np.float32)
