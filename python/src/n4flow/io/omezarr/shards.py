"""Files of a Zarr array, written piece by piece: a chunk file, or a shard that grows chunk by chunk.

A shard (Zarr v3, `sharding_indexed`) is the encoded chunks one after the other, then an index of their
offsets and sizes and its CRC32C. Zarr libraries want a whole shard in memory to write it. Appending
needs only the chunks at hand, so shards may be large and memory stays small; and a file appears under
its name only when it is complete.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from n4flow.errors import DiskFullError

EMPTY = np.uint64(2**64 - 1)  # Offset and size, in the index, of a chunk that a shard leaves out.

# Measured on a mouse brain, uint16 and corrected float32, with bit shuffle: LZ4 takes a fifth to a seventh of the
# time of zstd level 3 and leaves files 18 to 26 per cent larger. Codecs are most of the cost of a pass, hence LZ4.
CODEC: Literal["lz4"] = "lz4"
LEVEL = 5
HEADER = 16  # Length of Blosc's header, which is all that it adds to incompressible bytes.


def chunk_codec() -> Any:
    """Return the codec of every chunk."""
    from numcodecs import Blosc  # type: ignore[import-untyped]

    return Blosc(CODEC, LEVEL, Blosc.BITSHUFFLE)


class Encoder:
    """Compresses chunks, each into a buffer that is used again: fresh memory costs half as much as the compression.

    Blosc's own function is called, which writes where it is told; the bytes are those of numcodecs, whose copy of
    Blosc it is. Where a build hides the function, numcodecs compresses.
    """

    def __init__(self) -> None:
        from numcodecs import blosc

        self._codec = chunk_codec()
        self._compress = getattr(ctypes.CDLL(blosc.__file__), "blosc_compress_ctx", None)
        if self._compress is not None:
            number, size, place = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
            self._compress.argtypes = [number, number, size, size, place, place, size, ctypes.c_char_p, size, number]
            self._compress.restype = ctypes.c_int
        self._free: deque[np.ndarray] = deque()

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Return the bytes of a C-contiguous chunk; several threads may call this. Hand them to `release` when done."""
        if self._compress is None:
            return np.frombuffer(self._codec.encode(values), np.uint8)
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = np.empty(0, np.uint8)
        if buffer.size < values.nbytes + HEADER:
            buffer = np.empty(values.nbytes + HEADER, np.uint8)
        places = values.ctypes.data, buffer.ctypes.data, values.nbytes + HEADER
        settings = LEVEL, self._codec.BITSHUFFLE, values.itemsize, values.nbytes
        size = self._compress(*settings, *places, CODEC.encode(), 0, 1)  # its own block size, one thread
        if size <= 0:
            msg = f"Blosc failed to compress {values.nbytes} bytes ({size})"
            raise RuntimeError(msg)
        return buffer[:size]

    def release(self, payload: np.ndarray) -> None:
        """Take the memory of a payload back, if `encode` gave it and it was not made read-only since."""
        if payload.flags.writeable:
            self._free.append(payload.base)  # type: ignore[arg-type]


def disk_error(error: OSError, path: Path) -> OSError:
    """Return `error`, as a `DiskFullError` where space, inodes or a quota are used up."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"no space or quota left while writing {path}; free some, or write to another disk")
    return error


class GrowingFile:
    """One file of an array while its chunks arrive.

    Parameters
    ----------
    path : path
        Final name; a hidden name beside it is used until all chunks are there.
    grid : tuple of int or None
        Chunks per axis of a shard; None for a file that is one chunk.
    awaited : int
        Chunks that will come. A shard at the edge of the array has fewer than its grid.
    """

    def __init__(self, path: Path, grid: tuple[int, int, int] | None, awaited: int) -> None:
        self.path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._awaited = awaited
        self._index = np.full((*grid, 2), EMPTY, dtype="<u8") if grid is not None else None
        self._position = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream: BinaryIO = self._partial.open("wb")
        except OSError as error:
            raise disk_error(error, path) from error

    def append(self, index: tuple[int, int, int], payload: np.ndarray) -> bool:
        """Write the encoded chunk at position `index` of the shard; True if the file is complete now."""
        try:
            self._stream.write(payload.data)
            if self._index is not None:
                self._index[index] = self._position, len(payload)
                self._position += len(payload)
            self._awaited -= 1
            if self._awaited == 0:
                self._finish()
        except OSError as error:
            self.abandon()
            raise disk_error(error, self.path) from error
        return self._awaited == 0

    def _finish(self) -> None:
        if self._index is not None:
            import google_crc32c

            raw = self._index.tobytes()
            self._stream.write(raw + struct.pack("<I", google_crc32c.value(raw)))
        self._stream.close()
        os.replace(self._partial, self.path)

    def abandon(self) -> None:
        """Remove what was written so far."""
        self._stream.close()
        self._partial.unlink(missing_ok=True)


def shard_fault(path: Path, chunks: int) -> str | None:
    """Return what is wrong with a shard of so many chunks, or None: its index, at its end, tells where they lie."""
    import google_crc32c

    size, length = path.stat().st_size, 16 * chunks
    if size < length + 4:
        return "is too short for its index"
    with path.open("rb") as stream:
        stream.seek(size - length - 4)
        raw, (checksum,) = stream.read(length), struct.unpack("<I", stream.read(4))
    if google_crc32c.value(raw) != checksum:
        return "is truncated or damaged: its index does not match its checksum"
    offset, nbytes = np.frombuffer(raw, "<u8").reshape(-1, 2).T
    held = offset != EMPTY
    if np.any((nbytes == 0) & held) or np.any((nbytes != EMPTY) & ~held):
        return "has an index in which a chunk has a place and no length, or a length and no place"
    end = np.uint64(size - length - 4)
    # offset + size may overflow 64 bits.
    beyond = np.any(offset[held] > end) or np.any(nbytes[held] > end - offset[held])
    return "names chunks beyond its end" if beyond else None


def plain_index(settings: Mapping[str, Any]) -> bool:
    """Return whether the index is one that `shard_fault` reads: at the end, little-endian, with its checksum.

    Nearly all writers choose that. The settings are the configuration of the codec `sharding_indexed`.
    """
    codecs = settings.get("index_codecs", [])
    little = [codec.get("configuration", {}).get("endian", "little") for codec in codecs[:1]] == ["little"]
    named = [codec["name"] for codec in codecs] == ["bytes", "crc32c"]
    return settings.get("index_location", "end") == "end" and named and little


def blosc_fault(path: Path) -> str | None:
    """Return what is wrong with a chunk file compressed by Blosc, or None: its header states its length."""
    size = path.stat().st_size
    if size < HEADER:
        return "is too short for a compressed chunk"
    with path.open("rb") as stream:
        stated = struct.unpack("<I", stream.read(HEADER)[12:])[0]
    return None if stated == size else f"has {size} bytes where its header states {stated}"
