"""NIfTI-1 and NIfTI-2, `.nii` and `.nii.gz`.

A file stores (X, Y, Z) with X fastest, which is (Z, Y, X) in C order. An uncompressed file is memory mapped;
a compressed one is held in memory, because gzip can only be read from its beginning.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from n4flow.errors import InputError
from n4flow.io.axes import select
from n4flow.io.inflate import check_ratio, inflated, inflated_part
from n4flow.io.reader import Reader, check_dtype, plane_chunks
from n4flow.io.units import to_micrometres

if TYPE_CHECKING:
    from n4flow.io.volume import Volume

UNITS_UM = {"mm": 1e3, "micron": 1.0, "meter": 1e6}
NIFTI1_LONGEST = 32767  # Voxels along an axis that the header of NIfTI-1 can state.


class NiftiReader(Reader):
    """One channel (the fourth axis) of a NIfTI file.

    Voxels are `scl_slope * stored + scl_inter` where the header scales: float32, or float64 for types that float32
    cannot hold. A slope of 0 or NaN means no scaling.
    """

    borrowed = True

    def __init__(self, path: Path, channel: int | str | None = None) -> None:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
        from nibabel.spatialimages import HeaderDataError

        self.path = path
        try:
            image: Any = nibabel.load(path)
        except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
            msg = f"{path} is not a readable NIfTI file: {' '.join(str(error).split())}; write it again"
            raise InputError(msg) from error
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
        # The axis that NIfTI calls time serves all kinds of channels; further axes are allowed if their length is 1.
        named = ["c", "z", "y", "x"][-len(shape) :]
        self._select = select(path, [""] * (len(shape) - len(named)) + named, shape, channel, [])
        self.shape = self._select.volume(shape)
        self.channels = self._select.channels
        self.chunks = plane_chunks(self.shape, self.dtype)
        self._describe(image)

    def _describe(self, image: Any) -> None:
        from nibabel.openers import ImageOpener

        header, affine = image.header, np.asarray(image.affine, float)
        unit = header.get_xyzt_units()[0]
        unit_um = UNITS_UM.get(unit)
        self.voxel_um, self.origin_um = {}, dict.fromkeys("zyx", 0.0)
        with ImageOpener(str(self.path)) as stream:
            stated = image.header_class.from_fileobj(stream, check=False)  # Checking would turn a size of 0 into 1.
        zooms = [_meant(abs(zoom)) for zoom in stated["pixdim"][1 : 1 + min(3, len(image.shape))]]
        if unit_um is None:
            self.reason = "its header names no unit of length"
        else:
            self.voxel_um = {
                axis: to_micrometres(zoom, unit_um) for axis, zoom in zip("xyz", zooms, strict=False) if zoom > 0
            }
            rotation = affine[:3, :3]
            # With a flip or a rotation the corner of the array is no origin along its axes; the affine is kept instead.
            if np.array_equal(rotation, np.diag(np.diag(rotation))) and np.all(np.diag(rotation) > 0):
                corner = zip("xyz", affine[:3, 3], strict=True)
                self.origin_um = {axis: to_micrometres(_meant(value), unit_um) for axis, value in corner}
        self.metadata = {
            "format": "nifti",
            "affine": affine.tolist(),
            "affine_unit": unit,
            "affine_codes": [int(header["qform_code"]), int(header["sform_code"])],
            "qform": _qform(header, affine).tolist(),
        }
        if len(image.shape) == 4:
            self.metadata["time_step"] = [float(header.get_zooms()[3]), header.get_xyzt_units()[1]]

    def _check_length(self, asked: int) -> None:
        """Compare the length of the file with what its header asks for, without reading it where possible."""
        size = self.path.stat().st_size
        if self.path.name.lower().endswith(".gz"):
            check_ratio(self.path, asked, size)
            with self.path.open("rb") as stream:
                stream.seek(max(0, size - 4))
                # A gzip member ends with its length modulo 2^32. Another number there may mean several members.
                stated = struct.unpack("<I", stream.read(4).rjust(4, b"\0"))[0]
            if stated == asked % 2**32:
                return
            for _piece in inflated(self.path, asked):
                pass
            return
        if size < asked:
            msg = f"{self.path} is cut short: its header asks for {asked} bytes and it has {size}; copy it again"
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
        import nibabel

        try:
            values: np.ndarray
            proxy: Any = nibabel.load(self.path, mmap="r").dataobj  # type: ignore[attr-defined]
            if self.path.name.lower().endswith(".gz"):  # nibabel stops before the checksum.
                nbytes = math.prod(proxy.shape) * proxy.dtype.itemsize
                return inflated_part(self.path, int(proxy.offset), nbytes).view(proxy.dtype).reshape(proxy.shape[::-1])
            values = proxy.get_unscaled()
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(self.path, error) from error
        return values.T


def write_nifti(path: Path, array: np.ndarray, voxel_um: dict[str, float], like: Volume | None) -> None:
    """Write a (Z, Y, X) array, or volumes (T, Z, Y, X), with affines, codes and units of the NIfTI file of `like`.

    Without one the affine is diagonal, in millimetres, with the origin of `like`. An axis longer than NIfTI-1 can
    count makes it NIfTI-2.
    """
    import nibabel

    metadata = like.metadata if like is not None else {}
    affine, unit = metadata.get("affine"), metadata.get("affine_unit", "mm")
    codes = metadata.get("affine_codes", [0, 2])
    size = [voxel_um[axis] / UNITS_UM.get(unit, 1e3) for axis in "xyz"] if voxel_um else None
    if affine is None and size is not None:
        origin = like.origin_um if like is not None else dict.fromkeys("xyz", 0.0)
        affine = np.diag([*size, 1.0])
        affine[:3, 3] = [origin[axis] / 1e3 for axis in "xyz"]
        qform = affine
    else:
        affine, qform = np.array(affine, float), np.array(metadata.get("qform", affine), float)
        # The qform has the size of a voxel. The sform may lead to another space, in which voxels have another size.
        stated = np.linalg.norm(qform[:3, :3], axis=0)
        if unit in UNITS_UM and size is not None and not np.allclose(size, stated, rtol=1e-6, atol=0):
            for matrix in (affine, qform):
                matrix[:3, :3] *= size / stated  # a voxel size given by hand; directions and origin stay
    kind = nibabel.Nifti2Image if max(array.shape) > NIFTI1_LONGEST else nibabel.Nifti1Image
    image = kind(array.T, affine, dtype=array.dtype)
    image.set_qform(qform, int(codes[0]))
    image.set_sform(affine, int(codes[1]))
    step, time_unit = metadata.get("time_step", (0.0, None))
    if array.ndim == 4 and step > 0:
        image.header.set_zooms((*image.header.get_zooms()[:3], step))
    image.header.set_xyzt_units(unit, time_unit if array.ndim == 4 else None)
    image.header.set_slope_inter(1.0, 0.0)
    nibabel.save(image, path)


def _qform(header: Any, affine: np.ndarray) -> np.ndarray:
    """Return the affine of the header's voxel size and quaternion, or `affine` where those make none."""
    from nibabel.spatialimages import HeaderDataError

    try:
        qform = np.asarray(header.get_qform(), float)
    except (HeaderDataError, ValueError):
        return affine
    return qform if np.isfinite(qform).all() else affine


def _meant(value: np.floating) -> float:
    """Return the decimal number that a float32 of the header stands for: 0.05, and not 0.05000000074505806."""
    return float(str(np.float32(value)))


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is cut short or damaged: {' '.join(str(error).split())}; copy it again")
