"""What every format gives: a reader of one channel as (Z, Y, X) blocks."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from n4flow.errors import InputError
from n4flow.io.omezarr.layout import Triple


class Reader(ABC):
    """One channel of a file or store; opened again where it is sent to another process.

    Attributes
    ----------
    path : Path
    shape, chunks : (Z, Y, X)
        `chunks` is the box that is decoded together, and so the cheapest to read.
    shards : (Z, Y, X) or None
    dtype : numpy.dtype
        In native byte order.
    voxel_um : dict
        Voxel size in micrometres of the axes for which the file states it.
    origin_um : dict
        Centre of the first voxel in micrometres, by axis name; 0 where the file says nothing.
    affine_um : (4, 4) array or None
        From the voxel (x, y, z) to micrometres to the right, front and top; None where the file states no directions.
    metadata : dict
        At least `format`.
    assumed : str
        What was assumed about `voxel_um` that the file does not say, for a warning.
    reason : str
        Why `voxel_um` is not complete; empty if it is, or if the file simply says nothing.
    borrowed : bool
        Whether `read` returns views of an array that the reader keeps.
    lead : int
        Rows of the first chunk that lie before the first row of the volume.
    planes : (int, int) or None
        The planes that may be read; None if all may.
    channels : int
        Number of channels, or of volumes of a series, that the file holds.
    finds_files : bool
        Whether it finds the files that it reads by itself, and refuses what is no regular file.
    """

    path: Path
    shape: Triple
    dtype: np.dtype
    chunks: Triple
    shards: Triple | None = None
    voxel_um: dict[str, float]
    origin_um: dict[str, float]
    affine_um: np.ndarray | None = None
    metadata: dict[str, Any]
    assumed: str = ""
    reason: str = ""
    borrowed: bool = False
    lead: int = 0
    planes: tuple[int, int] | None = None
    channels: int = 1
    finds_files: bool = False
    _handle: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def release(self) -> None:
        """Release the voxels of a file that is decoded as a whole; the next read opens it again."""
        self._handle = None

    def share(self, other: Reader) -> None:
        """Take over what another reader has decoded of the same file."""
        self._handle = other._handle

    @classmethod
    def data_files(cls, path: Path) -> list[Path]:
        """Return the files other than `path` that hold its voxels; most formats have none."""
        return []

    def state(self) -> str:
        """Return a digest of what tells that a file was written to: names, sizes and times of all files read from."""
        files = [self.path, *self.data_files(self.path)]
        if self.path.is_dir():
            files = sorted(Path(folder) / name for folder, _folders, names in os.walk(self.path) for name in names)
        found = hashlib.sha256()
        for file in filter(Path.exists, files):  # a pattern is no file
            stat = file.stat()
            found.update(f"{file}\t{stat.st_size}\t{stat.st_mtime_ns}\n".encode())
        return found.hexdigest()

    @abstractmethod
    def read(self, z: slice, y: slice, x: slice) -> np.ndarray:
        """Return the voxels of a box given by slices with whole bounds inside the shape and step 1."""

    def read_into(self, out: np.ndarray, z: slice, y: slice, x: slice) -> None:
        """Read a box into `out`, a C-contiguous array of its shape and of the reader's dtype."""
        np.copyto(out, self.read(z, y, x))

    @property
    def by_chunks(self) -> bool:
        """Whether several threads may each read boxes of whole chunks, as fast as one thread reads larger boxes."""
        return False


class ArrayReader(Reader):
    """An array in memory, or memory mapped, as a volume."""

    borrowed = True

    def __init__(self, array: np.ndarray, path: Path = Path("array"), kind: str = "array") -> None:
        if array.ndim not in (2, 3) or 0 in array.shape:
            msg = f"{path} has shape {tuple(array.shape)}; expected a volume (Z, Y, X) or a plane (Y, X)"
            raise InputError(msg)
        check_dtype(array.dtype, path)
        self.path = path
        self._array = array[None] if array.ndim == 2 else array
        self.shape = self._array.shape
        self.dtype = self._array.dtype.newbyteorder("=")
        self.chunks = plane_chunks(self.shape, self.dtype)
        self.voxel_um, self.origin_um = {}, dict.fromkeys("zyx", 0.0)
        self.metadata = {"format": kind}

    def read(self, z: slice, y: slice, x: slice) -> np.ndarray:
        """Return a view of a box."""
        return self._array[z, y, x]


class MeanReader(Reader):
    """The mean of the channels of a file as float32, of one box after the other."""

    dtype = np.dtype(np.float32)

    def __init__(self, readers: Sequence[Reader]) -> None:
        first, self._readers = readers[0], readers
        self.path, self.shape, self.chunks, self.shards = first.path, first.shape, first.chunks, first.shards
        self.voxel_um, self.origin_um, self.affine_um = first.voxel_um, first.origin_um, first.affine_um
        self.assumed, self.reason, self.planes = first.assumed, first.reason, first.planes
        self.channels = first.channels
        self.metadata = first.metadata | {
            name: list(dict.fromkeys(one for reader in readers for one in reader.metadata[name]))
            for name in ("missing_chunks", "damaged_chunks")
            if name in first.metadata
        }

    def release(self) -> None:
        """Release what any of the channels holds."""
        for reader in self._readers:
            reader.release()

    def state(self) -> str:
        """Return one digest of the states of all channels."""
        return hashlib.sha256(" ".join(reader.state() for reader in self._readers).encode()).hexdigest()

    def read(self, z: slice, y: slice, x: slice) -> np.ndarray:
        """Return the mean of a box."""
        total = np.zeros([s.stop - s.start for s in (z, y, x)], self.dtype)
        for reader in self._readers:
            reader.share(self._readers[0])
            total += reader.read(z, y, x)
            self._readers[0].share(reader)
        return total / np.float32(len(self._readers))


def check_dtype(dtype: np.dtype, path: Path) -> None:
    """Refuse voxels that are not whole or real numbers."""
    if dtype.kind not in "buif":
        msg = f"{path} has voxels of type {dtype}; expected integers or real numbers of one channel"
        raise InputError(msg)


def plane_chunks(shape: Triple, dtype: np.dtype) -> Triple:
    """Return whole planes of about 16 MiB, for files that have no chunks of their own."""
    planes = max(1, min(shape[0], 2**24 // (shape[1] * shape[2] * dtype.itemsize)))
    return planes, shape[1], shape[2]
