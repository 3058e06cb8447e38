"""Read Zarr arrays of Blosc chunks, in folders: one chunk at a time, decoded by threads of ours.

A Zarr library hands its threads what it pleases. Here a thread reads the bytes of a chunk and decodes them, so that it
may go on with the voxels while they are in its cache; and it does so in compiled code, `chunk_kernels`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from itertools import islice, pairwise, product
from pathlib import Path
from typing import Any, Self

import numpy as np

from n4flow.compute.threads import available_threads, reused_pool, scratch, thread_pool
from n4flow.io.omezarr.chunk_grid import FileGrid
from n4flow.io.omezarr.shards import EMPTY, plain_index, shard_index

HELD_INDICES = 64  # of shards: those that lie side by side in a block, and more
MOST_FILES = 256  # open at a time

AXES = 5  # of an array, fewer being filled up in front
# columns of a job of `chunk_kernels`: file, place and size of the bytes (or LEFT_OUT); first voxel and past the last of
# the part of the chunk that is wanted; where that begins in the box. Along X these three are bytes.
FILE, PLACE, SIZE, LOW, HIGH, TARGET = 0, 1, 2, 3, 3 + AXES, 3 + 2 * AXES
LEFT_OUT = -1

Box = tuple[slice, ...]
Index = tuple[int, ...]


@dataclass(eq=False)
class BloscChunks:
    """The chunks of an array in a folder: shards, or one file each, little-endian, C order, compressed by Blosc.

    Parameters
    ----------
    folder : Path
        Of the array.
    grid : FileGrid
    chunk : tuple of int
        Voxels of a chunk along each axis of the array.
    dtype : numpy.dtype
    fill : number
        Value of a chunk that a shard leaves out.
    sharded : bool
    """

    folder: Path
    grid: FileGrid
    chunk: tuple[int, ...]
    dtype: np.dtype
    fill: Any
    sharded: bool
    _pool: ThreadPoolExecutor | None = field(default=None, init=False)
    _owner: int = field(default=0, init=False)
    _indices: dict[Path, np.ndarray] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, path: Path, array: Any) -> Self | None:
        """Return the chunks of a zarr array of the store at `path`, or None where they are of another kind."""
        native = array.dtype.newbyteorder("<") == array.dtype and array.ndim <= AXES
        if not path.is_dir() or array.order != "C" or not native or _c_functions() is None:
            return None
        metadata = array.metadata
        if metadata.zarr_format == 2:
            plain = not metadata.filters and getattr(metadata.compressor, "codec_id", "") == "blosc"
        else:
            codecs = [codec.to_dict() for codec in metadata.codecs]
            if [codec["name"] for codec in codecs] == ["sharding_indexed"]:
                settings = codecs[0]["configuration"]
                codecs = [*settings["codecs"], *([] if plain_index(settings) else [{"name": "other"}])]
            plain = [codec["name"] for codec in codecs] == ["bytes", "blosc"]
            # what is stored has a byte order of its own there, whatever that of the array
            plain = plain and codecs[0].get("configuration", {}).get("endian", "little") == "little"
        fill = array.fill_value if array.fill_value is not None else 0
        return (
            cls(path / array.path, FileGrid.of(array), array.chunks, array.dtype, fill, array.shards is not None)
            if plain
            else None
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None, "_indices": {}}

    def read_into(self, out: np.ndarray, box: Box) -> None:
        """Read a box, slices with whole bounds along every axis of the array, into `out`, an array of its shape.

        Raises
        ------
        OSError, ValueError
            A file is missing or damaged.
        """
        bytes_of = out.reshape(-1).view(np.uint8).reshape(_filled_up([*out.shape[:-1], out.shape[-1] * out.itemsize]))
        for chunks in batched(self._touched(box), MOST_FILES):
            with ExitStack() as stack:
                files: dict[Path, int] = {}
                jobs = np.array([self._job(index, box, files, stack) for index in chunks])
                parts = 1 if available_threads() == 1 else min(len(jobs), 4 * available_threads())
                cuts = [len(jobs) * i // parts for i in range(parts + 1)]
                if parts == 1:
                    self._decode(jobs, bytes_of, chunks)
                    continue
                pool = reused_pool() or self._threads()
                tasks = [pool.submit(self._decode, jobs[a:b], bytes_of, chunks[a:b]) for a, b in pairwise(cuts)]
                wait(tasks)  # files stay open until all are done
                for task in tasks:
                    task.result()

    def _threads(self) -> ThreadPoolExecutor:
        """Return threads for who has none: they are kept, but do not follow into a forked process."""
        if self._pool is None or self._owner != os.getpid():
            self._pool, self._owner = thread_pool(available_threads()), os.getpid()
        return self._pool

    def expect(self, box: Box) -> None:
        """Have the system read the chunks of a box ahead, while other work is done."""
        for index in self._touched(box):
            path, place, size = self._place(index)
            if size != 0:
                with path.open("rb", buffering=0) as stream:
                    os.posix_fadvise(stream.fileno(), place, size or 0, os.POSIX_FADV_WILLNEED)

    def _touched(self, box: Box) -> Iterator[Index]:
        """Return the chunks that a box touches."""
        return product(*(range(s.start // c, -(-s.stop // c)) for s, c in zip(box, self.chunk, strict=True)))

    def _job(self, index: Index, box: Box, files: dict[Path, int], stack: ExitStack) -> list[int]:
        """Return the row of a chunk for `decode_chunks`; its file is opened and kept in `files`."""
        low, high, target = [], [], []
        for i, c, s in zip(index, self.chunk, box, strict=True):
            first, last = max(s.start, i * c), min(s.stop, (i + 1) * c)
            low.append(first - i * c)
            high.append(last - i * c)
            target.append(first - s.start)
        for ends in (low, high, target):
            ends[-1] *= self.dtype.itemsize
            ends[:0] = [0] * (AXES - len(ends))
        high[: AXES - len(index)] = [1] * (AXES - len(index))
        path, place, size = self._place(index)
        if size == 0:
            return [0, 0, LEFT_OUT, *low, *high, *target]
        if path not in files:
            files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, files[path])
        return [files[path], place, os.fstat(files[path]).st_size if size is None else size, *low, *high, *target]

    def _decode(self, jobs: np.ndarray, out: np.ndarray, chunks: Sequence[Index]) -> None:
        """Put what chunks hold of a box into the bytes `out`."""
        from n4flow.io.omezarr.blosc_kernels import UNREAD, decode_chunks

        payload = scratch("payload", (max(1, int(jobs[:, SIZE].max())),), np.uint8)
        shape = _filled_up([*self.chunk[:-1], self.chunk[-1] * self.dtype.itemsize])
        found = np.empty(len(jobs), np.int64)
        fill = np.array([self.fill], self.dtype).view(np.uint8)
        decode_chunks(jobs, _c_functions(), payload, scratch("decoded", shape, np.uint8), fill, out, found)
        if found.any():
            first = int(np.flatnonzero(found)[0])
            if found[first] == UNREAD:
                os.pread(int(jobs[first, FILE]), 1, int(jobs[first, PLACE]))  # raises what the system has to say
            msg = f"chunk {chunks[first]} is cut short or damaged"
            raise ValueError(msg)

    def _place(self, index: Index) -> tuple[Path, int, int | None]:
        """Return the file of a chunk, where it begins, and its size: None for all of it, 0 for a chunk left out."""
        counts = [f // c for f, c in zip(self.grid.file, self.chunk, strict=True)]
        path = self.folder / self.grid.key(tuple(i // n for i, n in zip(index, counts, strict=True)))
        if not self.sharded:
            return path, 0, None
        offset, nbytes = self._index(path, tuple(counts))[tuple(i % n for i, n in zip(index, counts, strict=True))]
        return (path, 0, 0) if offset == EMPTY else (path, int(offset), int(nbytes))

    def _index(self, path: Path, counts: tuple[int, ...]) -> np.ndarray:
        """Return offset and size of each chunk of a shard: (*counts, 2) uint64."""
        found = self._indices.get(path)
        if found is None:
            if len(self._indices) >= HELD_INDICES:
                self._indices.pop(next(iter(list(self._indices))), None)
            found = self._indices[path] = shard_index(path, int(np.prod(counts))).reshape(*counts, 2)
        return found


@cache
def _c_functions() -> tuple[int, int] | None:
    """Return the addresses of pread and of Blosc's function that decompresses; None where a build hides one."""
    from numcodecs import blosc  # type: ignore[import-untyped]

    names = ((None, "pread"), (blosc.__file__, "blosc_decompress_ctx"))
    read, decompress = (getattr(ctypes.CDLL(path), name, None) for path, name in names)
    if read is None or decompress is None:
        return None
    return ctypes.cast(read, ctypes.c_void_p).value or 0, ctypes.cast(decompress, ctypes.c_void_p).value or 0


def _filled_up(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape with ones in front, as `chunk_kernels` wants it."""
    return (1,) * (AXES - len(shape)) + tuple(shape)


def batched(items: Iterable[Index], most: int) -> Iterator[list[Index]]:
    """Yield runs of at most so many items."""
    rest = iter(items)
    while run := list(islice(rest, most)):
        yield run
