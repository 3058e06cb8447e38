"""Read OME-Zarr 0.1 to 0.6 and plain Zarr arrays, of Zarr v2 and v3, from a folder or a zip file."""

from __future__ import annotations

import hashlib
import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from n4flow.errors import InputError, reading
from n4flow.io.address import Address
from n4flow.io.axes import named_axes, select, spacing
from n4flow.io.formats import check_regular
from n4flow.io.geometry import of_level
from n4flow.io.omezarr.chunk_grid import FileGrid, Index, listed, lost_layers, zipped_sizes
from n4flow.io.omezarr.chunk_reader import ChunkReader
from n4flow.io.omezarr.damage import ABSENT, faulty_files, most_bytes
from n4flow.io.reader import Reader, check_dtype

KNOWN = re.compile(r"0\.[1-6](\D|$)|unknown$")  # Versions of OME-Zarr
COLOUR = re.compile(r"[0-9A-Fa-f]{6}$")
MOST_METADATA = 2**26  # Bytes; those of real stores have some kilobytes.
MOST_FILES = 10**9  # Of one array.
MOST_NAMED = 1000  # Faulty files that are looked for before the store is refused.
DESCRIBED = "described as the specification of OME-Zarr asks for"
# Attributes that describe an image and what lies beside it; those of others are kept.
WRITTEN_ANEW = {"ome", "multiscales", "omero", "image-label", "labels", "plate", "well", "series", "n4flow"}
WRITTEN_ANEW |= {"bioformats2raw.layout", "_ARRAY_DIMENSIONS"}
MARKERS = ("zarr.json", ".zgroup", ".zarray", ".zattrs")


