"""Write a whole array to a file of any format, chosen by its ending."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from n4flow.errors import InputError
from n4flow.io import itk, tiff
from n4flow.io.itk import write_itk
from n4flow.io.nifti import write_nifti
from n4flow.io.omezarr.layout import by_axis
from n4flow.io.omezarr.planning import DTYPES, plan_layout
from n4flow.io.omezarr.shards import disk_error
from n4flow.io.tiff import write_tiff

if TYPE_CHECKING:
    from n4flow.io.volume import Volume

ENDINGS = (".zarr", ".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".tif", ".tiff", ".npy")


def write_volume(
    path: str | Path,
    array: np.ndarray,
    *,
    like: Volume | None = None,
    voxel_um: Mapping[str, float] | Sequence[float] | None = None,
    ome_zarr_version: str = "0.5",
) -> None:
    """Write a (Z, Y, X) array, in the format that the ending of `path` names.

    The file appears under its name when it is complete, and takes the place of one that was there.

    Parameters
    ----------
    path : path
        Ending `.zarr`, `.nii`, `.nii.gz`, `.nrrd`, `.mha`, `.mhd`, `.tif`, `.tiff` or `.npy`.
    array : (Z, Y, X) array
        Bool is written as uint8, and as labels to OME-Zarr.
    like : Volume, optional
        Gives voxel size and origin, and the affines and codes of a NIfTI file.
    voxel_um : dict by axis name, or (z, y, x), optional
        Micrometres; takes the place of that of `like`.
    ome_zarr_version : str
        `0.5` or `0.4`.

    Raises
    ------
    InputError
        Unknown ending, not a volume, a dtype that the format lacks, or no voxel size (`.npy` has none, and NIfTI to
        NIfTI keeps the affine, whatever its unit).
    DiskFullError
        Space, inodes or a quota are used up.
    """
    path = Path(path)
    ending = next((e for e in ENDINGS if path.name.lower().endswith(e)), None)
    if ending is None:
        msg = f"{path} has no ending that n4flow writes; expected one of {', '.join(ENDINGS)}"
        raise InputError(msg)
    array = np.asarray(array)
    if array.ndim != 3 or 0 in array.shape:
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
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        _write(scratch / path.name, ending, array, voxel or {}, like, ome_zarr_version, labels=labels)
        _put_in_place(scratch, path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def keeps_without_size(path: Path, like: Volume | None) -> bool:
    """Return whether a file needs no voxel size: .npy has none, NIfTI keeps the affine of a NIfTI as it is."""
    name = path.name.lower()
    nifti = name.endswith((".nii", ".nii.gz")) and like is not None and "affine" in like.metadata
    return name.endswith(".npy") or nifti


def _write(
    path: Path,
    ending: str,
    array: np.ndarray,
    voxel_um: dict[str, float],
    like: Volume | None,
    version: str,
    *,
    labels: bool,
) -> None:
    origin_um = like.origin_um if like is not None else dict.fromkeys("zyx", 0.0)
    if ending == ".npy":
        np.save(path, array)
    elif ending in (".nii", ".nii.gz"):
        write_nifti(path, array, voxel_um, like)
    elif ending in tiff.SUFFIXES:
        write_tiff(path, array, voxel_um)
    elif ending in itk.SUFFIXES:
        write_itk(path, array, voxel_um, like)
    else:
        write_zarr(path, array, voxel_um, origin_um, version, kept_metadata(like), labels=labels)


def write_zarr(
    path: Path,
    array: np.ndarray,
    voxel_um: dict[str, float],
    origin_um: dict[str, float],
    version: str,
    attributes: Mapping[str, Any],
    *,
    labels: bool,
) -> None:
    """Write an array as an OME-Zarr image with its pyramid, and check it."""
    from n4flow.io.omezarr.slab_writer import SlabWriter
    from n4flow.io.omezarr.store import create_store, validate_store, write_omero

    kind = "labels" if labels else "image"
    layout = plan_layout(array.shape, array.dtype, voxel_um, origin_um, version=version, kind=kind)
    create_store(path, layout, attributes)
    for start in range(0, len(array), layout.slab_planes):
        stop = min(start + layout.slab_planes, len(array))
        with SlabWriter(path, layout, start, stop) as writer:
            writer.write(array[start:stop], start)
    finite = array[np.isfinite(array)]
    if not labels and finite.size:
        low, high = (float(v) for v in np.percentile(finite[:: max(1, finite.size // 10**6)], (0.1, 99.9)))
        window = (low, high if high > low else low + 1)
        write_omero(path, window, (float(finite.min()), float(finite.max())), path.name.split(".")[0])
    validate_store(path)


def kept_metadata(like: Volume | None) -> dict[str, Any]:
    """Return what an OME-Zarr keeps of the file it comes from, so that it can go back to that format."""
    keep = ("affine", "affine_unit", "affine_codes", "qform", "direction", "origin")
    return {key: like.metadata[key] for key in keep if key in like.metadata} if like is not None else {}


def _put_in_place(scratch: Path, path: Path) -> None:
    """Move everything in `scratch` beside `path`; the file of that name last, so that it never points nowhere."""
    for made in sorted(scratch.iterdir(), key=lambda item: item.name == path.name):
        target = path.parent / made.name
        if target.is_dir() and not target.is_symlink():
            if not any((target / marker).exists() for marker in ("zarr.json", ".zattrs", ".zgroup", ".zarray")):
                msg = f"{target} is a folder and not a Zarr store; remove it or choose another name"
                raise InputError(msg)
            os.replace(target, scratch / f"{made.name}.old")
        os.replace(made, target)
