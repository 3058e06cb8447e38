"""Layout of an OME-Zarr store: pyramid levels, chunks, shards, and the slabs that are written independently.

A slab is a run of planes that is a whole number of shards at every level, so that the task which
writes a slab is the only writer of its shards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from n4flow.errors import InputError

AXES = ("z", "y", "x")
Triple = tuple[int, int, int]  # (Z, Y, X)


@dataclass(frozen=True)
class LevelLayout:
    """One level of the pyramid.

    Parameters
    ----------
    path : str
        Name of the array in the store.
    shape, chunks : tuple of int
        (Z, Y, X) voxels.
    shards : tuple of int or None
        (Z, Y, X) voxels of one file; None where every chunk is a file (OME-Zarr 0.4).
    factors : tuple of int
        Size of a voxel of this level in voxels of level 0, per axis.
    """

    path: str
    shape: Triple
    chunks: Triple
    shards: Triple | None
    factors: Triple

    @property
    def files(self) -> Triple:
        """Voxels of one file, per axis."""
        return self.shards or self.chunks


@dataclass(frozen=True)
class StoreLayout:
    """Everything that fixes where each voxel of a store is written.

    Parameters
    ----------
    version : str
        OME-Zarr version, `0.5` (Zarr v3, sharded) or `0.4` (Zarr v2, a file per chunk).
    dtype : str
        Name of the NumPy dtype of all levels.
    voxel_um, origin_um : dict
        Voxel size, and centre of the first voxel, of level 0 in micrometres by axis name.
    levels : tuple of LevelLayout
    slab_planes : int
        Planes of level 0 in a slab.
    kind : str
        `image` (levels are block means) or `labels` (levels pick a voxel).
    channels : int or None
        Channels of the store, where it has an axis of them; all else here is of one channel.
    channel : int
        The channel that is written; each has files of its own.
    """

    version: str
    dtype: str
    voxel_um: dict[str, float]
    origin_um: dict[str, float]
    levels: tuple[LevelLayout, ...]
    slab_planes: int
    kind: str = "image"
    channels: int | None = None
    channel: int = 0

    @property
    def shape(self) -> Triple:
        """Shape (Z, Y, X) of level 0."""
        return self.levels[0].shape

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of the store's arrays."""
        return self.with_channel("c", AXES)

    def with_channel(self, value: Any, values: Sequence[Any]) -> tuple[Any, ...]:
        """Return what each axis of the arrays has: z, y and x `values`, an axis of channels before them `value`."""
        return tuple(values) if self.channels is None else (value, *values)

    def scale_um(self, level: int) -> tuple[float, float, float]:
        """Return the voxel size (z, y, x) of a level in micrometres."""
        z, y, x = (self.voxel_um[axis] * f for axis, f in zip(AXES, self.levels[level].factors, strict=True))
        return z, y, x

    def translation_um(self, level: int) -> tuple[float, float, float]:
        """Return the centre (z, y, x) of the first voxel of a level in micrometres.

        A voxel of a level covers `f` voxels of level 0, whose centres lie 0 ... f - 1 voxel sizes from the origin;
        its own centre is therefore (f - 1) / 2 voxel sizes from it.
        """
        z, y, x = (
            self.origin_um[axis] + (f - 1) / 2 * self.voxel_um[axis]
            for axis, f in zip(AXES, self.levels[level].factors, strict=True)
        )
        return z, y, x


def by_axis(values: Mapping[str, float] | Sequence[float], name: str) -> dict[str, float]:
    """Return micrometres keyed by axis name, from a mapping or from (z, y, x).

    Raises
    ------
    InputError
        An axis is missing, unknown or not a finite number.
    """
    pairs = dict(values) if isinstance(values, Mapping) else dict(zip(AXES, values, strict=False))
    wrong = not isinstance(values, Mapping) and len(values) != len(AXES)
    if wrong or set(pairs) != set(AXES) or not all(math.isfinite(float(v)) for v in pairs.values()):
        given = dict(values) if isinstance(values, Mapping) else list(values)
        msg = f"{name} needs three numbers in micrometres for z, y and x, got {given}"
        raise InputError(msg)
    return {axis: float(pairs[axis]) for axis in AXES}


def level_slab(layout: StoreLayout, level: int, z_start: int, z_stop: int) -> tuple[int, int]:
    """Return the planes of a level that belong to the slab of level-0 planes `z_start` to `z_stop`.

    Raises
    ------
    InputError
        The planes are not whole slabs.
    """
    planes, slab = layout.shape[0], layout.slab_planes
    if not 0 <= z_start < z_stop <= planes or z_start % slab or (z_stop % slab and z_stop != planes):
        msg = f"planes {z_start} to {z_stop} are not whole slabs of {slab} planes of a volume of {planes}"
        raise InputError(msg)
    factor = layout.levels[level].factors[0]
    return z_start // factor, -(-z_stop // factor)


def file_key(layout: StoreLayout, level: int, index: Sequence[int]) -> str:
    """Return the key of a shard (0.5) or chunk (0.4) by its position in the grid of files."""
    prefix = f"{layout.levels[level].path}/c" if layout.version == "0.5" else layout.levels[level].path
    return "/".join([prefix, *map(str, layout.with_channel(layout.channel, index))])


def expected_shards(layout: StoreLayout, z_start: int, z_stop: int) -> list[str]:
    """Return the keys, relative to the store, of every file that the slab `z_start` to `z_stop` writes."""
    keys: list[str] = []
    for number, level in enumerate(layout.levels):
        start, stop = level_slab(layout, number, z_start, z_stop)
        depth, height, width = level.files
        keys.extend(
            file_key(layout, number, (z, y, x))
            for z in range(start // depth, -(-stop // depth))
            for y in range(-(-level.shape[1] // height))
            for x in range(-(-level.shape[2] // width))
        )
    return keys


def triple(values: Iterable[int]) -> Triple:
    """Return three values as a tuple of int."""
    z, y, x = (int(value) for value in values)
    return z, y, x
