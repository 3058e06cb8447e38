"""Read Zarr arrays of Blosc chunks, in folders: one chunk at a time, decoded by threads of ours.

A Zarr library hands its threads what it pleases. Here a thread reads the bytes of a chunk and decodes them, so that it
may go on with the voxels while they are in its cache.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np

from n4flow.formats.grid import FileGrid
from n4flow.formats.shards import EMPTY, shard_index
from n4flow.planes import available_threads, scratch, workers

HELD_INDICES = 64  # of shards: those that lie side by side in a block, and more
BLOSC_HEADER = 16

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
    _indices: dict[Path, np.ndarray] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, path: Path, array: Any) -> Self | None:
        """Return the chunks of a zarr array of the store at `path`, or None where they are of another kind."""
        if not path.is_dir() or array.order != "C" or array.dtype.newbyteorder("<") != array.dtype:
            return None
        metadata = array.metadata
        if metadata.zarr_format == 2:
            plain = not metadata.filters and getattr(metadata.compressor, "codec_id", "") == "blosc"
        else:
            codecs = [codec.to_dict() for codec in metadata.codecs]
            if [codec["name"] for codec in codecs] == ["sharding_indexed"]:
                settings = codecs[0]["configuration"]
                index = [codec["name"] for codec in settings["index_codecs"]]
                plain = settings.get("index_location", "end") == "end" and index == ["bytes", "crc32c"]
                codecs = [*settings["codecs"], *([] if plain else [{"name": "other"}])]
            plain = [codec["name"] for codec in codecs] == ["bytes", "blosc"]
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
        OSError, ValueError, RuntimeError
            A file is missing or damaged.
        """
        chunks = list(self._touched(box))
        if available_threads() == 1:
            for index in chunks:
                self._decode(index, box, out)
            return
        if self._pool is None:
            self._pool = workers(available_threads())
        for _done in self._pool.map(lambda index: self._decode(index, box, out), chunks):
            pass

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

    def _decode(self, index: Index, box: Box, out: np.ndarray) -> None:
        """Put what a chunk holds of a box into `out`."""
        from numcodecs import blosc  # type: ignore[import-untyped]

        inside, target = [], []
        for i, c, s in zip(index, self.chunk, box, strict=True):
            low, high = max(s.start, i * c), min(s.stop, (i + 1) * c)
            inside.append(slice(low - i * c, high - i * c))
            target.append(slice(low - s.start, high - s.start))
        payload = self._payload(index)
        if payload is None:
            out[tuple(target)] = self.fill
            return
        whole = all(cut == slice(0, c) for cut, c in zip(inside, self.chunk, strict=True))
        straight = whole and out.shape == self.chunk  # the chunk is all of the box
        values = out if straight else scratch("decoded", self.chunk, self.dtype)
        stated = struct.unpack("<III", payload[4:BLOSC_HEADER].tobytes()) if len(payload) >= BLOSC_HEADER else ()
        if not stated or (stated[0], stated[2]) != (values.nbytes, len(payload)):
            msg = f"chunk {index} is cut short or damaged"
            raise ValueError(msg)
        blosc.decompress(payload, values)
        if not straight:
            out[tuple(target)] = values[tuple(inside)]

    def _place(self, index: Index) -> tuple[Path, int, int | None]:
        """Return the file of a chunk, where it begins, and its size: None for all of it, 0 for a chunk left out."""
        counts = [f // c for f, c in zip(self.grid.file, self.chunk, strict=True)]
        path = self.folder / self.grid.key(tuple(i // n for i, n in zip(index, counts, strict=True)))
        if not self.sharded:
            return path, 0, None
        offset, nbytes = self._index(path, tuple(counts))[tuple(i % n for i, n in zip(index, counts, strict=True))]
        return (path, 0, 0) if offset == EMPTY else (path, int(offset), int(nbytes))

    def _payload(self, index: Index) -> np.ndarray | None:
        """Return the bytes of a chunk in a buffer of this thread; None where a shard leaves it out."""
        path, place, size = self._place(index)
        if size == 0:
            return None
        with path.open("rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size if size is None else size
            payload: Any = scratch("payload", (size,), np.uint8)
            read = 0
            while read < size and (more := os.preadv(stream.fileno(), [payload[read:]], place + read)):
                read += more
        found: np.ndarray = payload[:read]
        return found

    def _index(self, path: Path, counts: tuple[int, ...]) -> np.ndarray:
        """Return offset and size of each chunk of a shard: (*counts, 2) uint64."""
        found = self._indices.get(path)
        if found is None:
            if len(self._indices) >= HELD_INDICES:
                self._indices.pop(next(iter(list(self._indices))), None)
            found = self._indices[path] = shard_index(path, int(np.prod(counts))).reshape(*counts, 2)
        return found
