"""What every correction is: a small, serialisable, pointwise map that knows where it is applied."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from n4flow.compute.arrays import array_module
from n4flow.io.frame import Frame


@dataclass(frozen=True)
class Where:
    """The place of a block in its volume.

    Parameters
    ----------
    z, y, x : int
        Index of the block's first voxel in the full-resolution volume.
    shape : tuple of int
        Shape (Z, Y, X) of that volume.
    tissue : (z, y, x) bool array, optional
        Tissue mask of the block; needed only by corrections that act on tissue alone.
    """

    z: int
    y: int
    x: int
    shape: tuple[int, int, int]
    tissue: Any = None


def in_frame(frame: Frame | None, block: Any, where: Where, work: Callable[[Any, Where], Any]) -> Any:
    """Return a block of which what lies in a frame went through `work`, to which it is a block of the frame.

    Parameters
    ----------
    frame : Frame or None
        None for whole planes.
    block : (z, y, x) array
        May be overwritten.
    where : Where
        The block's place in the volume.
    work : function
        Takes a block and its place counted from the frame's corner.
    """
    found = None if frame is None else frame.part(where.y, where.x, *block.shape[1:])
    if frame is None:
        return work(block, where)
    if found is None:
        return block
    inner, (rows, columns) = (slice(None), *found[0]), found[1]
    tissue = None if where.tissue is None else where.tissue[inner]
    place = Where(where.z, rows.start, columns.start, (where.shape[0], *frame.shape), tissue)
    part = block[inner]
    if part.shape == block.shape:
        return work(block, place)
    xp = array_module(block)
    result = xp.asarray(block, xp.float32)
    result[inner] = work(xp.ascontiguousarray(part), place)
    return result


class Correction(ABC):
    """One step of a recipe.

    `apply` is a function of each voxel's value and place alone, so that the result does not depend on how
    the volume is cut into blocks. A correction that looks at neighbours in its plane says how far by
    `margin`; the block it gets is then larger by that much on each side, except at the volume's border.
    """

    kind: ClassVar[str]
    needs_tissue: ClassVar[bool] = False  # whether `apply` reads `where.tissue`
    margin: tuple[int, int] = (0, 0)  # voxels (y, x) around the block that `apply` looks at

    @abstractmethod
    def apply(self, block: Any, where: Where) -> Any:
        """Return the corrected block.

        Parameters
        ----------
        block : (z, y, x) float32 array
            NumPy or CuPy. It may be overwritten and returned.
        where : Where
            The block's place.
        """

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """Return the numbers a reader wants to see: JSON types only, no large arrays."""

    @abstractmethod
    def to_arrays(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return (settings of JSON types, named arrays); together they are the whole correction."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        """Rebuild the correction from what `to_arrays` returned."""
