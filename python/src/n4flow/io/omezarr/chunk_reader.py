"""Read boxes of a Zarr array: tensorstore reads and decodes the chunks, in threads of its own.

zarr-python reads what tensorstore cannot:

* encodings that tensorstore refuses to open: Zarr v2 filters (delta, shuffle and others), LZ4 and LZMA, the codecs
  `numcodecs.*` of Zarr v3, and codecs after the one that makes shards;
* zip files, where zarr-python compares every member with its CRC-32;
* arrays in a process that was forked from one in which tensorstore ran: its threads do not exist there, and it would
  end the process.
"""

from __future__ import annotations

import os
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np

from n4flow.compute.threads import thread_limit
from n4flow.io.address import Address
from n4flow.io.omezarr.chunk_grid import FileGrid, Index
from n4flow.io.omezarr.tensorstore_use import reason_of, shared_context, tensorstore_runs

Box = tuple[slice, ...]


class ChunkReader:
    """Reads boxes of one array.

    tensorstore and zarr-python both verify checksums of chunks and of the indices of shards (CRC32C). Only the process
    of the id `process` may use it: threads of tensorstore do not exist in a forked one. The files at the positions
    `absent` are known to be, and read as the fill value.
    """

    def __init__(self, path: Path, array: Any, absent: Container[Index] = ()) -> None:
        self.process = os.getpid()
        self.files = FileGrid.of(array)
        self._absent = absent
        self._array = array
        self._remote, self._folder, place = None, path / array.path if path.is_dir() else None, None
        if self._folder is not None:
            place = {"driver": "file", "path": f"{self._folder.absolute()}/"}
        elif isinstance(path, Address):
            from n4flow.io.omezarr.remote import RemoteStore, specification

            self._remote, place = RemoteStore(path / array.path), specification(path / array.path)
        # An absent chunk of a shard is the fill value, an absent shard is none.
        self._filled = self._remote is None or array.shards is not None or bool(absent)
        self._store = None if place is None else _open(place, array, fill_missing_data_reads=self._filled)
        self.by_tensorstore = self._store is not None

    def read_into(self, out: np.ndarray, box: Box) -> None:
        """Read a box, slices with whole bounds along every axis of the array, into `out`, an array of its shape.

        Raises
        ------
        OSError, ValueError
            A file is missing or damaged; the message names it.
        """
        self._check_files(box)
        if self._store is None:
            np.copyto(out, self._array[box])
            return
        import tensorstore

        target = tensorstore.array(out, copy=False, write=True, context=shared_context(thread_limit()))
        try:
            target.write(self._store[box]).result()
        except (ValueError, RuntimeError) as error:  # It begins with a code as NOT_FOUND and ends with what was opened.
            raise ValueError(reason_of(error)) from error

    def _check_files(self, box: Box) -> None:
        """Refuse a box whose files are not all there: both libraries would read the fill value."""
        if self._folder is not None:
            for index in self.files.touched(box):
                key = self.files.key(index)
                if index not in self._absent and not (self._folder / key).is_file():
                    msg = f"{key} is missing"
                    raise FileNotFoundError(msg)
        elif self._remote is not None and self._filled:
            from n4flow.io.omezarr.remote import states

            keys = [self.files.key(index) for index in self.files.touched(box) if index not in self._absent]
            for key, found in zip(keys, states(self._remote, keys), strict=True):
                if found is None:
                    msg = f"{key} is missing"
                    raise FileNotFoundError(msg)


def _open(place: Any, array: Any, **options: Any) -> Any:
    """Return an array in a key-value store of tensorstore as it opens it; None where it cannot be read so."""
    if not tensorstore_runs():
        return None
    import tensorstore

    spec = {
        "driver": "zarr" if array.metadata.zarr_format == 2 else "zarr3",
        "kvstore": place,
        "recheck_cached_data": False,
        **options,
    }
    try:
        return tensorstore.open(spec, open=True, read=True, context=shared_context(thread_limit())).result()
    except (ValueError, NotImplementedError):
        return None
