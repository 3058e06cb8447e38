"""The frame of a volume: rows and columns that hold valid voxels. What lies around is padding, in every plane.

Everything is estimated in the frame and counted from its corner: blocks of the shrunken volume, knots of bias fields,
shading. So it does not matter how much padding a mosaic was given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, starmap
from typing import NamedTuple

import numpy as np

from n4flow.errors import InputError
from n4flow.io.reader import Reader
from n4flow.io.volume import Volume

Box = tuple[slice, slice]

# Share of the frame by which a bias field's domain is wider, on each side. At the end of its domain a spline is
# constrained by few voxels and would follow anatomy.
FIELD_MARGIN = 1 / 16
SEARCH_BYTES = 1 << 25  # Bytes of the input, in its own type, in which valid voxels are searched at a time.
STRIP = 64  # Rows or columns, in whole chunks, that are read at a time where the side of a frame is searched.


class Frame(NamedTuple):
    """Rows and columns of a plane, as indices of the first and of the one after the last."""

    y_start: int
    y_stop: int
    x_start: int
    x_stop: int

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Frame:
        """Return the frame that whole planes of a volume of `shape` (Z, Y, X) are."""
        return cls(0, shape[-2], 0, shape[-1])

    @classmethod
    def read(cls, text: str, shape: tuple[int, ...]) -> Frame:
        """Read 'y_start:y_stop,x_start:x_stop' within planes of a volume of `shape`.

        Raises
        ------
        InputError
            Another text, or rows and columns that the planes do not have.
        """
        numbers = text.replace(",", ":").split(":")
        frame = cls(*map(int, numbers)) if len(numbers) == 4 and all(n.isdecimal() for n in numbers) else None
        if frame is None or not all(a < b <= n for a, b, n in zip(frame[::2], frame[1::2], shape[-2:], strict=True)):
            msg = f"frame must be Y_START:Y_STOP,X_START:X_STOP within 0:{shape[-2]},0:{shape[-1]}, got {text!r}"
            raise InputError(msg)
        return frame

    def __str__(self) -> str:
        return f"{self.y_start}:{self.y_stop},{self.x_start}:{self.x_stop}"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.y_stop - self.y_start, self.x_stop - self.x_start

    @property
    def box(self) -> Box:
        """Rows and columns of a plane, as slices."""
        return slice(self.y_start, self.y_stop), slice(self.x_start, self.x_stop)

    def widened(self, rows: int, columns: int) -> Frame:
        """Return the frame and so many rows and columns around it, whether planes have them or not."""
        return Frame(self.y_start - rows, self.y_stop + rows, self.x_start - columns, self.x_stop + columns)

    def part(self, y: int, x: int, height: int, width: int) -> tuple[Box, Box] | None:
        """Return rows and columns of a box that lie in the frame, counted from the box's corner and from the frame's.

        None where none do.
        """
        rows = max(self.y_start, y), min(self.y_stop, y + height)
        columns = max(self.x_start, x), min(self.x_stop, x + width)
        if rows[0] >= rows[1] or columns[0] >= columns[1]:
            return None

        def counted(top: int, left: int) -> Box:
            return slice(rows[0] - top, rows[1] - top), slice(columns[0] - left, columns[1] - left)

        return counted(y, x), counted(self.y_start, self.x_start)


def field_margin(shape: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns on each side of a frame (.., y, x) that a bias field is spanned over as well."""
    return math.ceil(FIELD_MARGIN * shape[-2]), math.ceil(FIELD_MARGIN * shape[-1])


class _Framed(Reader):
    """The frame of what another reader gives."""

    def __init__(self, reader: Reader, frame: Frame) -> None:
        self._reader, self._frame = reader, frame
        self.path, self.dtype, self.chunks, self.shards = reader.path, reader.dtype, reader.chunks, reader.shards
        self.shape = (reader.shape[0], *frame.shape)
        self.voxel_um, self.origin_um, self.metadata = reader.voxel_um, reader.origin_um, reader.metadata
        self.borrowed, self.lead = reader.borrowed, frame.y_start % reader.chunks[1]

    def _shifted(self, y: slice, x: slice) -> Box:
        down, across = self._frame.y_start, self._frame.x_start
        return slice(y.start + down, y.stop + down), slice(x.start + across, x.stop + across)

    def read(self, z: slice, y: slice, x: slice) -> np.ndarray:
        return self._reader.read(z, *self._shifted(y, x))

    def read_into(self, out: np.ndarray, z: slice, y: slice, x: slice) -> None:
        self._reader.read_into(out, z, *self._shifted(y, x))


