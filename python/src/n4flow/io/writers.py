"""Write a whole array to a file of any format, chosen by its ending."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from n4flow.errors import DiskFullError, InputError, N4flowError, reason
from n4flow.io.formats import FORMATS, WRITTEN, ZARR, Format, suffix_of, written_as
from n4flow.io.omezarr.layout import by_axis
from n4flow.io.omezarr.planning import DTYPES
from n4flow.io.omezarr.reader import MARKERS
from n4flow.io.omezarr.shards import disk_error
from n4flow.io.publishing import scratch_beside, set_aside

if TYPE_CHECKING:
    from n4flow.io.volume import Volume


def write_volume(
    path: str | Path,
    array: np.ndarray,
    *,
    like: Volume | None = None,
    voxel_um: Mapping[str, float] | Sequence[float] | None = None,
    ome_zarr_version: str = "0.5",
) -> None:
    """Write a (Z, Y, X) array, or several channels (C, Z, Y, X) of it, in the format that the ending of `path` names.

    The file appears under its name when it is complete, and takes the place of one that was there.

    Parameters
    ----------
    path : path
        Its ending is one of `n4flow.io.formats.WRITTEN`.
    array : (Z, Y, X) or (C, Z, Y, X) array
        Several channels, or volumes of a series, go to all formats but NumPy. Bool is written as uint8, and
        as labels to OME-Zarr.
    like : Volume, optional
        Gives voxel size, origin and directions, and fields of the header to a file of its own format.
    voxel_um : dict by axis name, or (z, y, x), optional
        Micrometres; takes the place of that of `like`.
    ome_zarr_version : str
        `0.5` or `0.4`.

    Raises
    ------
    InputError
        Unknown ending, not a volume, a dtype that the format lacks, or no voxel size (`.npy` has none, and NIfTI to
        NIfTI keeps the header).
    DiskFullError
        Space, inodes or a quota are used up, or a library cannot write the file.
    """
    path = Path(path)
    array = np.asarray(array)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    kind = _format(path, len(array) if array.ndim == 4 else 1)
    if array.ndim not in (3, 4) or 0 in array.shape:
        msg = f"a volume (Z, Y, X) is needed to write {path.name}, got an array of shape {array.shape}"
        raise InputError(msg)
    labels = array.dtype == np.bool_
    array = array.astype(np.uint8 if labels else array.dtype.newbyteorder("="), copy=False)
    if array.dtype.name not in DTYPES:
        msg = f"voxels cannot be written as {array.dtype} to {path.name}; cast them to one of {', '.join(DTYPES)}"
        raise InputError(msg)
    voxel = by_axis(voxel_um, "voxel_um") if voxel_um is not None else like.voxel_um if like is not None else None
    if voxel is None and not keeps_without_size(path, like):
        msg = f"{path.name} needs a voxel size; give it with voxel_um (z y x, micrometres)"
        raise InputError(msg)
    try:
        with scratch_beside(path) as scratch:
            of_a_store = {"version": ome_zarr_version, "labels": labels} if kind is ZARR else {}
            suffix = suffix_of(path, kind.written)  # Libraries write other files under suffixes in upper case.
            new = scratch / "new"
            new.mkdir()
            made = new / f"{path.name[: -len(suffix)]}{suffix}"
            kind.write(made, array, voxel or {}, like, **of_a_store)
            made.rename(new / path.name)
            _put_in_place(scratch, path)
    except N4flowError:
        raise
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise disk_error(error, path) from error
        # SimpleITK and tifffile do not say what the system said
        remedy = "look at free space, the quota and the limit of a file's size"
        msg = f"{path} cannot be written: {reason(error)}; {remedy}"
        raise DiskFullError(msg) from error


def check_destination(path: Path, channels: int = 1, *, overwrite: bool = False) -> None:
    """Judge, before anything is computed, whether `write_volume` could write to a path.

    Raises
    ------
    InputError
        Its ending is none of a format that is written, or of one without room for several channels; it exists and
        `overwrite` is not given, or a file does that is written beside it; or its folder cannot be made or written to.
    """
    for file in _format(path, channels).files_written(path):
        if os.path.lexists(file):
            _store_at(file)
            if not overwrite:
                made = "" if file == path else f", which {path.name} would be written with,"
                msg = f"{file}{made} exists; choose another name, or replace it with --overwrite"
                raise InputError(msg)
    folder = next(place for place in path.absolute().parents if os.path.lexists(place))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        fault = "may not be written to" if folder.is_dir() else "is no folder"
        msg = f"{path} cannot be written, because {folder} {fault}; choose another folder"
        raise InputError(msg)


def _format(path: Path, channels: int) -> Format:
    """Return the format that a path's ending names; it has room for so many channels."""
    kind = written_as(path)
    if kind is None:
        msg = f"{path} has no ending that n4flow writes; expected one of {', '.join(WRITTEN)}"
        raise InputError(msg)
    if channels > 1 and not kind.channels:
        endings = [suffix for other in FORMATS if other.channels for suffix in other.written]
        held = f"{path} would hold {channels} channels, and {kind.name} is written with one"
        msg = f"{held}; choose one of {', '.join(endings)}"
        raise InputError(msg)
    return kind


def keeps_without_size(path: Path, like: Volume | None) -> bool:
    """Return whether a file needs no voxel size: .npy has none, NIfTI keeps the header of a NIfTI as it is."""
    kind = written_as(path)
    name = kind.name if kind is not None else ""
    return name == "NumPy" or (name == "NIfTI" and like is not None and "nifti_header" in like.metadata)


def _put_in_place(scratch: Path, path: Path) -> None:
    """Move all that is new beside `path`; the file of that name last, so that it never points nowhere."""
    for made in sorted((scratch / "new").iterdir(), key=lambda item: item.name == path.name):
        target = path.parent / made.name
        if _store_at(target):
            set_aside(target, scratch)
        os.replace(made, target)


def _store_at(target: Path) -> bool:
    """Return whether a Zarr store is in the way; another folder is an error."""
    if not target.is_dir() or target.is_symlink():
        return False
    if not any((target / marker).exists() for marker in MARKERS):
        msg = f"{target} is a folder and not a Zarr store; remove it or choose another name"
        raise InputError(msg)
    return True
