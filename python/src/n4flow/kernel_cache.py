"""Compiled kernels that lie in a read-only folder, as in a container image.

Numba looks into its cache folder only where it may write, and stops the program where it may
not. An image therefore names the class of this module in NUMBA_CACHE_LOCATOR_CLASSES:
kernels compiled when the image was built are used, and one that is missing, say for another
kind of array, is compiled for this process. The image fixes the processor by NUMBA_CPU_NAME,
for Numba takes a kernel only where the name is that of its compilation.
"""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

from numba.core.caching import UserProvidedCacheLocator

_folders: list[tempfile.TemporaryDirectory[str]] = []  # each is removed when the process ends


class ReadOnlyCacheLocator(UserProvidedCacheLocator):
    """Numba's user-provided cache folder, NUMBA_CACHE_DIR, also where it is read-only."""

    _cache_path: str

    def __init__(self, py_func: object, py_file: str) -> None:
        super().__init__(py_func, py_file)
        if not os.access(os.path.dirname(self._cache_path), os.W_OK):
            self._cache_path = _linked(self._cache_path)


@functools.cache
def _linked(folder: str) -> str:
    """Return a temporary folder with a link to each file of `folder`; what is compiled anew goes beside them."""
    scratch = tempfile.TemporaryDirectory(prefix="n4flow-kernels-")
    _folders.append(scratch)
    if os.path.isdir(folder):
        for file in Path(folder).resolve().iterdir():
            Path(scratch.name, file.name).symlink_to(file)
    return scratch.name
