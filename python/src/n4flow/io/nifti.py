"""NIfTI-1 and NIfTI-2 (`.nii`, `.nii.gz`, pairs `.hdr` and `.img`), Analyze 7.5 and FreeSurfer's MGH, by nibabel.

A file stores (X, Y, Z) with X fastest, which is (Z, Y, X) in C order. An uncompressed file is memory mapped;
a compressed one is held in memory, because gzip can only be read from its beginning.
"""

from __future__ import annotations

import base64
import io
import math
import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from n4flow.errors import InputError
from n4flow.io.axes import select
from n4flow.io.geometry import affine_to_write, straight_origin, usable
from n4flow.io.inflate import check_ratio, inflated, inflated_part
from n4flow.io.reader import Reader, check_dtype, plane_chunks
from n4flow.io.units import to_micrometres

if TYPE_CHECKING:
    from n4flow.io.volume import Volume

UNITS_UM = {"mm": 1e3, "micron": 1.0, "meter": 1e6}
PACKED = (".gz", ".mgz")
NIFTI1_LONGEST = 32767  # Voxels along an axis that the header of NIfTI-1 can state.
# Of the square of a quaternion's norm, above 1: other tools normalise such a rotation, nibabel refuses it at 4e-7.
QUATERNION_ROUNDING = 1e-3
KINDS = {"Nifti1Pair", "Nifti1Image", "Nifti2Pair", "Nifti2Image", "MGHImage"} | {
    f"{kind}AnalyzeImage" for kind in ("Spm2", "Spm99", "")
}
PAIR = {".hdr": ".img", ".img": ".hdr"}  # The file beside a header, and beside voxels.


