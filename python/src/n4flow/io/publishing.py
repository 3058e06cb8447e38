"""Results appear under their name complete or not at all, whatever happens to the processes that make them.

Whoever makes `NAME` works in the hidden folder `.NAME.n4flow` beside it: there lie a lock, which ends with its process,
and the process's own folder. What a killed process left is removed by the next one that writes into the same place.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TextIO

from n4flow.errors import InputError, N4flowError

CHECKSUMS_NAME = "checksums.json"  # Of a slab, then of everything that is published of a sample.
MASK_NAME = "mask.ome.zarr"  # Of the tissue mask, beside the sample's store.
HIDDEN = ".n4flow"  # Ending of a hidden folder.
SCRATCH = "n4flow-"  # Beginning of the folders in it, one of each process.
LOCK = "lock"  # Its file that is locked; the text says by which process.
FICLONE = 0x40049409  # Of <linux/fs.h>: one file gets the blocks of another.
PATIENCE = 2.0  # Seconds until a lock counts as held: who looks for what killed processes left takes it for a moment.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # What file systems without locks answer.

log = logging.getLogger("n4flow")


@contextmanager
def published(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a folder beside `out` to write into; it takes the place of `out` only if nothing fails.

    `replace` says that the caller has judged what is at `out`.

    Raises
    ------
    InputError
        There is something at `out` that is no result of an earlier run, or another process is making `out`.
    """
    with scratch_beside(out) as scratch:
        if not replace:
            check_replaceable(out)
        yield scratch / "new"
        _take_place(scratch, out)


def publish(source: Path, out: Path, *, link: bool = False, threads: int = 8) -> dict[str, Any]:
    """Bring a folder of results to another place, where it appears complete or not at all.

    Files are hard links if `link` asks for it and the disks allow it; else they share their blocks with the source,
    where the file system has such clones; else they are copies. What is there already is left alone if it is equal:
    the same `checksums.json`, and the same names and sizes of files.

    Parameters
    ----------
    source, out : path
    link : bool
    threads : int
        Files that are brought at a time.

    Returns
    -------
    dict
        Counts of `files` and of their `bytes`, and how many of them were `linked`, `cloned`, `copied` or `kept`.

    Raises
    ------
    InputError
        There is something at `out` that is no result of an earlier run, or another process is making `out`.
    N4flowError
        What arrived is not what was sent.
    """
    with scratch_beside(out) as scratch:
        check_replaceable(out)
        wanted, new = _sizes(source), scratch / "new"
        files = [name for name, size in wanted.items() if size is not None]
        how = dict.fromkeys(("linked", "cloned", "copied", "kept"), 0)
        if _checksums(out) == _checksums(source) is not None and _sizes(out) == wanted:
            how["kept"] = len(files)
        else:
            new.mkdir()
            for name, size in wanted.items():
                if size is None:
                    (new / name).mkdir()
            with ThreadPoolExecutor(threads) as pool:
                for done in pool.map(lambda name: _bring(source / name, new / name, link=link), files):
                    how[done] += 1
            if _sizes(new) != wanted:
                msg = f"{out}: files were lost or changed while they were brought from {source}; run again with -resume"
                raise N4flowError(msg)
            _take_place(scratch, out)
    return {"files": len(files), "bytes": sum(wanted[name] or 0 for name in files), **how}


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """Give a folder on the disk of `out` to this process alone, as the only one that makes `out`; remove it at the end.

    Raises
    ------
    InputError
        Another process is making `out`.
    """
    reclaim(out.parent)
    with locked(out) as hidden:
        scratch = Path(tempfile.mkdtemp(dir=hidden, prefix=SCRATCH))
        try:
            yield scratch
        finally:
            _put_back(scratch, out)  # A signal may have come between two renamings.
            _remove(scratch)


def check_replaceable(out: Path) -> None:
    """Judge whether a result may take the place of what is at a path: nothing, or a result with nothing else beside it.

    Raises
    ------
    InputError
        There is something that no run of n4flow wrote.
    """
    if not out.exists():
        return
    if not (out / "recipe.json").is_file():
        msg = f"{out} exists and is no result of n4flow; remove it or choose another place"
        raise InputError(msg)
    try:
        stated = json.loads(_checksums(out) or b"")
        written = {name.partition("/")[0] for part in ("files", "stores") for name in stated[part]}
    except (ValueError, KeyError, TypeError):  # of a result that is damaged nothing says what belongs to it
        return
    if foreign := sorted({entry.name for entry in out.iterdir()} - written - {CHECKSUMS_NAME}):
        msg = f"{out} holds {', '.join(foreign[:5])}, which no run wrote; move it away or choose another place"
        raise InputError(msg)


def _take_place(scratch: Path, out: Path) -> None:
    if os.path.lexists(out):
        set_aside(out, scratch)
    os.replace(scratch / "new", out)


def _sizes(folder: Path) -> dict[str, int | None]:
    """Return the size of every file at any depth of a folder, None for a folder, each after the one that it is in."""
    found: dict[str, int | None] = {}
    pending = [""]
    while pending:
        above = pending.pop()
        with os.scandir(folder / above) as entries:
            for entry in entries:
                name = f"{above}{entry.name}"
                found[name] = None if entry.is_dir() else entry.stat().st_size
                if entry.is_dir():
                    pending.append(f"{name}/")
    return found


def _checksums(folder: Path) -> bytes | None:
    """Return what vouches for a sample's voxels."""
    try:
        return (folder / CHECKSUMS_NAME).read_bytes()
    except FileNotFoundError:
        return None


