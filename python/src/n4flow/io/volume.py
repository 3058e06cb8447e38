"""Volumes: one channel of any file or store, read block by block, and whole arrays written to any format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from n4flow.compute.threads import thread_limit
from n4flow.display import Shown, lengths, sizes
from n4flow.errors import InputError, reading
from n4flow.io.omezarr.layout import by_axis
from n4flow.io.reader import ArrayReader, Reader

if TYPE_CHECKING:
    import dask.array

LAZY_BYTES = 2**26  # Size of a dask block, and of what `digest` reads at a time.


@dataclass(frozen=True, eq=False, repr=False)
class Volume(Shown):
    """One channel of a file or store, axes (Z, Y, X), in its own dtype.

    Parameters
    ----------
    reader : Reader
        Knows the file.
    voxel_um : dict or None
        Voxel size in micrometres by axis name; None only where it was not required.
    origin_um : dict
        Centre of the first voxel in micrometres by axis name.
    metadata : dict
        `format`, and what its reader adds: `ome_zarr_version`, `channels`, `nifti_header`, `missing_chunks`.
    source : Path
    """

    reader: Reader
    voxel_um: dict[str, float] | None
    origin_um: dict[str, float]
    metadata: dict[str, Any]
    source: Path

    @classmethod
    def from_array(
        cls,
        array: np.ndarray,
        voxel_um: Mapping[str, float] | Sequence[float] | None = None,
        origin_um: Mapping[str, float] | Sequence[float] | None = None,
    ) -> Volume:
        """Return a (Z, Y, X) array in memory as a volume; sizes in micrometres, by axis name or (z, y, x)."""
        reader = ArrayReader(array)
        voxel = by_axis(voxel_um, "voxel_um") if voxel_um is not None else None
        origin = by_axis(origin_um, "origin_um") if origin_um is not None else reader.origin_um
        return cls(reader, voxel, origin, reader.metadata, reader.path)

    def facts(self) -> Mapping[str, str]:
        """Return name, shape (z y x), type, voxel size and format."""
        return {
            "source": self.source.name,
            "shape": sizes(self.shape),
            "dtype": str(self.dtype),
            "voxel": lengths(self.voxel_um),
            "format": str(self.metadata.get("format", "array")),
        }

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, Y, X)."""
        return self.reader.shape

    @property
    def dtype(self) -> np.dtype:
        """Type of the voxels, in native byte order."""
        return self.reader.dtype

    @property
    def chunks(self) -> tuple[int, int, int]:
        """(Z, Y, X) voxels that are decoded together."""
        return self.reader.chunks

    @property
    def shards(self) -> tuple[int, int, int] | None:
        """(Z, Y, X) voxels of a file of a sharded store."""
        return self.reader.shards

    @cached_property
    def data(self) -> dask.array.Array:
        """The voxels as a lazy dask array, in blocks of whole chunks."""
        import dask.array as da

        if self.reader.planes is not None:
            low, high = self.reader.planes
            held = f"{self.source.name} was opened for planes {low} to {high}"
            msg = f"{held}, and data is all of it; open it without planes"
            raise InputError(msg)
        meta = np.empty((0, 0, 0), self.dtype)
        return da.from_array(_Lazy(self), chunks=self._blocks(), name=False, asarray=False, fancy=False, meta=meta)

    def read(
        self, z: slice, y: slice = slice(None), x: slice = slice(None), *, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Read a box.

        Parameters
        ----------
        z, y, x : slice
            Without steps.
        out : array, optional
            Where the voxels are written: C-contiguous, of the box's shape and the volume's dtype.

        Returns
        -------
        (z, y, x) array
            C-contiguous, in the volume's dtype and native byte order; the caller's own.

        Raises
        ------
        InputError
            The file is damaged there.
        """
        box = [_bounds(s, n) for s, n in zip((z, y, x), self.shape, strict=True)]
        if any(s.stop == s.start for s in box):
            return np.empty([s.stop - s.start for s in box], self.dtype)
        kind = self.metadata.get("format", "a volume")
        with reading(self.source, f"readable ({kind}, planes {box[0].start} to {box[0].stop})", "copy it again"):
            if out is not None:
                self.reader.read_into(out, *box)
                return out
            return np.array(self.reader.read(*box), self.dtype, order="C", copy=self.reader.borrowed or None)

    def digest(self) -> str:
        """Return a SHA-256 of the voxels, their type, shape and size, as hexadecimal digits.

        It is a hash of one hash per plane, of little-endian decoded voxels: independent of chunks, codecs and format,
        and of how much is read at once.
        """
        order = self.dtype.newbyteorder("<")
        head = {"shape": self.shape, "dtype": self.dtype.name, "voxel_um": self.voxel_um}
        total = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        depth = self._blocks()[0]
        with ThreadPoolExecutor(thread_limit()) as pool:
            for start in range(0, self.shape[0], depth):
                block = self.read(slice(start, start + depth)).astype(order, copy=False)
                for plane in pool.map(lambda values: hashlib.sha256(values).digest(), block):
                    total.update(plane)
        return total.hexdigest()

    def _blocks(self) -> tuple[int, int, int]:
        """Return a block of whole chunks of about `LAZY_BYTES`, whole planes first."""
        block = [min(c, n) for c, n in zip(self.chunks, self.shape, strict=True)]
        for axis in (2, 1, 0):
            free = max(1, LAZY_BYTES // (int(np.prod(block)) * self.dtype.itemsize))
            block[axis] = min(block[axis] * free, self.shape[axis])
        return block[0], block[1], block[2]


class _Lazy:
    """A volume with the interface that dask asks of an array: shape, dtype and slicing."""

    def __init__(self, volume: Volume) -> None:
        self.volume, self.shape, self.dtype, self.ndim = volume, volume.shape, volume.dtype, 3

    def __getitem__(self, box: tuple[slice | int, ...]) -> np.ndarray:
        # dask hands down what users wrote: steps and single indices are taken from the box around them.
        spans, inner = [], []
        for cut, size in zip(box, self.shape, strict=True):
            picks = range(size)[cut]
            picks = range(picks, picks + 1) if isinstance(picks, int) else picks
            low = min(picks, default=0)
            spans.append(slice(low, max(picks, default=-1) + 1))
            relative = slice(picks.start - low, picks.stop - low if picks.stop >= low else None, picks.step)
            inner.append(0 if isinstance(cut, int) else relative)
        return self.volume.read(*spans)[tuple(inner)]


def _bounds(cut: slice, size: int) -> slice:
    start, stop, step = cut.indices(size)
    if step != 1:
        msg = f"a volume is read without steps, got {cut}"
        raise InputError(msg)
    return slice(start, max(start, stop))
