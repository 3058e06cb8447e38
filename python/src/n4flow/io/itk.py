"""NRRD and MetaImage (`.nrrd`, `.nhdr`, `.mha`, `.mhd`), by SimpleITK. Spacing is in millimetres, as ITK has it.

The voxels are held in memory once read: these files come compressed, in one piece.
"""

from __future__ import annotations

import glob
import math
import re
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from n4flow.errors import InputError
from n4flow.io.axes import select
from n4flow.io.formats import check_regular
from n4flow.io.geometry import LPS, affine_to_write, straight_origin, usable
from n4flow.io.inflate import check_ratio, inflated, inflated_part
from n4flow.io.reader import Reader, plane_chunks
from n4flow.io.units import micrometres_per, to_micrometres

if TYPE_CHECKING:
    from n4flow.io.volume import Volume

HEADER_BYTES = 2**20  # Part of a file in which its header is looked for.
LONGEST_FIELD = 512  # Bytes of a field of NRRD: its library copies a longer one into a message of 1024.
DATA_FIELDS = ("data file", "datafile", "elementdatafile")  # Fields that name the file of the voxels.
NUMBERED = r"%\d*[du]"  # Part of such a name that stands for a number; the numbers follow the name.
DOMAIN = ("domain", "space", "time", "none", "???")  # Kinds of axes of NRRD that are no components of a voxel.


class ItkReader(Reader):
    """One channel (component) of a NRRD or MetaImage file."""

    borrowed = True

    def __init__(self, path: Path, channel: int | str | None = None) -> None:
        import SimpleITK as sitk

        self.path = path
        _check_header(path)
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.SetImageIO(_image_io(path))
        reader.ReadImageInformation()
        size = [int(n) for n in reader.GetSize()]
        several = reader.GetNumberOfComponents() > 1
        axes = ["t" if several else "c", "z", "y", "x"][-len(size) :]  # The volumes of a series are channels.
        shape = size[::-1]
        if several:
            axes, shape = [*axes, "c"], [*shape, reader.GetNumberOfComponents()]
        self._select = select(path, axes, shape, channel, [])
        self.shape = self._select.volume(shape)
        self.channels = self._select.channels
        self.dtype = itk_dtype(path, reader.GetPixelID())
        self.chunks = plane_chunks(self.shape, self.dtype)
        self._stored = tuple(shape)
        self._check_length(math.prod(shape) * self.dtype.itemsize)
        self.voxel_um, self.origin_um = {}, dict.fromkeys("zyx", 0.0)
        fields = _header(path)
        units, self.reason = _units(fields, len(size))
        for axis, spacing, unit_um in zip("xyz", reader.GetSpacing(), units, strict=False):
            if unit_um is not None and spacing > 0:
                self.voxel_um[axis] = to_micrometres(spacing, unit_um)
        directed = "space directions" in fields or _image_io(path) == "MetaImageIO"
        if len(size) > 2 and len(self.voxel_um) == 3 and units[0] is not None and len(set(units[:3])) == 1:
            # ITK has the origin in the unit of the spacing.
            affine = np.eye(4)
            affine[:3, :3] = np.reshape(reader.GetDirection(), (len(size), len(size)))[:3, :3]
            affine[:3, :3] *= [self.voxel_um[axis] for axis in "xyz"]
            affine[:3, 3] = [to_micrometres(value, units[0]) for value in reader.GetOrigin()[:3]]
            self.origin_um.update(straight_origin(affine))
            if directed and usable(affine):
                self.affine_um = LPS @ affine
        self.metadata = {"format": "itk", "fields": _own_fields(reader)}

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
        self._deflated = encoding in ("gzip", "gz") or _is_true(fields, "compresseddata")
        self._asked = asked // max(1, len(places))
        if self._deflated and len(places) != 1 and _image_io(self.path) == "MetaImageIO":
            msg = f"{self.path} has compressed voxels in {len(places)} files, expected one; write it again"
            raise InputError(msg)
        if self._deflated:
            check_ratio(self.path, asked, size)
        elif (encoding == "raw" or _is_true(fields, "binarydata")) and size < asked:
            msg = f"{self.path} is cut short: its header asks for {asked} bytes and it has {size}; copy it again"
            raise InputError(msg)

    def read(self, z: slice, y: slice, x: slice) -> np.ndarray:
        """Return the voxels of a box."""
        if self._handle is None:
            self._handle = self._load()
        return self._select.transposed(self._handle[self._select.box(z, y, x)])

    def _load(self) -> np.ndarray:
        import SimpleITK as sitk

        places = _data_places(self.path) if self._deflated else []
        if places and _image_io(self.path) == "MetaImageIO":
            # Where the size that the header states is not that of the compressed voxels, ITK returns memory as it was.
            [(file, start)], fields = places, _header(self.path)
            values = inflated_part(file, 0, self._asked, start)
            big = _is_true(fields, "binarydatabyteordermsb", "elementbyteordermsb")
            values = values.view(self.dtype.newbyteorder(">" if big else "<"))
            return values.astype(self.dtype, copy=False).reshape(self._stored)
        for file, start in places:  # ITK stops before the checksum of gzip.
            for _piece in inflated(file, self._asked, start):
                pass
        image = sitk.ReadImage(str(self.path), imageIO=_image_io(self.path))
        voxels: np.ndarray = sitk.GetArrayFromImage(image)
        return voxels


