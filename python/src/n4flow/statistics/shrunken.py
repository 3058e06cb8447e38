"""The shrunken volume, in memory or in the files of its slabs, from which planes are read as they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from n4flow.compute.threads import run_tasks, scratch
from n4flow.errors import InputError
from n4flow.io.frame import Frame
from n4flow.statistics.accumulate import plane_numbers
from n4flow.statistics.plane_file import PieceFile, codec, write_pieces

if TYPE_CHECKING:
    from n4flow.statistics.accumulate import PlaneShrinker, TileShrinker

RUN_PLANES = 16  # read at a time by who works through a volume: some tens of megabytes


@dataclass
class ShrunkenVolume:
    """A volume averaged over k x k blocks in plane, from which masks and bias fields are estimated.

    Parameters
    ----------
    mean : (Z, y, x) float32 array
        Mean of the valid voxels of each block, 0 where there are none. y = ceil(Y / k), x = ceil(X / k).
    valid : (Z, y, x) float32 array
        Share of valid voxels of each block, from 0 to 1 (of the voxels it has: blocks at the border may be partial).
    shrink : int
        k, voxels.
    full_shape : tuple of int
        (Z, Y, X) before shrinking.
    planes : dict of (Z,) arrays
        Per plane: n_valid, n_zero, n_nonfinite, n_negative and n_saturated (equal to the largest value of an integer
        type) as int64; minimum and maximum of the valid voxels as float64, 0 where there are none.
    frame : Frame, optional
        Where (Y, X) lie in the planes of the volume; all of them without it.
    """

    mean: np.ndarray
    valid: np.ndarray
    shrink: int
    full_shape: tuple[int, int, int]
    planes: dict[str, np.ndarray]
    frame: Frame | None = None

    @classmethod
    def of(cls, shrinker: PlaneShrinker | TileShrinker, frame: Frame | None = None) -> Self:
        """Take over what was measured of all planes."""
        numbers = plane_numbers(shrinker.counts, shrinker.extremes)
        return cls(shrinker.mean, shrinker.valid, int(shrinker.k), shrinker.shape, numbers, frame)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, y, x)."""
        n_z, n_y, n_x = self.mean.shape
        return n_z, n_y, n_x

    def part(self, z_start: int, z_stop: int) -> ShrunkenVolume:
        """Return planes `z_start` to `z_stop`, as views."""
        planes = {name: values[z_start:z_stop] for name, values in self.planes.items()}
        mean, valid = self.mean[z_start:z_stop], self.valid[z_start:z_stop]
        return ShrunkenVolume(mean, valid, self.shrink, (len(mean), *self.full_shape[1:]), planes, self.frame)

    def save(self, path: str | Path) -> None:
        """Write to an .npz file from which `ShrunkenFiles` reads planes.

        Every plane is compressed apart. Means of whole numbers are stored as their sums, where those give the same
        bits again: a sum has fewer bits than the digits of a quotient. So are shares, as the voxels that are lost.
        """
        packed = run_tasks(lambda z: _pack(self.mean[z], self.valid[z], *self._blocks()), range(len(self.mean)))
        arrays = {f"plane_{name}": values for name, values in self.planes.items()}
        arrays |= {"shrink": np.array(self.shrink), "full_shape": np.array(self.full_shape)}
        if self.frame is not None:
            arrays["frame"] = np.array(self.frame)
        arrays["stored_as"] = np.array([stored_as for _mean, _valid, *stored_as in packed], bool).reshape(-1, 2)
        pieces = [piece for mean, valid, *_stored_as in packed for piece in (mean, valid)]
        write_pieces(path, arrays, pieces)

    def _blocks(self) -> tuple[np.ndarray, np.ndarray]:
        return _block_sizes(self.full_shape, self.shrink)

    @classmethod
    def concatenate(cls, slabs: Sequence[Self]) -> Self:
        """Put slabs of one volume, in order of Z, back together."""
        if len(slabs) == 1:
            return slabs[0]
        check_alike([(s.shrink, s.full_shape) for s in slabs])
        first = slabs[0]
        return cls(
            np.concatenate([s.mean for s in slabs]),
            np.concatenate([s.valid for s in slabs]),
            first.shrink,
            (sum(s.full_shape[0] for s in slabs), *first.full_shape[1:]),
            {name: np.concatenate([s.planes[name] for s in slabs]) for name in first.planes},
            first.frame,
        )


