"""The cache of compiled kernels: where numba stores them, and when it reuses them.

Numba reuses a compiled kernel as long as the file that defines it is unchanged. But kernels call each other across
files, and the called ones are compiled into the caller, as are the constants that a file imports, so that after an
upgrade numba would use parts of the older version. A kernel of this package is therefore reused only if its file and
every file of the package from which that one imports, directly or not, are unchanged.

After an upgrade many tasks may start at once, on processors of several kinds, and compile into one folder. Numba
numbers the files with compiled kernels and writes the index that names them first: for a moment, or for good if two
processes chose the same number, an index names a file of another version, other types or another processor. Each file
of this package therefore carries a checksum of its content and its key. And a process that misses a kernel waits while
another one compiles it, so that processes that start together share the work out.

Numba reads its cache folder only if it may write there, and raises an error otherwise. A container image therefore sets
NUMBA_CACHE_LOCATOR_CLASSES to `ReadOnlyCacheLocator`: kernels that were compiled when the image was built are reused,
and a missing one, say for another array type, is compiled for this process. The image also sets NUMBA_CPU_NAME, because
numba reuses a kernel only for the processor name for which it was compiled.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import pickle
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import caching, event

PACKAGE = Path(__file__).parents[1]
# from n4flow.a import b, c: the names may be modules
IMPORTS = re.compile(rf"^\s*(?:from|import) {PACKAGE.name}\.([\w.]+)(?: import (\([^)]*\)|[^\n(]*))?", re.MULTILINE)


@functools.cache
def imported(file: Path) -> frozenset[Path]:
    """Return the files of the package from which a file of it imports, as its text says."""
    found = set()
    for module, names in IMPORTS.findall(file.read_text(encoding="utf-8")):
        place = PACKAGE.joinpath(*module.split("."))
        parts = [place / name for name in re.findall(r"\w+", names)]
        files = (file for each in (place, *parts) for file in (each.with_suffix(".py"), each / "__init__.py"))
        found |= {each for each in files if each.is_file()}
    return frozenset(found)


def sources(file: Path) -> set[Path]:
    """Return a file of the package and all of it from which that one imports, directly or not."""
    known, new = {file}, {file}
    while new := set().union(*map(imported, new)) - known:
        known |= new
    return known


@functools.cache
def sources_digest(file: Path) -> str:
    """Return the SHA-256 of the sources of a file of the package."""
    digest = hashlib.sha256()
    for each in sorted(sources(file)):
        digest.update(f"{each.relative_to(PACKAGE)}\0".encode())
        digest.update(each.read_bytes())
    return digest.hexdigest()


class _PackageKernels:
    """Restricts a cache locator of numba to kernels of this package, whose stamp is the digest of their sources."""

    _py_file: str

    def get_source_stamp(self) -> str:
        return sources_digest(Path(self._py_file))

    @classmethod
    def from_function(cls, py_func: object, py_file: str) -> object:
        if not Path(py_file).is_relative_to(PACKAGE):
            return None
        return super().from_function(py_func, py_file)  # type: ignore[misc]


# In NUMBA_CACHE_DIR, beside the source file, or in the user's cache folder.
_LOCATORS = (caching.UserProvidedCacheLocator, caching.InTreeCacheLocator, caching.UserWideCacheLocator)
caching.CacheImpl._locator_classes = [
    *(type(locator.__name__, (_PackageKernels, locator), {}) for locator in _LOCATORS),
    *caching.CacheImpl._locator_classes,
]

WAITING = "n4flow:waiting"  # event: another process compiles a kernel that this one needs
PATIENCE = 300.0  # Seconds after which a kernel is compiled here, too: who compiles it may have been stopped.

# Errors that Python raises for a pickle that is truncated, damaged, or of a class of another version.
UNREADABLE = (pickle.UnpicklingError, EOFError, AttributeError, ImportError, LookupError, ValueError, TypeError)


class _SealedData(caching.IndexDataCacheFile):
    """The cache files of one function with a checksum: files with other content, or damaged ones, are cache misses."""

    _lock: int | None = None  # descriptor of the file that is locked while this process compiles the function

    def _seal(self, key: Any, data: bytes) -> bytes:
        return hashlib.sha256(repr((self._version, self._source_stamp, key)).encode() + data).digest()

    def save(self, key: Any, data: Any) -> None:
        dumped = self._dump(data)
        try:
            super().save(key, (self._seal(key, dumped), dumped))
        finally:
            self._unlock()

    def load(self, key: Any) -> Any:
        found = self._verified(key)
        if found is None and self._lock is None and self._lock_after_others():
            found = self._verified(key)
        if found is not None:
            self._unlock()
        return found

    def _lock_after_others(self) -> bool:
        """Lock this function until it is saved, or this process ends; return whether another process had locked it."""
        try:
            os.makedirs(self._cache_path, exist_ok=True)
            self._lock = os.open(f"{self._index_path}.lock", os.O_CREAT | os.O_RDWR, 0o666)
        except OSError:  # a cache that cannot be written to
            return False
        if self._try_lock():
            return False
        with event.trigger_event(WAITING):
            until = time.monotonic() + PATIENCE
            while not self._try_lock() and time.monotonic() < until:
                time.sleep(0.02)
        return True

    def _try_lock(self) -> bool:
        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks: every process compiles for itself
            pass
        return True

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _verified(self, key: Any) -> Any:
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
            raise OSError(msg) from error  # Numba treats the file as missing.
        return seal, data


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return `numba.njit(**options)` with a cache that verifies the content of its files."""
    decorate = numba.njit(**options)

    def decorated(function: Callable[..., Any]) -> Any:
        kernel = decorate(function)
        cache = getattr(kernel, "_cache", None)  # There is no cache with NUMBA_DISABLE_JIT.
        if isinstance(cache, caching.FunctionCache):
            cache._cache_file.__class__ = _SealedData
        return kernel

    return decorated


class ReadOnlyCacheLocator(caching.UserProvidedCacheLocator):
    """Cache in NUMBA_CACHE_DIR, also if that folder is read-only."""

    _cache_path: str

    def __init__(self, py_func: object, py_file: str) -> None:
        super().__init__(py_func, py_file)
        if not os.access(os.path.dirname(self._cache_path), os.W_OK):
            self._cache_path = _linked(self._cache_path).name


@functools.cache
def _linked(folder: str) -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder with a link to each file of `folder`, to which new kernels are added.

    The cache of this function keeps the folder until the process ends.
    """
    scratch = tempfile.TemporaryDirectory(prefix="n4flow-kernels-")
    if os.path.isdir(folder):
        for file in Path(folder).resolve().iterdir():
            Path(scratch.name, file.name).symlink_to(file)
    return scratch