class ZarrReader(Reader):
    """One level and channel of an OME-Zarr image, or a plain Zarr array; `open_volume` says what its options are."""

    def __init__(
        self,
        path: Path,
        channel: int | str | None = None,
        *,
        axes: str | None = None,
        level: int = 0,
        allow_missing_chunks: bool = False,
        planes: tuple[int, int] | None = None,
    ) -> None:
        self.path, self.planes, self._channel, self._level = path, planes, channel, level
        node = open_node(path)
        array, described = find_level(path, node, level)
        self._array_path = array.path
        own = [axis["name"] for axis in described["axes"]] or ([""] * array.ndim if axes else default_axes(path, array))
        named = named_axes(path, own, array.shape, axes)
        described["axes"] = [
            {**axis, "name": name or "t"} for axis, name in zip(described["axes"], named, strict=False)
        ]
        check_dtype(array.dtype, path)
        self.dtype = np.dtype(array.dtype).newbyteorder("=")
        self._select = select(path, named, array.shape, channel, described["labels"])
        self.shape = self._select.volume(array.shape)
        self.channels = self._select.channels
        self.chunks = self._select.volume(array.chunks, clip=self.shape)
        self.shards = self._select.volume(array.shards) if array.shards is not None else None
        with reading(path, DESCRIBED, "write its metadata again", small=True):
            self.voxel_um, self.origin_um, self.reason = spacing(described)
        self.metadata = {
            "format": "ome-zarr" if described["version"] else "zarr",
            "ome_zarr_version": described["version"],
            "zarr_format": array.metadata.zarr_format,
            "axes": named,
            "channels": described["labels"],
            "colours": described["colours"],
            "levels": described["levels"],
            "others": described["others"],
            **described["extra"],
        }
        with reading(path, DESCRIBED, "write its metadata again", small=True):
            if kept := self.metadata.pop("affine_um", None):
                self.affine_um = np.array(kept, float).reshape(4, 4)
                self.affine_um = of_level(self.affine_um, self.voxel_um) if level else self.affine_um
        self._absent, self._damaged = self._find_faults(array, allow_missing_chunks=allow_missing_chunks)

    def _find_faults(self, array: Any, *, allow_missing_chunks: bool) -> tuple[frozenset[Index], frozenset[Index]]:
        """Return the positions of absent and of damaged files of the chosen channel and planes, or refuse the store.

        Whether a file is truncated is told without decoding it: see `n4flow.io.omezarr.damage`. In a zip file only
        lengths of 0 are found. An absent file holds the fill value; without one in the metadata it is damage.
        """
        grid = FileGrid.of(array)
        wanted = partial(self._select.touches, grid=grid, planes=self.planes)
        if math.prod(grid.counts) > MOST_FILES:
            files = f"shape {array.shape} in files of {grid.file} voxels"
            msg = f"{self.path} has {files}, more than a disk holds; write it again"
            raise InputError(msg)
        if isinstance(self.path, Address):
            from n4flow.io.omezarr.remote import RemoteStore, states

            places = list(filter(wanted, grid.indices()))
            found_states = list(states(RemoteStore(self.path / array.path), map(grid.key, places)))
            faults = {index: ABSENT for index, found in zip(places, found_states, strict=True) if found is None}
            self._seen = [array.metadata.to_dict(), dict(self.metadata), found_states]
        elif self.path.is_dir():
            faults = faulty_files(self.path / array.path, array, wanted, all_of_them=allow_missing_chunks)
        else:
            sizes, most = zipped_sizes(self.path, array.path), most_bytes(array)
            lengths = ((index, sizes.get(grid.key(index))) for index in filter(wanted, grid.indices()))
            lost = ((i, ABSENT if n is None else "has no such length") for i, n in lengths if not 0 < (n or 0) <= most)
            faults = dict(lost if allow_missing_chunks else islice(lost, MOST_NAMED))
        fill = array.metadata.fill_value
        absent = frozenset(index for index, fault in faults.items() if fault == ABSENT and fill is not None)
        damaged = frozenset(faults) - absent
        if faults and not allow_missing_chunks:
            value = f"those that are absent are then read as the fill value {fill}, " if absent else ""
            count = f"{len(faults)} files{' or more' if len(faults) >= MOST_NAMED else ''}"
            msg = (
                f"{self.path} lacks {count}, or they are cut short: {listed(list(map(grid.key, faults)))}; "
                f"copy the store again, or allow missing chunks (allow_missing_chunks): {value}"
                "those that are cut short are invalid voxels"
            )
            raise InputError(msg)
        if faults:
            axis, alone = self._select.positions[0], dict(self._select.fixed)
            depth, layers = self.shape[0] if axis is None else grid.file[axis], lost_layers(faults, grid, axis, alone)
            self.metadata["missing_chunks"] = list(map(grid.key, faults))
            self.metadata["damaged_chunks"] = list(map(grid.key, sorted(damaged)))
            self.metadata["missing_planes"] = [[z * depth, min((z + 1) * depth, self.shape[0])] for z in layers]
        return absent, damaged

    def state(self) -> str:
        """See `Reader.state`; of a store at an address, its metadata and the entity tags of its files."""
        if not isinstance(self.path, Address):
            return super().state()
        now = ZarrReader(self.path, self._channel, level=self._level, allow_missing_chunks=True, planes=self.planes)
        return hashlib.sha256(repr(now._seen).encode()).hexdigest()

    def _box(self, z: slice, y: slice, x: slice) -> tuple[slice, ...]:
        """Return a box along all axes of the array; refuse planes whose files were not checked when it was opened."""
        low, high = self.planes or (z.start, z.stop)
        if not low <= z.start <= z.stop <= high:
            msg = f"planes {z.start} to {z.stop} of {self.path} are read, and it was opened for {low} to {high}"
            raise InputError(msg)
        return self._select.box(z, y, x)

    def read(self, z: slice, y: slice, x: slice) -> np.ndarray:
        """Return the voxels of a box."""
        box = self._box(z, y, x)
        values = np.empty([s.stop - s.start for s in box], self.dtype)
        self._fill(values, box)
        return self._select.transposed(values)

    def read_into(self, out: np.ndarray, z: slice, y: slice, x: slice) -> None:
        """Read a box into `out`; decoded in place, where the array's axes allow it."""
        box = self._box(z, y, x)
        if not self._select.in_order or not out.flags.c_contiguous:
            super().read_into(out, z, y, x)
            return
        self._fill(out.reshape([s.stop - s.start for s in box]), box)

    @property
    def by_chunks(self) -> bool:
        """Whether tensorstore reads the array, and whole boxes of it."""
        return not self._damaged and self._select.in_order and self._chunks.by_tensorstore

    @property
    def _chunks(self) -> ChunkReader:
        """What reads the array, opened once in each process."""
        if self._handle is None or self._handle.process != os.getpid():
            self._handle = ChunkReader(self.path, open_node(self.path, self._array_path), self._absent)
        return self._handle

    def _fill(self, out: np.ndarray, box: tuple[slice, ...]) -> None:
        """Read a box along all axes of the array; file by file around those that are damaged, whose voxels are 0."""
        chunks = self._chunks
        if not self._damaged:
            chunks.read_into(out, box)
            return
        out[...] = 0
        for index in chunks.files.touched(box):
            if index not in self._damaged:
                part = tuple(
                    slice(max(s.start, i * f), min(s.stop, (i + 1) * f))
                    for s, i, f in zip(box, index, chunks.files.file, strict=True)
                )
                inside = tuple(slice(p.start - s.start, p.stop - s.start) for p, s in zip(part, box, strict=True))
                chunks.read_into(out[inside], part)


