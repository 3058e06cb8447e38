"""Write a slab of a store: blocks in, whole shards of every pyramid level out.

Each chunk is cast, compressed and averaged into the next level while it is in cache, by one thread per
chunk. Only chunks that are not complete yet are held, so memory does not grow with Z. The bytes of the
files depend neither on the number of threads nor on how the planes are cut into blocks.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from n4flow.errors import InputError, N4flowError
from n4flow.formats.checksums import Checksums, chunk_checksum
from n4flow.formats.layout import StoreLayout, expected_shards, file_key, level_slab
from n4flow.formats.pyramid import Index, Piece, averaged, picked, triple
from n4flow.formats.shards import Encoder, GrowingFile
from n4flow.planes import available_threads, scratch, workers

TOGETHER = 4  # most chunks that are one task of a thread
FEWEST_TASKS = 3  # that wait for each thread, so that none is idle

Through = Callable[..., Iterator[np.ndarray]]  # (part of a block, at=(z, y, x)) -> runs of its planes, in order


@dataclass
class _Chunk:
    """A chunk while its voxels arrive; `missing` voxels of those inside the array are still to come."""

    level: int
    index: Index
    missing: int
    values: np.ndarray | None = None


@dataclass
class _Done:
    """What a thread made of a chunk: the bytes for its file, if it is complete, and pieces of deeper levels."""

    chunk: _Chunk
    payload: np.ndarray | None
    pieces: list[Piece] = field(default_factory=list)
    saturated: int = 0
    undefined: int = 0
    checksum: int = 0


class SlabWriter:
    """Writer of the planes `z_start` to `z_stop` of level 0, and of what they become in every deeper level.

    Parameters
    ----------
    path : path
        The store. Only files of this slab are written: several writers may work on one store side by side.
    layout : StoreLayout
    z_start, z_stop : int
        A whole number of slabs of the layout.
    threads : int, optional
        Threads that cast and compress; all cores that this process may use if not given.
    pool : ThreadPoolExecutor, optional
        So many threads that other writers use, too; the writer's own if not given. See `n4flow.planes.workers`.

    Attributes
    ----------
    saturated, undefined : int
        Voxels of level 0 cut at the limits of an integer dtype, and NaN voxels written as 0 in one.
    checksums : Checksums
        Of every chunk written, as `n4flow.formats.checksums` defines them.

    Notes
    -----
    Deeper levels of an image are means over blocks of the level before, of finite voxels, of what there is where a
    block reaches over the edge; they are made from the cast voxels of level 0 and rounded once, when written. A
    voxel of a deeper level of labels is the voxel `f * i + f // 2` of level 0 (the last one at the edge), `f` being
    the factor: the voxel nearest to the centre that the translation states, the later one of two equally near.
    Every chunk is written, also where all its voxels are 0: a file that is missing is always a fault.
    Memory is least when blocks are whole multiples of `layout.levels[0].chunks[0]` planes.
    """

    def __init__(
        self,
        path: str | Path,
        layout: StoreLayout,
        z_start: int,
        z_stop: int,
        threads: int | None = None,
        pool: ThreadPoolExecutor | None = None,
    ) -> None:
        self.saturated = 0
        self.undefined = 0
        self.checksums: Checksums = {level.path: {} for level in layout.levels}
        self._path, self._layout = Path(path), layout
        self._planes = [level_slab(layout, level, z_start, z_stop) for level in range(len(layout.levels))]
        self._threads = threads or available_threads()
        self._dtype = np.dtype(layout.dtype).newbyteorder("<")
        limits = np.iinfo(self._dtype) if self._dtype.kind in "iu" else None
        self._limits = (int(limits.min), int(limits.max)) if limits else (0, 0)
        self._encoder = Encoder()
        self._constant: dict[tuple[Any, ...], tuple[np.ndarray, int]] = {}
        self._spare: deque[np.ndarray] = deque()  # of chunks of deeper levels that are done
        self._open: dict[tuple[int, Index], _Chunk] = {}
        self._files: dict[str, GrowingFile] = {}
        self._awaited_files = len(expected_shards(layout, z_start, z_stop))
        self._seen: set[Index] = set()
        self._pool, self._own_pool = pool or workers(self._threads), pool is None
        self._waiting: deque[Future[list[_Done]]] = deque()  # in the order of submission
        self._following: deque[Callable[[], _Done]] = deque()  # chunks of deeper levels that are complete

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def write(
        self, block: Any, z: int, y: int = 0, x: int = 0, through: Through | None = None, *, wait: bool = True
    ) -> None:
        """Write a (z, y, x) block whose first voxel lies at (z, y, x) of level 0.

        Each voxel of the slab is written exactly once; the order is free, and plane by plane or tile by tile are
        cheap in memory.

        Parameters
        ----------
        block : (z, y, x) array
            Or what has its shape and dtype and gives parts of it: they are taken by the threads that compress them.
        z, y, x : int
        through : function, optional
            Called with a part of the block and, as `at`, the place (z, y, x) of its first voxel; yields what is written
            in its stead, a run of planes at a time. The thread that compresses those voxels calls it, while they are
            in its cache.
        wait : bool
            Return when nothing is taken from the block any more. Else threads go on with it, and `settle` waits for
            them; a fault may be raised by a later call.

        Raises
        ------
        InputError
            The block reaches out of the slab.
        N4flowError
            Voxels were written before.
        DiskFullError
            Space, inodes or a quota are used up.
        """
        stop = tuple(a + n for a, n in zip((z, y, x), block.shape, strict=True))
        low, high = self._planes[0]
        shape = self._layout.shape
        if z < low or min(y, x) < 0 or stop[0] > high or stop[1] > shape[1] or stop[2] > shape[2]:
            msg = (
                f"block of shape {block.shape} at {(z, y, x)} reaches out of planes {low} to {high} of a volume of "
                f"shape {shape}; write inside the slab"
            )
            raise InputError(msg)
        try:
            if any(level == 0 for level, _index in self._open):
                self.settle()  # threads may be at work on chunks that this block goes on with
            together = TOGETHER
            if wait:  # share out what there is
                chunks = math.prod(block.shape) // math.prod(self._layout.levels[0].chunks)
                together = max(1, min(TOGETHER, chunks // (FEWEST_TASKS * self._threads)))
            self._run(self._parts(0, (z, y, x), block, through), together)
            if wait:
                self.settle()
        except BaseException:
            self.abandon()
            raise

    def settle(self) -> None:
        """Wait until everything that was written is in its files, but for what is not complete yet."""
        while self._waiting or self._following:
            self._take_one()
            self._run(iter(()), 1)

    def close(self) -> None:
        """Check that every shard of the slab is complete.

        Raises
        ------
        N4flowError
            Some voxels were never written; nothing unfinished stays on disk.
        """
        try:
            self.settle()
        except BaseException:
            self.abandon()
            raise
        if self._open or self._awaited_files:
            low, high = self._planes[0]
            self.abandon()
            msg = f"not every voxel of planes {low} to {high} was written to {self._path}; write the whole slab"
            raise N4flowError(msg)
        if self._own_pool:
            self._pool.shutdown()

    def abandon(self) -> None:
        """Drop what is not complete; no unfinished file stays behind."""
        for task in self._waiting:
            task.cancel()
        wait_for(self._waiting)
        self._waiting.clear()
        self._following.clear()
        if self._own_pool:
            self._pool.shutdown()
        for file in self._files.values():
            file.abandon()
        self._files.clear()
        self._open.clear()

    def _run(self, parts: Iterator[Callable[[], _Done]], together: int) -> None:
        """Hand out `parts`, so many `together`, and what follows from them; results are taken in that order."""
        while True:
            # Handing out costs as much as a tenth of a chunk. The window bounds how many wait in memory.
            following = (self._following.popleft() for _each in range(len(self._following)))
            tasks = list(islice(chain(following, parts), together))
            if not tasks:
                return
            self._waiting.append(self._pool.submit(_done, tasks))
            if len(self._waiting) >= FEWEST_TASKS * self._threads:
                self._take_one()

    def _take_one(self) -> None:
        """Take the results of the tasks that were handed out first."""
        for done in self._waiting.popleft().result() if self._waiting else ():
            for piece in self._take(done):
                self._following.extend(self._parts(piece.level, piece.start, piece.values))

    def _take(self, done: _Done) -> list[Piece]:
        """Write the bytes of a complete chunk to its file; return the pieces of deeper levels."""
        if done.payload is not None:
            level, index = self._layout.levels[done.chunk.level], done.chunk.index
            self.checksums[level.path]["/".join(map(str, index))] = done.checksum
            # Chunks per file along each axis: 1 without shards.
            grid = triple(f // c for f, c in zip(level.files, level.chunks, strict=True))
            key = file_key(self._layout, done.chunk.level, [i // g for i, g in zip(index, grid, strict=True)])
            file = self._files.get(key)
            if file is None:
                file = GrowingFile(self._path / key, grid if level.shards else None, self._awaited(level, index, grid))
                self._files[key] = file
            if file.append(triple(i % g for i, g in zip(index, grid, strict=True)), done.payload):
                del self._files[key]
                self._awaited_files -= 1
            self._encoder.release(done.payload)
        self.saturated += done.saturated
        self.undefined += done.undefined
        return done.pieces

    def _awaited(self, level: Any, index: Index, grid: Index) -> int:
        """Return how many chunks of the file of chunk `index` lie inside the array."""
        count = 1
        for i, g, n, c in zip(index, grid, level.shape, level.chunks, strict=True):
            count *= min(g, -(-n // c) - i // g * g)
        return count

    def _parts(
        self, level: int, start: Index, values: Any, through: Through | None = None
    ) -> Iterator[Callable[[], _Done]]:
        """Yield one task per chunk of `level` that `values`, whose first voxel lies at `start`, takes part in."""
        layout = self._layout.levels[level]
        first = [a // c for a, c in zip(start, layout.chunks, strict=True)]
        last = [-(-(a + n) // c) for a, n, c in zip(start, values.shape, layout.chunks, strict=True)]
        for offset in np.ndindex(*(b - a for a, b in zip(first, last, strict=True))):
            index = triple(a + o for a, o in zip(first, offset, strict=True))
            origin = [i * c for i, c in zip(index, layout.chunks, strict=True)]
            inside = [min(c, n - o) for c, n, o in zip(layout.chunks, layout.shape, origin, strict=True)]
            low = [max(a, o) for a, o in zip(start, origin, strict=True)]
            high = [min(a + n, o + w) for a, n, o, w in zip(start, values.shape, origin, inside, strict=True)]
            source = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
            target = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True))
            chunk = self._open.get((level, index))
            if chunk is None:
                if level == 0 and index in self._seen:
                    msg = f"voxels of chunk {index} were written twice; write each block of a slab once"
                    raise N4flowError(msg)
                chunk = self._open[level, index] = _Chunk(level, index, math.prod(inside))
            chunk.missing -= math.prod(b - a for a, b in zip(low, high, strict=True))
            if chunk.missing < 0:
                msg = f"voxels of chunk {index} were written twice; write each block of a slab once"
                raise N4flowError(msg)
            complete = chunk.missing == 0
            if complete:
                del self._open[level, index]
                if level == 0:
                    self._seen.add(index)
            if level > 0:
                # Pieces of several chunks meet in one, so they are put in place here and not by the threads.
                if chunk.values is None:
                    chunk.values = self._room(layout.chunks, values.dtype, inside)
                chunk.values[target] = values[source]
                if complete:
                    yield partial(self._finish, chunk, inside)
            else:
                fill = partial(self._fill, chunk, values, source, target, inside, complete=complete)
                yield fill if through is None else partial(fill, through=partial(through, at=triple(low)))

    def _room(self, shape: Index, dtype: np.dtype, inside: list[int]) -> np.ndarray:
        """Return room for a chunk of a deeper level, that of one before where there is such; 0 where nothing comes."""
        values = self._spare.pop() if self._spare else None
        if values is None or values.shape != shape:
            values = np.empty(shape, dtype)
        if tuple(inside) != shape:
            values[...] = 0
        return values

    def _fill(
        self,
        chunk: _Chunk,
        block: Any,
        source: tuple[slice, ...],
        target: tuple[slice, ...],
        inside: list[int],
        *,
        complete: bool,
        through: Callable[[np.ndarray], Iterator[np.ndarray]] | None = None,
    ) -> _Done:
        """Cast voxels into a chunk of level 0. One `write` has one part per chunk, so no two threads share one."""
        values = np.asarray(block[source])
        if chunk.values is None:
            shape = self._layout.levels[0].chunks
            # a chunk that is filled here at once lies in a buffer of this thread
            covered = values.shape == shape
            chunk.values = scratch("chunk", shape, self._dtype) if covered else np.zeros(shape, self._dtype)
        out, done, planes = chunk.values[target], _Done(chunk, None), 0
        for part in (values,) if through is None else through(values):
            saturated, undefined = self._cast(part, out[planes : planes + len(part)])
            planes += len(part)
            done.saturated += saturated
            done.undefined += undefined
        if complete:
            done = replace(self._finish(chunk, inside), saturated=done.saturated, undefined=done.undefined)
        return done

    def _cast(self, values: np.ndarray, out: np.ndarray) -> tuple[int, int]:
        """Write values in the type of the store; return how many were saturated and how many undefined."""
        if not values.dtype.isnative or values.dtype == np.float16:
            values = values.astype(np.float32 if values.dtype == np.float16 else values.dtype.newbyteorder("="))
        if self._dtype.kind == "f" or np.can_cast(values.dtype, self._dtype):
            with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite
                out[...] = values
            return 0, 0
        from n4flow.formats.kernels import cast_to_integers

        # float32 holds the limits of short integers exactly
        exact = np.float32 if values.dtype == np.float32 and self._dtype.itemsize <= 2 else np.float64
        found = cast_to_integers(values, out, exact(self._limits[0]), exact(self._limits[1]))
        return int(found[0]), int(found[1])

    def _finish(self, chunk: _Chunk, inside: list[int]) -> _Done:
        """Compress a complete chunk and make what it gives to deeper levels."""
        values = chunk.values
        assert values is not None
        if values.dtype != self._dtype:
            cast = (np.rint(values) if self._dtype.kind in "iu" else values).astype(self._dtype)
        else:
            cast = values
        constant = _one_value(cast)
        if chunk.level == 0 and self._layout.kind == "labels":
            pieces = picked(self._layout, chunk.index, inside, values, constant=constant is not None)
        elif chunk.level + 1 < len(self._layout.levels) and self._layout.kind == "image":
            pieces = [averaged(self._layout, chunk.level, chunk.index, inside, values)]
        else:
            pieces = []
        payload, checksum = self._encoded(cast, inside, constant)
        if chunk.level > 0:
            self._spare.append(values)
        chunk.values = None
        return _Done(chunk, payload, pieces, checksum=checksum)

    def _encoded(self, values: np.ndarray, inside: list[int], constant: bytes | None) -> tuple[np.ndarray, int]:
        """Return the bytes of a chunk and its checksum; those of chunks of one value, as masks have many, are kept."""
        if constant is None:
            return self._encoder.encode(values), chunk_checksum(values, inside)
        name = (constant, values.shape, *inside)
        if name not in self._constant:
            payload = self._encoder.encode(values).copy()
            payload.flags.writeable = False  # it is not to be released
            self._constant[name] = payload, chunk_checksum(values, inside)
        return self._constant[name]


def _done(tasks: list[Callable[[], _Done]]) -> list[_Done]:
    return [task() for task in tasks]


def _one_value(values: np.ndarray) -> bytes | None:
    """Return the bytes of the one value that all voxels of a chunk have, or None."""
    bits = values.view(f"u{values.itemsize}")
    if bits.flat[0] != bits.flat[-1] or bits.min() != bits.max():
        return None
    return bytes(bits.flat[0].tobytes())
