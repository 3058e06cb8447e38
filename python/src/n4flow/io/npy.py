"""NumPy arrays, `.npy`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from n4flow.io.axes import named_axes, select
from n4flow.io.reader import ArrayReader

if TYPE_CHECKING:
    from n4flow.io.volume import Volume


class NpyReader(ArrayReader):
    """A `.npy` file, memory mapped."""

    def __init__(self, path: Path, channel: int | str | None = None, *, axes: str | None = None) -> None:
        # numpy.load would take an archive for an array, too.
        array: np.ndarray = np.lib.format.open_memmap(path, mode="r")
        channels = 1
        if axes is not None:
            chosen = select(path, named_axes(path, [""] * array.ndim, array.shape, axes), array.shape, channel, ())
            array = chosen.transposed(array[chosen.box(slice(None), slice(None), slice(None))])
            channels = chosen.channels
        super().__init__(array, path, "npy")
        if axes is None:
            select(path, "zyx", self.shape, channel, ())  # Refuses any channel but the first.
        self.channels = channels
        self._given = channel, axes

    def __reduce__(self) -> tuple[Any, ...]:
        channel, axes = self._given  # A memory map would travel as a copy.
        return partial(NpyReader, channel=channel, axes=axes), (self.path,)


def write_npy(path: Path, array: np.ndarray, _voxel_um: dict[str, float], _like: Volume | None) -> None:
    """Write a (Z, Y, X) array; the format has no place for a voxel size."""
    np.save(path, array)
