"""A mask of a whole volume: eight voxels to a byte, every plane compressed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from n4flow.statistics.plane_file import codec


def pack(mask: np.ndarray) -> np.ndarray:
    """Return the bits of (Z, y, x) bool planes, (Z, ceil(y x / 8)) uint8, as `numpy.packbits` packs each."""
    return np.packbits(mask.reshape(len(mask), -1), axis=1)


class PackedMask:
    """A (Z, y, x) mask that takes an eighth of its bytes, or a hundredth for compact tissue; indexed as bool planes.

    Parameters
    ----------
    planes : sequence of bytes
        The bits of each plane, compressed.
    plane : tuple of int
        Rows and columns.
    """

    def __init__(self, planes: Sequence[bytes], plane: tuple[int, int]) -> None:
        self.planes = list(planes)
        self.shape = (len(self.planes), *plane)

    @classmethod
    def empty(cls, shape: tuple[int, int, int]) -> Self:
        """Return a mask without a voxel inside."""
        return cls(_compress(pack(np.zeros((1, *shape[1:]), bool))) * shape[0], shape[1:])

    @classmethod
    def of(cls, mask: np.ndarray) -> Self:
        """Pack a (Z, y, x) bool array."""
        _n_z, n_y, n_x = mask.shape
        return cls(_compress(pack(mask)), (n_y, n_x))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join runs of planes, given in order of Z."""
        return cls([plane for part in parts for plane in part.planes], parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def part(self, z_start: int, z_stop: int) -> PackedMask:
        """Return planes `z_start` to `z_stop`, packed."""
        return PackedMask(self.planes[z_start:z_stop], self.shape[1:])

    def bits(self, z_start: int, z_stop: int) -> np.ndarray:
        """Return the bits of planes `z_start` to `z_stop`, as `pack` does."""
        found = np.empty((z_stop - z_start, -(-self.shape[1] * self.shape[2] // 8)), np.uint8)
        for row, plane in zip(found, self.planes[z_start:z_stop], strict=True):
            codec().decode(plane, row)
        return found

    def __getitem__(self, planes: int | slice) -> np.ndarray:
        """Return a plane (y, x), or successive planes (z, y, x), as bool."""
        if not isinstance(planes, slice):
            z = range(len(self))[planes]
            return self[z : z + 1][0]
        bits = self.bits(*self._run(planes))
        voxels = np.unpackbits(bits, axis=1, count=self.shape[1] * self.shape[2])
        return voxels.reshape(len(bits), *self.shape[1:]).view(bool)

    def __setitem__(self, planes: int | slice, mask: np.ndarray) -> None:
        if not isinstance(planes, slice):
            z = range(len(self))[planes]
            planes, mask = slice(z, z + 1), mask[None]
        start, stop = self._run(planes)
        if mask.shape != (stop - start, *self.shape[1:]):
            msg = f"planes {start} to {stop} of a mask of shape {self.shape} cannot be set to an array of {mask.shape}"
            raise ValueError(msg)
        self.planes[start:stop] = _compress(pack(mask))

    def _run(self, planes: slice) -> tuple[int, int]:
        start, stop, step = planes.indices(len(self))
        if step != 1 or stop < start:
            msg = f"planes must follow each other, got {planes}"
            raise IndexError(msg)
        return start, stop

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or bool, copy=False)

    def any(self) -> bool:
        """Return whether any voxel is inside."""
        return any(self.bits(z, z + 1).any() for z in range(len(self)))

    def mean(self) -> float:
        """Return the share of voxels inside."""
        inside = sum(int(np.bitwise_count(self.bits(z, z + 1)).sum(dtype=np.int64)) for z in range(len(self)))
        return inside / int(np.prod(self.shape))


def _compress(bits: np.ndarray) -> list[bytes]:
    return [codec().encode(row) for row in np.ascontiguousarray(bits)]
