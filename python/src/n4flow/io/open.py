"""Opening a volume: which reader a file needs, its channel, level and voxel size."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from n4flow.errors import InputError
from n4flow.io.address import Address, located
from n4flow.io.formats import EXPECTED, ZARR, read_as
from n4flow.io.omezarr.chunk_grid import listed
from n4flow.io.omezarr.layout import AXES, by_axis
from n4flow.io.omezarr.reader import MARKERS
from n4flow.io.reader import Reader
from n4flow.io.volume import Volume


def open_volume(
    path: str | Path,
    *,
    level: int = 0,
    channel: int | str | None = None,
    voxel_um: Mapping[str, float] | Sequence[float] | None = None,
    require_voxel_um: bool = True,
    allow_missing_chunks: bool = False,
    planes: tuple[int, int] | None = None,
) -> Volume:
    """Open a volume lazily.

    Parameters
    ----------
    path : path
        OME-Zarr 0.1 to 0.6 (a folder, zipped, or at an address: https, http, s3 or gs), a Zarr array, NIfTI, TIFF,
        NRRD, MHA or `.npy`.
    level : int
        Pyramid level of an OME-Zarr image.
    channel : int or str, optional
        Index or label; needed where there are several.
    voxel_um : dict by axis name, or (z, y, x), optional
        Micrometres; takes the place of what the file says. A dict may name single axes.
    require_voxel_um : bool
        Refuse a volume without voxel size.
    allow_missing_chunks : bool
        Read absent files of a Zarr store as its fill value, and those that are empty or cut short as 0; `metadata` then
        lists all of them as `missing_chunks`, the latter as `damaged_chunks`, and planes of which no file is left as
        `missing_planes`.
    planes : (int, int), optional
        What will be read of it, from one plane to another: only their files of a Zarr store are looked at, and no other
        planes can be read of such a store. `data`, which is all of it, is an error then.

    Returns
    -------
    Volume

    Raises
    ------
    InputError
        The path is missing or no volume, the voxel size is unknown, several channels and none chosen, files of the
        store missing. One sentence with the remedy.
    """
    path = located(path)
    if planes is not None and not 0 <= planes[0] < planes[1]:
        msg = f"planes must be START:STOP from 0 on, got {planes[0]}:{planes[1]}"
        raise InputError(msg)
    reader = _reader(path, level, channel, allow_missing_chunks=allow_missing_chunks, planes=planes)
    voxel = _voxel_size(reader, voxel_um, required=require_voxel_um)
    return Volume(reader, voxel, reader.origin_um, reader.metadata, path)


def open_channels(path: str | Path, **options: Any) -> list[Volume]:
    """Open every channel of a file, or every volume of a NIfTI series; `options` are those of `open_volume`.

    Their readers may `share` what one of them has decoded.
    """
    first = open_volume(path, channel=0, **options)
    return [first, *(open_volume(path, channel=number, **options) for number in range(1, first.reader.channels))]


def _existing(path: Path) -> Path:
    if not path.exists():
        if scheme := re.match(r"(\w{2,}):/", str(path)):
            msg = f"{path} is an address ({scheme[1]}) that is not read; give one of https, http, s3 or gs, or a path"
            raise InputError(msg)
        target = f" is a link to {os.readlink(path)}, which" if path.is_symlink() else ""
        msg = f"{path}{target} does not exist; check the path"
        raise InputError(msg)
    return path


def _reader(path: Path, level: int, channel: int | str | None, **of_a_store: Any) -> Reader:
    if isinstance(path, Address):
        if (named := read_as(path)) is not None:
            msg = f"{path} is a file ({named.name}) at an address, where OME-Zarr folders alone are read; download it"
            raise InputError(msg)
        return ZARR.read(path, channel, level=level, **of_a_store)
    folder = _existing(path).is_dir()
    if folder and not any((path / marker).exists() for marker in MARKERS):
        inside = sorted(child.name for child in path.iterdir())
        held = listed(inside) if inside else "nothing"
        msg = f"{path} is a folder without Zarr metadata, it holds {held}; expected {EXPECTED}"
        raise InputError(msg)
    kind = ZARR if folder else read_as(path)
    if kind is ZARR:
        return kind.read(path, channel, level=level, **of_a_store)
    if level != 0:
        msg = f"pyramid levels are read from OME-Zarr alone, not from {path}; level must be 0, got {level}"
        raise InputError(msg)
    if kind is None:
        msg = f"{path} is not a volume that n4flow reads; expected {EXPECTED}"
        raise InputError(msg)
    return kind.read(path, channel)


def _voxel_size(
    reader: Reader, given: Mapping[str, float] | Sequence[float] | None, *, required: bool
) -> dict[str, float] | None:
    voxel = dict(reader.voxel_um)
    if isinstance(given, Mapping) and set(given) < set(AXES):
        voxel.update({axis: float(size) for axis, size in given.items()})
    elif given is not None:
        voxel = by_axis(given, "voxel_um")
    if not all(np.isfinite(size) and size > 0 for size in voxel.values()):
        msg = f"voxel_um needs positive micrometres, got {voxel}"
        raise InputError(msg)
    if set(voxel) == set(AXES):
        return {axis: voxel[axis] for axis in AXES}
    if not required:
        return None
    part = f" along {', '.join(axis for axis in AXES if axis not in voxel)}" if voxel else ""
    reason = f" ({reader.reason})" if reader.reason else ""
    msg = f"{reader.path} has no voxel size{part}{reason}; give it with voxel_um (z y x, micrometres)"
    raise InputError(msg)