def write_itk(path: Path, array: np.ndarray, voxel_um: dict[str, float], like: Volume | None) -> None:
    """Write a (Z, Y, X) array, or channels (C, Z, Y, X) of it, with spacing, origin and directions in millimetres."""
    import SimpleITK as sitk

    several = array.ndim == 4
    image = sitk.GetImageFromArray(np.moveaxis(array, 0, -1) if several else array, isVector=several)
    affine = LPS @ affine_to_write(like, voxel_um) / 1e3
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetDirection((affine[:3, :3] / sizes).ravel().tolist())
    image.SetSpacing([float(f"{size:.12g}") for size in sizes])
    image.SetOrigin((affine[:3, 3] + 0.0).tolist())
    for name, value in (like.metadata.get("fields", {}) if like is not None else {}).items():
        image.SetMetaData(name, value)
    sitk.WriteImage(image, str(path))


def _image_io(path: Path) -> str:
    """Return ITK's name of a file's format; ITK itself knows MetaImage by suffixes in lower case alone."""
    return "NrrdImageIO" if path.suffix.lower() in (".nrrd", ".nhdr") else "MetaImageIO"


def _own_fields(reader: Any) -> dict[str, str]:
    """Return the fields of a header that are its writer's own; ITK writes those of the format itself."""
    fields = {name: reader.GetMetaData(name) for name in reader.GetMetaDataKeys()}
    return {
        name: value
        for name, value in fields.items()
        if not name.startswith(("ITK_", "NRRD_")) and (name, value) != ("Modality", "MET_MOD_UNKNOWN")
    }


def itk_dtype(path: Path, pixel: int) -> np.dtype:
    """Return ITK's type of voxels as NumPy's; `path` is for messages."""
    import SimpleITK as sitk

    names = "UInt8", "Int8", "UInt16", "Int16", "UInt32", "Int32", "UInt64", "Int64", "Float32", "Float64"
    for name in names:
        if pixel in (getattr(sitk, f"sitk{name}"), getattr(sitk, f"sitkVector{name}")):
            return np.dtype(name.lower())
    msg = f"{path} has voxels of type {sitk.GetPixelIDValueAsString(pixel)}; expected integers or real numbers"
    raise InputError(msg)


def _check_header(path: Path) -> None:
    """Refuse a header with which a library of ITK writes beyond its arrays or divides by 0: the process would end."""
    check_regular(path)
    with path.open("rb") as stream:
        start = stream.read(HEADER_BYTES)
    nrrd, faults = start.startswith(b"NRRD"), []
    for line in start.split(b"\n"):
        name, _sign, value = (part.strip() for part in line.partition(b":" if nrrd else b"="))
        field = name.lower().decode(errors="replace")
        of_writer = field.startswith("#") or field == "content" or value.startswith(b"=")
        if nrrd and len(line) > LONGEST_FIELD and not of_writer:
            faults.append(f"has a field of {len(line)} bytes, expected {LONGEST_FIELD} at most")
        if field == "ndims" and not re.fullmatch(rb"[1-9]|10", value):
            faults.append(f"has {value[:20].decode(errors='replace')} axes, expected 1 to 10")
        if field in DATA_FIELDS and b"%" in value:
            step = [] if nrrd else value.split()[3:4]
            if re.search(rb"%\d{3}", value) or not all(re.fullmatch(rb"0*[1-9]\d{0,8}", number) for number in step):
                faults.append("numbers its files with more than 99 digits, or by a step that is not above 0")
        if field == "elementdatafile" or (nrrd and not line.strip()):
            break
    else:
        if len(start) == HEADER_BYTES:
            faults.append(f"is longer than {HEADER_BYTES} bytes")
    if faults:
        msg = f"{path} has a header that cannot be read: it {faults[0]}; write it again"
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


def _is_true(fields: dict[str, str], *names: str) -> bool:
    """Return whether one of the fields is true as MetaImage has it: by its first letter."""
    return any(fields.get(name, "").startswith(("T", "t", "1")) for name in names)


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
