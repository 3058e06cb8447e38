"""Where numba keeps our compiled kernels, and when it takes them.

Numba takes a compiled kernel as long as the file it was written in is unchanged. But kernels call
each other across files, and the called ones are compiled into the caller. So after an upgrade numba
would go on with parts of the older version. Our kernels are therefore taken only where every file
of the package is what it was.

Many tasks may start at once after an upgrade, on processors of several kinds, and compile into one
folder. Numba numbers its files of compiled kernels, and writes the index that names them first: for
a moment, or for good where two processes took one number, an index names what another version,
other types or another processor were compiled to. Each of our files therefore says what it holds.

Numba looks into its cache folder only where it may write, and stops the program where it may
not. An image therefore names `ReadOnlyCacheLocator` in NUMBA_CACHE_LOCATOR_CLASSES:
kernels compiled when the image was built are used, and one that is missing, say for another
kind of array, is compiled for this process. The image fixes the processor by NUMBA_CPU_NAME,
for Numba takes a kernel only where the name is that of its compilation.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import caching

__all__ = ["ReadOnlyCacheLocator", "njit", "sources_digest"]

PACKAGE = Path(__file__).parents[1]  # a kernel may call any other of the package

_folders: list[tempfile.TemporaryDirectory[str]] = []  # each is removed when the process ends


@functools.cache
def sources_digest() -> str:
    """Return the SHA-256 of every source file of the package."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE)}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


class _OfPackage:
    """Makes a locator of numba's one for our kernels only, which are as fresh as the whole package."""

    def get_source_stamp(self) -> str:
        return sources_digest()

    @classmethod
    def from_function(cls, py_func: object, py_file: str) -> object:
        if not Path(py_file).is_relative_to(PACKAGE):
            return None
        return super().from_function(py_func, py_file)  # type: ignore[misc]


class UserProvidedCacheLocator(_OfPackage, caching.UserProvidedCacheLocator):
    """In NUMBA_CACHE_DIR."""


class InTreeCacheLocator(_OfPackage, caching.InTreeCacheLocator):
    """Beside the source."""


class UserWideCacheLocator(_OfPackage, caching.UserWideCacheLocator):
    """In the user's cache folder."""


caching.CacheImpl._locator_classes = [
    UserProvidedCacheLocator,
    InTreeCacheLocator,
    UserWideCacheLocator,
    *caching.CacheImpl._locator_classes,
]


# What Python says of a pickle that is cut short or damaged, or of a class that another version had.
UNREADABLE = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    ValueError,
    TypeError,
)


class _SealedData(caching.IndexDataCacheFile):
    """Numba's files of one function, of which each says what it holds. What is something else or damaged is no hit."""

    def _seal(self, key: Any, data: bytes) -> bytes:
        return hashlib.sha256(repr((self._version, self._source_stamp, key)).encode() + data).digest()

    def save(self, key: Any, data: Any) -> None:
        dumped = self._dump(data)
        super().save(key, (self._seal(key, dumped), dumped))

    def load(self, key: Any) -> Any:
        found = super().load(key)
        return None if found is None or found[0] != self._seal(key, found[1]) else pickle.loads(found[1])

    def _load_index(self) -> Any:
        try:
            return super()._load_index()
        except UNREADABLE:
            return {}

    def _load_data(self, name: str) -> Any:
        try:
            seal, data = super()._load_data(name)
        except UNREADABLE as error:
            msg = f"{name} cannot be read: {error}"
            raise OSError(msg) from error  # to numba it is as if it were gone
        return seal, data


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return `numba.njit(**options)`, whose cache takes nothing but what it asked for."""
    decorate = numba.njit(**options)

    def decorated(function: Callable[..., Any]) -> Any:
        kernel = decorate(function)
        cache = getattr(kernel, "_cache", None)  # none without compilation, NUMBA_DISABLE_JIT
        if isinstance(cache, caching.FunctionCache):
            cache._cache_file.__class__ = _SealedData
        return kernel

    return decorated


class ReadOnlyCacheLocator(caching.UserProvidedCacheLocator):
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
