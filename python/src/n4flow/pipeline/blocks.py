"""Blocks: how a pass over full resolution cuts a volume, reads it, and hands it on corrected."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from n4flow.compute.arrays import within_float32
from n4flow.compute.progress import advance
from n4flow.compute.threads import run_tasks, scratch
from n4flow.corrections.base import Where
from n4flow.corrections.recipe import Recipe
from n4flow.io.volume import Volume

BLOCK_BYTES = 1 << 25  # Size of a block in the input's type: chunks for every core, and small enough for a laptop.
READ_BYTES = 1 << 28  # A block may be as large as this where it then decodes each chunk only once.


@dataclass(frozen=True)
class Blocks:
    """How a pass reads a volume: in blocks of whole rows, that begin where chunks do.

    Parameters
    ----------
    depth, height : int
        Planes and rows of a block.
    halo : int
        Rows around a block that are read with it.
    lead : int
        Rows of the first block that lie before the volume.
    """

    depth: int
    height: int
    halo: int = 0
    lead: int = 0

    @classmethod
    def of(cls, volume: Volume, depth: int = 1, height: int = 1, halo: int = 0) -> Blocks:
        """Choose blocks of about `BLOCK_BYTES` for a volume.

        Parameters
        ----------
        volume : Volume
        depth, height : int
            Planes and rows that should lie in one block: of the chunks that are written. Chunks that are read and
            chunks that are written both lie in one block each, unless that is more than `READ_BYTES`.
        halo : int
            Rows that are read around each block; blocks are then high enough for few rows to be read twice.
        """
        planes, rows, width = volume.shape
        row = width * volume.dtype.itemsize
        high = min(rows, math.lcm(volume.chunks[1], height))
        deep = min(planes, math.lcm(volume.chunks[0], depth))
        for wish in (
            (deep, high),
            (max(volume.chunks[0], depth), high),
            (max(volume.chunks[0], depth), volume.chunks[1]),
        ):
            deep, high = min(planes, wish[0]), min(rows, wish[1])
            if deep * high * row <= READ_BYTES:
                break
        else:
            deep = max(1, READ_BYTES // (high * row))
        more = max(BLOCK_BYTES // (deep * high * row), 4 * halo // high, 1)
        high = min(rows, more * high)
        return cls(deep, high, halo, volume.reader.lead % high if high % volume.chunks[1] == 0 else 0)

    def cuts(self, volume: Volume, z_start: int, z_stop: int) -> Iterator[tuple[slice, slice]]:
        """Yield planes and rows of each block between two planes, rows first."""
        planes = [z_start, *range((z_start // self.depth + 1) * self.depth, z_stop, self.depth), z_stop]
        rows = [0, *range(self.height - self.lead, volume.shape[1], self.height), volume.shape[1]]
        for start, stop in pairwise(planes):
            for y, y_stop in pairwise(rows):
                yield slice(start, stop), slice(y, y_stop)

    def amplification(self, volume: Volume, slabs: Sequence[tuple[int, int]]) -> float:
        """Return how many voxels are decoded for each of the volume in a pass over slabs.

        Parameters
        ----------
        volume : Volume
        slabs : sequence of (int, int)
            Planes, which cover the volume once.
        """
        (planes, rows), (depth, height), lead = volume.shape[:2], volume.chunks[:2], volume.reader.lead
        decoded = sum(
            _whole(z, depth, planes) * _whole(self.around(y, rows), height, rows, lead)
            for slab in slabs
            for z, y in self.cuts(volume, *slab)
        )
        return decoded / (planes * rows)

    def around(self, rows: slice, n_rows: int) -> slice:
        """Return rows of a block and its halo."""
        return slice(max(0, rows.start - self.halo), min(n_rows, rows.stop + self.halo))

    def nbytes(self, volume: Volume) -> int:
        """Return the bytes of a block with its halo."""
        rows = min(self.height + 2 * self.halo, volume.shape[1])
        return self.depth * rows * volume.shape[2] * volume.dtype.itemsize


def _whole(part: slice, chunk: int, size: int, lead: int = 0) -> int:
    """Return how much of an axis the chunks have that a part of it touches; the first chunk begins `lead` before it."""
    first, last = (part.start + lead) // chunk * chunk - lead, -(-(part.stop + lead) // chunk) * chunk - lead
    return min(last, size) - max(first, 0)


def stream(
    volume: Volume, z_start: int, z_stop: int, blocks: Blocks | None = None
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (first plane, first row, block) of every block between two planes, reading one block ahead.

    A block is good until the next one is asked for: two buffers are filled in turn. Its first row is that of its halo.
    """
    blocks = blocks or Blocks.of(volume)
    inner = list(blocks.cuts(volume, z_start, z_stop))
    cuts = [(z, blocks.around(y, volume.shape[1])) for z, y in inner]
    most = max((z.stop - z.start) * (y.stop - y.start) for z, y in cuts) * volume.shape[2]
    buffers = [np.empty(most, volume.dtype) for _each in range(min(2, len(cuts)))]

    def read(number: int) -> np.ndarray:
        z, y = cuts[number]
        shape = z.stop - z.start, y.stop - y.start, volume.shape[2]
        return volume.read(z, y, out=buffers[number % 2][: math.prod(shape)].reshape(shape))

    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = reader.submit(read, 0)
        for number, (z, y) in enumerate(cuts):
            values = ahead.result()
            if number + 1 < len(cuts):
                ahead = reader.submit(read, number + 1)
            yield z.start, y.start, values
            advance(_nbytes(volume, *inner[number]))


