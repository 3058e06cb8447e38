"""A recipe on a block in GPU memory: corrections that follow each other voxel by voxel are one pass over memory.

A kernel takes a voxel through all four corrections of `base.FUSED`; others are applied one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from n4flow.compute.arrays import as_mask
from n4flow.compute.gpu import NULL, as_float32, run_on_gpu, stream_planes
from n4flow.corrections.base import FUSED, Correction, Where
from n4flow.corrections.fused import runs, sources_of
from n4flow.n4_bias.gpu.evaluate import render_without_field


def render_through_gpu(apply: Callable[[Any, Where], Any], array: np.ndarray, where: Where) -> np.ndarray:
    """Return a corrected copy of whole planes (z, Y, X) in host memory; they pass through the device in blocks.

    `apply` returns a float32 CuPy block, which it may overwrite, corrected; `where` is the place of the first plane.
    """
    out = np.empty(array.shape, np.float32)
    sources = [array] if where.tissue is None else [array, as_mask(where.tissue, array.shape, "tissue mask")]

    def work(blocks: list[Any], planes: slice, results: list[Any]) -> None:
        tissue = None if where.tissue is None else blocks[1]
        results[0][...] = blocks[0]
        place = Where(where.z + planes.start, where.y, where.x, where.shape, tissue)
        rendered = apply(results[0], place)
        if rendered is not results[0]:
            results[0][...] = rendered

    run_on_gpu(lambda voxels: stream_planes(sources, work, [out], voxels), release=True)
    return out


def on_gpu(group: Sequence[Correction], block: Any, where: Where) -> Any:
    """Return a CuPy block that went through the corrections of one pass; it may be overwritten."""
    block = as_float32(block)
    nothing = {
        "limits": (NULL, NULL, np.float32(1)),
        "lookup": (NULL, NULL, np.float32(0)),
        "gain": (NULL, NULL),
    }
    for planes, given in runs(sources_of(group, block, where), 0, block.shape[0]):
        field, *others = FUSED
        pointwise = [argument for name in others for argument in given.get(name) or nothing[name]]
        if given.get(field) is None:
            render_without_field(pointwise, block[planes])
        else:
            given[field].render(pointwise, block[planes])
    return block
