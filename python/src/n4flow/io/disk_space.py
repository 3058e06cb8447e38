"""Disk space: how much a store can take at most, and whether so much is free before anything is written."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from n4flow.errors import DiskFullError
from n4flow.io.omezarr.layout import StoreLayout, expected_shards, level_slab

METADATA_FILES = 2  # Metadata files of the group, at most; every level has one more.
CHUNK_OVERHEAD = 32  # Bytes that compression adds to a chunk of noise: Blosc's header and its entry in the index.
INDEX_CHECKSUM = 4  # Bytes of the checksum behind the index of a shard.
# A chunk of a mask has one bit of noise a voxel, the other bits are zeros that shuffling brings together: a seventh of
# its bytes holds the eighth and the codec's tokens, and 600 bytes what small chunks lose (measured on random masks).
MASK_PART, MASK_OVERHEAD = 7, 600


def store_needs(layouts: Iterable[StoreLayout], z_start: int, z_stop: int) -> tuple[int, int]:
    """Return the bytes and files that planes of stores take at most, which is when they hold noise.

    Parameters
    ----------
    layouts : iterable of StoreLayout
    z_start, z_stop : int
        A whole number of slabs.
    """
    needs = [_needs(layout, z_start, z_stop) for layout in layouts]
    return sum(nbytes for nbytes, _files in needs), sum(files for _nbytes, files in needs)


def _needs(layout: StoreLayout, z_start: int, z_stop: int) -> tuple[int, int]:
    total = 0
    for number, level in enumerate(layout.levels):
        start, stop = level_slab(layout, number, z_start, z_stop)
        grid = [-(-n // c) for n, c in zip((stop - start, *level.shape[1:]), level.chunks, strict=True)]
        chunk = math.prod(level.chunks) * np.dtype(layout.dtype).itemsize + CHUNK_OVERHEAD
        if layout.kind == "labels":
            chunk = min(chunk, math.prod(level.chunks) // MASK_PART + MASK_OVERHEAD)
        total += math.prod(grid) * chunk
    keys = expected_shards(layout, z_start, z_stop)
    total += len(keys) * INDEX_CHECKSUM
    folders = {str(parent) for key in keys for parent in PurePosixPath(key).parents}
    return total, len(keys) + len(folders) + len(layout.levels) + METADATA_FILES


def check_space(folder: Path, nbytes: int, files: int) -> None:
    """Refuse to write into a folder, or one that will be made, whose disk has no room.

    Raises
    ------
    DiskFullError
        With what is needed and what is free, of bytes or of inodes.
    """
    disk = os.statvfs(next(place for place in (folder, *folder.absolute().parents) if place.exists()))
    free = disk.f_bavail * disk.f_frsize
    remedy = "free some or choose another folder"
    if nbytes > free:
        msg = f"{folder} needs up to {nbytes / 1e9:.3f} GB and has {free / 1e9:.3f} GB free; {remedy}"
        raise DiskFullError(msg)
    if disk.f_files and files > disk.f_favail:  # some file systems state no inodes
        msg = f"{folder} needs up to {files} files and has inodes for {disk.f_favail}; {remedy}"
        raise DiskFullError(msg)
