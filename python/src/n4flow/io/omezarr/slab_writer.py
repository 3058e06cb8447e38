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
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from n4flow.compute.threads import available_threads, thread_pool
from n4flow.errors import InputError, N4flowError
from n4flow.io.omezarr.checksums import Checksums
from n4flow.io.omezarr.chunk_encoder import Chunk, ChunkMaker, Done
from n4flow.io.omezarr.layout import StoreLayout, Triple, expected_shards, file_key, level_slab, triple
from n4flow.io.omezarr.pyramid import Piece
from n4flow.io.omezarr.shards import GrowingFile

TOGETHER = 4  # Chunks that are one task of a thread, at most.
FEWEST_TASKS = 3  # Tasks that wait for each thread, at least, so that none is idle.

Through = Callable[..., Iterator[np.ndarray]]  # (part of a block, at=(z, y, x)) -> its planes, a few at a time


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
        Threads that other writers use, too; by default a `thread_pool` of its own.

    Attributes
    ----------
    saturated, undefined : int
        Voxels of level 0 cut at the limits of an integer dtype, and NaN voxels written as 0 in one.
    checksums : Checksums
        Of every chunk written, as `n4flow.io.omezarr.checksums` defines them.

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
        self._maker = ChunkMaker(layout)
        self._open: dict[tuple[int, Triple], Chunk] = {}
        self._files: dict[str, GrowingFile] = {}
        self._awaited_files = len(expected_shards(layout, z_start, z_stop))
        self._seen: set[Triple] = set()
        self._pool, self._own_pool = pool or thread_pool(self._threads), pool is None
        self._waiting: deque[Future[list[Done]]] = deque()  # In the order of submission.
        self._following: deque[Callable[[], Done]] = deque()  # Chunks of deeper levels that are complete.

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
            Or an object with shape and dtype whose parts are made when indexed, by the threads that compress them.
        z, y, x : int
        through : function, optional
            Called with a part of the block and, as `at`, the place (z, y, x) of its first voxel; yields what is written
            in its stead, a run of planes at a time. The thread that compresses those voxels calls it, while they are
            in its cache.
        wait : bool
            Return only when the block is not needed any more. Otherwise threads may still read from it, `settle` waits
            for them, and an error may be raised by a later call.

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
                self.settle()  # Threads may still work on chunks that this block continues.
            together = TOGETHER
            if wait:  # Few chunks are shared out evenly.
                chunks = math.prod(block.shape) // math.prod(self._layout.levels[0].chunks)
                together = max(1, min(TOGETHER, chunks // (FEWEST_TASKS * self._threads)))
            self._run(self._parts(0, (z, y, x), block, through), together)
            if wait:
                self.settle()
        except BaseException:
            self.abandon()
            raise

    def settle(self) -> None:
        """Wait until every complete chunk is in its file."""
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

    def _run(self, parts: Iterator[Callable[[], Done]], together: int) -> None:
        """Submit `parts`, up to `together` in one task, and what follows from them; results are taken in that order."""
        while True:
            # To submit a task costs as much as a tenth of a chunk. The window bounds how many tasks wait in memory.
            following = (self._following.popleft() for _each in range(len(self._following)))
            tasks = list(islice(chain(following, parts), together))
            if not tasks:
                return
            self._waiting.append(self._pool.submit(_done, tasks))
            if len(self._waiting) >= FEWEST_TASKS * self._threads:
                self._take_one()

    def _take_one(self) -> None:
        """Take the results of the task that was submitted first."""
        for done in self._waiting.popleft().result() if self._waiting else ():
            for piece in self._take(done):
                self._following.extend(self._parts(piece.level, piece.start, piece.values))

    def _take(self, done: Done) -> list[Piece]:
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
            self._maker.release(done.payload)
        self.saturated += done.saturated
        self.undefined += done.undefined
        return done.pieces

    def _awaited(self, level: Any, index: Triple, grid: Triple) -> int:
        """Return how many chunks of the file of chunk `index` lie inside the array."""
        count = 1
        for i, g, n, c in zip(index, grid, level.shape, level.chunks, strict=True):
            count *= min(g, -(-n // c) - i // g * g)
        return count

    def _parts(
        self, level: int, start: Triple, values: Any, through: Through | None = None
    ) -> Iterator[Callable[[], Done]]:
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
                written = level == 0 and index in self._seen
                chunk = self._open[level, index] = Chunk(level, index, 0 if written else math.prod(inside))
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
                    chunk.values = self._maker.room(layout.chunks, values.dtype, inside)
                chunk.values[target] = values[source]
                if complete:
                    yield partial(self._maker.finish, chunk, inside)
            else:
                fill = partial(self._maker.fill, chunk, values, source, target, inside, complete=complete)
                yield fill if through is None else partial(fill, through=partial(through, at=triple(low)))


def _done(tasks: list[Callable[[], Done]]) -> list[Done]:
    return [task() for task in tasks]
