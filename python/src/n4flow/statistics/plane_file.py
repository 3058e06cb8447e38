"""Files between the stages: a head of small arrays, then pieces, such as planes, that are compressed and read alone.

A stage that works through a volume opens the files of all slabs, keeps their heads in memory, and reads a plane when it
needs it.
"""

from __future__ import annotations

import itertools
import os
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from n4flow.errors import InputError, reading

FORMAT = 3  # Version of these files: a run that is resumed may find those of another version of n4flow.
LEVEL = 5  # Compression level of LZ4, which takes half the time of zstd for files that are 5 to 10 % larger.
MEMBER = "pieces.npy"
AGAIN = "delete it, and let the stage that writes it run again"


def codec(*, noisy: bool = False) -> Any:
    """Return the codec of pieces; of `noisy` numbers it sorts the bits, by which they become smaller, and else bytes.

    It cannot encode an empty array, for which an empty piece is written.
    """
    from numcodecs import Blosc  # type: ignore[import-untyped]

    return Blosc("lz4", LEVEL, Blosc.BITSHUFFLE if noisy else Blosc.SHUFFLE)


def write_pieces(path: str | Path, arrays: Mapping[str, np.ndarray], pieces: Sequence[bytes]) -> None:
    """Write an .npz file with `arrays`, the head, and, behind them, `pieces`, for a `PieceFile`."""
    ends, sums = np.cumsum([0, *map(len, pieces)]), np.array([_checksum(piece) for piece in pieces], np.uint32)
    with Path(path).open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays, format=np.array(FORMAT), ends=ends, checksums=sums)
    header = {"descr": "|u1", "fortran_order": False, "shape": (int(ends[-1]),)}
    with zipfile.ZipFile(path, "a") as archive, archive.open(MEMBER, "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        member.writelines(pieces)


class PieceFile:
    """A file that `write_pieces` made: its head, a dict of arrays, and its pieces.

    Raises
    ------
    InputError
        The file is damaged, or of another version of n4flow.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with reading(self.path, "whole", AGAIN):
            with self.path.open("rb") as stream, np.load(stream) as data:
                self.head = {name: data[name] for name in data.files if f"{name}.npy" != MEMBER}
            known = int(self.head.pop("format", 0)) == FORMAT
            if known:
                self._ends = (self.head.pop("ends") + _offset(self.path)).tolist()
                self._checksums = self.head.pop("checksums").tolist()
        if not known:
            raise InputError(self._said("was not written by this version of n4flow"))

    def __len__(self) -> int:
        return len(self._checksums)

    def read(self, start: int, stop: int) -> list[bytes]:
        """Return pieces `start` to `stop`.

        Raises
        ------
        InputError
            They are not what was written.
        """
        ends = self._ends[start : stop + 1]
        with self.path.open("rb") as stream:
            stream.seek(ends[0])
            pieces = [stream.read(last - first) for first, last in itertools.pairwise(ends)]
        for number, piece in enumerate(pieces, start):
            if _checksum(piece) != self._checksums[number]:
                raise InputError(self._said(f"is damaged (piece {number} of {len(self)})"))
        return pieces

    def _said(self, what: str) -> str:
        return f"{self.path} {what}; {AGAIN}"


def _checksum(piece: bytes) -> int:
    import google_crc32c

    return int(google_crc32c.value(piece))


def _offset(path: Path) -> int:
    """Return the offset of the first piece in a file."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        stream.seek(archive.getinfo(MEMBER).header_offset + 26)  # of the lengths of the name and of the extra field
        stream.seek(sum(struct.unpack("<HH", stream.read(4))), os.SEEK_CUR)
        np.lib.format.read_magic(stream)
        np.lib.format.read_array_header_1_0(stream)
        return stream.tell()