class NiftiReader(Reader):
    """One channel, or volume of a series, of a file that nibabel reads.

    Voxels are `scl_slope * stored + scl_inter` where the header scales: float32, or float64 for types that float32
    cannot hold. A slope of 0 or NaN means no scaling.
    """

    borrowed = True

    def __init__(self, path: Path, channel: int | str | None = None) -> None:
        self.path = path
        image = _opened(path)
        header = image.header
        stored = np.dtype(header.get_data_dtype())
        check_dtype(stored, path)
        # Slowest axis first, as the voxels lie in the file.
        shape = tuple(int(n) for n in reversed(image.shape))
        self._slope, self._inter = float(image.dataobj.slope), float(image.dataobj.inter)
        self._scaled = (self._slope, self._inter) != (1.0, 0.0)
        exact = np.can_cast(stored, np.float32)
        self.dtype = np.dtype(np.float32 if exact else np.float64) if self._scaled else stored.newbyteorder("=")
        self._check_length(int(image.dataobj.offset) + math.prod(shape) * stored.itemsize)
        # The fourth axis, time, serves all kinds of channels, and the fifth, of vectors, where there is no time.
        names, further = ["z", "y", "x"][-len(shape) :], shape[:-3]
        if further:
            place = max(range(len(further)), key=lambda axis: (further[axis] > 1, axis))
            names = ["c" if axis == place else "" for axis in range(len(further))] + names
        self._select = select(path, names, shape, channel, [])
        self.shape = self._select.volume(shape)
        self.channels = self._select.channels
        self.chunks = plane_chunks(self.shape, self.dtype)
        self._describe(image)

    @classmethod
    def data_files(cls, path: Path) -> list[Path]:
        """Return the other file of a pair."""
        beside = PAIR.get(path.suffix.lower())
        same = beside.upper() if path.suffix.isupper() and beside else beside
        return [path.with_suffix(same)] if same else []

    def _describe(self, image: Any) -> None:
        header, affine = image.header, np.asarray(image.affine, float)
        nifti, mgh = hasattr(header, "get_xyzt_units"), hasattr(header, "get_vox2ras")
        unit = UNITS_UM.get(header.get_xyzt_units()[0]) if nifti else 1e3
        unit_um = 1e3 if unit is None else unit
        if unit is None:
            self.assumed = "its header names no unit of length, and millimetres are assumed; give voxel_um for another"
        count, self.metadata = min(3, len(image.shape)), {"format": "mgh" if mgh else "analyze"}
        if mgh:
            zooms, stated = header["delta"][:count], int(header["goodRASFlag"]) == 1
        else:
            raw = _raw_header(image)
            # Checking would turn a size of 0 into 1.
            zooms = type(header)(raw[: header.sizeof_hdr], check=False)["pixdim"][1 : 1 + count]
            stated = nifti and (int(header["qform_code"]) > 0 or int(header["sform_code"]) > 0)
        sizes = zip("xyz", (_meant(abs(zoom)) for zoom in zooms), strict=False)
        self.voxel_um = {axis: to_micrometres(size, unit_um) for axis, size in sizes if size > 0}
        self.origin_um = dict.fromkeys("zyx", 0.0)
        if nifti:
            self.metadata = {"format": "nifti", "nifti_header": base64.b64encode(raw).decode("ascii")}
            affine = _of_voxels(header, affine, np.asarray(zooms, float))
        if stated and usable(affine):
            rows = [[to_micrometres(_meant(value), unit_um) for value in row] for row in affine[:3]]
            self.affine_um = np.array([*rows, [0.0, 0.0, 0.0, 1.0]])
            self.origin_um.update(straight_origin(self.affine_um))

    @property
    def _voxels(self) -> Path:
        """The file that holds the voxels."""
        return self.path if self.path.suffix.lower() != ".hdr" else self.data_files(self.path)[0]

    def _check_length(self, asked: int) -> None:
        """Compare the length of the file with what its header asks for, without reading it where possible."""
        path, size = self._voxels, self._voxels.stat().st_size
        if path.name.lower().endswith(PACKED):
            check_ratio(path, asked, size)
            with path.open("rb") as stream:
                stream.seek(max(0, size - 4))
                # A gzip member ends with its length modulo 2^32. Another number there may mean several members.
                stated = struct.unpack("<I", stream.read(4).rjust(4, b"\0"))[0]
            if stated == asked % 2**32:
                return
            for _piece in inflated(path, asked):
                pass
            return
        if size < asked:
            msg = f"{path} is cut short: its header asks for {asked} bytes and it has {size}; copy it again"
            raise InputError(msg)

    def read(self, z: slice, y: slice, x: slice) -> np.ndarray:
        """Return the voxels of a box."""
        if self._handle is None:
            self._handle = self._load()
        values = self._select.transposed(self._handle[self._select.box(z, y, x)])
        if not self._scaled:
            return values
        scaled = values.astype(np.float64)
        scaled *= self._slope
        scaled += self._inter
        return scaled.astype(self.dtype)

    def _load(self) -> np.ndarray:
        """Return the stored voxels, memory mapped or inflated."""
        proxy = _opened(self.path).dataobj
        if self._voxels.name.lower().endswith(PACKED):  # nibabel stops before the checksum.
            nbytes = math.prod(proxy.shape) * proxy.dtype.itemsize
            part = inflated_part(self._voxels, int(proxy.offset), nbytes)
            return part.view(proxy.dtype).reshape(proxy.shape[::-1])
        values: np.ndarray = proxy.get_unscaled()
        return values.T


