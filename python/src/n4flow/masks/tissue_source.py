"""The tissue mask of a block at full resolution: the estimated mask, or the one that the user gave."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from n4flow.compute.arrays import tissue_of
from n4flow.compute.threads import scratch
from n4flow.io.frame import Frame, framed
from n4flow.io.geometry import on_grid
from n4flow.io.open import open_volume
from n4flow.io.reader import Reader
from n4flow.io.volume import Volume
from n4flow.masks.packed_mask import PackedMask
from n4flow.statistics.accumulate import class_rows
from n4flow.statistics.plane_file import PieceFile, write_pieces


@dataclass(frozen=True)
class TissueSource:
    """The tissue mask at full resolution, block by block.

    Parameters
    ----------
    small : (Z, y, x) bool array or PackedMask
        Mask on the shrunken grid.
    agarose_small : (y, x) bool array
        Agarose mask on the shrunken grid.
    shrink : int
        In-plane block size.
    given : Volume, optional
        The mask of the user on the volume's grid, which replaces the estimated one; above 0 is tissue.
    z_start : int
        Plane of the volume that is the first one of `small`.
    frame : Frame, optional
        The part of each plane that the shrunken grid covers; whole planes without it. Rows and columns are counted from
        its corner, except those of `given`.
    """

    small: np.ndarray | PackedMask
    agarose_small: np.ndarray
    shrink: int
    given: Volume | None = None
    z_start: int = 0
    frame: Frame | None = None

    def save(self, path: str | Path) -> None:
        """Write both masks, plane by plane; the mask of the user is not copied."""
        packed = self.small if isinstance(self.small, PackedMask) else PackedMask.of(self.small)
        arrays = {"agarose": self.agarose_small, "shrink": np.array(self.shrink)}
        if self.frame is not None:
            arrays["frame"] = np.array(self.frame)
        write_pieces(path, arrays, packed.planes)

    @classmethod
    def load(cls, path: str | Path, given: Volume | None = None, planes: tuple[int, int] | None = None) -> TissueSource:
        """Read what `save` wrote: all planes, packed, or the range `planes` as arrays."""
        file = PieceFile(path)
        stored, (start, stop) = file.head, (0, len(file)) if planes is None else planes
        packed = PackedMask(file.read(start, stop), stored["agarose"].shape)
        small = packed if planes is None else packed[:]
        frame = Frame(*stored["frame"].tolist()) if "frame" in stored else None
        return cls(small, stored["agarose"], int(stored["shrink"]), given, start, frame)

    def part(self, start: int, stop: int) -> TissueSource:
        """Return the masks of planes `start` to `stop`, packed if these are."""
        first, last = start - self.z_start, stop - self.z_start
        small = self.small.part(first, last) if isinstance(self.small, PackedMask) else self.small[first:last]
        return replace(self, small=small, z_start=start)

    def unpacked(self) -> TissueSource:
        """Return the masks as arrays."""
        return replace(self, small=self.small[:])

    def small_planes(self, start: int, stop: int) -> np.ndarray:
        """Return planes of the mask on the shrunken grid."""
        return self.small[start - self.z_start : stop - self.z_start]

    def block(self, z: slice, y: slice, x: slice) -> np.ndarray:
        """Return the (z, y, x) bool mask of a box with whole bounds, in a buffer of this thread."""
        if self._given is not None:
            return self._given.read(z, y, x) > 0
        from n4flow.statistics import histogram_kernels as kernels

        small = self.small_planes(z.start, z.stop)
        out = scratch("mask", (len(small), y.stop - y.start, x.stop - x.start), bool)
        kernels.expand_rows(small.view(np.uint8), self.shrink, y.start, x.start, out.view(np.uint8))
        return out

    @cached_property
    def _given(self) -> Volume | None:
        """The user's mask in the frame."""
        return None if self.given is None else framed(self.given, self.frame)

    @cached_property
    def _around(self) -> np.ndarray:
        """The classes (y, x) on the shrunken grid where there is no tissue."""
        return class_rows(None, self.agarose_small, self.agarose_small.shape)

    def classes(self, z: slice, y: slice, inside: np.ndarray | None) -> tuple[np.ndarray, int, int]:
        """Return `classes`, `k` and `y` of `PlaneCounter.add` for a box of whole rows.

        `inside` is the box (z, y, X) of the mask of the user, if there is one.
        """
        first, last = y.start // self.shrink, -(-y.stop // self.shrink)
        around = self._around[first:last]
        below = y.start - first * self.shrink
        if inside is None:
            return around * ~self.small_planes(z.start, z.stop)[:, first:last], self.shrink, below  # tissue is class 0
        from n4flow.statistics import histogram_kernels as kernels

        classes = scratch("given classes", inside.shape, np.uint8)
        kernels.expand_rows(np.broadcast_to(around, (len(inside), *around.shape)), self.shrink, below, 0, classes)
        classes[inside] = 0
        return classes, 1, 0


class _Tissue(Reader):
    """The tissue of a mask: where it has a label, or what `tissue_of` makes of it without one."""

    dtype = np.dtype(bool)

    def __init__(self, mask: Volume, label: int | None) -> None:
        self.reader, self.label, self.path = mask.reader, label, mask.source
        reader = mask.reader
        self.shape, self.chunks, self.shards, self.planes = reader.shape, reader.chunks, reader.shards, reader.planes
        self.voxel_um, self.origin_um, self.metadata = reader.voxel_um, reader.origin_um, reader.metadata

    def release(self) -> None:
        self.reader.release()

    def read(self, z: slice, y: slice, x: slice) -> np.ndarray:
        values = self.reader.read(z, y, x)
        if self.label is not None:
            return np.asarray(values == self.label)
        inside: np.ndarray = tissue_of(values, f"the mask {self.path}", whole=False)
        return inside


def open_mask(
    path: str | Path,
    volume: Volume,
    *,
    label: int | None = None,
    allow_missing_chunks: bool = False,
    planes: tuple[int, int] | None = None,
) -> Volume:
    """Open a user's tissue mask for `volume`; missing chunks, where they are allowed, have no tissue.

    `planes` is the range of planes that will be read, see `open_volume`.

    Raises
    ------
    InputError
        The mask is on another grid than the volume.
    """
    by_hand = volume.voxel_um if volume.voxel_um != volume.reader.voxel_um else None
    options: dict[str, Any] = {"voxel_um": by_hand, "allow_missing_chunks": allow_missing_chunks}
    mask = open_volume(path, planes=planes, require_voxel_um=False, **options)
    fitting = on_grid(mask, volume, "the mask")
    if planes is not None and fitting is not mask:  # other planes of it will be read
        fitting = on_grid(open_volume(path, require_voxel_um=False, **options), volume, "the mask")
    return _tissue(fitting, label)


def check_mask(mask: Volume, volume: Volume) -> Volume:
    """Return the tissue of a mask on the grid of its volume, see `on_grid`."""
    return _tissue(on_grid(mask, volume, "the mask"), None)


def _tissue(mask: Volume, label: int | None) -> Volume:
    return replace(mask, reader=_Tissue(mask, label))
