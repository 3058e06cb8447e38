"""Corrections that follow each other voxel by voxel, and are one pass over memory.

The field of bias, the range of a plane, the map of its section and the gain of its tissue come in this order in every
recipe of the workflow. On the host, compiled code takes a plane through all four while it is in cache; on a GPU a
kernel takes a voxel through them, see `gpu_render`. Other corrections are applied one by one. The bits are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from n4flow.compute.arrays import to_numpy
from n4flow.compute.threads import parallel_planes
from n4flow.corrections.base import Correction, Where, in_frame
from n4flow.corrections.bias_field import BiasCorrection
from n4flow.corrections.plane_gain import PlaneGain
from n4flow.corrections.plane_range import PlaneRange
from n4flow.corrections.section_lookup import SectionLookup
from n4flow.io.frame import Frame

Arguments = tuple[Any, ...] | None  # of a compiled loop

ORDER: tuple[type[Correction], ...] = (BiasCorrection, PlaneRange, SectionLookup, PlaneGain)


def groups(corrections: Sequence[Correction]) -> list[list[Correction]]:
    """Cut corrections into runs that are one pass: kinds of `ORDER` in that order, each once; others alone."""
    found: list[list[Correction]] = []
    last = len(ORDER)
    for correction in corrections:
        rank = ORDER.index(type(correction)) if type(correction) in ORDER else len(ORDER)
        if rank < len(ORDER) and last < rank:
            found[-1].append(correction)
        else:
            found.append([correction])
        last = rank
    return found


def render_on_host(corrections: Sequence[Correction], block: np.ndarray, where: Where) -> np.ndarray:
    """Return a NumPy block with every correction applied in order.

    Parameters
    ----------
    corrections : sequence of Correction
    block : (z, y, x) float32 array
        May be overwritten.
    where : Where

    Raises
    ------
    InputError
        A gain acts on tissue, and `where` has no mask.
    """
    for group in groups(corrections):
        planes = where.z, where.z + len(block)
        if len(group) == 1 or any(isinstance(c, SectionLookup) and not c.has_tables(*planes) for c in group):
            for correction in group:
                block = correction.apply(block, where)
            continue
        block = in_frame(frame_of(group), block, where, partial(_swept, group))
    return block


def frame_of(group: Sequence[Correction]) -> Frame | None:
    """Return the frame that corrections of one pass have: that of the bias field; around it nothing is changed."""
    return next((correction.frame for correction in group if isinstance(correction, BiasCorrection)), None)


def _swept(group: Sequence[Correction], block: np.ndarray, where: Where) -> np.ndarray:
    block = np.require(block, np.float32, ["C", "W"])
    parallel_planes(_Sweep(group, block, where), len(block))
    return block


class _Sweep:
    """One pass over planes of a block: called with the first and the one after the last."""

    def __init__(self, group: Sequence[Correction], block: np.ndarray, where: Where) -> None:
        self.block, self.where = block, where
        self.bias: BiasCorrection | None = None
        self.limits: PlaneRange | None = None
        self.lookup: SectionLookup | None = None
        self.gain: PlaneGain | None = None
        for correction in group:
            if isinstance(correction, BiasCorrection):
                self.bias = correction
            elif isinstance(correction, PlaneRange):
                self.limits = correction
            elif isinstance(correction, SectionLookup):
                self.lookup = correction
            elif isinstance(correction, PlaneGain):
                self.gain = correction
        self.tissue = None
        if self.gain is not None and (tissue := self.gain.tissue(where, block.shape)) is not None:
            self.tissue = np.ascontiguousarray(to_numpy(tissue))

    def __call__(self, start: int, stop: int) -> None:
        """Correct planes from one to another, runs of the same field and the same map at a time."""
        from n4flow.corrections import kernels as kernels_corrections
        from n4flow.statistics import histogram_kernels as kernels

        z, block = self.where.z, self.block
        while start < stop:
            end = stop
            field: Arguments = None
            lookup: Arguments = None
            limits: Arguments = None
            gain: Arguments = None
            if self.bias is not None:
                run, field = self.bias.run(z + start, z + end, self.where, block.shape[1:])
                end = run - z
            if self.lookup is not None:
                run, lookup = self.lookup.run(z + start, z + end)
                end = run - z
            planes = slice(z + start, z + end)
            if self.limits is not None:
                limits = self.limits.lower[planes], self.limits.upper[planes], np.float32(self.limits.span)
            if self.gain is not None and self.tissue is not None:
                gain = self.gain.gain[planes], self.tissue[start:end]
            kernels_corrections.correct_planes(
                block[start:end],
                field or kernels.NO_FIELD,
                limits or kernels_corrections.NO_LIMITS,
                lookup or kernels_corrections.NO_MAP,
                gain or kernels_corrections.NO_GAIN,
            )
            start = end
