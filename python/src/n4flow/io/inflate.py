"""Inflate gzip and zlib to the end of their checksums, piece by piece: neither a short read nor a bomb passes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from n4flow.errors import InputError

PIECE = 2**22  # Bytes that are read or inflated at a time.
RATIO = 1032  # Deflate makes at most so many bytes of one: 258 of two bits.
BEHIND = 2**24  # Bytes that may follow what is asked for, beside as many as those: what else a writer may append.


def inflated(path: Path, asked: int, start: int = 0) -> Iterator[bytes]:
    """Yield what a file holds from byte `start` on, as gzip (of one or more members) or zlib, in pieces.

    Its end is reached, so that zlib compares checksum and length.

    Raises
    ------
    InputError
        The file is damaged, holds less than the `asked` bytes, or goes on for more than twice as many.
    """
    total = 0
    with path.open("rb") as stream:
        stream.seek(start)
        packed = stream.read(PIECE)
        gzip = packed.startswith(b"\x1f\x8b")
        decoder = zlib.decompressobj(31 if gzip else 15)
        while packed:
            try:
                piece = decoder.decompress(packed, PIECE)
            except zlib.error as error:
                msg = f"{path} is damaged: {error}; copy it again"
                raise InputError(msg) from error
            total += len(piece)
            if total > 2 * asked + BEHIND:
                msg = f"{path} goes on for more than {total} bytes, its header asks for {asked}; write it again"
                raise InputError(msg)
            yield piece
            packed = decoder.unconsumed_tail or (decoder.unused_data if decoder.eof else b"") or stream.read(PIECE)
            if decoder.eof:
                packed = packed.lstrip(b"\0") if gzip else b""  # Members may be padded; behind zlib may be anything.
                decoder = zlib.decompressobj(31) if packed else decoder
    if not decoder.eof or total < asked:
        msg = f"{path} is cut short: its header asks for {asked} bytes and it has {total}; copy it again"
        raise InputError(msg)


def check_ratio(path: Path, asked: int, packed: int) -> None:
    """Refuse a file whose header asks for more bytes than deflate can make of the `packed` ones.

    Raises
    ------
    InputError
    """
    if asked > RATIO * packed:
        held = f"which {packed} bytes of deflate cannot hold"
        msg = f"{path} is cut short: its header asks for {asked} bytes, {held}; copy it again"
        raise InputError(msg)


def inflated_part(path: Path, start: int, nbytes: int, behind: int = 0) -> np.ndarray:
    """Return `nbytes` bytes of what a file inflates to from its byte `behind` on, from `start` on."""
    values = np.empty(nbytes, np.uint8)
    place = -start
    for piece in inflated(path, start + nbytes, behind):
        low, high = max(0, -place), min(len(piece), nbytes - place)
        if low < high:
            values[place + low : place + high] = np.frombuffer(piece, np.uint8)[low:high]
        place += len(piece)
    return values