def open_node(path: Path, inside: str | None = None) -> Any:
    """Open the array or group of a store, read only; at its root, or at the path `inside` it.

    Raises
    ------
    InputError
        There is no readable Zarr metadata.
    """
    import zarr
    from zarr.storage import LocalStore, ZipStore

    with reading(path, "a readable Zarr store", "give an OME-Zarr image or a Zarr array", small=True):
        if isinstance(path, Address):
            from n4flow.io.omezarr.remote import RemoteStore

            store: Any = RemoteStore(path)
            root = ""
        elif path.is_dir():
            _check_metadata(path / (inside or ""))
            store, root = LocalStore(path, read_only=True), ""
        else:
            store, root = ZipStore(path, mode="r"), _zip_root(path)
        if inside is None:  # Consolidated metadata may be stale, so they are not used.
            return zarr.open(store, path=root, mode="r", use_consolidated=False)
        return zarr.open_array(store, path=inside, mode="r")


def _check_metadata(folder: Path) -> None:
    """Refuse metadata that are no regular files, or too long to be metadata."""
    for file in (folder / marker for marker in MARKERS):
        check_regular(file)
        if file.is_file() and file.stat().st_size > MOST_METADATA:
            msg = f"{file} has {file.stat().st_size} bytes, more than metadata have; write it again"
            raise InputError(msg)


def _zip_root(path: Path) -> str:
    """Return the folder inside a zip file that holds the store: the top, or the one folder there."""
    with zipfile.ZipFile(path) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    metadata = [name for name in sizes if name.rpartition("/")[2] in MARKERS]
    if long := [name for name in metadata if sizes[name] > MOST_METADATA]:
        msg = f"{path} holds {long[0]} of {sizes[long[0]]} bytes, more than metadata have; write it again"
        raise InputError(msg)
    holders = {name.rpartition("/")[0] for name in metadata}
    if not holders:
        msg = f"{path} holds no Zarr metadata; zip the store so that zarr.json or .zattrs lies at its top"
        raise InputError(msg)
    least = min(holder.count("/") + bool(holder) for holder in holders)
    tops = sorted(holder for holder in holders if holder.count("/") + bool(holder) == least)
    if len(tops) > 1:
        msg = f"{path} holds several stores: {listed(tops)}; zip one store into one file"
        raise InputError(msg)
    return tops[0]


def default_axes(path: Path, array: Any) -> list[str]:
    """Return axis names of an array without OME metadata: its dimension names, or (T, C, Z, Y, X) from the end.

    Zarr v2 has no dimension names of its own; xarray keeps them as an attribute.
    """
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ()
    known = [name.lower() for name in names if isinstance(name, str) and name.lower() in ("t", "c", "z", "y", "x")]
    if known and len(known) == len(names):
        return known
    if known:  # Which of the other names stands for which axis would be a guess.
        listing = ", ".join(map(str, names))
        msg = f"{path} has dimensions named {listing}; expected z, y, x, and t or c at most, or names for none"
        raise InputError(msg)
    if not 2 <= array.ndim <= 5:
        msg = f"{path} has shape {array.shape}; expected a volume (Z, Y, X)"
        raise InputError(msg)
    return list("tczyx"[-array.ndim :])


