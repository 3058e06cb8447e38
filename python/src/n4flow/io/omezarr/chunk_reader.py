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
import re
from collections.abc import Container
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from n4flow.compute.threads import thread_limit
from n4flow.io.omezarr.chunk_grid import FileGrid, Index

Box = tuple[slice, ...]
_ran_in: list[int] = []  # Id of the process in which tensorstore runs, once it does; a forked process inherits it.


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
        self._folder = path / array.path if path.is_dir() else None
        self._store = _open(self._folder, array) if self._folder is not None else None
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

        target = tensorstore.array(out, copy=False, write=True, context=_context(thread_limit()))
        try:
            target.write(self._store[box]).result()
        except (ValueError, RuntimeError) as error:  # It begins with a code as NOT_FOUND and ends with what was opened.
            reason = re.sub(r"^[A-Z_]+: |\s*\[(tensorstore_spec|source locations)=.*", "", str(error), flags=re.DOTALL)
            raise ValueError(reason) from error

    def _check_files(self, box: Box) -> None:
        """Refuse a box whose files are not all there: both libraries would read the fill value."""
        if self._folder is not None:
            for index in self.files.touched(box):
                key = self.files.key(index)
                if index not in self._absent and not (self._folder / key).is_file():
                    msg = f"{key} is missing"
                    raise FileNotFoundError(msg)


def _open(folder: Path, array: Any) -> Any:
    """Return an array in a folder as tensorstore opens it; None where it cannot be read so."""
    if _ran_in and _ran_in[0] != os.getpid():
        return None
    import tensorstore

    _ran_in[:] = [os.getpid()]
    spec = {
        "driver": "zarr" if array.metadata.zarr_format == 2 else "zarr3",
        "kvstore": {"driver": "file", "path": f"{folder.absolute()}/"},
        "recheck_cached_data": False,
    }
    try:
        return tensorstore.open(spec, open=True, read=True, context=_context(thread_limit())).result()
    except (ValueError, NotImplementedError):
        return None


@cache
def _context(threads: int) -> Any:
    """Return what all arrays of a process share: a limit of threads that read and that decode, and no cache."""
    import tensorstore

    limits = {"data_copy_concurrency": {"limit": threads}, "file_io_concurrency": {"limit": threads}}
    return tensorstore.Context({**limits, "cache_pool": {"total_bytes_limit": 0}})
