"""The shrunken volume, in memory or in the files of its slabs, from which planes are read as they are needed."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from n4flow.accumulate import plane_numbers
from n4flow.errors import InputError
from n4flow.planes import run_tasks

if TYPE_CHECKING:
    from n4flow.accumulate import PlaneShrinker, TileShrinker

RUN_PLANES = 16  # read at a time by who works through a volume: some tens of megabytes
LEVEL = 5  # of LZ4 with shuffled bytes: a fifth of the time of zstd, for files that are a seventh larger


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
    frame : tuple of int, optional
        Where (Y, X) lie in the planes of the volume, see `n4flow.frame.Frame`; all of them without it.
    """

    mean: np.ndarray
    valid: np.ndarray
    shrink: int
    full_shape: tuple[int, int, int]
    planes: dict[str, np.ndarray]
    frame: tuple[int, ...] | None = None

    @classmethod
    def of(cls, shrinker: PlaneShrinker | TileShrinker, frame: tuple[int, ...] | None = None) -> Self:
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
        bits again: a sum has fewer bits than the digits of a quotient.
        """
        packed = run_tasks(lambda z: _pack(self.mean[z], self.valid[z], *self._blocks()), range(len(self.mean)))
        arrays = {f"plane_{name}": values for name, values in self.planes.items()}
        arrays |= {"shrink": np.array(self.shrink), "full_shape": np.array(self.full_shape)}
        if self.frame is not None:
            arrays["frame"] = np.array(self.frame)
        arrays["whole_numbers"] = np.array([whole for _mean, _valid, whole in packed], bool)
        pieces = [piece for mean, valid, _whole in packed for piece in (mean, valid)]
        arrays["ends"] = np.cumsum([0, *map(len, pieces)])
        with Path(path).open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
        header = {"descr": "|u1", "fortran_order": False, "shape": (int(arrays["ends"][-1]),)}
        with zipfile.ZipFile(path, "a") as archive, archive.open("packed.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            member.writelines(pieces)

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
        The slabs differ in shrink factor or plane size.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        heads: list[tuple[int, tuple[int, int, int]]] = []
        numbers: list[dict[str, np.ndarray]] = []
        frames: set[tuple[int, ...] | None] = set()
        self._stored: list[tuple[Path, int, int, int, bool]] = []
        for path in map(Path, paths):
            with np.load(path) as data:
                n_z, n_y, n_x = (int(n) for n in data["full_shape"])
                heads.append((int(data["shrink"]), (n_z, n_y, n_x)))
                frames.add(tuple(data["frame"].tolist()) if "frame" in data.files else None)
                names = [name for name in data.files if name.startswith("plane_")]
                numbers.append({name.removeprefix("plane_"): data[name] for name in names})
                ends = (data["ends"] + _offset(path, "packed.npy")).tolist()
                places = zip(ends[0::2], ends[1::2], ends[2::2], data["whole_numbers"].tolist(), strict=False)
                self._stored += [(path, *place) for place in places]
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
            path, start, middle, stop, whole = self._stored[z_start + i]
            with path.open("rb") as stream:
                stream.seek(start)
                means, shares = stream.read(middle - start), stream.read(stop - middle)
            _unpack(means, shares, whole, *self._blocks, mean[i], valid[i])

        run_tasks(unpack, range(shape[0]))
        planes = {name: values[z_start:z_stop] for name, values in self.planes.items()}
        return ShrunkenVolume(mean, valid, self.shrink, (shape[0], *self.full_shape[1:]), planes, self.frame)


def _offset(path: Path, member: str) -> int:
    """Return where in an .npz file the values of an uncompressed array begin."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        stream.seek(archive.getinfo(member).header_offset + 26)  # behind which a member tells the length of its name
        stream.seek(sum(struct.unpack("<HH", stream.read(4))), os.SEEK_CUR)
        np.lib.format.read_magic(stream)
        np.lib.format.read_array_header_1_0(stream)
        return stream.tell()


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


def _codec() -> Any:
    from numcodecs import Blosc  # type: ignore[import-untyped]

    return Blosc("lz4", LEVEL, Blosc.SHUFFLE)


def _pack(mean: np.ndarray, valid: np.ndarray, height: np.ndarray, width: np.ndarray) -> tuple[bytes, bytes, bool]:
    """Compress a plane; also return whether means are stored as sums."""
    from n4flow import shrunken_kernels

    mean, valid = np.ascontiguousarray(mean, np.float32), np.ascontiguousarray(valid, np.float32)
    sums = np.empty(mean.shape, np.uint32)
    whole = bool(shrunken_kernels.sums_of_means(mean, valid, height, width, sums))
    codec = _codec()
    return codec.encode(sums if whole else mean), codec.encode(valid), whole


def _unpack(
    means: bytes,
    shares: bytes,
    whole: bool,
    height: np.ndarray,
    width: np.ndarray,
    mean: np.ndarray,
    valid: np.ndarray,
) -> None:
    """Write what `_pack` was given into `mean` and `valid` (y, x)."""
    from n4flow import shrunken_kernels

    codec = _codec()
    codec.decode(shares, valid)
    if whole:
        steps = np.empty(mean.shape, np.uint32)
        codec.decode(means, steps)
        shrunken_kernels.means_of_sums(steps, valid, height, width, mean)
    else:
        codec.decode(means, mean)