class Part:
    """A box of a volume that is read piece by piece, by the threads that work on the pieces.

    Parameters
    ----------
    volume : Volume
    z, y : slice
        Planes and rows, all columns.
    """

    def __init__(self, volume: Volume, z: slice, y: slice) -> None:
        self.volume, self.z, self.y = volume, z, y
        self.shape, self.dtype = (z.stop - z.start, y.stop - y.start, volume.shape[2]), volume.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, piece: tuple[slice, slice, slice]) -> np.ndarray:
        """Return a piece in a buffer of this thread; slices have whole bounds."""
        z, y, x = piece
        out = scratch("piece", tuple(s.stop - s.start for s in piece), self.dtype)
        first_z, first_y = self.z.start, self.y.start
        box = slice(first_z + z.start, first_z + z.stop), slice(first_y + y.start, first_y + y.stop), x
        return self.volume.read(*box, out=out)


def parts(volume: Volume, z_start: int, z_stop: int, chunk: tuple[int, int, int]) -> Iterator[tuple[int, int, Part]]:
    """Yield (first plane, first row, part) between two planes, to be cut into chunks of a result; see `in_parts`."""
    blocks = Blocks.of(volume, *chunk[:2])
    for z, y in blocks.cuts(volume, z_start, z_stop):
        yield z.start, y.start, Part(volume, z, y)
        advance(_nbytes(volume, z, y))


def _nbytes(volume: Volume, z: slice, y: slice) -> int:
    """Return the bytes of whole rows of some planes."""
    return (z.stop - z.start) * (y.stop - y.start) * volume.shape[2] * volume.dtype.itemsize


def in_parts(volume: Volume, z_start: int, chunk: tuple[int, int, int]) -> bool:
    """Return whether chunks of a result are whole chunks of the volume, so that threads may read what they work on."""
    sizes = zip(chunk, volume.chunks, volume.shape, strict=True)
    aligned = all(c % own == 0 or c >= size for c, own, size in sizes)
    return volume.reader.by_chunks and aligned and z_start % volume.chunks[0] == 0


def prepared(
    volume: Volume, z_start: int, z_stop: int, recipe: Recipe, depth: int = 1, height: int = 1
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield blocks as `stream` does, after corrections that look at neighbours, in the input's type without any."""
    blocks = Blocks.of(volume, depth, height, recipe.margin[0])
    if not recipe:
        yield from stream(volume, z_start, z_stop, blocks)
        return
    for (planes, rows), (_z, first, block) in zip(
        blocks.cuts(volume, z_start, z_stop), stream(volume, z_start, z_stop, blocks), strict=True
    ):
        inner = slice(rows.start - first, rows.stop - first)
        values = np.empty((len(block), inner.stop - inner.start, block.shape[2]), np.float32)

        def work(i: int, values=values, block=block, inner=inner, z=planes.start, first=first) -> None:  # type: ignore[no-untyped-def]
            with within_float32():
                plane = block[i : i + 1].astype(np.float32)
            values[i] = recipe.apply_block(plane, Where(z + i, first, 0, volume.shape))[0, inner]

        run_tasks(work, range(len(block)))
        yield planes.start, rows.start, values