def find_level(path: Path, node: Any, level: int) -> tuple[Any, dict[str, Any]]:
    """Return the array of a level, and its axes, transformations and channels as the metadata state them."""
    import zarr

    nothing: dict[str, Any] = {"axes": [], "transforms": [], "labels": [], "colours": []}
    nothing |= {"version": None, "levels": 1, "extra": {}, "others": {}}
    if isinstance(node, zarr.Array):
        if level != 0:
            msg = f"{path} is one Zarr array, without pyramid levels; level must be 0, got {level}"
            raise InputError(msg)
        return node, nothing
    attributes = dict(node.attrs)
    with reading(path, DESCRIBED, "write its metadata again", small=True):
        ome = attributes.get("ome", attributes)
        multiscales = ome.get("multiscales")
        if not multiscales:
            return find_level(path, _only_child(path, node, ome), level)
        multiscale = multiscales[0]
        paths = [dataset["path"] for dataset in multiscale["datasets"]]
        version = str(ome.get("version") or multiscale.get("version") or "unknown")
        if not KNOWN.match(version):
            msg = f"{path} is of OME-Zarr version {version}; 0.1 to 0.6 are read, so convert it to one of them"
            raise InputError(msg)
        own, channels = attributes.get("n4flow"), (ome.get("omero") or {}).get("channels") or []
        described = {
            "axes": [_axis(axis) for axis in _axes(path, multiscale, level) or []],
            "labels": [str(channel.get("label", i)) for i, channel in enumerate(channels)],
            "colours": [colour for channel in channels if COLOUR.match(colour := str(channel.get("color")))],
            "version": version,
            "levels": len(paths),
            "extra": dict(own) if isinstance(own, Mapping) else {},
            "others": {name: value for name, value in attributes.items() if name not in WRITTEN_ANEW},
        }
    if not 0 <= level < len(paths):
        msg = f"{path} has {len(paths)} pyramid levels, counted from 0, got level {level}"
        raise InputError(msg)
    of_level = list(_in_turn(multiscale["datasets"][level].get("coordinateTransformations") or []))
    # Those of a whole image with coordinate systems lead to further ones.
    of_image = [] if "coordinateSystems" in multiscale else multiscale.get("coordinateTransformations") or []
    array = open_node(path, "/".join(part for part in (node.path, paths[level]) if part))
    return array, {**described, "transforms": [*of_level, *of_image]}


def _axes(path: Path, multiscale: Mapping[str, Any], level: int) -> Any:
    """Return the axes of an image: its own, or in OME-Zarr 0.6 those of the coordinate system that a level leads to.

    They are those of the array, in its order, where the level is scaled and shifted alone.
    """
    systems = multiscale.get("coordinateSystems")
    if systems is None:
        return multiscale.get("axes")
    datasets = multiscale["datasets"]
    transforms = datasets[min(max(level, 0), len(datasets) - 1)].get("coordinateTransformations") or []
    for transform in _in_turn(transforms):
        if transform.get("type") not in ("identity", "scale", "translation"):
            kind = transform.get("type")
            msg = f"{path} has a level with a coordinate transformation {kind}; expected scale and translation"
            raise InputError(msg)
    output = transforms[-1].get("output") if transforms else None
    name = output.get("name") if isinstance(output, Mapping) else output
    named = [system for system in systems if system["name"] == name]
    if len(named) != 1:
        listing = listed([str(system["name"]) for system in systems])
        msg = (
            f"{path} has a level that leads to the coordinate system {name}, and there are {listing}; name one of them"
        )
        raise InputError(msg)
    return named[0]["axes"]


def _in_turn(transforms: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield transformations, those of sequences one by one."""
    for transform in transforms:
        if transform.get("type") == "sequence":
            yield from _in_turn(transform["transformations"])
        else:
            yield transform


def _axis(axis: Any) -> dict[str, Any]:
    """Return an axis of OME-Zarr 0.4 and later (an object), or of 0.3 (a name)."""
    if isinstance(axis, str):
        return {"name": axis.lower(), "unit": None}
    return {**axis, "name": str(axis["name"]).lower()}


def _only_child(path: Path, group: Any, ome: Mapping[str, Any]) -> Any:
    """Return the one image of a collection without multiscales of its own, such as bioformats2raw writes."""
    import zarr

    series: Sequence[str] = ome.get("series") or [name for name in sorted(group.group_keys()) if name.isdecimal()]
    if "plate" not in ome and len(series) == 1:
        child = group[series[0]]
        attributes: dict[str, Any] = dict(child.attrs)
        if isinstance(child, zarr.Group) and attributes.get("ome", attributes).get("multiscales"):
            return child
    inside = sorted([*group.group_keys(), *group.array_keys()])
    nothing = "what a web server does not list" if isinstance(path, Address) else "nothing"
    msg = (
        f"{path} is a Zarr group without an OME-Zarr image; it holds {listed(inside) if inside else nothing}; "
        "give the path of one image or array"
    )
    raise InputError(msg)
