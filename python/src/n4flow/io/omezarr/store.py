"""Write OME-Zarr 0.5 (Zarr v3, sharded) and 0.4 (Zarr v2): metadata and validation.

`plan_layout` decides where every voxel goes, `create_store` writes the metadata, one `SlabWriter` per slab
writes the voxels, `write_omero` says how viewers show them, and `validate_store` checks what is on disk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from n4flow.errors import InputError, N4flowError, reading
from n4flow.io.formats import name_without_suffix
from n4flow.io.geometry import affine_of
from n4flow.io.omezarr.chunk_grid import FileGrid, listed
from n4flow.io.omezarr.damage import faulty_files
from n4flow.io.omezarr.layout import AXES, StoreLayout
from n4flow.io.omezarr.planning import plan_layout
from n4flow.io.omezarr.shards import CODEC, LEVEL, chunk_codec, disk_error
from n4flow.io.omezarr.slab_writer import SlabWriter

if TYPE_CHECKING:
    from n4flow.io.volume import Volume

CHANNELS = {"name": "c", "type": "channel"}
BOUNDS = ("start", "end"), ("min", "max")  # Of a window that is shown, and of all intensities.
COLOURS = ("FF0000", "00FF00", "0000FF", "FF00FF", "00FFFF", "FFFF00")  # Of channels that have none of their own.
METHODS = {
    "image": ("mean", "mean over blocks of the level before, of finite voxels, of what there is at the edge"),
    "labels": ("nearest", "voxel f * i + f // 2 of level 0, f the factor of the level"),
}


@dataclass(frozen=True)
class Shown:
    """How viewers show a channel.

    Parameters
    ----------
    label : str
        Name of the channel.
    window : (low, high)
        Intensities shown as black and white.
    range : (low, high)
        Smallest and largest intensity there is.
    colour : str
        As RRGGBB.
    """

    label: str
    window: tuple[float, float]
    range: tuple[float, float]
    colour: str = "FFFFFF"

    def described(self) -> dict[str, Any]:
        """Return the channel's entry in `omero` metadata.

        Raises
        ------
        InputError
            A bound is not finite: JSON has no such number.
        """
        if not all(map(math.isfinite, (*self.window, *self.range))):
            msg = f"window and range need finite intensities, got {self.window} and {self.range}"
            raise InputError(msg)
        return {
            "active": True,
            "coefficient": 1.0,
            "color": self.colour,
            "family": "linear",
            "inverted": False,
            "label": self.label,
            "window": {
                "min": float(
                    min(self.range[0], self.window[0])
                ),  # viewers cut a window to this, also of a constant image
                "max": float(max(self.range[1], self.window[1])),
                "start": float(self.window[0]),
                "end": float(self.window[1]),
            },
        }


def create_store(path: str | Path, layout: StoreLayout, attributes: Mapping[str, Any] | None = None) -> None:
    """Write the groups, arrays and OME metadata of a store, without voxels.

    Parameters
    ----------
    path : path
        A folder that does not exist yet, or is empty.
    layout : StoreLayout
    attributes : mapping, optional
        JSON-able values kept under the key `n4flow`, but for those under `others`, which are attributes of their own.

    Raises
    ------
    InputError
        There is something at `path` already.
    DiskFullError
        Space, inodes or a quota are used up.
    """
    import zarr
    from zarr.codecs import BloscCodec

    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        msg = f"{path} exists already; remove it or choose another name"
        raise InputError(msg)
    modern = layout.version == "0.5"
    try:
        described = _attributes(path, layout, attributes)
        group = zarr.create_group(path, zarr_format=3 if modern else 2, attributes=described)
        for level in layout.levels:
            dtype = np.dtype(layout.dtype).newbyteorder("<")
            codec = BloscCodec(typesize=dtype.itemsize, cname=CODEC, clevel=LEVEL, shuffle="bitshuffle")
            group.create_array(
                level.path,
                shape=layout.with_channel(layout.channels, level.shape),
                chunks=layout.with_channel(1, level.chunks),
                shards=layout.with_channel(1, level.shards) if level.shards else None,
                dtype=dtype,
                fill_value=0,
                compressors=codec if modern else chunk_codec(),
                dimension_names=layout.axes if modern else None,
                chunk_key_encoding=None if modern else {"name": "v2", "separator": "/"},
            )
    except OSError as error:
        raise disk_error(error, path) from error


def write_zarr(
    path: Path, array: np.ndarray, voxel_um: dict[str, float], like: Volume | None, *, version: str, labels: bool
) -> None:
    """Write a (Z, Y, X) or (C, Z, Y, X) array as an OME-Zarr image with its pyramid, and check it."""
    origin_um = like.origin_um if like is not None else dict.fromkeys(AXES, 0.0)
    kind = "labels" if labels else "image"
    channels = len(array) if array.ndim == 4 else None
    layout = plan_layout(array.shape[-3:], array.dtype, voxel_um, origin_um, version=version, kind=kind)
    layout = replace(layout, channels=channels)
    create_store(path, layout, kept_metadata(like))
    shown, name = [], path.name.split(".")[0]
    for number, values in enumerate(array if channels else [array]):
        for start in range(0, len(values), layout.slab_planes):
            stop = min(start + layout.slab_planes, len(values))
            with SlabWriter(path, replace(layout, channel=number), start, stop) as writer:
                writer.write(values[start:stop], start)
        finite = values[np.isfinite(values)]
        if not finite.size:
            finite = np.zeros(1)
        low, high = (float(v) for v in np.percentile(finite[:: max(1, finite.size // 10**6)], (0.1, 99.9)))
        window, ends = (low, high if high > low else low + 1), (float(finite.min()), float(finite.max()))
        label, colour = named(like, number, channels, name)
        shown.append(Shown(label, window, ends, colour))
    if not labels:
        write_omero(path, name, shown)
    validate_store(path)


def named(like: Volume | None, number: int, channels: int | None, name: str) -> tuple[str, str]:
    """Return label and colour of a channel: those of the input where it has as many, else name or number."""
    kept = like.metadata if like is not None else {}
    labels, colours = kept.get("channels") or [], kept.get("colours") or []
    if channels is None:
        return (labels[0] if len(labels) == 1 else name), (colours[0] if len(colours) == 1 else "FFFFFF")
    colours = colours or COLOURS
    label = labels[number] if len(labels) == channels else str(number)
    return label, colours[number % len(colours)]


def kept_metadata(like: Volume | None) -> dict[str, Any]:
    """Return what an OME-Zarr keeps of its input: where voxels lie, fields of headers, attributes of other programs."""
    if like is None:
        return {}
    kept = {key: like.metadata[key] for key in ("nifti_header", "fields", "others") if like.metadata.get(key)}
    affine = affine_of(like, like.voxel_um)
    return kept if affine is None else {"affine_um": affine.tolist(), **kept}


def write_omero(path: str | Path, name: str, shown: Sequence[Shown]) -> None:
    """Say how viewers show the image: complete `omero` metadata for each of its channels.

    Parameters
    ----------
    path : path
        A store that `create_store` made.
    name : str
        Name of the image.
    shown : sequence of Shown

    Raises
    ------
    InputError
        A bound is not finite: JSON has no such number.
    """
    channels = [channel.described() for channel in shown]
    group, ome = _open_ome(Path(path), "r+")
    planes = group[ome["multiscales"][0]["datasets"][0]["path"]].shape[-3]
    omero = {
        "id": 1,
        "name": name,
        "channels": channels,
        "rdefs": {"defaultT": 0, "defaultZ": planes // 2, "model": "color" if len(channels) > 1 else "greyscale"},
    }
    if group.metadata.zarr_format == 2:
        group.attrs["omero"] = {"version": "0.4", **omero}
    else:
        group.attrs["ome"] = {**ome, "omero": omero}


def read_omero(path: str | Path) -> list[Shown]:
    """Return what `write_omero` wrote of each channel."""
    _group, ome = _open_ome(Path(path), "r")
    found = []
    for channel in ome["omero"]["channels"]:
        window, range_ = [(channel["window"][low], channel["window"][high]) for low, high in BOUNDS]
        found.append(Shown(channel["label"], window, range_, channel["color"]))
    return found


def validate_store(path: str | Path, channel: int | None = None) -> None:
    """Check a store on disk: metadata, levels, and every file; of one `channel` alone where others are not written yet.

    The metadata must satisfy the OME-Zarr models of its version; every level must have the shape and the translation
    that its scale asks for, so that all levels cover the same space; every shard or chunk must be there, and complete
    as far as its index or header tells without decoding it.

    Raises
    ------
    InputError
        There is no OME-Zarr image at `path`.
    N4flowError
        The store is not valid; the sentence says what is wrong where.
    """
    path = Path(path)
    group, ome = _open_ome(path, "r")
    _check_models(path, group, ome)
    axes = ome["multiscales"][0]["axes"]
    if axes not in (space := [_axis(axis) for axis in AXES], [CHANNELS, *space]):
        named = ", ".join(str(axis["name"]) for axis in axes)
        msg = f"{path} has axes {named}; expected z, y, x in micrometer, or c before them"
        raise N4flowError(msg)
    datasets = ome["multiscales"][0]["datasets"]
    arrays = [group[dataset["path"]] for dataset in datasets]
    transforms = [_transform(dataset) for dataset in datasets]
    for dataset, array, (scale, translation) in zip(datasets, arrays, transforms, strict=True):
        _check_level(path, dataset["path"], array, arrays[0], scale, translation, *transforms[0])
        _check_files(path / dataset["path"], array, channel)


def voxel_files(path: Path) -> set[str]:
    """Return the keys of all files with voxels, shards or chunks, that a store has by its metadata.

    Raises
    ------
    InputError, N4flowError
        As `validate_store`, which also looks at the files.
    """
    group, ome = _open_ome(path, "r")
    _check_models(path, group, ome)
    names = [dataset["path"] for dataset in ome["multiscales"][0]["datasets"]]
    grids = {name: FileGrid.of(group[name]) for name in names}
    return {f"{name}/{grid.key(index)}" for name, grid in grids.items() for index in grid.indices()}


def _axis(name: str) -> dict[str, str]:
    return {"name": name, "type": "space", "unit": "micrometer"}


def _attributes(path: Path, layout: StoreLayout, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    datasets = []
    for number, level in enumerate(layout.levels):
        transforms = [
            {"type": "scale", "scale": list(layout.with_channel(1.0, layout.scale_um(number)))},
            {"type": "translation", "translation": list(layout.with_channel(0.0, layout.translation_um(number)))},
        ]
        datasets.append({"path": level.path, "coordinateTransformations": transforms})
    kind, description = METHODS[layout.kind]
    multiscale: dict[str, Any] = {
        "name": name_without_suffix(path),
        "axes": [CHANNELS if axis == "c" else _axis(axis) for axis in layout.axes],
        "datasets": datasets,
        "type": kind,
        "metadata": {
            "description": description,
            "method": "n4flow block by block",
            "version": metadata.version("n4flow"),
            "factors": [list(level.factors) for level in layout.levels],
        },
    }
    ome: dict[str, Any] = {"multiscales": [multiscale]}
    if layout.kind == "labels":
        ome["image-label"] = {"version": layout.version} if layout.version == "0.4" else {}
    own = dict(extra or {})
    kept = own.pop("others", {}) | ({"n4flow": own} if own else {})
    if layout.version == "0.5":
        return {"ome": {"version": "0.5", **ome}, **kept}
    multiscale["version"] = "0.4"
    return {**ome, **kept}


def _open_ome(path: Path, mode: Literal["r", "r+"]) -> tuple[Any, dict[str, Any]]:
    """Return the zarr group at `path` and its OME metadata."""
    import zarr

    with reading(path, "a Zarr group", "give the folder of an OME-Zarr image", small=True):
        group = zarr.open_group(path, mode=mode, use_consolidated=False)
    attributes: dict[str, Any] = dict(group.attrs)
    ome = attributes.get("ome", attributes)
    if not ome.get("multiscales"):
        msg = f"{path} has no OME-Zarr multiscales metadata; give the folder of an OME-Zarr image"
        raise InputError(msg)
    return group, ome


def _check_models(path: Path, group: Any, ome: Mapping[str, Any]) -> None:
    """Compare the metadata with the models of their version, and the arrays that they name with the axes."""
    import zarr
    from yaozarrs import v04, v05

    version = v04 if group.metadata.zarr_format == 2 else v05
    model = version.LabelImage if "image-label" in ome else version.Image
    try:
        model.model_validate(dict(ome))
        axes = tuple(axis["name"] for axis in ome["multiscales"][0]["axes"])
        for dataset in ome["multiscales"][0]["datasets"]:
            array = group.get(dataset["path"])
            # Zarr v2 has no names of dimensions
            named = isinstance(array, zarr.Array) and getattr(array.metadata, "dimension_names", axes) == axes
            if not named or array.ndim != len(axes):
                msg = f"it names {dataset['path']}, which is no array with axes {', '.join(axes)}"
                raise ValueError(msg)
    except ValueError as error:  # what the models raise is one, too
        reason = " ".join(str(error).split())
        msg = f"{path} is not valid OME-Zarr: {reason}"
        raise N4flowError(msg) from error


def _transform(dataset: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    scale: list[float] = []
    translation: list[float] = []
    for transform in dataset["coordinateTransformations"]:
        scale = transform.get("scale", scale)
        translation = transform.get("translation", translation)
    return scale, translation or [0.0] * len(scale)


def _check_level(
    path: Path,
    name: str,
    array: Any,
    base: Any,
    scale: list[float],
    translation: list[float],
    base_scale: list[float],
    base_translation: list[float],
) -> None:
    """Compare a level with level 0, axis by axis: whole factor, shape rounded up, same first edge."""
    axes = zip(array.shape, base.shape, scale, base_scale, translation, base_translation, strict=True)
    for samples, size, step, voxel, first, base_first in axes:
        factor = round(step / voxel)
        if abs(factor * voxel - step) > 1e-6 * step or samples != -(-size // factor):
            msg = (
                f"level {name} of {path} has shape {array.shape} and scale {scale}, which do not fit level 0 of shape "
                f"{base.shape} and scale {base_scale}"
            )
            raise N4flowError(msg)
        if abs((first - step / 2) - (base_first - voxel / 2)) > 1e-6 * voxel * max(1, size):
            msg = f"level {name} of {path} has translation {translation}, which shifts it against level 0"
            raise N4flowError(msg)


def _check_files(folder: Path, array: Any, channel: int | None) -> None:
    """Look at every file of an array, or of one channel: there, and complete as its index or header tells."""
    grid, wanted = FileGrid.of(array), None if channel is None else lambda index: index[0] == channel
    faults = [f"{grid.key(index)} {fault}" for index, fault in faulty_files(folder, array, wanted).items()]
    if faults:
        msg = f"{folder} has {len(faults)} faulty files: {listed(faults)}; write the store again"
        raise N4flowError(msg)
