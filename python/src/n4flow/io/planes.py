"""A folder of planes: one file a plane, in the natural order of names; in a folder of folders each is a section.

Uncompressed TIFF is mapped and other TIFF is read by tifffile; PNG, JPEG 2000 and the codecs of TIFF that tifffile
lacks are read by SimpleITK.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from n4flow.compute.threads import run_tasks
from n4flow.errors import InputError, reading, reason
from n4flow.io.axes import select
from n4flow.io.inflate import check_ratio
from n4flow.io.itk import itk_dtype
from n4flow.io.omezarr.chunk_grid import listed
from n4flow.io.plane_names import channels_of, find_planes, is_tiff, labels_of, numbered
from n4flow.io.reader import Reader, check_dtype, plane_chunks
from n4flow.io.tiff import bound, stated_size, undecodable


@dataclass(frozen=True)
class Plane:
    """What the header of a plane's file says; axes are y, x and c, `offset` is that of mapped voxels, -1 for others."""

    axes: str
    shape: tuple[int, ...]
    stored: np.dtype
    by_itk: bool = False
    offset: int = -1

    @property
    def kind(self) -> tuple[str, tuple[int, ...], np.dtype]:
        """What all planes of a volume have in common."""
        return self.axes, self.shape, self.stored.newbyteorder("=")


class PlanesReader(Reader):
    """One channel of a folder of planes, of the files of a pattern, or of a file that holds one plane.

    `open_volume` says what the options are.
    """

    finds_files = True

    def __init__(
        self,
        path: Path,
        channel: int | str | None = None,
        *,
        allow_missing_planes: bool = False,
        planes: tuple[int, int] | None = None,
    ) -> None:
        self.path, self.planes = path, planes
        folders = find_planes(path)
        labels = channels_of(folders)
        if labels:
            (_axis, chosen), *_others = select(path, "czyx", (len(labels), 1, 1, 1), channel, labels).fixed
            folders = [(name, [f for f in files if labels[chosen] in labels_of(f)]) for name, files in folders]
            channel = None
        self._files, sections, absent = numbered(path, folders, warn=planes is None)
        start, stop = planes or (0, len(self._files))
        there = [z for z in range(start, min(stop, len(self._files))) if z not in absent]
        found = dict(zip(there, run_tasks(_header, [self._files[z] for z in there]), strict=True))
        lost = {**absent, **{z: fault for z, fault in found.items() if isinstance(fault, str)}}
        self._planes = {z: plane for z, plane in found.items() if isinstance(plane, Plane)}
        if lost and path.is_file():
            msg = f"{path} is not a readable plane: {lost[0]}; write or copy it again"
            raise InputError(msg)
        if (lost and not allow_missing_planes) or not self._planes:
            named = listed([lost[z] for z in sorted(lost)])
            msg = (
                f"{path} lacks {len(lost)} of {len(self._files)} planes: {named}; put them there, or allow missing "
                "planes to treat their voxels as invalid"
            )
            raise InputError(msg)
        axes, shape, self.dtype = self._kind()
        check_dtype(self.dtype, path)
        self._select = select(path, axes, shape, channel, [])
        self.shape = (len(self._files), *self._select.volume(shape)[1:])
        self.channels = len(labels) or self._select.channels
        self.chunks = plane_chunks(self.shape, self.dtype)
        first = self._files[min(self._planes)]
        self.voxel_um, self.reason = stated_size(first) if is_tiff(first) else ({}, "")
        self.origin_um = dict.fromkeys("zyx", 0.0)
        self.metadata = {"format": "planes", "axes": ["z", *axes], "channels": labels}
        if len(folders) > 1:
            self.metadata["sections"] = sections
        if lost:
            names = [self._files[z].name for z in sorted(lost)]
            self.metadata |= {"missing_chunks": names, "damaged_chunks": names}
            self.metadata["missing_planes"] = [[z, z + 1] for z in sorted(lost)]

    def _kind(self) -> tuple[str, tuple[int, ...], np.dtype]:
        """Return the axes, the shape and the type that all planes have."""
        kinds: dict[Any, list[Path]] = {}
        for z, plane in self._planes.items():
            kinds.setdefault(plane.kind, []).append(self._files[z])
        if len(kinds) > 1:
            common = max(kinds, key=lambda kind: len(kinds[kind]))
            others = [f"{f.name} {kind[1]} {kind[2]}" for kind, files in kinds.items() if kind != common for f in files]
            like = f"{kinds[common][0].name} {common[1]} {common[2]}"
            msg = (
                f"{self.path} holds planes of several shapes or types: {len(kinds[common])} are like {like}, and "
                f"others {listed(others)}; give planes that are alike, or choose them with a pattern, as in 'a_*.tif'"
            )
            raise InputError(msg)
        return next(iter(kinds))

    @classmethod
    def data_files(cls, path: Path) -> list[Path]:
        """Return the files of the planes."""
        return [file for _name, files in find_planes(path) for file in files if file != path]

    def read(self, z: slice, y: slice, x: slice) -> np.ndarray:
        """Return the voxels of a box."""
        out = np.empty((z.stop - z.start, y.stop - y.start, x.stop - x.start), self.dtype)
        self.read_into(out, z, y, x)
        return out

    def read_into(self, out: np.ndarray, z: slice, y: slice, x: slice) -> None:
        """Read a box into `out`, as many planes at a time as there are threads."""
        low, high = self.planes or (z.start, z.stop)
        if not low <= z.start <= z.stop <= high:
            msg = f"planes {z.start} to {z.stop} of {self.path} are read, and it was opened for {low} to {high}"
            raise InputError(msg)

        def read(i: int) -> None:
            plane = self._planes.get(z.start + i)
            if plane is None:  # It is missing, which was allowed.
                out[i] = 0
                return
            values = _voxels(self._files[z.start + i], plane)
            out[i] = self._select.transposed(values[self._select.box(slice(0, 1), y, x)])[0]

        run_tasks(read, range(len(out)))


