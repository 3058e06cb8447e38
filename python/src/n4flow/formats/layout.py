"""Plan of an OME-Zarr store: pyramid levels, chunks, shards, and the slabs that are written independently.

A slab is a run of planes that is a whole number of shards at every level, so that the task which
writes a slab is the only writer of its shards. Sizes are chosen for few files: one shard reaches over
the depth of a slab and over as much of a plane as fits into `SHARD_BYTES`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from n4flow.errors import InputError

AXES = ("z", "y", "x")
VERSIONS = ("0.5", "0.4")
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")

SHARD_BYTES = 2**30  # of raw voxels, at most
SLAB_BYTES = (2**28, 2**33)  # smallest and largest slab that is chosen by itself
SLABS = 32  # a volume is cut into about as many slabs, within SLAB_BYTES
ROW_BYTES = 2**29  # raw voxels of one layer of chunks over a whole plane
LAST_PLANE = 256  # the pyramid ends when no in-plane axis is longer
LEAST_SAMPLES = 32  # an axis is not halved below this


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
    shape: tuple[int, int, int]
    chunks: tuple[int, int, int]
    shards: tuple[int, int, int] | None
    factors: tuple[int, int, int]

    @property
    def files(self) -> tuple[int, int, int]:
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
    """

    version: str
    dtype: str
    voxel_um: dict[str, float]
    origin_um: dict[str, float]
    levels: tuple[LevelLayout, ...]
    slab_planes: int
    kind: str = "image"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (Z, Y, X) of level 0."""
        return self.levels[0].shape

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

    def to_json(self) -> dict[str, Any]:
        """Return the layout as plain lists, strings and numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StoreLayout:
        """Return the layout that `to_json` described."""
        levels = tuple(
            LevelLayout(
                level["path"],
                _triple(level["shape"]),
                _triple(level["chunks"]),
                _triple(level["shards"]) if level["shards"] else None,
                _triple(level["factors"]),
            )
            for level in data["levels"]
        )
        return cls(
            data["version"],
            data["dtype"],
            dict(data["voxel_um"]),
            dict(data["origin_um"]),
            levels,
            int(data["slab_planes"]),
            data["kind"],
        )


