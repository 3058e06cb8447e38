"""A mask of a whole volume, eight voxels to a byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np


class PackedMask:
    """A (Z, y, x) mask that keeps one bit for a voxel; planes are bool arrays when they are taken or set.

    Parameters
    ----------
    bits : (Z, ceil(y x / 8)) uint8 array
        As `numpy.packbits` packs each plane.
    shape : tuple of int
    """

    def __init__(self, bits: np.ndarray, shape: tuple[int, int, int]) -> None:
        self.bits, self.shape = bits, shape

    @classmethod
    def empty(cls, shape: tuple[int, int, int]) -> Self:
        """Return a mask without a voxel inside."""
        return cls(np.zeros((shape[0], -(-shape[1] * shape[2] // 8)), np.uint8), shape)

    @classmethod
    def of(cls, mask: np.ndarray) -> Self:
        """Pack a (Z, y, x) bool array."""
        n_z, n_y, n_x = mask.shape
        return cls(np.packbits(mask.reshape(n_z, -1), axis=1), (n_z, n_y, n_x))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Put runs of planes, in order of Z, together."""
        bits = np.concatenate([part.bits for part in parts])
        return cls(bits, (len(bits), *parts[0].shape[1:]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, planes: int | slice) -> np.ndarray:
        """Return a plane (y, x), or several (z, y, x), as bool."""
        voxels = self.shape[1] * self.shape[2]
        bits = np.unpackbits(self.bits[planes], axis=-1, count=voxels)
        return bits.reshape(*bits.shape[:-1], *self.shape[1:]).view(bool)

    def __setitem__(self, planes: int | slice, mask: np.ndarray) -> None:
        self.bits[planes] = np.packbits(mask.reshape(*mask.shape[:-2], -1), axis=-1)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or bool, copy=False)

    def any(self) -> bool:
        """Return whether any voxel is inside."""
        return bool(self.bits.any())

    def mean(self) -> float:
        """Return the share of voxels inside."""
        return int(np.bitwise_count(self.bits).sum(dtype=np.int64)) / int(np.prod(self.shape))
