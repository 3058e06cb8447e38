"""A folder of planes: one file a plane, in the natural order of names; in a folder of folders each is a section.

Uncompressed TIFF is mapped and other TIFF is read by tifffile; PNG, JPEG 2000 and the codecs of TIFF that tifffile
lacks are read by SimpleITK.
"""

from __future__ import annotations

import glob
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from n4flow.compute.threads import run_tasks
from n4flow.errors import InputError, N4flowWarning, reading, reason
from n4flow.io.axes import select
from n4flow.io.formats import is_pattern
from n4flow.io.itk import itk_dtype
from n4flow.io.omezarr.chunk_grid import listed
from n4flow.io.reader import Reader, check_dtype, plane_chunks
from n4flow.io.tiff import COMPANION, TiffReader, bound, stated_size

TIFF, OTHERS = (".tif", ".tiff", ".btf", ".tf8"), (".png", ".jp2", ".j2k")
CHANNEL = re.compile(r"(?<![A-Za-z0-9])(?:ch|c)\d+(?![A-Za-z0-9])", re.IGNORECASE)  # In a name: _C00, -ch1.

Folder = tuple[str, list[Path]]  # Name of a folder of planes, and its files.


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
        labels = _channels(folders)
        if labels:
            (_axis, chosen), *_others = select(path, "czyx", (len(labels), 1, 1, 1), channel, labels).fixed
            folders = [(name, [f for f in files if labels[chosen] in _labels(f)]) for name, files in folders]
            channel = None
        self._files, sections, absent = _numbered(path, folders, warn=planes is None)
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
        self.voxel_um, self.reason = stated_size(first) if _is_tiff(first) else ({}, "")
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


def holds_planes(folder: Path) -> bool:
    """Return whether there are files of planes in a folder, or in one of its folders."""
    inside = list(folder.iterdir())
    return any(map(_is_plane, inside)) or any(
        child.is_dir() and any(map(_is_plane, child.iterdir())) for child in inside
    )


def find_planes(path: Path) -> list[Folder]:
    """Return the files of planes by the folder they are in, all in natural order.

    The names of folders are those below the one that holds all of them.

    Raises
    ------
    InputError
        There are no planes, none in one of several folders, or files of several kinds.
    """
    if is_pattern(path):
        found = [Path(name) for name in glob.glob(str(path))]
    else:
        found = list(path.iterdir()) if path.is_dir() else [path]
    found = [item for item in found if not item.name.startswith(".")]
    files = list(filter(_is_plane, found))
    if not files:
        for folder in (item for item in found if item.is_dir()):
            inside = [item for item in folder.iterdir() if _is_plane(item)]
            if not inside:
                msg = f"{folder} holds no planes, as folders beside it may; remove it, or choose folders with a pattern"
                raise InputError(msg)
            files += inside
    if not files:
        msg = f"{path} holds no planes; expected a file for each ({', '.join((*TIFF, *OTHERS))})"
        raise InputError(msg)
    kinds = sorted({"TIFF" if _is_tiff(file) else file.suffix.lower() for file in files})
    if len(kinds) > 1:
        msg = (
            f"{path} holds files of several kinds: {', '.join(kinds)}; choose one with a pattern, as in 'planes/*.tif'"
        )
        raise InputError(msg)
    by_folder: dict[Path, list[Path]] = {}
    for file in files:
        by_folder.setdefault(file.parent, []).append(file)
    shared = os.path.commonpath(by_folder) if len(by_folder) > 1 else files[0].parent.parent
    return [
        (folder.relative_to(shared).as_posix(), sorted(by_folder[folder], key=lambda file: natural(file.name)))
        for folder in sorted(by_folder, key=lambda folder: natural(str(folder)))
    ]


def natural(text: str) -> tuple[list[Any], str]:
    """Return a key by which numbers in names are sorted as numbers.

    >>> sorted(["img_10.tif", "img_9.tif", "img_1.tif"], key=natural)
    ['img_1.tif', 'img_9.tif', 'img_10.tif']
    """
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(re.split(r"(\d+)", text))], text


def _is_tiff(file: Path) -> bool:
    return file.name.lower().endswith(TIFF)


def _is_plane(file: Path) -> bool:
    return file.name.lower().endswith((*TIFF, *OTHERS)) and not file.name.startswith(".") and not file.is_dir()


def _labels(file: Path) -> list[str]:
    return CHANNEL.findall(file.stem)


def _channels(folders: Sequence[Folder]) -> list[str]:
    """Return the channels that names tell apart: of several planes, each has a file for every one of them."""
    planes: dict[tuple[str, str], list[str]] = {}
    for name, files in folders:
        for file in files:
            planes.setdefault((name, CHANNEL.sub("", file.stem)), []).extend(_labels(file))
    labels = sorted({label for found in planes.values() for label in found}, key=natural)
    shared = len(labels) > 1 and sum(len(found) > 1 for found in planes.values()) > len(planes) / 2
    return labels if shared and len(planes) > 1 else []