def framed(volume: Volume, frame: Frame | None) -> Volume:
    """Return the frame of a volume as a volume; the volume itself where it has no padding.

    Its place `origin_um` is still that of the whole volume.
    """
    if frame is None or frame == Frame.whole(volume.shape):
        return volume
    return replace(volume, reader=_Framed(volume.reader, frame))


def find_frame(volume: Volume) -> Frame:
    """Return the frame of a volume; whole planes where no voxel is valid.

    Only what lies around the frame found so far is read, which is little in a volume without padding.
    """
    n_z, depth = volume.shape[0], volume.chunks[0]
    starts = list(range(0, n_z, depth))
    starts.insert(0, starts.pop(len(starts) // 2))  # Tissue reaches widest in the middle.
    frame: Frame | None = None
    for start in starts:
        frame = _with_planes(volume, start, min(start + depth, n_z), frame)
        if frame == Frame.whole(volume.shape):
            break
    volume.reader.release()
    return frame or Frame.whole(volume.shape)


def _with_planes(volume: Volume, z_start: int, z_stop: int, frame: Frame | None) -> Frame | None:
    """Return a frame widened to what is valid in planes, which are read from each side inwards as far as needed."""
    sizes = list(zip(volume.shape[1:], volume.chunks[1:], strict=True))
    box = [slice(0, n) for n, _chunk in sizes]
    if all(chunk >= n for n, chunk in sizes) and (frame is None or not volume.reader.borrowed):  # decoded at once
        return _widened(frame, _valid(volume, z_start, z_stop, *box))
    for axis, (n, chunk) in enumerate(sizes):
        for last in (False, True):
            known = slice(n, n) if frame is None else frame.box[axis]
            strips = _steps(slice(known.stop, n) if last else slice(0, known.start), chunk * max(1, STRIP // chunk))
            for box[axis] in reversed(strips) if last else strips:
                if (found := _valid(volume, z_start, z_stop, *box)) is not None:
                    frame = _widened(frame, found)
                    break
        if frame is None:
            break
        box[axis] = frame.box[axis]
    return frame


def _widened(frame: Frame | None, found: Frame | None) -> Frame | None:
    """Return the frame that holds both."""
    if frame is None or found is None:
        return frame or found
    low, high = list(map(min, frame, found)), list(map(max, frame, found))
    return Frame(low[0], high[1], low[2], high[3])


def _valid(volume: Volume, z_start: int, z_stop: int, y: slice, x: slice) -> Frame | None:
    """Return the frame of the valid voxels in a box."""
    frame: Frame | None = None
    for box in _cut(volume, z_start, z_stop, y, x):
        block = volume.read(*box)
        valid = np.any(np.isfinite(block) & (block != 0) if block.dtype.kind == "f" else block, axis=0)
        down, across = (np.flatnonzero(valid.any(axis=axis)) for axis in (1, 0))
        if down.size:
            frame = _widened(frame, Frame(*_ends(box[1], down), *_ends(box[2], across)))
    return frame


def _ends(span: slice, found: np.ndarray) -> tuple[int, int]:
    return span.start + int(found[0]), span.start + int(found[-1]) + 1


def _cut(volume: Volume, z_start: int, z_stop: int, y: slice, x: slice) -> Iterator[tuple[slice, slice, slice]]:
    """Cut a box into boxes of about `SEARCH_BYTES`: whole chunks, and runs of planes where chunks are larger."""
    room = max(1, SEARCH_BYTES // volume.dtype.itemsize)
    _deep, high, wide = volume.chunks
    wide *= max(1, room // ((z_stop - z_start) * high * wide))
    high *= max(1, room // ((z_stop - z_start) * high * min(wide, x.stop - x.start)))
    deep = max(1, room // (min(high, y.stop - y.start) * min(wide, x.stop - x.start)))
    for z in range(z_start, z_stop, deep):
        for rows in _steps(y, high):
            for columns in _steps(x, wide):
                yield slice(z, min(z + deep, z_stop)), rows, columns


def _steps(span: slice, step: int) -> list[slice]:
    """Cut a span at multiples of a step."""
    cuts = range(span.start - span.start % step + step, span.stop, step)
    return list(starmap(slice, pairwise((span.start, *cuts, span.stop)))) if span.start < span.stop else []
