"""Opening a volume: which reader a file needs, its channel, level and voxel size."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from n4flow.errors import InputError, N4flowWarning
from n4flow.io.address import Address, located
from n4flow.io.formats import EXPECTED, FORMATS, PLANES, ZARR, Format, is_pattern, read_as
from n4flow.io.omezarr.chunk_grid import listed
from n4flow.io.omezarr.layout import AXES, by_axis
from n4flow.io.omezarr.reader import MARKERS
from n4flow.io.plane_names import described_set, holds_planes
from n4flow.io.planes import PlanesReader
from n4flow.io.reader import MeanReader, Reader
from n4flow.io.volume import Volume

MEAN = "mean"  # In place of a channel: the mean of all.
EACH = "each"  # In place of the channel that is fitted: every one, by a field of its own.


def open_volume(
    path: str | Path,
    *,
    level: int = 0,
    channel: int | str | None = None,
    axes: str | None = None,
    voxel_um: Mapping[str, float] | Sequence[float] | None = None,
    require_voxel_um: bool = True,
    allow_missing_chunks: bool = False,
    allow_missing_planes: bool = False,
    planes: tuple[int, int] | None = None,
) -> Volume:
    """Open a volume lazily.

    Parameters
    ----------
    path : path
        OME-Zarr 0.1 to 0.6 (a folder, zipped, or at an address: https, http, s3 or gs), a Zarr array, NIfTI, TIFF,
        NRRD, MHA or `.npy`; or a folder of planes, a folder of such folders, or a pattern such as `planes/*.tif`.
    level : int
        Pyramid level of an OME-Zarr image.
    channel : int or str, optional
        Index or label; needed where there are several. `mean` is the mean of all channels, as float32, where none has
        that label.
    axes : str, optional
        Names of the axes of the array in a file, slowest first, where its own are wrong or missing: `zyx` of a stack
        whose planes were saved as channels. Axes of length 1 may be left out. For Zarr, TIFF and `.npy`.
    voxel_um : dict by axis name, or (z, y, x), optional
        Micrometres; takes the place of what the file says. A dict may name single axes.
    require_voxel_um : bool
        Refuse a volume without voxel size.
    allow_missing_chunks : bool
        Read absent files of a Zarr store as its fill value, and those that are empty or cut short as 0; `metadata` then
        lists all of them as `missing_chunks`, the latter as `damaged_chunks`, and planes of which no file is left as
        `missing_planes`.
    allow_missing_planes : bool
        Read planes that a folder of planes lacks, by the numbers in their names, or whose files are cut short, as 0;
        `metadata` then lists them as `missing_planes`.
    planes : (int, int), optional
        What will be read of it, from one plane to another: only their files of a Zarr store or a folder of planes are
        looked at, and no other planes can be read of such a store. `data`, which is all of it, is an error then.

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
    of_a_store = {"level": level, "allow_missing_chunks": allow_missing_chunks, "planes": planes}
    of_planes = {"allow_missing_planes": allow_missing_planes, "planes": planes}
    of_channel = partial(_reader, path, axes=axes, of_a_store=of_a_store, of_planes=of_planes)
    reader = of_channel(0 if channel == MEAN else channel)
    if channel == MEAN:
        labelled = MEAN in reader.metadata.get("channels", ())
        others = range(1, reader.channels)
        reader = of_channel(MEAN) if labelled else MeanReader([reader, *map(of_channel, others)])
    voxel = _voxel_size(reader, voxel_um, required=require_voxel_um)
    if reader.shape[0] == 1 and planes is None and (brothers := _brothers(path)):
        msg = (
            f"{path} is one plane, and {len(brothers)} files beside it have such a name and another number, as "
            f"{brothers[0].name}; give the folder, {path.parent}, if they are planes of one volume"
        )
        warnings.warn(msg, N4flowWarning, stacklevel=2)
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


def files_read(path: str | Path) -> list[Path]:
    """Return what is read of a path: a file and those that hold its voxels, a folder, or the files of a pattern."""
    path = located(path)
    if is_pattern(path):
        return PlanesReader.data_files(path)
    kind = read_as(path) if path.is_file() else None
    return [path] if kind is None else kind.files_read(path)


def _brothers(path: Path) -> list[Path]:
    """Return the files beside a file whose names differ from its own in one number, where there are two or more."""
    parts = re.split(r"(\d+)", path.name)
    if not path.is_file() or len(parts) == 1:
        return []
    alike = []
    for other in sorted(path.absolute().parent.iterdir()):
        split = re.split(r"(\d+)", other.name)
        if split[::2] == parts[::2] and sum(a != b for a, b in zip(split, parts, strict=True)) == 1:
            alike.append(other)
    return alike if len(alike) > 1 else []


def _reader(
    path: Path,
    channel: int | str | None,
    axes: str | None,
    of_a_store: dict[str, Any],
    of_planes: dict[str, Any],
) -> Reader:
    kind: Format | None
    if isinstance(path, Address):
        kind = ZARR
        if (named := read_as(path)) is not None:
            msg = f"{path} is a file ({named.name}) at an address, where OME-Zarr folders alone are read; download it"
            raise InputError(msg)
    elif is_pattern(path):
        kind = PLANES
    elif not _existing(path).is_dir():
        kind = read_as(path)
    elif any((path / marker).exists() for marker in MARKERS):
        kind = ZARR
    elif (of_a_set := described_set(path)) is not None:
        kind, path = read_as(of_a_set), of_a_set
    elif holds_planes(path):
        kind = PLANES
    else:
        inside = sorted(child.name for child in path.iterdir())
        held = listed(inside) if inside else "nothing"
        msg = f"{path} is a folder without Zarr metadata or planes; it holds {held}; expected {EXPECTED}"
        raise InputError(msg)
    if kind is None:
        msg = f"{path} is not a volume that n4flow reads; expected {EXPECTED}"
        raise InputError(msg)
    if kind is not ZARR and of_a_store["level"] != 0:
        msg = (
            f"pyramid levels are read from OME-Zarr alone, not from {path}; level must be 0, got {of_a_store['level']}"
        )
        raise InputError(msg)
    if axes is not None and not kind.axes:
        able = ", ".join(other.name for other in FORMATS if other.axes)
        msg = f"axes {axes} cannot be given to {path}, which is {kind.name}; they can to {able}, so leave axes out"
        raise InputError(msg)
    options = of_a_store if kind is ZARR else of_planes if kind is PLANES else {}
    return kind.read(path, channel, **options, **({"axes": axes} if kind.axes else {}))


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
    if given is None and reader.assumed:
        warnings.warn(f"{reader.path}: {reader.assumed}", N4flowWarning, stacklevel=3)
    if set(voxel) == set(AXES):
        return {axis: voxel[axis] for axis in AXES}
    if not required:
        return None
    part = f" along {', '.join(axis for axis in AXES if axis not in voxel)}" if voxel else ""
    reason = f" ({reader.reason})" if reader.reason else ""
    msg = f"{reader.path} has no voxel size{part}{reason}; give it with voxel_um (z y x, micrometres)"
    raise InputError(msg)
