"""Checksums of the voxels of a store: one for each chunk, taken while the chunk is written, compared when it is read.

A checksum is the CRC-32C of a chunk's decoded voxels, those inside the array, little-endian, X fastest. So it says
nothing about codecs, shards or files, and finds every damage shorter than its 32 bits and all but one of 2**32
others. The digest of a level is the SHA-256 of its shape, dtype, chunk shape and of all its checksums: two stores with
equal digests hold equal voxels, in equal chunks.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from n4flow.errors import InputError
from n4flow.io.omezarr.layout import StoreLayout, Triple

Checksums = dict[str, dict[str, int]]  # level -> position of the chunk as 'z/y/x' -> checksum


def chunk_checksum(values: np.ndarray, inside: Sequence[int]) -> int:
    """Return the checksum of a decoded chunk (z, y, x), of whose voxels so many, per axis, lie `inside` the array."""
    import google_crc32c

    part = values[: inside[0], : inside[1], : inside[2]]
    return int(google_crc32c.value(np.ascontiguousarray(part, part.dtype.newbyteorder("<"))))


def add_checksums(total: Checksums, part: Checksums) -> None:
    """Add the chunks of one slab to those of others."""
    for level, found in part.items():
        total.setdefault(level, {}).update(found)


def describe(layout: StoreLayout, found: Checksums) -> dict[str, Any]:
    """Return what a published result says of a store: each level with its digest and the checksums of its chunks.

    Raises
    ------
    InputError
        The checksum of a chunk is missing, so a slab was not handed in.
    """
    levels = []
    for level in layout.levels:
        known = found.get(level.path, {})
        keys = ["/".join(map(str, index)) for index in grid(level.shape, level.chunks)]
        if missing := [key for key in keys if key not in known]:
            msg = f"level {level.path} lacks the checksums of {len(missing)} chunks, the first at {missing[0]}"
            raise InputError(msg)
        checksums = [f"{known[key]:08x}" for key in keys]
        levels.append(describe_level(level.path, level.shape, level.chunks, layout.dtype, checksums))
    return {"levels": levels}


def describe_level(
    path: str, shape: Sequence[int], chunks: Sequence[int], dtype: str, checksums: Sequence[str]
) -> dict[str, Any]:
    """Return a level's shape, chunks and dtype, its checksums in the order of `grid`, and the digest of them all."""
    head = {"path": path, "shape": list(shape), "chunks": list(chunks), "dtype": dtype}
    digest = hashlib.sha256(json.dumps([head, checksums], sort_keys=True).encode()).hexdigest()
    return {**head, "digest": digest, "checksums": checksums}


def grid(shape: Sequence[int], chunks: Sequence[int]) -> Iterator[Triple]:
    """Return the positions of all chunks of an array, X fastest."""
    z, y, x = (range(-(-n // c)) for n, c in zip(shape, chunks, strict=True))
    return itertools.product(z, y, x)
