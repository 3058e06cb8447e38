"""NRRD and MetaImage (`.nrrd`, `.nhdr`, `.mha`, `.mhd`), by SimpleITK. Spacing is in millimetres, as ITK has it.

The voxels are held in memory once read: these files come compressed, in one piece.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from n4flow.errors import InputError
from n4flow.formats.axes import select
from n4flow.formats.reader import Reader, plane_chunks
from n4flow.formats.units import micrometres_per, to_micrometres

if TYPE_CHECKING:
    from n4flow.volume import Volume

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
HEADER_BYTES = 2**16
SPACING_FIELDS = (b"spacings:", b"space directions:", b"elementspacing", b"elementsize")


class ItkReader(Reader):
    """One channel (component) of a NRRD or MetaImage file.

    Raises
    ------
    InputError
        Not readable, not a volume, several channels and none chosen.
    """

    borrowed = True

    def __init__(self, path: Path, channel: int | str | None = None) -> None:
        import SimpleITK as sitk

        self.path = path
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
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
        self.dtype = _dtype(path, reader.GetPixelID())
        self.chunks = plane_chunks(self.shape, self.dtype)
        unit_um, stated = _header(path)
        self.voxel_um, self.origin_um = {}, dict.fromkeys("zyx", 0.0)
        direction = np.reshape(reader.GetDirection(), (len(size), len(size)))
        if stated:
            self.voxel_um = {a: to_micrometres(s, unit_um) for a, s in zip("xyz", reader.GetSpacing(), strict=False)}
            # Turned axes have no origin along them; it is kept beside the directions.
            if np.allclose(direction, np.eye(len(size)), atol=1e-9):
                corner = zip("xyz", reader.GetOrigin(), strict=False)
                self.origin_um.update({a: to_micrometres(v, unit_um) for a, v in corner})
        else:
            self.reason = "its header states no spacing"
        self.metadata = {"format": "itk", "direction": direction.ravel().tolist(), "origin": list(reader.GetOrigin())}

    def read(self, z: slice, y: slice, x: slice) -> np.ndarray:
        """Return the voxels of a box."""
        if self._handle is None:
            import SimpleITK as sitk

            try:
                self._handle = sitk.GetArrayFromImage(sitk.ReadImage(str(self.path)))
            except RuntimeError as error:
                raise _damaged(self.path, error) from error
        return self._select.transposed(self._handle[self._select.box(z, y, x)])


def write_itk(path: Path, array: np.ndarray, voxel_um: dict[str, float], like: Volume | None) -> None:
    """Write a (Z, Y, X) array with spacing, origin and directions in millimetres."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    image.SetSpacing([voxel_um[axis] / 1e3 for axis in "xyz"])
    if like is not None:
        image.SetOrigin([like.origin_um[axis] / 1e3 for axis in "xyz"])
        direction = like.metadata.get("direction", [])
        if len(direction) == 9:
            image.SetDirection(direction)
            image.SetOrigin(like.metadata["origin"])
    sitk.WriteImage(image, str(path))


def _dtype(path: Path, pixel: int) -> np.dtype:
    import SimpleITK as sitk

    names = {
        "UInt8": np.uint8,
        "Int8": np.int8,
        "UInt16": np.uint16,
        "Int16": np.int16,
        "UInt32": np.uint32,
        "Int32": np.int32,
        "UInt64": np.uint64,
        "Int64": np.int64,
        "Float32": np.float32,
        "Float64": np.float64,
    }
    for name, dtype in names.items():
        if pixel in (getattr(sitk, f"sitk{name}"), getattr(sitk, f"sitkVector{name}")):
            return np.dtype(dtype)
    msg = f"{path} has voxels of type {sitk.GetPixelIDValueAsString(pixel)}; expected integers or real numbers"
    raise InputError(msg)


def _header(path: Path) -> tuple[float, bool]:
    """Return the micrometres in a unit of the header, and whether it states a spacing, for which ITK takes 1."""
    with path.open("rb") as stream:
        lines = stream.read(HEADER_BYTES).lower().splitlines()
    stated, unit_um = False, 1e3
    for line in lines:
        if not line or line.startswith(b"elementdatafile"):
            break
        stated = stated or line.startswith(SPACING_FIELDS)
        if line.startswith((b"space units:", b"units:")):
            name = line.partition(b":")[2].split()[0].strip(b'"').decode(errors="replace")
            unit_um = micrometres_per(name) or unit_um
    return unit_um, stated


def _damaged(path: Path, error: Exception) -> InputError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return InputError(f"{path} is not a readable image: {lines[-1] if lines else error}; write or copy it again")
