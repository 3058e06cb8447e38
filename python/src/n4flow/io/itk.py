"""NRRD and MetaImage (`.nrrd`, `.nhdr`, `.mha`, `.mhd`), by SimpleITK. Spacing is in millimetres, as ITK has it.

The voxels are held in memory once read: these files come compressed, in one piece.
"""

from __future__ import annotations

import glob
import math
import re
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from n4flow.errors import InputError
from n4flow.io.axes import select
from n4flow.io.formats import check_regular
from n4flow.io.inflate import check_ratio, inflated
from n4flow.io.reader import Reader, plane_chunks
from n4flow.io.units import micrometres_per, to_micrometres

if TYPE_CHECKING:
    from n4flow.io.volume import Volume

HEADER_BYTES = 2**16  # Part of a file in which its header is looked for.
DATA_FIELDS = ("data file", "datafile", "elementdatafile")  # Fields that name the file of the voxels.
NUMBERED = r"%\d*[du]"  # Part of such a name that stands for a number; the numbers follow the name.
DOMAIN = ("domain", "space", "time", "none", "???")  # Kinds of axes of NRRD that are no components of a voxel.


class ItkReader(Reader):
    """One channel (component) of a NRRD or MetaImage file."""

    borrowed = True

    def __init__(self, path: Path, channel: int | str | None = None) -> None:
        import SimpleITK as sitk

        self.path = path
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.SetImageIO(_image_io(path))
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise _damaged(path, error) from error
        size = [int(n) for n in reader.GetSize()]
        axes = ["t", "z", "y", "x"][-len(size) :]
        shape = size[::-1]
        if reader.GetNumberOfComponents() > 1:
            axes, shape = [*axes, "c"], [*shape, reader.GetNumberOfComponents()]
        self._select = select(path, axes, shape, channel, [])
        self.shape = self._select.volume(shape)
        self.channels = self._select.channels
        self.dtype = _dtype(path, reader.GetPixelID())
        self.chunks = plane_chunks(self.shape, self.dtype)
        self._check_length(math.prod(shape) * self.dtype.itemsize)
        self.voxel_um, self.origin_um = {}, dict.fromkeys("zyx", 0.0)
        direction = np.reshape(reader.GetDirection(), (len(size), len(size)))
        units, self.reason = _units(_header(path), len(size))
        for axis, spacing, unit_um in zip("xyz", reader.GetSpacing(), units, strict=False):
            if unit_um is not None and spacing > 0:
                self.voxel_um[axis] = to_micrometres(spacing, unit_um)
        # ITK has the origin in the unit of the spacing, along the axes of the space; where the axes of the image are
        # rotated against those, it is no origin along them, and it is kept beside the directions.
        shared = units[0] if len(set(units[:3])) == 1 else None
        origin_um = [to_micrometres(v, shared) if shared is not None else 0.0 for v in reader.GetOrigin()]
        if np.allclose(direction, np.eye(len(size)), atol=1e-9):
            self.origin_um.update(zip("xyz", origin_um, strict=False))
        self.metadata = {
            "format": "itk",
            "direction": direction.ravel().tolist(),
            "origin": [v / 1e3 for v in origin_um],  # In millimetres.
        }

    @classmethod
    def data_files(cls, path: Path) -> list[Path]:
        """Return the files that a header names: one, a list, or a pattern with a number in it."""
        files: list[str] = []
        for name in _header(path).get("data files", "").splitlines():
            if re.search(NUMBERED, name):
                files += glob.glob(str(path.parent / re.sub(NUMBERED, "*", glob.escape(name.split()[0]))))
            elif name.upper() != "LOCAL":
                files.append(str(path.parent / name))
        return [Path(file) for file in files]

    def _check_length(self, asked: int) -> None:
        """Compare the bytes of the voxels with those of the files that hold them: ITK would ask for the memory."""
        fields = _header(self.path)
        encoding = fields.get("encoding", "").lower()
        places = _data_places(self.path)
        size = sum(max(0, file.stat().st_size - start) for file, start in places if file.is_file())
        self._deflated = encoding in ("gzip", "gz") or fields.get("compresseddata", "").lower() == "true"
        self._asked = asked // max(1, len(places))
        if self._deflated:
            check_ratio(self.path, asked, size)
        elif (encoding == "raw" or fields.get("binarydata", "").lower() == "true") and size < asked:
            msg = f"{self.path} is cut short: its header asks for {asked} bytes and it has {size}; copy it again"
            raise InputError(msg)

    def read(self, z: slice, y: slice, x: slice) -> np.ndarray:
        """Return the voxels of a box."""
        if self._handle is None:
            import SimpleITK as sitk

            if self._deflated:  # ITK stops before the checksum of gzip, and passes over errors of zlib.
                for file, start in _data_places(self.path):
                    for _piece in inflated(file, self._asked, start):
                        pass
            try:
                self._handle = sitk.GetArrayFromImage(sitk.ReadImage(str(self.path), imageIO=_image_io(self.path)))
            except RuntimeError as error:
                raise _damaged(self.path, error) from error
        return self._select.transposed(self._handle[self._select.box(z, y, x)])