def _header(file: Path) -> Plane | str:
    """Return what the header of a file says, or its name and why it cannot be read.

    Raises
    ------
    InputError
        The file can be read, and does not hold one plane.
    """
    try:
        return _tiff_header(file) if is_tiff(file) else _itk_header(file)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001  whatever it is, the plane is lost
        return f"{file.name} ({reason(error)})"


def _tiff_header(file: Path) -> Plane:
    from tifffile import TiffFile

    with TiffFile(file) as tif:
        page = tif.pages.first
        images = 1 if len(tif.pages) == 1 else len(tif.series[0].pages)
        if tif.is_imagej and images == 1:
            images = (tif.imagej_metadata or {}).get("images", 1)
        axes = page.axes.replace("S", "C").lower()
        if images > 1 or not set(axes) <= set("yxc"):
            msg = f"{file} holds {images} images with axes {page.axes}; expected one plane in each file, or one volume"
            raise InputError(msg)
        end = max(a + n for a, n in zip(page.dataoffsets, page.databytecounts, strict=True))
        if end > (size := file.stat().st_size):
            msg = f"cut short: it has {size} bytes and refers to {end}"
            raise ValueError(msg)
        stored = np.dtype(page.dtype).newbyteorder(tif.byteorder)
        bound(page, [page])
        if page.is_memmappable:
            return Plane(axes, page.shape, stored, offset=page.dataoffsets[0])
        if lacking := undecodable(page):
            plane = _itk_header(file)
            if plane.kind != Plane(axes, page.shape, stored).kind:
                msg = f"{file} cannot be decoded: {lacking}; install it, or save the planes uncompressed"
                raise InputError(msg)
            return plane
        return Plane(axes, page.shape, stored)


def _itk_header(file: Path) -> Plane:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    width, height, *deep = reader.GetSize()
    if file.suffix.lower() == ".png":  # deflated, and a pixel has a bit at least
        check_ratio(file, height * -(-width // 8), file.stat().st_size)
    if set(deep) - {1}:
        msg = f"{file} holds {deep[0]} images; expected one plane in each file"
        raise InputError(msg)
    count = reader.GetNumberOfComponents()
    axes, shape = ("yx", (height, width)) if count == 1 else ("yxc", (height, width, count))
    return Plane(axes, shape, itk_dtype(file, reader.GetPixelID()), by_itk=True)


def _voxels(file: Path, plane: Plane) -> np.ndarray:
    """Return the voxels of a file, along the axes that its header has."""
    with reading(file, "a readable plane"):
        if plane.offset >= 0:
            return np.memmap(file, plane.stored, "r", plane.offset, plane.shape)
        if plane.by_itk:
            import SimpleITK as sitk

            return sitk.GetArrayFromImage(sitk.ReadImage(str(file))).reshape(plane.shape)
        from tifffile import TiffFile

        with TiffFile(file) as tif:
            return tif.pages.first.asarray()
