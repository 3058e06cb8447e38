"""NumPy arrays, `.npy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from n4flow.errors import InputError
from n4flow.io.axes import select
from n4flow.io.reader import ArrayReader

if TYPE_CHECKING:
    from n4flow.io.volume import Volume


class NpyReader(ArrayReader):
    """A `.npy` file, memory mapped."""

    def __init__(self, path: Path, channel: int | str | None = None) -> None:
        try:
            array = np.lib.format.open_memmap(path, mode="r")  # numpy.load would take an archive for an array, too
        except (ValueError, EOFError, OSError) as error:
            msg = f"{path} is not a readable .npy array: {error}; write it again with numpy.save"
            raise InputError(msg) from error
        super().__init__(array, path, "npy")
        select(path, "zyx", self.shape, channel, ())  # refuses any channel but the first

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return NpyReader, (self.path,)  # a memory map would travel as a copy


def write_npy(path: Path, array: np.ndarray, _voxel_um: dict[str, float], _like: Volume | None) -> None:
    """Write a (Z, Y, X) array; the format has no place for a voxel size."""
    np.save(path, array)