def plan_layout(
    shape: Sequence[int],
    dtype: Any,
    voxel_um: Mapping[str, float] | Sequence[float],
    origin_um: Mapping[str, float] | Sequence[float] | None = None,
    *,
    version: str = "0.5",
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | None = None,
    slab_planes: int | None = None,
    kind: str = "image",
) -> StoreLayout:
    """Choose levels, chunks, shards and slabs for a volume.

    Parameters
    ----------
    shape : (Z, Y, X)
    dtype : dtype or str
        One of `DTYPES`; bool becomes uint8.
    voxel_um, origin_um : dict by axis name, or (z, y, x)
        Voxel size and centre of the first voxel (0 if not given), micrometres.
    version : str
        `0.5` or `0.4`.
    chunks : (z, y, x), optional
        Chunk shape of every level, even along axes that are halved.
    shards : (z, y, x), optional
        Shard shape of level 0, a multiple of the chunk shape; deeper levels take at most this. Not for 0.4.
    slab_planes : int, optional
        Planes of a slab; rounded up until a slab is a whole number of shards at every level.
    kind : str
        `image` or `labels`.

    Raises
    ------
    InputError
        A value that no store can have; the sentence says which and what would do.
    """
    shape = _shape(shape)
    name = _dtype_name(dtype)
    if version not in VERSIONS:
        msg = f"OME-Zarr version must be one of {', '.join(VERSIONS)}, got {version!r}"
        raise InputError(msg)
    if kind not in ("image", "labels"):
        msg = f"kind must be image or labels, got {kind!r}"
        raise InputError(msg)
    if shards is not None and version == "0.4":
        msg = "OME-Zarr 0.4 has no shards; leave shards out, or choose version 0.5"
        raise InputError(msg)
    voxel = by_axis(voxel_um, "voxel_um")
    if min(voxel.values()) <= 0:
        msg = f"voxel sizes must be positive micrometres, got {voxel}"
        raise InputError(msg)
    origin = by_axis(origin_um, "origin_um") if origin_um is not None else dict.fromkeys(AXES, 0.0)
    factors = level_factors(shape, voxel)
    itemsize = np.dtype(name).itemsize
    wish = _positive(chunks, "chunks") if chunks is not None else None
    cut = _positive(shards, "shards") if shards is not None else None
    aim = wish or _chunk_aim(shape, itemsize, version)
    slab = _slab_planes(shape, itemsize, factors[-1][0], aim[0], slab_planes, wish is not None, cut)
    levels = []
    for number, factor in enumerate(factors):
        step = _step(factors, number)
        size = _triple([-(-n // f) for n, f in zip(shape, factor, strict=True)])
        depth = cut[0] if cut is not None else slab // factor[0]
        chunk = wish or _chunk(aim, size, step, cut or (depth, 0, 0))
        chunk = (chunk[0], min(chunk[1], size[1]), min(chunk[2], size[2]))
        _check_even(chunk, size, step)
        file = _shard(size, chunk, depth, itemsize, cut) if version == "0.5" else None
        levels.append(LevelLayout(str(number), size, chunk, file, factor))
    return StoreLayout(version, name, voxel, origin, tuple(levels), slab, kind)


def level_factors(shape: tuple[int, int, int], voxel_um: Mapping[str, float]) -> list[tuple[int, int, int]]:
    """Return the downsampling factors of each level relative to level 0.

    From level to level an axis is halved if its voxel is less than 1.5 times the finest one among the axes that can
    still be halved, and at least `LEAST_SAMPLES` samples remain. Coarse axes so wait until the others have caught up.
    Levels are added until no in-plane axis has more than `LAST_PLANE` samples.
    """
    factors = [(1, 1, 1)]
    size = list(shape)
    while max(size[1:]) > LAST_PLANE:
        voxel = [voxel_um[axis] * f for axis, f in zip(AXES, factors[-1], strict=True)]
        able = [n >= 2 * LEAST_SAMPLES for n in size]
        finest = min(v for v, can in zip(voxel, able, strict=True) if can)
        steps = [2 if can and v < 1.5 * finest else 1 for v, can in zip(voxel, able, strict=True)]
        size = [-(-n // step) for n, step in zip(size, steps, strict=True)]
        factors.append(_triple([f * step for f, step in zip(factors[-1], steps, strict=True)]))
    return factors


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
    return "/".join([prefix, *map(str, index)])


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


def _chunk_aim(shape: tuple[int, int, int], itemsize: int, version: str) -> tuple[int, int, int]:
    """Return chunks whose layer over a whole plane stays below `ROW_BYTES`, thinner and wider for large planes."""
    plane = shape[1] * shape[2] * itemsize
    depth = next((n for n in (32, 16) if n * plane <= ROW_BYTES), 8)
    # Without shards every chunk is a file, hence larger ones.
    side = 128 if depth > 8 and version == "0.5" else 256
    return depth, side, side


def _slab_planes(
    shape: tuple[int, int, int],
    itemsize: int,
    deepest: int,
    chunk: int,
    wish: int | None,
    fixed: bool,
    shards: tuple[int, int, int] | None,
) -> int:
    """Return the planes of a slab: the wish rounded up, or a share of the volume within `SLAB_BYTES`."""
    unit = deepest * (shards[0] if shards is not None else chunk if fixed else 1)
    if wish is not None:
        if wish < 1:
            msg = f"slab_planes must be at least 1, got {wish}"
            raise InputError(msg)
        # A deep slab of a prime number of planes would leave no chunk depth but 1.
        unit = math.lcm(unit, 8) if wish > chunk and unit == deepest else unit
        return -(-wish // unit) * unit
    unit = math.lcm(unit, min(chunk, shape[0]))
    plane = shape[1] * shape[2] * itemsize
    aim = min(max(shape[0] * plane // SLABS, SLAB_BYTES[0]), SLAB_BYTES[1])
    return -(-min(max(1, aim // plane), shape[0]) // unit) * unit


def _chunk(
    aim: tuple[int, int, int], size: tuple[int, int, int], step: tuple[int, int, int], file: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Return the largest chunk within `aim` that divides a file (0: any), even where the axis is halved."""
    chunk = []
    for most, n, s, whole in zip(aim, size, step, file, strict=True):
        fitting = [c for c in range(1, min(most, whole) + 1) if whole % c == 0 and (c % 2 == 0 or s == 1)]
        chunk.append(max(fitting, default=2) if whole else min(most, n))
    return _triple(chunk)


def _step(factors: list[tuple[int, int, int]], number: int) -> tuple[int, int, int]:
    """Return how many voxels of a level make one of the next, per axis."""
    here, after = factors[number], factors[min(number + 1, len(factors) - 1)]
    return _triple([b // a for a, b in zip(here, after, strict=True)])


def _check_even(chunk: tuple[int, int, int], size: tuple[int, int, int], step: tuple[int, int, int]) -> None:
    for axis, c, n, s in zip(AXES, chunk, size, step, strict=True):
        if s == 2 and c % 2 and c < n:
            msg = f"chunks along {axis} must be even, because the pyramid halves that axis, got {c}; give {c + 1}"
            raise InputError(msg)


def _shard(
    size: tuple[int, int, int],
    chunk: tuple[int, int, int],
    depth: int,
    itemsize: int,
    cut: tuple[int, int, int] | None,
) -> tuple[int, int, int]:
    """Return a shard of the given depth: of the plane so much that shards are few, and then square."""
    whole = [-(-n // c) for n, c in zip(size[1:], chunk[1:], strict=True)]
    if cut is not None:
        for axis, s, c in zip(AXES, cut, chunk, strict=True):
            if s % c:
                msg = f"shards along {axis} must be a multiple of the chunk ({c}), got {s}"
                raise InputError(msg)
        return depth, min(cut[1], whole[0] * chunk[1]), min(cut[2], whole[1] * chunk[2])
    most = max(1, SHARD_BYTES // (depth * math.prod(chunk[1:]) * itemsize))  # columns of chunks in a shard
    best: tuple[float, ...] = ()
    for rows in range(1, whole[0] + 1):
        height = -(-whole[0] // rows)
        columns = -(-whole[1] // max(1, most // height))
        width = -(-whole[1] // columns)
        if height * width <= most or height == 1:
            square = abs(height * chunk[1] - width * chunk[2])
            best = min(best or (math.inf,), (rows * columns, square, height, width))
    return depth, int(best[2]) * chunk[1], int(best[3]) * chunk[2]


def _dtype_name(dtype: Any) -> str:
    name = "uint8" if np.dtype(dtype) == np.bool_ else np.dtype(dtype).newbyteorder("=").name
    if name not in DTYPES:
        msg = f"voxels cannot be written as {name}; choose one of {', '.join(DTYPES)}"
        raise InputError(msg)
    return name


def _shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != len(AXES) or min(shape) < 1:
        msg = f"a volume has three axes (Z, Y, X) with at least one voxel each, got shape {tuple(shape)}"
        raise InputError(msg)
    return _triple(shape)


def _positive(values: Sequence[int], name: str) -> tuple[int, int, int]:
    if len(values) != len(AXES) or min(values) < 1:
        msg = f"{name} needs three whole numbers of at least 1 for z, y and x, got {tuple(values)}"
        raise InputError(msg)
    return _triple(values)


def _triple(values: Sequence[int]) -> tuple[int, int, int]:
    z, y, x = (int(value) for value in values)
    return z, y, x
