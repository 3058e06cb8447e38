"""The grid of files of a Zarr array: which keys there must be, and which are missing."""

from __future__ import annotations

import itertools
import math
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Index = tuple[int, ...]


@dataclass(frozen=True)
class FileGrid:
    """Keys of the files (shards, or chunks where there are none) of one array.

    Parameters
    ----------
    counts, file : tuple of int
        Files along each axis, and voxels of a file along each axis.
    prefix, separator : str
        A key is the prefix and the position in the grid, joined by the separator.
    """

    counts: tuple[int, ...]
    file: tuple[int, ...]
    prefix: str
    separator: str

    @classmethod
    def of(cls, array: Any) -> FileGrid:
        """Return the grid of a zarr array."""
        file = array.shards or array.chunks
        counts = tuple(-(-n // f) for n, f in zip(array.shape, file, strict=True))
        if array.metadata.zarr_format == 2:
            return cls(counts, file, "", array.metadata.dimension_separator)
        encoding = array.metadata.chunk_key_encoding
        return cls(counts, file, "c" if encoding.name == "default" else "", encoding.separator)

    def key(self, index: Index) -> str:
        """Return the key of the file at a position."""
        return self.separator.join([*([self.prefix] if self.prefix else []), *map(str, index)])

    def indices(self) -> Iterator[Index]:
        """Yield all positions."""
        return _positions(self.counts)

    def touched(self, box: tuple[slice, ...]) -> Iterator[Index]:
        """Yield the positions of files that a box touches; its slices have whole bounds inside the array."""
        return itertools.product(*(range(s.start // f, -(-s.stop // f)) for s, f in zip(box, self.file, strict=True)))


def _positions(counts: tuple[int, ...]) -> Iterator[Index]:
    """Yield what itertools.product does of ranges, which it holds in memory: a grid may be of any size."""
    if not counts:
        yield ()
        return
    *outer, inner = counts
    for first in _positions(tuple(outer)):
        for last in range(inner):
            yield (*first, last)


def batched(items: Iterable[Index], most: int) -> Iterator[list[Index]]:
    """Yield lists of at most `most` consecutive items."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, most)):
        yield batch


def zipped_sizes(path: Path, inside: str) -> dict[str, int]:
    """Return the size of every file of the array `inside` a zip file, by key."""
    prefix = f"{inside}/" if inside else ""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    inner = (entry for entry in entries if entry.filename.startswith(prefix))
    return {entry.filename.removeprefix(prefix): entry.file_size for entry in inner}


def listed(names: list[str], most: int = 5) -> str:
    """Return names for a message: the first few, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def lost_layers(faulty: Iterable[Index], grid: FileGrid, z: int | None, alone: Iterable[int]) -> list[int]:
    """Return the positions along the axis `z`, of layers of files of which all are faulty; 0 without such an axis.

    Along the axes `alone` one position is looked at.
    """
    found = Counter(0 if z is None else index[z] for index in faulty)
    files = math.prod(count for axis, count in enumerate(grid.counts) if axis != z and axis not in alone)
    return sorted(layer for layer, count in found.items() if count == files)