def _bring(source: Path, target: Path, *, link: bool) -> str:
    """Make a file that is another one's link, clone or copy; return which."""
    if link:
        try:
            os.link(source.resolve(), target)
            return "linked"
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
    with source.open("rb") as old, target.open("xb") as new, suppress(OSError):
        fcntl.ioctl(new, FICLONE, old.fileno())
        return "cloned"
    shutil.copyfile(source, target)
    return "copied"


def set_aside(out: Path, scratch: Path) -> None:
    """Move an older result away; it comes back if nothing takes its place until `scratch` is removed."""
    os.replace(out, scratch / "old")


@contextmanager
def locked(out: Path) -> Iterator[Path]:
    """Be the only process that makes `out`, and give the hidden folder beside it.

    On a file system without locks there is a warning instead of a lock.

    Raises
    ------
    InputError
        Another process makes it.
    """
    hidden = out.parent / f".{out.name}{HIDDEN}"
    made = [folder for folder in (out.parent, *out.parent.parents) if not folder.exists()]
    try:
        lock = _acquire(hidden, PATIENCE)
    except BlockingIOError:
        holder = _holder(hidden) or "another process"
        msg = f"{out} is being written by {holder}; wait until that ends, or choose another place"
        raise InputError(msg) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning("warning: %s has no locks (%s); let nothing else write %s", out.parent, error.strerror, out.name)
        lock = None
    try:
        if lock is not None:
            _clear(hidden, out)
        yield hidden
    finally:
        _release(hidden, lock)
        with suppress(OSError):  # The first one that is not empty.
            for folder in made:
                folder.rmdir()


def reclaim(folder: Path) -> None:
    """Remove what killed processes of this machine left in a folder, and put back the results that they had set aside.

    The locks of some file systems do not reach other machines; what was left there goes when it is made again.
    """
    for hidden in sorted(folder.glob(f".*{HIDDEN}")):
        holder = _holder(hidden)
        if hidden.is_symlink() or (holder and not holder.endswith(f" on {socket.gethostname()}")):
            continue
        try:
            lock = _acquire(hidden)
        except OSError:  # Its process lives, the folder may not be written to, or nobody knows.
            continue
        try:
            _clear(hidden, folder / hidden.name.removeprefix(".").removesuffix(HIDDEN))
        finally:
            _release(hidden, lock)


def _clear(hidden: Path, out: Path) -> None:
    """Remove what killed processes left in a hidden folder whose lock is held."""
    for scratch in sorted(hidden.glob(f"{SCRATCH}*")):
        try:
            if _put_back(scratch, out):
                log.warning("warning: %s was put back: the run that was to replace it was killed", out)
        except OSError as error:
            log.warning("warning: %s could not be put back to %s (%s)", scratch / "old", out, error)
            continue
        if _remove(scratch):
            log.warning("warning: %s, which a killed run had left, was removed", scratch)


def _acquire(hidden: Path, patience: float = 0.0) -> TextIO:
    """Return the locked file of a hidden folder, which is made where there is none.

    Raises
    ------
    BlockingIOError
        Another process holds the lock.
    OSError
        There are no locks here.
    """
    end = time.monotonic() + patience
    while True:
        hidden.mkdir(parents=True, exist_ok=True)
        try:
            stream = (hidden / LOCK).open("a+", encoding="utf-8")
        except FileNotFoundError:  # Its last owner has just removed the folder.
            continue
        try:
            _lock(stream)
            if os.path.samestat(os.fstat(stream.fileno()), (hidden / LOCK).stat()):
                stream.truncate(0)
                stream.write(f"process {os.getpid()} on {socket.gethostname()}")
                stream.flush()
                return stream
        except BlockingIOError:
            if time.monotonic() >= end:
                stream.close()
                raise
            time.sleep(0.05)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):  # Its last owner has just removed the file.
                stream.close()
                raise
        stream.close()


def _lock(stream: TextIO) -> None:
    """Lock a file as long as it is open, against other processes and threads, and against the locks of Java.

    This is Linux's lock of an open file description; elsewhere it is `flock`, which Java does not see.
    """
    if hasattr(fcntl, "F_OFD_SETLK"):
        whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock, of 64 bits
        fcntl.fcntl(stream, fcntl.F_OFD_SETLK, whole)
    else:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _release(hidden: Path, lock: TextIO | None) -> None:
    """Remove a lock and its folder: the file while it is locked, so that nobody removes one that is another's."""
    with suppress(OSError):  # Something could not be removed, or another process has made it again.
        with closing(lock) if lock is not None else nullcontext():
            (hidden / LOCK).unlink(missing_ok=True)
        hidden.rmdir()


def _holder(hidden: Path) -> str:
    """Return which process has or had a lock, '' where nothing says so."""
    with suppress(OSError):
        return (hidden / LOCK).read_text(encoding="utf-8", errors="replace")
    return ""


def _put_back(scratch: Path, out: Path) -> bool:
    """Give a result that was set aside its place again, where nothing has taken that."""
    if os.path.lexists(out) or not os.path.lexists(scratch / "old"):
        return False
    os.replace(scratch / "old", out)
    return True


def _remove(scratch: Path) -> bool:
    """Remove a process's folder; an old result is renamed first, so that a part of it is never put back."""
    old, gone = scratch / "old", scratch / "gone"
    try:
        if os.path.lexists(old):
            _delete(gone)
            os.replace(old, gone)
        _delete(scratch)
    except OSError as error:
        log.warning("warning: %s could not be removed (%s); remove it", scratch, error)
        return False
    return True


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
