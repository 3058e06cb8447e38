"""Whole files of every format, as other libraries write them, and what those libraries read of a changed one."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (5, 20, 24)
CHUNKS, SHARDS = (2, 8, 16), (4, 16, 16)  # Borders of chunks and of shards lie inside and outside the volume.

STACK = {"axes": "ZYX"}


def voxels() -> np.ndarray:
    """Return the volume that every file holds: a bright blob in noise, so that N4 and its mask find something."""
    z, y, x = np.ogrid[:5, :20, :24]
    blob = 3000 * np.exp(-(((z - 2) / 3) ** 2 + ((y - 9) / 6) ** 2 + ((x - 12) / 7) ** 2))
    return (blob + np.random.default_rng(19).integers(20, 200, SHAPE)).astype(np.uint16)


def _nifti(path: Path, array: np.ndarray) -> None:
    import nibabel

    image = nibabel.Nifti1Image(array.T, np.diag([0.01, 0.01, 0.05, 1]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def _itk(path: Path, array: np.ndarray, *, compressed: bool = False) -> None:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.01, 0.01, 0.05))
    sitk.WriteImage(image, str(path), useCompression=compressed)


def _tiff(path: Path, array: np.ndarray, **options: Any) -> None:
    import tifffile

    tifffile.imwrite(path, array, photometric="minisblack", **options)


def _zarr(path: Path, array: np.ndarray, zarr_format: int = 3, **options: Any) -> None:
    import zarr

    separator = {"name": "v2", "separator": "/"} if zarr_format == 2 else None
    group = zarr.create_group(path, zarr_format=zarr_format)
    options.setdefault("compressors", None)
    whole = group.create_array(
        "0", shape=SHAPE, dtype=array.dtype, chunks=CHUNKS, chunk_key_encoding=separator, **options
    )
    whole[:] = array
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    scale = [{"type": "scale", "scale": [50.0, 10.0, 10.0]}]
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    if zarr_format == 2:
        group.attrs["multiscales"] = [{"version": "0.4", **image}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}


def _zipped(path: Path, array: np.ndarray) -> None:
    folder = path.with_suffix(".folder")
    _zarr(folder, array)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))


def _codecs(*names: str) -> Any:
    import zarr.codecs

    codecs = {"blosc": zarr.codecs.BloscCodec, "zstd": zarr.codecs.ZstdCodec}
    codecs |= {"gzip": zarr.codecs.GzipCodec, "crc32c": zarr.codecs.Crc32cCodec}
    return [codecs[name]() for name in names]


def _old(name: str) -> Any:
    import numcodecs

    return {"blosc": numcodecs.Blosc, "zlib": numcodecs.Zlib, "zstd": numcodecs.Zstd}[name]()


def _saved(path: Path, array: np.ndarray) -> None:
    np.save(path, array)


def _planes(path: Path, array: np.ndarray) -> None:
    from PIL import Image

    path.mkdir()
    for number, plane in enumerate(array):
        Image.fromarray(plane).save(path / f"{number:03}.{path.name.partition('_')[0]}")


WRITERS: dict[str, Callable[[Path, np.ndarray], None]] = {
    "nifti.nii": _nifti,
    "nifti.nii.gz": _nifti,
    "array.npy": _saved,
    "raw.nrrd": _itk,
    "gzip.nrrd": lambda path, array: _itk(path, array, compressed=True),
    "raw.mha": _itk,
    "zlib.mha": lambda path, array: _itk(path, array, compressed=True),
    "plain.tif": _tiff,
    "zlib.tif": lambda path, array: _tiff(path, array, compression="zlib", rowsperstrip=7),
    "imagej.tif": lambda path, array: _tiff(
        path, array, imagej=True, metadata={"axes": "ZYX", "spacing": 50, "unit": "um"}
    ),
    "ome.ome.tif": lambda path, array: _tiff(
        path, array, ome=True, metadata={"axes": "ZYX"}, compression="zlib", tile=(16, 16)
    ),
    "raw.zarr": _zarr,
    "blosc.zarr": lambda path, array: _zarr(path, array, compressors=_codecs("blosc")),
    "zstd.zarr": lambda path, array: _zarr(path, array, compressors=_codecs("zstd")),
    "gzip.zarr": lambda path, array: _zarr(path, array, compressors=_codecs("gzip")),
    "crc32c.zarr": lambda path, array: _zarr(path, array, compressors=_codecs("crc32c")),
    "zstd_crc32c.zarr": lambda path, array: _zarr(path, array, compressors=_codecs("zstd", "crc32c")),
    "shards.zarr": lambda path, array: _zarr(path, array, shards=SHARDS, compressors=_codecs("blosc")),
    "shards_crc32c.zarr": lambda path, array: _zarr(path, array, shards=SHARDS, compressors=_codecs("crc32c")),
    "v2_raw.zarr": lambda path, array: _zarr(path, array, 2),
    "v2_blosc.zarr": lambda path, array: _zarr(path, array, 2, compressors=_old("blosc")),
    "v2_zlib.zarr": lambda path, array: _zarr(path, array, 2, compressors=_old("zlib")),
    "zipped.zarr.zip": _zipped,
    "png_planes": _planes,
    "tif_planes": _planes,
}


def reference(path: Path) -> np.ndarray:
    """Return what the library of a file's format reads; every checksum that the file has is compared first."""
    if path.name.endswith("_planes"):
        from PIL import Image

        return np.stack([np.asarray(Image.open(file)) for file in sorted(path.iterdir())])
    if path.is_dir() or path.suffix == ".zip":
        import zarr
        from zarr.storage import LocalStore, ZipStore

        store = LocalStore(path, read_only=True) if path.is_dir() else ZipStore(path, mode="r")
        return np.asarray(zarr.open_array(store, path="0", mode="r")[:])
    if path.name.endswith((".nii", ".nii.gz")):
        import nibabel

        if path.suffix == ".gz":
            gzip.decompress(path.read_bytes())
        return np.asarray(nibabel.load(path).dataobj).T
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".tif":
        import tifffile

        return tifffile.imread(path)
    import SimpleITK as sitk

    if path.name == "gzip.nrrd":
        gzip.decompress(path.read_bytes().partition(b"\n\n")[2])
    if path.name == "zlib.mha":
        zlib.decompress(path.read_bytes().partition(b"= LOCAL\n")[2])
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
