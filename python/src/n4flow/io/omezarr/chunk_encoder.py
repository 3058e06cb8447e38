"""Encode the chunks of a store that is written: threads cast, compress and average them into the next level."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from n4flow.compute.threads import scratch
from n4flow.io.omezarr.checksums import chunk_checksum
from n4flow.io.omezarr.layout import StoreLayout, Triple
from n4flow.io.omezarr.pyramid import Piece, averaged, picked
from n4flow.io.omezarr.shards import Encoder


@dataclass
class Chunk:
    """A chunk while its voxels arrive; `missing` voxels of those inside the array are still to come."""

    level: int
    index: Triple
    missing: int
    values: np.ndarray | None = None


@dataclass
class Done:
    """Result of a thread's work on a chunk: the bytes for its file, if it is complete, and pieces of deeper levels."""

    chunk: Chunk
    payload: np.ndarray | None
    pieces: list[Piece] = field(default_factory=list)
    saturated: int = 0
    undefined: int = 0
    checksum: int = 0


class ChunkMaker:
    """Makes the bytes of chunks, and their pieces of deeper levels; several threads may call it."""

    def __init__(self, layout: StoreLayout) -> None:
        self._layout = layout
        self._dtype = np.dtype(layout.dtype).newbyteorder("<")
        limits = np.iinfo(self._dtype) if self._dtype.kind in "iu" else None
        self._limits = (int(limits.min), int(limits.max)) if limits else (0, 0)
        self._encoder = Encoder()
        self.release = self._encoder.release  # Takes the bytes of a chunk back, once they are in its file.
        self._constant: dict[tuple[Any, ...], tuple[np.ndarray, int]] = {}
        self._spare: deque[np.ndarray] = deque()  # Memory of chunks of deeper levels that are done.

    def room(self, shape: Triple, dtype: np.dtype, inside: list[int]) -> np.ndarray:
        """Return memory for a chunk of a deeper level, reused where possible; zeros at the edge of the array."""
        values = self._spare.pop() if self._spare else None
        if values is None or values.shape != shape:
            values = np.empty(shape, dtype)
        if tuple(inside) != shape:
            values[...] = 0
        return values

    def fill(
        self,
        chunk: Chunk,
        block: Any,
        source: tuple[slice, ...],
        target: tuple[slice, ...],
        inside: list[int],
        *,
        complete: bool,
        through: Callable[[np.ndarray], Iterator[np.ndarray]] | None = None,
    ) -> Done:
        """Cast voxels into a chunk of level 0. A `write` makes one task for each chunk, so threads share none."""
        values = np.asarray(block[source])
        if chunk.values is None:
            shape = self._layout.levels[0].chunks
            # A chunk that this call fills wholly lies in a buffer of this thread.
            covered = values.shape == shape
            chunk.values = scratch("chunk", shape, self._dtype) if covered else np.zeros(shape, self._dtype)
        out, done, planes = chunk.values[target], Done(chunk, None), 0
        for part in (values,) if through is None else through(values):
            saturated, undefined = self._cast(part, out[planes : planes + len(part)])
            planes += len(part)
            done.saturated += saturated
            done.undefined += undefined
        if complete:
            done = replace(self.finish(chunk, inside), saturated=done.saturated, undefined=done.undefined)
        return done

    def _cast(self, values: np.ndarray, out: np.ndarray) -> tuple[int, int]:
        """Write values in the type of the store; return how many were saturated and how many undefined."""
        if not values.dtype.isnative or values.dtype == np.float16:
            values = values.astype(np.float32 if values.dtype == np.float16 else values.dtype.newbyteorder("="))
        if self._dtype.kind == "f" or np.can_cast(values.dtype, self._dtype):
            with np.errstate(over="ignore"):  # A float64 beyond the range of float32 becomes infinite.
                out[...] = values
            return 0, 0
        from n4flow.io.omezarr.pyramid_kernels import cast_to_integers

        # float32 holds the limits of short integers exactly.
        exact = np.float32 if values.dtype == np.float32 and self._dtype.itemsize <= 2 else np.float64
        found = cast_to_integers(values, out, exact(self._limits[0]), exact(self._limits[1]))
        return int(found[0]), int(found[1])

    def finish(self, chunk: Chunk, inside: list[int]) -> Done:
        """Compress a complete chunk and make its pieces of deeper levels."""
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
        return Done(chunk, payload, pieces, checksum=checksum)

    def _encoded(self, values: np.ndarray, inside: list[int], constant: bytes | None) -> tuple[np.ndarray, int]:
        """Return the bytes of a chunk and its checksum; those of chunks of one value, frequent in masks, are cached."""
        if constant is None:
            return self._encoder.encode(values), chunk_checksum(values, inside)
        name = (constant, values.shape, *inside)
        if name not in self._constant:
            payload = self._encoder.encode(values).copy()
            payload.flags.writeable = False  # `release` leaves it alone.
            self._constant[name] = payload, chunk_checksum(values, inside)
        return self._constant[name]


def _one_value(values: np.ndarray) -> bytes | None:
    """Return the bytes of the one value that all voxels of a chunk have, or None."""
    bits = values.view(f"u{values.itemsize}")
    if bits.flat[0] != bits.flat[-1] or bits.min() != bits.max():
        return None
    return bytes(bits.flat[0].tobytes())
