"""Results appear under their name complete or not at all, whatever happens to the process that makes them."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from n4flow.errors import InputError

LOCK = "n4flow.lock"  # Lies in a hidden folder; the process that fills the folder holds it, and it names the machine.

log = logging.getLogger("n4flow")


@contextmanager
def published(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a folder beside `out` to write into; it takes the place of `out` only if nothing fails.

    `replace` says that the caller has judged what is at `out`.

    Raises
    ------
    InputError
        There is something at `out` that is no result of an earlier run.
    """
    if not replace and out.exists() and not (out / "recipe.json").is_file():
        msg = f"{out} exists and is no result of n4flow; remove it or choose another place"
        raise InputError(msg)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    lock = _locked(scratch)
    try:
        yield scratch / "new"
        if os.path.lexists(out):
            os.replace(out, scratch / "old")
        os.replace(scratch / "new", out)
    finally:
        with closing(lock):
            _put_back(scratch, out)  # A signal may have come between the two renamings.
            _remove(scratch, lock)


def reclaim(out: Path) -> None:
    """Remove the hidden folders beside `out` whose process was killed, and put back a result that it had moved there.

    A folder of another machine stays, with a warning: whether its process lives cannot be seen from here.
    """
    name = re.compile(rf"\.{re.escape(out.name)}\.[a-z0-9_]{{8}}")  # As `tempfile.mkdtemp` names them.
    for lock in sorted(out.parent.glob(f".*/{LOCK}")):
        scratch = lock.parent
        if not name.fullmatch(scratch.name):
            continue
        try:
            stream = lock.open("r+", encoding="utf-8", errors="replace")
        except OSError:  # It is gone meanwhile, or not ours.
            continue
        with closing(stream):
            if not _lock(stream):  # Its process lives.
                continue
            if (machine := stream.read()) != socket.gethostname():
                log.warning("warning: %s was left by a run on %s; remove it if that run is over", scratch, machine)
                continue
            try:
                if _put_back(scratch, out):
                    log.warning("warning: %s was put back: the run that was to replace it was killed", out)
            except OSError as error:
                log.warning("warning: %s could not be put back to %s (%s)", scratch / "old", out, error)
                continue
            if _remove(scratch, stream):
                log.warning("warning: %s, which a killed run had left, was removed", scratch)


def _locked(scratch: Path) -> TextIO:
    """Return the lock of a hidden folder; its file gets the name `LOCK` once the lock is held.

    On a file system without locks it never does: folders that are left there stay until someone removes them.
    """
    unnamed = scratch / f".{LOCK}"
    stream = unnamed.open("w", encoding="utf-8")
    if not _lock(stream):
        stream.close()
        return stream
    stream.write(socket.gethostname())
    stream.flush()
    os.replace(unnamed, scratch / LOCK)
    return stream


def _lock(stream: TextIO) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _put_back(scratch: Path, out: Path) -> bool:
    """Give a result that was moved aside its place again, where nothing has taken that."""
    if os.path.lexists(out) or not os.path.lexists(scratch / "old"):
        return False
    os.replace(scratch / "old", out)
    return True


def _remove(scratch: Path, lock: TextIO) -> bool:
    """Remove a hidden folder, its lock last: if this process is killed on the way, the next one finds the folder.

    An old result is renamed before it is removed, so that a part of it is never put back.
    """
    old, gone = scratch / "old", scratch / "gone"
    try:
        if os.path.lexists(old):
            _delete(gone)
            os.replace(old, gone)
        for path in scratch.iterdir():
            if path.name != LOCK:
                _delete(path)
        lock.close()  # Some file systems keep a removed file as long as it is open.
        (scratch / LOCK).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            scratch.rmdir()
    except OSError as error:
        log.warning("warning: %s could not be removed (%s); remove it", scratch, error)
        return False
    return True


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
