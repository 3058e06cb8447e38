"""Smoothed sections of a volume and their distributions, from which thresholds are found, in runs of planes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from n4flow.compute.arrays import array_module, to_numpy
from n4flow.compute.threads import run_tasks
from n4flow.masks.morphology import SMOOTH_REACH, Norms, smooth_planes, smooth_valid
from n4flow.masks.otsu import Scale, Separability, Split, otsu_split
from n4flow.sections import Section, SectionTable, filled_planes
from n4flow.statistics.accumulate import strips
from n4flow.statistics.histograms import Pairs
from n4flow.statistics.measure import plane_histograms
from n4flow.statistics.pooling import Pool
from n4flow.statistics.shrunken import RUN_PLANES, ShrunkenFiles, ShrunkenVolume

HELD_BYTES = 1 << 26  # Distributions of sections are cached up to this size: a few hundred of them.
HELD_SMOOTH = 1 << 27  # Smoothed planes of a shrunken volume are cached up to this size, and others smoothed again.


class Smoother:
    """The smoothed volume, in runs of planes.

    For an array it is cached on the device of the array. Of a shrunken volume the first runs are cached, and others are
    read and smoothed each time they are needed, so that memory does not grow with Z.

    Parameters
    ----------
    vol : array, ShrunkenVolume or ShrunkenFiles
    sigmas : tuple of float
        Sigma of the Gaussian in voxels, for each axis.
    gpu_planes : int or None
        Compute on the GPU, this many planes at a time; by default on the device of the volume.
    """

    def __init__(self, vol: Any, sigmas: tuple[float, float, float], gpu_planes: int | None) -> None:
        self.vol, self.sigmas, self.gpu_planes = vol, sigmas, gpu_planes
        self.streamed = isinstance(vol, (ShrunkenVolume, ShrunkenFiles))
        self.on_host = gpu_planes is None and (self.streamed or array_module(vol) is np)
        self._norms = Norms()
        self.forget()

    def take(self, array: Any) -> Any:
        """Return an array on the device that computes."""
        if self.gpu_planes is None:
            return array
        import cupy

        return cupy.asarray(array)

    def give(self, array: Any) -> Any:
        """Return a result on the device of the volume."""
        return array if self.gpu_planes is None else to_numpy(array)

    def filled(self) -> slice:
        """Return the planes from the first to the last that holds valid voxels."""
        if self.streamed:
            return filled_planes(self.vol.planes["n_valid"])
        xp, holds = array_module(self.vol), np.ones(len(self.vol), bool)
        for order in (1, -1):  # from both ends inwards, while planes are empty
            for z in range(len(holds))[::order]:
                holds[z] = bool((xp.isfinite(self.vol[z]) & (self.vol[z] != 0)).any())
                if holds[z]:
                    break
        return filled_planes(holds)

    def runs(self, section: Section, scale: Scale) -> Iterator[tuple[int, Any]]:
        """Yield (first plane, smoothed planes on `scale`) of a section, 0 where a voxel is not valid.

        Along Z, smoothing stays within the section, since neighbouring sections have another gain.
        """
        step = RUN_PLANES if self.on_host else self.gpu_planes or section.z_stop - section.z_start
        margin = int(SMOOTH_REACH * self.sigmas[0] + 0.5)
        for start in range(section.z_start, section.z_stop, step):
            stop = min(start + step, section.z_stop)
            first, last = max(section.z_start, start - margin), min(section.z_stop, stop + margin)
            if start in self._held:
                yield start, self._held[start]
                continue
            smooth = self._smooth(first, last, slice(start - first, stop - first), scale)
            if not self.streamed or smooth.nbytes <= self._room:
                self._held[start] = self.give(smooth)
                self._room -= smooth.nbytes
            yield start, smooth

    def forget(self) -> None:
        """Release the cached planes, because the scale changes."""
        self._held: dict[int, Any] = {}
        self._room = HELD_SMOOTH

    def _smooth(self, first: int, last: int, inner: slice, scale: Scale) -> Any:
        if self.streamed:
            part = self.vol.part(first, last)
            values, weights = part.mean, part.valid
        else:
            values, weights = self.vol[first:last], None
        if not self.on_host:
            return smooth_valid(scale.forward(self.take(values)), self.sigmas)[inner]
        scaled = values
        if scale.floor is not None or values.dtype != np.float32:  # otherwise, invalid voxels get no weight below
            scaled = np.empty(values.shape, np.float32)

            def forward(z: int) -> None:
                for start, stop in strips(*values.shape[1:]):
                    scaled[z, start:stop] = scale.forward(values[z, start:stop])

            run_tasks(forward, range(len(values)))
        return smooth_planes(scaled, self.sigmas, weights, inner, self._norms)


class SectionHistograms:
    """Distributions of the smoothed intensities of sections: the first ones are cached, others are counted again."""

    def __init__(self, smoother: Smoother, table: SectionTable, scale: Scale) -> None:
        self.table, self.scale = table, scale
        self._smoother = smoother
        self._held: dict[int, Pairs] = {}
        self._room = HELD_BYTES

    def pairs(self, i: int) -> Pairs:
        """Return (values, counts) of section `i`."""
        if i in self._held:
            return self._held[i]
        pool = Pool()
        for _start, part in self._smoother.runs(self.table[i], self.scale):
            histograms = plane_histograms(self._smoother.take(part))
            for z in range(len(part)):
                pool.add(*histograms.pairs(z))
        pairs = pool.pairs()
        nbytes = sum(array.nbytes for array in pairs)
        if nbytes <= self._room:
            self._room -= nbytes
            self._held[i] = pairs
        return pairs


class Group:
    """Sections whose distributions are pooled."""

    def __init__(self) -> None:
        self.members: list[int] = []
        self.separability = Separability()
        self._pool = Pool()

    def add(self, i: int, split: Split | None, pairs: Pairs) -> None:
        """Add section `i`."""
        self.members.append(i)
        self._pool.add(*pairs)
        if split is not None:
            self.separability.add(split, *pairs)

    @property
    def together(self) -> Pairs:
        """The pooled distribution."""
        return self._pool.pairs()


def survey(
    counted: SectionHistograms, chosen: Collection[int] | None = None
) -> tuple[list[Split | None], list[int], Group]:
    """Return the split and the number of voxels of each section, and the chosen sections as a group.

    By default, the usable sections that can be split in two are chosen or, if there are none, such flagged sections.
    """
    splits: list[Split | None] = []
    voxels: list[int] = []
    usable, flagged = Group(), Group()
    for i, section in enumerate(counted.table):
        pairs = counted.pairs(i)
        splits.append(otsu_split(*pairs, scale=counted.scale))
        voxels.append(int(pairs[1].sum()))
        if splits[i] is not None if chosen is None else i in chosen:
            (usable if section.usable else flagged).add(i, splits[i], pairs)
    return splits, voxels, usable if usable.members else flagged