class ShrunkenFiles:
    """A shrunken volume in the files that `ShrunkenVolume.save` wrote of its slabs; planes are read when asked for.

    Parameters
    ----------
    paths : sequence of path
        In order of Z.

    Attributes
    ----------
    shape : tuple of int
        (Z, y, x).
    shrink, full_shape, planes, frame
        See `ShrunkenVolume`.

    Raises
    ------
    InputError
        The slabs differ in shrink factor or plane size, or a file is damaged.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        heads: list[tuple[int, tuple[int, int, int]]] = []
        numbers: list[dict[str, np.ndarray]] = []
        frames: set[Frame | None] = set()
        self._stored: list[tuple[PieceFile, int, tuple[bool, bool]]] = []
        for file in map(PieceFile, paths):
            head = file.head
            n_z, n_y, n_x = (int(n) for n in head["full_shape"])
            heads.append((int(head["shrink"]), (n_z, n_y, n_x)))
            frames.add(Frame(*head["frame"].tolist()) if "frame" in head else None)
            names = [name for name in head if name.startswith("plane_")]
            numbers.append({name.removeprefix("plane_"): head[name] for name in names})
            self._stored += [(file, 2 * z, tuple(each)) for z, each in enumerate(head["stored_as"].tolist())]
        check_alike(heads)
        if len(frames) > 1:
            msg = f"slabs of one volume must have one frame, got {frames}"
            raise InputError(msg)
        (self.frame,) = frames
        self.shrink = heads[0][0]
        self.full_shape = (sum(shape[0] for _shrink, shape in heads), *heads[0][1][1:])
        self._blocks = _block_sizes(self.full_shape, self.shrink)
        self.shape = (self.full_shape[0], len(self._blocks[0]), len(self._blocks[1]))
        self.planes = {name: np.concatenate([slab[name] for slab in numbers]) for name in numbers[0]}

    def part(self, z_start: int, z_stop: int) -> ShrunkenVolume:
        """Read planes `z_start` to `z_stop`."""
        shape = z_stop - z_start, *self.shape[1:]
        mean, valid = np.empty(shape, np.float32), np.empty(shape, np.float32)

        def unpack(i: int) -> None:
            file, first, stored_as = self._stored[z_start + i]
            _unpack(file.read(first, first + 2), stored_as, *self._blocks, mean[i], valid[i])

        run_tasks(unpack, range(shape[0]))
        planes = {name: values[z_start:z_stop] for name, values in self.planes.items()}
        return ShrunkenVolume(mean, valid, self.shrink, (shape[0], *self.full_shape[1:]), planes, self.frame)


Shrunken = ShrunkenVolume | ShrunkenFiles


def runs(z_start: int, z_stop: int, step: int = RUN_PLANES) -> Iterator[tuple[int, int]]:
    """Cut planes into runs that are worked on one after the other."""
    for start in range(z_start, z_stop, step):
        yield start, min(start + step, z_stop)


def check_alike(slabs: Sequence[tuple[int, tuple[int, int, int]]]) -> None:
    """Refuse slabs, given as (shrink, full shape), that cannot be parts of one volume."""
    seen = sorted({(shrink, *shape[1:]) for shrink, shape in slabs})
    if len(seen) != 1:
        msg = f"slabs of one volume must have one shrink factor and plane size, got {seen}"
        raise InputError(msg)


def _block_sizes(full_shape: tuple[int, int, int], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how many voxels blocks have along Y and along X; the last ones may have fewer than k."""
    height, width = (np.diff([*range(0, size, k), size]) for size in full_shape[1:])
    return height, width


def _pack(
    mean: np.ndarray, valid: np.ndarray, height: np.ndarray, width: np.ndarray
) -> tuple[bytes, bytes, bool, bool]:
    """Compress a plane; also return whether means are stored as sums, and shares as voxels that are lost.

    Shares need no piece where no voxel is lost.
    """
    from n4flow.statistics import shrunken_kernels

    mean, valid = np.ascontiguousarray(mean, np.float32), np.ascontiguousarray(valid, np.float32)
    sums, lost = np.empty(mean.shape, np.uint32), np.empty(mean.shape, _count_type(height, width))
    whole = bool(shrunken_kernels.sums_of_means(mean, valid, height, width, sums))
    counted = bool(shrunken_kernels.lost_of_shares(valid, height, width, lost))
    means = codec(small=True).encode(sums) if whole else codec().encode(mean)
    if not counted:
        return means, codec().encode(valid), whole, counted
    return means, codec(small=True).encode(lost) if lost.any() else b"", whole, counted


def _unpack(
    pieces: Sequence[bytes],
    stored_as: tuple[bool, bool],
    height: np.ndarray,
    width: np.ndarray,
    mean: np.ndarray,
    valid: np.ndarray,
) -> None:
    """Write what `_pack` was given into `mean` and `valid` (y, x)."""
    from n4flow.statistics import shrunken_kernels

    (means, shares), (whole, counted) = pieces, stored_as
    decode = codec().decode  # a piece tells what was shuffled
    if counted and not shares:
        valid[...] = 1
    elif counted:
        lost = scratch("lost voxels", mean.shape, _count_type(height, width))
        decode(shares, lost)
        shrunken_kernels.shares_of_lost(lost, height, width, valid)
    else:
        decode(shares, valid)
    if whole:
        steps = scratch("steps of sums", mean.shape, np.uint32)
        decode(means, steps)
        shrunken_kernels.means_of_sums(steps, valid, height, width, mean)
    else:
        decode(means, mean)


def _count_type(height: np.ndarray, width: np.ndarray) -> type[np.unsignedinteger]:
    """Return the type that holds the voxels of a block."""
    return np.uint16 if int(height.max()) * int(width.max()) < 1 << 16 else np.uint32
