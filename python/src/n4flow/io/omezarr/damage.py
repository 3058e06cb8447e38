"""Find the files of a Zarr array that are absent, empty, or truncated as far as can be told without decoding them."""

from __future__ import annotations

import math
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from n4flow.io.omezarr.chunk_grid import FileGrid, Index, batched
from n4flow.io.omezarr.shards import blosc_fault, plain_index, shard_fault

ABSENT = "is missing"  # The one fault that a writer may have meant: chunks of the fill value need no file.
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
REPEATED = 1  # Type of a Zstandard block that holds one byte, whatever length it states.
CRC32C = 4  # Bytes of the checksum behind a chunk.
RATIO = 2**15  # No codec makes more of a byte: Zstandard repeats one for 2**17 bytes, in a block of four.
SLACK = 2**16  # Bytes of headers and indices that a file may have beside its voxels.
CHECKING_THREADS = 16  # More than there are cores: the time goes into waiting for the disks of a cluster.
FILES_PER_TASK = 64  # Files that one task of a thread checks.
MOST_WAITING = 64 * CHECKING_THREADS * FILES_PER_TASK  # Files whose positions are in memory at a time.

Wanted = Callable[[Index], bool]


def faulty_files(
    folder: Path, array: Any, wanted: Wanted | None = None, *, all_of_them: bool = True
) -> dict[Index, str]:
    """Return the faulty files of a zarr array in a folder by their position; only `wanted` positions, if given.

    Without `all_of_them` the search ends soon after the first ones: a grid may have any number of files.
    """
    grid, check, most = FileGrid.of(array), file_check(array), most_bytes(array)
    least = 0 if array.shards is not None else math.prod(array.chunks) * int(array.dtype.itemsize)

    def look(some: list[Index]) -> list[tuple[Index, str]]:
        found = ((index, _fault(folder / grid.key(index), check, least, most)) for index in some)
        return [(index, fault) for index, fault in found if fault]

    faults: dict[Index, str] = {}
    with ThreadPoolExecutor(CHECKING_THREADS) as pool:
        for some in batched(filter(wanted, grid.indices()), MOST_WAITING):
            parts = [some[start : start + FILES_PER_TASK] for start in range(0, len(some), FILES_PER_TASK)]
            faults.update(chain.from_iterable(pool.map(look, parts)))
            if faults and not all_of_them:
                break
    return faults


def most_bytes(array: Any) -> int:
    """Return how long a file of a zarr array may be: no codec makes much more of voxels than they are."""
    return 2 * math.prod(array.shards or array.chunks) * int(array.dtype.itemsize) + SLACK


def _fault(file: Path, check: Callable[[Path], str | None] | None, least: int, most: int) -> str | None:
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            return "is no file"
        if not found.st_size:
            return "is empty"
        if found.st_size > most:
            return f"has {found.st_size} bytes, more than twice its voxels"
        if found.st_size * RATIO < least:
            return f"has {found.st_size} bytes, too few for its voxels"
        return check(file) if check is not None else None
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT


def file_check(array: Any) -> Callable[[Path], str | None] | None:
    """Return the function that says what is wrong with a file of a zarr array; None where its encoding tells nothing.

    A shard ends in its index, a chunk of Blosc begins with its length, one of Zstandard is a chain of blocks that state
    theirs, and the length of a chunk that is not compressed is known.
    """
    if array.shards is not None:
        chunks = math.prod(s // c for s, c in zip(array.shards, array.chunks, strict=True))
        return (
            partial(shard_fault, chunks=chunks)
            if plain_index(array.metadata.codecs[0].to_dict().get("configuration", {}))
            else None
        )
    last, behind = _last_codec(array.metadata)
    if last == "raw":
        return partial(_raw_fault, nbytes=math.prod(array.chunks) * array.dtype.itemsize + behind)
    if behind:
        return None
    return {"blosc": blosc_fault, "zstd": zstd_fault}.get(last)


def zstd_fault(path: Path) -> str | None:
    """Return what is wrong with the length of a file of Zstandard frames (RFC 8878), or None."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(5)
        if len(head) < 5 or head[:4] != ZSTD_MAGIC:
            return "is no frame of Zstandard"
        single, checksum = head[4] >> 5 & 1, head[4] >> 2 & 1
        content = (single, 2, 4, 8)[head[4] >> 6]
        place = 5 + (1 - single) + (0, 1, 2, 4)[head[4] & 3] + content
        last = 0
        while not last:
            stream.seek(place)
            block = int.from_bytes(stream.read(3), "little")
            last, kind, length = block & 1, block >> 1 & 3, block >> 3
            place += 3 + (1 if kind == REPEATED else length)
            if place > size:
                return f"has {size} bytes and goes on behind them"
    place += 4 * checksum
    return None if place <= size else f"has {size} bytes and goes on behind them"


def _raw_fault(path: Path, nbytes: int) -> str | None:
    size = path.stat().st_size
    return None if size == nbytes else f"has {size} bytes, expected {nbytes}"


def _last_codec(metadata: Any) -> tuple[str, int]:
    """Return the codec that gives a chunk's file its length, `raw` where there is none, and bytes put behind it."""
    if metadata.zarr_format == 2:
        compressor = metadata.compressor
        name = getattr(compressor, "codec_id", None) or (compressor.to_dict()["name"] if compressor else "raw")
        return ("filtered", 0) if name == "raw" and metadata.filters else (name, 0)
    names = [codec.to_dict()["name"] for codec in metadata.codecs]
    behind = 0
    if names[-1] == "crc32c":
        names, behind = names[:-1], CRC32C
    return "raw" if names[-1] == "bytes" else str(names[-1]), behind