def _numbered(path: Path, folders: Sequence[Folder], *, warn: bool) -> tuple[list[Path], list[Any], dict[int, str]]:
    """Return a file for each plane, the sections (name, start, stop), and the names of planes that are not there.

    Raises
    ------
    InputError
        A folder is missing, and how many planes it has cannot be told from the others.
    """
    planes: list[Path] = []
    sections: list[Any] = []
    absent: dict[int, str] = {}
    depths = {len(files) for _name, files in folders}
    counted, unclear = _with_gaps([name for name, _files in folders])
    for name, there in counted:
        files = dict(folders).get(name)
        if files is None:
            if len(depths) > 1:
                held = f"{path} lacks the folder {name}, and others have {min(depths)} to {max(depths)} planes"
                msg = f"{held}; put it there, or number the folders without a gap"
                raise InputError(msg)
            named = [(f"{name}/{number}", False) for number in range(1, min(depths) + 1)]
            parent = path
        else:
            named, gaps_unclear = _with_gaps([file.name for file in files])
            unclear |= gaps_unclear
            parent = files[0].parent
        start = len(planes)
        for file, present in named:
            if not present:
                absent[len(planes)] = file if len(folders) == 1 or not there else f"{name}/{file}"
            planes.append(parent / file)
        sections.append((name, start, len(planes)))
    if unclear and warn:
        msg = f"the numbers in the names of {path} do not count its planes, so that a missing one would not be noticed"
        warnings.warn(msg, N4flowWarning, stacklevel=2)
    return planes, sections, absent


def _with_gaps(names: Sequence[str]) -> tuple[list[tuple[str, bool]], bool]:
    """Return sorted names with those that the numbering leaves out, whether each is there, and whether it is unclear.

    The number that counts is the first one that differs in all names; where none does, as of sections and planes in
    them, it is the last one that differs, counted anew for each of the numbers before it.

    >>> _with_gaps(["a_02.tif", "a_04.tif", "a_08.tif"])
    ([('a_02.tif', True), ('a_04.tif', True), ('a_06.tif', False), ('a_08.tif', True)], False)
    """
    as_they_are = [(name, True) for name in names]
    parts = [re.split(r"(\d+)", name) for name in names]
    numbers = [[int(number) for number in split[1::2]] for split in parts]
    places = range(len(numbers[0])) if len({len(each) for each in numbers}) == 1 else range(0)
    varying = [place for place in places if len({each[place] for each in numbers}) > 1]
    if len(names) < 2:
        return as_they_are, False
    if not varying or len({tuple(split[::2]) for split in parts}) > 1:
        return as_they_are, True
    counting = next((p for p in varying if len({each[p] for each in numbers}) == len(names)), None)
    place = varying[-1] if counting is None else counting
    runs = [0] * len(names) if counting is not None else [tuple(each[:place]) for each in numbers]
    steps = [b[place] - a[place] if r == s else 0 for (a, r), (b, s) in pairwise(zip(numbers, runs, strict=True))]
    step = min((size for size in steps if size), default=0)
    if step <= 0 or any(size % step for size in steps) or sum(size // step for size in steps) > 2 * len(names):
        return as_they_are, True
    complete = as_they_are[:1]
    for name, split, size in zip(names[1:], parts, steps, strict=False):
        for number in range(int(split[2 * place + 1]) + step, int(split[2 * place + 1]) + size, step):
            wide = f"{number:0{len(split[2 * place + 1])}d}"
            complete.append(("".join([*split[: 2 * place + 1], wide, *split[2 * place + 2 :]]), False))
        complete.append((name, True))
    return complete, False


def _header(file: Path) -> Plane | str:
    """Return what the header of a file says, or its name and why it cannot be read.

    Raises
    ------
    InputError
        The file can be read, and does not hold one plane.
    """
    try:
        return _tiff_header(file) if _is_tiff(file) else _itk_header(file)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001  whatever it is, the plane is lost
        return f"{file.name} ({reason(error)})"


def _tiff_header(file: Path) -> Plane:
    from tifffile import TIFF as CODES
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
        try:
            CODES.DECOMPRESSORS[page.compression], CODES.UNPREDICTORS[page.predictor]
        except KeyError as error:
            plane = _itk_header(file)
            if plane.kind != Plane(axes, page.shape, stored).kind:
                msg = f"{file} cannot be decoded: {error.args[0]}; install it, or save the planes uncompressed"
                raise InputError(msg) from error
            return plane
        return Plane(axes, page.shape, stored)


def _itk_header(file: Path) -> Plane:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    width, height, *deep = reader.GetSize()
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


def described_set(folder: Path) -> Path | None:
    """Return a member of the OME-TIFF of several files that a folder holds; None if it holds none.

    Raises
    ------
    InputError
        It holds further planes beside the set.
    """
    inside = sorted(child for child in folder.iterdir() if not child.name.startswith("."))
    files = [child for child in inside if child.name.lower().endswith((COMPANION, ".ome.tif", ".ome.tiff"))]
    member = next((file for file in files if file.name.lower().endswith(COMPANION)), next(iter(files), None))
    if member is None or not (others := TiffReader.data_files(member)):
        return None
    known = {file.resolve() for file in [member, *others]}
    if further := [file.name for file in inside if (file in files or _is_plane(file)) and file.resolve() not in known]:
        msg = f"{folder} holds the files of {member.name} and others ({listed(further)}); give one file of the volume"
        raise InputError(msg)
    return member
