"""A recipe on a block that lies on the GPU: what follows each other voxel by voxel is one pass over memory.

A kernel takes a voxel through all four corrections of `pointwise.ORDER`; others are applied one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from n4flow.compute.arrays import as_mask
from n4flow.compute.gpu import NULL, as_float32, run_on_gpu, stream_planes
from n4flow.corrections.base import Correction, Where, in_frame
from n4flow.corrections.bias_field import BiasCorrection
from n4flow.corrections.fused import frame_of, groups
from n4flow.corrections.plane_gain import PlaneGain
from n4flow.corrections.plane_range import PlaneRange
from n4flow.corrections.section_lookup import SectionLookup
from n4flow.n4_bias.gpu.evaluate import render_without_field


def render_on_gpu(corrections: Sequence[Correction], block: Any, where: Where) -> Any:
    """Return a CuPy block with every correction applied in order.

    Parameters
    ----------
    corrections : sequence of Correction
    block : (z, y, x) float32 CuPy array
        May be overwritten.
    where : Where
    """
    for group in groups(corrections):
        if len(group) == 1:
            block = group[0].apply(block, where)
        else:
            block = in_frame(frame_of(group), as_float32(block), where, partial(_render, group))
    return block


def render_through_gpu(corrections: Sequence[Correction], array: np.ndarray, where: Where) -> np.ndarray:
    """Return a corrected copy of whole planes in host memory; they pass through the device in blocks.

    Parameters
    ----------
    corrections : sequence of Correction
    array : (z, Y, X) array
        Any real type.
    where : Where
        The place of its first plane, and the tissue mask where one is needed.
    """
    out = np.empty(array.shape, np.float32)
    sources = [array] if where.tissue is None else [array, as_mask(where.tissue, array.shape, "tissue mask")]

    def work(blocks: list[Any], planes: slice, results: list[Any]) -> None:
        tissue = None if where.tissue is None else blocks[1]
        results[0][...] = blocks[0]
        place = Where(where.z + planes.start, where.y, where.x, where.shape, tissue)
        rendered = render_on_gpu(corrections, results[0], place)
        if rendered is not results[0]:
            results[0][...] = rendered

    run_on_gpu(lambda voxels: stream_planes(sources, work, [out], voxels), release=True)
    return out


def _render(group: Sequence[Correction], block: Any, where: Where) -> Any:
    of_kind = {type(correction): correction for correction in group}
    pointwise = _Pointwise(of_kind, block, where)
    bias = of_kind.get(BiasCorrection)
    done = where.z  # planes before are corrected
    if isinstance(bias, BiasCorrection):
        n_z, n_y, n_x = block.shape
        place = slice(where.y, where.y + n_y), slice(where.x, where.x + n_x)
        for z_start, z_stop, field in sorted(bias.fields, key=lambda part: part[0]):
            start, stop = max(z_start, where.z), min(z_stop, where.z + n_z)
            if start >= stop or field.reason is not None:
                continue
            pointwise.without_field(done, start)
            planes = slice(start - where.z, stop - where.z)
            field.on_gpu((slice(start - z_start, stop - z_start), *place)).render(pointwise.of(planes), block[planes])
            done = stop
    pointwise.without_field(done, where.z + block.shape[0])
    return block


class _Pointwise:
    """What follows the field, on the device; its arguments to `render_block`."""

    def __init__(self, of_kind: dict[type[Correction], Correction], block: Any, where: Where) -> None:
        import cupy

        self.block, self.z = block, where.z
        planes = slice(where.z, where.z + block.shape[0])
        self.lower = self.upper = self.maps = self.segments = self.gains = self.tissue = None
        self.span, self.below = np.float32(1), np.float32(0)
        limits, lookup, gain = (of_kind.get(kind) for kind in (PlaneRange, SectionLookup, PlaneGain))
        if isinstance(limits, PlaneRange):
            self.lower, self.upper = (cupy.asarray(a[planes], cupy.float32) for a in (limits.lower, limits.upper))
            self.span = np.float32(limits.span)
        if isinstance(lookup, SectionLookup):
            numbers = lookup.map_of_plane[planes].tolist()
            tables = {i: lookup.segments(i)[:4] for i in sorted(set(numbers)) if i >= 0}
            ends = np.cumsum([0, *(table.size for table in tables.values())])
            at = {i: (int(end), table.shape[1]) for (i, table), end in zip(tables.items(), ends, strict=False)}
            self.maps = cupy.asarray(np.array([at.get(i, (0, 0)) for i in numbers], np.int32))
            flat = [table.reshape(-1) for table in tables.values()]
            self.segments = cupy.asarray(np.concatenate(flat or [np.zeros(1, np.float32)]).astype(np.float32))
            self.below = np.float32(lookup.below)
        if isinstance(gain, PlaneGain) and (tissue := gain.tissue(where, block.shape)) is not None:
            self.gains = cupy.asarray(gain.gain[planes], cupy.float32)
            self.tissue = cupy.ascontiguousarray(cupy.asarray(tissue), bool)

    def of(self, planes: slice) -> tuple[Any, ...]:
        """Return the arguments for some planes of the block."""
        lower, upper, maps, gains, tissue = (
            NULL if array is None else array[planes]
            for array in (self.lower, self.upper, self.maps, self.gains, self.tissue)
        )
        segments = NULL if self.segments is None else self.segments
        return lower, upper, self.span, maps, segments, self.below, gains, tissue

    def without_field(self, start: int, stop: int) -> None:
        """Correct planes that no field covers."""
        if start < stop:
            planes = slice(start - self.z, stop - self.z)
            render_without_field(self.of(planes), self.block[planes])
