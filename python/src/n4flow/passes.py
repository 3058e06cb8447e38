"""The streaming passes over full resolution: read runs of planes, keep statistics or a shrunken copy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from n4flow.accumulate import PlaneCounter, PlaneShrinker, class_rows
from n4flow.bias_correction import BiasCorrection
from n4flow.correction import Where
from n4flow.distributions import PlaneHistograms
from n4flow.frame import Frame, framed
from n4flow.mask import expand_mask
from n4flow.packed import PackedMask
from n4flow.pieces import PieceFile, write_pieces
from n4flow.planes import available_threads, crew, lent_crew, run_tasks, scratch
from n4flow.recipe import Recipe
from n4flow.shrunken import ShrunkenVolume
from n4flow.statistics import LEAST_COVER
from n4flow.volume import Volume

BLOCK_BYTES = 1 << 25  # of the input's own type: enough chunks for every core, small enough for a laptop
TASKS_OF_THREAD = 4  # that a block is cut into, so that a slow one delays little
READ_BYTES = 1 << 28  # of the input's own type: what may be read at once so that chunks are decoded only once


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
        The user's mask, which is then used as it is.
    z_start : int
        Plane of the volume that `small` begins with.
    frame : Frame, optional
        What the shrunken grid covers of the planes; all of them without it. Rows and columns are counted from its
        corner, but for those of `given`.
    """

    small: np.ndarray | PackedMask
    agarose_small: np.ndarray
    shrink: int
    given: Volume | None = None
    z_start: int = 0
    frame: Frame | None = None

    def save(self, path: str | Path) -> None:
        """Write both masks, every plane apart; the user's own mask stays where it is."""
        packed = self.small if isinstance(self.small, PackedMask) else PackedMask.of(self.small)
        arrays = {"agarose": self.agarose_small, "shrink": np.array(self.shrink)}
        if self.frame is not None:
            arrays["frame"] = np.array(self.frame)
        write_pieces(path, arrays, packed.planes)

    @classmethod
    def load(cls, path: str | Path, given: Volume | None = None, planes: tuple[int, int] | None = None) -> TissueSource:
        """Read what `save` wrote: all planes, which stay packed, or those from one to another.

        `given` is the user's mask, if there is one.
        """
        file = PieceFile(path)
        stored, (start, stop) = file.head, (0, len(file)) if planes is None else planes
        packed = PackedMask(file.read(start, stop), stored["agarose"].shape)
        small = packed if planes is None else packed[:]
        frame = Frame(*stored["frame"].tolist()) if "frame" in stored else None
        return cls(small, stored["agarose"], int(stored["shrink"]), given, start, frame)

    def part(self, start: int, stop: int) -> TissueSource:
        """Return the masks of some planes, packed where they are."""
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
        small = self.small_planes(z.start, z.stop)
        out = scratch("mask", (len(small), y.stop - y.start, x.stop - x.start), bool)
        expanded: np.ndarray = expand_mask(small, self.shrink, slice(0, len(small)), y, x, out)
        return expanded

    @cached_property
    def _given(self) -> Volume | None:
        """The user's mask in the frame."""
        return None if self.given is None else framed(self.given, self.frame)

    @cached_property
    def _around(self) -> np.ndarray:
        """The classes (y, x) on the shrunken grid where there is no tissue."""
        return class_rows(None, self.agarose_small, self.agarose_small.shape)

    def classes(self, z: slice, y: slice, inside: np.ndarray | None) -> tuple[np.ndarray, int, int]:
        """Return classes, block size and first row of a box of whole rows, see `PlaneCounter.add`.

        `inside` is that box (z, y, X) of the user's mask, where there is one.
        """
        first, last = y.start // self.shrink, -(-y.stop // self.shrink)
        around = self._around[first:last]
        below = y.start - first * self.shrink
        if inside is None:
            return around * ~self.small_planes(z.start, z.stop)[:, first:last], self.shrink, below  # tissue is class 0
        from n4flow import kernels

        classes = scratch("given classes", inside.shape, np.uint8)
        kernels.expand_rows(np.broadcast_to(around, (len(inside), *around.shape)), self.shrink, below, 0, classes)
        classes[inside] = 0
        return classes, 1, 0


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

    def around(self, rows: slice, n_rows: int) -> slice:
        """Return rows of a block and its halo."""
        return slice(max(0, rows.start - self.halo), min(n_rows, rows.stop + self.halo))

    def nbytes(self, volume: Volume) -> int:
        """Return the bytes of a block with its halo."""
        rows = min(self.height + 2 * self.halo, volume.shape[1])
        return self.depth * rows * volume.shape[2] * volume.dtype.itemsize


