"""Plan of an OME-Zarr store: how many levels, how large chunks, shards and slabs.

Sizes are chosen for few files: one shard reaches over the depth of a slab and over as much of a
plane as fits into `SHARD_BYTES`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from n4flow.errors import InputError
from n4flow.io.omezarr.layout import AXES, LevelLayout, StoreLayout, Triple, by_axis, triple

VERSIONS = ("0.5", "0.4")
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")

SHARD_BYTES = 2**30  # A shard holds at most as many bytes of uncompressed voxels.
SLAB_BYTES = (2**28, 2**33)  # Smallest and largest slab that is chosen automatically.
SLABS = 32  # A volume is cut into about as many slabs, within SLAB_BYTES.
ROW_BYTES = 2**28  # Uncompressed bytes of one layer of chunks over a whole plane, at most.
LAST_PLANE = 256  # The pyramid ends when no in-plane axis is longer.
FILES, FILES_PER_GB = 100, 2  # Limit of the files of a store, and what a gigabyte adds, for automatic slabs.
LEAST_SAMPLES = 32  # An axis is not halved to fewer samples.


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
    read_planes: int = 1,
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
    read_planes : int
        Planes that one chunk of the input has: slabs that are chosen have whole chunks of it, unless that makes them
        larger than `SLAB_BYTES`, so that no chunk is decoded for two slabs.
    kind : str
        `image` or `labels`.

    Raises
    ------
    InputError
        A value that no store can have; the sentence says which and what would do.
    """
    shape = _positive(
        shape, f"a volume has three axes (Z, Y, X) with at least one voxel each, got shape {tuple(shape)}"
    )
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
    needs = "needs three whole numbers of at least 1 for z, y and x, got"
    wish = _positive(chunks, f"chunks {needs} {tuple(chunks)}") if chunks is not None else None
    cut = _positive(shards, f"shards {needs} {tuple(shards)}") if shards is not None else None
    aim = wish or _chunk_aim(shape, itemsize, version)
    slab = _slab_planes(shape, itemsize, factors[-1][0], aim[0], slab_planes, wish is not None, cut, read_planes)

    def planned(planes: int) -> StoreLayout:
        levels = _levels(shape, factors, itemsize, version, aim, planes, wish, cut)
        return StoreLayout(version, name, voxel, origin, levels, planes, kind)

    # Deeper slabs make fewer files; where even they do not suffice, small slabs are worth more.
    depths = (slab,) if slab_planes is not None or version == "0.4" else (slab, 2 * slab, 4 * slab)
    return next(filter(_few_files, map(planned, depths)), None) or planned(slab)


def _levels(
    shape: Triple,
    factors: list[Triple],
    itemsize: int,
    version: str,
    aim: Triple,
    slab: int,
    wish: Triple | None,
    cut: Triple | None,
) -> tuple[LevelLayout, ...]:
    levels = []
    for number, factor in enumerate(factors):
        step = _step(factors, number)
        size = triple([-(-n // f) for n, f in zip(shape, factor, strict=True)])
        depth = cut[0] if cut is not None else slab // factor[0]
        # a chunk holds as many planes of level 0 as one there: none waits for planes that come much later
        flat = (max(step[0], aim[0] // factor[0]), *aim[1:])
        chunk = wish or _chunk(flat, size, step, cut or (depth, 0, 0))
        chunk = (chunk[0], min(chunk[1], size[1]), min(chunk[2], size[2]))
        _check_even(chunk, size, step)
        file = _shard(size, chunk, depth, itemsize, cut) if version == "0.5" else None
        levels.append(LevelLayout(str(number), size, chunk, file, factor))
    return tuple(levels)


def _few_files(layout: StoreLayout) -> bool:
    """Return whether the files of a store, those of metadata included, are not too many for its bytes."""
    grids = [[-(-n // f) for n, f in zip(level.shape, level.files, strict=True)] for level in layout.levels]
    gigabytes = math.prod(layout.shape) * np.dtype(layout.dtype).itemsize / 1e9
    return sum(math.prod(grid) + 1 for grid in grids) + 1 <= FILES + FILES_PER_GB * gigabytes


def level_factors(shape: Triple, voxel_um: Mapping[str, float]) -> list[Triple]:
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
        factors.append(triple([f * step for f, step in zip(factors[-1], steps, strict=True)]))
    return factors


def _chunk_aim(shape: Triple, itemsize: int, version: str) -> Triple:
    """Return chunks whose layer over a whole plane stays below `ROW_BYTES`, thinner and wider for large planes."""
    plane = shape[1] * shape[2] * itemsize
    depth = next((n for n in (32, 16) if n * plane <= ROW_BYTES), 8)
    # Without shards every chunk is a file, hence larger ones.
    side = 128 if depth > 8 and version == "0.5" else 256
    return depth, side, side


def _slab_planes(
    shape: Triple,
    itemsize: int,
    deepest: int,
    chunk: int,
    wish: int | None,
    fixed: bool,
    shards: Triple | None,
    read_planes: int,
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
    whole = math.lcm(unit, min(read_planes, shape[0]))
    unit = whole if min(whole, shape[0]) * plane <= SLAB_BYTES[1] else unit
    aim = min(max(shape[0] * plane // SLABS, SLAB_BYTES[0]), SLAB_BYTES[1])
    return -(-min(max(1, aim // plane), shape[0]) // unit) * unit


def _chunk(aim: Triple, size: Triple, step: Triple, file: Triple) -> Triple:
    """Return the largest chunk within `aim` that divides a file (0: any), even where the axis is halved."""
    chunk = []
    for most, n, s, whole in zip(aim, size, step, file, strict=True):
        fitting = [c for c in range(1, min(most, whole) + 1) if whole % c == 0 and (c % 2 == 0 or s == 1)]
        chunk.append(max(fitting, default=2) if whole else min(most, n))
    return triple(chunk)


def _step(factors: list[Triple], number: int) -> Triple:
    """Return how many voxels of a level make one of the next, per axis."""
    here, after = factors[number], factors[min(number + 1, len(factors) - 1)]
    return triple([b // a for a, b in zip(here, after, strict=True)])


def _check_even(chunk: Triple, size: Triple, step: Triple) -> None:
    for axis, c, n, s in zip(AXES, chunk, size, step, strict=True):
        if s == 2 and c % 2 and c < n:
            msg = f"chunks along {axis} must be even, because the pyramid halves that axis, got {c}; give {c + 1}"
            raise InputError(msg)


def _shard(
    size: Triple,
    chunk: Triple,
    depth: int,
    itemsize: int,
    cut: Triple | None,
) -> Triple:
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


def _positive(values: Sequence[int], message: str) -> Triple:
    if len(values) != len(AXES) or min(values) < 1:
        raise InputError(message)
    return triple(values)
