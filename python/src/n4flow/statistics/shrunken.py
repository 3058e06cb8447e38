"""The shrunken volume, in memory or in the files of its slabs, from which planes are read when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from n4flow.compute.threads import run_tasks
from n4flow.errors import InputError
from n4flow.io.frame import Frame
from n4flow.statistics.accumulate import plane_numbers
from n4flow.statistics.plane_file import PieceFile, codec, write_pieces

if TYPE_CHECKING:
    from n4flow.statistics.accumulate import PlaneShrinker, TileShrinker

ROUNDABLE = np.float32(3.3e38)  # What is larger could be rounded to infinity.
RUN_PLANES = 16  # Planes of a shrunken volume that are read at a time: some tens of megabytes.


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
        """Return the shrunken volume that was measured; its arrays are not copied."""
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

    def save(self, path: str | Path, bits: int | None = None) -> None:
        """Write to an .npz file from which `ShrunkenFiles` reads planes.

        The means of a plane and its shares of valid voxels are compressed separately. Where they are quotients of whole
        numbers, as those of an integer type are, the dividends are stored, which a codec makes smaller: the division
        gives back the same bits.

        Parameters
        ----------
        path : path
        bits : int, optional
            Bits of the mantissa of a mean that are kept, the last one rounded; all of them without it. The last ones
            are noise, which no codec makes smaller.
        """
        from numcodecs import BitRound  # type: ignore[import-untyped]

        sizes = _block_sizes(self.full_shape, self.shrink)

        def encoded(plane: np.ndarray, valid: np.ndarray) -> tuple[tuple[bool, bool], Any, Any]:
            if bits is not None:
                plane = BitRound(bits).encode(np.clip(plane, -ROUNDABLE, ROUNDABLE)).view(np.float32)
            counts = _dividends(valid, sizes)
            sums = None if counts is None or bits is not None else _dividends(plane, np.maximum(counts, 1))
            whole = counts is not None, sums is not None
            shares, means = valid if counts is None else counts, plane if sums is None else sums
            # shares are near constant: sorted by bytes they are as small, and read in a third of the time
            return whole, b"" if (valid == 1).all() else codec().encode(shares), codec(noisy=True).encode(means)

        arrays = {f"plane_{name}": values for name, values in self.planes.items()}
        arrays |= {"shrink": np.array(self.shrink), "full_shape": np.array(self.full_shape)}
        if self.frame is not None:
            arrays["frame"] = np.array(self.frame)
        stored = run_tasks(lambda z: encoded(self.mean[z], self.valid[z]), range(len(self.mean)))
        arrays["whole"] = np.array([whole for whole, *_pieces in stored])
        write_pieces(path, arrays, [piece for _whole, *pieces in stored for piece in pieces])

    @classmethod
    def concatenate(cls, slabs: Sequence[Self]) -> Self:
        """Join slabs of one volume, given in order of Z."""
        if len(slabs) == 1:
            return slabs[0]
        check_same_grid([(s.shrink, s.full_shape) for s in slabs])
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
    """A shrunken volume in the files of its slabs that `ShrunkenVolume.save` wrote; planes are read on demand.

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
        # of each plane: its file, the number of its shares there, and whether these and its means are dividends
        self._stored: list[tuple[PieceFile, int, list[bool]]] = []
        for file in map(PieceFile, paths):
            head = file.head
            n_z, n_y, n_x = (int(n) for n in head["full_shape"])
            heads.append((int(head["shrink"]), (n_z, n_y, n_x)))
            frames.add(Frame(*head["frame"].tolist()) if "frame" in head else None)
            names = [name for name in head if name.startswith("plane_")]
            numbers.append({name.removeprefix("plane_"): head[name] for name in names})
            self._stored += [(file, 2 * z, head["whole"][z].tolist()) for z in range(n_z)]
        check_same_grid(heads)
        if len(frames) > 1:
            msg = f"slabs of one volume must have one frame, got {frames}"
            raise InputError(msg)
        (self.frame,) = frames
        self.shrink = heads[0][0]
        self.full_shape = (sum(shape[0] for _shrink, shape in heads), *heads[0][1][1:])
        height, width = (-(-n // self.shrink) for n in self.full_shape[1:])
        self.shape = (self.full_shape[0], height, width)
        self.planes = {name: np.concatenate([slab[name] for slab in numbers]) for name in numbers[0]}

    def part(self, z_start: int, z_stop: int) -> ShrunkenVolume:
        """Read planes `z_start` to `z_stop`."""
        shape = z_stop - z_start, *self.shape[1:]
        mean, valid = np.empty(shape, np.float32), np.empty(shape, np.float32)
        sizes = _block_sizes(self.full_shape, self.shrink)

        def read(i: int) -> None:
            file, first, (counted, added) = self._stored[z_start + i]
            shares, means = file.read(first, first + 2)
            counts = sizes
            if shares:
                codec().decode(shares, valid[i])
                if counted:
                    counts = np.maximum(valid[i], 1)
                    valid[i] /= sizes
            else:
                valid[i] = 1
            codec().decode(means, mean[i])
            if added:
                mean[i] /= counts

        run_tasks(read, range(shape[0]))
        planes = {name: values[z_start:z_stop] for name, values in self.planes.items()}
        return ShrunkenVolume(mean, valid, self.shrink, (shape[0], *self.full_shape[1:]), planes, self.frame)


Shrunken = ShrunkenVolume | ShrunkenFiles


def _block_sizes(shape: tuple[int, int, int], k: int) -> np.ndarray:
    """Return how many voxels each k x k block (y, x) of a plane has, as float32; at the border it may be fewer."""
    down, across = (np.minimum(n - np.arange(0, n, k), k) for n in shape[1:])
    return np.outer(down, across).astype(np.float32)


def _dividends(quotients: np.ndarray, divisors: np.ndarray) -> np.ndarray | None:
    """Return the whole numbers that divided by `divisors`, in float32, are `quotients` to the bit; None without such.

    A quotient that was computed in float64 and then rounded is the same: 53 bits are enough for that.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # of numbers that are no quotients
        numbers = np.rint(quotients * divisors.astype(np.float64)).astype(np.float32)
    same = np.array_equal((numbers / divisors).view(np.int32), quotients.view(np.int32))
    return numbers if same else None


def runs(z_start: int, z_stop: int, step: int = RUN_PLANES) -> Iterator[tuple[int, int]]:
    """Yield the first and the end plane of runs of `step` planes."""
    for start in range(z_start, z_stop, step):
        yield start, min(start + step, z_stop)


def check_same_grid(slabs: Sequence[tuple[int, tuple[int, int, int]]]) -> None:
    """Raise an InputError for slabs (shrink, full shape) that cannot belong to one volume."""
    seen = sorted({(shrink, *shape[1:]) for shrink, shape in slabs})
    if len(seen) != 1:
        msg = f"slabs of one volume must have one shrink factor and plane size, got {seen}"
        raise InputError(msg)