def write_nifti(path: Path, array: np.ndarray, voxel_um: dict[str, float], like: Volume | None) -> None:
    """Write a (Z, Y, X) array, or volumes (T, Z, Y, X), with the header of the NIfTI file of `like`.

    Of another format its affine is written, as qform and sform in millimetres. An axis longer than NIfTI-1 can count
    makes it NIfTI-2.
    """
    import nibabel

    kept = like.metadata.get("nifti_header") if like is not None else None
    values, header = array.T, _header(base64.b64decode(kept)) if kept is not None else None
    longest = max(array.shape)
    kind = nibabel.Nifti2Image if longest > NIFTI1_LONGEST else nibabel.Nifti1Image
    if header is not None and (longest <= NIFTI1_LONGEST or header.sizeof_hdr == nibabel.Nifti2Header.sizeof_hdr):
        kind = nibabel.Nifti2Image if header.sizeof_hdr == nibabel.Nifti2Header.sizeof_hdr else kind
        held = header.get_data_shape()
        if [n for n in held if n > 1] == [n for n in values.shape if n > 1]:
            values = values.reshape(held)
        elif len(held) > 4:
            header.set_intent("none")  # One component is no vector.
        header.set_data_dtype(array.dtype.newbyteorder(header.endianness))
        image = kind(values, None, header)
        _resize(image.header, voxel_um)
    else:
        affine = affine_to_write(like, voxel_um)
        affine[:3] /= 1e3
        image = kind(values, affine, dtype=array.dtype)
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(1.0, 0.0)
    nibabel.save(image, path)


def _opened(path: Path) -> Any:
    """Open a file by nibabel, whatever rounding did to the quaternion of its header."""
    from nibabel.filebasedimages import ImageFileError
    from nibabel.imageclasses import all_image_classes

    for file in (path, *NiftiReader.data_files(path)):
        file.stat()
    sniff = None
    for kind in [kind for kind in all_image_classes if kind.__name__ in KINDS]:
        fits, sniff = kind.path_maybe_image(str(path), sniff)
        if fits:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # nibabel leaves it to Python to close an MGH
                return _tolerant(kind).from_filename(str(path), mmap="r")
    msg = "its header is none of NIfTI, Analyze or MGH"
    raise ImageFileError(msg)


def _tolerant(kind: Any) -> Any:
    """Return a class of NIfTI images that reads a quaternion which rounding made longer than 1."""
    if not hasattr(kind.header_class, "quaternion_threshold"):
        return kind
    header = type(kind.header_class.__name__, (kind.header_class,), {"quaternion_threshold": QUATERNION_ROUNDING})
    return type(kind.__name__, (kind,), {"header_class": header})


def _raw_header(image: Any) -> bytes:
    """Return the bytes of a header and its extensions as they stand in the file."""
    files = image.file_map
    with files["header" if "header" in files else "image"].get_prepare_fileobj("rb") as stream:
        single = getattr(image.header, "is_single", False)
        raw: bytes = stream.read(int(image.dataobj.offset)) if single else stream.read()
    return raw


def _header(raw: bytes) -> Any:
    """Return the header that `_raw_header` gave, for a single file."""
    import nibabel

    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        for order in "<>":
            if struct.unpack(f"{order}i", raw[:4])[0] == kind.sizeof_hdr:
                header = kind.from_fileobj(io.BytesIO(raw), endianness=order, check=False)
                header["magic"], header["vox_offset"] = kind.single_magic, 0
                return header
    return None


def _resize(header: Any, voxel_um: dict[str, float]) -> None:
    """Give a header other voxel sizes, by hand; directions and the first voxel stay."""
    unit_um = UNITS_UM.get(header.get_xyzt_units()[0], 1e3)
    for column, axis in enumerate("xyz" if voxel_um else ""):
        size, stated = voxel_um[axis] / unit_um, abs(float(header["pixdim"][1 + column]))
        if not math.isclose(size, stated, rel_tol=1e-6):
            header["pixdim"][1 + column] = size
            for row in ("srow_x", "srow_y", "srow_z") if stated > 0 else ():
                header[row][column] *= size / stated


def _of_voxels(header: Any, affine: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the affine in which voxels have the size that the header states.

    nibabel prefers the sform, which may lead to another space, where voxels have another size.
    """
    if int(header["qform_code"]) == 0 or np.allclose(np.linalg.norm(affine[:3, :3], axis=0), sizes, rtol=1e-3, atol=0):
        return affine
    return np.asarray(header.get_qform(), float)


def _meant(value: float) -> float:
    """Return the decimal number that a float32 of the header stands for: 0.05, and not 0.05000000074505806."""
    single = np.float32(value)
    return float(str(single)) if single == value else float(value)