def write_itk(path: Path, array: np.ndarray, voxel_um: dict[str, float], like: Volume | None) -> None:
    """Write a (Z, Y, X) array, or channels (C, Z, Y, X) of it, with spacing, origin and directions in millimetres."""
    import SimpleITK as sitk

    several = array.ndim == 4
    image = sitk.GetImageFromArray(np.moveaxis(array, 0, -1) if several else array, isVector=several)
    image.SetSpacing([voxel_um[axis] / 1e3 for axis in "xyz"])
    if like is not None:
        image.SetOrigin([like.origin_um[axis] / 1e3 for axis in "xyz"])
        direction = like.metadata.get("direction", [])
        if len(direction) == 9:
            image.SetDirection(direction)
            image.SetOrigin(like.metadata["origin"])
    sitk.WriteImage(image, str(path))


def _image_io(path: Path) -> str:
    """Return ITK's name of a file's format; ITK itself knows MetaImage by suffixes in lower case alone."""
    return "NrrdImageIO" if path.suffix.lower() in (".nrrd", ".nhdr") else "MetaImageIO"


def _dtype(path: Path, pixel: int) -> np.dtype:
    import SimpleITK as sitk

    names = "UInt8", "Int8", "UInt16", "Int16", "UInt32", "Int32", "UInt64", "Int64", "Float32", "Float64"
    for name in names:
        if pixel in (getattr(sitk, f"sitk{name}"), getattr(sitk, f"sitkVector{name}")):
            return np.dtype(name.lower())
    msg = f"{path} has voxels of type {sitk.GetPixelIDValueAsString(pixel)}; expected integers or real numbers"
    raise InputError(msg)


def _header(path: Path) -> dict[str, str]:
    """Return the fields of a NRRD or MetaImage header, names in lower case; `data files` are names, one a line."""
    check_regular(path)
    with path.open("rb") as stream:
        start = stream.read(HEADER_BYTES)
    sign = ":" if start.startswith(b"NRRD") else "="
    fields: dict[str, str] = {}
    lines = takewhile(bool, (line.decode("utf-8", errors="replace") for line in start.splitlines()))
    for line in lines:
        name, _sign, value = line.partition(sign)
        key = name.strip().lower()
        if value.startswith("="):  # In `key:=value` the key is the writer's own and no field of the format.
            continue
        if key in DATA_FIELDS:
            several = value.strip().upper().startswith("LIST")
            fields["data files"] = "\n".join(map(str.strip, lines)) if several else value.strip()
            if key == "elementdatafile":  # It is the last field.
                break
        else:
            fields[key] = value.strip()
    return fields


def _data_places(path: Path) -> list[tuple[Path, int]]:
    """Return the files that hold voxels and where they begin: behind the header, or in files of their own."""
    if files := ItkReader.data_files(path):
        return [(file, 0) for file in files]
    with path.open("rb") as stream:
        start = stream.read(HEADER_BYTES)
    end = re.search(rb"\r?\n\r?\n" if start.startswith(b"NRRD") else rb"(?i)ElementDataFile *= *LOCAL *\r?\n", start)
    return [(path, end.end())] if end else []


def _units(fields: dict[str, str], count: int) -> tuple[list[float | None], str]:
    """Return the micrometres in the unit of each axis, x first, and why some have none.

    ITK says neither: it drops the units, and takes 1 for a spacing that is not stated.
    """
    if "elementspacing" in fields or "elementsize" in fields:
        return [1e3] * count, ""
    kinds = fields.get("kinds", "").lower().split()
    axes = [axis for axis, kind in enumerate(kinds) if kind in DOMAIN] or list(range(count))
    directions = re.findall(r"none|\([^)]*\)", fields.get("space directions", ""))
    spacings = directions or fields.get("spacings", "").lower().split()
    names = re.findall(r'"([^"]*)"', fields.get("space units" if directions else "units", ""))
    if directions and len(set(names)) > 1:
        return [None] * count, f"its space units differ: {', '.join(names)}"
    if directions:
        names = names[:1] * len(directions)
    units: list[float | None] = []
    reasons = [] if spacings else ["its header states no spacing"]
    for axis, letter in zip(axes, "xyzt", strict=False):
        stated = axis < len(spacings) and spacings[axis] not in ("nan", "none")
        name = names[axis] if axis < len(names) else ""
        units.append((micrometres_per(name) if name else 1e3) if stated else None)
        if stated and units[-1] is None and letter != "t":
            reasons.append(f"axis {letter} has the unit {name!r}")
    return units, "; ".join(reasons)


def _damaged(path: Path, error: Exception) -> InputError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return InputError(f"{path} is not a readable image: {lines[-1] if lines else error}; write or copy it again")