def stream(
    volume: Volume, z_start: int, z_stop: int, blocks: Blocks | None = None
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (first plane, first row, block) of every block between two planes, reading one block ahead.

    A block is good until the next one is asked for: two buffers are filled in turn. Its first row is that of its halo.
    """
    blocks = blocks or Blocks.of(volume)
    cuts = [(z, blocks.around(y, volume.shape[1])) for z, y in blocks.cuts(volume, z_start, z_stop)]
    most = max((z.stop - z.start) * (y.stop - y.start) for z, y in cuts) * volume.shape[2]
    buffers = [np.empty(most, volume.dtype) for _each in range(min(2, len(cuts)))]

    def read(number: int) -> np.ndarray:
        z, y = cuts[number]
        shape = z.stop - z.start, y.stop - y.start, volume.shape[2]
        return volume.read(z, y, out=buffers[number % 2][: math.prod(shape)].reshape(shape))

    with ThreadPoolExecutor(max_workers=1, initializer=lent_crew()) as reader:
        ahead = reader.submit(read, 0)
        for number, (z, y) in enumerate(cuts):
            values = ahead.result()
            if number + 1 < len(cuts):
                ahead = reader.submit(read, number + 1)
            yield z.start, y.start, values


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
    cuts = list(blocks.cuts(volume, z_start, z_stop))
    whole = slice(0, volume.shape[2])
    for number, (z, y) in enumerate(cuts):
        for ahead in cuts[number + 1 : number + 2]:
            volume.reader.expect(*ahead, whole)
        yield z.start, y.start, Part(volume, z, y)


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
            plane = block[i : i + 1].astype(np.float32)
            values[i] = recipe.apply_block(plane, Where(z + i, first, 0, volume.shape))[0, inner]

        run_tasks(work, range(len(block)))
        yield planes.start, rows.start, values


def shrink_pass(
    volume: Volume,
    z_start: int,
    z_stop: int,
    shrink: int,
    *,
    recipe: Recipe,
    mask: Volume | None = None,
    frame: Frame | None = None,
) -> tuple[ShrunkenVolume, np.ndarray | None]:
    """Shrink planes `z_start` to `z_stop` in plane.

    Parameters
    ----------
    volume : Volume
    z_start, z_stop : int
    shrink : int
        In-plane block size.
    recipe : Recipe
        What is applied before (a background); empty for none.
    mask : Volume, optional
        A user's tissue mask.
    frame : Frame, optional
        What is shrunken of the planes; all of them without it.

    Returns
    -------
    shrunken : ShrunkenVolume
    tissue : (z, y, x) bool array or None
        Blocks of which the mask covers at least half.
    """
    frame = frame or Frame.whole(volume.shape)
    volume, mask = framed(volume, frame), None if mask is None else framed(mask, frame)
    shape = (z_stop - z_start, *volume.shape[1:])
    shrinker = PlaneShrinker(shape, shrink, np.dtype(np.float32) if recipe else volume.dtype)
    given = PlaneShrinker(shape, shrink, np.dtype(np.uint8)) if mask is not None else None
    with crew():
        for z, y, block in prepared(volume, z_start, z_stop, recipe):
            shrinker.add(block, z - z_start, y)
            if mask is not None and given is not None:
                inside = mask.read(slice(z, z + len(block)), slice(y, y + block.shape[1])) > 0
                given.add(inside.view(np.uint8), z - z_start, y)
    return ShrunkenVolume.of(shrinker, frame), None if given is None else given.valid >= LEAST_COVER


def statistics_pass(
    volume: Volume, z_start: int, z_stop: int, *, recipe: Recipe, tissue: TissueSource
) -> PlaneHistograms:
    """Return the histograms of planes `z_start` to `z_stop` after `recipe`: tissue, agarose, all valid voxels."""
    frame, shape = tissue.frame or Frame.whole(volume.shape), volume.shape
    volume = framed(volume, frame)
    around, pointwise = recipe.margin_first()
    first = pointwise[0] if len(pointwise) == 1 else None
    bias, corner = (first, Frame.whole(shape)) if isinstance(first, BiasCorrection) else (None, frame)
    if bias is not None and bias.frame is not None:
        bias, corner = (bias, bias.frame) if bias.frame.holds(frame) else (None, frame)
    counter = PlaneCounter(z_stop - z_start)
    with crew():
        for z, y, block in prepared(volume, z_start, z_stop, around):
            rows, given = slice(y, y + block.shape[1]), None
            if tissue.given is not None:
                given = tissue.block(slice(z, z + len(block)), rows, slice(0, volume.shape[2]))

            def count(planes: tuple[int, int], block=block, z=z, rows=rows, given=given) -> None:  # type: ignore[no-untyped-def]
                start, last = planes
                while start < last:
                    stop, field = last, None
                    if bias is not None:
                        y, x = frame.y_start - corner.y_start + rows.start, frame.x_start - corner.x_start
                        stop, field = bias.run(z + start, z + last, Where(z + start, y, x, shape), block.shape[1:])
                        stop -= z
                    elif len(pointwise):
                        stop = start + 1  # the copy stays in cache
                    values, inside = block[start:stop], None if given is None else given[start:stop]
                    if bias is None and len(pointwise):
                        values = scratch("corrected", values.shape, np.float32)
                        np.copyto(values, block[start:stop], casting="unsafe")
                        where = Where(z + start, frame.y_start + rows.start, frame.x_start, shape, inside)
                        values = pointwise.apply_block(values, where)
                    found = tissue.classes(slice(z + start, z + stop), rows, inside)
                    counter.add(z + start - z_start, values, *found, field)
                    start = stop

            # what the interpreter does is the same for several planes as for one
            step = max(1, len(block) // (TASKS_OF_THREAD * available_threads()))
            run_tasks(count, [(i, min(i + step, len(block))) for i in range(0, len(block), step)])
        lists = run_tasks(counter.lists, range(z_stop - z_start))
    return PlaneHistograms.of_planes(lists, z_start)
